"""Reading of one patch of one patient as a dict of NumPy arrays and labels.

All arrays of a patch, or of several patches of a patient, are requested at once, so remote data
take one round of requests (two the first time, when the shard indices are not known yet).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import MissingStructureError, UsageError
from lundprobe_zarr.geometry.lattice import Box, Grid, Move, resample_volume, resampled_type
from lundprobe_zarr.patches.lattice import Pad, lattice_of, stored_grid
from lundprobe_zarr.patches.plan import Item, Plan
from lundprobe_zarr.patches.request import Block, Content
from lundprobe_zarr.patches.sample import RawSample
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.stores.reader import Part, StoreReader
from lundprobe_zarr.stream.buffers import empty, zeros


@dataclass(frozen=True)
class _Span:
    """Location of a patch: `inner` is its box inside the volume, in voxels of the lattice.

    `place` is the same box in voxels of the patch.
    """

    stored: Grid
    lattice: Grid
    inner: Box
    place: Box

    @classmethod
    def of(cls, stored: Grid, lattice: Grid, start: Sequence[int], size: Sequence[int]) -> _Span:
        low = [max(0, a) for a in start]
        high = [max(b, min(a + s, n)) for a, s, n, b in _rows(start, size, lattice.shape, low)]
        return cls(
            stored,
            lattice,
            _box(low, high),
            _box(*([v - a for v, a in zip(e, start, strict=True)] for e in (low, high))),
        )

    @property
    def move(self) -> Move | None:
        """The move from the lattice's box to the stored grid; None if the voxels are the same."""
        if self.lattice is self.stored:
            return None
        first = np.array([s.start for s in self.inner], dtype=np.float64)
        z, y, x = (s.stop - s.start for s in self.inner)
        return Move.between(self.stored, self.lattice.stepped(first, np.ones(3), (z, y, x)))


