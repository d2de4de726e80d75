"""Published numbers beside a copy's: same, differs, why, and by which SQL."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from altered_tables import Copy, Row

import lundprobe_zarr as lp
from benchmarks.cohort import simulate
from lundprobe_zarr.quality.paper import Number, compared, is_same, published_numbers, shown

DATA = Path(__file__).parents[1] / "data"


def verdicts(cohort: lp.Cohort) -> dict[str, Row]:
    return {row["number"]: row for row in compared(cohort).to_pylist()}


def test_the_phantom_has_its_own_numbers(dataset: Path, phantom_source: Path) -> None:
    found = verdicts(lp.open_cohort(dataset))
    assert list(found) == [number.id for number in published_numbers()]
    files = sum(f.stat().st_size for f in phantom_source.rglob("*.nii.gz"))
    masks = [f for f in phantom_source.rglob("mask_*.nii.gz") if len(f.relative_to(
        phantom_source).parts) == 4]  # fmt: skip
    here = {name: row["here"] for name, row in found.items()}
    assert here["patients"] == "4"
    assert here["bytes"] == f"{files:,}"
    assert here["annotations"] == str(len(masks))
    assert here["gaps"] == "2"
    assert found["gaps"]["detail"].endswith("1 on the MRI grid, 1 on the sCT grid")
    assert here["dose-grids"] == "10 × 10 × 10"
    same = {name for name, row in found.items() if row["verdict"] == "same"}
    assert same == {"fov-smallest", "fov-largest", "fiducials", "folds", "observers"}
    for name, row in found.items():
        assert bool(row["why"]) == (row["verdict"] != "same"), name
        assert row["sql"].startswith(("SELECT", "WITH"))


def as_published(row: Row) -> None:
    old = row["protocol"] == "oldAcq"
    row |= {
        "mri_shape": [88, 1024, 1024],
        "mri_spacing_mm": [2.5] + 2 * [0.4375 if old else 0.46875],
        "dose_spacing_mm": [2.5, 2.5, 2.5] if old else [0.83, 1.0, 1.0],
    }


def test_a_copy_as_published_is_the_same(tables: Copy) -> None:
    tables.change("patients", as_published)
    found = verdicts(tables.open())
    geometry = ("pixel-old", "pixel-new", "slice", "matrix", "fov-smallest", "dose-grids")
    assert {found[name]["verdict"] for name in geometry} == {"same"}
    assert found["dose-grids"]["here"] == "1 × 1 × 0.83, 2.5 × 2.5 × 2.5"


def test_467_patients_are_the_published_ones(tmp_path: Path) -> None:
    simulate(tmp_path, 467)
    found = verdicts(lp.open_cohort(tmp_path))
    assert (found["base-patients"]["here"], found["base-patients"]["verdict"]) == ("432", "same")
    assert (found["patients"]["here"], found["patients"]["verdict"]) == ("467", "same")
    old, new = (int(found[n]["here"]) for n in ("base-old", "base-new"))
    assert old + new == 432  # and so not 325 and 109
    assert "differs" in {found["base-old"]["verdict"], found["base-new"]["verdict"]}
    assert "434 in all, for a base part of 432" in (
        found["base-old"]["why"] or found["base-new"]["why"]
    )
    assert found["bytes"]["verdict"] == "not evaluated"  # simulated are not all tables
    assert "no table arrays; run `lundprobe-zarr finalise" in found["bytes"]["why"]


def test_what_a_copy_does_not_say_is_not_evaluated(tables: Copy, tmp_path: Path) -> None:
    tables.change("structures", lambda row: row.update(listed_by_authors=None))
    assert verdicts(tables.open())["gaps"]["verdict"] == "not evaluated"
    with tarfile.open(DATA / "schema-1.tar.xz") as archive:
        archive.extractall(tmp_path / "old", filter="data")
    row = verdicts(lp.open_cohort(tmp_path / "old"))["gaps"]
    assert row["verdict"] == "not evaluated"
    assert "finalise" in row["why"]


def test_the_frame_has_all_columns(dataset: Path) -> None:
    frame = lp.check_against_paper(lp.open_cohort(dataset))
    assert list(frame) == [
        *("number", "what", "published", "here", "verdict", "detail", "why", "sql")
    ]
    assert len(frame) == len(published_numbers())


@pytest.mark.parametrize(
    ("value", "published", "tolerance", "same"),
    [
        (3, 3, 0.0, True),
        (4, 3, 0.0, False),
        (0.4689, 0.4688, 1e-4, True),
        (0.46895, 0.4688, 1e-4, False),
        ("a", "a", 0.0, True),
        ("a", 3, 0.0, False),
        (3, "3", 0.0, False),
    ],
)
def test_values_are_the_same_within_their_tolerance(
    value: object, published: float | str, tolerance: float, same: bool
) -> None:
    number = Number(id="n", what="w", published=published, tolerance=tolerance, sql="s", why="y")
    assert is_same(value, number) is same


def test_numbers_are_shown_with_thousands_apart() -> None:
    assert shown(176562700206) == "176,562,700,206"
    assert shown(0.4375) == "0.4375"
    assert shown("a") == "a"
