"""Read a gzipped NIfTI file: header, voxels and hashes in a single pass, in bounded memory.

In a NIfTI file i varies fastest, so its bytes are a C-ordered (k, j, i) array. This is the
(z, y, x) order of a store: nothing is transposed in memory and nothing is flipped.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import intent_codes
from nibabel.spatialimages import HeaderDataError
from zlib_ng import gzip_ng, zlib_ng

from lundprobe_zarr.conversion.source.errors import named_errors
from lundprobe_zarr.conversion.source.workspace import Workspace
from lundprobe_zarr.errors import SourceError
from lundprobe_zarr.geometry.affine import (
    LONGEST_AXIS,
    SAME_GRID_MM,
    FloatArray,
    largest_shift,
    spacing,
)
from lundprobe_zarr.schema.header import (
    NO_EXTENSIONS,
    SpatialUnit,
    affine_mm,
    has_qform,
    has_sform,
    qform_mm,
    size_and_order,
    spatial_unit,
    without_text,
)
from lundprobe_zarr.schema.header import parse_header as nifti_header

#: Largest compression ratio of DEFLATE (zlib's technical details). It bounds the size that a
#: header can claim, and is checked before memory is allocated.
_DEFLATE_MAX_RATIO = 1032
#: Most bytes of header extensions. They are part of the store's metadata, which every reader
#: loads. Extensions of volumes usually have some kB, at most a few MB.
_MAX_EXTENSIONS = 1 << 24
#: Most bytes after the last voxel. Almost no file has any.
_MAX_TRAILER = 1 << 20
#: Uncompressed bytes read at a time: few enough to be in the processor's cache when hashed, and
#: more than the reader's buffer, so that it copies nothing.
_PIECE = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_ERRORS: Any = (gzip.BadGzipFile, gzip_ng.BadGzipFile, zlib.error, zlib_ng.error)
_TYPES = "integers or floats of up to 64 bits"
#: An extension begins with its size and kind, four bytes each, and has at least this many:
#: https://nifti.nimh.nih.gov/nifti-1/documentation/nifti1fields/nifti1fields_pages/extension.html
_LEAST_EXTENSION = 16
#: Plausible spacings (mm) of a volume if the header's unit is not mm.
_PLAUSIBLE_MM = (0.01, 100.0)
#: Intent codes of voxels that are not single numbers: matrices, vectors, points, colours, fields
#: of coefficients, connectivity. From nifti1.h (see `schema.header`), FSL and CIFTI.
_COMPOUND_INTENTS = (range(1004, 1011), range(2002, 2019), range(3000, 3100))


@dataclass(frozen=True)
class Layout:
    """The contents of a header: shape (i, j, k), type, offset of the voxels, scaling.

    The physical value is `slope * stored + inter`. `dtype` is the type in the file, with its byte
    order. `affine` is (4, 4), voxel (i, j, k) -> mm, RAS. `unit` is the unit of lengths in the
    header; `intent` is the name of its intent code, such as `none` or `label`. `anomalies` are
    findings about headers that were read correctly.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    inter: float
    affine: FloatArray
    description: str
    unit: str
    intent: str
    anomalies: tuple[str, ...]

    @property
    def is_synthetic(self) -> bool:
        """Whether the description marks the file as a phantom's."""
        return self.description.upper().startswith("SYNTHETIC")

    @property
    def is_scaled(self) -> bool:
        """Whether physical values differ from the stored numbers."""
        return (self.slope, self.inter) != (1.0, 0.0)

    @property
    def voxel_bytes(self) -> int:
        """Size of the voxels, uncompressed."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class NiftiFile(Layout):
    """A NIfTI file, read and checked completely: its header's contents, voxels, bytes and hashes.

    `raw` are the stored numbers, (z, y, x), native byte order. `header` and `extensions` are the
    bytes before the voxels, `trailer` those after them.
    """

    raw: npt.NDArray[Any]
    header: bytes
    extensions: bytes
    trailer: bytes
    bytes: int
    sha256: str
    nifti_sha256: str


class _HashingFile(io.RawIOBase):
    """A file that hashes and counts the bytes that are read from it."""

    def __init__(self, file: Any) -> None:
        self._file = file  # unbuffered
        self.sha256 = hashlib.sha256()
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._file.readinto(buffer)
        self.sha256.update(buffer[:count])
        self.count += count
        return count


class _Uncompressed:
    """The uncompressed bytes of a `.nii.gz`, hashed as they are read."""

    def __init__(self, compressed: Any, where: str, reader: Any = gzip_ng.GzipNGFile) -> None:
        self._gzip: Any = reader(fileobj=compressed, mode="rb")
        self._where = where
        self.sha256 = hashlib.sha256()

    def fill(self, buffer: memoryview) -> int:
        """Fill `buffer` up to the end of the file, and return the number of bytes."""
        done = 0
        while done < len(buffer):
            piece = buffer[done : done + _PIECE]
            count = self._readinto(piece)
            if not count:
                break
            self.sha256.update(piece[:count])
            done += count
        return done

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        count = self.fill(memoryview(buffer))
        return bytes(buffer[:count])

    def _readinto(self, piece: memoryview) -> int:
        try:
            # Uses the buffer's `readinto`: until Python 3.14 that of GzipFile copies through bytes.
            return int(self._gzip._buffer.readinto(piece))
        except EOFError as error:
            raise SourceError(
                "the gzip stream ends too early (truncated file, or extra bytes after it)",
                where=self._where,
                expected="a complete gzip stream",
                remedy="fetch the file again",
            ) from error
        except _GZIP_ERRORS as error:
            raise SourceError(
                f"not a valid gzip stream ({error})",
                where=self._where,
                expected=".nii.gz",
                remedy="fetch the file again",
            ) from error


def read_nifti(
    path: Path, where: str, workspace: Workspace | None = None, strip: bool = False
) -> NiftiFile:
    """Open and read the `.nii.gz` at `path`: see `open_nifti` and `NiftiReader.read`."""
    with open_nifti(path, where) as reader:
        return reader.read(workspace or Workspace(), strip)


def peek_nifti(path: Path, where: str) -> Layout:
    """Read only the header of the `.nii.gz` at `path`. Raises like `open_nifti`."""
    with open_nifti(path, where, gzip.GzipFile) as reader:  # zlib-ng's reads half a megabyte
        return reader.layout


@contextmanager
def open_nifti(
    path: Path, where: str, decompressor: Any = gzip_ng.GzipNGFile
) -> Iterator[NiftiReader]:
    """Open the `.nii.gz` at `path` and read its header; `where` is its name in errors.

    Raises `SourceError` for a file that cannot be opened, is empty, no gzip or no NIfTI, or has an
    invalid header.
    """
    with named_errors(where):
        file = path.open("rb", buffering=0)
    with file:
        yield NiftiReader(file, where, decompressor)


class NiftiReader:
    """An open NIfTI file. `layout` is its header; `read` reads the rest of it, once.

    `file` is unbuffered and belongs to the caller. Until `read`, memory holds the decompressor's
    buffers, about half a megabyte.
    """

    def __init__(self, file: Any, where: str, decompressor: Any) -> None:
        self._file, self._where = file, where
        self._before = os.fstat(file.fileno())
        with self._checked():
            _require_gzip(file.read(len(_GZIP_MAGIC)), where)
            file.seek(0)
            self._hashing = _HashingFile(file)
            compressed = io.BufferedReader(self._hashing)
            self._stream = _Uncompressed(compressed, where, decompressor)
            self._header = _read_header(self._stream, where)
            self.layout = parse_header(self._header, where)
            _require_plausible(self.layout, self._before.st_size, where)

    def read(self, workspace: Workspace, strip: bool = False) -> NiftiFile:
        """Read voxels into `workspace`, and everything else.

        A single pass covers gzip (all members, with their checksums), voxels, and the SHA-256 of
        the file and of its uncompressed bytes. Memory is bounded by the actual size of the data.
        With `strip`, `header`, `extensions`, `trailer` and `nifti_sha256` are those of the file
        without free text: see `schema.header.without_text`. Raises `SourceError` for anything but
        one complete 3-D volume of real numbers.
        """
        with self._checked():
            return self._read(workspace, strip)

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """Add `where` to errors of the disk; say so if an error comes from a changed file."""
        try:
            with named_errors(self._where):
                yield
        except SourceError as error:
            before, now = self._before, os.fstat(self._file.fileno())
            if (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
                raise
            raise SourceError(
                f"changed while it was read ({before.st_size} bytes, now {now.st_size})",
                where=self._where,
                expected="an unchanging file",
                remedy="run again when no program writes to it",
            ) from error

    def _read(self, workspace: Workspace, strip: bool) -> NiftiFile:
        where, stream, layout, header = self._where, self._stream, self.layout, self._header
        extensions = _read_extensions(stream, header, layout.offset, where)
        if strip:
            header, extensions = without_text(header), NO_EXTENSIONS
            stream.sha256 = hashlib.sha256(header + extensions)
        raw = _read_voxels(stream, layout, where, workspace)
        to_last_voxel = stream.sha256.copy()
        trailer = _read_trailer(stream, where)
        if strip:
            trailer, stream.sha256 = b"", to_last_voxel
        return NiftiFile(
            **vars(layout),
            raw=raw,
            header=header,
            extensions=extensions,
            trailer=trailer,
            bytes=self._hashing.count,
            sha256=self._hashing.sha256.hexdigest(),
            nifti_sha256=stream.sha256.hexdigest(),
        )


def _require_gzip(start: bytes, where: str) -> None:
    if not start:
        raise SourceError("empty", where=where, expected=".nii.gz", remedy="fetch the file again")
    if start != _GZIP_MAGIC:
        raise SourceError(
            f"not gzip: starts with {start!r}",
            where=where,
            expected=f".nii.gz, which starts with {_GZIP_MAGIC!r}",
            remedy="fetch the file again",
        )


def _read_header(stream: _Uncompressed, where: str) -> bytes:
    start = stream.read(4)
    found = size_and_order(start)
    if found is not None:
        header = start + stream.read(found[0] - len(start))
        if len(header) == found[0]:
            return header
    raise SourceError(
        f"begins with {start!r}, which is not a NIfTI header, or ends within the header",
        where=where,
        expected="NIfTI-1 or NIfTI-2",
        remedy="fetch the file again",
    )


def _read_extensions(stream: _Uncompressed, header: bytes, offset: int, where: str) -> bytes:
    """Return the bytes between header and voxels."""
    data = stream.read(offset - len(header))
    end = len(header) + len(data)
    if end != offset:
        raise SourceError(
            f"ends after {end} uncompressed bytes",
            where=where,
            remedy=(
                f"according to vox_offset its voxels begin at {offset}; the header is "
                "damaged or the file truncated: fetch it again"
            ),
        )
    _require_extents(data, str(nifti_header(header).endianness), where)
    return data


def _require_extents(data: bytes, order: str, where: str) -> None:
    """Raise `SourceError` for extensions that overlap the voxels: one position is then wrong."""
    position = len(NO_EXTENSIONS)
    while data[:1] > b"\0" and len(data) - position >= _LEAST_EXTENSION:
        (size,) = struct.unpack_from(f"{order}i", data, position)
        if size > len(data) - position:
            raise SourceError(
                f"a header extension claims {size} bytes, with "
                f"{len(data) - position} before the voxels",
                where=where,
                expected="an extension that ends before the voxels",
                remedy="the header is damaged: fetch the file again",
            )
        if size < _LEAST_EXTENSION:
            return  # padding, which some tools write
        position += size


def parse_header(header: bytes, where: str) -> Layout:
    """Parse a header of 348 bytes (NIfTI-1) or 540 bytes (NIfTI-2).

    Raises `SourceError` with `where` and the invalid field.
    """
    parsed: Any = nifti_header(header)
    _require_single_file(parsed, where)
    intent = _intent(parsed, where)
    shape, dimensions = _shape(parsed, where)
    slope, inter = _scaling(parsed, where)
    unit = spatial_unit(parsed)
    with np.errstate(all="ignore"):  # non-finite numbers raise errors below instead of warnings
        affine, placing = _affine(parsed, shape, where)
        _require_plausible_unit(unit, affine, where)
    big_endian = ("big-endian",) if parsed.endianness == ">" else ()
    return Layout(
        shape=shape,
        dtype=_dtype(parsed, where),
        offset=_offset(parsed, len(header), where),
        slope=slope,
        inter=inter,
        affine=affine,
        description=bytes(parsed["descrip"].item()).split(b"\0")[0].decode("latin-1"),
        unit=unit.name,
        intent=intent,
        anomalies=(*dimensions, *_unit_anomaly(unit), *placing, *_unscaled(parsed), *big_endian),
    )


def _intent(header: Any, where: str) -> str:
    """Return the name of the intent code; raise for voxels that are not single numbers."""
    code = int(header["intent_code"])
    name = str(intent_codes.label[code]) if code in intent_codes else f"undefined ({code})"
    if any(code in codes for codes in _COMPOUND_INTENTS):
        raise SourceError(
            f"intent_code {code} ({name}), header dim {header['dim'].tolist()}",
            where=where,
            expected="an image, a dose or a mask, with one number per voxel",
            remedy="correct intent_code if it is one of these, or leave the file out",
        )
    return name


def _unit_anomaly(unit: SpatialUnit) -> tuple[str, ...]:
    if not unit.is_millimetre:
        return (f"xyzt_units says {unit.name}; its geometry was converted to mm",)
    return (f"xyzt_units says {unit.name}; taken as mm",) if "undefined" in unit.name else ()


def _require_plausible_unit(unit: SpatialUnit, affine: FloatArray, where: str) -> None:
    """Refuse implausible lengths in metres or micrometres: the numbers are probably mm."""
    low, high = _PLAUSIBLE_MM
    sizes = spacing(affine)
    if unit.is_millimetre or ((sizes >= low) & (sizes <= high)).all():
        return
    raise SourceError(
        f"xyzt_units says {unit.name}, which makes voxels of "
        f"{' × '.join(f'{v:.6g}' for v in sizes)} mm",
        where=where,
        expected=f"{low:g} to {high:g} mm",
        remedy="correct the unit in the header (2 is mm), or fetch the file again",
    )


def _require_single_file(header: Any, where: str) -> None:
    magic = bytes(header["magic"].item())
    if not magic.startswith((b"n+1", b"n+2")):
        raise SourceError(
            f"NIfTI magic {magic!r}",
            where=where,
            expected="b'n+1' or b'n+2' (header and voxels in one file)",
            remedy="rewrite it as a single .nii.gz",
        )


def _shape(header: Any, where: str) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    dim = [int(n) for n in header["dim"]]
    sizes = dim[1 : 1 + dim[0]] if 1 <= dim[0] <= 7 else []
    fits = len(sizes) >= 3 and all(1 <= n <= LONGEST_AXIS for n in sizes[:3])
    if not fits or any(n != 1 for n in sizes[3:]):
        raise SourceError(
            f"header dim {dim}",
            where=where,
            expected=f"one volume of three dimensions, all positive and up to {LONGEST_AXIS}",
            remedy="fetch the file again, or correct its header",
        )
    odd = (f"{dim[0]}-D with one volume",) if dim[0] > 3 else ()
    return (sizes[0], sizes[1], sizes[2]), odd


def _dtype(header: Any, where: str) -> np.dtype[Any]:
    code = int(header["datatype"])
    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise SourceError(
            f"unknown NIfTI datatype code {code}",
            where=where,
            expected=_TYPES,
            remedy="fetch the file again",
        ) from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise SourceError(
            f"NIfTI datatype {dtype} (code {code})",
            where=where,
            expected=_TYPES,
            remedy="rewrite the file with such a type",
        )
    return dtype


def _offset(header: Any, header_size: int, where: str) -> int:
    offset = float(header["vox_offset"])
    if not header_size <= offset < np.inf or offset != int(offset):
        raise SourceError(
            f"vox_offset {offset:g}",
            where=where,
            expected=f"a whole number from {header_size} on",
            remedy="fetch the file again, or correct its header",
        )
    if offset > header_size + _MAX_EXTENSIONS:
        raise SourceError(
            f"vox_offset {offset:g}, which leaves {offset - header_size:.0f} "
            "bytes for header extensions",
            where=where,
            expected=f"at most {_MAX_EXTENSIONS}",
            remedy="rewrite the file without its extensions, or fetch it again if it has none",
        )
    return int(offset)


def _scaling(header: Any, where: str) -> tuple[float, float]:
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise SourceError(
            f"scl_slope and scl_inter cannot be used ({error})",
            where=where,
            expected="finite numbers, or slope 0 for none",
            remedy="correct the header",
        ) from error
    return (1.0, 0.0) if slope is None else (float(slope), float(inter))


def _unscaled(header: Any) -> tuple[str, ...]:
    """Return a finding if slope 0 disables scaling although there is an intercept."""
    inter = float(header["scl_inter"])
    if header["scl_slope"] != 0 or inter == 0 or not isfinite(inter):
        return ()
    return (f"scl_slope 0, so that scl_inter {inter:g} was not added; ITK adds it",)


def _affine(header: Any, shape: tuple[int, ...], where: str) -> tuple[FloatArray, tuple[str, ...]]:
    """Return the affine in mm (sform before qform), and findings about fields that disagree."""
    if not (has_sform(header) or has_qform(header)):
        raise SourceError(
            "qform_code and sform_code are both 0, so its position in the patient is unknown",
            where=where,
            expected="at least one above 0",
            remedy="write the orientation into the header",
        )
    try:
        affine = affine_mm(header)
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise SourceError(
            f"its orientation cannot be used ({error})",
            where=where,
            expected="a valid qform or sform",
            remedy="fetch the file again, or correct its header",
        ) from error
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise SourceError(
            f"affine {affine.tolist()}",
            where=where,
            expected="finite numbers and three independent axes",
            remedy="fetch the file again, or correct its header",
        )
    if not has_sform(header):
        return affine, ()
    check = _qform_anomaly if has_qform(header) else _pixdim_anomaly
    return affine, check(header, affine, shape)


def _qform_anomaly(header: Any, sform: FloatArray, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return a finding if the unused qform is invalid or disagrees."""
    try:
        shift = largest_shift(sform, qform_mm(header), shape)
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        return (f"qform cannot be used ({error}); the sform was used",)
    if not isfinite(shift):
        return ("qform cannot be used (its numbers are not finite); the sform was used",)
    if shift <= SAME_GRID_MM:
        return ()
    return (f"sform and qform disagree by {shift:.3g} mm; the sform was used",)


