"""The checkout's Intake catalog, and a dataset's own, open every entry of a dataset."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lundprobe_zarr.cohort import open_cohort

ROOT = Path(__file__).parents[2]

# Intake 2 opens catalogs of this form through code that its own parts call deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    # It looks for shell commands in any template, and warns that it runs none.
    pytest.mark.filterwarnings("ignore:Shell command not executed:UserWarning"),
]


Open = Callable[..., Any]


@pytest.fixture(params=["the checkout's", "the dataset's"])
def catalog(request: pytest.FixtureRequest, dataset: Path) -> Open:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing intake warns of its own dependencies
        import intake

    if request.param == "the dataset's":
        own = intake.open_catalog(str(dataset / "catalog.yaml"))
        return lambda **parameters: own(**parameters)
    opened = intake.open_catalog(str(ROOT / "catalog.yaml"))
    return lambda **parameters: opened(root=str(dataset), **parameters)


def test_tables(catalog, dataset):
    cohort = open_cohort(dataset)
    tables = catalog()
    assert sorted(tables.patients.read().patient_id) == sorted(cohort.patients.patient_id)
    for name in ("structures", "slices", "foreground", "arrays"):
        assert set(tables[name].read().patient_id) == set(cohort.patients.patient_id)


@pytest.mark.parametrize("group", ["mri", "sct", "dose"])
def test_patient(catalog, dataset, group):
    for patient in open_cohort(dataset):
        opened = catalog(patient_id=patient.patient_id, group=group).patient.to_dask()
        assert opened.equals(patient.tree[group].to_dataset(inherit=False))
        assert opened.dose.chunks is not None
