"""The tables, against an independent reading of the source by nibabel."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
from trees import NEW, OLD, PART_FOLDER, Workplace, convert_tree, write_patient, write_side_files

from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.dataset.opening import open_manifest, read_table
from lundprobe_zarr.errors import DatasetError, NotADatasetError
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.schema.tables import COMPARED, TABLES
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.vocabulary.files import FIDUCIAL_TEXT, KNOWN_FILES
from lundprobe_zarr.vocabulary.names import STRUCTURES

PARTS = {NEW: "extended", OLD: "base"}
#: Tables that a conversion writes; the others are made by `measure`.
WRITTEN = [name for name in TABLES if name not in COMPARED]
IMAGES = {
    "mri": "MR_StorT2/image.nii.gz",
    "sct": "sCT/image.nii.gz",
    "dose": "sCT/dose_original.nii.gz",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base patient that lacks a structure and an extended one, converted and published."""
    home = tmp_path_factory.mktemp("tables")
    for patient, part in PARTS.items():
        write_patient(home / "source", patient, part)
        write_side_files(home / "source", part, (patient,))
    for grid in ("MR_StorT2", "sCT"):
        (home / "source" / "basePart" / OLD / grid / "mask_Genitalia.nii.gz").unlink()
    components = home / "source" / "StructuresMoreThan1ConComp_basePart.txt"
    components.write_text(f"{OLD}/sCT/mask_Bladder.nii.gz")
    results = convert_tree(home / "source", home / "dataset")
    assert all(r.error is None for r in results.values())
    finalise(home / "dataset")
    return home


def rows(home: Path, table: str) -> list[dict[str, Any]]:
    location = Location(home / "dataset")
    return read_table(location, open_manifest(location), table).to_pylist()  # type: ignore[no-any-return]


def folder(home: Path, patient: str) -> Path:
    return home / "source" / PART_FOLDER[PARTS[patient]] / patient


@pytest.mark.parametrize("grid", IMAGES)
@pytest.mark.parametrize("patient", PARTS)
def test_grids_are_as_nibabel_reads_them(home: Path, patient: str, grid: str) -> None:
    row = next(r for r in rows(home, "patients") if r["patient_id"] == patient)
    image = nib.load(folder(home, patient) / IMAGES[grid])
    assert row[f"{grid}_shape"] == list(image.shape[::-1])
    np.testing.assert_allclose(row[f"{grid}_spacing_mm"], image.header.get_zooms()[::-1])
    x, y, z = image.affine[:3, 3]
    np.testing.assert_allclose(row[f"{grid}_origin_mm"], [z, -y, -x])


@pytest.mark.parametrize("patient", PARTS)
def test_a_patient_s_row_is_as_the_source_says(home: Path, patient: str) -> None:
    row = next(r for r in rows(home, "patients") if r["patient_id"] == patient)
    place = folder(home, patient)
    assert row["part"] == PARTS[patient]
    assert row["protocol"] == patient.split("_")[0]
    assert row["store"] == f"patients/{patient}.zarr"
    dose = nib.load(place / IMAGES["dose"]).get_fdata()
    assert (row["dose_min_gy"], row["dose_max_gy"]) == (dose.min(), dose.max())
    missing = [s for s in STRUCTURES if not (place / f"MR_StorT2/mask_{s}.nii.gz").exists()]
    assert row["missing_structures"] == missing
    assert [s for s in STRUCTURES if row[f"missing_{s}"]] == missing
    assert row["multi_component_structures"] == (["Bladder"] if patient == OLD else [])
    assert row["n_fiducials"] == 3
    assert row["sct_warning_text"] == (patient == OLD)
    assert row["geometry_matches_csv"] is True
    files = [f for f in place.rglob("*") if f.is_file()]
    assert row["source_bytes"] == sum(f.stat().st_size for f in files)
    stored = (home / "dataset" / row["store"]).rglob("*")
    assert row["store_bytes"] == sum(f.stat().st_size for f in stored if f.is_file())


