"""Content hashes of a patient, a table and a dataset, to compare the data of two sites.

They cover the data, not how they are stored: times, machine, order of work, chunks, compression,
and names and sizes of source files do not count. Conversions of equal sources therefore agree.
`docs/reliability.md` describes how to compare them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lundprobe_zarr.dataset.opening import parquet_file
from lundprobe_zarr.schema.document import canonical_json, json_sha256
from lundprobe_zarr.schema.manifest import Content, Manifest
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.schema.tables import COMPARED, CONTENT
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata, VolumeArray

#: Part of every hash. To be raised if the hashes ever cover something else.
_VERSION = 1
#: Columns about storage, source files or findings, and samples that depend on NumPy's version.
_LEFT_OUT: dict[str, tuple[str, ...]] = {
    "patients": (CONTENT, "findings", "source_bytes", "store_bytes"),
    "arrays": ("source_bytes", "source_sha256", "stored_bytes"),
    "foreground": ("indices",),
}
#: Significant bits of a measured number: the last digits of means and percentiles may differ
#: between processors and versions of NumPy.
_BITS = 20


def patient_content(store: StoreMetadata) -> str:
    """Return the SHA-256 (hex) of a patient's contents, from the store's metadata alone.

    It covers patient, part, protocol and the synthetic flag; the shape, affine and labels of every
    group; the fiducials' text; and the labels, type, shape and voxels of every volume array.
    Voxels are represented by the recorded `nifti_sha256`, the hash of the source file's
    uncompressed bytes with the header. Together with type and foreground it determines every stored
    voxel. Where conversion rounded or rescaled values it does not; then `voxels_sha256`, the hash
    of the stored voxels, is included too. `validate --deep` checks both against the stored voxels.
    Not covered: compression, chunks, findings, `sha256` and `stored_sha256` of the records, and
    derived data such as coordinates.
    """
    a = store.attributes
    about = {name: a[name] for name in ("patient_id", "part", "protocol", "synthetic")}
    fiducials = store.fiducial_record
    return _sha256(
        about
        | {
            "groups": {path: _group(attributes) for path, attributes in store.groups.items()},
            "volumes": sorted(_volume(array, record) for array, record, _ in store.shards()),
            "fiducials": None if fiducials is None else fiducials.sha256,
        }
    )


def _group(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: attributes[name] for name in ("affine", "shape", "labels") if name in attributes}


def _volume(array: VolumeArray, record: SourceRecord) -> str:
    return canonical_json(
        {
            "array": array.spec.path,
            "labels": record.labels,
            "dtype": array.dtype_name,
            "shape": array.volume_shape,
            "nifti_sha256": record.nifti_sha256,
            "foreground": record.foreground,
            "voxels_sha256": record.voxels_sha256,
        },
        allow_nan=False,
    )


def voxels_sha256(volume: npt.NDArray[Any], dtype: np.dtype[Any]) -> str:
    """Return the SHA-256 (hex) of voxels (z, y, x) as `dtype`, little-endian, in C order."""
    sha256 = hashlib.sha256()
    for plane in volume:
        sha256.update(np.ascontiguousarray(plane, dtype.newbyteorder("<")).data)
    return sha256.hexdigest()


def table_content(name: str, table: pa.Table) -> str:
    """Return the SHA-256 (hex) of a table's rows in their order, by column; numbers to six digits.

    Columns about storage or source files do not count.
    """
    return _table_content(name, table.num_rows, table.column_names, table.column)


def file_content(name: str, files: Sequence[pq.ParquetFile]) -> str:
    """Return `table_content` of open Parquet files; one column at a time is in memory."""

    def column(wanted: str) -> pa.ChunkedArray:
        return pa.concat_tables(f.read(columns=[wanted], use_threads=False) for f in files).column(
            wanted
        )

    rows = sum(f.metadata.num_rows for f in files)
    return _table_content(name, rows, files[0].schema_arrow.names, column)


def rows_sha256(table: pa.Table) -> str:
    """Return the SHA-256 (hex) of a table's rows, in their order, bit for bit."""
    sha256 = hashlib.sha256(f"{table.num_rows}".encode())
    for name, column in zip(table.column_names, table.columns, strict=True):
        sha256.update(f" {name}".encode())
        _feed(sha256, column.type, column.chunks, _bits)
    return sha256.hexdigest()


