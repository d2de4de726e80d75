"""Solids as signed distances: negative inside, mm, accurate near the surface.

Points are an open mesh (z, y, x) of LPS coordinates that broadcasts to (z, y, x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lundprobe_zarr.phantom.grids import Axes, Box
from lundprobe_zarr.phantom.sampling import Field, Float32, regular_axes

Point = tuple[float, float, float]
Mesh = tuple[Float32, Float32, Float32]


def mesh(axes: Axes) -> Mesh:
    """Return the open float32 mesh (z, 1, 1), (1, y, 1), (1, 1, x) of three coordinate axes."""
    z, y, x = (a.astype(np.float32) for a in axes)
    return z[:, None, None], y[None, :, None], x[None, None, :]


class Solid(Protocol):
    """Something with a surface."""

    @property
    def box(self) -> Box:
        """Corners (low, high), each (x, y, z) mm LPS, of a box that holds it."""
        ...

    def distance(self, points: Mesh) -> Float32:
        """Return the signed distance to the surface, mm, (z, y, x) float32, negative inside."""
        ...


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid along the patient's axes; `centre` and `radii` are (x, y, z) in mm."""

    centre: Point
    radii: Point

    @property
    def box(self) -> Box:
        """Corners of the box that holds it."""
        return _box_of(self.centre, self.centre, self.radii)

    def distance(self, points: Mesh) -> Float32:
        """Return the signed distance, exact to first order at the surface."""
        first, second = (np.zeros((), dtype=np.float32) for _ in range(2))
        for p, c, r in zip(points, self.centre[::-1], self.radii[::-1], strict=True):
            q = (p - np.float32(c)) ** 2
            first, second = first + q / np.float32(r**2), second + q / np.float32(r**4)
        level = np.sqrt(first)
        out: Float32 = level * (level - 1) / np.maximum(np.sqrt(second), np.float32(1e-6))
        return np.maximum(out, np.float32(-min(self.radii)))


@dataclass(frozen=True)
class Capsule:
    """A round rod from `start` to `end` (x, y, z, mm) with radius `r0` to `r1`."""

    start: Point
    end: Point
    r0: float
    r1: float

    @property
    def box(self) -> Box:
        """Corners of the box that holds it."""
        r = max(self.r0, self.r1)
        return _box_of(self.start, self.end, (r, r, r))

    def distance(self, points: Mesh) -> Float32:
        """Return the signed distance; exact if the radius is constant."""
        a, b = np.array(self.start[::-1]), np.array(self.end[::-1])
        along = b - a
        length = float(along @ along)
        rel = [p - np.float32(o) for p, o in zip(points, a, strict=True)]
        t = sum(r * np.float32(d / length) for r, d in zip(rel, along, strict=True))
        t = np.clip(t, np.float32(0), np.float32(1))
        square = sum((r - t * np.float32(d)) ** 2 for r, d in zip(rel, along, strict=True))
        out: Float32 = np.sqrt(square) - (np.float32(self.r0) + t * np.float32(self.r1 - self.r0))
        return out


@dataclass(frozen=True)
class Union:
    """The union of several solids, with seams rounded over `blend` mm."""

    parts: Sequence[Solid]
    blend: float = 0.0

    @property
    def box(self) -> Box:
        """Corners of the box that holds them all."""
        lows, highs = zip(*(p.box for p in self.parts), strict=True)
        low, high = np.min(lows, axis=0) - self.blend, np.max(highs, axis=0) + self.blend
        return _as_point(low), _as_point(high)

    def distance(self, points: Mesh) -> Float32:
        """Return the signed distance to the union."""
        out = self.parts[0].distance(points)
        for part in self.parts[1:]:
            out = smooth_minimum(out, part.distance(points), self.blend)
        return out


@dataclass(frozen=True)
class Shell:
    """A solid grown by `grow` mm; negative values shrink it."""

    core: Solid
    grow: float

    @property
    def box(self) -> Box:
        """Corners of the box that holds it."""
        return grown(self.core.box, max(self.grow, 0.0))

    def distance(self, points: Mesh) -> Float32:
        """Return the signed distance to the grown surface."""
        out: Float32 = self.core.distance(points) - np.float32(self.grow)
        return out


@dataclass(frozen=True)
class Sampled:
    """A solid with its Euclidean signed distance tabulated in `field`."""

    box: Box
    field: Field

    def distance(self, points: Mesh) -> Float32:
        """Return the signed distance; beyond the table, its edge value plus the distance to it."""
        axes = tuple(p.ravel().astype(np.float64) for p in points)
        clamped = [np.clip(a, f[0], f[-1]) for a, f in zip(axes, self.field.axes, strict=True)]
        away = mesh((axes[0] - clamped[0], axes[1] - clamped[1], axes[2] - clamped[2]))
        out: Float32 = self.field.on((axes[0], axes[1], axes[2])).astype(np.float32)
        if any(a.any() for a in away):
            out += np.sqrt(away[0] ** 2 + away[1] ** 2 + away[2] ** 2)
        return out


def tabulate(solid: Solid, step: float, margin: float) -> Sampled:
    """Tabulate a solid's Euclidean signed distance, by a transform on a `step` mm lattice.

    The table extends `margin` mm beyond the solid's box.
    """
    low, high = (np.array(c) for c in grown(solid.box, margin))
    axes = regular_axes(low, high, step)
    rough = solid.distance(mesh(axes))
    inside = rough <= 0
    outer = ndimage.distance_transform_edt(~inside, sampling=step)
    inner = ndimage.distance_transform_edt(inside, sampling=step)
    # Centre-to-centre distances are half a step too large on both sides of the surface.
    exact = np.where(inside, step / 2 - inner, outer - step / 2)
    near = np.abs(exact) < 1.5 * step  # there the formula is more accurate than the lattice
    values = np.where(near, rough, exact).astype(np.float32)
    return Sampled(solid.box, Field(axes, values))


def smooth_minimum(a: Float32, b: Float32, blend: float) -> Float32:
    """Return the minimum of two distances with the crease rounded over `blend` mm (0: sharp)."""
    if blend <= 0:
        return np.minimum(a, b)
    k = np.float32(blend)
    overlap = np.maximum(k - np.abs(a - b), np.float32(0)) / k
    out: Float32 = np.minimum(a, b) - overlap * overlap * k * np.float32(0.25)
    return out


def grown(box: Box, margin: float) -> Box:
    """Return a box with `margin` mm more on every side."""
    low, high = (np.array(c) for c in box)
    return _as_point(low - margin), _as_point(high + margin)


def _box_of(a: Point, b: Point, reach: Point) -> Box:
    low, high = np.minimum(a, b) - np.array(reach), np.maximum(a, b) + np.array(reach)
    return _as_point(low), _as_point(high)


def _as_point(values: npt.NDArray[np.float64]) -> Point:
    x, y, z = (float(v) for v in values)
    return x, y, z
