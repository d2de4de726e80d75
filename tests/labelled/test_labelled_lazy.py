"""That nothing but asking for values reads voxels, and how the accessor comes to be there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import dask
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import MissingStructureError, UnknownLabelError, UsageError


def test_opening_selecting_slicing_and_showing_read_no_voxel(
    fresh_cohort: lp.Cohort, no_voxels: Callable[[], Any]
) -> None:
    with no_voxels():
        for patient in fresh_cohort:
            tree = patient.tree
            assert "image" in repr(tree)
            assert "image" in tree._repr_html_()
            assert "modality" in repr(patient.mri.image)
            assert "modality" in patient.mri.image._repr_html_()
            assert "mask" in patient.clinical._repr_html_()
            patient.mri.image.sel(modality="T2w").isel(z=slice(2, 5)).sel(x=0.0, method="nearest")
            patient.clinical.lp.structure("Rectum")
            _ = patient.mri.dose.max(), patient.mri.image.lp.affine, patient.dose.lp.origin_mm


def test_geometry_crops_and_resampling_read_no_voxel(
    fresh_cohort: lp.Cohort, no_voxels: Callable[[], Any]
) -> None:
    patient = fresh_cohort[0]
    with no_voxels():
        patient.mri.lp.track().isel(z=slice(None, None, -1)).lp.spacing_mm.sum()
        patient.mri.lp.crop("Bladder", patient, margin_mm=5).image.isel(z=0)
        patient.clinical.lp.crop("Bladder", patient, margin_mm=500, fill=0)
        patient.mri.lp.resample(4.0).lp.crop("Rectum", patient)
        patient.dose.lp.resample_like(patient.mri, fill=float("nan"))


def test_cohorts_read_no_voxel(fresh_cohort: lp.Cohort, no_voxels: Callable[[], Any]) -> None:
    with no_voxels():
        tree = lp.to_xarray(fresh_cohort)
        assert all(i in repr(tree) for i in fresh_cohort.ids)
        assert tree._repr_html_()
        data = lp.to_xarray(fresh_cohort, lp.CommonGrid(5.0, (8, 8, 8)))
        assert "present" in repr(data)
        assert "present" in data._repr_html_()
        data.where(data.present).mask.sel(structure="Rectum").isel(patient=0, z=slice(2))


def test_the_ban_on_voxels_works(
    fresh_cohort: lp.Cohort, no_voxels: Callable[[], Any], requests: list[str]
) -> None:
    patient = fresh_cohort[0]
    with pytest.raises(AssertionError, match="asked to compute"), no_voxels():
        patient.mri.dose.compute()
    with pytest.raises(AssertionError), no_voxels(), dask.config.set(scheduler="synchronous"):
        patient.mri.dose.compute()
    assert any("mri/dose/c/" in name for name in requests)


def test_a_plotted_slice_reads_its_own_volumes_alone(
    fresh_cohort: lp.Cohort, requests: list[str]
) -> None:
    patient = fresh_cohort[0]
    patient.mri.image.sel(modality="T2w").lp.plot(masks=patient.clinical, structures=["Rectum"])
    arrays = {name.split(".zarr/")[1].split("/c/")[0] for name in requests if "/c/" in name}
    assert arrays == {"mri/image", "mri/clinical/mask"}


def test_structure_selects(extended: lp.Patient) -> None:
    for data in (extended.clinical, extended.clinical.mask):
        found = data.lp.structure("Rectum")
        assert found.identical(extended.clinical.mask.sel(structure="Rectum"))
        assert found.lp.structure("Rectum").identical(found)
    assert extended.nnunet.uncertainty.lp.structure("CTVT_427").dims == ("z", "y", "x")
    assert extended.nnunet.fold_mask.lp.structure("CTVT_427").dims == ("fold", "z", "y", "x")


def test_structure_tells_missing_from_unknown(lacking: lp.Patient) -> None:
    with pytest.raises(
        MissingStructureError, match=rf"patient {lacking.patient_id} has no.*there are CTVT_427, PT"
    ):
        lacking.clinical.lp.structure("PenileBulb")
    with pytest.raises(UnknownLabelError, match=r"'penis'.*expected one of CTVT_427") as error:
        lacking.clinical.lp.structure("penis")
    assert not isinstance(error.value, MissingStructureError)
    with pytest.raises(KeyError):
        lacking.clinical.mask.lp.structure("PenileBulb")


def test_labels_are_selected_as_sel_does(
    extended: lp.Patient, no_voxels: Callable[[], Any]
) -> None:
    where = {"structure": "Rectum", "step": 2, "observer": "obsC"}
    with no_voxels():
        for data in (extended.observers, extended.observers.mask):
            found = data.lp.select(**where)
            assert found.identical(data.sel(where))
            assert found.lp.select(**where).identical(found)
        assert extended.mri.lp.select(modality="sCT").identical(extended.mri.sel(modality="sCT"))
        several = {"structure": ["Rectum", "CTVT_427"], "step": [2]}
        assert extended.observers.lp.select(**several).identical(extended.observers.sel(several))


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ({"structure": "Rectun"}, "unknown structure 'Rectun'; nearest: Rectum; expected one of"),
        ({"fold": 12}, r"unknown fold 12; expected one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9$"),
        ({"structure": ["Rectum", "Rectun"]}, "unknown structure 'Rectun'; nearest: Rectum"),
        ({"structure": "Bladder"}, "'Bladder' is missing: patient newAcq.* there are CTVT_427, R"),
    ],
)
def test_unknown_labels_are_told_from_missing(
    extended: lp.Patient, labels: dict[str, Any], match: str
) -> None:
    with pytest.raises(UnknownLabelError, match=match) as error:
        extended.nnunet.fold_mask.lp.select(**labels)
    assert isinstance(error.value, MissingStructureError) == ("is missing" in match)


def test_unknown_observers_steps_and_dimensions(extended: lp.Patient) -> None:
    masks = extended.observers.mask
    with pytest.raises(UnknownLabelError, match=r"observer 'obsA'; .*obsB, obsC, obsD, obsE$"):
        masks.lp.select(observer="obsA")
    with pytest.raises(UnknownLabelError, match=r"unknown step 3; expected one of 1, 2$"):
        masks.lp.select(step=3)
    with pytest.raises(UsageError, match=r"no labels 'fold' here; expected one of structure, step"):
        masks.lp.select(fold=0)
    with pytest.raises(UsageError, match="no labels 'z' here"):
        masks.lp.select(z=0)


def test_structure_of_what_has_none(extended: lp.Patient) -> None:
    with pytest.raises(UsageError, match="no coordinate 'structure'"):
        extended.mri.image.lp.structure("Rectum")
    with pytest.raises(UsageError, match="no variable 'mask'"):
        extended.mri.lp.structure("Rectum")


def test_opening_a_tree_brings_the_accessor_and_little_else() -> None:
    code = (
        "import lundprobe_zarr.stores.extensions as e, sys; assert 'xarray' not in sys.modules\n"
        "e.load_extensions()\n"
        "import xarray as xr; print(hasattr(xr.Dataset, 'lp'), hasattr(xr.DataArray, 'lp'))\n"
        "print([m for m in ('nibabel', 'scipy.ndimage', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n[]\n"
