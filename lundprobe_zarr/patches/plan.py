"""The plan of an epoch: patches, order and content, without reading voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import FloatArray
from lundprobe_zarr.geometry.lattice import Grid, Shape, respaced, voxel_sizes
from lundprobe_zarr.patches.lattice import Pad, lattice_of, require_pad, stored_grid
from lundprobe_zarr.patches.locations import (
    Locations,
    Voxels,
    locations_of,
    patients_with,
    require_available,
    require_extended,
)
from lundprobe_zarr.patches.order import Order, Words, key_of, order_of
from lundprobe_zarr.patches.request import Content
from lundprobe_zarr.patches.sampling import (
    Sampling,
    SliceSampling,
    Space,
    sampling_of,
)
from lundprobe_zarr.stores.metadata import StoreMetadata

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort


@dataclass(frozen=True)
class Item:
    """Patch number `draw` of a patient, which is item `index` of the order of `epoch`."""

    epoch: int
    index: int
    patient_id: str
    draw: int


def require_cohort(value: object) -> None:
    """Raise `UsageError` for anything but a cohort."""
    from lundprobe_zarr.cohort import Cohort, Patient

    if isinstance(value, Cohort):
        return
    if isinstance(value, (str, PathLike)):
        hint = f"open it with lp.open_cohort({str(value)!r})"
    elif isinstance(value, Patient):
        hint = f"cohort[[{value.patient_id!r}]] is the cohort of this patient"
    else:
        hint = "open one with lp.open_cohort(path_or_url)"
    raise UsageError(
        f"patches of a {type(value).__name__}, {str(value)[:80]!r}", expected=f"a cohort: {hint}"
    )


class Plan:
    """The patches of a cohort: `len(plan)` per epoch, each a function of (seed, epoch, index).

    Reads tables, but no store.

    Parameters
    ----------
    cohort
        The patients.
    content
        The arrays of each sample.
    patch_size
        Voxels (z, y, x) of the lattice. With `slices`, None is the whole slice.
    patch_size_mm
        Alternative to `patch_size`: mm (z, y, x, or one number), rounded to voxels of each
        patient's lattice.
    sampling
        `uniform`, `balanced`, `grid`, `slices`, `centred`, or a sampling object.
    pad
        Values outside the volume where a patch is longer than it: `error`, `zero` or `edge`.
    complete
        Leave out patients who lack one of `content.structures`.
    random_observer
        Sample one available pair of `content`'s steps and observers for each patch.
    seed, shuffle, block, window
        See `Order`.

    Raises
    ------
    UsageError
        For invalid arguments, or a patch longer than a volume with `pad="error"`.
    MissingStructureError
        If no patient has a requested structure.
    """

    def __init__(
        self,
        cohort: Cohort,
        content: Content,
        patch_size: Sequence[int] | None = None,
        *,
        patch_size_mm: Sequence[float] | float | None = None,
        sampling: str | Sampling = "uniform",
        pad: Pad = "error",
        complete: bool = False,
        random_observer: bool = False,
        seed: int = 0,
        shuffle: bool = True,
        block: int = 4,
        window: int = 8,
    ) -> None:
        require_pad(pad)
        require_cohort(cohort)
        self.content, self.pad, self.random_observer = content, pad, random_observer
        self.sampling = sampling_of(sampling)
        self._size = _size_of(patch_size, patch_size_mm, self.sampling)
        require_available(cohort, content.grid, content.structures)
        if content.is_extended:
            require_extended(cohort)
        self.cohort = _complete(cohort, content) if complete else cohort
        if not len(self.cohort):
            raise UsageError(f"no patients: {self.cohort!r}", expected="at least one")
        self._locations: Locations = locations_of(self.cohort, content.grid, self.sampling)
        #: By patient, the SHA-256 of the store's metadata and what `_located` made of it.
        self._located_spaces: dict[str, tuple[str, Space]] = {}
        counts = [self.sampling.draws(self.space(i)) for i in self.cohort.ids]
        self.order: Order = order_of(counts, seed, shuffle, block, window)

    def __len__(self) -> int:
        """Return the number of patches in an epoch."""
        return len(self.order)

    @property
    def seed(self) -> int:
        """The seed of all randomness."""
        return self.order.seed

    def settings(self) -> dict[str, Any]:
        """Return all settings but cohort and seed that decide the n-th patch; JSON-ready."""
        size, spacing = self._size, self.content.spacing_mm
        return {
            "sampling": repr(self.sampling),
            "patch_size": list(size.given) if size.given else None,
            "patch_size_mm": size.mm.tolist() if size.mm is not None else None,
            "grid": self.content.grid,
            "spacing_mm": None if spacing is None else voxel_sizes(spacing).tolist(),
            "pad": self.pad,
            "random_observer": self.random_observer,
            "shuffle": self.order.shuffle,
            "block": self.order.block,
            "window": self.order.window,
        }

    def item(self, epoch: int, index: int) -> Item:
        """Return the `index`-th item of an epoch."""
        patient, draw = self.order.item(epoch, index)
        return Item(epoch, index, self.cohort.ids[patient], draw)

    def size(self, patient_id: str) -> Shape:
        """Return a patient's patch size (z, y, x) in voxels of its lattice."""
        return self.space(patient_id).size

    def starts(self, metadata: StoreMetadata) -> list[tuple[int, int, int]]:
        """Return the first voxels (z, y, x) of a patient's patches of epoch 0, in order."""
        patient_id = metadata.patient_id
        count = self.sampling.draws(self.space(patient_id))
        return [self.start(metadata, Item(0, -1, patient_id, d)) for d in range(count)]

    def start(self, metadata: StoreMetadata, item: Item) -> tuple[int, int, int]:
        """Return the first voxel (z, y, x) of an item's patch on its patient's lattice."""
        sha256, space = self._located_spaces.get(item.patient_id, ("", None))
        if space is None or sha256 != metadata.sha256:
            space = self._located(self.space(item.patient_id), metadata)
            self._located_spaces[item.patient_id] = metadata.sha256, space
        return self.sampling.start(space, item.draw, Words(self._key("place", item)))

    def content_of(self, metadata: StoreMetadata, item: Item) -> Content:
        """Return what an item's sample holds: `content`, of one observer with `random_observer`."""
        if not (self.random_observer and self.content.observers):
            return self.content
        return _one_observer(self.content, metadata, Words(self._key("observer", item)))

    def sample_seed(self, item: Item) -> int:
        """Return the seed for random transforms of a sample, 0 ≤ seed < 2⁶³.

        It depends on the plan's seed, the epoch and the index in it. So it is the same for any
        number of workers and ranks, and after resuming. It fits an int64 tensor.
        """
        return key_of("sample", self.seed, item.epoch, item.index) >> 1

    def _key(self, what: str, item: Item) -> int:
        # Keyed by patient id, so a patch does not depend on the other patients of the cohort.
        return key_of(what, self.seed, item.epoch, item.patient_id, item.draw)

    @cached_property
    def _lattices(self) -> dict[str, tuple[Shape, FloatArray]]:
        """Shape (z, y, x) and spacing (3,), mm, of each patient's lattice, from the table."""
        name = self.content.grid
        columns = ["patient_id", f"{name}_shape", f"{name}_spacing_mm"]
        table = self.cohort.dataset.columns("patients", columns).take(pa.array(self.cohort._rows))
        rows = zip(*table.to_pydict().values(), strict=True)
        return {i: _lattice(i, name, shape, mm, self.content.spacing_mm) for i, shape, mm in rows}

    def space(self, patient_id: str) -> Space:
        """Return a patient's `Space`; locations are in the tables' coordinates."""
        shape, mm = self._lattices[patient_id]
        space = Space(
            shape,
            self._size.voxels(shape, mm),
            mm.tolist(),
            centroid=self._locations.centroids.get(patient_id),
            slices=self._locations.slices.get(patient_id),
        )
        if self.pad == "error" and any(s > n for s, n in zip(space.size, shape, strict=True)):
            raise UsageError(
                f"patches of {space.size} voxels (z, y, x) are longer than the "
                f"volume of patient {patient_id}, {shape} voxels of "
                f"{tuple(space.spacing_mm)} mm",
                expected="smaller ones (or, in Python, pad='zero' or pad='edge')",
            )
        return space

    def _located(self, space: Space, metadata: StoreMetadata) -> Space:
        """Return the space with locations in voxels of the patient's lattice."""
        patient_id = metadata.patient_id
        lattice = lattice_of(metadata, self.content)
        if space.centroid is not None:
            return replace(space, centroid=lattice.to_index(space.centroid))
        voxels = self._locations.foreground.get(patient_id)
        if not voxels:
            return space
        move = np.linalg.inv(lattice.affine) @ stored_grid(metadata, "mri").affine
        return replace(space, foreground={s: _Moved(v, move) for s, v in voxels.items()})


