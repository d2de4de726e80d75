"""Folders whose names mean something to URLs, patterns or shells: every way in takes them."""

from __future__ import annotations

import errno
import glob
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.cli import main
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.storage import local
from lundprobe_zarr.storage.location import Location

NAMES = [
    "run::7",
    "s3::x",
    "a?b",
    "a#b",
    "a*b",
    "[ab]",
    "a%20b",
    "a b ",
    "~",
    "é–日本",
    "-x",
    "{x}",
    "$HOME",
    "file:",
    "a&b=c;d@e",
    "'\"",
]
#: All of them in fewer places, for ways in that take long. Those that make of a path a chain of
#: URLs or a pattern are apart, since all of such a path may be taken otherwise. Slow tests take
#: each name alone.
PLACES = [
    "run::7",
    "s3::x",
    "/".join(n for n in NAMES if set(n) & set("?*[")),
    "/".join(n for n in NAMES if not set(n) & set("?*[") and "::" not in n),
    *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES if "::" not in n),
]
in_fewer_places = pytest.mark.parametrize("hostile", PLACES, indirect=True)
CONFIGS = ("patients", "structures", "slices", "volumes", "patches")
_SMALL = {"patch_size": (4, 8, 8), "seed": 0}


@pytest.fixture(params=NAMES)
def hostile(request, spare, tmp_path, monkeypatch) -> Iterator[Path]:
    """The converted phantom in a folder of such a name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / request.param).mkdir(parents=True)
    with spare.lent(tmp_path / request.param / "d") as place:
        yield place


@pytest.fixture
def run(capsys):
    def run(*words: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(w) for w in words])
        printed = capsys.readouterr()
        assert ended.value.code == 0, printed.out + printed.err
        return printed.out

    return run


@pytest.mark.parametrize("name", PLACES)
def test_the_command_line(name, one_patient, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = tmp_path / name / "dataset"
    source = shutil.copytree(one_patient / "source", tmp_path / name / "source")
    (patient,) = lp.open_cohort(one_patient / "dataset").ids
    run("convert", source, hostile)
    assert lp.open_cohort(hostile).ids == [patient]
    run("validate", hostile, "--deep")
    run("finalise", hostile)
    run("info", hostile)
    run("info", hostile, patient)
    run("repair", source, hostile)
    run("copy", hostile, hostile.parent / "copy")
    run("validate", hostile.parent / "copy", "--deep")
    run("bench", hostile, "--patch", "4,8,8", "--patches", "1")
    assert patient in run("query", hostile, "true", "--format", "csv")
    for suffix in ("csv", "json", "parquet"):
        run("query", hostile, "true", "--output", hostile.parent / f"q.{suffix}")
    run("preview", hostile, patient, hostile.parent / "p.png")
    run("export", hostile, patient, hostile.parent / "out")


def test_python(hostile, dataset):
    for place in (hostile, str(hostile), hostile.as_uri(), f"{hostile}/"):
        cohort = lp.open_cohort(place)
        assert cohort.ids == lp.open_cohort(dataset).ids
    image, expected = (lp.open_cohort(d)[0].mri.image for d in (hostile, dataset))
    np.testing.assert_array_equal(image.values, expected.values)
    here, there = (
        next(iter(lp.PatchStream(lp.open_cohort(d), **_SMALL))) for d in (hostile, dataset)
    )
    np.testing.assert_array_equal(here["image"], there["image"])
    cohort.save(hostile.parent / "cohort.json")
    assert lp.load_cohort(hostile.parent / "cohort.json", hostile).ids == cohort.ids


def test_a_relative_path(hostile, tmp_path):
    relative = str(hostile.relative_to(tmp_path))
    relative = f"./{relative}" if relative.startswith(("~", "file:", "s3:")) else relative
    assert Location(relative).local() == hostile
    assert len(lp.open_cohort(relative)) > 0


def first_row(place: str | Path, config: str) -> dict[str, Any]:
    options: dict[str, Any] = {"patch_size": (4, 8, 8)} if config == "patches" else {}
    row = next(iter(lp.load_dataset(place, config, split="base", streaming=True, **options)))
    image = {"image": np.asarray(row["image"])} if "image" in row else {}
    return {"patient_id": row["patient_id"], **image}


@pytest.fixture(scope="module")
def first_rows(dataset) -> dict[str, dict[str, Any]]:
    """What each configuration begins with where the folder's name is harmless."""
    return {config: first_row(dataset, config) for config in CONFIGS}


@in_fewer_places
@pytest.mark.parametrize("config", CONFIGS)
def test_hugging_face(hostile, first_rows, config):
    for place in (hostile, hostile.as_uri(), hostile / "lundprobe.json"):
        np.testing.assert_equal(first_row(place, config), first_rows[config])


@in_fewer_places
def test_hugging_face_in_memory(hostile, tmp_path):
    rows = lp.load_dataset(hostile, "volumes", split="base", cache_dir=tmp_path / "cache")
    assert np.asarray(rows[0]["image"]).ndim == 4


@in_fewer_places
def test_hugging_faces_own_load_dataset(hostile):
    files = glob.escape(str(hostile / "lundprobe.json"))
    if "::" in files:  # a chain of URLs to datasets, whatever we do: docs/huggingface.md
        with pytest.raises(FileNotFoundError):
            datasets.load_dataset("lundprobe", "patients", data_files=files, streaming=True)
        return
    rows = datasets.load_dataset(
        "lundprobe", "patients", data_files=files, split="base", streaming=True
    )
    assert len(list(rows)) == 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:Shell command not executed:UserWarning")
def test_intake(hostile, dataset):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import intake
    if "::" in str(hostile):  # a chain of URLs to fsspec, which intake hands paths to
        with pytest.raises(FileNotFoundError):
            intake.open_catalog(str(hostile / "catalog.yaml"))
        return
    catalog = intake.open_catalog(str(hostile / "catalog.yaml"))
    assert len(catalog.cohort.to_cohort()) == len(lp.open_cohort(dataset))
    assert len(catalog.patients.read()) == len(lp.open_cohort(dataset))
    assert catalog.patient.to_dask().image.ndim == 4


@pytest.mark.parametrize("command", ["export", "preview"])
def test_an_error_of_reading_names_what_was_read(command, copied, tmp_path, monkeypatch, capsys):
    patient = lp.open_cohort(copied).ids[0]
    read = local.open_local

    def failing(path: Path) -> int:
        if "/c/" in str(path):
            raise OSError(errno.EIO, "Input/output error")  # which names no file
        return read(path)

    monkeypatch.setattr(local, "open_local", failing)
    with pytest.raises(SystemExit):
        main([command, str(copied), patient, str(tmp_path / "out.png")])
    said = capsys.readouterr().err
    assert f"{copied}/patients/{patient}.zarr" in said
    assert "out.png" not in said


def test_an_error_of_writing_names_what_was_to_be_written(dataset, tmp_path, capsys):
    patient = lp.open_cohort(dataset).ids[0]
    (tmp_path / "p.png").mkdir()
    with pytest.raises(SystemExit):
        main(["preview", str(dataset), patient, str(tmp_path / "p.png")])
    assert f"{tmp_path}/p.png: Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["README.md", "metadata/patients/base-00000.parquet"])
def test_a_folder_in_place_of_a_file_is_named(name, copied):
    place = copied / name
    place.unlink()
    place.mkdir()
    with pytest.raises(OSError, match="directory") as raised:
        finalise(copied, rebuild=True)
    assert str(place) in str(raised.value)
    assert "writing-" not in str(raised.value)
