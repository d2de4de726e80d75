"""Cropping by the tables, against the masks that the tables were made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from labelled_volumes import aligned_affine, volume, voxels_of

import lundprobe_zarr as lp
from lundprobe_zarr.errors import MissingStructureError, UnknownLabelError, UsageError
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.vocabulary.names import STRUCTURES


def box_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and end voxel of a mask, by its voxels."""
    where = np.argwhere(mask)
    return where.min(axis=0), where.max(axis=0) + 1


def shape(data: xr.Dataset) -> tuple[int, ...]:
    return tuple(data.sizes[d] for d in "zyx")


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("grid", ["mri", "sct"])
def test_crop_is_the_masks_bounding_box(extended: lp.Patient, structure: str, grid: str) -> None:
    data = extended.tree[grid].to_dataset()
    mask = extended.mask(structure, grid).values
    start, stop = box_of(mask)
    found = data.lp.crop(structure, extended)
    for dim, a, b in zip("zyx", start, stop, strict=True):
        np.testing.assert_array_equal(found[dim], data[dim][a:b])
    cropped = extended.tree[f"{grid}/clinical"].to_dataset().lp.crop(structure, extended)
    assert int(cropped.mask.sel(structure=structure).sum()) == mask.sum()


def test_crop_reads_no_mask(
    fresh_cohort: lp.Cohort, no_voxels: Callable[[], Any], requests: list[str]
) -> None:
    patient = fresh_cohort[0]
    with no_voxels():
        cropped = patient.mri.lp.crop("Rectum", patient, margin_mm=20)
        patient.clinical.lp.crop("Rectum", fresh_cohort, fill=0)
    tables = [r for r in requests if r.startswith("metadata/")]
    assert len(tables) == len(set(tables)), "each table file once"
    cropped.image.sel(modality="T2w").compute()
    assert {"mri/image" in name for name in voxels_of(requests)} == {True}


