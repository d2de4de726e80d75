"""Values and planes are those of the NIfTI files, to the voxel, on straight and oblique grids."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import SimpleITK as sitk
from nifti_truth import TO_LPS, files_of, stored
from numcodecs.zstd import decompress

from lundprobe_zarr.dataset.dataset import Dataset
from lundprobe_zarr.service.datasets.index import Index
from lundprobe_zarr.service.datasets.published import Revision
from lundprobe_zarr.service.datasets.repository import Repository
from lundprobe_zarr.service.voxels.planes import values_at
from lundprobe_zarr.service.voxels.volumes import OpenPatient
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.tiles import Tiles

NAME, OBLIQUE = "lund-probe/standard", "lund-probe/oblique"


def opened(dataset: Path, patient_id: str) -> OpenPatient:
    found, index = Dataset.open(Location(str(dataset))), Index("", [])
    revision = Revision(NAME, found, index, Repository(NAME, found.manifest, index, b""))
    return OpenPatient(revision, patient_id, Tiles(100_000_000))


def extended_in(source: Path) -> Path:
    return next(p for p in (source / "extendedPart").iterdir() if p.is_dir())


@pytest.fixture(scope="module", params=["aligned", "oblique"])
def both(
    request, phantom_source, dataset, oblique_source, oblique_dataset, start_for_module, served
):
    """Folder of a patient's NIfTI files, the dataset, and a client for the patient."""
    is_oblique = request.param == "oblique"
    folder = extended_in(oblique_source if is_oblique else phantom_source)
    service = start_for_module({OBLIQUE: oblique_dataset}) if is_oblique else served
    name = OBLIQUE if is_oblique else NAME
    with httpx.Client(
        base_url=f"{service.url}/api/v1/datasets/{name}/patients/{folder.name}/",
        headers=service.headers,
        timeout=30,
    ) as client:
        yield folder, oblique_dataset if is_oblique else dataset, client


def test_values_at_a_thousand_points_are_those_of_the_files(both):
    folder, dataset, _ = both
    patient, files = opened(dataset, folder.name), files_of(folder)
    dose = files["dose/dose", ()]
    rng = np.random.default_rng(7)
    t2w = files["mri/image", (("modality", "T2w"),)]
    share = rng.uniform(-0.1, 1.1, (1000, 3)) * t2w.voxels.shape
    seen = dict.fromkeys(patient.grids, 0)
    for point in share @ t2w.lps[:3, :3].T + t2w.lps[:3, 3]:
        found = values_at(patient, point.tolist())
        assert found["damaged"] == []
        for grid, there in found["grids"].items():
            on_grid = {k: f for k, f in files.items() if f.record.grid == grid}
            inside = next(iter(on_grid.values())).at(point) is not None
            assert (there is not None) == inside
            if there is None:
                continue
            seen[grid] += 1
            values = {
                (v["array"], tuple(sorted(v["labels"].items()))): v["value"]
                for v in there["values"]
            }
            masks = {key for key in on_grid if key[0].endswith("/mask") or "fold" in key[0]}
            assert values.keys() == on_grid.keys() - masks
            for key, value in values.items():
                assert float(value) == stored(on_grid[key].at(point)), (key, point)
            assert {tuple(sorted(i.items())) for i in there["inside"]} == {
                tuple(sorted({"source": source_of(path), **dict(labels)}.items()))
                for path, labels in masks
                if on_grid[path, labels].at(point)
            }
    assert min(seen.values()) > 50
    assert dose.voxels.size  # the planning grid is among them


def source_of(path: str) -> str:
    named = {
        "nnunet/mask": "nnunet",
        "nnunet/fold_mask": "nnunet_fold",
        "observers/mask": "observer",
    }
    return named.get(path.partition("/")[2], "clinical")


def plane_of(answer: httpx.Response, body: bytes | None = None):
    """Voxels (rows, columns) in physical values, and what the header says."""
    said = json.loads(answer.headers["x-plane"])
    kind = np.dtype(said["dtype"]).newbyteorder("<")
    data = np.frombuffer(answer.content if body is None else body, np.uint8)
    voxels = data.reshape(kind.itemsize, -1).T.copy().view(kind).reshape(said["shape"])
    return voxels * said["slope"] + said["intercept"] if said["slope"] != 1 else voxels, said


def cut(voxels: np.ndarray, axis: str, n: int) -> np.ndarray:
    """Plane of a volume (x, y, z), rows and columns in the order z, y, x."""
    return np.take(voxels.T, n, "zyx".index(axis))


