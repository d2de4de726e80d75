"""How far two masks agree: overlap, distances between surfaces, volumes, and what was edited.

Masks are (z, y, x) arrays of one grid, spacings (z, y, x), mm. The first mask of a pair, a, is the
one that was started from, the second, b, the one it became, or is compared with:
differences are b - a. Definitions, with their sources:

- Dice: 2 |a and b| / (|a| + |b|) (Dice, 1945, doi:10.2307/1932409);
- surface Dice at a tolerance: the share of both surfaces within it of the other (Nikolov et al.,
  2021, doi:10.2196/26151), see `measures.surfaces`;
- Hausdorff distance: the larger of both directions' largest distance from a surface to the other;
  HD95: the larger of both directions' distance within which 95 % of the surface's area lies;
- average symmetric surface distance: the mean of the distances of both surfaces to each other,
  each piece weighted by its area (Heimann et al., 2009, doi:10.1109/TMI.2009.2013851);
- added path length: the length of b's outline, slice by slice, that is not a's outline: what has to
  be drawn to make b of a (Vaassen et al., 2020, doi:10.1016/j.phro.2019.12.001). An outline is the
  voxels of a slice with a side in common with one outside; each is as long as a voxel is wide.

Where one mask is empty, Dice is 0 and distances are None; where both are, Dice is None too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.lattice import Box
from lundprobe_zarr.measures.masks import bounding_box
from lundprobe_zarr.measures.surfaces import Surface, within_share

Mask = npt.NDArray[np.bool_]
Measures = dict[str, float | int | None]

#: Tolerances of the surface Dice in the tables, mm.
TOLERANCES_MM = (1.0, 2.0)
#: Spacings come from float32 headers: a distance of exactly a tolerance can be this much larger.
_ROUNDING_MM = 1e-6
#: Share of the area of the robust Hausdorff distance.
_ROBUST = 0.95


@dataclass(frozen=True)
class Drawn:
    """A mask (z, y, x) in the box that it shares with those it is compared with.

    `spacing_mm` is (z, y, x). Its surface is found once, when first needed, for all its pairs.
    """

    mask: Mask
    spacing_mm: tuple[float, float, float]

    @cached_property
    def voxels(self) -> int:
        """Number of voxels."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def surface(self) -> Surface:
        """The surface, with the map of distances to it."""
        return Surface.of(self.mask, self.spacing_mm)

    @cached_property
    def outline(self) -> Mask:
        """The voxels (z, y, x) that share a side with one outside in their slice."""
        padded = np.pad(self.mask, ((0, 0), (1, 1), (1, 1)))
        inner = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1]
        inner &= padded[:, 1:-1, :-2]
        inner &= padded[:, 1:-1, 2:]
        return self.mask & ~inner

    @property
    def voxel_cc(self) -> float:
        """Volume of a voxel, cm³."""
        return float(np.prod(self.spacing_mm)) / 1000.0


def joint_box(boxes: Sequence[Box | None]) -> Box:
    """Return the smallest box that holds all of some boxes; without any, an empty one."""
    there = [box for box in boxes if box is not None]
    if not there:
        return slice(0, 0), slice(0, 0), slice(0, 0)
    z, y, x = (
        slice(min(s.start for s in spans), max(s.stop for s in spans))
        for spans in zip(*there, strict=True)
    )
    return z, y, x


def agreement(
    a: Mask,
    b: Mask,
    spacing_mm: tuple[float, float, float],
    tolerances_mm: Sequence[float] = TOLERANCES_MM,
) -> Measures:
    """Compare two masks (z, y, x), bool, of one grid with `spacing_mm` (z, y, x).

    They are cropped to their joint bounding box first: the result is the same, and a distance map
    of a prostate takes milliseconds instead of half a minute. Returns the columns of
    `compare_drawn`. Raises `UsageError` if shapes differ, a mask is not bool or a spacing is not
    positive.
    """
    _require_masks(a, b, spacing_mm)
    box = joint_box([bounding_box(a), bounding_box(b)])
    return compare_drawn(Drawn(a[box], spacing_mm), Drawn(b[box], spacing_mm), tolerances_mm)


def _require_masks(a: Mask, b: Mask, spacing_mm: Sequence[float]) -> None:
    for name, mask in (("a", a), ("b", b)):
        if mask.dtype != np.bool_ or mask.ndim != 3:
            raise UsageError(
                f"mask {name} is {mask.dtype} with {mask.ndim} dimensions",
                expected="bool (z, y, x)",
                remedy="compare what is in it with `mask > 0`, say",
            )
    if a.shape != b.shape:
        raise UsageError(
            f"masks of {a.shape} and {b.shape} voxels",
            expected="masks of one grid",
            remedy="resample one to the other's grid first",
        )
    if len(spacing_mm) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise UsageError(f"spacing_mm {spacing_mm}", expected="three positive numbers (z, y, x)")


def compare_drawn(a: Drawn, b: Drawn, tolerances_mm: Sequence[float] = TOLERANCES_MM) -> Measures:
    """Compare two masks in one box.

    Returns `a_cc, b_cc, difference_cc` (cm³), `dice`, `surface_dice_<t>mm` of each tolerance,
    `hd95_mm`, `hd_mm`, `assd_mm`, `added_path_mm`, `added_voxels` and `removed_voxels`.
    """
    both = int(np.count_nonzero(a.mask & b.mask))
    total = a.voxels + b.voxels
    drawn = int(np.count_nonzero(b.outline & ~a.outline))
    width = float(np.sqrt(b.spacing_mm[1] * b.spacing_mm[2]))
    return {
        "a_cc": a.voxels * a.voxel_cc,
        "b_cc": b.voxels * b.voxel_cc,
        "difference_cc": (b.voxels - a.voxels) * a.voxel_cc,
        "dice": 2 * both / total if total else None,
        **_distances(a.surface, b.surface, tolerances_mm),
        "added_path_mm": drawn * width,
        "added_voxels": b.voxels - both,
        "removed_voxels": a.voxels - both,
    }


def surface_dice_name(tolerance_mm: float) -> str:
    """Return the column of the surface Dice at a tolerance, e.g. `surface_dice_1mm`."""
    return f"surface_dice_{tolerance_mm:g}mm".replace(".", "_")


def _distances(a: Surface, b: Surface, tolerances_mm: Sequence[float]) -> Measures:
    names = [surface_dice_name(t) for t in tolerances_mm]
    nothing: Measures = dict.fromkeys(("hd95_mm", "hd_mm", "assd_mm"))
    if not len(a.cells) or not len(b.cells):
        share = 0.0 if len(a.cells) or len(b.cells) else None
        return dict.fromkeys(names, share) | nothing
    ways = [(a.distances_to(b), a.areas), (b.distances_to(a), b.areas)]
    total = a.area_mm2 + b.area_mm2
    found: Measures = {}
    for name, tolerance in zip(names, tolerances_mm, strict=True):
        near = sum(float(area[d <= tolerance + _ROUNDING_MM].sum()) for d, area in ways)
        found[name] = near / total
    return found | {
        "hd95_mm": max(within_share(d, area, _ROBUST) for d, area in ways),
        "hd_mm": max(float(d.max()) for d, _ in ways),
        "assd_mm": sum(float(d @ area) for d, area in ways) / total,
    }