def _rows(*columns: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return zip(*columns, strict=True)


def _box(start: Sequence[int], stop: Sequence[int]) -> Box:
    z, y, x = (slice(a, b) for a, b in zip(start, stop, strict=True))
    return z, y, x


def read_patch(
    reader: StoreReader,
    content: Content,
    start: Sequence[int],
    size: Sequence[int],
    pad: Pad = "error",
) -> RawSample:
    """Read the patch of `size` voxels (z, y, x) from voxel `start` of the patient's lattice.

    The dict has the arrays of `content` (labels…, z, y, x), for each label axis a tuple of its
    labels, `patient_id`, `grid`, `start` (3,) int64, the first voxel (z, y, x) on the lattice, and
    `affine` (4, 4) float64, voxel (i, j, k) of the patch -> mm, RAS. With another spacing, images,
    dose and uncertainty are interpolated linearly; a mask is True where the interpolated value is
    at least ½, as in `.lp.resample`. Outermost values extend half a voxel.

    Raise `UsageError` for a patch beyond the volume with `pad="error"`, `UnknownLabelError` or
    `MissingStructureError` for a modality or dose that the patient lacks, `DamagedStoreError` for
    missing or wrong bytes.
    """
    return read_patches(reader, [Request(content, start, size, pad)])[0]


def read_items(plan: Plan, reader: StoreReader, items: Sequence[Item]) -> list[RawSample]:
    """Read the patches of items of one patient, with `epoch`, `index`, `draw` and `seed`.

    Otherwise as `read_patches` does.
    """
    size = plan.size(reader.metadata.patient_id)
    requests = [
        Request(
            plan.content_of(reader.metadata, item),
            plan.start(reader.metadata, item),
            size,
            plan.pad,
        )
        for item in items
    ]
    return [
        patch
        | {"epoch": item.epoch, "index": item.index, "draw": item.draw}
        | {"seed": plan.sample_seed(item)}
        for item, patch in zip(items, read_patches(reader, requests), strict=True)
    ]


@dataclass(frozen=True)
class Request:
    """The arguments of `read_patch`, beside the reader."""

    content: Content
    start: Sequence[int]
    size: Sequence[int]
    pad: Pad = "error"


def read_patches(reader: StoreReader, requests: Sequence[Request]) -> list[RawSample]:
    """Read patches of one patient as `read_patch` does; what they share is read once."""
    patches = [_Patch(reader, request) for request in requests]
    parts = [part for patch in patches for part in patch.parts]
    if all(patch.window is None for patch in patches):
        reader.read_parts(parts, lambda: [t for patch in patches for t in patch.targets()])
    else:
        volumes = iter(reader.read_parts(parts))
        for patch in patches:
            patch.resample(islice(volumes, len(patch.parts)))
    return [patch.sample() for patch in patches]


class _Patch:
    """A patch that is being read: the parts of the store that it needs, and its arrays."""

    def __init__(self, reader: StoreReader, request: Request) -> None:
        self._reader, self._request = reader, request
        metadata, content = reader.metadata, request.content
        stored = stored_grid(metadata, content.grid)
        self._lattice = lattice_of(metadata, content) if content.spacing_mm else stored
        self._span = _Span.of(stored, self._lattice, request.start, request.size)
        _require_inside(self._span, request, metadata.patient_id)
        move = self._span.move
        box = self._span.inner
        self.window: Move | None = None
        if move is not None:
            box, self.window = move.window()
        self._blocks = [(block, dict(_indices(reader, block))) for block in content.blocks]
        self.parts = [Part(b.path, i, box) for b, indices in self._blocks for i in indices.values()]
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def targets(self) -> list[npt.NDArray[Any]]:
        """Make the arrays; return what each part fills of them. Voxels outside are zero."""
        size, found = self._request.size, []
        place = self._span.place
        inside = all(s == slice(0, n) for s, n in zip(place, size, strict=True))
        for block, indices in self._blocks:
            dtype = self._reader.array(block.path).dtype if indices else np.dtype(bool)
            # Reading fills the whole array, or the rest has to be zero.
            make = empty if inside and len(indices) == prod(block.shape) else zeros
            array = make((*block.shape, *size), _sample_type(block, dtype, self.window))
            found += [array[index][place] for index in indices]
            self._arrays[block.name] = array
            if block.present:
                self._arrays[block.present] = _flags(block, indices)
        return found

    def resample(self, volumes: Iterable[npt.NDArray[Any]]) -> None:
        """Make the arrays, and fill them from the voxels of each part."""
        for target, volume in zip(self.targets(), volumes, strict=True):
            if self.window is not None:
                volume = resample_volume(volume, self.window, 1, target.dtype)
            target[...] = volume

    def sample(self) -> RawSample:
        """Return the arrays with their labels and place."""
        reader, sample = self._reader, self._arrays
        content, start = self._request.content, self._request.start
        if content.image_dtype and "image" in sample:
            sample["image"] = _as_type(sample["image"], content.image_dtype, reader.metadata)
        if self._request.pad == "edge":
            named = [block.name for block, _ in self._blocks]
            sample |= {name: _edged(sample[name], self._span, self._request.size) for name in named}
        place = self._lattice.stepped(np.array(start, np.float64), np.ones(3), (0, 0, 0))
        about = {
            "patient_id": reader.metadata.patient_id,
            "grid": content.grid,
            "start": np.array(start, np.int64),
            "affine": place.affine,
        }
        return sample | content.labels | about


def _require_inside(span: _Span, request: Request, patient_id: str) -> None:
    lengths = [s.stop - s.start for s in span.inner]
    if all(lengths) and (request.pad != "error" or lengths == list(request.size)):
        return
    beyond = "reaches beyond" if all(lengths) else "lies outside"
    raise UsageError(
        f"a patch of {tuple(request.size)} voxels (z, y, x) from {tuple(request.start)} on "
        f"{beyond} the volume of patient {patient_id}, {span.lattice.shape}",
        expected="a patch inside the volume, or pad='zero' or pad='edge'",
    )


def _as_type(image: npt.NDArray[Any], dtype: str, patient: StoreMetadata) -> npt.NDArray[Any]:
    """Return the image in another type; raise `UsageError` if an integer type cannot hold it."""
    with np.errstate(invalid="ignore"):  # the comparison below finds values that do not fit
        cast = image.astype(dtype, copy=False)
    if cast.dtype.kind in "iu" and not np.array_equal(cast, image):
        raise UsageError(
            f"image_dtype={dtype!r} cannot hold the images of patient "
            f"{patient.patient_id}: values {image.min()} to {image.max()} of "
            f"{image.dtype}",
            expected="e.g. 'float32'",
        )
    return cast


def _sample_type(block: Block, dtype: np.dtype[Any], window: Move | None) -> np.dtype[Any]:
    if block.name == "uncertainty" and dtype.kind == "b":
        return np.dtype(np.float32)  # missing here: the type that other patients have
    return dtype if window is None else resampled_type(dtype)


def _indices(
    reader: StoreReader, block: Block
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return indices into the sample's array and the stored array of volumes that exist."""
    if block.present and block.path not in reader.metadata.arrays:
        return
    array = reader.array(block.path)
    for place, labels in block.volumes():
        named = dict(zip(array.spec.label_dims, labels, strict=True))
        try:
            index = reader.index(array, named)
        except MissingStructureError:
            if block.present:
                continue
            raise
        if reader.holds(block.path, index):
            yield place, index
        elif not block.present:
            raise MissingStructureError(
                f"{named or 'volume'} of {block.path} of patient {reader.metadata.patient_id}: "
                "missing here",
                patient=reader.metadata.patient_id,
            )


def _flags(block: Block, there: Iterable[tuple[int, ...]]) -> npt.NDArray[np.bool_]:
    flags = np.zeros(block.shape, bool)
    for place in there:
        flags[place] = True
    return flags


def _edged(array: npt.NDArray[Any], span: _Span, size: Sequence[int]) -> npt.NDArray[Any]:
    """Return `array` (…, z, y, x) with the outermost voxels repeated outside the volume."""
    widths = [(s.start, n - s.stop) for s, n in zip(span.place, size, strict=True)]
    if not any(a or b for a, b in widths):
        return array
    return np.pad(array[(..., *span.place)], [(0, 0)] * (array.ndim - 3) + widths, mode="edge")
