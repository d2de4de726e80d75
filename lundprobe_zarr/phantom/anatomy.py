"""A synthetic male pelvis made of solids, mm, LPS (+x left, +y posterior, +z superior).

It is asymmetric: left and right differ in size, height and position, the prostate is off the
midline and the rectum bends. An image flipped along any axis is therefore a different image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lundprobe_zarr.phantom.grids import Size
from lundprobe_zarr.phantom.sampling import Field, Float32, noise_field, regular_axes
from lundprobe_zarr.phantom.shapes import (
    Capsule,
    Ellipsoid,
    Mesh,
    Point,
    Sampled,
    Shell,
    Solid,
    Union,
    mesh,
    smooth_minimum,
    tabulate,
)
from lundprobe_zarr.vocabulary.names import PTV_MARGIN_MM

#: Steps (mm) at which organs' distances and the textures are tabulated: (organs, texture).
_STEPS: dict[Size, tuple[float, float]] = {
    "tiny": (2.0, 9.0),
    "small": (1.5, 4.0),
    "full": (1.0, 3.0),
}
#: Half-extent (x, y, z), mm, around the prostate, of fields that cover the whole body.
_REACH = (250.0, 250.0, 150.0)


@dataclass(frozen=True)
class Anatomy:
    """All solids and fields of one patient that are painted, contoured or irradiated."""

    prostate: Point
    ctv: Sampled
    ptv: Solid
    rectum: Sampled
    lumen: Solid
    gas: Solid
    bladder: Solid
    penile_bulb: Solid
    genitalia: Solid
    testes: Solid
    femoral_heads: tuple[Solid, Solid]  # left, right
    bones: tuple[Solid, ...]
    transition_zone: Solid
    seminal_vesicles: Solid
    urethra: Solid
    cavity_fat: tuple[Solid, ...]
    pelvic_muscles: tuple[Solid, ...]
    vessels: tuple[Solid, ...]
    fiducials: tuple[Point, ...]
    skin_markers: tuple[Solid, ...]
    body: Field
    fat_thickness: Field
    streaks: Field
    mottle: Field

    def structure(self, label: str) -> Solid | None:
        """Return the solid of a clinical structure; None for BODY, which is the field `body`."""
        return {
            "CTVT_427": self.ctv,
            "PTVT_427": self.ptv,
            "Rectum": self.rectum,
            "Bladder": self.bladder,
            "PenileBulb": self.penile_bulb,
            "Genitalia": self.genitalia,
            "FemoralHead_L": self.femoral_heads[0],
            "FemoralHead_R": self.femoral_heads[1],
        }.get(label)


class _Place:
    """Makes solids from millimetres relative to the prostate's centre."""

    def __init__(self, origin: Point) -> None:
        self.origin = origin

    def at(self, x: float, y: float, z: float) -> Point:
        """Return a point, mm, from its position relative to the centre."""
        return x + self.origin[0], y + self.origin[1], z + self.origin[2]

    def egg(self, centre: Point, radii: Point) -> Ellipsoid:
        """Return an ellipsoid."""
        return Ellipsoid(self.at(*centre), radii)

    def rod(self, start: Point, end: Point, r0: float, r1: float | None = None) -> Capsule:
        """Return a rod with round ends, of radius `r0` at its start and `r1` at its end."""
        return Capsule(self.at(*start), self.at(*end), r0, r0 if r1 is None else r1)


@dataclass(frozen=True)
class Habitus:
    """A patient's position and size."""

    prostate: Point
    width: float
    depth: float

    @property
    def centre(self) -> tuple[float, float]:
        """Middle (x, y) of the trunk, mm, LPS. The prostate is not at the middle."""
        return self.prostate[0] - 3.5, self.prostate[1] + 4.0


def draw_habitus(rng: np.random.Generator) -> Habitus:
    """Sample a patient's position in the scanner and his size."""
    x, y, z = rng.uniform((-9.0, -22.0, -45.0), (9.0, 12.0, 45.0))
    return Habitus((float(x), float(y), float(z)), rng.uniform(160, 178), rng.uniform(98, 110))


