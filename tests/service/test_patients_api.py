"""One patient in JSON, answers that clients keep, what is refused, and damage."""

from __future__ import annotations

import io
import json

import httpx
import numpy as np
import pytest
from PIL import Image

from lundprobe_zarr.dataset.dataset import Dataset
from lundprobe_zarr.service.access.callers import Caller, Kind
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.vocabulary.names import STRUCTURES

NAME = "lund-probe/standard"


class VoxelsOnly:
    """Access for a caller who may have voxels and no tables."""

    kinds = frozenset({Kind.VOXELS})

    def caller(self, headers, *where):
        return Caller("someone", kinds=self.kinds)


class TablesOnly(VoxelsOnly):
    kinds = frozenset({Kind.TABLES})


@pytest.fixture(scope="module")
def rows(dataset):
    return Dataset.open(Location(str(dataset))).table("patients").to_pylist()


@pytest.fixture(scope="module")
def extended(rows):
    return next(r["patient_id"] for r in rows if r["part"] == "extended")


@pytest.fixture
def ask(served, extended):
    """Ask about the extended patient, or another."""
    client = served.client

    def get(path="", patient=extended, headers=None, **params):
        url = f"/api/v1/datasets/{NAME}/patients/{patient}{path}"
        return client.get(url, params=params, headers=headers)

    with client:
        yield get


def test_a_patient_is_described(ask, rows):
    for row in rows:
        found = ask(patient=row["patient_id"]).json()
        assert found["synthetic"] is True
        assert found["prescription"] == {"gy": 42.7, "fractions": 7}
        for grid in ("mri", "sct", "dose"):
            there = found["grids"][grid]
            assert there["shape"] == row[f"{grid}_shape"]
            assert there["is_aligned"] is True
            np.testing.assert_allclose(there["spacing_mm"], row[f"{grid}_spacing_mm"])
            x, y, z = np.array(there["affine_ras"])[:3, 3]
            np.testing.assert_allclose([z, -y, -x], row[f"{grid}_origin_mm"])
        assert len(found["fiducials_mm"]) == row["n_fiducials"]
        assert found["findings"] == row["findings"]
        lacking = [s["structure"] for s in found["structures"] if s["missing_because"]]
        assert lacking == row["missing_structures"]
        assert [s["structure"] for s in found["structures"]] == list(STRUCTURES)
        volumes = {
            (a["array"], *v["labels"].values()): v for a in found["arrays"] for v in a["volumes"]
        }
        low, high = volumes["mri/image", "T2w"]["window"]
        assert volumes["mri/image", "T2w"]["range"][0] <= low < high
        assert volumes["mri/image", "sCT"]["unit"] == "HU"
        assert volumes["dose/dose",]["unit"] == "Gy"
        assert found["tables"]["patients"][0]["dose_max_gy"] == row["dose_max_gy"]
        assert found["damaged"] == []


def test_segmentations_have_their_boxes(ask, dataset, extended):
    found = ask(tables="structures").json()
    table = Dataset.open(Location(str(dataset))).patient_rows("structures", extended).to_pylist()
    assert len(found["segmentations"]) == len(found["tables"]["structures"]) == len(table)
    for s, row in zip(found["segmentations"], table, strict=True):
        assert s["box"] == [row["bbox_start"], row["bbox_stop"]]
        assert s["centroid_mm"] == row["centroid_mm"][::-1]
        assert s.get("observer") == row["observer"]
    body = next(
        s for s in found["segmentations"] if s["structure"] == "BODY" and s["grid"] == "mri"
    )
    assert found["grids"]["mri"]["body_box"] == body["box"]
    ctv = next(s for s in found["segmentations"] if s["structure"] == "CTVT_427")
    assert found["opening"] == {"point_mm": ctv["centroid_mm"], "is": "centroid of CTVT_427"}


