"""T2-weighted signal and synthetic-CT numbers of an anatomy, on any lattice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.phantom.anatomy import Anatomy
from lundprobe_zarr.phantom.grids import Grid
from lundprobe_zarr.phantom.sampling import Float32
from lundprobe_zarr.phantom.shapes import Ellipsoid, Shell, Solid, grown, mesh
from lundprobe_zarr.vocabulary.names import AIR_HU

Modality = Literal["T2w", "sCT"]


@dataclass(frozen=True)
class Tissue:
    """T2w signal (arbitrary), CT number (HU), and the strength of the texture of each."""

    t2: float
    hu: float
    t2_mottle: float = 0.06
    hu_mottle: float = 8.0

    def value(self, modality: Modality) -> float:
        """Return the T2w signal or the CT number."""
        return self.t2 if modality == "T2w" else self.hu

    def mottle(self, modality: Modality) -> float:
        """Return the standard deviation of the texture, in the unit of `value`."""
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
    """Yield the solids inside the muscle, in order: later layers cover earlier ones."""
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
    """Return a noise-free image (z, y, x), float32, arbitrary units (`T2w`) or HU (`sCT`)."""
    canvas = _Canvas(anatomy, grid, modality)
    canvas.flesh()
    for solid, tissue in _layers(anatomy):
        canvas.lay(solid, tissue)
    canvas.trim()
    canvas.details()
    return canvas.out


class _Canvas:
    """An unfinished image: `out` (z, y, x) float32, and its texture `mottle`."""

    def __init__(self, anatomy: Anatomy, grid: Grid, modality: Modality) -> None:
        self.anatomy = anatomy
        self.grid = grid
        self.modality: Modality = modality
        self.out: Float32 = np.empty(grid.shape, dtype=np.float32)
        self.mottle = anatomy.mottle.on(grid.axes)
        #: Width (mm) of the transition between tissues, and at the skin.
        self.edge = np.float32(0.7 * min(grid.spacing))
        self.skin_edge = np.float32(max(1.2, 0.7 * grid.spacing[0]))

    def flesh(self) -> None:
        """Paint skin, subcutaneous fat and muscle, slice by slice; outside, skin continues."""
        axes, modality = self.grid.axes, self.modality
        skin, fat, muscle = (np.float32(t.value(modality)) for t in (SKIN, FAT, MUSCLE))
        rough, fine = (np.float32(t.mottle(modality)) for t in (FAT, MUSCLE))
        fields = (self.anatomy.body, self.anatomy.fat_thickness, self.anatomy.streaks)
        parts = zip(*(f.slices(axes) for f in fields), strict=True)
        for k, (body, thick, streak) in enumerate(parts):
            plane = np.where(body < -2, fat, skin)
            fascia = body + np.float32(19) + np.float32(5) * thick
            inside = np.clip(np.float32(0.5) - fascia / self.skin_edge, 0, 1)
            lean = 1 - np.float32(0.75) * np.exp(-((streak / np.float32(0.09)) ** 2))
            plane += inside * lean * (muscle - plane)
            plane += self.mottle[k] * (rough + inside * (fine - rough))
            self.out[k] = plane

    def lay(self, solid: Solid, tissue: Tissue) -> None:
        """Paint one solid with one tissue; edges are blended except for gas on CT."""
        window = self.grid.crop(grown(solid.box, 2.0))
        region = self.out[window]
        if not region.size:
            return
        z, y, x = (a[s] for a, s in zip(self.grid.axes, window, strict=True))
        distance = solid.distance(mesh((z, y, x)))
        sharp = self.modality == "sCT" and tissue is GAS
        weight = np.clip(
            np.float32(0.5) - distance / (np.float32(1e-6) if sharp else self.edge), 0, 1
        )
        texture = np.float32(tissue.mottle(self.modality)) * self.mottle[window]
        region += weight * (np.float32(tissue.value(self.modality)) + texture - region)

    def trim(self) -> None:
        """Set voxels outside the skin to air; exactly in the synthetic CT."""
        for plane, body in zip(self.out, self.anatomy.body.slices(self.grid.axes), strict=True):
            if self.modality == "sCT":
                plane[body > 0] = AIR_HU
            else:
                plane *= np.clip(np.float32(0.5) - body / self.skin_edge, 0, 1)

    def details(self) -> None:
        """Paint seeds and skin markers. Each takes at least one voxel, even on coarse lattices."""
        small: list[tuple[Solid, Tissue]] = [
            (Ellipsoid(p, (_VOID_MM, _VOID_MM, _VOID_MM)), SEED) for p in self.anatomy.fiducials
        ]
        small += [(s, MARKER) for s in self.anatomy.skin_markers]
        for solid, tissue in small:
            fill(self.out, self.grid, solid, tissue.value(self.modality))


def fill(out: npt.NDArray[np.generic], grid: Grid, solid: Solid, value: float) -> None:
    """Set voxels with their centre in `solid`, and the voxel nearest its middle, to `value`."""
    window = grid.crop(solid.box)
    if out[window].size:
        z, y, x = (a[s] for a, s in zip(grid.axes, window, strict=True))
        out[window][solid.distance(mesh((z, y, x))) <= 0] = value
    low, high = solid.box
    nearest = []
    for axis, lo, hi in zip(grid.axes, low[::-1], high[::-1], strict=True):
        nearest.append(int(np.argmin(np.abs(axis - (lo + hi) / 2))))
    out[tuple(nearest)] = value