def draw_anatomy(rng: np.random.Generator, habitus: Habitus, size: Size) -> Anatomy:
    """Sample one patient's organs; `size` sets only the resolution of their tables."""
    place, step, texture = _Place(habitus.prostate), *_STEPS[size]
    low, high = (np.array(habitus.prostate) + s * np.array(_REACH) for s in (-1, 1))
    big = rng.uniform(0.92, 1.1)
    ctv = tabulate(_prostate(place, big), step, 24.0)
    rectum, lumen, gas = _rectum(place, rng)
    heads, bones = _bones(place, rng)
    genitalia, testes = _genitalia(place, rng)
    body = _body(place, habitus, genitalia)
    swell = rng.uniform(0.85, 1.12)
    return Anatomy(
        prostate=habitus.prostate,
        ctv=ctv,
        ptv=Shell(ctv, PTV_MARGIN_MM),
        rectum=tabulate(rectum, step, 16.0),
        lumen=lumen,
        gas=gas,
        bladder=_bladder(place, swell),
        penile_bulb=_bulb(place),
        genitalia=genitalia,
        testes=testes,
        femoral_heads=heads,
        bones=bones,
        transition_zone=place.egg((2.0 * big, -5.0, 4.0), (15 * big, 11 * big, 15 * big)),
        seminal_vesicles=_seminal_vesicles(place),
        urethra=place.rod((0, -3, 24), (0.5, -6, -36), 2.4),
        cavity_fat=_cavity_fat(place),
        pelvic_muscles=_pelvic_muscles(place),
        vessels=_vessels(place),
        fiducials=_fiducials(place, rng),
        skin_markers=_skin_markers(body, habitus),
        body=body,
        fat_thickness=noise_field(rng, low, high, 60.0, 1.0),
        streaks=noise_field(rng, low, high, 9.0, 1.2),
        mottle=noise_field(rng, low, high, texture, 0.8),
    )


def _prostate(place: _Place, big: float) -> Solid:
    gland = place.egg((0, 0, 0), (25 * big, 18 * big, 22 * big))
    lobe = place.egg((9 * big, 4, 3), (17 * big, 14 * big, 16 * big))
    apex = place.egg((-1, -2, -17 * big), (11 * big, 10 * big, 10 * big))
    base = place.egg((-5, 13, 20 * big), (17, 6.5, 9))
    return Union((gland, lobe, apex, base), 7.0)


def _seminal_vesicles(place: _Place) -> Solid:
    left = place.rod((4, 15, 25), (29, 21, 36), 5.5, 4.0)
    right = place.rod((-6, 15, 24), (-25, 19, 31), 5.0, 3.2)
    return Union((left, right), 4.0)


def _rectum(place: _Place, rng: np.random.Generator) -> tuple[Solid, Solid, Solid]:
    bend = rng.uniform(4.0, 10.0)
    line: list[Point] = [
        (-1, 36, -44), (1, 38, -26), (3, 36.5, -8), (1, 38, 12),
        (-bend, 42, 30), (-bend - 6, 47, 48), (bend - 2, 48, 66), (2 * bend, 43, 82),
    ]  # fmt: skip
    radii = np.array([9.0, 12.0, 15.0, 16.5, 17.5, 17.0, 15.0, 13.0]) * rng.uniform(0.95, 1.05)

    def tube(less: float, first: int) -> Solid:
        parts = [
            place.rod(line[i], line[i + 1], radii[i] - less, radii[i + 1] - less)
            for i in range(first, len(line) - 1)
        ]
        return Union(parts, 3.0)

    gas = Union(
        (place.egg((2, 31, 10), (8, 6, 15)), place.egg((-bend - 3, 41, 44), (9, 6, 9))), 2.0
    )
    return tube(0.0, 0), tube(3.6, 1), gas


def _bladder(place: _Place, swell: float) -> Solid:
    low = place.egg((-2, -24, 45), (34 * swell, 26, 24))
    dome = place.egg((-9, -32, 57), (27 * swell, 22, 22))
    return Union((low, dome), 10.0)


def _bulb(place: _Place) -> Solid:
    return Union((place.egg((0.5, 9, -42), (11, 9, 13)), place.egg((1, -1, -48), (8, 9, 8))), 5.0)


def _genitalia(place: _Place, rng: np.random.Generator) -> tuple[Solid, Solid]:
    shaft = place.rod((1, -72, -38), (12, -108, -72), 15.0, 14.0)
    scrotum = place.egg((3, -84, -78), (36, 28, 30))
    root = place.rod((0, -52, -40), (1, -76, -46), 14.0, 16.0)
    left = place.egg((19, -88, -rng.uniform(82, 86)), (13, 14, 20))
    right = place.egg((-15, -84, -rng.uniform(72, 76)), (12, 13, 17))
    return Union((shaft, scrotum, root), 10.0), Union((left, right), 0.0)


