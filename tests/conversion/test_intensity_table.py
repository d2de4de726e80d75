"""The table `intensity`: statistics inside BODY, as converted, as measured again, and why not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import SimpleITK as sitk
from trees import NEW, convert_tree, write_patient

import lundprobe_zarr as lp
from lundprobe_zarr.conversion.tables.fragments import measure_store
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.dataset.opening import open_manifest
from lundprobe_zarr.integrity.measured import read_measured, table_findings
from lundprobe_zarr.schema.document import add_checksum
from lundprobe_zarr.schema.tables import PERMILLE, TABLES, percentile_name
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.opening import open_store

_IMAGES = {
    ("mri", "T2w"): "MR_StorT2/image.nii.gz",
    ("mri", "sCT"): "sCT/image_reg2MRI.nii.gz",
    ("sct", "sCT"): "sCT/image.nii.gz",
}
_FILE = "metadata/intensity/extended-00000.parquet"
_BODIES = {"mri": "MR_StorT2/mask_BODY.nii.gz", "sct": "sCT/mask_BODY.nii.gz"}


def _read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_every_image_has_the_statistics_that_numpy_finds_in_the_source(dataset, phantom_source):
    rows = lp.open_cohort(dataset).sql("SELECT * FROM intensity ORDER BY patient_id")
    assert len(rows) == 3 * 4
    for row in rows.to_dict("records"):
        folder = phantom_source / f"{row['part']}Part" / row["patient_id"]
        body = _read(folder / _BODIES[row["grid"]]) > 0
        values = _read(folder / _IMAGES[row["grid"], row["modality"]])[body]
        assert row["voxels"] == values.size
        assert row["mean"] == pytest.approx(values.mean(dtype=np.float64), rel=1e-6)
        assert row["sd"] == pytest.approx(values.astype(np.float64).std(), rel=1e-6)
        for p in PERMILLE:
            value = np.percentile(values, p / 10, method="inverted_cdf")
            assert row[percentile_name(p)] == pytest.approx(value, rel=1e-6)
        assert row["unit"] == {"T2w": "1", "sCT": "HU"}[row["modality"]]
        assert pd.isna(row["reason"])


def test_stores_alone_give_the_same_rows(dataset):
    location = Location(dataset)
    table = pq.read_table(dataset / _FILE).to_pylist()
    store = open_store(location, table[0]["patient_id"])
    assert measure_store(location, store)["intensity"] == table


@pytest.mark.parametrize("precision", ["lossless", "compact"])
def test_what_is_measured_is_what_is_stored(precision, tmp_path, sound_whole):
    convert_tree(sound_whole, tmp_path / "dataset", precision)
    location = Location(tmp_path / "dataset")
    finalise(tmp_path / "dataset")
    table = pq.read_table(tmp_path / "dataset/metadata/intensity/base-00000.parquet")
    assert measure_store(location, open_store(location, NEW))["intensity"] == table.to_pylist()


def test_without_body_there_is_a_reason_and_no_number(tmp_path):
    without = [*_IMAGES.values(), _BODIES["sct"]]
    write_patient(tmp_path / "source", only=without)
    convert_tree(tmp_path / "source", tmp_path / "dataset")
    finalise(tmp_path / "dataset")
    rows = lp.open_cohort(tmp_path / "dataset").sql("SELECT * FROM intensity").to_dict("records")
    measured = [c.name for c in TABLES["intensity"].columns if c.name not in _ALWAYS]
    for row in rows:
        if row["grid"] == "mri":
            assert row["reason"] == "no clinical BODY on the mri grid"
            assert all(pd.isna(row[name]) for name in measured)
        else:
            assert pd.isna(row["reason"])
            assert row["voxels"] > 0


_ALWAYS = ("patient_id", "part", "protocol", "grid", "modality", "unit", "reason")


def test_a_dataset_of_an_earlier_version_says_how_to_get_the_table(copied):
    _forget_table(copied)
    cohort = lp.open_cohort(copied)
    assert len(cohort) == 4
    with pytest.raises(lp.LundProbeError, match=r"no table intensity.*finalise.*--rebuild"):
        cohort.sql("SELECT * FROM intensity")
    finalise(copied, rebuild=True)
    assert len(lp.open_cohort(copied).sql("SELECT * FROM intensity")) == 12


def _forget_table(dataset):
    shutil.rmtree(dataset / "metadata/intensity")
    shutil.rmtree(dataset / ".conversion/intensity")
    manifest = json.loads((dataset / "lundprobe.json").read_text())
    for entry in ("tables", "table_sha256"):
        manifest[entry] = {k: v for k, v in manifest[entry].items() if "intensity" not in k}
    add_checksum(manifest, manifest)
    (dataset / "lundprobe.json").write_text(json.dumps(manifest))


def test_validate_finds_rows_of_other_images_and_of_another_body(dataset):
    location = Location(dataset)
    manifest = open_manifest(location)
    measured = read_measured(location, manifest)
    store = open_store(location, pq.read_table(dataset / _FILE)["patient_id"][0].as_py())
    rows = measured.of(store.patient_id)
    assert list(table_findings(store, rows)) == []
    [(table, finding)] = table_findings(store, replace(rows, intensity=rows.intensity[1:]))
    assert table == "intensity"
    assert "rows of [('mri', 'sCT'), ('sct', 'sCT')]; its store has" in finding
    wrong = [rows.intensity[0] | {"voxels": 7}, *rows.intensity[1:]]
    [(table, finding)] = table_findings(store, replace(rows, intensity=wrong))
    assert "7 voxels of BODY on the mri grid" in finding
