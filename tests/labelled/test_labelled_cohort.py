"""Many patients in one object: the tree, and the common grid against SimpleITK."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import dask
import numpy as np
import pytest
import SimpleITK as sitk
import xarray as xr
from labelled_volumes import voxels_of

import lundprobe_zarr as lp
from lundprobe_zarr.errors import MissingStructureError, UnknownLabelError, UsageError
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.vocabulary.names import STRUCTURES

GRID = lp.CommonGrid(spacing_mm=(6.0, 4.0, 5.0), shape=(12, 15, 14))


@pytest.fixture(scope="module")
def together(cohort: lp.Cohort) -> xr.Dataset:
    return lp.to_xarray(cohort, GRID)


@pytest.fixture(scope="module")
def computed(together: xr.Dataset) -> xr.Dataset:
    return together.compute()


def by_simpleitk(array: xr.DataArray, centre: np.ndarray) -> np.ndarray:
    """Resampled to the common grid about a point (x, y, z), by SimpleITK."""
    image = array.astype(np.float32).lp.to_sitk()
    size, spacing = np.array(GRID.shape)[::-1], np.array(GRID.spacing_mm)[::-1]
    origin = centre - (size - 1) / 2 * spacing
    return sitk.GetArrayFromImage(
        sitk.Resample(
            image, size.tolist(), sitk.Transform(), sitk.sitkLinear, origin.tolist(),
            spacing.tolist(), np.eye(3).ravel().tolist(), float("nan"),
        )
    )  # fmt: skip


def test_every_patient_about_its_own_centre(cohort: lp.Cohort, computed: xr.Dataset) -> None:
    for number, patient in enumerate(cohort):
        mask = patient.mask("CTVT_427").values
        centroid = np.argwhere(mask).mean(axis=0)
        affine = patient.mri.lp.affine
        centre = (affine @ [*centroid[::-1], 1])[:3] * [-1, -1, 1]
        here = computed.isel(patient=number)
        np.testing.assert_allclose(here.centre, centre, atol=1e-4)
        for modality in ("T2w", "sCT"):
            expected = by_simpleitk(patient.mri.image.sel(modality=modality), centre)
            found = here.image.sel(modality=modality)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(here.dose, by_simpleitk(patient.mri.dose, centre), atol=1e-4)


def test_masks_and_missing_organs(cohort: lp.Cohort, computed: xr.Dataset) -> None:
    seen = 0
    for patient in cohort:
        here = computed.sel(patient=patient.patient_id)
        there = patient.clinical.structure.values.tolist()
        assert here.present.values.tolist() == [s in there for s in STRUCTURES]
        for structure in STRUCTURES:
            found = here.mask.sel(structure=structure)
            if structure not in there:
                assert not found.any()
                seen += 1
                continue
            shares = by_simpleitk(patient.mask(structure), here.centre.values)
            clear = (np.abs(shares - 0.5) > 1e-3) & ~np.isnan(shares)
            np.testing.assert_array_equal(found.values[clear], shares[clear] > 0.5)
    assert seen >= 2, "the phantom lacks some organs"
    assert computed.mask.sel(structure="CTVT_427").any(("z", "y", "x")).all()


def test_labels_and_units(cohort: lp.Cohort, together: xr.Dataset) -> None:
    assert together.image.dims == ("patient", "modality", "z", "y", "x")
    assert together.dose.dims == ("patient", "z", "y", "x")
    assert together.mask.dims == ("patient", "structure", "z", "y", "x")
    assert (together.image.dtype, together.dose.dtype) == (np.float32, np.float32)
    assert together.mask.dtype == together.present.dtype == bool
    assert together.patient.values.tolist() == cohort.ids
    assert together.protocol.values.tolist() == cohort.patients.protocol.tolist()
    assert together.part.values.tolist() == cohort.patients.part.tolist()
    assert together.unit.values.tolist() == ["1", "HU"]
    for dim, size, count in zip("zyx", GRID.spacing_mm, GRID.shape, strict=True):
        axis = together[dim].values
        assert len(axis) == count
        np.testing.assert_allclose(np.diff(axis), size)
        np.testing.assert_allclose(axis.mean(), 0, atol=1e-12)
        assert together[dim].attrs["units"] == "mm"
        assert "from the centre" in together[dim].attrs["long_name"]
    np.testing.assert_allclose(together.lp.spacing_mm, GRID.spacing_mm)


def test_columns_of_the_patients_table(cohort: lp.Cohort) -> None:
    data = lp.to_xarray(cohort, GRID, columns=("dose_max_gy", "missing_Genitalia"))
    np.testing.assert_array_equal(data.dose_max_gy, cohort.patients.dose_max_gy)
    assert data.where(data.missing_Genitalia, drop=True).sizes["patient"] == 1
    assert "protocol" not in data.coords
    with pytest.raises(UnknownLabelError, match=r"no column 'age'.*protocol"):
        lp.to_xarray(cohort, GRID, columns=("age",))


def test_selecting_computes_that_volume_alone(fresh_cohort: lp.Cohort, requests: list[str]) -> None:
    data = lp.to_xarray(fresh_cohort, GRID)
    chosen = fresh_cohort.ids[1]
    data.image.sel(patient=chosen, modality="sCT").compute()
    opened = {n.split(".zarr")[0] for n in requests if n.startswith("patients/")}
    assert opened == {f"patients/{chosen}"}
    assert {n.split(".zarr/")[1] for n in voxels_of(requests)} == {"mri/image/c/1/0/0/0"}


def test_only_the_part_that_the_grid_covers_is_read(
    fresh_cohort: lp.Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes: list[tuple[slice, ...]] = []
    read = StoreReader.read_parts

    def spy(self: StoreReader, parts: Any) -> Any:
        parts = list(parts)
        boxes.extend(part.box for part in parts)
        return read(self, parts)

    monkeypatch.setattr(StoreReader, "read_parts", spy)
    data = lp.to_xarray(fresh_cohort, lp.CommonGrid(4.0, (5, 6, 7)))
    data.isel(patient=0).drop_vars("present").compute()
    assert len(boxes) >= 2 + 1 + 9
    spacing = fresh_cohort[0].mri.lp.spacing_mm
    for box in boxes:
        for extent, size, count in zip(box, spacing, (5, 6, 7), strict=True):
            assert (extent.stop - extent.start - 3) * size <= (count - 1) * 4


def test_an_organ_that_is_missing_by_the_table_opens_no_store(
    fresh_cohort: lp.Cohort, requests: list[str]
) -> None:
    data = lp.to_xarray(fresh_cohort, GRID, structures=["PenileBulb"])
    absent = data.isel(patient=~data.present[:, 0].values)
    assert absent.sizes["patient"] == 1
    before = len(requests)
    assert not absent.mask.any().compute()
    assert requests[before:] == []


def test_fill_is_for_outside_the_volume(cohort: lp.Cohort) -> None:
    wide = lp.CommonGrid(60.0, (8, 8, 8))
    missing, filled = lp.to_xarray(cohort, wide), lp.to_xarray(cohort, wide, fill=-5)
    outside = missing.image.isnull().compute()
    assert 0.1 < float(outside.mean()) < 1
    np.testing.assert_array_equal(outside, (filled.image == -5).compute())
    assert not missing.mask.sel(z=[-210, 210]).any()


def test_a_patient_without_an_image_is_nan_whatever_the_fill(
    fresh_cohort: lp.Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lp.Patient.mri
    monkeypatch.setattr(
        lp.Patient, "mri", property(lambda p: whole.fget(p).sel(modality=["T2w"]).drop_vars("dose"))
    )
    data = lp.to_xarray(fresh_cohort[:1], GRID, fill=0).compute()
    assert data.image.sel(modality="sCT").isnull().all()
    assert data.dose.isnull().all()
    assert not data.image.sel(modality="T2w").isnull().any()


def test_a_mask_that_the_table_has_and_the_store_lacks_is_an_error(
    fresh_cohort: lp.Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lp.to_xarray(fresh_cohort, GRID)
    whole = lp.Patient.tree

    def without(patient: lp.Patient) -> xr.DataTree:
        tree = whole.__get__(patient).copy()
        tree["mri/clinical"] = xr.DataTree(tree["mri/clinical"].dataset.sel(structure=["BODY"]))
        return tree

    monkeypatch.setattr(lp.Patient, "tree", property(without))
    with pytest.raises(MissingStructureError, match="CTVT_427"):
        data.mask.isel(patient=0).sel(structure="CTVT_427").compute()


def test_a_patient_without_the_centre(cohort: lp.Cohort, lacking: lp.Patient) -> None:
    grid = lp.CommonGrid(5.0, (4, 4, 4), centre="PenileBulb")
    with pytest.raises(
        MissingStructureError,
        match=f"1 of 4 patients.*{lacking.patient_id}.*NOT missing_PenileBulb",
    ):
        lp.to_xarray(cohort, grid)
    assert lp.to_xarray(cohort.where("NOT missing_PenileBulb"), grid).sizes["patient"] == 3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"spacing_mm": 0, "shape": (1, 2, 3)}, "spacing_mm is 0"),
        ({"spacing_mm": (1, 2), "shape": (1, 2, 3)}, "spacing_mm is"),
        ({"spacing_mm": 1, "shape": (1, 2)}, "three voxel counts"),
        ({"spacing_mm": 1, "shape": (1, 2, 0)}, "three voxel counts"),
        ({"spacing_mm": 1, "shape": (1, 2, 3.5)}, "three voxel counts"),
    ],
)
def test_grids_that_make_no_sense(arguments: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        lp.CommonGrid(**arguments)


@pytest.mark.parametrize(
    ("grid", "structures", "match"),
    [
        ("3 mm", None, r"grid is '3 mm'; expected a CommonGrid"),
        (GRID, [], r"structures=\[\]; expected at least one"),
        (GRID, ["Rectum", "Rectum"], "no duplicates"),
    ],
)
def test_arguments_that_make_no_sense(
    cohort: lp.Cohort, grid: Any, structures: Any, match: str
) -> None:
    with pytest.raises(UsageError, match=match):
        cohort.to_xarray(grid, structures=structures)


def test_one_name_is_one_structure(cohort: lp.Cohort) -> None:
    assert cohort.to_xarray(GRID, structures="Rectum").structure.values.tolist() == ["Rectum"]


def test_unknown_structures(cohort: lp.Cohort) -> None:
    with pytest.raises(UnknownLabelError, match="nearest: Rectum"):
        lp.CommonGrid(1, (1, 1, 1), centre="Rectun")
    with pytest.raises(UnknownLabelError, match="nearest: Rectum"):
        lp.to_xarray(cohort, GRID, structures=["Rectun"])


def test_nobody(cohort: lp.Cohort) -> None:
    for grid in (None, GRID):
        with pytest.raises(UsageError, match="no patients"):
            lp.to_xarray(cohort.where("false"), grid)


def test_an_oblique_patient_is_turned_upright(askew: lp.Patient) -> None:
    cohort = lp.open_cohort(askew.location.url)
    data = lp.to_xarray(cohort, GRID).isel(patient=0).compute()
    expected = by_simpleitk(askew.mri.image.sel(modality="T2w"), data.centre.values)
    found = data.image.sel(modality="T2w").values
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)


def test_the_tree_is_every_patients_own(cohort: lp.Cohort) -> None:
    tree = cohort.to_xarray()
    assert list(tree.children) == cohort.ids
    for patient in cohort:
        xr.testing.assert_identical(
            tree[f"{patient.patient_id}/mri"].to_dataset(), patient.tree["mri"].to_dataset()
        )
        assert tree[patient.patient_id].attrs == patient.tree.attrs


def test_the_tree_costs_a_request_a_patient(fresh_cohort: lp.Cohort, requests: list[str]) -> None:
    lp.to_xarray(fresh_cohort)
    assert sorted(requests) == sorted(f"patients/{i}.zarr/zarr.json" for i in fresh_cohort.ids)


def test_the_common_grid_costs_the_tables(
    fresh_cohort: lp.Cohort, no_voxels: Callable[[], Any], requests: list[str]
) -> None:
    with no_voxels():
        fresh_cohort.to_xarray(GRID)
    assert requests
    assert all(name.startswith("metadata/") for name in requests)


def test_goes_to_other_processes(computed: xr.Dataset, together: xr.Dataset) -> None:
    with dask.config.set(scheduler="synchronous"):
        back = pickle.loads(pickle.dumps(together.isel(patient=[1])))
        xr.testing.assert_identical(back.compute(), computed.isel(patient=[1]))
