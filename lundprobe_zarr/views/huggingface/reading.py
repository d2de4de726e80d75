"""References to voxels, and reading what they refer to: all that is asked of a patient at once.

A reference is a plain record, the `REFERENCE` struct in Arrow: no voxel, no credentials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lundprobe_zarr.store.patch import Part, PatchReader
from lundprobe_zarr.store.shard import Box
from lundprobe_zarr.views.huggingface.sources import reader_of

Array = npt.NDArray[Any]

#: - `dataset`, `options`: URL, and JSON of the options that say where; see `sources`.
#: - `patient_id`, `array`: the array of volumes in the patient's store, e.g. `mri/image`.
#: - `labels`: its volumes, which make up the first axis; null for an array of one volume.
#: - `start`, `stop`: voxels z, y, x, exclusive; they may lie outside the volume, where all is 0.
#: - `axial`: one slice, without an axis for z.
REFERENCE = pa.struct(
    [
        ("dataset", pa.string()),
        ("options", pa.string()),
        ("patient_id", pa.string()),
        ("array", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("start", pa.list_(pa.int64())),
        ("stop", pa.list_(pa.int64())),
        ("axial", pa.bool_()),
    ]
)
FIELDS: tuple[str, ...] = tuple(field.name for field in REFERENCE)

#: Label dimension whose labels a patient may lack: then zeros, and `present` says so.
_MAY_LACK = "structure"


@dataclass(frozen=True)
class Reference:
    """Which voxels of which patient; see `REFERENCE`."""

    dataset: str
    options: str
    patient_id: str
    array: str
    labels: tuple[str, ...] | None
    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    axial: bool = False

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Reference:
        """The reference that a record with the fields of `REFERENCE` is."""
        values = {name: record[name] for name in FIELDS}
        for name in ("labels", "start", "stop"):
            if values[name] is not None:
                values[name] = tuple(values[name])
        return cls(**values)

    def record(self) -> dict[str, Any]:
        """The reference as a record for Arrow."""
        values = {name: getattr(self, name) for name in FIELDS}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the voxels: (label, z, y, x), without what there is none of."""
        box = [b - a for a, b in zip(self.start, self.stop, strict=True)]
        labels = [] if self.labels is None else [len(self.labels)]
        return (*labels, *(box[1:] if self.axial else box))

    @property
    def reader(self) -> PatchReader:
        """Reader of the patient's store; one request the first time."""
        return reader_of((self.dataset, self.options), self.patient_id)


def read_all(references: Sequence[Reference]) -> list[Array]:
    """Voxels of references that are all of one patient, in one round of requests.

    Each is (label, z, y, x), z left out for a slice and label for an array of one volume, in the
    stored type. What lies outside the volume, and a structure that the patient lacks, is 0. Raises
    `UnknownLabelError` for an array or a modality that the patient lacks, `DamagedStoreError` for
    a byte that is missing or wrong.
    """
    if not references:
        return []
    reader = references[0].reader
    wanted = [list(_parts(reader, reference)) for reference in references]
    read = iter(reader.read_parts([p for parts in wanted for _, p in parts]))
    return [_assembled(reader, r, parts, read) for r, parts in zip(references, wanted, strict=True)]


def _parts(reader: PatchReader, reference: Reference) -> Iterator[tuple[int, Part]]:
    """Number along the first axis, and what to read there, of all volumes that there are."""
    array = reader.array(reference.array)
    box = _inside(reference, array.volume_shape)
    dims = array.spec.label_dims
    if not dims:
        yield 0, Part(reference.array, (), box)
        return
    there = reader.metadata.labels(array.spec.group)[dims[0]]
    for number, label in enumerate(reference.labels or ()):
        if dims[0] != _MAY_LACK or label in there:
            yield number, Part(reference.array, reader.index(array, {dims[0]: label}), box)


def _inside(reference: Reference, shape: tuple[int, int, int]) -> Box:
    """The part of a reference's box that lies in the volume."""
    z, y, x = (
        slice(min(max(a, 0), n), max(min(b, n), min(max(a, 0), n)))
        for a, b, n in zip(reference.start, reference.stop, shape, strict=True)
    )
    return z, y, x


def _assembled(
    reader: PatchReader, reference: Reference, parts: list[tuple[int, Part]], read: Iterator[Array]
) -> Array:
    array = reader.array(reference.array)
    box = [b - a for a, b in zip(reference.start, reference.stop, strict=True)]
    voxels = np.zeros((len(reference.labels or (None,)), *box), array.dtype)
    for number, part in parts:
        z, y, x = (
            slice(s.start - a, s.stop - a) for s, a in zip(part.box, reference.start, strict=True)
        )
        voxels[number, z, y, x] = next(read)
    return voxels.reshape(reference.shape)


class Row:
    """The voxel columns of one row, and what of them has been read.

    A column is read when it is first asked for, and only that one. But of a stream, whose rows are
    alike to whoever takes them, what was `used` of the rows before may be read before it is asked
    for: then all such columns at once. What was read is kept as long as the row.
    """

    def __init__(self, references: Mapping[str, Reference], used: set[str]) -> None:
        self.references = dict(references)
        self._used = used
        self._columns: dict[str, Future[dict[str, Array]]] = {}

    def begin(self, pool: ThreadPoolExecutor) -> None:
        """Have the columns used so far read by a thread of `pool`."""
        names = sorted(self._used.intersection(self.references).difference(self._columns))
        if names:
            future = pool.submit(self._read, names)
            self._columns |= dict.fromkeys(names, future)

    def read_now(self) -> None:
        """Read all columns; raises as `read_all` does."""
        names = sorted(set(self.references).difference(self._columns))
        future: Future[dict[str, Array]] = Future()
        future.set_result(self._read(names))
        self._columns |= dict.fromkeys(names, future)

    def column(self, name: str) -> Array:
        """Voxels of a column; raises as `read_all` does."""
        self._used.add(name)
        begun = self._columns.get(name)
        if begun is not None:
            return begun.result()[name]
        future: Future[dict[str, Array]] = Future()
        future.set_result(self._read([name]))
        self._columns[name] = future
        return future.result()[name]

    def _read(self, names: Sequence[str]) -> dict[str, Array]:
        voxels = read_all([self.references[name] for name in names])
        return dict(zip(names, voxels, strict=True))
