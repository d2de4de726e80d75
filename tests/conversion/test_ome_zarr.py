"""The attribute `ome`: what it says, that the community's models take it, and who is not told."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from trees import AFFINES, MRI, NEW, SCT, Workplace, convert_tree, write_nifti, write_patient

import lundprobe_zarr as lp
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.schema.document import add_checksum
from lundprobe_zarr.schema.layout import ARRAY_SPECS, GROUP_TITLES
from lundprobe_zarr.storage.location import Location

ome_zarr_models = pytest.importorskip("ome_zarr_models.v05")
yaozarrs = pytest.importorskip("yaozarrs")

#: Arrays with one label dimension or none. The others have no place in OME-Zarr.
DESCRIBED = sorted(p for p, s in ARRAY_SPECS.items() if len(s.label_dims) < 2)
GROUPS = [g for g in GROUP_TITLES if any(p.rpartition("/")[0] == g for p in DESCRIBED)]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A whole extended patient, converted."""
    home = tmp_path_factory.mktemp("ome")
    write_patient(home / "source", part="extended")
    assert convert_tree(home / "source", home / "dataset")[NEW].error is None
    finalise(home / "dataset")
    return Workplace(home / "source", home / "dataset", part="extended")


def ome_of(store: Path) -> dict[str, Any]:
    """The attribute of every group that has one."""
    found = {f.parent.relative_to(store).as_posix(): f for f in store.rglob("zarr.json")}
    attributes = {p: json.loads(f.read_text())["attributes"] for p, f in found.items()}
    return {path: a["ome"] for path, a in attributes.items() if "ome" in a}


def test_every_array_that_fits_is_described_once(converted: Workplace) -> None:
    ome = ome_of(converted.store)
    assert sorted(ome) == sorted(GROUPS)
    named = [f"{g}/{m['name']}" for g, o in ome.items() for m in o["multiscales"]]
    assert sorted(named) == DESCRIBED
    assert [m["name"] for m in ome["mri"]["multiscales"]] == ["image", "dose"]
    assert [m["name"] for m in ome["mri/nnunet"]["multiscales"]] == ["mask", "uncertainty"]


def test_centres_are_at_the_coordinates_in_millimetres(converted: Workplace) -> None:
    for group, ome in ome_of(converted.store).items():
        with xr.open_zarr(converted.store, group=group.split("/")[0]) as grid:
            coordinates = {a: grid[a].values for a in "zyx"}
        for multiscale in ome["multiscales"]:
            (dataset,) = multiscale["datasets"]
            array = zarr.open_array(converted.store / group / dataset["path"], mode="r")
            axes = multiscale["axes"]
            assert [a["name"] for a in axes] == list(array.metadata.dimension_names)
            assert {a["unit"] for a in axes if a["type"] == "space"} == {"millimeter"}
            scale, translation = dataset["coordinateTransformations"]
            for n, axis in enumerate(a["name"] for a in axes):
                step, first = scale["scale"][n], translation["translation"][n]
                places = np.arange(array.shape[n]) * step + first
                expected = coordinates.get(axis, np.arange(array.shape[n]))
                np.testing.assert_array_equal(places, expected, f"{group} {axis}")


def test_the_models_of_the_community_take_every_group(converted: Workplace) -> None:
    for group in GROUPS:
        place = converted.store / group
        opened = zarr.open_group(place, mode="r")
        image = ome_zarr_models.Image.from_zarr(opened)
        assert image.ome_zarr_version == "0.5"
        yaozarrs.validate_zarr_store(str(place))
        model = yaozarrs.validate_ome_object(dict(opened.attrs)["ome"])
        assert isinstance(model, yaozarrs.v05.Image), group


def test_channels_have_names_colours_and_a_window(converted: Workplace) -> None:
    ome = ome_of(converted.store)
    t2w, sct = ome["mri"]["omero"]["channels"]
    assert (t2w["label"], t2w["active"], sct["label"], sct["active"]) == ("T2w", True, "sCT", False)
    with xr.open_zarr(converted.store, group="mri") as mri:
        values = mri.image.sel(modality="T2w").values
    window = t2w["window"]
    assert (window["min"], window["max"]) == (values.min(), values.max())
    assert values.min() <= window["start"] < window["end"] <= values.max()
    assert window["start"] in values
    assert (sct["window"]["start"], sct["window"]["end"]) == (-160, 240)
    masks = ome["mri/clinical"]["omero"]["channels"]
    labels = zarr.open_group(converted.store / "mri/clinical").attrs["labels"]
    assert [c["label"] for c in masks] == json.loads(str(labels))["structure"]
    assert len({c["color"] for c in masks}) == len(masks)
    assert {tuple(sorted(c["window"].items())) for c in masks} == {
        (("end", 1.0), ("max", 1.0), ("min", 0.0), ("start", 0.0))
    }
    assert ome["dose"]["omero"]["channels"][0]["window"]["end"] > 0


