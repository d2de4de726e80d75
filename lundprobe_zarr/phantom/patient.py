"""Write one synthetic patient, file by file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lundprobe_zarr.phantom import images, nifti
from lundprobe_zarr.phantom.anatomy import Anatomy, draw_anatomy, draw_habitus
from lundprobe_zarr.phantom.dose import Dose, plan_dose
from lundprobe_zarr.phantom.grids import Grid, PatientGrids, Size, Slices, plan_grids
from lundprobe_zarr.phantom.paint import fill
from lundprobe_zarr.phantom.readers import Reading, read_target
from lundprobe_zarr.phantom.sampling import Float32
from lundprobe_zarr.phantom.shapes import Ellipsoid, mesh
from lundprobe_zarr.vocabulary.files import FIDUCIAL_TEXT
from lundprobe_zarr.vocabulary.names import PARTS, STRUCTURES, TARGETS

Mask = npt.NDArray[np.bool_]

#: Radius (mm) of the spheres in the fiducial mask.
_SPHERE_MM = 3.0
#: 26-connectivity, with which the authors counted components.
_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class Case:
    """The specification of one patient: its id, part and irregularities."""

    seed: int
    part: str
    index: int
    size: Size
    lacks: tuple[str, ...] = ()
    bladder_gap: bool = False
    fiducials: int = 3

    @property
    def protocol(self) -> str:
        """`oldAcq` or `newAcq`: three to one in the base part, always `newAcq` in the extended."""
        return "newAcq" if self.part == "extended" or self.index % 4 == 1 else "oldAcq"

    @property
    def patient_id(self) -> str:
        """Protocol and 16 hexadecimal digits, a function of seed, part and index only."""
        digest = hashlib.sha256(f"{self.seed}/{self.part}/{self.index}".encode()).hexdigest()
        return f"{self.protocol}_{digest[:16]}"

    def rng(self, purpose: str) -> np.random.Generator:
        """Return a random generator for one purpose, independent of all other purposes."""
        word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:4], "big")
        return np.random.default_rng([self.seed, PARTS.index(self.part), self.index, word])


@dataclass(frozen=True)
class Record:
    """The contents of the side files about one patient."""

    patient_id: str
    grids: PatientGrids
    dose_gy: tuple[float, float]
    missing: tuple[str, ...]
    components: dict[str, int] = field(default_factory=dict)  # path below the patient -> count


class _Writer:
    """Writes one patient's files below `folder`, and counts each mask's components."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.folder = folder
        habitus = draw_habitus(case.rng("habitus"))
        self.anatomy: Anatomy = draw_anatomy(case.rng("anatomy"), habitus, case.size)
        self.grids = plan_grids(
            case.rng("grids"), case.size, case.protocol, case.index,
            habitus.prostate, habitus.centre,
        )  # fmt: skip
        self.components: dict[str, int] = {}

    def write(self) -> Record:
        """Write every file of the patient, and return what was made."""
        dose = plan_dose(self.case.rng("dose"), self.anatomy, self.grids.dose)
        self._images()
        self._doses(dose)
        for folder, grid in (("MR_StorT2", self.grids.mri), ("sCT", self.grids.sct)):
            for structure in STRUCTURES:
                if structure not in self.case.lacks:
                    self._clinical(f"{folder}/mask_{structure}.nii.gz", structure, grid)
        self._fiducials()
        if self.case.part == "extended":
            for target in TARGETS:
                self._extended(target)
        values = dose.values
        return Record(
            self.case.patient_id,
            self.grids,
            (float(values.min()), float(values.max())),
            self.case.lacks,
            {p: n for p, n in self.components.items() if n > 1},
        )

    def _images(self) -> None:
        mri, sct = self.grids.mri, self.grids.sct
        factor = 2 if self.case.size == "full" else 1
        slices = images.t2w_slices(self.case.rng("T2w"), self.anatomy, mri, factor)
        nifti.write(self.folder / "MR_StorT2/image.nii.gz", mri, slices, np.int16)
        old = self.case.protocol == "oldAcq"
        plain = images.sct_volume(self.case.rng("sCT"), self.anatomy, sct)
        shown = images.with_warning(plain) if old else plain
        dtype = np.float64 if self.case.index % 2 else np.float32
        nifti.write(self.folder / "sCT/image.nii.gz", sct, shown, dtype)
        registered = images.registered_slices(shown, sct, mri, wipe=old)
        nifti.write(self.folder / "sCT/image_reg2MRI.nii.gz", mri, registered, np.float64)

    def _doses(self, dose: Dose) -> None:
        mri, sct = self.grids.mri, self.grids.sct
        nifti.write(self.folder / "sCT/dose_original.nii.gz", dose.grid, dose.values, np.float32)
        nifti.write(self.folder / "sCT/dose_interpolated.nii.gz", sct, dose.on(sct), np.float32)
        path = self.folder / "MR_StorT2/dose_interpolated.nii.gz"
        nifti.write(path, mri, dose.on(mri), np.float32)

    def _clinical(self, path: str, structure: str, grid: Grid) -> None:
        solid = self.anatomy.structure(structure)
        if solid is None:
            slices = (plane <= 0 for plane in self.anatomy.body.slices(grid.axes))
            nifti.write(self.folder / path, grid, slices, np.uint8)
            return
        window = grid.crop(solid.box)
        z, y, x = (a[s] for a, s in zip(grid.axes, window, strict=True))
        inside = solid.distance(mesh((z, y, x))) <= 0
        if structure == "Bladder" and self.case.bladder_gap:
            filled = np.flatnonzero(inside.any(axis=(1, 2)))
            inside[filled[-2]] = False  # a missing contour on the last slice but one
        self._mask(path, grid, window, inside)

    def _mask(self, path: str, grid: Grid, window: Slices, inside: Mask) -> None:
        out = np.zeros(grid.shape, dtype=np.uint8)
        out[window] = inside
        self.components[path] = int(ndimage.label(inside, _NEIGHBOURS)[1])
        nifti.write(self.folder / path, grid, out, np.uint8)

    def _fiducials(self) -> None:
        grid, points = self.grids.mri, self.anatomy.fiducials[: self.case.fiducials]
        spheres = np.zeros(grid.shape, dtype=np.float32)
        for point in points:
            fill(spheres, grid, Ellipsoid(point, (_SPHERE_MM,) * 3), 1.0)
        path = self.folder / "MR_StorT2/mask_MRI_T2_coords_fiducials.nii.gz"
        nifti.write(path, grid, spheres, np.float32, "other")
        lines = [",".join(f"{c:.4f}" for c in point) + "\n" for point in points]
        (self.folder / FIDUCIAL_TEXT).write_text("".join(lines), encoding="utf-8")

    def _extended(self, target: str) -> None:
        organ = self.anatomy.ctv if target == "CTVT_427" else self.anatomy.rectum
        reading = read_target(self.case.rng(f"readers of {target}"), organ, self.grids.mri)
        grid, stem = self.grids.mri, f"MR_StorT2/nnUNetOutput/mask_{target}_nnUNet"
        self._mask(f"{stem}.nii.gz", grid, reading.window, reading.ensemble)
        self._uncertainty(f"{stem}_uncertaintyMap.nii.gz", reading)
        folds = f"MR_StorT2/nnUNetOutput/folds/mask_{target}_nnUNet_fold"
        for number, fold in enumerate(reading.folds):
            self._mask(f"{folds}_{number}.nii.gz", grid, reading.window, fold)
        for (step, observer), mask in reading.observers.items():
            path = f"MR_StorT2/observerData/mask_{target}_step{step}_{observer}.nii.gz"
            self._mask(path, grid, reading.window, mask)

    def _uncertainty(self, path: str, reading: Reading) -> None:
        out: Float32 = np.zeros(self.grids.mri.shape, dtype=np.float32)
        out[reading.window] = reading.uncertainty
        nifti.write(self.folder / path, self.grids.mri, out, np.float32, "nibabel")


def write_patient(case: Case, root: Path) -> Record:
    """Write one patient below `root` (`basePart/<id>/` or `extendedPart/<id>/`)."""
    folder = root / f"{case.part}Part" / case.patient_id
    for name in ("MR_StorT2", "sCT"):
        (folder / name).mkdir(parents=True)
    return _Writer(case, folder).write()