@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize(
    ("array", "labels", "dtype"),
    [
        ("mri/image", {"modality": "T2w"}, "int16"),
        ("mri/image", {"modality": "sCT"}, "float32"),
        ("sct/image", {"modality": "sCT"}, None),
        ("dose/dose", {}, "float32"),
        ("mri/nnunet/uncertainty", {"structure": "Rectum"}, "float32"),
        ("mri/observers/mask", {"structure": "Rectum", "step": 2, "observer": "obsC"}, "uint8"),
        ("mri/nnunet/fold_mask", {"structure": "CTVT_427", "fold": 7}, "uint8"),
    ],
)
def test_a_plane_is_the_file_s(both, axis, array, labels, dtype):
    folder, _, client = both
    file = files_of(folder)[array, tuple(sorted(labels.items()))]
    n = file.voxels.T.shape["zyx".index(axis)] // 2
    answer = client.get("plane", params={"array": array, "axis": axis, "n": n, **labels})
    assert answer.status_code == 200, answer.text
    found, said = plane_of(answer)
    np.testing.assert_array_equal(found, cut(file.voxels, axis, n).astype(np.float32))
    assert said["max_error"] == 0
    assert dtype in (None, said["dtype"])
    assert (said["array"], said["labels"], said["n"]) == (array, labels, n)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_voxels_lie_where_simpleitk_has_them(both, axis):
    """Also with a stride and a box, on all grids, dose included."""
    folder, _, client = both
    for array, labels in (("dose/dose", {}), ("mri/dose", {}), ("sct/dose", {})):
        file = files_of(folder)[array, ()]
        image = sitk.ReadImage(file.path)
        nz, ny, nx = file.voxels.T.shape
        box = [0, 1, 2, nz, ny - 1, nx]
        params = {"array": array, "axis": axis, "n": 3, "stride": 2} | labels
        answer = client.get("plane", params=params | {"box": ",".join(map(str, box))})
        assert answer.status_code == 200, answer.text
        voxels, said = plane_of(answer)
        other = [a for a in "zyx" if a != axis]
        start = {a: box["zyx".index(a)] for a in other}
        for row, column in ((0, 0), (voxels.shape[0] - 1, 1), (1, voxels.shape[1] - 1)):
            index = {axis: 3} | {
                a: start[a] + 2 * k for a, k in zip(other, (row, column), strict=True)
            }
            place = [index[a] for a in "xyz"]
            expected = image.TransformIndexToPhysicalPoint(place)
            found = (
                np.array(said["origin_mm"])
                + row * np.array(said["row_mm"])
                + column * np.array(said["column_mm"])
            )
            np.testing.assert_allclose(found, expected, atol=1e-3)
            assert voxels[row, column] == np.float32(image.GetPixel(place))


def test_a_position_names_the_nearest_plane(both):
    folder, _, client = both
    file = files_of(folder)["mri/dose", ()]
    point = (file.lps @ [5, 6, 7.4, 1])[:3]
    for axis, n in (("z", 7), ("y", 6), ("x", 5)):
        place = ",".join(map(str, point))
        params = {"array": "mri/dose", "axis": axis, "at_mm": place}
        answer = client.get("plane", params=params)
        assert plane_of(answer)[1]["n"] == n
    one = client.get("plane", params={"array": "mri/dose", "at_mm": point[2]})
    if np.allclose(file.image.affine[:3, :3], np.diag(np.diag(file.image.affine)[:3])):
        assert plane_of(one)[1]["n"] == 7
    else:
        assert one.status_code == 422
        assert "x,y,z" in one.json()["error"]


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_scale_is_declared_with_its_error(both, stride):
    folder, _, client = both
    file = files_of(folder)["mri/image", (("modality", "sCT"),)]
    params = {"array": "mri/image", "modality": "sCT", "n": 5, "stride": stride, "values": "int16"}
    found, said = plane_of(client.get("plane", params=params))
    true = cut(file.voxels, "z", 5)[::stride, ::stride]
    assert said["dtype"] == "int16"
    assert said["max_error"] < 0.1
    assert 0 < np.abs(found - true).max() <= said["max_error"] * 1.001


@pytest.mark.parametrize("coding", ["zstd", "gzip", "identity", "zstd;q=0, gzip;q=0.5", "br"])
def test_compression_is_what_the_client_accepts(both, coding):
    folder, _, client = both
    params = {"array": "mri/dose", "n": 7}
    with client.stream(
        "GET", "plane", params=params, headers={"Accept-Encoding": coding}
    ) as answer:
        raw = b"".join(answer.iter_raw())
    said = answer.headers.get("content-encoding", "identity")
    unpack = {"zstd": decompress, "gzip": gzip.decompress, "identity": bytes}[said]
    found, _ = plane_of(answer, unpack(raw))
    file = files_of(folder)["mri/dose", ()]
    np.testing.assert_array_equal(found, cut(file.voxels, "z", 7))
    expected = {"zstd;q=0, gzip;q=0.5": "gzip", "br": "identity"}.get(coding, coding)
    assert said == expected


def test_the_frame_of_the_test_is_lps():
    assert np.array_equal(TO_LPS @ [1, 2, 3, 1], [-1, -2, 3, 1])
