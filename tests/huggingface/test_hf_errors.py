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
    "grid": ({"grid": "pet"}, UsageError, "expected one of mri, sct, dose"),
    "on_error": ({"on_error": "ignore"}, UsageError, "expected one of raise, skip"),
    "predicate": ({"where": "protokol = 'newAcq'"}, QueryError, "nearest: protocol"),
    "filters": (
        {"filters": [("protokol", "==", "x")]},
        UsageError,
        "columns of the table patients",
    ),
    "no filters": ({"filters": "protocol"}, UsageError, "expected tuples"),
    "option of patches": ({"patch_size": (1, 2, 3)}, UsageError, "with patches alone"),
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


def test_data_files_that_are_no_manifest(dataset, manifest):
    table = str(next((dataset / "metadata/patients").glob("*.parquet")))
    for files in (table, [manifest, table]):
        with pytest.raises(UsageError, match="expected the manifest"):
            datasets.load_dataset("lundprobe", "patients", data_files=files)


def test_no_dataset_there(tmp_path):
    with pytest.raises(NotADatasetError, match="expected the root of a converted dataset"):
        lp.load_dataset(tmp_path, "patients", streaming=True)


def test_a_dataset_of_a_newer_schema(dataset, tmp_path):
    shutil.copytree(dataset / "metadata", tmp_path / "metadata")
    text = json.loads((dataset / "lundprobe.json").read_text()) | {"schema_version": 99}
    (tmp_path / "lundprobe.json").write_text(json.dumps(text))
    with pytest.raises(SchemaVersionError, match=r"schema version 99.*upgrade"):
        lp.load_dataset(tmp_path, "patients", streaming=True)