def test_what_is_missing_says_why(ask, rows):
    row = next(r for r in rows if r["missing_PenileBulb"])
    found = ask(patient=row["patient_id"]).json()
    bulb = next(s for s in found["structures"] if s["structure"] == "PenileBulb")
    assert bulb["grids"] == []
    assert bulb["missing_because"] == "not delineated: the authors of the data list it as missing"
    assert {m["array"] for m in found["missing"]} == {"mri/clinical/mask", "sct/clinical/mask"}


def test_an_oblique_patient_is_said_to_be_oblique(start_service, oblique_dataset):
    served = start_service({NAME: oblique_dataset})
    patient = Dataset.open(Location(str(oblique_dataset))).ids[0]
    with served.client as client:
        found = client.get(f"/api/v1/datasets/{NAME}/patients/{patient}").json()
    assert [g["is_aligned"] for g in found["grids"].values()] == [False] * 3


@pytest.mark.parametrize(("axis", "shape"), [("z", "yx"), ("y", "zx"), ("x", "zy")])
def test_pictures_and_thumbnails_can_be_looked_at(ask, axis, shape):
    found = ask().json()["grids"]["mri"]
    sizes = dict(zip("zyx", found["shape"], strict=True))
    spacing = dict(zip("zyx", found["spacing_mm"], strict=True))
    for form in ("png", "webp"):
        answer = ask(
            "/plane", array="mri/image", modality="T2w", axis=axis, n=7, format=form,
            window="0,500",
        )  # fmt: skip
        assert answer.headers["content-type"] == f"image/{form}"
        drawn = Image.open(io.BytesIO(answer.content))
        said = json.loads(answer.headers["x-plane"])
        assert said["window"] == [0, 500]
        assert list(drawn.size) == said["shape"][::-1]
        repeat = round(spacing[shape[0]] / spacing[shape[1]]) if axis != "z" else 1
        assert drawn.size == (sizes[shape[1]], sizes[shape[0]] * repeat)
    small = Image.open(io.BytesIO(ask("/thumbnail").content))
    assert max(small.size) <= 256
    assert np.asarray(small).max() > 200


def test_what_is_held_is_not_sent_again(ask):
    for path, params in (
        ("", {}),
        ("/plane", {"array": "mri/dose", "n": 3}),
        ("/contours", {"n": 3}),
        ("/isodoses", {"n": 3}),
        ("/values", {"x": 0, "y": 0, "z": 0}),
        ("/dvh", {"structures": "Rectum"}),
        ("/thumbnail", {}),
    ):
        first = ask(path, **params)
        assert first.status_code == 200, first.text
        assert first.headers["cache-control"] == "private, no-cache"
        tag = first.headers["etag"]
        again = ask(path, **params, headers={"If-None-Match": f'"other", W/{tag}'})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        fixed = ask(path, **params, rev=first.headers["x-repo-commit"])
        assert fixed.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert fixed.headers["etag"] == tag
        assert ask(path, **params, headers={"Accept-Encoding": "identity"}).headers["etag"] != tag


def test_another_revision_is_refused(ask):
    answer = ask("/plane", array="mri/dose", n=3, rev="0" * 40)
    assert answer.status_code == 404
    assert answer.headers["x-error-code"] == "RevisionNotFound"


def test_tags_differ_by_what_is_asked_for(ask):
    plane = {"array": "mri/dose", "n": 3}
    asked = [plane, plane | {"n": 4}, plane | {"stride": 2}, plane | {"array": "sct/dose"}]
    assert len({ask("/plane", **a).headers["etag"] for a in asked}) == 4