@pytest.mark.parametrize("patient", PARTS)
def test_provenance_has_every_file_once_with_its_size_hash_type_and_shape(
    home: Path, patient: str
) -> None:
    there = [r for r in rows(home, "arrays") if r["patient_id"] == patient]
    files = sorted(f for f in folder(home, patient).rglob("*") if f.is_file())
    paths = [f.relative_to(home / "source").as_posix() for f in files]
    assert sorted(r["source_path"] for r in there) == paths
    for row in there:
        file = home / "source" / row["source_path"]
        data = file.read_bytes()
        assert row["source_bytes"] == len(data)
        assert row["source_sha256"] == hashlib.sha256(data).hexdigest()
        below = file.relative_to(folder(home, patient)).as_posix()
        record = KNOWN_FILES[below]
        assert (row["group"], row["variable"]) == (record.group, record.variable)
        assert json.loads(row["labels"]) == record.labels
        if below == FIDUCIAL_TEXT:
            assert (row["source_dtype"], row["source_shape"]) == (None, None)
            continue
        image = nib.load(file)
        assert np.dtype(row["source_dtype"]) == image.get_data_dtype()
        assert row["source_shape"] == list(image.shape[::-1])
        if row["stored_dtype"] == "bool":
            assert record.kind == "mask"
        shard = home / "dataset" / "patients" / f"{patient}.zarr" / record.group / record.variable
        sizes = [f.stat().st_size for f in shard.rglob("c/**/*") if f.is_file()]
        assert row["stored_bytes"] in sizes


def test_rounding_is_recorded_where_it_happened_and_nowhere_else(home: Path) -> None:
    for row in rows(home, "arrays"):
        rounded = row["source_path"].endswith("image_reg2MRI.nii.gz")
        assert row["exact"] == (not rounded)
        assert (row["max_abs_error"] > 0) == rounded


def test_voxels_in_the_sources_are_those_nibabel_counts(home: Path) -> None:
    import zarr

    store = zarr.open_group(home / "dataset" / "patients" / f"{NEW}.zarr", mode="r")
    for source in json.loads(store["mri/clinical/mask"].attrs["sources"]):
        image = nib.load(home / "source" / source["path"])
        assert source["voxels"] == int(np.count_nonzero(image.get_fdata()))
        data = gzip.decompress((home / "source" / source["path"]).read_bytes())
        assert source["nifti_sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("table", WRITTEN)
def test_every_column_says_what_it_means_and_no_type_is_custom(home: Path, table: str) -> None:
    for part in ("base", "extended"):
        schema = pq.read_schema(home / "dataset" / "metadata" / table / f"{part}-00000.parquet")
        assert schema.metadata[b"description"].startswith(b"A row is ")
        for field in schema:
            assert field.metadata[b"description"], field.name
            assert "extension" not in str(field.type)
            if field.name.endswith(("_mm", "_gy", "_cc", "_pct", "_bytes")):
                assert field.metadata[b"unit"], field.name


def test_a_published_dataset_is_sound_to_every_byte(home: Path) -> None:
    found = validate(Location(home / "dataset"), deep=True)
    assert found.problems == ()
    assert found.stores == 2


def test_publishing_twice_changes_no_table(home: Path) -> None:
    before = {t: rows(home, t) for t in WRITTEN}
    finalise(home / "dataset")
    assert {t: rows(home, t) for t in WRITTEN} == before


def test_a_damaged_store_is_left_out_and_named(work: Workplace) -> None:
    work.convert()
    (work.store / "zarr.json").write_text("{")
    (work.dataset / "patients" / "stray.zarr").write_text("a file")
    published = finalise(work.dataset)
    assert published.manifest.patients == {"base": 1, "extended": 0}
    assert sorted(line.split(":")[0] for line in published.left_out) == [
        f"{NEW}.zarr",
        "stray.zarr",
    ]


def test_mixed_precisions_are_refused(work: Workplace) -> None:
    work.convert_one("compact")
    convert_tree(work.source, work.dataset, "compact")
    write_patient(work.source, "newAcq_00000000000000c3", only=tuple(IMAGES.values()))
    assert work.convert_one("standard").error is None
    with pytest.raises(DatasetError, match=r"standard \(1\) and compact \(1\)(?s:.*)--overwrite"):
        finalise(work.dataset)


def test_an_empty_destination_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(NotADatasetError, match=r"no patient's store .*convert"):
        finalise(tmp_path)