def _femur(place: _Place, side: int, r: float, x: float, y: float, z: float) -> list[Solid]:
    head = place.egg((side * x, y, z), (r, r, r))
    neck = place.rod((side * x, y, z), (side * (x + 40), y + 9, z - 25), r * 0.62, r * 0.7)
    trochanter = place.egg((side * (x + 44), y + 14, z - 20), (r * 0.72, r * 0.85, r * 1.05))
    shaft = place.rod(
        (side * (x + 42), y + 9, z - 30), (side * (x + 26), y + 4, z - 170), r * 0.72, r * 0.6
    )
    return [head, neck, trochanter, shaft]


def _bones(
    place: _Place, rng: np.random.Generator
) -> tuple[tuple[Solid, Solid], tuple[Solid, ...]]:
    shift = rng.uniform(-2.0, 2.0)
    left = _femur(place, 1, 25.5, 90.0 + shift, -6.0, 21.0)
    right = _femur(place, -1, 22.5, 86.0 + shift, 1.0, 11.0)
    heads = (
        Union((left[0], _short(place, 1, 90.0 + shift, -6, 21)), 6.0),
        Union((right[0], _short(place, -1, 86.0 + shift, 1, 11)), 6.0),
    )
    solids: list[Solid] = [*_hip(place, 1, 3.0), *_hip(place, -1, -3.0), *_sacrum(place)]
    return heads, (*solids, Union(left, 8.0), Union(right, 8.0))


def _short(place: _Place, side: int, x: float, y: float, z: float) -> Solid:
    return place.rod((side * x, y, z), (side * (x + 17), y + 4, z - 11), 16.0, 14.5)


def _hip(place: _Place, side: int, lift: float) -> list[Solid]:
    column = Union(
        (
            place.rod((side * 88, 42, 62 + lift), (side * 103, 8, 120 + lift), 13, 9),
            place.rod((side * 84, 40, 45 + lift), (side * 66, 34, 10 + lift), 14, 9),
            place.rod((side * 88, 36, 66 + lift), (side * 92, -24, 64 + lift), 11, 9),
            place.rod((side * 96, 26, 92 + lift), (side * 112, -34, 104 + lift), 9, 7),
        ),
        14.0,
    )
    inner_wall = place.rod((side * 62, -10, 34 + lift), (side * 59, 22, 4 + lift), 5.5, 8)
    roof = place.egg((side * 86, 4, 54 + lift), (30, 27, 15))
    ischium = place.rod((side * 64, 32, 8 + lift), (side * 56, 40, -46 + lift), 10, 13)
    upper_ramus = place.rod((side * 62, -22, 26 + lift), (side * 10, -52, -2 + lift), 11, 10)
    lower_ramus = place.rod((side * 11, -50, -10 + lift), (side * 52, 26, -52 + lift), 8, 7)
    return [column, inner_wall, roof, ischium, Union((upper_ramus, lower_ramus), 5.0)]


def _sacrum(place: _Place) -> list[Solid]:
    bone = Union(
        (
            place.egg((2, 74, 112), (50, 15, 34)),
            place.rod((2, 77, 90), (0, 76, 50), 12, 7),
            place.rod((0, 76, 50), (-3, 66, 24), 6, 4),
        ),
        10.0,
    )
    return [bone]


def _cavity_fat(place: _Place) -> tuple[Solid, ...]:
    cavity = place.egg((0, 8, 42), (47, 60, 76))
    upper = place.egg((-4, -12, 98), (86, 66, 60))
    fossa_left = place.egg((33, 52, -26), (21, 27, 34))
    fossa_right = place.egg((-31, 55, -22), (20, 25, 31))
    groin_left = place.egg((62, -68, -10), (27, 20, 56))
    groin_right = place.egg((-58, -70, -14), (25, 19, 52))
    return cavity, upper, fossa_left, fossa_right, groin_left, groin_right