@pytest.mark.parametrize(
    ("path", "params", "status", "said"),
    [
        ("/plane", {}, 422, "Give 'array', one of mri/image,"),
        ("/plane", {"array": "mri/imag", "n": 1}, 404, "nearest: mri/image"),
        ("/plane", {"array": "../../etc/passwd", "n": 1}, 404, "no array"),
        ("/plane", {"array": "mri/image", "n": 1}, 422, "needs 'modality', one of T2w, sCT"),
        ("/plane", {"array": "mri/image", "modality": "T1w", "n": 1}, 404, "T2w, sCT"),
        ("/plane", {"array": "mri/dose", "modality": "T2w", "n": 1}, 422, "modality"),
        ("/plane", {"array": "mri/dose"}, 422, "either 'n', the index"),
        ("/plane", {"array": "mri/dose", "n": 1, "at_mm": 1}, 422, "either 'n', the index"),
        ("/plane", {"array": "mri/dose", "n": 999}, 422, "planes 0 to 11"),
        ("/plane", {"array": "mri/dose", "n": -1}, 422, "planes 0 to 11"),
        ("/plane", {"array": "mri/dose", "n": "1.5"}, 422, "expected a whole number"),
        ("/plane", {"array": "mri/dose", "at_mm": 9999}, 422, "outside the grid along z"),
        ("/plane", {"array": "mri/dose", "at_mm": "1,2"}, 422, "expected 1 or 3 numbers"),
        ("/plane", {"array": "mri/dose", "n": 1, "axis": "axial"}, 422, "one of z, y, x"),
        ("/plane", {"array": "mri/dose", "n": 1, "stride": 3}, 422, "one of 1, 2, 4"),
        ("/plane", {"array": "mri/dose", "n": 1, "format": "jpg"}, 422, "raw, png, webp"),
        ("/plane", {"array": "mri/dose", "n": 1, "box": "0,0,0,1,1,9999"}, 422, "z0,y0,x0"),
        ("/plane", {"array": "mri/dose", "n": 1, "box": "0,5,5,1,5,6"}, 422, "z0,y0,x0"),
        ("/plane", {"array": "mri/dose", "n": 1, "window": "0,1"}, 422, "format png or webp"),
        ("/plane", {"array": "mri/dose", "m": 1}, 422, "Unknown parameter 'm'"),
        ("/contours", {"n": 1, "structures": "Rectm"}, 404, "nearest: Rectum"),
        ("/contours", {"n": 1, "source": "fold"}, 404, "nearest: nnunet_fold"),
        ("/contours", {"n": 1, "grid": "dose"}, 422, "one of mri, sct"),
        ("/contours", {"n": 1, "observer": "obsA"}, 404, "obsE"),
        ("/isodoses", {"n": 1, "levels": "0"}, 422, "above 0"),
        ("/isodoses", {"n": 1, "levels": "1e300"}, 422, "at most"),
        ("/plane", {"array": "mri/dose", "at_mm": "1e308"}, 422, "outside the grid"),
        ("/plane", {"array": "mri/dose", "at_mm": "1e308,-1e308,1e308"}, 422, "outside"),
        ("/isodoses", {"n": 1, "levels": "a"}, 422, "numbers"),
        ("/isodoses", {"n": 1, "levels": ",".join(["5"] * 21)}, 422, "1 to 20"),
        ("/values", {"x": 1, "y": 2}, 422, "'x', 'y' and 'z'"),
        ("/values", {"x": 1, "y": 2, "z": "inf"}, 422, "expected a number"),
        ("/dvh", {"source": "nnunet"}, 404, "clinical masks only"),
        ("", {"tables": "patient"}, 404, "nearest: patients"),
    ],
)
def test_what_is_wrong_is_explained(ask, path, params, status, said):
    answer = ask(path, **params)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]


def test_a_parameter_twice_is_refused(served, extended):
    with served.client as client:
        url = f"/api/v1/datasets/{NAME}/patients/{extended}/plane?array=mri/dose&n=1&n=2"
        assert client.get(url).status_code == 422


def test_an_unknown_patient_has_a_nearest_name(ask, extended):
    answer = ask("/plane", patient=extended[:-1] + "x", array="mri/dose", n=1)
    assert answer.status_code == 404
    assert extended in answer.json()["error"]
    for hostile in ("..", "%2e%2e%2f%2e%2e", "a%00b"):
        assert ask("/plane", patient=hostile).status_code == 404