def test_opened_data_are_as_without_it(converted: Workplace, tmp_path: Path) -> None:
    patient = lp.open_cohort(converted.dataset)[NEW]
    assert all("ome" not in node.attrs for node in patient.tree.subtree)
    patient.mri.to_netcdf(tmp_path / "mri.nc", engine="netcdf4")
    with xr.open_datatree(converted.store, engine="zarr") as plain:
        for node in plain.subtree:
            assert node.attrs == patient.tree[node.path].attrs
            assert set(node.variables) == set(patient.tree[node.path].variables)
        mri = plain["mri"].to_dataset()[["dose"]].drop_encoding()
        mri.to_netcdf(tmp_path / "plain.nc", engine="netcdf4")
        mri.to_zarr(tmp_path / "plain.zarr", consolidated=False)


@pytest.mark.parametrize("kind", ["oblique", "mirrored", "permuted"])
def test_what_it_cannot_say_is_left_out(kind: str, tmp_path: Path) -> None:
    mri = AFFINES["mri"].copy()
    if kind == "oblique":
        turn = np.array([[0.98, -0.198997487421324, 0], [0.198997487421324, 0.98, 0], [0, 0, 1]])
        mri[:3, :3] = turn @ mri[:3, :3]
    elif kind == "mirrored":
        mri[1] *= -1
    else:
        mri[[0, 1]] = mri[[1, 0]]
    folder = tmp_path / "source/basePart" / NEW
    rng = np.random.default_rng(1)
    write_nifti(folder / MRI, rng.integers(0, 9, (5, 8, 9)).astype(np.int16), mri)
    write_nifti(folder / SCT, rng.normal(0, 9, (4, 6, 7)).astype(np.float32), AFFINES["sct"])
    assert convert_tree(tmp_path / "source", tmp_path / "d")[NEW].error is None
    assert sorted(ome_of(tmp_path / "d/patients" / f"{NEW}.zarr")) == ["sct"]
    finalise(tmp_path / "d")
    assert finalise(tmp_path / "d", rebuild=True).upgraded == ()
    assert validate(Location(tmp_path / "d"), deep=True).problems == ()


def test_a_t2w_image_without_a_finite_value_has_a_window(tmp_path: Path) -> None:
    folder = tmp_path / "source/basePart" / NEW
    write_nifti(folder / MRI, np.full((5, 8, 9), np.nan, np.float32), AFFINES["mri"])
    write_nifti(folder / SCT, np.zeros((4, 6, 7), np.float32), AFFINES["sct"])
    assert convert_tree(tmp_path / "source", tmp_path / "d")[NEW].error is None
    ome = ome_of(tmp_path / "d/patients" / f"{NEW}.zarr")
    window = {"min": 0.0, "max": 1.0, "start": 0.0, "end": 1.0}
    assert ome["mri"]["omero"]["channels"][0]["window"] == window
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yaozarrs.validate_ome_object(ome["mri"])


def test_an_upgrade_adds_what_a_conversion_writes(converted: Workplace, tmp_path: Path) -> None:
    shutil.copytree(converted.dataset, tmp_path / "d")
    store = tmp_path / "d/patients" / f"{NEW}.zarr"
    written = {f: json.loads(f.read_text()) for f in store.rglob("zarr.json")}
    for file in written:
        without_ome(file)
    assert ome_of(store) == {}
    assert finalise(tmp_path / "d", rebuild=True).upgraded == (NEW,)
    assert {f: json.loads(f.read_text()) for f in store.rglob("zarr.json")} == written


def without_ome(file: Path) -> None:
    """Rewrite the metadata of a node as before there was the attribute."""
    document = json.loads(file.read_text())
    groups = [
        document,
        *(document.get("consolidated_metadata") or {"metadata": {}})["metadata"].values(),
    ]
    for node in groups:
        for name in ("ome", "ome_version", "t2w_window"):
            node["attributes"].pop(name, None)
    if "schema_version" in document["attributes"]:
        add_checksum(document, document["attributes"])
    file.write_text(json.dumps(document))
