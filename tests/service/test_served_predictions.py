"""Predictions on the page: one more source of outlines, of this very patient, never stale."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.dataset.predictions import whose
from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.figures.contours import mask_polygons
from lundprobe_zarr.geometry.affine import voxel_volume_cc
from lundprobe_zarr.service.voxels import volumes
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.prediction import write_prediction_store

NAME = "lund-probe/standard"
_SOURCE = "prediction:unet-v1"


@pytest.fixture(scope="module")
def patient(dataset):
    return lp.open_cohort(dataset)[0]


@pytest.fixture(scope="module")
def mask(patient):
    return np.roll(patient.mask("Rectum").values, 2, axis=2)


@pytest.fixture(scope="module")
def place(patient, mask, tmp_path_factory):
    out = tmp_path_factory.mktemp("predictions")
    lp.write_prediction(patient, {"Rectum": mask}, "unet-v1", {}, to=out)
    return out


@pytest.fixture(scope="module")
def client(dataset, place, start_for_module, patient):
    service = start_for_module({NAME: dataset}, options={"predictions": str(place)})
    with service.client as client:
        client.base_url = f"{service.url}/api/v1/datasets/{NAME}/patients/"
        yield client


def ask(client, path, **params):
    answer = client.get(path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_it_is_listed_with_its_box_beside_the_patients_segmentations(client, patient, mask):
    about = ask(client, patient.patient_id)
    [found] = [s for s in about["segmentations"] if s["source"] == _SOURCE]
    assert (found["grid"], found["structure"], found["voxels"]) == ("mri", "Rectum", mask.sum())
    low = [int(a.min()) for a in np.nonzero(mask)]
    assert found["box"][0] == low
    assert about["damaged"] == []


def test_its_outlines_are_those_of_the_mask(client, patient, mask):
    n = int(np.nonzero(mask)[0].mean())
    found = ask(client, f"{patient.patient_id}/contours", source=_SOURCE, axis="z", n=n)
    [contour] = found["contours"]
    assert (contour["source"], contour["structure"]) == (_SOURCE, "Rectum")
    assert len(contour["polygons"]) == len(mask_polygons(mask[n], (0, 0)))
    xs = np.array(contour["polygons"][0][0]).reshape(-1, 3)[:, 0]
    inside = np.nonzero(mask[n].any(axis=0))[0]
    x = patient.mri.x.values
    assert x[inside].min() - 10 < xs.min() < x[inside].min() + 1e-3


def test_values_and_histograms_know_it(client, patient, mask):
    z, y, x = (int(a[0]) for a in np.nonzero(mask))
    at = {dim: float(patient.mri[dim][i]) for dim, i in zip("zyx", (z, y, x), strict=True)}
    found = ask(client, f"{patient.patient_id}/values", **at)
    assert {"source": _SOURCE, "structure": "Rectum"} in found["grids"]["mri"]["inside"]
    histograms = ask(client, f"{patient.patient_id}/dvh", grid="mri", source=_SOURCE)["histograms"]
    assert histograms[0]["from"] == "voxels"
    assert histograms[0]["volume_cc"] > 0


def test_answers_about_it_are_not_kept_and_others_are(client, patient):
    contours = f"{patient.patient_id}/contours"
    rev = ask(client, patient.patient_id)["revision"]
    of_it = client.get(contours, params={"source": _SOURCE, "n": 1, "rev": rev})
    assert of_it.headers["cache-control"] == "no-store"
    assert "etag" not in of_it.headers
    clinical = client.get(contours, params={"n": 1, "rev": rev})
    assert "immutable" in clinical.headers["cache-control"]


def test_an_unknown_one_is_refused_with_the_nearest(client, patient):
    answer = client.get(
        f"{patient.patient_id}/contours", params={"source": "prediction:unet-v2", "n": 1}
    )
    assert answer.status_code == 404
    assert _SOURCE in answer.text


def test_new_and_replaced_ones_are_seen_when_the_patient_is_opened_again(
    client, patient, mask, place
):
    other = np.roll(mask, 3, axis=1)
    lp.write_prediction(patient, {"Rectum": other}, "second", {}, to=place)
    about = ask(client, patient.patient_id)
    assert "prediction:second" in {s["source"] for s in about["segmentations"]}
    n = int(np.nonzero(mask)[0].mean())
    wanted = {"source": "prediction:second", "axis": "z", "n": n}
    before = ask(client, f"{patient.patient_id}/contours", **wanted)["contours"]
    lp.write_prediction(patient, {"Rectum": mask}, "second", {}, to=place, overwrite=True)
    ask(client, patient.patient_id)
    after = ask(client, f"{patient.patient_id}/contours", **wanted)["contours"]
    of_first = ask(client, f"{patient.patient_id}/contours", **wanted | {"source": _SOURCE})
    assert after != before
    assert after[0]["polygons"] == of_first["contours"][0]["polygons"]


def _drawn(client, patient, source, n):
    wanted = {"source": source, "axis": "z", "n": n}
    found = ask(client, f"{patient.patient_id}/contours", **wanted)
    assert found["damaged"] == []
    return found["contours"]


def test_outlines_values_and_histograms_are_those_of_what_is_there_now(
    client, patient, mask, place, monkeypatch
):
    monkeypatch.setattr(volumes, "_FRESH_SECONDS", 0)
    # another process of the service may have been asked for the patient
    n = int(np.nonzero(mask)[0].mean())
    ask(client, patient.patient_id)
    lp.write_prediction(patient, {"Rectum": mask}, "late", {}, to=place)
    source = "prediction:late"
    first = _drawn(client, patient, source, n)
    assert first[0]["polygons"] == _drawn(client, patient, _SOURCE, n)[0]["polygons"]
    other = np.zeros_like(mask)
    other[n, 2:4, 2:5] = True
    lp.write_prediction(patient, {"Bladder": other}, "late", {}, to=place, overwrite=True)
    at = {dim: float(patient.mri[dim][i]) for dim, i in zip("zyx", (n, 2, 2), strict=True)}
    found = ask(client, f"{patient.patient_id}/values", **at)
    assert {"source": source, "structure": "Bladder"} in found["grids"]["mri"]["inside"]
    lp.write_prediction(patient, {"Rectum": other}, "late", {}, to=place, overwrite=True)
    histograms = ask(client, f"{patient.patient_id}/dvh", grid="mri", source=source)["histograms"]
    assert [h["structure"] for h in histograms] == ["Rectum"]
    voxel_cc = voxel_volume_cc(patient.dataset.store(patient.patient_id).grid("mri").affine)
    assert histograms[0]["volume_cc"] == pytest.approx(6 * voxel_cc)
    assert [c["structure"] for c in _drawn(client, patient, source, n)] == ["Rectum"]
    shutil.rmtree(place / "late")
    answer = client.get(f"{patient.patient_id}/contours", params={"source": source, "n": n})
    assert answer.status_code == 404
    found = ask(client, f"{patient.patient_id}/values", **at)
    assert source not in {i["source"] for i in found["grids"]["mri"]["inside"]}


def test_a_name_that_leads_out_of_the_place_is_none(client, patient, place, tmp_path):
    shutil.copytree(place / "unet-v1", place.parent / "outside")
    answer = client.get(
        f"{patient.patient_id}/contours", params={"source": "prediction:../outside", "n": 1}
    )
    assert answer.status_code == 404


def test_one_of_other_contents_is_told_without_places(client, patient, mask, place, dataset):
    of = replace(whose(patient.dataset.store(patient.patient_id), "mri"), content_sha256="0" * 64)
    write_prediction_store(Location(place / "older"), of, "older", {"Rectum": mask}, {})
    answer = client.get(patient.patient_id)
    [said] = [text for text in answer.json()["damaged"] if "older" in text]
    assert "was made of contents 000000000000" in said
    for folder in (dataset, place):
        assert str(folder) not in answer.text
    shutil.rmtree(place / "older")


def test_a_place_that_cannot_be_listed_is_told_and_the_patient_shown(
    dataset, patient, start_service, monkeypatch
):
    def fail(self, relative):
        raise DatasetError("cannot be listed", where=self.url)

    service = start_service({NAME: dataset}, options={"predictions": "memory://nowhere"})
    monkeypatch.setattr(Location, "children", fail)
    with service.client as client:
        client.base_url = f"{service.url}/api/v1/datasets/{NAME}/patients/"
        assert ask(client, f"{patient.patient_id}/contours", n=10)["contours"]
        found = ask(client, patient.patient_id)
    assert found["damaged"] == ["the predictions cannot be listed now"]


def test_one_that_is_damaged_is_not_shown_and_said(client, patient, place):
    store = place / "second" / "patients" / f"{patient.patient_id}.zarr" / "zarr.json"
    store.write_text(store.read_text().replace('"second"', '"secund"'))
    about = ask(client, patient.patient_id)
    assert "prediction:second" not in {s["source"] for s in about["segmentations"]}
    assert any("second" in text and "checksum" in text for text in about["damaged"])