def test_rows_of_tables_need_their_own_grant(start_service, dataset, extended):
    served = start_service({NAME: dataset})
    url = f"/api/v1/datasets/{NAME}/patients/{extended}"
    service = served.app._service
    with served.client as client:
        whole = client.get(url)
        service.access = VoxelsOnly()
        found = client.get(url, headers={"If-None-Match": whole.headers["etag"]})
        assert found.status_code == 200
        assert found.json()["tables"] is None
        assert len(found.json()["segmentations"]) > 10
        service.access = TablesOnly()
        assert client.get(url).status_code == 403
        assert client.get(f"{url}/thumbnail").status_code == 403


def test_every_request_is_in_the_audit_log(served, ask, extended):
    ask("/plane", array="mri/dose", n=11)
    line = json.loads(served.audit.read_text().splitlines()[-1])
    assert line["dataset"] == NAME
    assert line["path"] == f"patients/{extended}/plane mri/dose"


@pytest.fixture
def damaged(copied, start_service, extended):
    """A service of a dataset with a damaged T2w image and a damaged Rectum."""
    for shard in ("mri/image/c/0/0/0/0", "mri/clinical/mask/c/2/0/0/0"):
        file = copied / "patients" / f"{extended}.zarr" / shard
        data = bytearray(file.read_bytes())
        for place in range(40, max(41, len(data) - 400), 100):  # every chunk; the index stays
            data[place] ^= 255
        file.write_bytes(data)
    served = start_service({NAME: copied})
    with httpx.Client(
        base_url=f"{served.url}/api/v1/datasets/{NAME}/patients/{extended}",
        headers=served.headers,
        timeout=30,
    ) as client:
        yield client, str(copied)


def test_damage_is_named_and_the_rest_works(damaged):
    client, place = damaged
    refused = client.get("/plane", params={"array": "mri/image", "modality": "T2w", "n": 3})
    assert refused.status_code == 502
    assert "array mri/image [modality=T2w]" in refused.json()["error"]
    assert place not in refused.text
    for params in (
        {"array": "mri/image", "modality": "sCT", "n": 3},
        {"array": "mri/dose", "n": 3},
    ):
        assert client.get("/plane", params=params).status_code == 200
    whole = client.get(str(client.base_url).rstrip("/")).json()
    rectum = next(s for s in whole["segmentations"] if s["structure"] == "Rectum")
    found = client.get("/contours", params={"n": rectum["box"][0][0]})
    assert found.headers["cache-control"] == "no-store"
    assert "etag" not in found.headers
    assert [d for d in found.json()["damaged"] if "structure=Rectum" in d]
    assert "BODY" in {c["structure"] for c in found.json()["contours"]}
    assert whole["arrays"][0]["volumes"][0]["window"] is None
    assert "mri/image" in whole["damaged"][0]
    x, y, z = whole["opening"]["point_mm"]
    values = client.get("/values", params={"x": x, "y": y, "z": z}).json()
    assert values["grids"]["mri"]["values"][1]["value"] is not None
    assert values["damaged"]
    curves = client.get("/dvh", params={"grid": "mri", "structures": "Rectum,BODY"}).json()
    assert {c["structure"] for c in curves["histograms"]} == {"Rectum", "BODY"}  # of the table
    assert place not in json.dumps([values, curves, whole])


def test_a_replaced_store_is_refused_until_it_is_known(copied, start_service, extended):
    served = start_service({NAME: copied})
    url = f"/api/v1/datasets/{NAME}/patients/{extended}/plane"
    with served.client as client:
        assert client.get(url, params={"array": "mri/dose", "n": 3}).status_code == 200
        root = copied / "patients" / f"{extended}.zarr" / "zarr.json"
        root.write_text(root.read_text() + "\n")
        answer = client.get(url, params={"array": "sct/dose", "n": 3})
        assert answer.status_code == 503
        assert "being replaced" in answer.json()["error"]


def test_a_service_without_a_cache_works(start_service, dataset, extended):
    served = start_service({NAME: dataset}, options={"plane_cache_mb": 0})
    url = f"/api/v1/datasets/{NAME}/patients/{extended}/plane?array=mri/dose&n=3"
    with served.client as client:
        assert client.get(url).content == client.get(url).content
    assert served.app._inner.state.volumes.tiles.bytes == 0
