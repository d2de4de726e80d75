"""Rows are those of the tables and voxels those of the stores, streamed or in memory."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.dataset.dataset import Dataset
from lundprobe_zarr.huggingface.handles import LazyVoxels
from lundprobe_zarr.schema.tables import COMPARED, TABLES
from lundprobe_zarr.vocabulary.names import STRUCTURES

BOTH = pytest.mark.parametrize("streaming", [True, False])


def load(manifest, config, split="base+extended", streaming=True, **options):
    return datasets.load_dataset(
        "lundprobe", config, data_files=manifest, split=split, streaming=streaming, **options
    )


def table(dataset, name):
    files = sorted((dataset / "metadata" / name).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@BOTH
@pytest.mark.parametrize("config", ["patients", "structures"])
def test_rows_of_tables(dataset, manifest, config, streaming):
    loaded = load(manifest, config, streaming=streaming)
    assert list(loaded) == table(dataset, config)
    assert loaded.features == datasets.Features.from_arrow_schema(TABLES[config].schema)


@BOTH
def test_without_us_the_folder_loads_as_plain_tables(dataset, streaming):
    for name, expected in TABLES.items():
        split = "extended" if name in COMPARED else "base+extended"
        loaded = datasets.load_dataset(str(dataset), name, split=split, streaming=streaming)
        assert list(loaded) == table(dataset, name)
        assert loaded.features == datasets.Features.from_arrow_schema(expected.schema)


@BOTH
def test_volumes_are_those_of_the_store(cohort, manifest, streaming):
    loaded = load(manifest, "volumes", streaming=streaming)
    assert [row["patient_id"] for row in loaded] == cohort.ids
    for row in loaded:
        patient = cohort[row["patient_id"]]
        for name in ("image", "mask", "dose"):
            assert isinstance(row[name], LazyVoxels)
        np.testing.assert_array_equal(np.asarray(row["image"]), patient.mri.image.values)
        np.testing.assert_array_equal(np.asarray(row["dose"]), patient.mri.dose.values)
        assert np.asarray(row["image"]).dtype == patient.mri.image.dtype
        assert row["shape"] == list(patient.mri.dose.shape) == list(row["dose"].shape)
        assert row["structures"] == list(STRUCTURES) == list(row["mask"].labels)
        there = patient.clinical.mask
        for number, structure in enumerate(STRUCTURES):
            voxels = row["mask"][number]
            assert row["present"][number] == (structure in there.structure.values)
            if row["present"][number]:
                np.testing.assert_array_equal(voxels, there.sel(structure=structure).values)
            else:
                assert not voxels.any()


@pytest.mark.parametrize("grid", ["mri", "sct", "dose"])
def test_every_grid(cohort, manifest, grid):
    for row in load(manifest, "volumes", grid=grid):
        dataset = cohort[row["patient_id"]].tree[grid].to_dataset()
        np.testing.assert_array_equal(np.asarray(row["dose"]), dataset.dose.values)
        assert row["spacing_mm"] == cohort[row["patient_id"]].row[f"{grid}_spacing_mm"]
        assert ("image" in row) == ("mask" in row) == (grid != "dose")
    if grid == "sct":
        there = cohort[row["patient_id"]].tree["sct/clinical"].to_dataset().mask.structure.values
        assert [s for s, p in zip(STRUCTURES, row["present"], strict=True) if p] == list(there)


def test_chosen_modalities_and_structures_in_the_order_asked_for(cohort, manifest):
    chosen = {"modalities": ["sCT"], "structures": ["PenileBulb", "CTVT_427"]}
    for row in load(manifest, "volumes", **chosen):
        patient = cohort[row["patient_id"]]
        assert row["image"].labels == ("sCT",)
        expected = patient.mri.image.sel(modality="sCT").values
        np.testing.assert_array_equal(row["image"][0], expected)
        np.testing.assert_array_equal(row["mask"][1], patient.mask("CTVT_427").values)
        assert row["present"] == [not patient.row["missing_PenileBulb"], True]


def test_a_patient_without_a_planning_grid_has_no_dose_there(cohort, manifest, monkeypatch):
    who = cohort.ids[0]
    patient = Dataset.patient_rows

    def without(self, name, patient_id):
        found = patient(self, name, patient_id)
        if name != "patients" or patient_id != who:
            return found
        at = found.schema.get_field_index("dose_shape")
        field = found.schema.field(at)
        return found.set_column(at, field, pa.array([None], field.type))

    monkeypatch.setattr(Dataset, "patient_rows", without)
    rows = {row["patient_id"]: row for row in load(manifest, "volumes", grid="dose")}
    assert rows.pop(who)["dose"] is None
    assert all(row["dose"] is not None for row in rows.values())


@BOTH
def test_slices(dataset, cohort, manifest, streaming):
    rows = list(load(manifest, "slices", streaming=streaming))
    plain = table(dataset, "slices")
    assert [{k: row[k] for k in plain[0]} for row in rows] == plain
    for row in rows[:: len(rows) // 7]:
        mri = cohort[row["patient_id"]].mri.isel(z=row["z_index"])
        np.testing.assert_array_equal(np.asarray(row["image"]), mri.image.values)
        np.testing.assert_array_equal(np.asarray(row["dose"]), mri.dose.values)
        assert row["mask"].shape == (len(STRUCTURES), *mri.dose.shape)
        for structure, mask, present in zip(
            STRUCTURES, np.asarray(row["mask"]), row["present"], strict=True
        ):
            count = row[f"voxels_{structure}"]
            assert present == (count is not None)
            assert mask.sum() == (count or 0)


def test_slices_with_a_target(manifest):
    rows = list(load(manifest, "slices", filters=[("voxels_CTVT_427", ">", 0)]))
    everything = list(load(manifest, "slices"))
    assert 0 < len(rows) < len(everything)
    assert len(rows) == sum((row["voxels_CTVT_427"] or 0) > 0 for row in everything)
    assert all(row["mask"][0].any() for row in rows)


def test_filters_and_columns_of_tables(dataset, manifest):
    filters = [("structure", "==", "Rectum"), ("grid", "==", "mri"), ("source", "==", "clinical")]
    rows = list(load(manifest, "structures", filters=filters, columns=["patient_id", "voxels"]))
    expected = [
        {"patient_id": r["patient_id"], "voxels": r["voxels"]}
        for r in table(dataset, "structures")
        if (r["structure"], r["grid"], r["source"]) == ("Rectum", "mri", "clinical")
    ]
    assert rows == expected != []


@BOTH
def test_where_chooses_patients_as_a_cohort_does(cohort, manifest, streaming):
    predicate = "NOT missing_PenileBulb AND Rectum.voxels > 0"
    for config in ("patients", "volumes", "structures", "slices"):
        rows = load(manifest, config, where=predicate, streaming=streaming)
        assert list(dict.fromkeys(r["patient_id"] for r in rows)) == cohort.where(predicate).ids
    assert len(cohort.where(predicate)) < len(cohort)


@BOTH
@pytest.mark.parametrize("config", ["patients", "slices", "volumes", "patches"])
def test_a_part_without_anybody_is_an_empty_split(manifest, config, streaming):
    options = {"patch_size": (4, 8, 8)} if config == "patches" else {}
    options |= {"where": "part = 'base'", "streaming": streaming}
    loaded = load(manifest, config, split=None, **options)
    assert set(loaded) == {"base", "extended"}
    assert list(loaded["extended"]) == []
    assert len(list(loaded["base"])) >= 3
    assert loaded["extended"].features == loaded["base"].features
    assert list(load(manifest, config, split="extended", **options)) == []
    together = load(manifest, config, split="base+extended", **options)
    assert len(list(together)) == len(list(loaded["base"]))


def test_nobody_in_memory(manifest):
    empty = load(manifest, "volumes", split=None, streaming=False, where="false")
    assert {name: len(rows) for name, rows in empty.items()} == {"base": 0, "extended": 0}
    assert len(empty["base"].map(lambda row: row)) == 0


@BOTH
def test_a_list_of_splits_is_a_list_of_datasets(dataset, manifest, streaming):
    wanted = ["extended", "base+extended"]
    for loaded in (
        load(manifest, "patients", split=wanted, streaming=streaming),
        lp.load_dataset(dataset, "patients", split=wanted, streaming=streaming),
    ):
        assert [len(list(rows)) for rows in loaded] == [1, 4]


def test_cohort_to_hf(cohort):
    chosen = cohort.where("protocol = 'newAcq'")
    stream = chosen.to_hf("volumes", columns=["patient_id", "image"])
    assert [row["patient_id"] for row in stream] == chosen.ids
    assert stream.num_shards == len(chosen)
    fewer = cohort[::2].to_hf("patients", where="part = 'base'")
    assert [row["patient_id"] for row in fewer] == cohort[::2].where("part = 'base'").ids


def test_load_dataset_of_ours_is_that_of_datasets(dataset, manifest, monkeypatch):
    monkeypatch.chdir(dataset.parent)
    for place in (dataset, dataset.name, manifest):
        ours = lp.load_dataset(place, "volumes", split="base+extended", streaming=True)
        assert list(ours) == list(load(manifest, "volumes"))
    monkeypatch.setenv("HOME", str(dataset.parent))
    assert len(list(lp.load_dataset(f"~/{dataset.name}", "volumes", split="base"))) == 3
    whole = lp.load_dataset(dataset, "slices")
    assert set(whole) == {"base", "extended"}
    assert whole["base"][3]["image"].shape[0] == 2