def _pelvic_muscles(place: _Place) -> tuple[Solid, ...]:
    obturators = [
        place.rod((s * 51, -26, 20 + s * 2), (s * 46, 26, -6 + s * 2), 6.5, 8.0) for s in (1, -1)
    ]
    levators = [place.rod((s * 34, -4, 4 + s), (s * 17, 34, -30), 4.2, 5.0) for s in (1, -1)]
    psoas = [
        place.rod((s * 58, -14, 120), (s * 84, -40, 30 + 2 * s), 23 + s, 14 + s) for s in (1, -1)
    ]
    thighs = [place.rod((s * 62, -58, 10), (s * 60, -72, -60), 11 + s, 13 + s) for s in (1, -1)]
    return (*obturators, *levators, *psoas, *thighs)


def _vessels(place: _Place) -> tuple[Solid, ...]:
    return (
        place.rod((60, -46, 110), (66, -72, -110), 5.0),
        place.rod((-58, -44, 110), (-63, -70, -110), 5.6),
        place.rod((47, -34, 110), (55, -66, -110), 6.4),
        place.rod((-46, -32, 110), (-52, -64, -110), 6.0),
    )


def _fiducials(place: _Place, rng: np.random.Generator) -> tuple[Point, ...]:
    nominal = np.array([(13.0, 1.0, 11.0), (-12.0, -4.0, 0.0), (3.0, 7.0, -12.0)])
    x, y, z = (nominal + rng.uniform(-1.5, 1.5, (3, 3))).T
    return tuple(place.at(float(a), float(b), float(c)) for a, b, c in zip(x, y, z, strict=True))


def _body(place: _Place, habitus: Habitus, genitalia: Solid) -> Field:
    """Return the signed distance to the skin, on a 4 mm lattice."""
    low, high = (np.array(habitus.prostate) + s * np.array(_REACH) for s in (-1, 1))
    axes = regular_axes(low, high, 4.0)
    points = mesh(axes)
    trunk = _trunk(place, habitus, points)
    legs = [
        place.rod((86, 2, -40), (80, 4, -260), 80, 70),
        place.rod((-91, 4, -40), (-85, 9, -260), 82, 73),
    ]
    for part in legs:
        trunk = smooth_minimum(trunk, part.distance(points), 16.0)
    cleft = place.egg((2, 112, 0), (4.5, 26, 62)).distance(points)
    trunk = -smooth_minimum(-trunk, cleft, 6.0)
    trunk = smooth_minimum(trunk, genitalia.distance(points) - np.float32(3.0), 8.0)
    return Field(axes, np.ascontiguousarray(trunk))


def _trunk(place: _Place, habitus: Habitus, points: Mesh) -> Float32:
    z, y, x = (p - np.float32(c) for p, c in zip(points, place.origin[::-1], strict=True))
    height = z / np.float32(100)
    half_width = np.float32(habitus.width) * (1 - np.float32(0.05) * (height + 0.15) ** 2)
    half_depth = np.float32(habitus.depth) * (1 + np.float32(0.05) * height)
    u = np.abs((x + np.float32(3.5) - 3 * height) / half_width)
    # In supine position the back is flatter than the belly.
    v = np.abs((y - np.float32(4)) / np.where(y > 4, half_depth * np.float32(0.98), half_depth))
    level = (u ** np.float32(2.5) + v ** np.float32(2.5)) ** np.float32(0.4)
    skin = (level - 1) * half_depth * np.float32(1.1)
    out: Float32 = np.maximum(skin, np.float32(-1.3) * (z + np.float32(66)))
    return out


def _skin_markers(body: Field, habitus: Habitus) -> tuple[Solid, ...]:
    """Return metal set-up markers on the skin: anterior, left, and slightly higher on the right."""
    x0, y0, z0 = habitus.prostate
    _, y, x = body.axes
    rays = [
        (np.array([x0 + 6]), y, np.array([z0 + 4]), 1, -1),
        (x, np.array([y0 - 4]), np.array([z0 + 4]), 2, 1),
        (x, np.array([y0 - 9]), np.array([z0 + 12]), 2, -1),
    ]
    markers: list[Solid] = []
    for rx, ry, rz, axis, sign in rays:
        target = (rz, ry, rx)
        inside = np.flatnonzero(body.on(target).ravel() < 0)
        edge = target[axis][inside[-1 if sign > 0 else 0]] + sign * 4.0
        centre = [float(c[0]) for c in target]
        centre[axis] = float(edge)
        markers.append(Ellipsoid((centre[2], centre[1], centre[0]), (2.6, 2.6, 3.2)))
    return tuple(markers)
