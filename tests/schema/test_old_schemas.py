"""Datasets of every schema version that was ever released are read for good."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import lundprobe_zarr as lp
from lundprobe_zarr.cli import main
from lundprobe_zarr.dataset.opening import open_manifest
from lundprobe_zarr.errors import SchemaVersionError
from lundprobe_zarr.exchange.nifti import export_patient
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.schema.layout import SCHEMA_VERSION
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.opening import open_store
from tests.spare import Spare

KEPT = sorted((Path(__file__).parents[1] / "data").glob("schema-*.tar.xz"))
BASE, EXTENDED = "oldAcq_00000000000000b2", "newAcq_00000000000000a1"


@pytest.fixture(
    scope="module", params=KEPT, ids=lambda archive: archive.name.removesuffix(".tar.xz")
)
def unpacked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Spare:
    """A kept dataset."""
    home = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(request.param) as archive:
        archive.extractall(home / "d", filter="data")
    return Spare(home / "d", home)


@pytest.fixture
def old(unpacked: Spare, tmp_path: Path) -> Iterator[Path]:
    """A kept dataset, to be changed."""
    with unpacked.lent(tmp_path / "d") as place:
        yield place


def test_one_of_every_version_is_kept() -> None:
    there = {int(archive.name.split(".")[0].removeprefix("schema-")) for archive in KEPT}
    assert there == set(range(1, SCHEMA_VERSION + 1)), "run scripts/keep_schema_dataset.py"
    assert sum(archive.stat().st_size for archive in KEPT) < 1_000_000


def test_it_opens_and_answers_questions(old: Path) -> None:
    cohort = lp.open_cohort(old)
    assert cohort.patients.part.tolist() == ["base", "extended"]
    assert [p.patient_id for p in cohort.where("missing_PenileBulb")] == [BASE]
    assert len(cohort.where("Rectum.voxels > 0 AND dose_max_gy > 1")) == 2
    folds = cohort.sql("SELECT count(*) AS n FROM structures WHERE source = 'nnunet_fold'")
    assert folds.n.tolist() == [20]


def test_its_voxels_are_read(old: Path) -> None:
    patient = lp.open_cohort(old)[EXTENDED]
    rectum = patient.clinical.mask.sel(structure="Rectum").values
    assert (rectum.dtype, int(rectum.sum())) == (np.dtype(bool), 9)
    dose = patient.mri.dose.where(rectum).mean().compute().item()
    row = "SELECT dose_mean_gy AS gy FROM structures WHERE structure = 'Rectum' AND grid = 'mri' "
    row += f"AND source = 'clinical' AND patient_id = '{EXTENDED}'"
    assert dose == pytest.approx(lp.open_cohort(old).sql(row).gy[0], rel=1e-6)
    stream = lp.PatchStream(lp.open_cohort(old), patch_size=(2, 4, 4), seed=1)
    assert next(iter(stream))["image"].shape[-3:] == (2, 4, 4)
    with xr.open_datatree(old / f"patients/{EXTENDED}.zarr", engine="zarr") as tree:
        np.testing.assert_array_equal(tree["mri/clinical"].mask.sel(structure="Rectum"), rectum)


def test_it_is_sound_and_comes_back_as_nifti(old: Path, tmp_path: Path) -> None:
    assert validate(Location(old), deep=True).problems == ()
    done = export_patient(Location(old), EXTENDED, tmp_path / "out")
    assert (len(done.identical), len(done.rounded)) == (65, 1)


def test_a_newer_one_is_refused_with_clear_text(
    old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file, keys in (
        ("lundprobe.json", []),
        (f"patients/{BASE}.zarr/zarr.json", ["attributes"]),
    ):
        whole = json.loads((old / file).read_text())
        place = whole
        for key in keys:
            place = place[key]
        place["schema_version"] = SCHEMA_VERSION + 1
        (old / file).write_text(json.dumps(whole))
    said = f"schema version {SCHEMA_VERSION + 1}.*reads up to {SCHEMA_VERSION}.*upgrade"
    for read in (lambda: open_manifest(Location(old)), lambda: open_store(Location(old), BASE)):
        with pytest.raises(SchemaVersionError, match=said):
            read()
    for command in ("info", "validate"):
        with pytest.raises(SystemExit) as ended:
            main([command, str(old)])
        assert ended.value.code == 3
        assert f"schema version {SCHEMA_VERSION + 1}" in capsys.readouterr().err