def _pixdim_anomaly(header: Any, sform: FloatArray, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return a finding if the sform's voxel sizes differ from `pixdim`, which ITK uses."""
    sizes = spatial_unit(header).to_mm(header["pixdim"][1:4].astype(np.float64))
    if (np.abs(sizes - spacing(sform)) * shape <= SAME_GRID_MM).all():
        return ()
    texts = (" × ".join(f"{v:.6g}" for v in mm) for mm in (sizes, spacing(sform)))
    return ("pixdim says voxels of {} mm, the sform {}; the sform was used".format(*texts),)


def _require_plausible(layout: Layout, size: int, where: str) -> None:
    claimed, most = layout.offset + layout.voxel_bytes, _DEFLATE_MAX_RATIO * size
    if claimed > most:
        raise SourceError(
            f"the header claims {layout.shape} voxels of {layout.dtype}, {claimed} bytes",
            where=where,
            remedy=(
                f"its {size} compressed bytes can hold at most {most}; the header "
                "is damaged: fetch the file again"
            ),
        )


def _read_voxels(
    stream: _Uncompressed, layout: Layout, where: str, workspace: Workspace
) -> npt.NDArray[Any]:
    # Pages of np.empty take memory only when written, so a false claim costs nothing.
    try:
        buffer = workspace.take(layout.voxel_bytes)
    except MemoryError as error:
        raise SourceError(
            f"{layout.voxel_bytes} bytes of voxels, more than the memory of this machine",
            where=where,
            remedy="check the header, or convert on a larger machine",
        ) from error
    count = stream.fill(memoryview(buffer.data))
    if count != layout.voxel_bytes:
        raise SourceError(
            f"{count} bytes of voxels",
            where=where,
            remedy=(
                f"its header says {layout.shape} of {layout.dtype}, "
                f"{layout.voxel_bytes} bytes; the file is truncated: fetch it again"
            ),
        )
    raw = buffer.view(layout.dtype).reshape(layout.shape[::-1])
    if not layout.dtype.isnative:
        raw = raw.byteswap(inplace=True).view(layout.dtype.newbyteorder("="))
    return raw


def _read_trailer(stream: _Uncompressed, where: str) -> bytes:
    trailer = stream.read(_MAX_TRAILER + 1)
    if len(trailer) > _MAX_TRAILER:
        raise SourceError(
            f"more than {_MAX_TRAILER} bytes after the last voxel",
            where=where,
            expected="none",
            remedy="the header does not describe this file: fetch it again",
        )
    return trailer


def without_voxels(file: NiftiFile) -> NiftiFile:
    """Return the file without its voxels, for callers that still need header and hashes."""
    return replace(file, raw=np.empty((0, 0, 0), file.raw.dtype))