class _Moved:
    """Voxels of the MRI grid on a lattice; `move` (4, 4) maps (i, j, k) from one to the other."""

    def __init__(self, voxels: Voxels, move: FloatArray) -> None:
        self._voxels = voxels
        self._move = move

    def __len__(self) -> int:
        return len(self._voxels)

    def __getitem__(self, number: int) -> FloatArray:
        ijk = self._voxels[number][::-1]
        return np.asarray((self._move[:3, :3] @ ijk + self._move[:3, 3])[::-1])


@dataclass(frozen=True)
class _Size:
    """A patch size in voxels or mm; neither is the whole slice."""

    given: tuple[int, ...] | None
    mm: FloatArray | None

    def voxels(self, shape: Shape, spacing_mm: FloatArray) -> Shape:
        """Return the size (z, y, x) in voxels of a lattice."""
        if self.mm is not None:
            z, y, x = np.maximum(1, np.rint(self.mm / spacing_mm)).astype(int).tolist()
        else:
            z, y, x = self.given or (1, *shape[1:])
        return z, y, x


def _size_of(
    voxels: Sequence[int] | None, mm: Sequence[float] | float | None, sampling: Sampling
) -> _Size:
    whole = isinstance(sampling, SliceSampling) and voxels is None and mm is None
    if not whole and (voxels is None) == (mm is None):
        raise UsageError(
            f"patch_size={voxels!r} and patch_size_mm={mm!r}",
            expected="one of the two, e.g. patch_size=(32, 192, 192) voxels (z, y, x)",
        )
    if mm is not None:
        return _Size(None, voxel_sizes(mm, "patch_size_mm"))
    if voxels is None:
        return _Size(None, None)
    size = tuple(voxels) if np.ndim(voxels) == 1 else ()
    if len(size) != 3 or any(not isinstance(n, (int, np.integer)) or n < 1 for n in size):
        raise UsageError(
            f"patch_size={voxels!r}",
            expected="three positive integers, voxels (z, y, x), e.g. (32, 192, 192)",
        )
    return _Size(tuple(int(n) for n in size), None)


