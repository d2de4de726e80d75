"""T2-weighted signal and synthetic-CT numbers of an anatomy, on any lattice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.phantom.anatomy import Anatomy
from lundprobe_zarr.phantom.grids import Grid
from lundprobe_zarr.phantom.sampling import Array, Float32
from lundprobe_zarr.phantom.shapes import Ellipsoid, Shell, Solid, grown, mesh
from lundprobe_zarr.vocabulary.names import AIR_HU

Modality = Literal["T2w", "sCT"]


@dataclass(frozen=True)
class Tissue:
    """Signal (arbitrary), CT number (HU), and how strongly each is mottled."""

    t2: float
    hu: float
    t2_mottle: float = 0.06
    hu_mottle: float = 8.0

    def value(self, modality: Modality) -> float:
        """T2w signal or CT number."""
        return self.t2 if modality == "T2w" else self.hu

    def mottle(self, modality: Modality) -> float:
        """Standard deviation of its texture, in the unit of `value`."""
        return self.t2 * self.t2_mottle if modality == "T2w" else self.hu_mottle


FAT = Tissue(900, -105)
SKIN = Tissue(420, 10)
MUSCLE = Tissue(260, 52)
BOWEL = Tissue(430, 30, 0.25, 14)
CORTEX = Tissue(70, 820, 0.05, 70)
MARROW = Tissue(640, 190, 0.10, 40)
CARTILAGE = Tissue(380, 90)
RECTAL_WALL = Tissue(400, 38)
STOOL = Tissue(560, 22, 0.30, 16)
GAS = Tissue(15, AIR_HU, 0.0, 0.0)
BLADDER_WALL = Tissue(330, 36)
URINE = Tissue(1550, 4, 0.015, 3)
CAPSULE = Tissue(300, 36)
PERIPHERAL_ZONE = Tissue(1000, 40, 0.09, 4)
TRANSITION_ZONE = Tissue(560, 44, 0.24, 5)
VESICLE = Tissue(1180, 28, 0.22, 5)
URETHRA = Tissue(760, 32)
BULB = Tissue(1150, 46, 0.08, 4)
PENIS = Tissue(860, 40, 0.10, 6)
TESTIS = Tissue(1280, 30, 0.04, 4)
VESSEL = Tissue(90, 44, 0.1, 4)
MARKER = Tissue(1500, 3050, 0.0, 0.0)
SEED = Tissue(8, 140, 0.0, 0.0)
_CORTEX_MM = 3.2
#: Radius of a seed's signal void, mm.
_VOID_MM = 1.7


def _layers(anatomy: Anatomy) -> Iterator[tuple[Solid, Tissue]]:
    """Yield what is painted inside the muscle, in order: later layers cover earlier ones."""
    yield from ((s, FAT) for s in anatomy.cavity_fat)
    yield from ((s, MUSCLE) for s in anatomy.pelvic_muscles)
    yield from ((s, VESSEL) for s in anatomy.vessels)
    yield anatomy.genitalia, PENIS
    yield anatomy.testes, TESTIS
    for bone in anatomy.bones:
        yield Shell(bone, 1.2), CARTILAGE
        yield bone, CORTEX
        yield Shell(bone, -_CORTEX_MM), MARROW
    yield from (
        (Shell(anatomy.bladder, 3.5), BLADDER_WALL),
        (anatomy.bladder, URINE),
        (anatomy.rectum, RECTAL_WALL),
        (anatomy.lumen, STOOL),
        (anatomy.seminal_vesicles, VESICLE),
        (Shell(anatomy.ctv, 1.4), CAPSULE),
        (anatomy.ctv, PERIPHERAL_ZONE),
        (anatomy.transition_zone, TRANSITION_ZONE),
        (anatomy.urethra, URETHRA),
        (anatomy.penile_bulb, BULB),
        (anatomy.gas, GAS),
    )


def paint(anatomy: Anatomy, grid: Grid, modality: Modality) -> Float32:
    """Noise-free image (z, y, x), float32, arbitrary units (`T2w`) or HU (`sCT`)."""
    out = _body(anatomy, grid, modality)
    edge = 0.7 * min(grid.spacing)
    for solid, tissue in _layers(anatomy):
        _lay(out, anatomy, grid, solid, tissue, modality, edge)
    _trim(out, anatomy, grid, modality)
    _details(out, anatomy, grid, modality)
    return out


def _body(anatomy: Anatomy, grid: Grid, modality: Modality) -> Float32:
    """Skin, subcutaneous fat and streaky muscle, slice by slice; outside, skin goes on."""
    out = np.empty(grid.shape, dtype=np.float32)
    axes = grid.axes
    edge = np.float32(1 / max(1.2, 0.7 * grid.spacing[0]))
    skin, fat, muscle = (np.float32(t.value(modality)) for t in (SKIN, FAT, MUSCLE))
    parts = zip(
        *(f.slices(axes) for f in (anatomy.body, anatomy.fat_thickness, anatomy.streaks,
                                   anatomy.mottle)),
        strict=True,
    )  # fmt: skip
    for k, (body, thick, streak, mottle) in enumerate(parts):
        plane = np.where(body < -2, fat, skin)
        fascia = body + np.float32(19) + np.float32(5) * thick
        inside = np.clip(np.float32(0.5) - fascia * edge, 0, 1)
        lean = 1 - np.float32(0.75) * np.exp(-((streak / np.float32(0.09)) ** 2))
        plane += inside * lean * (muscle - plane)
        strength = FAT.mottle(modality), MUSCLE.mottle(modality)
        plane += mottle * (np.float32(strength[0]) + inside * np.float32(strength[1] - strength[0]))
        out[k] = plane
    return out


def _trim(out: Float32, anatomy: Anatomy, grid: Grid, modality: Modality) -> None:
    """Set what lies outside the skin to air, exactly so in the synthetic CT."""
    edge = np.float32(1 / max(1.2, 0.7 * grid.spacing[0]))
    for plane, body in zip(out, anatomy.body.slices(grid.axes), strict=True):
        if modality == "sCT":
            plane[body > 0] = AIR_HU
        else:
            plane *= np.clip(np.float32(0.5) - body * edge, 0, 1)


def _lay(
    out: Float32,
    anatomy: Anatomy,
    grid: Grid,
    solid: Solid,
    tissue: Tissue,
    modality: Modality,
    edge: float,
) -> None:
    """Paint one solid with one tissue, antialiased over `edge` mm except where it is air."""
    window = grid.crop(grown(solid.box, 2.0))
    region = out[window]
    if not region.size:
        return
    z, y, x = (a[s] for a, s in zip(grid.axes, window, strict=True))
    distance = solid.distance(mesh((z, y, x)))
    sharp = modality == "sCT" and tissue is GAS
    width = np.float32(1e-6 if sharp else edge)
    weight = np.clip(np.float32(0.5) - distance / width, 0, 1)
    value: Array = np.full(region.shape, tissue.value(modality), dtype=np.float32)
    if tissue.mottle(modality):
        value += np.float32(tissue.mottle(modality)) * anatomy.mottle.on((z, y, x))
    region += weight * (value - region)


def _details(out: Float32, anatomy: Anatomy, grid: Grid, modality: Modality) -> None:
    """Seeds and skin markers: smaller than a voxel on coarse lattices, but always seen."""
    small: list[tuple[Solid, Tissue]] = [
        (Ellipsoid(p, (_VOID_MM, _VOID_MM, _VOID_MM)), SEED) for p in anatomy.fiducials
    ]
    small += [(s, MARKER) for s in anatomy.skin_markers]
    for solid, tissue in small:
        fill(out, grid, solid, tissue.value(modality))


def fill(out: npt.NDArray[np.generic], grid: Grid, solid: Solid, value: float) -> None:
    """Set the voxels centred in `solid`, and the one nearest to its middle, to `value`."""
    window = grid.crop(solid.box)
    if out[window].size:
        z, y, x = (a[s] for a, s in zip(grid.axes, window, strict=True))
        out[window][solid.distance(mesh((z, y, x))) <= 0] = value
    low, high = solid.box
    nearest = []
    for axis, lo, hi in zip(grid.axes, low[::-1], high[::-1], strict=True):
        nearest.append(int(np.argmin(np.abs(axis - (lo + hi) / 2))))
    out[tuple(nearest)] = value
