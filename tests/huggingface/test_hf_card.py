"""The card and `croissant.json` as others read them."""

from __future__ import annotations

import hashlib
import json
import logging

import datasets
import pyarrow.parquet as pq
import pytest
import yaml

from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.dataset.opening import open_manifest
from lundprobe_zarr.publish.card import dataset_card
from lundprobe_zarr.publish.croissant import croissant
from lundprobe_zarr.schema.manifest import ACCESS
from lundprobe_zarr.schema.tables import TABLES
from lundprobe_zarr.storage.location import Location

pytestmark = [  # of mlcroissant, which calls rdflib and pandas as they were before
    pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.reset_index"),
]


@pytest.fixture(scope="module")
def front(dataset):
    return yaml.safe_load((dataset / "README.md").read_text().split("---\n")[1])


def test_the_front_matter_names_every_table_and_its_columns(dataset, front):
    assert [c["config_name"] for c in front["configs"]] == list(TABLES)
    for info in front["dataset_info"]:
        table = TABLES[info["config_name"]]
        features = datasets.Features._from_yaml_list(info["features"])
        assert features == datasets.Features.from_arrow_schema(table.schema)
        for split in info["splits"]:
            rows = sum(
                pq.read_metadata(f).num_rows
                for f in (dataset / "metadata" / table.name).glob(f"{split['name']}-*.parquet")
            )
            assert rows == split["num_examples"]


def test_the_hub_takes_the_card(dataset):
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(dataset / "README.md")
    assert card.data.license == "other"
    assert card.data.license_name == "synthetic"
    assert card.data.size_categories == ["n<1K"]
    assert set(card.data.task_categories) == {"image-segmentation", "image-to-image"}


def test_the_terms_of_real_data_are_those_of_their_source(dataset):
    manifest = open_manifest(Location(dataset))
    real = manifest.model_copy(update={"synthetic": False, "access": ACCESS, "name": "LUND-PROBE"})
    front = yaml.safe_load(dataset_card(real, {}).split("---\n")[1])
    assert front["license_name"] == "controlled-access"
    assert front["extra_gated_prompt"] == ACCESS
    described = json.loads(croissant(real))
    assert described["conditionsOfAccess"] == ACCESS
    assert "pseudonyms" in described["rai:personalSensitiveInformation"][0]
    assert "four oncologists" in described["rai:dataAnnotationProtocol"][1]
    assert "PenileBulb" in described["rai:dataCollectionMissingData"]


def test_zarr_metadata_is_never_taken_for_data(dataset):
    loaded = datasets.load_dataset(str(dataset), split="base", streaming=True)
    assert loaded.column_names == TABLES["patients"].schema.names


@pytest.fixture
def read_croissant(dataset, caplog):
    mlcroissant = pytest.importorskip("mlcroissant")
    with caplog.at_level(logging.WARNING):
        found = mlcroissant.Dataset(dataset / "croissant.json")
    assert not caplog.records, "mlcroissant has no remark"
    return found


def test_croissant_is_valid_and_of_the_version_it_says(read_croissant):
    assert read_croissant.metadata.ctx.is_v1_1()
    assert not read_croissant.metadata.ctx.issues.errors
    assert not read_croissant.metadata.ctx.issues.warnings
    assert "Computed" in read_croissant.metadata.data_collection


@pytest.mark.parametrize("name", TABLES)
def test_croissant_gives_the_rows_of_the_tables(dataset, read_croissant, name):
    expected = [
        row
        for file in sorted((dataset / "metadata" / name).glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]
    rows = list(read_croissant.records(name))
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        assert row[f"{name}/patient_id"].decode() == other["patient_id"]
        assert {k.partition("/")[2] for k in row} == set(other)
    (described,) = [r for r in read_croissant.metadata.record_sets if r.name == name]
    fields = {field.name: field for field in described.fields}
    for column in TABLES[name].columns:
        assert column.description in str(fields[column.name].description)


def test_finalise_writes_croissant_anew(dataset, copied):
    (copied / "croissant.json").unlink()
    finalise(copied)
    again = json.loads((copied / "croissant.json").read_text())
    assert again["recordSet"] == json.loads((dataset / "croissant.json").read_text())["recordSet"]
    (manifest,) = [f for f in again["distribution"] if f["@id"] == "manifest"]
    content = (copied / "lundprobe.json").read_bytes()
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
