"""Handles to voxels, which rows hold until the voxels are read."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import EllipsisType
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from lundprobe_zarr.errors import LundProbeError, UnknownLabelError, UsageError
from lundprobe_zarr.huggingface.batches import NO_BATCH, Handle
from lundprobe_zarr.huggingface.locations import Key, learn, location_of
from lundprobe_zarr.huggingface.references import FIELDS, Array, Reference, Row, read_all

#: Types that may index an axis.
_KEYS = (slice, int, np.integer, EllipsisType)


class LazyVoxels(Handle, Mapping[str, Any]):
    """Lazy voxels of one patient, (label, z, y, x).

    `numpy.asarray(handle)` and `torch.as_tensor(handle)` read all voxels in the stored type;
    `handle[0, 10:20]` reads a part. `shape`, `ndim`, `labels` and `patient_id` read nothing;
    `dtype` reads the store's metadata. As a mapping, the handle is its Arrow reference:
    `handle["array"]`, `dict(handle)`, `len(handle)` and iteration use the fields of the reference.
    Pickles hold no voxels.

    There is no `__array__`, because `datasets` would widen the voxels to int64.
    """

    def __init__(self, reference: Reference, row: Row | None = None, column: str = "") -> None:
        if not isinstance(reference, Reference):
            raise UsageError(f"{type(reference).__name__} for a reference: {NO_BATCH}")
        self._reference = reference
        self._row = row
        self._column = column

    def __iter__(self) -> Iterator[str]:
        return iter(FIELDS)

    def __len__(self) -> int:
        return len(FIELDS)

    def __getitem__(self, key: Any) -> Any:
        """Return a field of the reference by name, or voxels at integers, slices and `...`.

        Raise `UsageError` for any other key, `UnknownLabelError` for an unknown field,
        `IndexError` out of bounds, and as `read` does.
        """
        if not isinstance(key, str):
            return self._selected(key)
        if key in FIELDS:
            return self._reference.field(key)
        at = f", e.g. [0] for {self.labels[0]}" if self.labels else ""
        raise UnknownLabelError(
            f"{self!r}[{key!r}]: no such field",
            expected=(
                f"integers and slices for voxels{at}, or a field of the reference: "
                f"{', '.join(FIELDS)}"
            ),
            remedy="labels of the first axis are in `.labels`",
        )

    def __reduce__(self) -> tuple[Any, ...]:
        key = (self._reference.dataset, self._reference.options)
        return _restore, (self._reference, key, location_of(key))

    @property
    def shape(self) -> tuple[int, ...]:
        """(label, z, y, x), without axes that do not exist."""
        return self._reference.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels; one request if the patient is not open yet.

        The stored type, or float32 for resampled integers.
        """
        return self._reference.dtype

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Labels along the first axis; None for an array of one volume."""
        return self._reference.labels

    @property
    def patient_id(self) -> str:
        """The patient."""
        return self._reference.patient_id

    def read(self) -> Array:
        """Read all voxels, of type `dtype`.

        Raise `UnknownLabelError` for an array or modality that the patient lacks,
        `DamagedStoreError` for missing or wrong bytes.
        """
        if self._row is not None:
            return self._row.column(self._column)
        return read_all([self._reference])[0]

    def _selected(self, key: Any) -> Array:
        lines = _lines(key, self.shape)
        if self._reference.spacing_mm is not None or self._reference.pad != "error":
            whole: Array = self.read()[key]  # interpolation and padding need the whole box
            return whole
        if any(line.size == 0 for line in lines):
            return np.empty(tuple(n for line in lines for n in line.shape), self.dtype)
        low = [int(np.min(line)) for line in lines]
        part = _part(self._reference, low, [int(np.max(line)) + 1 for line in lines])
        voxels = read_all([part])[0]
        relative = [np.atleast_1d(line) - first for line, first in zip(lines, low, strict=True)]
        kept = tuple(0 if line.ndim == 0 else slice(None) for line in lines)
        chosen: Array = voxels[np.ix_(*relative)][kept]
        return chosen

    @property
    def __array_interface__(self) -> dict[str, Any]:
        voxels = np.ascontiguousarray(self.read())
        # The buffer, not its address: NumPy keeps it alive as long as the array it makes.
        return {
            "shape": voxels.shape,
            "typestr": voxels.dtype.str,
            "version": 3,
            "data": voxels.reshape(-1).data,
        }

    def __dlpack__(self, **options: Any) -> Any:
        return np.ascontiguousarray(self.read()).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # kDLCPU

    def __repr__(self) -> str:
        """Return a summary without reading."""
        labels = "" if self.labels is None else f" [{', '.join(self.labels)}]"
        shape = "×".join(map(str, self.shape))
        return f"<LazyVoxels {self._reference.array}{labels} {shape} of {self.patient_id}>"

    def _repr_html_(self) -> str:
        """Return an image of the middle slice, which is read, above `repr`.

        Masks share one image. If the slice cannot be read, the error replaces it.
        """
        try:
            picture = _thumbnail(self)
        except LundProbeError as error:
            picture = html.escape(str(error))
        return f"<div>{picture}<br><code>{html.escape(repr(self))}</code></div>"


def _thumbnail(handle: LazyVoxels) -> str:
    """Return the middle slice of the first volume, or of all masks, as an HTML image."""
    from lundprobe_zarr.figures.thumbnail import grey_thumbnail, masks_thumbnail

    if 0 in handle.shape:
        return "no voxels"
    middle = () if handle["axial"] else (handle.shape[-3] // 2,)
    if handle["array"].endswith("mask"):
        return masks_thumbnail(handle[(slice(None), *middle, ...)])
    first = () if handle.labels is None else (0,)
    return grey_thumbnail(handle[(*first, *middle, ...)])


#: Handles of rows still in use. `datasets` converts rows to records and back to format or cast;
#: reads that have begun must not be repeated.
_in_use: WeakValueDictionary[Reference, LazyVoxels] = WeakValueDictionary()


def handle_in_row(reference: Reference, row: Row, column: str) -> LazyVoxels:
    """Return a handle to a column of a row; `handle_of` finds it while it is in use."""
    handle = LazyVoxels(reference, row, column)
    _in_use[reference] = handle
    return handle


def handle_of(reference: Reference) -> LazyVoxels:
    """Return the handle in use for a reference, or a new one."""
    return _in_use.get(reference) or LazyVoxels(reference)


def _restore(reference: Reference, key: Key, location: Any) -> LazyVoxels:
    learn({key: location})
    return LazyVoxels(reference)


def _lines(key: Any, shape: tuple[int, ...]) -> list[Array]:
    """Return indices along every axis: () for an integer, (n,) for a slice."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(isinstance(k, bool) or not isinstance(k, _KEYS) for k in keys):
        raise UsageError(f"voxels at {key!r}", expected="integers, slices or ..., e.g. [0, 10:20]")
    if sum(k is Ellipsis for k in keys) > 1 or len(keys) - (Ellipsis in keys) > len(shape):
        raise IndexError(f"voxels at {key!r} of shape {shape}: too many axes")
    if Ellipsis not in keys:
        keys.append(Ellipsis)
    at = keys.index(Ellipsis)
    keys[at : at + 1] = [slice(None)] * (len(shape) - len(keys) + 1)
    return [np.asarray(np.arange(n)[k]) for n, k in zip(shape, keys, strict=True)]


def _part(whole: Reference, low: Sequence[int], high: Sequence[int]) -> Reference:
    """Return the part of a reference from `low` to `high` along each axis."""
    labels = whole.labels
    if labels is not None:
        labels, low, high = labels[low[0] : high[0]], low[1:], high[1:]
    if whole.axial:
        low, high = (0, *low), (1, *high)
    z, y, x = (a + b for a, b in zip(whole.start, low, strict=True))
    end_z, end_y, end_x = (a + b for a, b in zip(whole.start, high, strict=True))
    return replace(whole, labels=labels, start=(z, y, x), stop=(end_z, end_y, end_x))
