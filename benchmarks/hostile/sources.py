"""Cases of a source tree: NIfTI files, gzip streams, side files, names of files and folders."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from benchmarks.hostile.changes import NAME, NUMBERS, TEXTS, changed_bytes, changed_json, odd_value
from benchmarks.hostile.material import Material
from lundprobe_zarr.conversion.source.fiducials import read_fiducials
from lundprobe_zarr.conversion.source.inventory import examine, take_inventory
from lundprobe_zarr.conversion.source.nifti import parse_header, peek_nifti, read_nifti
from lundprobe_zarr.conversion.source.side_files import (
    parse_components,
    parse_geometry,
    parse_missing,
    read_side_files,
)
from lundprobe_zarr.errors import SourceError

_NAMES = (
    *("newAcq_00000000000000a1", "oldAcq_00000000000000b2", "newAcq_00000000000000A1"),
    *("basePart", "extendedPart", "MR_StorT2", "sCT", "image.nii.gz", "mask_Rectum.nii.gz"),
    *("MRI_T2_DICOM_coords_fiducials.txt", "missingStructures_basePart.json", "nnUNetOutput"),
    *("patGeometryInformation_basePart.csv", "observerData", "folds", "lost+found", ".hidden"),
)
#: What is in a bomb: as much as a real volume, from some kilobytes.
_BOMB_MIB = 64


class Sources:
    """Makes and runs cases of source trees."""

    def __init__(self, material: Material) -> None:
        self._material = material
        self._file = material.scratch / "case.nii.gz"
        self._bomb = gzip.compress(bytes(_BOMB_MIB << 20), 9, mtime=0)
        self.gzip_seeds = tuple(gzip.compress(d, 1, mtime=0) for d in material.niftis)

    def header(self, rng: random.Random) -> bytes:
        """A header of either version and byte order with some fields or bytes changed."""
        kind: Any = rng.choice((Nifti1Header, Nifti1Header, Nifti2Header))
        data = rng.choice(self._material.niftis)
        header = kind.from_header(Nifti1Header(data[:348]), check=False)
        header = header.as_byteswapped(rng.choice("<>"))
        header["magic"], header["vox_offset"] = data[344:348], len(header.binaryblock) + 4
        for _ in range(rng.randrange(4)):
            _set_field(rng, header)
        raw = bytes(header.binaryblock)
        return changed_bytes(rng, raw, 2)[: len(raw)] if rng.random() < 0.3 else raw

    def run_header(self, header: bytes) -> None:
        """Have a header parsed, as the reader does: of its own size or not at all."""
        if len(header) >= 4:
            try:
                parse_header(header, "case")
            except ValueError as error:
                if isinstance(error, SourceError) or "expected a NIfTI header" not in str(error):
                    raise  # what is no header by its size is refused before, by whoever read it

    def nifti(self, rng: random.Random) -> bytes:
        """A whole file whose header says something else than its voxels, or that is cut short."""
        header, data = self.header(rng), rng.choice(self._material.niftis)
        body = data[348 : rng.choice((len(data), len(data), rng.randrange(348, len(data))))]
        return gzip.compress(header + body + rng.randbytes(rng.choice((0, 0, 1, 5000))), 1, mtime=0)

    def gzip(self, rng: random.Random) -> bytes:
        """A stream that is cut, flipped, of several members, with strays behind it, or a bomb."""
        whole = rng.choice(self.gzip_seeds)
        kind = rng.randrange(8)
        if kind == 0:
            return whole[: rng.randrange(len(whole))]
        if kind == 1:
            return whole + rng.choice((b"\0" * 9, b"\x1f\x8b", b"\x1f\x8b\x08", rng.randbytes(40)))
        if kind == 2:
            cut = rng.randrange(400)
            data = rng.choice(self._material.niftis)
            members = (data[:cut], b"", data[cut:], b"x" * rng.choice((0, 9)))
            return b"".join(gzip.compress(m, 1, mtime=0) for m in members)
        if kind == 3 and rng.random() < 0.02:
            return whole + self._bomb
        if kind == 3 and rng.random() < 0.02:
            header = self.header(rng)
            claim = bytearray(header)
            claim[40:56] = struct.pack("<8h", 3, *[32767] * 3, 1, 1, 1, 1)
            return gzip.compress(bytes(claim), 1, mtime=0) + self._bomb
        if kind == 4:  # a sound member whose trailer lies
            return whole[:-8] + struct.pack("<II", rng.getrandbits(32), rng.getrandbits(32))
        if kind == 5:
            return zlib.compress(gzip.decompress(whole), 1)
        return changed_bytes(rng, whole)

    def run_nifti(self, data: bytes) -> None:
        """Have a file read, with and without its header's text, and its beginning alone."""
        self._file.write_bytes(data)
        try:
            found = read_nifti(self._file, "case")
        except SourceError:
            for read in (peek_nifti, lambda f, w: read_nifti(f, w, strip=True)):
                try:
                    read(self._file, "case")
                except SourceError as error:
                    if not str(error):
                        raise
            raise
        stripped = read_nifti(self._file, "case", strip=True)
        if found.raw.tobytes() != stripped.raw.tobytes() or found.bytes != len(data):
            raise AssertionError("read in two ways, a file has two contents")
        if NAME[:8].encode() in stripped.header:
            raise AssertionError("the text of a header is there though it was to be left out")
        if any("nan" in said for said in found.anomalies):
            raise AssertionError(f"a finding without meaning: {found.anomalies}")

    def side_file(self, rng: random.Random) -> tuple[str, bytes]:
        """A side file: spoilt bytes, cells or members."""
        name = rng.choice(sorted(self._material.side_files))
        text = self._material.side_files[name]
        if rng.random() < 0.2:
            return name, changed_bytes(rng, text.encode(), 6)
        if name.endswith(".json"):
            known = {"newAcq_00000000000000a1": ["mask_PenileBulb.nii.gz"], NAME: [NAME]}
            return name, _json_bytes(rng, changed_json(rng, json.loads(text) | known))
        pieces = (";", "\n", '"', "(", ",", " ", "np.float64(", "1" * 400, *TEXTS)
        lines = text.split("\n")
        for _ in range(rng.randint(1, 5)):
            at = rng.randrange(len(lines))
            cells = lines[at].split(";")
            place = rng.randrange(len(cells))
            cells[place] = rng.choice(pieces) + rng.choice(("", cells[place]))
            lines[at] = ";".join(cells)
        return name, "\n".join(lines).encode("utf-8", "surrogatepass")

    def run_side_file(self, case: tuple[str, bytes]) -> None:
        """Have a side file read, and its text parsed; findings may not repeat free text."""
        name, data = case
        folder = self._material.scratch / "sides"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        findings = list(read_side_files(folder, "base").findings)
        text = data.decode("latin-1")
        parsers: tuple[Any, ...] = (parse_geometry, parse_missing, parse_components)
        for parse in parsers:
            parse(text, name, findings)
        if any(NAME in finding or "\x1b" in finding for finding in findings):
            raise AssertionError(f"a finding with text of the file: {findings}")

    def fiducials(self, rng: random.Random) -> bytes:
        """A fiducial text with odd numbers, cells, lines or bytes."""
        lines = self._material.fiducials.decode().split("\n")
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(lines))
            cells = lines[at].split(",")
            cells[rng.randrange(len(cells))] = str(rng.choice((*TEXTS, *NUMBERS)))
            lines[at] = ",".join(cells)
        data = "\n".join(lines).encode("utf-8", "surrogatepass")
        if rng.random() < 0.005:
            return data * 5000
        return changed_bytes(rng, data) if rng.random() < 0.4 else data

    def run_fiducials(self, data: bytes) -> None:
        """Have a fiducial text read."""
        file = self._material.scratch / "fiducials.txt"
        file.write_bytes(data)
        positions, _ = read_fiducials(file, "case")
        if positions.shape[1] != 3 or not np.isfinite(positions).all():
            raise AssertionError(f"positions {positions}")

    def tree(self, rng: random.Random) -> list[tuple[bytes, str]]:
        """Names of files and folders, any bytes, with links, loops and pipes; as (path, kind)."""
        entries = [(b"basePart", "folder")]
        for _ in range(rng.randrange(8)):
            parent = rng.choice([p for p, kind in entries if kind == "folder"])
            entries.append((parent + b"/" + _name(rng), rng.choice(_KINDS)))
        for side in self._material.side_files:
            if rng.random() < 0.2:
                entries.append((side.encode(), rng.choice(_KINDS)))
        return entries

    def run_tree(self, entries: list[tuple[bytes, str]]) -> None:
        """Take the inventory of a tree and look at how its files begin; what it says is text."""
        root = self._material.scratch / "tree"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        for path, kind in entries:
            _make(os.fsencode(root) + b"/" + path, kind)
        try:
            inventory = examine(take_inventory(root))
        finally:
            shutil.rmtree(root, ignore_errors=True)
        said = [*inventory.skipped, *inventory.findings]
        for patient in inventory.patients:
            said += [*patient.findings, *patient.unknown, patient.problem or ""]
        for text in said:
            text.encode()
            if any(c < " " or c == "\x7f" for c in text):
                raise AssertionError(f"control codes in {text!r}")


