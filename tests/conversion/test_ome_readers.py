"""Readers of OME-Zarr that are no part of our environment: run where there is one, else skipped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from trees import NEW, write_patient

from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory, with_coarser_levels

GROUPS = ("mri", "mri/clinical", "mri/nnunet", "sct", "sct/clinical", "dose")
MODULES = "ZARRITA_MODULES"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An extended patient with two levels."""
    home = tmp_path_factory.mktemp("readers")
    write_patient(home / "source", part="extended")
    (patient,) = with_coarser_levels(take_inventory(home / "source"), 2).patients
    assert convert_patient(patient, home / "d", "standard").error is None
    return home / "d/patients" / f"{NEW}.zarr"


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
@pytest.mark.skipif(
    MODULES not in os.environ, reason="`make ome-readers` installs zarrita, in node"
)
def test_zarrita_reads_the_same_values_at_the_same_place(store: Path) -> None:
    script = Path(__file__).with_name("zarrita.mjs")
    words = ["node", str(script), os.environ[MODULES], str(store), *GROUPS]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sum(len(images) for images in found.values()) == 3 * 10
    for group, images in found.items():
        for image in images:
            array = zarr.open_array(store / group / image["path"], mode="r")
            assert image["axes"] == list(array.metadata.dimension_names or ())
            assert image["shape"] == list(array.shape)
            values = np.asarray(array[...])
            assert image["sum"] == pytest.approx(values.sum(dtype=np.float64), rel=1e-12)
            at = (store / group / image["path"]).parent
            at = at if "levels" in image["path"] else store / group.split("/")[0]
            with xr.open_zarr(at) as grid:
                for corner, end in zip(image["corners"], (0, -1), strict=True):
                    assert corner["value"] == float(values[(end,) * values.ndim])
                    place = [grid[axis].values[end] for axis in "zyx"]
                    np.testing.assert_allclose(corner["place"], place, atol=1e-9)
