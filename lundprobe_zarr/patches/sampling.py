"""Where patches lie: kinds of sampling, each a pure function of shapes, tables and random words.

All places are voxel indices (z, y, x) of one patient's lattice: the stored grid, or that grid
respaced. A patch lies inside the volume wherever it fits: one that would reach beyond an edge is
moved back. Along an axis where it is longer than the volume, the volume is in its middle, and the
padding policy says what is around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import UnknownLabelError, UsageError
from lundprobe_zarr.geometry.affine import FloatArray
from lundprobe_zarr.geometry.lattice import Shape
from lundprobe_zarr.patches.order import Words
from lundprobe_zarr.vocabulary.names import STRUCTURES
from lundprobe_zarr.vocabulary.suggest import suggestion

Start = tuple[int, int, int]
#: Part of a voxel by which a place computed through two affines may miss a voxel's centre.
_ROUNDING = 1e-6


class Points(Protocol):
    """Voxels of a structure, as places on the lattice."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> FloatArray: ...


@dataclass(frozen=True)
class Space:
    """What sampling knows of a patient: no voxel of it, only shapes and what the tables say.

    `shape` is the lattice's and `size` the patch's (z, y, x), `spacing_mm` (3,) the lattice's.
    `foreground` has voxels of each structure the patient has, `centroid` (3,) the place of the
    structure that patches are centred on, `slices` the axial slices to take (None: all).
    """

    shape: Shape
    size: Shape
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)
    foreground: Mapping[str, Points] = field(default_factory=dict)
    centroid: FloatArray | None = None
    slices: npt.NDArray[np.int64] | None = None

    def uniform(self, words: Words) -> Start:
        """First voxel of a patch anywhere in the volume."""
        return _triple(_outside(n, s) if s > n else words.below(n - s + 1) for n, s in self._axes)

    def around(self, place: npt.ArrayLike) -> Start:
        """First voxel of the patch whose centre is nearest to a place (3,).

        The centre of an even size lies between two voxels, at most half a voxel from the place.
        Of two that are as near, the lower one, whose voxel size // 2 is then the place.
        """
        # The corner is rounded, not the place: that would move even sizes by up to a voxel.
        corner = np.asarray(place, np.float64) - (np.asarray(self.size) - 1) / 2
        nearest = np.ceil(corner - 0.5 - _ROUNDING)
        return _triple(
            _outside(n, s) if s > n else min(max(int(c), 0), n - s)
            for c, (n, s) in zip(nearest, self._axes, strict=True)
        )

    @property
    def _axes(self) -> list[tuple[int, int]]:
        return list(zip(self.shape, self.size, strict=True))


