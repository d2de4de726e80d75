"""Sampling of patch locations: pure functions of shapes, tables and random words.

All locations are voxel indices (z, y, x) of one patient's lattice: the stored grid, or that grid
respaced. A patch that would cross the edge of the volume is shifted inside. Along an axis where it
is longer than the volume, the volume is centred in it, and the padding policy applies.
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
#: Rounding error, in voxels, of a location that was computed through two affines.
_ROUNDING = 1e-6


class Points(Protocol):
    """Voxels of a structure in lattice coordinates."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int, /) -> FloatArray: ...


@dataclass(frozen=True)
class Space:
    """The input of sampling for one patient: shapes and values from tables.

    `shape` and `spacing_mm` (z, y, x) describe the lattice, `size` (z, y, x) is the patch size.
    `foreground` holds voxels of each structure that the patient has, `centroid` (3,) is the
    location to centre patches on, `slices` lists the axial slices to use (None: all).
    """

    shape: Shape
    size: Shape
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)
    foreground: Mapping[str, Points] = field(default_factory=dict)
    centroid: FloatArray | None = None
    slices: npt.NDArray[np.int64] | None = None

    def uniform(self, words: Words) -> Start:
        """Return the first voxel of a patch anywhere in the volume."""
        return _triple(_outside(n, s) if s > n else words.below(n - s + 1) for n, s in self._axes)

    def around(self, location: npt.ArrayLike) -> Start:
        """Return the first voxel of the patch whose centre is nearest to a location (3,).

        The centre of an even size lies between two voxels, at most half a voxel from the location.
        Of two equally near patches the lower is used; its voxel size // 2 is then the location.
        """
        # Round the corner: rounding the location would shift even sizes by up to a voxel.
        corner = np.asarray(location, np.float64) - (np.asarray(self.size) - 1) / 2
        nearest = np.ceil(corner - 0.5 - _ROUNDING)
        return _triple(
            _outside(n, s) if s > n else min(max(int(c), 0), n - s)
            for c, (n, s) in zip(nearest, self._axes, strict=True)
        )

    @property
    def _axes(self) -> list[tuple[int, int]]:
        return list(zip(self.shape, self.size, strict=True))


