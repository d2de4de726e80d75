"""References to voxels, and reading what they refer to: all that is asked of a patient at once.

A reference is a plain record, the `REFERENCE` struct in Arrow: no voxel, no credentials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.huggingface.locations import forget_reader, reader_of
from lundprobe_zarr.patches import Content, Pad, read_patch
from lundprobe_zarr.patches.patch import resampled_type
from lundprobe_zarr.stores.reader import StoreReader

Array = npt.NDArray[Any]

#: - `dataset`, `options`: URL, and JSON of the options that say where; see `sources`.
#: - `patient_id`, `array`: the array of volumes in the patient's store, e.g. `mri/image`.
#: - `labels`: its volumes, which make up the first axis; null for an array of one volume.
#: - `start`, `stop`: voxels z, y, x, exclusive. They may lie outside the volume; what is there is
#:   what `pad` says: `error`, `zero` or `edge`.
#: - `axial`: one slice, without an axis for z.
#: - `spacing_mm`: z, y, x, if resampled on the way: then `start` and `stop` are of that lattice.
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
        ("spacing_mm", pa.list_(pa.float64())),
        ("pad", pa.string()),
    ]
)
FIELDS: tuple[str, ...] = tuple(field.name for field in REFERENCE)


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
    spacing_mm: tuple[float, float, float] | None = None
    pad: str = "error"

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Reference:
        """The reference that a record with the fields of `REFERENCE` is."""
        values = {name: record[name] for name in FIELDS}
        for name in ("labels", "start", "stop", "spacing_mm"):
            if values[name] is not None:
                values[name] = tuple(values[name])
        return cls(**values)

    def record(self) -> dict[str, Any]:
        """The reference as a record for Arrow."""
        return {name: self.field(name) for name in FIELDS}

    def field(self, name: str) -> Any:
        """A field as the record has it."""
        value = getattr(self, name)
        return list(value) if isinstance(value, tuple) else value

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the voxels: (label, z, y, x), without what there is none of."""
        box = [b - a for a, b in zip(self.start, self.stop, strict=True)]
        labels = [] if self.labels is None else [len(self.labels)]
        return (*labels, *(box[1:] if self.axial else box))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels that are read; one request the first time."""
        if name_of(self.array) == "mask":
            return np.dtype(bool)
        stored = self.reader.array(self.array).dtype
        return stored if self.spacing_mm is None else resampled_type(stored)

    @property
    def reader(self) -> StoreReader:
        """Reader of the patient's store; one request the first time."""
        return reader_of((self.dataset, self.options), self.patient_id)


def read_all(references: Sequence[Reference]) -> list[Array]:
    """Voxels of references to different arrays in one box of one patient, in one round of requests.

    Each is (label, z, y, x), z left out for a slice and label for an array of one volume, in the
    stored type. A structure that the patient lacks is 0. Raises as `patches.read_patch` does:
    `UnknownLabelError` for a dose or a modality that the patient lacks, `DamagedStoreError` for a
    byte that is missing or wrong.
    """
    first = references[0]
    labels = {name_of(r.array): r.labels for r in references}
    content = Content(
        grid=first.array.partition("/")[0],
        modalities=labels.get("image") or (),
        structures=labels.get("mask") or (),
        dose="dose" in labels,
        spacing_mm=first.spacing_mm,
    )
    size = [b - a for a, b in zip(first.start, first.stop, strict=True)]
    try:
        sample = read_patch(first.reader, content, first.start, size, cast(Pad, first.pad))
    except DamagedStoreError:  # to be opened anew by whoever reads again
        forget_reader((first.dataset, first.options), first.patient_id)
        raise
    return [sample[name_of(r.array)].reshape(r.shape) for r in references]


def name_of(array: str) -> str:
    """Column of an array: `image`, `mask` or `dose`."""
    return array.rpartition("/")[2]


class Row:
    """The voxel columns of one row, and what of them has been read.

    A column is read when it is first asked for, and only that one. But of a stream, whose rows are
    alike to whoever takes them, what was `used` of the rows before may be read before it is asked
    for: then all such columns at once. What was read is kept as long as the row.
    """

    def __init__(
        self,
        references: Mapping[str, Reference],
        used: set[str],
        failure: DamagedStoreError | None = None,
    ) -> None:
        self.references = dict(references)
        self.failure = failure
        self._used = used
        self._columns: dict[str, Future[dict[str, Array]]] = {}

    def begin(self, pool: ThreadPoolExecutor) -> None:
        """Have the columns used so far read by a thread of `pool`."""
        names = sorted(self._used.intersection(self.references).difference(self._columns))
        if names:
            future = pool.submit(self._read, names)
            self._columns |= dict.fromkeys(names, future)

    def read_now(self) -> None:
        """Have all columns read, those begun too; raises as `read_all` does.

        Or raises the failure to know what to read.
        """
        if self.failure is not None:
            raise self.failure
        for begun in set(self._columns.values()):
            begun.result()
        names = sorted(set(self.references).difference(self._columns))
        if names:
            future: Future[dict[str, Array]] = Future()
            future.set_result(self._read(names))
            self._columns |= dict.fromkeys(names, future)

    def column(self, name: str) -> Array:
        """Voxels of a column; raises as `read_all` does."""
        self._used.add(name)
        begun = self._columns.get(name)
        if begun is not None:
            with suppress(CancelledError):  # the stream ended before its turn; the row was kept
                return begun.result()[name]
        future: Future[dict[str, Array]] = Future()
        future.set_result(self._read([name]))
        self._columns[name] = future
        return future.result()[name]

    def _read(self, names: Sequence[str]) -> dict[str, Array]:
        voxels = read_all([self.references[name] for name in names])
        return dict(zip(names, voxels, strict=True))
