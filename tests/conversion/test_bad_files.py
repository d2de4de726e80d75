"""Files that cannot be read whole, or are no NIfTI: their patient fails alone, and says why."""

from __future__ import annotations

import gzip
import re
import resource
import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trees import (
    AFFINES,
    MRI,
    NEW,
    OLD,
    Workplace,
    edit,
    patch,
    snapshot,
    uncompressed,
    write_nifti,
)

from lundprobe_zarr.conversion.source.nifti import open_nifti, read_nifti
from lundprobe_zarr.conversion.source.workspace import Workspace
from lundprobe_zarr.errors import SourceError

MASK = "MR_StorT2/mask_Bladder.nii.gz"
DOSE = "sCT/dose_original.nii.gz"
NAN = float("nan")


@dataclass(frozen=True)
class Damage:
    """One thing done to one file, and what the patient's error has to say of it."""

    name: str
    path: str
    apply: Callable[[Path], None]
    finding: str
    remedy: str = "fetch"


def cut(count: int) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[:-count]) and None


def halve(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(position: int) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[position] ^= 0x10
        path.write_bytes(bytes(data))

    return apply


def replace(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None


def append(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes() + data) and None


def shorten(count: int) -> Callable[[Path], None]:
    return lambda path: edit(path, lambda data: data[:-count])


def retype(code: int, bits: int) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        patch("datatype", code)(path)
        edit(path, lambda d: d[:72] + struct.pack("<h", bits) + d[74:])

    return apply


def unplaced(path: Path) -> None:
    patch("qform_code", 0)(path)
    patch("sform_code", 0)(path)


def half_scaled(path: Path) -> None:
    patch("scl_slope", 2.0)(path)
    patch("scl_inter", NAN)(path)


def moved(**changes: float) -> Callable[[Path], None]:
    """Rewrite a mask with its affine changed at `r<row>c<column>`."""

    def apply(path: Path) -> None:
        affine = AFFINES["mri"].copy()
        for place, by in changes.items():
            affine[int(place[1]), int(place[3])] += by
        write_nifti(path, np.eye(8, 9, dtype=np.uint8)[None].repeat(5, 0), affine)

    return apply


def reshaped(path: Path) -> None:
    write_nifti(path, np.eye(9, 8, dtype=np.uint8)[None].repeat(5, 0), AFFINES["mri"])


def flipped_axis(path: Path) -> None:
    """The same box of space, but counted from its other end along x."""
    affine = AFFINES["mri"] @ np.array([[-1, 0, 0, 8], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    write_nifti(path, np.eye(8, 9, dtype=np.uint8)[None].repeat(5, 0), affine)


DAMAGES = [
    Damage("cut in half", MASK, halve, "too early|truncated"),
    Damage("without its trailer", MASK, cut(8), "too early"),
    Damage("without half its trailer", DOSE, cut(4), "too early"),
    Damage("without one byte", MRI, cut(1), "too early"),
    Damage("empty", MASK, replace(b""), "empty; expected"),
    Damage("a flipped bit in the data", MRI, flip(200), "not a valid gzip|too early"),
    Damage("a flipped bit in the checksum", MASK, flip(-6), "not a valid gzip"),
    Damage("a flipped bit in the length", MASK, flip(-2), "not a valid gzip"),
    Damage("no gzip", MASK, replace(b"\x5c\x01\x00\x00" * 200), r"not gzip: starts with b'\\"),
    Damage("text", MASK, replace(b"<html>404 not found</html>"), "not gzip: starts with b'<h'"),
    Damage("garbage behind the gzip member", MASK, append(b"garbage"), "extra bytes"),
    Damage("a page of garbage behind it", MASK, append(b"garbage" * 600), "not a valid gzip"),
    Damage("a second gzip member cut off", MASK, append(gzip.compress(b"x")[:12]), "too early"),
    Damage("gzip of nothing", MASK, replace(gzip.compress(b"")), "begins with b''"),
    Damage("gzip of text", MASK, replace(gzip.compress(b"no NIfTI" * 100)), "not a NIfTI header"),
    Damage("half a header", MASK, lambda p: edit(p, lambda d: d[:200]), "ends within the header"),
    Damage("fewer voxels than the header says", MASK, shorten(1), "359 bytes of voxels.*360"),
    Damage("no voxels", MASK, lambda p: edit(p, lambda d: d[:352]), "0 bytes of voxels"),
    Damage(
        "more voxels than the file can hold",
        MASK,
        patch("dim", 3, 32767, 32767, 32767, 1, 1, 1, 1),
        "can hold at most",
    ),
    Damage(
        "more voxels than there are, within what gzip could shrink",
        MASK,
        patch("dim", 3, 9, 8, 20, 1, 1, 1, 1),
        r"360 bytes of voxels.*\(9, 8, 20\)",
    ),
    Damage(
        "megabytes behind the voxels",
        MASK,
        lambda p: edit(p, lambda d: d + bytes(1 << 21)),
        "after the last voxel",
    ),
    Damage("header and voxels in two files", MASK, patch("magic", b"ni1\0"), r"b'ni1", "rewrite"),
    Damage("no magic", MASK, patch("magic", b"\0" * 4), "magic", "rewrite"),
    Damage("an unknown type", MASK, retype(999, 8), "datatype code 999"),
    Damage("complex voxels", MRI, retype(32, 64), "complex64", "rewrite"),
    Damage("colour voxels", MRI, retype(128, 24), "code 128", "rewrite"),
    Damage("long double voxels", MRI, retype(1536, 128), "code 1536", "rewrite"),
    Damage("bits", MRI, retype(1, 1), "code 1", "rewrite"),
    Damage("voxels within the header", MASK, patch("vox_offset", 300.0), "vox_offset 300"),
    Damage("voxels at no whole byte", MASK, patch("vox_offset", 352.5), "vox_offset 352.5"),
    Damage("voxels at NaN", MASK, patch("vox_offset", NAN), "vox_offset nan"),
    Damage("voxels at infinity", MASK, patch("vox_offset", float("inf")), "vox_offset inf"),
    Damage("voxels far behind", MASK, patch("vox_offset", 1e9), r"vox_offset 1e\+09"),
    Damage("two dimensions", MASK, patch("dim", 2, 9, 8, 5, 1, 1, 1, 1), "three dimensions"),
    Damage("two volumes", MASK, patch("dim", 4, 9, 8, 5, 2, 1, 1, 1), "one volume"),
    Damage("no dimensions", MASK, patch("dim", 0, 9, 8, 5, 1, 1, 1, 1), "three dimensions"),
    Damage("nine dimensions", MASK, patch("dim", 9, 9, 8, 5, 1, 1, 1, 1), "three dimensions"),
    Damage("a negative dimension", MASK, patch("dim", 3, -9, 8, 5, 1, 1, 1, 1), "positive"),
    Damage("no place in the patient", MASK, unplaced, "qform_code and sform_code", "write"),
    Damage("NaN in its affine", MASK, patch("srow_x", NAN, 0, 0, 0), "nan"),
    Damage("infinity in its affine", MASK, patch("srow_y", 0, 1, 0, float("inf")), "inf"),
    Damage("two axes alike", MASK, patch("srow_y", -0.5, 0, 0, 2), "independent"),
    Damage(
        "a slope with a NaN intercept",
        MASK,
        half_scaled,
        "scl_inter",
        "correct",
    ),
    Damage("another shape", MASK, reshaped, r"\(5, 9, 8\).*\(5, 8, 9\)"),
    Damage("another place", MASK, moved(r0c3=0.01), "0.01 mm away"),
    Damage("another voxel size", MASK, moved(r2c2=0.001), "0.004 mm away"),
    Damage("a flipped axis", MASK, flipped_axis, "8? ?mm away"),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.name.replace(" ", "-"))
def test_a_patient_with_a_damaged_file_fails_alone_and_says_why(
    work: Workplace, damage: Damage
) -> None:
    damage.apply(work.folder / damage.path)
    before = snapshot(work.dataset)

    results = work.convert()

    error = results[NEW].error or ""
    assert results[NEW].status == "failed"
    assert error.startswith(f"basePart/{NEW}/{damage.path}: ")
    assert re.search(damage.finding, error), error
    assert damage.remedy in error, error
    assert results[OLD].status == "converted"
    after = snapshot(work.dataset)
    assert {k: v for k, v in after.items() if OLD not in k} == before


def test_a_header_that_claims_a_hundred_terabytes_costs_neither_time_nor_memory(
    work: Workplace,
) -> None:
    path = work.folder / MRI
    patch("dim", 3, 32767, 32767, 32767, 1, 1, 1, 1)(path)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    started = time.perf_counter()
    with pytest.raises(SourceError, match=r"claims \(32767, 32767, 32767\) voxels"):
        read_nifti(path, "image.nii.gz")
    seconds, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 2
    assert peak < 32 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 64 << 10  # KiB


def test_a_false_claim_within_the_deflate_ratio_costs_the_memory_of_what_is_there(
    work: Workplace,
) -> None:
    path = work.folder / MRI
    noise = np.random.default_rng(0).bytes(1 << 20)
    edit(path, lambda data: data[:352] + noise)
    patch("dim", 3, 800, 800, 800, 1, 1, 1, 1)(path)  # 1 GB of int16, a MiB there
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SourceError, match="1048576 bytes of voxels"):
        read_nifti(path, "image.nii.gz")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 64 << 10


def test_every_flipped_byte_of_a_small_file_is_refused_or_harmless(work: Workplace) -> None:
    """Harmless: gzip's own header (time, system), which holds nothing of the file."""
    path = work.folder / MASK
    good, voxels = path.read_bytes(), uncompressed(path)
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0xFF]) + good[position + 1 :])
        if position >= 10:
            with pytest.raises(SourceError, match=f"^{MASK}: "):
                read_nifti(path, MASK)
            continue
        with suppress(SourceError):
            read = read_nifti(path, MASK)
            assert read.header + read.extensions + read.raw.tobytes() == voxels


def test_every_truncation_of_a_small_file_is_refused(work: Workplace) -> None:
    path = work.folder / MASK
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(SourceError, match=f"^{MASK}: "):
            read_nifti(path, MASK)


def test_each_source_file_is_opened_once(
    extended: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, real = Counter[str](), Path.open

    def counted(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.is_relative_to(extended.folder):
            opened[path.relative_to(extended.folder).as_posix()] += 1
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", counted)
    assert extended.convert_one().status == "converted"
    assert set(opened.values()) == {1}
    assert len(opened) == len([f for f in extended.folder.rglob("*") if f.is_file()])


def test_errors_of_other_files_are_not_attributed_to_open_ones(work: Workplace) -> None:
    """An array's files are open at the same time: each error names its own file."""

    def fail_while_open() -> None:
        with open_nifti(work.folder / MRI, MRI) as one:
            with open_nifti(work.folder / MASK, MASK) as other:
                assert other.read(Workspace()).raw.any()
            assert one.layout.shape
            raise OSError(28, "No space left")

    with pytest.raises(OSError, match="No space left") as raised:
        fail_while_open()
    assert not isinstance(raised.value, SourceError)