def _table_content(
    name: str, rows: int, columns: Iterable[str], column: Callable[[str], pa.ChunkedArray]
) -> str:
    sha256 = hashlib.sha256(f"{_VERSION} {name} {rows}".encode())
    for each in sorted(set(columns).difference(_LEFT_OUT.get(name, ()))):
        sha256.update(f" {each}".encode())
        values = column(each)
        _feed(sha256, values.type, values.chunks, _six_digits)
    return sha256.hexdigest()


_Numbers = npt.NDArray[np.floating[Any]]


def _feed(
    sha256: Any,
    kind: pa.DataType,
    chunks: Sequence[pa.Array],
    digits: Callable[[_Numbers], npt.NDArray[np.float64]],
) -> None:
    """Hash an Arrow column independently of its chunks: which values are null, then the values.

    `digits` reduces floating-point numbers to their significant digits.
    """
    there = [c.is_valid().to_numpy(zero_copy_only=False) for c in chunks]
    sha256.update(np.packbits(np.concatenate([np.empty(0, bool), *there])).data)
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        for chunk in chunks:
            _feed_integers(sha256, pc.list_value_length(chunk))
        _feed(sha256, kind.value_type, [c.flatten() for c in chunks], digits)
    elif pa.types.is_string(kind):
        texts = [c.drop_null() for c in chunks]
        for chunk in texts:
            _feed_integers(sha256, pc.binary_length(chunk))
        for chunk in texts:
            sha256.update(_characters(chunk))
    elif pa.types.is_floating(kind):
        for chunk in chunks:
            numbers = chunk.fill_null(0).to_numpy(zero_copy_only=False)
            sha256.update(digits(numbers).data)
    else:
        for chunk in chunks:
            _feed_integers(sha256, chunk)


def _characters(texts: pa.StringArray) -> memoryview:
    """Return the UTF-8 of texts without nulls, one after another."""
    _, places, characters = texts.buffers()
    if not len(texts) or characters is None:
        return memoryview(b"")
    ends = np.frombuffer(places, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(characters)[ends[0] : ends[-1]]


def _feed_integers(sha256: Any, values: pa.Array) -> None:
    whole = values.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    sha256.update(np.ascontiguousarray(whole, "<i8").data)


def _bits(values: _Numbers) -> npt.NDArray[np.float64]:
    """Return numbers unchanged, little-endian."""
    return np.ascontiguousarray(values, "<f8")


def _six_digits(values: _Numbers) -> npt.NDArray[np.float64]:
    """Return numbers rounded to 20 bits, little-endian, with one zero and one NaN."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    rounded = np.ldexp(np.rint(np.ldexp(mantissa, _BITS)), exponent - _BITS) + 0.0
    return np.ascontiguousarray(np.where(np.isnan(rounded), np.nan, rounded), "<f8")


def dataset_content(
    patients: Mapping[str, str | None], tables: Mapping[str, Mapping[str, str]]
) -> Content:
    """Return a dataset's hashes, made from those of its patients, by id, and tables, by part.

    Comparisons follow from the voxels and may be made later: they have hashes of their own, and
    the dataset's is the same with and without them.
    """
    of_patients = _sha256({"patients": dict(patients)})
    ordered = {name: dict(tables[name]) for name in sorted(tables)}
    always = {name: parts for name, parts in ordered.items() if name not in COMPARED}
    root = _sha256({"patients": of_patients, "tables": always})
    return Content(sha256=root, patients=of_patients, tables=ordered)


def read_content(
    location: Location, manifest: Manifest, patients: Iterable[Mapping[str, Any]]
) -> Content:
    """Return a dataset's hashes, from its tables; `patients` are the rows of the patients table.

    Raises `DatasetError` for a table that cannot be read.
    """
    tables = {
        name: {part: _part_content(location, name, files) for part, files in parts.items()}
        for name, parts in manifest.tables.items()
    }
    return dataset_content({r["patient_id"]: r.get(CONTENT) for r in patients}, tables)


def _part_content(location: Location, name: str, files: Iterable[str]) -> str:
    with ExitStack() as stack:
        return file_content(name, [stack.enter_context(parquet_file(location, f)) for f in files])


def _sha256(value: Mapping[str, Any]) -> str:
    return json_sha256({"version": _VERSION, **value}, allow_nan=False)
