"""`lundprobe-zarr agreement`: predictions in a bucket, and what it says of wrong usage."""

from __future__ import annotations

import json

import pytest

import lundprobe_zarr as lp
from tests.anywhere.servers import s3_server


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ("1=Rectum,1=Bladder", "1 twice; expected each number once"),
        ("Rectum", "expected numbers and names"),
        ("0=Rectum,1=Bladder", "0 for Rectum"),
    ],
)
def test_wrong_labels_are_refused(cli, dataset, tmp_path, labels, says):
    (tmp_path / "newAcq_0000000000000000.nii.gz").touch()
    ran = cli("agreement", dataset, "--predictions", tmp_path, "--labels", labels)
    assert ran.status == 2
    assert says in ran.err


@pytest.fixture
def bucket():
    """Storage options of a server of S3 with an empty bucket, `predictions`."""
    pytest.importorskip("moto.moto_server.werkzeug_app", reason="pip install 'moto[s3,server]'")
    s3fs = pytest.importorskip("s3fs")
    with s3_server() as (endpoint, _):
        options = {"key": "AKIAIOSFODNN7EXAMPLE", "secret": "none", "endpoint_url": endpoint}
        s3fs.S3FileSystem(**options).mkdir("predictions")
        yield options


def test_predictions_in_a_bucket_take_storage_options(cli, dataset, bucket, tmp_path):
    patient = lp.open_cohort(dataset)[0]
    place = "s3://predictions/of-tests"
    mask = patient.mask("Rectum").values
    lp.write_prediction(patient, {"Rectum": mask}, "unet", {}, to=place, storage_options=bucket)
    file = tmp_path / "options.json"
    file.write_text(json.dumps(bucket))
    elsewhere = [
        "--storage-options",
        '{"key": "k", "secret": "s", "endpoint_url": "http://x.invalid"}',
    ]
    for options in (
        ["--storage-options", json.dumps(bucket)],
        ["--predictions-options", f"@{file}"],
        [*elsewhere, "--predictions-options", json.dumps(bucket)],
    ):
        ran = cli(
            "agreement", dataset, "--predictions", place, "--pairs", "clinical_prediction",
            "--where", f"patient_id = '{patient.patient_id}'", "--format", "json", *options,
        )  # fmt: skip
        assert ran.status == 0, ran.err
        [row] = json.loads(ran.out)
        assert (row["b_source"], row["structure"], row["dice"]) == ("unet", "Rectum", 1.0)


def test_wrong_options_of_predictions_are_refused(cli, dataset, tmp_path):
    ran = cli("agreement", dataset, "--predictions", tmp_path, "--predictions-options", "{")
    assert ran.status == 2
    assert "--predictions-options: not a JSON object" in ran.err
    ran = cli("agreement", dataset, "--predictions-options", "{}")
    assert ran.status == 2
    assert "without --predictions" in ran.err
