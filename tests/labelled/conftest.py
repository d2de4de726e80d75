"""Labelled volumes whose every voxel is known, an oblique dataset, and a ban on reading voxels."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from labelled_volumes import aligned_affine, oblique_affine, volume, voxels_of
from scipy.spatial.transform import Rotation

import lundprobe_zarr as lp
import lundprobe_zarr.labelled.accessor
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.storage.location import Location, Range

#: Files on the MRI grid, below a patient's folder.
MRI = ("MR_StorT2/*.nii.gz", "MR_StorT2/*/*.nii.gz", "sCT/image_reg2MRI.nii.gz")


@pytest.fixture
def aligned() -> xr.Dataset:
    return volume(aligned_affine())


@pytest.fixture
def oblique() -> xr.Dataset:
    return volume(oblique_affine())


@pytest.fixture(params=["aligned", "oblique"])
def either(request: pytest.FixtureRequest) -> xr.Dataset:
    """On a grid along the patient's axes, or on one askew."""
    return volume(aligned_affine() if request.param == "aligned" else oblique_affine())


@pytest.fixture(scope="session")
def cohort(dataset: Path) -> lp.Cohort:
    return lp.open_cohort(dataset)


@pytest.fixture
def fresh_cohort(dataset: Path) -> lp.Cohort:
    """One that has read no table but what opening reads."""
    return lp.open_cohort(dataset)


@pytest.fixture(scope="session")
def extended(cohort: lp.Cohort) -> lp.Patient:
    return cohort.where("part = 'extended'")[0]


@pytest.fixture(scope="session")
def lacking(cohort: lp.Cohort) -> lp.Patient:
    """A patient without a penile bulb."""
    return cohort.where("missing_PenileBulb")[0]


@pytest.fixture(scope="session")
def oblique_source(phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source tree of one patient, lying askew in the MR scanner."""
    patient = sorted(p for p in (phantom_source / "basePart").iterdir() if p.is_dir())[0]
    home = tmp_path_factory.mktemp("oblique") / "source"
    folder = home / "basePart" / patient.name
    shutil.copytree(patient, folder)
    for file in (f for pattern in MRI for f in folder.glob(pattern)):
        image = nib.Nifti1Image.from_filename(file)
        turned = image.affine.copy()
        turned[:3, :3] = Rotation.from_euler("x", 0.2).as_matrix() @ turned[:3, :3]
        moved = nib.Nifti1Image(np.asanyarray(image.dataobj), turned)
        moved.set_qform(turned, 1)
        moved.set_sform(turned, 1)
        moved.to_filename(file)
    return home


@pytest.fixture(scope="session")
def askew(oblique_source: Path) -> lp.Patient:
    """The patient of `oblique_source`, converted."""
    out = oblique_source.with_name("dataset")
    for patient in take_inventory(oblique_source).patients:
        result = convert_patient(patient, out, "standard")
        assert result.status == "converted", result.error
    finalise(out)
    return lp.open_cohort(out)[0]


def _refuse_to_compute(*args: object, **options: object) -> Any:
    raise AssertionError("dask was asked to compute")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the objects read, as they are read."""
    seen: list[str] = []
    read, read_ranges = Location.read, Location.read_ranges

    def watched(self: Location, relative: str, *size: int) -> bytes:
        seen.append(relative)
        return read(self, relative, *size)

    def watched_ranges(self: Location, ranges: list[Range]) -> list[bytes]:
        seen.extend(r.name for r in ranges)
        return read_ranges(self, ranges)

    monkeypatch.setattr(Location, "read", watched)
    monkeypatch.setattr(Location, "read_ranges", watched_ranges)
    return seen


@pytest.fixture
def no_voxels(requests: list[str]) -> Callable[[], Any]:
    """A context in which any dask compute fails, and after which no chunk may have been read."""

    @contextmanager
    def context() -> Iterator[None]:
        before = len(voxels_of(requests))
        with dask.config.set(scheduler=_refuse_to_compute):
            yield
        assert voxels_of(requests)[before:] == []

    return context
