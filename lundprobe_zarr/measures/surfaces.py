"""Surfaces of masks, and distances between them, by the definition behind the surface Dice.

Between each eight neighbouring voxel centres lies a cell. Where its corners are partly in the mask
and partly not, a piece of the surface passes through it, as marching cubes (Lorensen and Cline,
1987, doi:10.1145/37401.37422) lay it through the middles of the edges. A surface is the centres of
these cells, each with the area of its piece. Distances between surfaces are between such centres.
This is the definition of Nikolov et al., J Med Internet Res 23(7):e26151 (2021),
doi:10.2196/26151. Spacings are (z, y, x), mm, and may differ. What lies outside the array is
outside the mask.

The pieces are found by computation, not kept as a table. Where marching cubes leave a choice, it is
made so that areas equal those of that definition: the corners that are fewer (those in the mask, if
there are four) are cut off one by one where they meet along a diagonal only, and a piece that is
not flat is cut into the triangles whose area is largest on a cube.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.geometry.affine import FloatArray

Mask = npt.NDArray[np.bool_]
Corner = tuple[int, int, int]
Point = tuple[float, float, float]
Triangle = tuple[Point, Point, Point]

#: Corners of a cell, in the order of the bits of its code.
CORNERS: tuple[Corner, ...] = tuple((z, y, x) for z, y, x in product((0, 1), repeat=3))
#: Codes of cells without a surface: all corners out, all in.
_OUT, _IN = 0, 255


@dataclass(frozen=True)
class Surface:
    """The surface of a mask of n voxels along each axis, whose cells are n + 1 along each.

    `cells` (m,) are the flat indices of the cells with a piece of the surface, `areas` (m,) their
    areas, mm². `distances` (z, y, x) are those of every cell's centre to the nearest of them, mm.
    An empty mask has no cells, and infinite distances.
    """

    cells: npt.NDArray[np.intp]
    areas: FloatArray
    distances: FloatArray

    @classmethod
    def of(cls, mask: Mask, spacing_mm: Sequence[float]) -> Surface:
        """Return the surface of a mask (z, y, x); `spacing_mm` is (z, y, x)."""
        from scipy.ndimage import distance_transform_edt  # reading data should not wait for scipy

        codes = cell_codes(mask)
        there = (codes != _OUT) & (codes != _IN)
        cells = np.flatnonzero(there)
        if not len(cells):
            return cls(cells, np.zeros(0), np.full(codes.shape, np.inf))
        areas = piece_areas(spacing_mm)[codes.ravel()[cells]]
        return cls(cells, areas, distance_transform_edt(~there, sampling=tuple(spacing_mm)))

    @property
    def area_mm2(self) -> float:
        """Area of the whole surface."""
        return float(self.areas.sum())

    def distances_to(self, other: Surface) -> FloatArray:
        """Return the distances (m,), mm, of these cells to the other surface, of the same box."""
        found: FloatArray = other.distances.ravel()[self.cells]
        return found


def cell_codes(mask: Mask) -> npt.NDArray[np.uint8]:
    """Return the code of each cell of a mask (z, y, x): bit n is whether `CORNERS[n]` is in it."""
    padded = np.pad(mask, 1).view(np.uint8)
    z, y, x = (n + 1 for n in mask.shape)
    codes = np.zeros((z, y, x), np.uint8)
    for bit, (k, j, i) in enumerate(CORNERS):
        codes |= padded[k : k + z, j : j + y, i : i + x] << np.uint8(bit)
    return codes


def piece_areas(spacing_mm: Sequence[float]) -> FloatArray:
    """Return the area (256,), mm², of the surface in a cell of each code; spacing (z, y, x)."""
    z, y, x = spacing_mm
    faces = np.array([y * x, z * x, z * y])  # a vector of area scales with the face it is normal to
    owners, vectors = _pieces()
    areas = np.linalg.norm(vectors * faces, axis=1)
    return np.bincount(owners, areas, minlength=256).astype(np.float64)


@cache
def _pieces() -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Code (n,) and vector of area (n, 3), z y x, of every triangle in a cell of unit spacing."""
    found = [(code, _vector(t)) for code in range(256) for t in _triangles(_cut_off(code))]
    codes, vectors = zip(*found, strict=True)
    return np.array(codes, np.int64), np.array(vectors)


