"""What makes no sense is refused with what would; each error says what there is."""

from __future__ import annotations

import json
import shutil

import datasets
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import (
    NotADatasetError,
    QueryError,
    SchemaVersionError,
    UnknownLabelError,
    UsageError,
)

WRONG = {
    "structure": ({"structures": ["Prostate"]}, UnknownLabelError, "there are CTVT_427, PTVT_427"),
    "modality": ({"modalities": ["T1w"]}, UnknownLabelError, "there are T2w, sCT"),
    "modality of the grid": (
        {"modalities": ["T2w"], "grid": "sct"},
        UnknownLabelError,
        "on grid 'sct'.*there are sCT",
    ),
    "column": ({"columns": ["images"]}, UnknownLabelError, "nearest: image.*there are patient_id"),
    "a text for a list": ({"columns": "image"}, UsageError, r"e.g. \['image'\]"),
    "twice": ({"structures": ["Rectum", "Rectum"]}, UsageError, "each once"),
    "a column twice": ({"columns": ["part", "part"]}, UsageError, "each once"),
    "no columns": ({"columns": []}, UsageError, r"columns=\[\]; expected at least one"),
    "no names": ({"columns": 3}, UsageError, "columns=3; expected a list of names"),
    "no names of structures": ({"structures": [["Rectum"]]}, UsageError, "a list of names"),
    "grid": ({"grid": "pet"}, UsageError, "expected one of mri, sct, dose"),
    "on_error": ({"on_error": "ignore"}, UsageError, "expected one of raise, skip"),
    "predicate": ({"where": "protokol = 'newAcq'"}, QueryError, "nearest: protocol"),
    "filters": (
        {"filters": [("protokol", "==", "x")]},
        UsageError,
        "columns of the table patients",
    ),
    "no filters": ({"filters": "protocol"}, UsageError, "expected tuples"),
    "option of patches": ({"patch_size": (1, 2, 3)}, UsageError, "with patches only"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_options(dataset, manifest, what):
    options, kind, message = WRONG[what]
    with pytest.raises(kind, match=message):
        lp.load_dataset(dataset, "volumes", split="base", streaming=True, **options)
    with pytest.raises(kind, match=message):
        datasets.load_dataset(
            "lundprobe", "volumes", data_files=manifest, split="base", streaming=True, **options
        )


def test_an_unknown_configuration(dataset, manifest):
    with pytest.raises(UnknownLabelError, match=r"nearest: volumes.*patients, structures, slices"):
        lp.load_dataset(dataset, "volume")
    with pytest.raises(ValueError, match=r"Available: \['patients', 'structures', 'slices'"):
        datasets.load_dataset("lundprobe", "volume", data_files=manifest)


@pytest.mark.parametrize("streaming", [True, False])
def test_an_unknown_split(dataset, streaming):
    with pytest.raises(ValueError, match=r"test.*(base|extended)"):
        lp.load_dataset(dataset, "volumes", split="test", streaming=streaming)


def test_skipping_needs_a_stream(dataset):
    with pytest.raises(UsageError, match="without streaming=True"):
        lp.load_dataset(dataset, "volumes", split="base", on_error="skip")


@pytest.mark.parametrize("streaming", [True, False])
def test_what_is_not_near_any_name_has_them_listed_once(dataset, streaming):
    with pytest.raises(UnknownLabelError) as raised:
        lp.load_dataset(dataset, "volumes", streaming=streaming, columns=["zzz"])
    assert str(raised.value).count("protocol") == 1


ELSEWHERE = {
    "unknown": ({"structure": ["Rectum"]}, "no such option; nearest: structures; expected one of"),
    "of the Hub": ({"revision": "main"}, "nothing is taken from the Hugging Face Hub"),
    "a token": ({"token": "x"}, "storage_options takes credentials"),
    "said already": ({"data_dir": "."}, "the first argument says where"),
    "processes": ({"num_proc": 2}, "with streaming=True; expected one of the two"),
}


@pytest.mark.parametrize("what", ELSEWHERE)
def test_options_of_theirs_that_mean_nothing_here(dataset, what):
    options, message = ELSEWHERE[what]
    with pytest.raises(UsageError, match=message):
        lp.load_dataset(dataset, "volumes", split="base", streaming=True, **options)


def test_data_files_that_are_no_manifest(dataset, manifest):
    table = str(next((dataset / "metadata/patients").glob("*.parquet")))
    for files in ({"data_files": table}, {"data_files": [manifest, table]}, {"data_dir": dataset}):
        with pytest.raises(UsageError, match="expected the manifest") as raised:
            datasets.load_dataset("lundprobe", "patients", **files)
        assert len(str(raised.value)) < 1000


def test_no_dataset_there(tmp_path):
    with pytest.raises(NotADatasetError, match="expected the root of a converted dataset"):
        lp.load_dataset(tmp_path, "patients", streaming=True)


def test_a_dataset_of_a_newer_schema(dataset, tmp_path):
    shutil.copytree(dataset / "metadata", tmp_path / "metadata")
    text = json.loads((dataset / "lundprobe.json").read_text()) | {"schema_version": 99}
    (tmp_path / "lundprobe.json").write_text(json.dumps(text))
    with pytest.raises(SchemaVersionError, match=r"schema version 99.*upgrade"):
        lp.load_dataset(tmp_path, "patients", streaming=True)
