"""Where voxels lie, by SimpleITK, and what plain xarray and tensorstore make of a store."""

from __future__ import annotations

import json
import warnings
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import xarray as xr
from scipy.spatial.transform import Rotation
from trees import (
    AFFINES,
    MRI,
    NEW,
    SCT,
    SHAPES,
    Workplace,
    convert_tree,
    nifti,
    write_nifti,
    write_patient,
)

from lundprobe_zarr.geometry.affine import index_to_lps
from lundprobe_zarr.schema.layout import SCHEMA_VERSION
from lundprobe_zarr.vocabulary.files import FIDUCIAL_TEXT
from lundprobe_zarr.vocabulary.names import OBSERVERS, STRUCTURES

GRIDS = {"mri": MRI, "sct": SCT, "dose": "sCT/dose_original.nii.gz"}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A whole extended patient, converted."""
    home = tmp_path_factory.mktemp("coordinates")
    write_patient(home / "source", part="extended")
    assert convert_tree(home / "source", home / "dataset")[NEW].error is None
    return Workplace(home / "source", home / "dataset", part="extended")


def corners(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(product(*((0, n - 1) for n in shape)))


@pytest.mark.parametrize("grid", GRIDS)
def test_coordinates_are_where_simpleitk_puts_the_voxels(converted: Workplace, grid: str) -> None:
    image = sitk.ReadImage(str(converted.folder / GRIDS[grid]))
    voxels = sitk.GetArrayFromImage(image)
    variable = "dose" if grid == "dose" else "image"
    with xr.open_zarr(converted.store, group=grid) as stored:
        array = stored[variable]
        if "modality" in array.dims:
            array = array.isel(modality=0)
        for z, y, x in corners(SHAPES[grid]):
            point = image.TransformIndexToPhysicalPoint((x, y, z))
            here = (float(stored.x[x]), float(stored.y[y]), float(stored.z[z]))
            np.testing.assert_allclose(here, point, atol=1e-5)
            there = array.sel(x=point[0], y=point[1], z=point[2], method="nearest")
            assert float(there) == pytest.approx(float(voxels[z, y, x]))


@pytest.mark.parametrize("signs", list(product((-1, 1), repeat=3)))
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_affine_is_simpleitk_s_in_every_orientation(
    tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3)[:, list(order)] * signs) * [0.5, 0.75, 2.5]
    affine[:3, 3] = [-11, 7, 30]
    check_against_simpleitk(tmp_path, affine)


def test_the_affine_is_simpleitk_s_for_an_oblique_file(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [0.3, -0.2, 0.1]).as_matrix() * [0.5, 0.75, 2.5]
    affine[:3, 3] = [-11, 7, 30]
    check_against_simpleitk(tmp_path, affine)


def check_against_simpleitk(tmp_path: Path, affine: np.ndarray) -> None:
    from lundprobe_zarr.conversion.source.nifti import read_nifti

    path = tmp_path / "image.nii.gz"
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    write_nifti(path, voxels, affine)
    image, file = sitk.ReadImage(str(path)), read_nifti(path, "image.nii.gz")
    np.testing.assert_array_equal(file.raw, sitk.GetArrayFromImage(image))
    for z, y, x in corners(voxels.shape):
        point = image.TransformIndexToPhysicalPoint((x, y, z))
        np.testing.assert_allclose(index_to_lps(file.affine, (z, y, x))[::-1], point, atol=1e-4)


def test_a_permuted_grid_has_an_affine_and_no_coordinates(tmp_path: Path) -> None:
    permuted = np.array([[0, 0, 2.5, -5], [0.5, 0, 0, 3], [0, 0.5, 0, 2], [0, 0, 0, 1.0]])
    source = tmp_path / "source"
    folder = write_patient(source, only=(MRI, SCT))
    write_nifti(folder / MRI, np.arange(360, dtype=np.int16).reshape(SHAPES["mri"]), permuted)
    assert convert_tree(source, tmp_path / "dataset")[NEW].error is None
    store = tmp_path / "dataset" / "patients" / f"{NEW}.zarr"
    with xr.open_zarr(store, group="mri") as mri:
        assert not {"x", "y", "z"} & set(mri.coords)
        assert mri.image.dims == ("modality", "z", "y", "x")
        np.testing.assert_array_equal(np.reshape(mri.attrs["affine"], (4, 4)), permuted)
    with xr.open_zarr(store, group="sct") as sct:
        assert {"x", "y", "z"} <= set(sct.coords)


def test_fiducial_text_coordinates_select_the_voxels_of_their_spheres(work: Workplace) -> None:
    voxels = np.array([[1, 2, 3], [3, 5, 7], [4, 0, 8]])  # z, y, x
    lps = index_to_lps(AFFINES["mri"], voxels)[:, ::-1] + [0.1, -0.1, 0.2]
    mask = np.zeros(SHAPES["mri"], np.float32)
    mask[tuple(voxels.T)] = 1
    write_nifti(work.folder / "MR_StorT2/mask_MRI_T2_coords_fiducials.nii.gz", mask, AFFINES["mri"])
    (work.folder / FIDUCIAL_TEXT).write_text("\n".join(",".join(map(str, p)) for p in lps))
    assert work.convert_one().error is None
    with (
        xr.open_zarr(work.store, group="mri") as mri,
        xr.open_datatree(work.store, engine="zarr") as tree,
    ):
        clinical = tree["mri/clinical"].to_dataset(inherit=True)
        position = clinical.fiducial_position
        assert position.axis.values.tolist() == ["x", "y", "z"]
        assert position.attrs["units"] == "mm"
        where = {a: position.sel(axis=a).drop_vars("axis") for a in "xyz"}
        hit = clinical.fiducial_mask.sel(where, method="nearest")
        assert hit.values.tolist() == [True, True, True]
        assert int(clinical.fiducial_mask.sum()) == 3
        assert {"x", "y", "z"} <= set(mri.coords)


LABELS: dict[str, dict[str, list[Any]]] = {
    "mri": {"modality": ["T2w", "sCT"]},
    "mri/clinical": {"structure": list(STRUCTURES)},
    "mri/nnunet": {"structure": ["CTVT_427", "Rectum"], "fold": list(range(10))},
    "mri/observers": {
        "structure": ["CTVT_427", "Rectum"],
        "step": [1, 2],
        "observer": list(OBSERVERS),
    },
    "sct": {"modality": ["sCT"]},
    "sct/clinical": {"structure": list(STRUCTURES)},
    "dose": {},
}
UNITS = {
    ("mri", "image"): None,
    ("mri", "dose"): "Gy",
    ("mri/clinical", "mask"): "1",
    ("mri/clinical", "fiducial_mask"): "1",
    ("mri/clinical", "fiducial_position"): "mm",
    ("mri/nnunet", "mask"): "1",
    ("mri/nnunet", "fold_mask"): "1",
    ("mri/nnunet", "uncertainty"): "1",
    ("mri/observers", "mask"): "1",
    ("sct", "image"): "HU",
    ("sct", "dose"): "Gy",
    ("sct/clinical", "mask"): "1",
    ("dose", "dose"): "Gy",
}


def test_plain_xarray_opens_a_store_as_the_layout_says_and_warns_of_nothing(
    converted: Workplace,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(converted.store, engine="zarr", chunks={})
    with tree:
        assert {g.strip("/") for g in tree.groups} == {"", *LABELS}
        for group, labels in LABELS.items():
            node = tree[group]
            for dim, expected in labels.items():
                assert node[dim].values.tolist() == expected
            assert json.loads(node.attrs["labels"]) == labels
            for axis in "zyx":
                assert node[axis].dtype == np.float64
                assert node[axis].attrs["units"] == "mm"
        assert "mask" not in tree.data_vars
        volumes = {(g, v) for g in LABELS for v in tree[g].data_vars}
        flags = {(g, v) for g, v in volumes if v.endswith("present")}
        assert volumes - flags == set(UNITS)
        assert flags >= {("mri/nnunet", "fold_present"), ("mri/observers", "present")}
        for (group, variable), units in UNITS.items():
            array = tree[group][variable]
            assert array.attrs.get("units") == units
            assert array.attrs["long_name"]
            assert "_FillValue" not in array.attrs | array.encoding
            assert array.chunks is not None, "lazy"
        assert tree["mri"].unit.values.tolist() == ["1", "HU"]
        assert "unit" in tree["mri"].coords
        assert tree["mri/nnunet"].fold_mask.dims == ("structure", "fold", "z", "y", "x")
        assert tree["mri/observers"].mask.dims == ("structure", "step", "observer", "z", "y", "x")


@pytest.mark.parametrize("group", LABELS)
def test_plain_xarray_opens_each_group_by_itself_and_warns_of_nothing(
    converted: Workplace, group: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_zarr(converted.store, group=group) as found:
            assert found.attrs["title"]
            found.load()


def test_root_attributes_are_those_of_the_layout(converted: Workplace) -> None:
    with xr.open_datatree(converted.store, engine="zarr") as tree:
        attributes = tree.attrs
    assert attributes["patient_id"] == NEW
    assert attributes["part"] == "extended"
    assert attributes["protocol"] == "newAcq"
    assert attributes["precision"] == "standard"
    assert attributes["schema_version"] == SCHEMA_VERSION
    assert attributes["converter"].startswith("lundprobe-zarr ")
    assert attributes["synthetic"] == 0
    assert "created" in attributes


def test_zeros_are_zeros_and_not_missing(converted: Workplace) -> None:
    with xr.open_zarr(converted.store, group="mri/clinical") as clinical:
        mask = clinical.mask.load()
    assert mask.dtype == bool
    with xr.open_zarr(converted.store, group="dose") as dose:
        assert not dose.dose.isnull().any()


@pytest.mark.parametrize(
    ("path", "index", "source"),
    [
        ("mri/image", (0,), MRI),
        ("mri/clinical/mask", (STRUCTURES.index("Bladder"),), "MR_StorT2/mask_Bladder.nii.gz"),
    ],
)
def test_tensorstore_reads_the_same_voxels(
    converted: Workplace, path: str, index: tuple[int, ...], source: str
) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": f"{converted.store / path}/"},
    }
    array = tensorstore.open(spec, open=True, read=True).result()
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(converted.folder / source)))
    np.testing.assert_array_equal(
        array[index].read().result(), voxels.astype(array.dtype.numpy_dtype)
    )


def test_an_sform_is_read_where_it_is_all_there_is() -> None:
    from lundprobe_zarr.conversion.source.nifti import parse_header

    data = nifti(np.zeros((2, 3, 4), np.uint8), AFFINES["mri"], codes=(0, 2))
    np.testing.assert_array_equal(parse_header(data[:348], "f").affine, AFFINES["mri"])
    data = nifti(np.zeros((2, 3, 4), np.uint8), AFFINES["mri"], codes=(1, 0))
    np.testing.assert_allclose(parse_header(data[:348], "f").affine, AFFINES["mri"], atol=1e-6)