def _outside(length: int, size: int) -> int:
    """Return the first voxel of a patch that is longer than the volume and centred on it."""
    return -((size - length) // 2)


def _triple(values: Iterable[int]) -> Start:
    z, y, x = values
    return z, y, x


def require_structures(structures: Sequence[str]) -> None:
    """Raise `UnknownLabelError` for an unknown structure, with the nearest names."""
    for structure in structures:
        if structure not in STRUCTURES:
            raise UnknownLabelError(
                f"unknown structure {structure!r}; {suggestion(str(structure), STRUCTURES)}",
                expected=f"one of {', '.join(STRUCTURES)}",
            )


@dataclass(frozen=True)
class UniformSampling:
    """Sample patch locations uniformly.

    Parameters
    ----------
    per_patient
        Patches of each patient per epoch.

    Raises
    ------
    UsageError
        If `per_patient` is not a positive integer.
    """

    per_patient: int = 8
    name: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        _require_count(self.per_patient)

    def draws(self, space: Space) -> int:
        """Return the number of patches of a patient in an epoch."""
        return self.per_patient

    def start(self, space: Space, draw: int, words: Words) -> Start:
        """Return the first voxel (z, y, x) of a patch on the patient's lattice."""
        return space.uniform(words)


@dataclass(frozen=True)
class BalancedSampling:
    """Centre a share of the patches on structures, each structure with equal probability.

    With probability `foreground` a patch is centred on a voxel of one of the structures that the
    patient has; the voxel comes from the `foreground` table. Otherwise, or if the patient has none
    of them, its location is uniform.

    Parameters
    ----------
    structures
        Names of clinical structures.
    foreground
        Probability of a patch on a structure, 0 to 1.
    per_patient
        Patches of each patient per epoch.

    Raises
    ------
    UsageError
        For an invalid number, or without structures.
    UnknownLabelError
        For an unknown structure.
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
        """Return the number of patches of a patient in an epoch."""
        return self.per_patient

    def start(self, space: Space, draw: int, words: Words) -> Start:
        """Return the first voxel (z, y, x) of a patch on the patient's lattice."""
        there = [s for s in self.structures if len(space.foreground.get(s, ()))]
        if words.unit() >= self.foreground or not there:
            return space.uniform(words)
        points = space.foreground[there[words.below(len(there))]]
        return space.around(points[words.below(len(points))])


@dataclass(frozen=True)
class GridSampling:
    """Cover each volume with patches on a grid, for inference with `Aggregator`.

    The last patch along an axis overlaps more where it would cross the edge of the volume.

    Parameters
    ----------
    overlap
        Overlap of neighbouring patches, voxels (z, y, x, or one number).
    """

    overlap: int | tuple[int, int, int] = 0
    name: ClassVar[str] = "grid"

    @property
    def overlaps(self) -> Start:
        """Overlap (z, y, x), voxels."""
        o = self.overlap
        return (o, o, o) if isinstance(o, int) else o

    def axes(self, space: Space) -> list[list[int]]:
        """Return first voxels along z, y, x; raise `UsageError` if overlap >= size."""
        found = []
        for n, s, o in zip(space.shape, space.size, self.overlaps, strict=True):
            if not 0 <= o < s:
                raise UsageError(
                    f"overlap {self.overlap} of patches of {space.size} voxels (z, y, x)",
                    expected="at least 0 and less than the patch size along each axis",
                )
            rest = n - s
            found.append([*range(0, rest, s - o), rest] if rest > 0 else [_outside(n, s)])
        return found

    def draws(self, space: Space) -> int:
        """Return the number of patches that cover a patient."""
        return int(np.prod([len(a) for a in self.axes(space)]))

    def start(self, space: Space, draw: int, words: Words) -> Start:
        """Return the first voxel (z, y, x) of patch number `draw`, x fastest."""
        axes = self.axes(space)
        z, y, x = np.unravel_index(draw, [len(a) for a in axes])
        return axes[0][z], axes[1][y], axes[2][x]

    def starts(self, space: Space) -> list[Start]:
        """Return the first voxels (z, y, x) of all patches, x fastest."""
        return [_triple(start) for start in product(*self.axes(space))]


@dataclass(frozen=True)
class SliceSampling:
    """Sample every axial slice once per epoch.

    The patch is the whole slice by default. With a patch size it is centred on the slice, and
    with a thickness above 1 it includes neighbouring slices.

    Parameters
    ----------
    having
        Only slices with a voxel of this clinical structure.

    Raises
    ------
    UnknownLabelError
        For an unknown structure.
    """

    having: str | None = None
    name: ClassVar[str] = "slices"

    def __post_init__(self) -> None:
        require_structures([self.having] if self.having else [])

    def draws(self, space: Space) -> int:
        """Return the number of slices of a patient."""
        return space.shape[0] if space.slices is None else len(space.slices)

    def start(self, space: Space, draw: int, words: Words) -> Start:
        """Return the first voxel (z, y, x) of a patch on the patient's lattice."""
        z = draw if space.slices is None else int(space.slices[draw])
        return space.around((z, (space.shape[1] - 1) / 2, (space.shape[2] - 1) / 2))


@dataclass(frozen=True)
class CentredSampling:
    """Centre patches on a structure's centroid from the `structures` table.

    A patient without the structure has no patches.

    Parameters
    ----------
    structure
        Name of a clinical structure.
    jitter_mm
        Largest random shift in each direction along each axis, mm.
    per_patient
        Patches of each patient per epoch.

    Raises
    ------
    UsageError
        For an invalid number.
    UnknownLabelError
        For an unknown structure.
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
        """Return the number of patches of a patient in an epoch; 0 without the structure."""
        return 0 if space.centroid is None else self.per_patient

    def start(self, space: Space, draw: int, words: Words) -> Start:
        """Return the first voxel (z, y, x) of a patch on the patient's lattice."""
        if space.centroid is None:
            raise UsageError(f"a patch centred on {self.structure}, which the patient lacks")
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
    """Return a sampling by name with default settings, or the object given.

    Raise `UsageError` for an unknown name.
    """
    if isinstance(sampling, Sampling):
        return sampling
    if isinstance(sampling, str) and sampling in _KINDS:
        return _KINDS[sampling]()
    raise UsageError(
        f"sampling={sampling!r}",
        expected=(
            f"one of {', '.join(_KINDS)}, or an object with settings, e.g. "
            "UniformSampling(per_patient=4)"
        ),
    )


def _require_count(per_patient: int) -> None:
    if isinstance(per_patient, bool) or not isinstance(per_patient, int) or per_patient < 1:
        raise UsageError(f"per_patient={per_patient!r}", expected="a positive integer")
