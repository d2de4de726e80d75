"""The checkout's Intake catalog, and a dataset's own, open every entry of a dataset."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from lundprobe_zarr.cohort import open_cohort
from lundprobe_zarr.errors import QueryError
from lundprobe_zarr.schema.layout import GROUP_TITLES
from lundprobe_zarr.schema.tables import COMPARED, TABLES

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
    for name in TABLES:
        found = tables[name].read()
        assert sorted(found.columns) == sorted(c.name for c in TABLES[name].columns)
        assert len(found) == cohort.table(name).num_rows
        everyone = cohort.where("part = 'extended'") if name in COMPARED else cohort
        assert set(found.patient_id) == set(everyone.ids)


def test_no_entry_is_left_out_below(catalog):
    assert sorted(catalog()) == sorted([*TABLES, "patient", "cohort"])


def test_patient(catalog, dataset):
    opened = set()
    for patient in open_cohort(dataset):
        for group in (path.strip("/") for path in patient.tree.groups if path != "/"):
            data = catalog(patient_id=patient.patient_id, group=group).patient.to_dask()
            # Of a group below a grid's, the axes are the grid's: plain Zarr has them there alone.
            expected = patient.tree[group].to_dataset(inherit=False)
            xr.testing.assert_identical(_with_objects(data), _with_objects(expected))
            assert all(v.chunks is not None for v in data.data_vars.values())
            opened.add(group)
    assert opened == set(GROUP_TITLES)


@pytest.mark.parametrize("where", ["part = 'extended'", "NOT missing_PenileBulb", "false"])
def test_cohort(catalog, dataset, where):
    expected = open_cohort(dataset).where(where)
    entry = catalog(where=where).cohort
    assert entry.read().equals(expected.patients)
    assert entry.to_cohort().ids == expected.ids
    assert entry.to_cohort().selection == (where,)
    with pytest.raises(QueryError, match="Recktum"):
        catalog(where="Recktum.volume_cc > 1").cohort.to_cohort()


def test_everybody_is_the_cohort_unless_told_otherwise(catalog, dataset):
    assert catalog().cohort.to_cohort().ids == open_cohort(dataset).ids


def _with_objects(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with texts as objects: older versions of zarr or xarray give no others."""
    texts = [name for name, c in dataset.coords.items() if c.dtype.kind in "OT"]
    return dataset.assign_coords({n: dataset[n].compute().astype(object) for n in texts})
