"""Rows that come from voxels, against SimpleITK, SciPy and NumPy as independent computations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from lundprobe_zarr.conversion.tables.fragments import load_fragments
from lundprobe_zarr.conversion.tables.measure import (
    component_findings,
    foreground_sample,
    shape_columns,
)
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.measures.masks import bounding_box
from lundprobe_zarr.schema.tables import COMPARED, TABLES
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.opening import open_store
from lundprobe_zarr.vocabulary.files import SourceFile, format_path
from lundprobe_zarr.vocabulary.names import STRUCTURES

_GROUPS = {
    ("mri", "clinical"): ("mri/clinical", "mask"),
    ("sct", "clinical"): ("sct/clinical", "mask"),
    ("mri", "nnunet"): ("mri/nnunet", "mask"),
    ("mri", "nnunet_fold"): ("mri/nnunet", "fold_mask"),
    ("mri", "observer"): ("mri/observers", "mask"),
}


def _source_file(row: dict) -> str:
    group, variable = _GROUPS[row["grid"], row["source"]]
    names = ("structure", "fold") if variable == "fold_mask" else ("structure", "step", "observer")
    labels = {n: row[n] for n in names if row[n] is not None}
    return format_path(SourceFile(group, variable, labels))


def _read(dataset: Path, table: str) -> list[dict]:
    files = sorted((dataset / "metadata" / table).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def structures(dataset: Path) -> list[dict]:
    return _read(dataset, "structures")


@pytest.fixture(scope="module")
def folders(phantom_source: Path) -> dict[str, Path]:
    return {
        p.name: p
        for part in ("basePart", "extendedPart")
        for p in (phantom_source / part).iterdir()
    }


def test_every_segmentation_of_the_source_has_one_row(structures, folders):
    there = {
        (patient, file.relative_to(folder).as_posix())
        for patient, folder in folders.items()
        for file in folder.rglob("mask_*.nii.gz")
        if "fiducials" not in file.name and "uncertainty" not in file.name
    }
    rows = [(r["patient_id"], _source_file(r)) for r in structures]
    assert len(rows) == len(set(rows))
    assert set(rows) == there


def test_size_and_place_agree_with_simpleitk(structures, folders):
    for row in structures:
        image = sitk.ReadImage(str(folders[row["patient_id"]] / _source_file(row)), sitk.sitkUInt8)
        statistics = sitk.LabelShapeStatisticsImageFilter()
        statistics.Execute(image)
        assert row["voxels"] == statistics.GetNumberOfPixels(1)
        assert row["volume_cc"] == pytest.approx(statistics.GetPhysicalSize(1) / 1000, rel=1e-5)
        assert row["centroid_mm"][::-1] == pytest.approx(statistics.GetCentroid(1), abs=1e-3)
        box = statistics.GetBoundingBox(1)  # x y z, then sizes
        assert row["bbox_start"][::-1] == list(box[:3])
        sizes = np.subtract(row["bbox_stop"], row["bbox_start"])
        assert sizes[::-1].tolist() == list(box[3:])


def test_components_agree_with_simpleitk_and_gaps_with_numpy(structures, folders):
    for row in structures:
        image = sitk.ReadImage(str(folders[row["patient_id"]] / _source_file(row)), sitk.sitkUInt8)
        components = sitk.ConnectedComponentImageFilter()
        components.FullyConnectedOn()
        components.Execute(image)
        assert row["components"] == components.GetObjectCount()
        there = np.flatnonzero(sitk.GetArrayFromImage(image).any(axis=(1, 2)))
        assert row["empty_slices"] == there[-1] - there[0] + 1 - len(there)


def test_the_phantom_has_a_gap_and_several_components_to_find(structures):
    assert any(r["empty_slices"] > 0 and r["components"] > 1 for r in structures)


def test_dose_statistics_agree_with_numpy_on_the_source_files(structures, folders):
    for row in structures:
        folder = folders[row["patient_id"]]
        place = "MR_StorT2" if row["grid"] == "mri" else "sCT"
        dose = sitk.GetArrayFromImage(
            sitk.ReadImage(str(folder / place / "dose_interpolated.nii.gz"))
        )
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / _source_file(row)))) > 0
        values = dose[mask].astype(np.float64)
        if row["dose_covered_pct"] < 100:  # tests/conversion/test_dose_coverage.py
            continue
        assert row["dose_mean_gy"] == pytest.approx(values.mean(), rel=1e-6)
        assert (row["dose_min_gy"], row["dose_max_gy"]) == (values.min(), values.max())
        for x in (1, 2, 50, 95, 98, 99):
            least = int(np.ceil(x / 100 * len(values)))
            assert row[f"d{x}_gy"] == np.sort(values)[len(values) - least]
        for x in (65, 75, 90, 95, 100, 107):
            share = 100 * np.mean(values >= 42.7 * x / 100)
            assert row[f"v{x}_pct"] == pytest.approx(share, abs=1e-9)


def test_slices_count_the_voxels_of_each_structure(dataset, folders):
    rows = _read(dataset, "slices")
    by_patient: dict[str, list[dict]] = {}
    for row in rows:
        by_patient.setdefault(row["patient_id"], []).append(row)
    assert set(by_patient) == set(folders)
    for patient, slices in by_patient.items():
        image = sitk.ReadImage(str(folders[patient] / "MR_StorT2/image.nii.gz"))
        assert [s["z_index"] for s in slices] == list(range(image.GetDepth()))
        for s in slices:
            z = image.TransformIndexToPhysicalPoint((0, 0, s["z_index"]))[2]
            assert s["z_mm"] == pytest.approx(z, abs=1e-4)
        for structure in STRUCTURES:
            file = folders[patient] / f"MR_StorT2/mask_{structure}.nii.gz"
            counts = [s[f"voxels_{structure}"] for s in slices]
            if not file.exists():
                assert counts == [None] * len(slices)
                continue
            mask = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
            assert counts == np.count_nonzero(mask, axis=(1, 2)).tolist()


def test_foreground_samples_lie_in_their_structure(dataset, folders):
    rows = _read(dataset, "foreground")
    assert rows
    for row in rows:
        file = folders[row["patient_id"]] / f"MR_StorT2/mask_{row['structure']}.nii.gz"
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(file))) > 0
        assert row["total"] == np.count_nonzero(mask)
        places = np.array(row["indices"])
        assert len(places) == min(1000, row["total"]) == len(np.unique(places, axis=0))
        assert mask[tuple(places.T)].all()


@given(arrays(bool, st.tuples(*[st.integers(1, 7)] * 3)))
def test_shape_columns_agree_with_scipy_for_any_mask(mask):
    affine = np.diag([-0.5, -0.7, 2.5, 1.0])
    affine[:3, 3] = 10, -20, 30
    box = bounding_box(mask)
    row = shape_columns(mask, box, affine)
    assert row["voxels"] == mask.sum()
    assert row["components"] == ndimage.label(mask, np.ones((3, 3, 3)))[1]
    if mask.any():
        found = ndimage.find_objects(mask.astype(int))[0]
        assert box == found
        k, j, i = ndimage.center_of_mass(mask)
        assert row["centroid_mm"] == pytest.approx([30 + 2.5 * k, 20 + 0.7 * j, -10 + 0.5 * i])
    else:
        assert row["bbox_start"] is None
        assert row["centroid_mm"] is None


def test_a_large_structure_is_sampled_without_repeats_and_the_same_every_time():
    mask = np.random.default_rng(0).random((12, 40, 50)) < 0.3
    total, places = foreground_sample(mask, bounding_box(mask), "newAcq_0/Rectum")
    assert total == mask.sum()
    assert len({tuple(p) for p in places}) == 1000
    assert mask[tuple(np.array(places).T)].all()
    assert places == foreground_sample(mask, bounding_box(mask), "newAcq_0/Rectum")[1]
    assert places != foreground_sample(mask, bounding_box(mask), "newAcq_1/Rectum")[1]


def test_components_that_the_authors_do_not_list_are_found_and_the_reverse():
    assert component_findings({"Bladder": 2, "Rectum": 1}, ("Bladder",)) == []
    [finding] = component_findings({"Bladder": 2}, ())
    assert "Bladder" in finding
    assert "2" in finding
    [finding] = component_findings({"Bladder": 1}, ("Bladder",))
    assert "on the authors' list" in finding
    assert component_findings({"Bladder": 2}, None) == []


def test_tables_rebuilt_from_the_stores_alone_are_the_same(dataset, copied):
    shutil.rmtree(copied / "metadata")
    shutil.rmtree(copied / ".conversion", ignore_errors=True)
    (copied / "lundprobe.json").unlink()
    finalise(copied)
    written = set(TABLES).difference(COMPARED)  # those `measure` makes
    for table in written:
        assert _read(copied, table) == _read(dataset, table)
    manifest = json.loads((copied / "lundprobe.json").read_text())
    assert set(manifest["tables"]) == written


def test_rows_of_another_store_are_not_trusted(copied):
    patient = next((copied / "patients").iterdir()).name.removesuffix(".zarr")
    store = open_store(Location(copied), patient)
    first = load_fragments(copied, [store])[0]
    kept = copied / ".conversion" / "structures" / f"{patient}.parquet"
    table = pq.read_table(kept)
    wrong = table.set_column(
        table.column_names.index("voxels"), table.schema.field("voxels"), [[0] * table.num_rows]
    )
    metadata = {**table.schema.metadata, b"store_sha256": b"of another store"}
    pq.write_table(wrong.replace_schema_metadata(metadata), kept)
    again = load_fragments(copied, [store])[0]
    assert again["structures"].to_pylist() == first["structures"].to_pylist()


def test_kept_rows_that_changed_in_their_last_bit_are_measured_anew(copied):
    patient = next((copied / "patients").iterdir()).name.removesuffix(".zarr")
    store = open_store(Location(copied), patient)
    first = load_fragments(copied, [store])[0]["structures"]
    kept = copied / ".conversion" / "structures" / f"{patient}.parquet"
    table = pq.read_table(kept)
    volumes = [np.nextafter(v, np.inf) for v in table["volume_cc"].to_pylist()]
    place = table.column_names.index("volume_cc")
    wrong = table.set_column(place, table.schema.field("volume_cc"), [volumes])
    assert wrong.schema.equals(table.schema, check_metadata=True)
    pq.write_table(wrong, kept)
    assert load_fragments(copied, [store])[0]["structures"].equals(first)


@pytest.mark.parametrize("name", TABLES)
def test_every_column_carries_its_description_and_unit(dataset, name):
    file = next((dataset / "metadata" / name).glob("*.parquet"))
    schema = pq.read_schema(file)
    for column in TABLES[name].columns:
        metadata = schema.field(column.name).metadata
        assert metadata[b"description"].decode() == column.description
        assert metadata.get(b"unit", b"").decode() == column.unit