def _outside(length: int, size: int) -> int:
    """First voxel of a patch that is longer than the volume, which is in its middle."""
    return -((size - length) // 2)


def _triple(values: Iterable[int]) -> Start:
    z, y, x = values
    return z, y, x


def require_structures(structures: Sequence[str]) -> None:
    """Raises `UnknownLabelError`, naming the nearest real ones, for a structure nobody has."""
    for structure in structures:
        if structure not in STRUCTURES:
            raise UnknownLabelError(
                f"unknown structure {structure!r}; {suggestion(str(structure), STRUCTURES)}",
                expected=f"one of {', '.join(STRUCTURES)}",
            )


@dataclass(frozen=True)
class UniformSampling:
    """`per_patient` patches of each patient an epoch, every place as likely as any other."""

    per_patient: int = 8
    name: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        _require_count(self.per_patient)

    def draws(self, space: Space) -> int:
        """Patches of a patient in an epoch."""
        return self.per_patient

    def start(self, space: Space, draw: int, words: Words) -> Start:
        """First voxel of the patch."""
        return space.uniform(words)


@dataclass(frozen=True)
class BalancedSampling:
    """A share of patches around a voxel of a structure, each structure as likely as another.

    With probability `foreground` a patch is centred on a voxel of one of `structures`, the
    structure drawn among those the patient has, the voxel from the `foreground` table; else, or
    if the patient has none of them, it lies anywhere.
    """

    structures: tuple[str, ...] = ("CTVT_427", "Rectum", "Bladder")
    foreground: float = 2 / 3
    per_patient: int = 8
    name: ClassVar[str] = "balanced"

    def __post_init__(self) -> None:
        _require_count(self.per_patient)
        require_structures(self.structures)
        if not self.structures:
            raise UsageError("balanced sampling of no structures", expected="at least one")
        if not 0 <= self.foreground <= 1:
            raise UsageError(f"foreground={self.foreground!r}", expected="a share, from 0 to 1")

    def draws(self, space: Space) -> int:
        """Patches of a patient in an epoch."""
        return self.per_patient

    def start(self, space: Space, draw: int, words: Words) -> Start:
        """First voxel of the patch."""
        there = [s for s in self.structures if len(space.foreground.get(s, ()))]
        if words.unit() >= self.foreground or not there:
            return space.uniform(words)
        points = space.foreground[there[words.below(len(there))]]
        return space.around(points[words.below(len(points))])


@dataclass(frozen=True)
class GridSampling:
    """Patches that cover the volume side by side, for inference: see `Aggregator`.

    Neighbours overlap by `overlap` voxels (z, y, x, or one number for all), the last of a row by
    more where it would reach beyond the volume.
    """

    overlap: int | tuple[int, int, int] = 0
    name: ClassVar[str] = "grid"

    @property
    def overlaps(self) -> Start:
        """Overlap (z, y, x), voxels."""
        o = self.overlap
        return (o, o, o) if isinstance(o, int) else o

    def axes(self, space: Space) -> list[list[int]]:
        """First voxels along z, y, x; raises `UsageError` if the overlap is not below the size."""
        found = []
        for n, s, o in zip(space.shape, space.size, self.overlaps, strict=True):
            if not 0 <= o < s:
                raise UsageError(
                    f"overlap {self.overlap} of patches of {space.size} voxels (z, y, x)",
                    expected="from 0 to less than the patch size along each axis",
                )
            rest = n - s
            found.append([*range(0, rest, s - o), rest] if rest > 0 else [_outside(n, s)])
        return found

    def draws(self, space: Space) -> int:
        """Patches that cover a patient."""
        return int(np.prod([len(a) for a in self.axes(space)]))

    def start(self, space: Space, draw: int, words: Words) -> Start:
        """First voxel of the draw-th patch, x fastest."""
        axes = self.axes(space)
        z, y, x = np.unravel_index(draw, [len(a) for a in axes])
        return axes[0][z], axes[1][y], axes[2][x]

    def starts(self, space: Space) -> list[Start]:
        """First voxels of all patches, x fastest."""
        return [_triple(place) for place in product(*self.axes(space))]


@dataclass(frozen=True)
class SliceSampling:
    """Every axial slice once an epoch; with `having`, those with a voxel of that structure.

    The patch size is the slice's, or what is given: then the middle of the slice, and with a
    thickness above 1 its neighbours too.
    """

    having: str | None = None
    name: ClassVar[str] = "slices"

    def __post_init__(self) -> None:
        require_structures([self.having] if self.having else [])

    def draws(self, space: Space) -> int:
        """Slices of a patient."""
        return space.shape[0] if space.slices is None else len(space.slices)

    def start(self, space: Space, draw: int, words: Words) -> Start:
        """First voxel of the patch."""
        z = draw if space.slices is None else int(space.slices[draw])
        return space.around((z, (space.shape[1] - 1) / 2, (space.shape[2] - 1) / 2))


@dataclass(frozen=True)
class CentredSampling:
    """`per_patient` patches around a structure's centroid, moved by up to `jitter_mm` each way.

    The centroid is that of the `structures` table; a patient without the structure has no draws.
    """

    structure: str = "PTVT_427"
    jitter_mm: float = 0.0
    per_patient: int = 1
    name: ClassVar[str] = "centred"

    def __post_init__(self) -> None:
        _require_count(self.per_patient)
        require_structures([self.structure])
        if not (np.isfinite(self.jitter_mm) and self.jitter_mm >= 0):
            raise UsageError(f"jitter_mm={self.jitter_mm!r}", expected="millimetres, 0 or more")

    def draws(self, space: Space) -> int:
        """Patches of a patient in an epoch; none without the structure."""
        return 0 if space.centroid is None else self.per_patient

    def start(self, space: Space, draw: int, words: Words) -> Start:
        """First voxel of the patch."""
        if space.centroid is None:
            raise UsageError(f"a patch centred on {self.structure}, which is not there")
        moves = [self.jitter_mm * (2 * words.unit() - 1) / mm for mm in space.spacing_mm]
        return space.around(space.centroid + np.asarray(moves))


Sampling: TypeAlias = (
    UniformSampling | BalancedSampling | GridSampling | SliceSampling | CentredSampling
)
_KINDS: dict[str, type[Sampling]] = {
    kind.name: kind
    for kind in (UniformSampling, BalancedSampling, GridSampling, SliceSampling, CentredSampling)
}


def sampling_of(sampling: str | Sampling) -> Sampling:
    """A kind of sampling by its name with default settings, or as it was given.

    Raises `UsageError` for a name there is none of.
    """
    if isinstance(sampling, Sampling):
        return sampling
    if isinstance(sampling, str) and sampling in _KINDS:
        return _KINDS[sampling]()
    raise UsageError(
        f"sampling={sampling!r}",
        expected=(
            f"one of {', '.join(_KINDS)}, or one with settings of its own, e.g. "
            "UniformSampling(per_patient=4)"
        ),
    )


def _require_count(per_patient: int) -> None:
    if isinstance(per_patient, bool) or not isinstance(per_patient, int) or per_patient < 1:
        raise UsageError(f"per_patient={per_patient!r}", expected="a whole number from 1 on")
