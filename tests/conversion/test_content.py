"""The content hash: the same wherever the same data are, another where they are not."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trees import AFFINES, MRI, NEW, SCT, SHAPES, Workplace, patch, uncompressed, write_nifti

from lundprobe_zarr.cohort import open_cohort
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.dataset.content import rows_sha256, table_content
from lundprobe_zarr.dataset.opening import open_manifest, read_table
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.schema.encoding import BloscSettings
from lundprobe_zarr.schema.manifest import Content
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.opening import open_store
from tests.altered import forget_hashes, rewrite

DOSE = "sCT/dose_original.nii.gz"
RECTUM = "MR_StorT2/mask_Rectum.nii.gz"


def content(dataset: Path) -> Content:
    found = finalise(dataset).manifest.content
    assert found is not None
    return found


def converted(work: Workplace, dataset: Path) -> Content:
    """Content of another conversion of the work's source."""
    elsewhere = Workplace(work.source, dataset)
    assert elsewhere.convert_one().error is None
    return content(dataset)


def problems(dataset: Path, deep: bool = False) -> str:
    return "\n".join(map(str, validate(Location(dataset), deep).problems))


def test_the_same_source_gives_the_same_hash_however_it_is_stored(
    work: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(work.dataset)
    for file in work.folder.rglob("*.nii.gz"):  # the same voxels, compressed by another tool
        file.write_bytes(gzip.compress(uncompressed(file), 1, mtime=7))
    monkeypatch.setattr(
        "lundprobe_zarr.conversion.arrays.volumes.MASK_BLOSC", BloscSettings("lz4", 9, "shuffle")
    )
    monkeypatch.setattr("lundprobe_zarr.conversion.arrays.volumes.inner_chunk", lambda shape: shape)
    monkeypatch.setattr("lundprobe_zarr.schema.encoding.inner_chunk", lambda shape: shape)
    after = converted(work, tmp_path / "elsewhere")
    here, there = (open_store(Location(d), NEW) for d in (work.dataset, tmp_path / "elsewhere"))
    assert here.arrays["mri/clinical/mask"].blosc != there.arrays["mri/clinical/mask"].blosc
    assert here.sha256 != there.sha256
    assert before == after
    assert problems(tmp_path / "elsewhere", deep=True) == ""


@pytest.mark.parametrize("path", [MRI, RECTUM, DOSE])
def test_one_voxel_changes_it_and_says_whose(work: Workplace, path: str) -> None:
    before, rows = content(work.dataset), open_cohort(work.dataset).patients
    data = bytearray(uncompressed(work.folder / path))
    data[-1] ^= 1
    (work.folder / path).write_bytes(gzip.compress(bytes(data)))
    assert work.convert_one().error is None
    after, again = content(work.dataset), open_cohort(work.dataset).patients
    assert before.sha256 != after.sha256
    assert before.patients != after.patients
    assert rows.content_sha256[0] != again.content_sha256[0]


def test_the_place_in_the_patient_changes_it(work: Workplace, tmp_path: Path) -> None:
    before = content(work.dataset)
    for file in (work.folder / "MR_StorT2").glob("*.nii.gz"):
        patch("srow_y", 0, -0.5, 0, 4)(file)
    (work.folder / "sCT/image_reg2MRI.nii.gz").unlink()
    assert before.patients != converted(work, tmp_path / "moved").patients


def test_values_that_were_rounded_count_as_they_are_stored(work: Workplace, tmp_path: Path) -> None:
    values = np.full(SHAPES["sct"], 0.1)
    write_nifti(work.folder / SCT, values, AFFINES["sct"])
    hashes = []
    for precision in ("lossless", "standard", "compact"):
        dataset = tmp_path / precision
        assert Workplace(work.source, dataset).convert_one(precision).error is None
        store = open_store(Location(dataset), NEW)
        hashes.append(store.arrays["sct/image"].sources[0].voxels_sha256)
        finalise(dataset)
        assert problems(dataset, deep=True) == ""
    assert hashes[0] is None  # that of the NIfTI file says it
    assert len(set(hashes)) == 3


def test_a_scaling_that_was_undone_counts(work: Workplace) -> None:
    voxels = np.ones(SHAPES["sct"], np.int16)
    write_nifti(work.folder / SCT, voxels, AFFINES["sct"], slope=0.5, inter=0)
    assert work.convert_one().error is None
    (record,) = open_store(Location(work.dataset), NEW).arrays["sct/image"].sources
    assert record.restores
    assert record.voxels_sha256 is not None


def test_deep_validation_notices_voxels_that_are_not_those_recorded(work: Workplace) -> None:
    values = np.full(SHAPES["sct"], 0.1)
    write_nifti(work.folder / SCT, values, AFFINES["sct"])
    assert work.convert_one().error is None
    root = work.store / "zarr.json"

    def falsify(metadata: dict[str, Any]) -> None:
        array = metadata["consolidated_metadata"]["metadata"]["sct/image"]
        sources = json.loads(array["attributes"]["sources"])
        sources[0]["voxels_sha256"] = "0" * 64
        array["attributes"]["sources"] = json.dumps(sources)

    rewrite(root, falsify)
    finalise(work.dataset)
    assert problems(work.dataset) == ""
    assert "voxels whose SHA-256 is not 0000" in problems(work.dataset, deep=True)


def test_validation_notices_a_manifest_that_is_of_other_data(work: Workplace) -> None:
    manifest = finalise(work.dataset).manifest
    assert problems(work.dataset) == ""
    assert manifest.content is not None
    wrong = manifest.content.model_copy(update={"patients": "0" * 64})
    manifest = manifest.model_copy(update={"content": wrong})
    (work.dataset / "lundprobe.json").write_text(manifest.dump())
    assert "manifest: content" in problems(work.dataset)


def test_validation_notices_a_number_altered_in_a_table(work: Workplace) -> None:
    finalise(work.dataset)
    file = work.dataset / "metadata/structures/base-00000.parquet"
    table = pq.read_table(file)
    place = table.column_names.index("d50_gy")
    altered = table.set_column(place, table.schema.field(place), pa.array([1.5] * len(table)))
    pq.write_table(altered, file)
    assert "structures/base-00000.parquet" in problems(work.dataset)
    assert "another SHA-256 than in the manifest" in problems(work.dataset)
    forget_hashes(work.dataset)
    assert "structures table, base: content" in problems(work.dataset)
    assert "run finalise" in problems(work.dataset)


def test_datasets_without_it_open_and_are_sound(work: Workplace) -> None:
    finalise(work.dataset)
    for file in (
        *work.dataset.glob("metadata/patients*.parquet"),
        *work.dataset.glob("metadata/patients/*"),
    ):
        if file.is_file():
            pq.write_table(pq.read_table(file).drop_columns(["content_sha256"]), file)
    forget_hashes(work.dataset)
    rewrite(work.dataset / "lundprobe.json", lambda manifest: manifest.pop("content"))
    assert len(open_cohort(work.dataset).where("protocol = 'newAcq'")) == 1
    assert problems(work.dataset, deep=True) == ""


def test_the_order_of_work_does_not_matter(work: Workplace, tmp_path: Path) -> None:
    (first, second) = (tmp_path / name for name in ("first", "second"))
    patients = take_inventory(work.source).patients
    assert len(patients) == 2
    for dataset, order in ((first, patients), (second, patients[::-1])):
        for patient in order:
            assert convert_patient(patient, dataset, "standard").error is None
    assert content(first) == content(second)
    shutil.rmtree(first / "patients" / f"{NEW}.zarr")
    assert content(first).patients != content(second).patients


def test_last_digits_of_measures_do_not_count_but_all_else_does() -> None:
    def rows(mean: float, name: str = "a", box: list[int] | None = None) -> str:
        kinds = {"mean": pa.float64(), "name": pa.string(), "box": pa.list_(pa.int64(), 3)}
        columns = {"mean": [mean, None], "name": [name, "b"], "box": [box, [1, 2, 3]]}
        table = pa.table({n: pa.array(columns[n], kinds[n]) for n in columns})
        return table_content("t", table)

    assert rows(41.7) == rows(np.nextafter(41.7, 50))
    assert rows(0.0) == rows(-0.0)
    different = [rows(41.7), rows(41.701), rows(41.7, "c"), rows(41.7, box=[0, 0, 0])]
    assert len(set(different)) == 4


def test_every_bit_of_kept_rows_counts_and_their_chunks_do_not() -> None:
    kinds = {"mean": pa.float64(), "name": pa.string(), "box": pa.list_(pa.int64())}
    rows = {"mean": [41.7, 0.0, None], "name": ["ab", "c", None], "box": [[1, 2], [3], None]}

    def hashed(**other: list[Any]) -> str:
        columns = rows | other
        return rows_sha256(pa.table({n: pa.array(columns[n], kinds[n]) for n in columns}))

    different = [
        hashed(),
        hashed(mean=[np.nextafter(41.7, 50), 0.0, None]),
        hashed(mean=[41.7, -0.0, None]),
        hashed(mean=[41.7, None, 0.0]),
        hashed(mean=[41.7, 0.0, 0.0]),
        hashed(name=["a", "bc", None]),
        hashed(name=["ab", "c", ""]),
        hashed(box=[[1], [2, 3], None]),
        hashed(box=[[1, 2], [3], []]),
    ]
    assert len(set(different)) == len(different)
    table = pa.table({n: pa.array(rows[n], kinds[n]) for n in rows})
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert pieces["box"].num_chunks == 2
    assert rows_sha256(pieces) == rows_sha256(table) == hashed()


def test_how_a_table_is_laid_out_in_its_file_does_not_count(dataset: Path, tmp_path: Path) -> None:
    location = Location(dataset)
    for name in ("patients", "structures", "slices", "arrays"):
        table = read_table(location, open_manifest(location), name)
        pq.write_table(table, tmp_path / "x", row_group_size=1, compression="none")
        assert table_content(name, table) == table_content(name, pq.read_table(tmp_path / "x"))