def _lattice(
    patient_id: str,
    name: str,
    shape: Sequence[int] | None,
    mm: Sequence[float] | None,
    wanted: float | Sequence[float] | None,
) -> tuple[Shape, FloatArray]:
    if shape is None or mm is None:
        raise UsageError(
            f"patient {patient_id} has no {name} grid",
            remedy=f'choose others, e.g. with cohort.where("{name}_shape IS NOT NULL")',
        )
    z, y, x = (int(n) for n in shape)
    grid = Grid(np.diag([*mm[::-1], 1.0]), (z, y, x))
    if wanted is not None:
        grid = respaced(grid, wanted)
    return grid.shape, grid.spacing_mm


def _complete(cohort: Cohort, content: Content) -> Cohort:
    """Return the patients who have every structure of `content`."""
    ids = set(cohort.ids)
    for structure in content.structures:
        ids &= set(patients_with(cohort, content.grid, structure))
    return cohort[[i for i in cohort.ids if i in ids]]


def _one_observer(content: Content, metadata: StoreMetadata, words: Words) -> Content:
    """Return `content` with one step and observer of which the patient has a mask."""
    block = next(b for b in content.blocks if b.name == "observer_mask")
    there: Mapping[Any, None] = {}
    if block.path in metadata.arrays:
        there = dict.fromkeys(
            (record.labels["step"], record.labels["observer"])
            for record in metadata.arrays[block.path].sources
            if record.labels["structure"] in content.targets
        )
    pairs = [(s, o) for s in content.steps for o in content.observers]
    pairs = [p for p in pairs if p in there] or pairs
    step, observer = pairs[words.below(len(pairs))]
    return replace(content, steps=(step,), observers=(observer,))