_KINDS = ("folder", "folder", "file", "file", "dangling", "loop", "outside", "pipe", "device")


def _make(path: bytes, kind: str) -> None:
    """Make an entry of a tree, if there is not one yet."""
    if os.path.lexists(path) or not Path(os.fsdecode(path)).parent.is_dir():
        return
    if kind == "folder":
        Path(os.fsdecode(path)).mkdir()
    elif kind == "file":
        Path(os.fsdecode(path)).write_bytes(b"\x1f\x8bnothing")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        to = {"dangling": b"nowhere", "loop": b".", "outside": b"/etc", "device": b"/dev/zero"}
        Path(os.fsdecode(path)).symlink_to(os.fsdecode(to[kind]))


def _name(rng: random.Random) -> bytes:
    if rng.random() < 0.7:
        return rng.choice(_NAMES).encode()
    text = rng.choice(TEXTS).encode("utf-8", "surrogatepass") + rng.randbytes(rng.randrange(3))
    return text.replace(b"/", b"_").replace(b"\0", b"")[:200] or b"-"


def _set_field(rng: random.Random, header: Any) -> None:
    """Give one field of a header, or one of its members, an odd value."""
    field = rng.choice(list(header.keys()))
    dtype = header[field].dtype
    size = dtype.itemsize
    if dtype.kind == "S" or rng.random() < 0.2:
        value: Any = np.frombuffer(rng.randbytes(size), dtype)[0]
    elif dtype.kind == "f":
        with np.errstate(over="ignore"):
            value = np.array(rng.choice(NUMBERS), np.float64).astype(dtype)
    else:
        number = rng.choice([n for n in NUMBERS if isinstance(n, int)])
        value = np.array(number % (1 << 8 * size), f"u{size}").astype(dtype)
    if header[field].ndim and rng.random() < 0.8:
        whole = header[field].copy()
        whole[rng.randrange(len(whole))] = value
        value = whole
    header[field] = value


def _json_bytes(rng: random.Random, value: Any) -> bytes:
    if rng.random() < 0.02:
        return b"[" * 100_000
    text = json.dumps(value if rng.random() < 0.95 else odd_value(rng))
    return text.encode() if rng.random() < 0.9 else changed_bytes(rng, text.encode())
