"""The converted phantom as a cohort, and an oblique patient."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from tests.service.oblique import write_oblique


@pytest.fixture(scope="session")
def cohort(dataset: Path) -> lp.Cohort:
    """All patients of the converted phantom: three base, one extended."""
    return lp.open_cohort(dataset)


@pytest.fixture(scope="session")
def oblique(phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> lp.Cohort:
    """The cohort of one patient, whose MRI grid lies askew."""
    source = write_oblique(phantom_source, tmp_path_factory.mktemp("oblique") / "source")
    out = source.with_name("dataset")
    for patient in take_inventory(source).patients:
        result = convert_patient(patient, out, "standard")
        assert result.status == "converted", result.error
    finalise(out)
    return lp.open_cohort(out)


@pytest.fixture(scope="session")
def source_files(phantom_source: Path) -> dict[str, Path]:
    """Patient id -> folder of its source files."""
    folders = [f for f in phantom_source.glob("*Part/*") if re.fullmatch(r"\w{3}Acq_\w+", f.name)]
    return {f.name: f for f in folders}
