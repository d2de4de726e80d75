"""Cohorts to draw patches of."""

from __future__ import annotations

from pathlib import Path

import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.stores.reader import StoreReader


@pytest.fixture(scope="session")
def cohort(dataset: Path) -> lp.Cohort:
    """All patients of the converted phantom: three base, one extended."""
    return lp.open_cohort(dataset)


@pytest.fixture(scope="session")
def readers(cohort: lp.Cohort) -> dict[str, StoreReader]:
    """A reader of every patient."""
    return {i: StoreReader.open(cohort.location, i) for i in cohort.ids}


@pytest.fixture(scope="session")
def extended(cohort: lp.Cohort) -> str:
    """The patient with folds and observers."""
    return cohort.where("part = 'extended'").ids[0]


@pytest.fixture(scope="session")
def lacking(cohort: lp.Cohort) -> tuple[str, str]:
    """A patient and a structure that it lacks."""
    rows = cohort.patients[cohort.patients["missing_structures"].map(len) > 0]
    assert len(rows), "the phantom has patients without some structure"
    return rows.iloc[0]["patient_id"], str(rows.iloc[0]["missing_structures"][0])