def _cut_off(code: int) -> frozenset[Corner]:
    """The corners to cut off: those in the mask, or the others where they are fewer."""
    inside = frozenset(c for bit, c in enumerate(CORNERS) if code >> bit & 1)
    return inside if len(inside) <= len(CORNERS) // 2 else frozenset(CORNERS) - inside


def _triangles(corners: frozenset[Corner]) -> Iterator[Triangle]:
    for outline in _outlines(corners):
        yield from max(_triangulations(outline), key=_area)


def _outlines(corners: frozenset[Corner]) -> Iterator[list[Point]]:
    """Yield the closed lines in which the surface meets the faces of the cell."""
    ends: dict[Point, list[Point]] = {}
    for a, b in (line for face in _faces() for line in _lines(face, corners)):
        ends.setdefault(a, []).append(b)
        ends.setdefault(b, []).append(a)
    while ends:
        outline = [min(ends)]
        while (then := [p for p in ends[outline[-1]] if p not in outline]) != []:
            outline.append(then[0])
        for point in outline:
            del ends[point]
        yield outline


def _faces() -> Iterator[list[Corner]]:
    """Yield the six faces of a cell, each as its four corners in turn."""
    for axis, side in product(range(3), (0, 1)):
        face = []
        for u, v in ((0, 0), (0, 1), (1, 1), (1, 0)):
            corner = [u, v]
            corner.insert(axis, side)
            face.append((corner[0], corner[1], corner[2]))
        yield face


def _lines(face: Sequence[Corner], corners: frozenset[Corner]) -> list[tuple[Point, Point]]:
    """The lines of the surface in a face: one, or two that each cut a corner off, or none."""
    edges = list(zip(face, [*face[1:], face[0]], strict=True))
    crossed = [edge for edge in edges if (edge[0] in corners) != (edge[1] in corners)]
    if len(crossed) == 2:
        return [(_middle(crossed[0]), _middle(crossed[1]))]
    found = []
    for corner in (c for c in face if c in corners and crossed):
        a, b = (_middle(edge) for edge in crossed if corner in edge)
        found.append((a, b))
    return found


def _middle(edge: tuple[Corner, Corner]) -> Point:
    z, y, x = ((a + b) / 2 for a, b in zip(*edge, strict=True))
    return z, y, x


def _triangulations(outline: Sequence[Point]) -> Iterator[list[Triangle]]:
    """Yield every way to cut a closed line into triangles between its points."""
    if len(outline) < 3:
        yield []
        return
    first, last = outline[0], outline[-1]
    for n in range(1, len(outline) - 1):
        for before in _triangulations(outline[: n + 1]):
            for behind in _triangulations(outline[n:]):
                yield [*before, (first, outline[n], last), *behind]


def _area(triangles: Iterable[Triangle]) -> float:
    """Area of triangles, without the last digits, so that equal areas of mirror images tie."""
    return round(sum(float(np.linalg.norm(_vector(t))) for t in triangles), 9)


def _vector(triangle: Triangle) -> FloatArray:
    """Vector of area of a triangle: normal to it, as long as it is large."""
    a, b, c = np.array(triangle)
    return np.asarray(np.cross(b - a, c - a) / 2)


def within_share(distances: FloatArray, areas: FloatArray, share: float) -> float:
    """Return the smallest of `distances` within which that share of the area lies.

    `distances` and `areas` (m,) are those of a surface's cells, at least one.
    """
    order = np.argsort(distances, kind="stable")
    summed = np.cumsum(areas[order])
    # Sums of equal areas can miss a share in their last digit.
    reached = np.searchsorted(summed, share * summed[-1] * (1 - 1e-12))
    return float(distances[order[min(int(reached), len(order) - 1)]])
