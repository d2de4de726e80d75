"""Which patches an epoch has, in which order, and what each holds: all of a stream but its I/O."""

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
from lundprobe_zarr.patches.locations import (
    Places,
    Voxels,
    patients_with,
    places_of,
    require_somebody,
)
from lundprobe_zarr.patches.order import Order, Words, key_of, order_of
from lundprobe_zarr.patches.patch import (
    Pad,
    RawSample,
    lattice_of,
    read_patch,
    require_pad,
    stored_grid,
)
from lundprobe_zarr.patches.request import Content
from lundprobe_zarr.patches.sampling import (
    Sampling,
    SliceSampling,
    Space,
    sampling_of,
)
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.stores.reader import StoreReader

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort


@dataclass(frozen=True)
class Draw:
    """One item of an epoch: the `draw`-th patch of a patient, `index`-th of all in `epoch`."""

    epoch: int
    index: int
    patient_id: str
    draw: int


def _require_cohort(value: object) -> None:
    from lundprobe_zarr.cohort import Cohort, Patient

    if isinstance(value, Cohort):
        return
    if isinstance(value, (str, PathLike)):
        hint = f"lp.open_cohort({str(value)!r}) opens the one of a path or URL"
    elif isinstance(value, Patient):
        hint = f"cohort[[{value.patient_id!r}]] is the one of this patient alone"
    else:
        hint = "lp.open_cohort(path_or_url) opens one"
    raise UsageError(
        f"patches of a {type(value).__name__}, {str(value)[:80]!r}", expected=f"a cohort: {hint}"
    )


