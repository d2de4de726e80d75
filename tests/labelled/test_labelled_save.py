"""What was opened, cropped, resampled or brought together is saved, and is what it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import lundprobe_zarr as lp
from lundprobe_zarr.cohort import Patient

pytest.importorskip("netCDF4", reason="pip install netCDF4")
GROUPS = ("mri", "mri/clinical", "mri/nnunet", "mri/observers", "sct", "sct/clinical", "dose")
MAKERS: dict[str, Callable[[Patient], xr.Dataset]] = {
    **{g: lambda p, g=g: p.tree[g].to_dataset() for g in GROUPS},
    "crop": lambda p: p.mri.lp.crop("Rectum", p, margin_mm=4),
    "padded": lambda p: p.clinical.lp.crop("Rectum", p, margin_mm=200, fill=0),
    "resampled": lambda p: p.mri.lp.resample((5, 4, 4)),
    "tracked": lambda p: p.mri.lp.track(),
}


def same(found: xr.Dataset, expected: xr.Dataset) -> None:
    """Whether values, labels and places are the same; text may be of another type."""
    assert set(found.variables) == set(expected.variables)
    for name, variable in expected.variables.items():
        assert found[name].dims == variable.dims
        np.testing.assert_array_equal(found[name].values, variable.values, str(name))
        if variable.dtype.kind in "biuf":
            assert found[name].dtype == variable.dtype, name
        about = {n: np.asarray(v).tolist() for n, v in found[name].attrs.items()}
        assert about == dict(variable.attrs), name
    assert {n: np.asarray(v).tolist() for n, v in found.attrs.items()} == dict(expected.attrs)
    if {"z", "y", "x"} <= set(expected.dims):
        np.testing.assert_array_equal(found.lp.affine, expected.lp.affine)


@pytest.mark.parametrize("kind", MAKERS)
def test_netcdf_and_zarr_give_back_what_was_saved(
    extended: Patient, kind: str, tmp_path: Path
) -> None:
    data = MAKERS[kind](extended)
    data.to_netcdf(tmp_path / "saved.nc", engine="netcdf4")
    with xr.open_dataset(tmp_path / "saved.nc", engine="netcdf4") as back:
        same(back, data)
    data.to_zarr(tmp_path / "saved.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "saved.zarr", consolidated=False) as back:
        same(back, data)


def test_a_crop_is_a_table(extended: Patient) -> None:
    crop = extended.clinical[["mask"]].lp.crop("Rectum", extended)
    frame = crop.to_dataframe()
    assert frame["mask"].sum() == crop.mask.sum().compute().item()
    assert {"structure", "z", "y", "x"} <= set(frame.index.names)


def test_trees_and_cohorts_are_saved(extended: Patient, cohort: lp.Cohort, tmp_path: Path) -> None:
    extended.tree.to_netcdf(tmp_path / "tree.nc", engine="netcdf4")
    with xr.open_datatree(tmp_path / "tree.nc", engine="netcdf4") as back:
        for node in back.subtree:
            assert set(node.variables) == set(extended.tree[node.path].variables)
    extended.tree.to_zarr(tmp_path / "tree.zarr", consolidated=False)
    grid = lp.CommonGrid(spacing_mm=(6, 6, 6), shape=(4, 5, 6))
    together = lp.to_xarray(cohort[:2], grid)
    together.to_netcdf(tmp_path / "together.nc", engine="netcdf4")
    with xr.open_dataset(tmp_path / "together.nc", engine="netcdf4") as back:
        np.testing.assert_array_equal(back.mask.values, together.mask.values)
    together.to_zarr(tmp_path / "together.zarr", consolidated=False)


def test_plain_xarray_saves_with_one_line(extended: Patient, tmp_path: Path) -> None:
    store = extended.location.local(f"patients/{extended.patient_id}.zarr")
    plain = xr.open_zarr(store, group="mri", chunks={})
    if tuple(map(int, xr.__version__.split(".")[:2])) >= (2026, 9):  # 2026.2 refuses StringDType
        plain.to_netcdf(tmp_path / "plain.nc", engine="netcdf4")
    plain.drop_encoding().to_zarr(tmp_path / "plain.zarr", consolidated=False)
    auto = xr.open_zarr(store, group="mri", chunks="auto", drop_variables="unit")
    auto.drop_encoding().to_zarr(tmp_path / "auto.zarr", consolidated=False)
    for saved in ("plain.zarr", "auto.zarr"):
        with xr.open_zarr(tmp_path / saved, consolidated=False) as back:
            np.testing.assert_array_equal(back.dose.values, extended.mri.dose.values)


def test_attributes_are_those_of_the_cf_conventions(extended: Patient) -> None:
    for node in extended.tree.subtree:
        assert node.attrs["Conventions"].startswith("CF-")
        for name, variable in node.variables.items():
            assert variable.attrs.get("units") in (None, "mm", "1", "HU", "Gy"), name
            assert all(_fits(v) for v in (*variable.attrs.values(), *node.attrs.values()))
    assert extended.mri.z.attrs["positive"] == "up"
    assert "units" not in extended.mri.image.attrs
    assert extended.mri.unit.values.tolist() == ["1", "HU"]
    assert json.loads(extended.mri.image.attrs["sources"])[0]["path"]


def _fits(value: Any) -> bool:
    row = isinstance(value, list) and value and all(type(v) in (int, float) for v in value)
    return type(value) in (str, int, float) or bool(row)
