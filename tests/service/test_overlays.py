"""Contours, isodoses and dose-volume curves: placed and filled as the files have them."""

from __future__ import annotations

import httpx
import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.path import Path as Ring
from nifti_truth import files_of

from lundprobe_zarr.dataset.dataset import Dataset
from lundprobe_zarr.storage.location import Location

NAME, OBLIQUE = "lund-probe/standard", "lund-probe/overlays"


@pytest.fixture(scope="module", params=["aligned", "oblique"])
def both(
    request, phantom_source, dataset, oblique_source, oblique_dataset, start_for_module, served
):
    """Folder of an extended patient's NIfTI files, the dataset, and a client for the patient."""
    is_oblique = request.param == "oblique"
    source = oblique_source if is_oblique else phantom_source
    folder = next(p for p in (source / "extendedPart").iterdir() if p.is_dir())
    service = start_for_module({OBLIQUE: oblique_dataset}) if is_oblique else served
    with httpx.Client(
        base_url=f"{service.url}/api/v1/datasets/{OBLIQUE if is_oblique else NAME}/patients/"
        f"{folder.name}/",
        headers=service.headers,
        timeout=30,
    ) as client:
        yield folder, oblique_dataset if is_oblique else dataset, client


def ask(client, path, **params):
    answer = client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refilled(contour, file, axis, n):
    """Plane of a mask from its outline in mm, by even and odd."""
    volume = file.voxels.T
    number = "zyx".index(axis)
    shape = [s for a, s in enumerate(volume.shape) if a != number]
    rows, columns = (a for a in "zyx" if a != axis)
    places = np.stack(np.indices(shape), -1).reshape(-1, 2)
    inside = np.zeros(len(places), bool)
    for polygon in contour["polygons"]:
        for ring in polygon:
            points = np.array(ring).reshape(-1, 3)
            index = points @ file.inverse[:3, :3].T + file.inverse[:3, 3]  # x, y, z
            np.testing.assert_allclose(index[:, "xyz".index(axis)], n, atol=0.02)
            corners = index[:, ["xyz".index(rows), "xyz".index(columns)]]
            inside ^= Ring(corners).contains_points(places)
    return inside.reshape(shape)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize(
    ("grid", "source", "group"),
    [
        ("mri", "clinical", "mri/clinical/mask"),
        ("sct", "clinical", "sct/clinical/mask"),
        ("mri", "nnunet", "mri/nnunet/mask"),
        ("mri", "nnunet_fold", "mri/nnunet/fold_mask"),
        ("mri", "observer", "mri/observers/mask"),
    ],
)
def test_outlines_filled_again_are_the_masks(both, axis, grid, source, group):
    folder, _, client = both
    masks = {k[1]: f for k, f in files_of(folder).items() if k[0] == group}
    some = next(iter(masks.values())).voxels.T.shape["zyx".index(axis)]
    seen = 0
    for n in (0, some // 3, some // 2):
        found = ask(client, "contours", grid=grid, source=source, axis=axis, n=n)
        assert found["damaged"] == found["missing"] == []
        outlines = {
            tuple(sorted((k, v) for k, v in c.items() if k not in ("source", "polygons"))): c
            for c in found["contours"]
        }
        for labels, file in masks.items():
            plane = np.take(file.voxels.T != 0, n, "zyx".index(axis))
            if labels not in outlines:
                assert not plane.any()
                continue
            seen += 1
            np.testing.assert_array_equal(refilled(outlines[labels], file, axis, n), plane)
    assert seen


def test_only_what_is_asked_for_is_outlined(both):
    _, _, client = both
    n = 7
    found = ask(client, "contours", n=n, structures="Rectum,BODY")["contours"]
    assert {(c["source"], c["structure"]) for c in found} == {
        ("clinical", "Rectum"),
        ("clinical", "BODY"),
    }
    two = ask(
        client, "contours", n=n, source="observer,nnunet_fold", structures="Rectum",
        observer="obsB,obsD", step=2, fold=3,
    )["contours"]  # fmt: skip
    assert [c for c in two if c["source"] == "nnunet_fold" and c["fold"] != 3] == []
    assert {c["observer"] for c in two if c["source"] == "observer"} <= {"obsB", "obsD"}


@pytest.mark.parametrize("grid", ["mri", "sct", "dose"])
@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_isodoses_lie_where_simpleitk_has_their_dose(both, grid, axis):
    """Each place is on a line between two voxel centres, where linear interpolation is exact."""
    folder, _, client = both
    file = files_of(folder)[f"{grid}/dose", ()]
    image = sitk.ReadImage(file.path, sitk.sitkFloat64)
    n = file.voxels.T.shape["zyx".index(axis)] // 2
    found = ask(client, "isodoses", grid=grid, axis=axis, n=n, levels="95,50")
    gradient = np.abs(np.diff(file.voxels.astype(float), axis=2)).max()
    seen = 0
    for isodose in found["isodoses"]:
        assert isodose["gy"] == pytest.approx(isodose["level"] * 0.427)
        for line in isodose["lines"]:
            for point in np.array(line).reshape(-1, 3)[::7].tolist():
                value = image.EvaluateAtPhysicalPoint(point)
                assert value == pytest.approx(isodose["gy"], abs=2e-3 * gradient)
                seen += 1
    assert seen > 5


def test_isodoses_in_gray_are_those_in_percent(both):
    _, _, client = both
    percent = ask(client, "isodoses", n=7, levels="50")["isodoses"][0]["lines"]
    gray = ask(client, "isodoses", n=7, levels="21.35", unit="Gy")["isodoses"][0]["lines"]
    assert percent == gray != []


def test_dose_volume_curves_fit_the_structures_table(both):
    folder, dataset, client = both
    found = ask(client, "dvh", grid="mri", source="clinical,observer")
    table = Dataset.open(Location(str(dataset))).patient_rows("structures", folder.name).to_pylist()
    rows = [r for r in table if r["grid"] == "mri" and r["source"] in ("clinical", "observer")]
    assert len(found["histograms"]) == len(rows)
    for row, curve in zip(rows, found["histograms"], strict=True):
        assert curve["structure"] == row["structure"]
        assert curve["volume_cc"] == pytest.approx(row["volume_cc"])
        assert curve["covered_pct"] == pytest.approx(row["dose_covered_pct"])
        volumes = curve["cumulative_cc"]
        assert volumes[0] == pytest.approx(row["volume_cc"] * row["dose_covered_pct"] / 100)
        assert np.all(np.diff(volumes) <= 0)
        assert len(volumes) == int(row["dose_max_gy"] * 10 + 1e-4) + 1
        bin_ = int(row["d50_gy"] * 10 + 1e-4)
        assert volumes[bin_] >= volumes[0] / 2 - 1e-9
        assert volumes[bin_ + 1] < volumes[0] / 2 + row["volume_cc"] / row["voxels"]


def test_a_structure_that_the_patient_lacks_is_named(dataset, served):
    table = Dataset.open(Location(str(dataset))).table("patients").to_pylist()
    patient, lacking = next(
        (r["patient_id"], r["missing_structures"]) for r in table if r["missing_structures"]
    )
    with served.client as client:
        for path in ("contours?n=3&", "dvh?"):
            url = f"/api/v1/datasets/{NAME}/patients/{patient}/{path}structures=BODY,{lacking[0]}"
            found = client.get(url).json()
            assert found["missing"] == lacking[:1]
            assert found["damaged"] == []