class Plan:
    """The patches of a cohort: `len(plan)` an epoch, each a function of (seed, epoch, index).

    - `patch_size`: voxels (z, y, x) of the lattice, or `patch_size_mm`, millimetres, rounded to
      whole voxels of each patient's own lattice (of all the same with `content.spacing_mm`).
      Neither, for `slices`: the whole slice.
    - `sampling`: `uniform`, `balanced`, `grid`, `slices`, `centred`, or one with settings.
    - `pad`: what is around the volume where a patch is longer than it: `error`, `zero`, `edge`.
    - `complete`: leave out patients who lack one of `content.structures`.
    - `random_observer`: of the steps and observers in `content`, one that the patient has,
      drawn for each patch.
    - `seed`, `shuffle`, `block`, `window`: see `Order`.

    Reads tables, no store. Raises `UsageError` for arguments that make no sense or a patch longer
    than a volume, `MissingStructureError` if no patient has a structure that is asked for.
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
        _require_cohort(cohort)
        self.content, self.pad, self.random_observer = content, pad, random_observer
        self.sampling = sampling_of(sampling)
        self._size = _size_of(patch_size, patch_size_mm, self.sampling)
        require_somebody(cohort, content.grid, content.structures)
        self.cohort = _complete(cohort, content) if complete else cohort
        if not len(self.cohort):
            raise UsageError(f"no patients: {self.cohort!r}", expected="at least one")
        self._places: Places = places_of(self.cohort, content.grid, self.sampling)
        counts = [self.sampling.draws(self.space(i)) for i in self.cohort.ids]
        self.order: Order = order_of(counts, seed, shuffle, block, window)

    def __len__(self) -> int:
        """Patches of an epoch."""
        return len(self.order)

    @property
    def seed(self) -> int:
        """The seed that everything random follows from."""
        return self.order.seed

    def settings(self) -> dict[str, Any]:
        """All but cohort and seed that decides which patch is the n-th; JSON-ready."""
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

    def draw(self, epoch: int, index: int) -> Draw:
        """The `index`-th item of an epoch."""
        patient, draw = self.order.item(epoch, index)
        return Draw(epoch, index, self.cohort.ids[patient], draw)

    def size(self, patient_id: str) -> Shape:
        """Patch size (z, y, x) of a patient, voxels of its lattice."""
        return self.space(patient_id).size

    def starts(self, reader: StoreReader) -> list[tuple[int, int, int]]:
        """First voxels (z, y, x) of all of a patient's draws of epoch 0, in order."""
        patient_id = reader.metadata.patient_id
        count = self.sampling.draws(self.space(patient_id))
        return [self.start(reader, Draw(0, -1, patient_id, d)) for d in range(count)]

    def start(self, reader: StoreReader, draw: Draw) -> tuple[int, int, int]:
        """First voxel (z, y, x) of a draw on its patient's lattice."""
        space = self._located(self.space(draw.patient_id), reader.metadata)
        return self.sampling.start(space, draw.draw, Words(self._key("place", draw)))

    def read(self, reader: StoreReader, draw: Draw) -> RawSample:
        """The patch of a draw; see `read_patch`, and `epoch`, `index`, `draw`, `seed` beside it."""
        content = self.content
        if self.random_observer and content.observers:
            content = _one_observer(content, reader, Words(self._key("observer", draw)))
        start, size = self.start(reader, draw), self.size(draw.patient_id)
        about = {"epoch": draw.epoch, "index": draw.index, "draw": draw.draw}
        patch = read_patch(reader, content, start, size, self.pad)
        return patch | about | {"seed": self.sample_seed(draw)}

    def sample_seed(self, draw: Draw) -> int:
        """What a random transform of this sample begins with, 0 ≤ seed < 2⁶³.

        It follows from the plan's seed, the epoch and the position in it, so it is the same for
        any workers and ranks and after resuming. 63 bits: an int64 tensor holds it.
        """
        return key_of("sample", self.seed, draw.epoch, draw.index) >> 1

    def _key(self, what: str, draw: Draw) -> int:
        # By the patient's id: the same patch whoever else is in the cohort.
        return key_of(what, self.seed, draw.epoch, draw.patient_id, draw.draw)

    @cached_property
    def _lattices(self) -> dict[str, tuple[Shape, FloatArray]]:
        """Shape (z, y, x) and spacing (3,), mm, of every patient's lattice, by the table."""
        name = self.content.grid
        columns = ["patient_id", f"{name}_shape", f"{name}_spacing_mm"]
        table = self.cohort.dataset.columns("patients", columns).take(pa.array(self.cohort._rows))
        rows = zip(*table.to_pydict().values(), strict=True)
        return {i: _lattice(i, name, shape, mm, self.content.spacing_mm) for i, shape, mm in rows}

    def space(self, patient_id: str) -> Space:
        """What sampling counts with of a patient; places are still as the tables have them."""
        shape, mm = self._lattices[patient_id]
        space = Space(
            shape,
            self._size.voxels(shape, mm),
            mm.tolist(),
            centroid=self._places.centroids.get(patient_id),
            slices=self._places.slices.get(patient_id),
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
        """The same with places on the patient's lattice."""
        patient_id = metadata.patient_id
        lattice = lattice_of(metadata, self.content)
        if space.centroid is not None:
            return replace(space, centroid=lattice.to_index(space.centroid))
        voxels = self._places.foreground.get(patient_id)
        if not voxels:
            return space
        move = np.linalg.inv(lattice.affine) @ stored_grid(metadata, "mri").affine
        return replace(space, foreground={s: _Moved(v, move) for s, v in voxels.items()})


class _Moved:
    """Voxels of the MRI grid as places on a lattice; `move` (4, 4) is from (i, j, k) to it."""

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
    """A patch size as it was given: voxels, millimetres, or neither, the whole slice."""

    given: tuple[int, ...] | None
    mm: FloatArray | None

    def voxels(self, shape: Shape, spacing_mm: FloatArray) -> Shape:
        """Voxels (z, y, x) of a lattice."""
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
            expected=("three whole numbers of voxels (z, y, x), from 1 on, e.g. (32, 192, 192)"),
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
    """The patients who have every structure of `content`."""
    ids = set(cohort.ids)
    for structure in content.structures:
        ids &= set(patients_with(cohort, content.grid, structure))
    return cohort[[i for i in cohort.ids if i in ids]]


def _one_observer(content: Content, reader: StoreReader, words: Words) -> Content:
    """`content` with one step and observer of those that the patient has a mask of."""
    block = next(b for b in content.blocks if b.name == "observer_mask")
    there: Mapping[Any, None] = {}
    if block.path in reader.metadata.arrays:
        array = reader.array(block.path)
        there = dict.fromkeys(
            (record.labels["step"], record.labels["observer"])
            for record in array.sources
            if record.labels["structure"] in content.targets
        )
    pairs = [(s, o) for s in content.steps for o in content.observers]
    pairs = [p for p in pairs if p in there] or pairs
    step, observer = pairs[words.below(len(pairs))]
    return replace(content, steps=(step,), observers=(observer,))
