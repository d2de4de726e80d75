"""What is no converted dataset, a newer one or half of one is said to be so, before it is used."""

from __future__ import annotations

import pytest

from lundprobe_zarr import open_cohort
from lundprobe_zarr.errors import (
    Command,
    DamagedStoreError,
    DatasetError,
    NotADatasetError,
    SchemaVersionError,
    UnknownLabelError,
)
from tests.altered import rewrite

NEWER = r"schema version 99; this version of lundprobe-zarr reads up to 2; upgrade with `pip"


@pytest.mark.parametrize("place", ["", "nowhere", "patients", "metadata/patients.parquet"])
def test_places_that_are_no_dataset(dataset, place):
    url = dataset / place if place else dataset.parent
    with pytest.raises(NotADatasetError, match=r"lundprobe.json: not there; expected the root of"):
        open_cohort(url)


def test_a_manifest_is_no_root(dataset):
    with pytest.raises(NotADatasetError, match=r"json: a manifest; .* the folder that holds it"):
        open_cohort(dataset / "lundprobe.json")


def test_a_newer_dataset_is_refused(copied):
    rewrite(copied / "lundprobe.json", lambda m: m.update(schema_version=99))
    with pytest.raises(SchemaVersionError, match=f"lundprobe.json: {NEWER}"):
        open_cohort(copied)


def test_a_newer_store_is_refused(copied, extended):
    root = copied / f"patients/{extended}.zarr/zarr.json"
    rewrite(root, lambda node: node["attributes"].update(schema_version=99))
    with pytest.raises(SchemaVersionError, match=f"{extended}.zarr: {NEWER}"):
        open_cohort(copied)[extended].tree  # noqa: B018


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": "one"}'])
def test_a_broken_manifest_is_named(copied, text):
    (copied / "lundprobe.json").write_text(text)
    with pytest.raises(DatasetError, match=r"lundprobe.json: not ") as raised:
        open_cohort(copied)
    assert raised.value.command == Command("finalise")


@pytest.mark.parametrize("file", ["/etc/passwd", "../other/patients.parquet", "s3://b/x.parquet"])
def test_a_manifest_that_leads_outside_is_refused(copied, file):
    rewrite(copied / "lundprobe.json", lambda m: m["tables"].update(patients={"base": [file]}))
    with pytest.raises(DatasetError, match="lies outside the dataset"):
        open_cohort(copied)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"zarr_format": 3, "node_type": "group"}'])
def test_a_store_without_its_metadata_is_named(copied, extended, text):
    (copied / f"patients/{extended}.zarr/zarr.json").write_text(text)
    with pytest.raises(DamagedStoreError, match=f"{extended}.zarr: not the metadata of a complete"):
        open_cohort(copied)[extended].tree  # noqa: B018


def test_a_table_that_is_gone_is_named(copied):
    (copied / "metadata/structures/base-00000.parquet").unlink()
    cohort = open_cohort(copied)
    for ask in (
        lambda: cohort.sql("SELECT * FROM structures"),
        lambda: len(cohort.where("Rectum.volume_cc > 1")),
    ):
        with pytest.raises(DatasetError, match=r"structures/base-00000.parquet: not there"):
            ask()


def test_a_table_there_is_none_of(copied):
    expected = r"no table 'pixels'.* it has agreement, arrays, dvh"
    with pytest.raises(UnknownLabelError, match=expected):
        open_cohort(copied).table("pixels")