def test_cropping_first_reads_that_box_alone(
    extended: lp.Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    voxels = 0
    read = StoreReader.read_parts

    def spy(self: StoreReader, parts: Any) -> Any:
        nonlocal voxels
        result = read(self, list(parts))
        voxels += sum(volume.size for volume in result)
        return result

    monkeypatch.setattr(StoreReader, "read_parts", spy)
    found = extended.mri.lp.crop("CTVT_427", extended).image.sel(modality="T2w")
    assert found.compute().size == voxels


@pytest.mark.parametrize("margin", [0.1, 10.0, 25.0])
def test_margin_is_at_least_what_was_asked_and_less_than_a_voxel_more(
    extended: lp.Patient, margin: float
) -> None:
    start, stop = box_of(extended.mask("CTVT_427").values)
    found = extended.mri.lp.crop("CTVT_427", extended, margin_mm=margin)
    for dim, a, b, size in zip("zyx", start, stop, extended.mri.lp.spacing_mm, strict=True):
        axis = extended.mri[dim].values
        before, after = axis[a] - found[dim].values[0], found[dim].values[-1] - axis[b - 1]
        for space in (before, after):
            assert margin - 1e-6 <= space < margin + size


def test_clipped_at_the_volumes_edge_or_padded(extended: lp.Patient) -> None:
    whole = extended.mri.lp.crop("BODY", extended, margin_mm=1000)
    np.testing.assert_array_equal(whole.lp.affine, extended.mri.lp.affine)
    assert shape(whole) == shape(extended.mri)
    start, stop = box_of(extended.mask("BODY").values)
    padded = extended.mri.lp.crop("BODY", extended, margin_mm=28, fill=-7)
    steps = np.ceil(28 / extended.mri.lp.spacing_mm - 1e-6).astype(int)
    assert shape(padded) == tuple(stop - start + 2 * steps)
    np.testing.assert_allclose(
        padded.lp.affine @ [*(steps - start)[::-1], 1], extended.mri.lp.affine @ [0, 0, 0, 1]
    )
    inside = {d: np.isin(padded[d].round(6), extended.mri[d].round(6)) for d in "zyx"}
    part = padded.isel({d: np.flatnonzero(i) for d, i in inside.items()})
    expected = extended.mri.sel({d: part[d] for d in "zyx"}, method="nearest")
    np.testing.assert_array_equal(part.image.values, expected.image.values)
    assert not inside["z"].all()
    outside = padded.image.isel(z=np.flatnonzero(~inside["z"])).values
    np.testing.assert_array_equal(outside, np.full_like(outside, -7))


@pytest.mark.parametrize(
    ("fill", "dtype"), [(-1000, np.int16), (1e6, np.float32), (np.nan, np.float32)]
)
def test_padding_finds_a_type_that_holds_the_fill(fill: float, dtype: type) -> None:
    data = volume(aligned_affine())
    data["dose"] = data.dose.astype(np.int16)
    padded = data.lp.crop(((-1, 0, 0), (3, 3, 3)), fill=fill)
    assert padded.dose.dtype == dtype
    np.testing.assert_array_equal(padded.dose[0], np.full((3, 3), fill, dtype))
    np.testing.assert_array_equal(padded.dose[1:], data.dose[:3, :3, :3])
    assert padded.mask.dtype == bool
    assert not padded.mask[:, 0].any()
    assert padded.structure.values.tolist() == ["CTVT_427", "BODY"]


CHANGES: list[Callable[[xr.Dataset, lp.Patient], xr.Dataset]] = [
    lambda data, _: data.isel(z=slice(None, None, -1), x=slice(3, None)),
    lambda data, _: data.isel(y=slice(1, None, 2)),
    lambda data, _: data.lp.resample((5.0, 4.0, 3.0)),
    lambda data, _: data.lp.resample((5.0, 4.0, 3.0)).isel(z=slice(None, None, -2)),
    lambda data, patient: data.lp.crop("PTVT_427", patient, margin_mm=5, fill=0),
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_box_is_found_after_slicing_and_resampling(
    extended: lp.Patient, change: Callable[[xr.Dataset, lp.Patient], xr.Dataset]
) -> None:
    data, changed = extended.mri, change(extended.mri, extended)
    start, stop = box_of(extended.mask("CTVT_427").values)
    found = changed.lp.crop("CTVT_427", extended)
    for dim, a, b, size in zip("zyx", start, stop, data.lp.spacing_mm, strict=True):
        low, high = data[dim].values[a] - size / 2, data[dim].values[b - 1] + size / 2
        half = abs(changed[dim].values[1] - changed[dim].values[0]) / 2
        touching = [
            v for v in changed[dim].values if low < v + half - 1e-6 and v - half + 1e-6 < high
        ]
        np.testing.assert_array_equal(found[dim].values, touching)


def test_a_region_crops_other_grids(extended: lp.Patient) -> None:
    region = extended.mri.lp.region("CTVT_427", extended)
    found = extended.dose.lp.crop(region)
    for at, dim in enumerate("zyx"):
        axis = extended.dose[dim].values
        inside = axis[(axis > region.low_mm[at] - 5) & (axis < region.high_mm[at] + 5)]
        np.testing.assert_array_equal(found[dim], inside)
    row = extended.structures.query("structure == 'CTVT_427' and grid == 'mri'").iloc[0]
    assert (region.low_mm < row.centroid_mm).all()
    assert (row.centroid_mm < region.high_mm).all()


def test_a_region_in_mm(aligned: xr.Dataset) -> None:
    found = aligned.lp.crop(lp.Region.of_mm((103, 28.6, -100), (106, 31, 100)))
    assert found.z.values.tolist() == [103.25, 106.25]
    assert shape(found)[2] == 9


def test_rows_of_other_segmentations(extended: lp.Patient) -> None:
    rows = extended.structures
    row = rows[(rows.source == "observer") & (rows.structure == "Rectum")].iloc[3]
    mask = extended.observers.mask.sel(structure="Rectum", step=row.step, observer=row.observer)
    start, stop = box_of(mask.values)
    for given in (row, row.to_dict()):
        assert shape(extended.mri.lp.crop(given)) == tuple(stop - start)


def test_a_name_means_the_clinical_mask_whatever_the_order_of_rows(
    extended: lp.Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = extended.mri.lp.crop("Rectum", extended)
    rows = extended.structures.iloc[::-1]
    monkeypatch.setattr(lp.Patient, "structures", property(lambda patient: rows))
    assert extended.mri.lp.crop("Rectum", extended).sizes == expected.sizes
    row = rows.query("structure == 'Rectum' and grid == 'mri'").iloc[0]
    assert extended.mri.lp.crop(row).sizes != expected.sizes, "else this shows nothing"


def test_a_row_of_someone_else_or_another_grid_is_refused(
    extended: lp.Patient, lacking: lp.Patient
) -> None:
    row = lacking.structures.query("structure == 'Rectum' and grid == 'mri'").iloc[0]
    with pytest.raises(UsageError, match=f"patient_id is '{lacking.patient_id}'"):
        extended.mri.lp.crop(row)
    with pytest.raises(UsageError, match="grid is 'mri'; expected 'sct'"):
        lacking.sct.lp.crop(row)


def test_another_patient_s_tables_are_refused(extended: lp.Patient, lacking: lp.Patient) -> None:
    with pytest.raises(UsageError, match=f"patient_id is '{lacking.patient_id}'"):
        extended.mri.lp.crop("Rectum", lacking)


def test_an_empty_mask_has_no_box(extended: lp.Patient) -> None:
    row = extended.structures.iloc[0].to_dict() | {"bbox_start": None, "bbox_stop": None}
    with pytest.raises(MissingStructureError, match="is empty"):
        extended.mri.lp.crop(row)


def test_unknown_and_missing_structures(lacking: lp.Patient) -> None:
    with pytest.raises(MissingStructureError, match=r"PenileBulb.*there are CTVT_427"):
        lacking.mri.lp.crop("PenileBulb", lacking)
    with pytest.raises(UnknownLabelError, match="nearest: Bladder") as error:
        lacking.mri.lp.crop("Blader", lacking)
    assert not isinstance(error.value, MissingStructureError)


def test_the_dose_grid_has_no_rows(extended: lp.Patient) -> None:
    with pytest.raises(UsageError, match=r"grid 'dose'.*mri\.lp\.region"):
        extended.dose.lp.crop("Rectum", extended)


def test_without_tables_or_attributes(extended: lp.Patient) -> None:
    with pytest.raises(UsageError, match="expected the patient or a cohort"):
        extended.mri.lp.crop("Rectum")
    with pytest.raises(UsageError, match="have no attributes"):
        extended.mri.dose.drop_attrs().lp.crop("Rectum", extended)


def test_a_slice_has_to_stay_an_axis(extended: lp.Patient) -> None:
    for data in (extended.mri, extended.mri.image):
        with pytest.raises(UsageError, match=r"expected z, y and x among them"):
            data.isel(z=3).lp.crop("Rectum", extended)


def test_beside_the_volume(aligned: xr.Dataset) -> None:
    with pytest.raises(UsageError, match="lies outside"):
        aligned.lp.crop(lp.Region.of_mm((500, 0, 0), (510, 9, 9)), fill=0)


@pytest.mark.parametrize("box", [((0, 0, 0), (1, 0, 1)), ((0, 0), (1, 1)), ((2, 2, 2), (1, 3, 3))])
def test_boxes_that_make_no_sense(aligned: xr.Dataset, box: Any) -> None:
    with pytest.raises(UsageError, match="first and end voxel"):
        aligned.lp.crop(box)


@pytest.mark.parametrize("margin", [-1.0, float("nan"), "5", (1, 2, 3)])
def test_margins_that_make_no_sense(aligned: xr.Dataset, margin: Any) -> None:
    with pytest.raises(UsageError, match="margin_mm is"):
        aligned.lp.crop(((0, 0, 0), (1, 1, 1)), margin_mm=margin)


@pytest.mark.parametrize("fill", [None, 0.0])
def test_an_oblique_patient_is_cropped_to_the_same_voxels(askew: lp.Patient, fill: float) -> None:
    mask = askew.mask("CTVT_427").values
    start, stop = box_of(mask)
    cropped = askew.clinical.lp.crop("CTVT_427", askew, fill=fill)
    assert shape(cropped) == tuple(stop - start)
    assert int(cropped.mask.sel(structure="CTVT_427").sum()) == mask.sum()
    expected = askew.clinical.lp.affine @ [*start[::-1], 1]
    np.testing.assert_allclose(cropped.lp.affine[:, 3], expected, atol=1e-9)
    padded = askew.clinical.lp.crop("BODY", askew, margin_mm=60, fill=0)
    again = padded.lp.crop("CTVT_427", askew)
    np.testing.assert_array_equal(again.mask.values, cropped.mask.values)
