"""`Patient`: rows of the tables, groups of the store, and what is said of what is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

from lundprobe_zarr.cohort import Cohort, Patient, open_cohort
from lundprobe_zarr.errors import MissingStructureError, UnknownLabelError, UsageError
from lundprobe_zarr.vocabulary.names import STRUCTURES


@pytest.fixture(scope="module")
def extended(phantom: Cohort) -> Patient:
    return phantom.where("part = 'extended'")[0]


@pytest.fixture(scope="module")
def base(phantom: Cohort) -> Patient:
    return phantom.where("missing_PenileBulb")[0]


def no_compute(*_: Any, **__: Any) -> None:
    raise AssertionError("something was computed")


def test_groups_open_lazily_from_one_read(dataset: Path, reads: Any) -> None:
    patient = open_cohort(dataset).where("part = 'extended'")[0]
    with reads.counted() as names, dask.config.set(scheduler=no_compute):
        for group in ("mri", "sct", "dose", "clinical", "nnunet", "observers"):
            assert getattr(patient, group).sizes
        assert patient.mask("Rectum").dims == ("z", "y", "x")
    assert names == [f"patients/{patient.patient_id}.zarr/zarr.json"]


def test_the_row_is_that_of_the_patients_table(phantom: Cohort, base: Patient) -> None:
    row = phantom.patients.set_index("patient_id").loc[base.patient_id]
    assert base.row["patient_id"] == base.patient_id
    assert base.row["missing_structures"] == ["PenileBulb"]
    assert base.row["mri_shape"] == list(row.mri_shape)


def test_structures_are_the_patients_own(phantom: Cohort, base: Patient) -> None:
    assert set(base.structures.patient_id) == {base.patient_id}
    assert set(base.structures.structure) == set(STRUCTURES) - {"PenileBulb"}
    assert base.structures.index[0] == 0


@pytest.mark.parametrize("grid", ["mri", "sct"])
def test_a_mask_has_the_voxels_of_the_table(base: Patient, grid: str) -> None:
    mask = base.mask("Rectum", grid)
    assert mask.dtype == np.dtype(bool)
    rows = base.structures.query("structure == 'Rectum' and grid == @grid")
    assert int(mask.sum().compute()) == rows.voxels.item()


def test_a_structure_that_the_patient_lacks_is_missing(base: Patient) -> None:
    with pytest.raises(MissingStructureError, match=r"lacks PenileBulb on the mri grid.* Rectum"):
        base.mask("PenileBulb")


def test_a_structure_that_nobody_has_is_unknown(base: Patient) -> None:
    with pytest.raises(UnknownLabelError, match="unknown structure 'Retum'; nearest: Rectum") as c:
        base.mask("Retum")
    assert not isinstance(c.value, MissingStructureError)
    assert all(s in str(c.value) for s in STRUCTURES)


def test_a_grid_without_masks_is_refused(base: Patient) -> None:
    with pytest.raises(UsageError, match="grid 'dose' has no masks; expected 'mri' or 'sct'"):
        base.mask("Rectum", "dose")


@pytest.mark.parametrize("group", ["nnunet", "observers"])
def test_base_patients_have_neither_networks_nor_observers(base: Patient, group: str) -> None:
    with pytest.raises(UnknownLabelError, match=r"base patients have none.*part = 'extended'"):
        getattr(base, group)


def test_an_absent_group_of_an_extended_patient_is_named(extended: Patient) -> None:
    with pytest.raises(UnknownLabelError, match=r"has no group 'mri/other'.*it has .*sct"):
        extended._dataset("mri/other", "others")


def test_repr_names_the_patient(base: Patient) -> None:
    assert base.patient_id in repr(base)
