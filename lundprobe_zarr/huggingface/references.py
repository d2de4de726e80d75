"""References to voxels, and reading of several references to a patient at once.

A reference is a plain record, the `REFERENCE` struct in Arrow, without voxels or credentials.
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
from lundprobe_zarr.geometry.lattice import resampled_type
from lundprobe_zarr.huggingface.locations import forget_reader, reader_of
from lundprobe_zarr.patches import Content, Pad
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stream.patch import read_patch

Array = npt.NDArray[Any]

#: - `dataset`, `options`: URL, and JSON of location options; see locations.py.
#: - `patient_id`, `array`: the array of volumes in the patient's store, e.g. `mri/image`.
#: - `labels`: its volumes, which make up the first axis; null for an array of one volume.
#: - `start`, `stop`: voxels z, y, x, exclusive. They may lie outside the volume, where `pad`
#:   applies: `error`, `zero` or `edge`.
#: - `axial`: one slice, without an axis for z.
#: - `spacing_mm`: z, y, x, if resampled; `start` and `stop` are then voxels of that lattice.
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
    """A reference to voxels of a patient; see `REFERENCE`."""

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
        """Return the reference of a record with the fields of `REFERENCE`."""
        values = {name: record[name] for name in FIELDS}
        for name in ("labels", "start", "stop", "spacing_mm"):
            if values[name] is not None:
                values[name] = tuple(values[name])
        return cls(**values)

    def record(self) -> dict[str, Any]:
        """Return the reference as a record for Arrow."""
        return {name: self.field(name) for name in FIELDS}

    def field(self, name: str) -> Any:
        """Return a field in the form of the record."""
        value = getattr(self, name)
        return list(value) if isinstance(value, tuple) else value

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the voxels: (label, z, y, x), without axes that do not exist."""
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
    except DamagedStoreError:  # the next read reopens the store
        forget_reader((first.dataset, first.options), first.patient_id)
        raise
    return [sample[name_of(r.array)].reshape(r.shape) for r in references]


def name_of(array: str) -> str:
    """Return the column of an array: `image`, `mask` or `dose`."""
    return array.rpartition("/")[2]


class Row:
    """The voxel columns of one row, with a cache of the columns read.

    A column is read on first use. In a stream, the columns `used` in earlier rows may be read
    ahead, all at once. Voxels are kept as long as the row.
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
        """Start reading the columns used so far in a thread of `pool`."""
        names = sorted(self._used.intersection(self.references).difference(self._columns))
        if names:
            future = pool.submit(self._read, names)
            self._columns |= dict.fromkeys(names, future)

    def read_now(self) -> None:
        """Read all columns, and wait for those begun; raise as `read_all` does.

        Raise `failure` if the row could not be made.
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
        """Return the voxels of a column; raise as `read_all` does."""
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
