"""`lp.dvh` and `lp.plan_check`: against NumPy on the source files, and with input that is wrong."""

from __future__ import annotations

import json
import math
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr

import lundprobe_zarr as lp
from benchmarks.dvh import METRICS, SOURCES, covered_doses, independent, keys_of
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.errors import (
    Command,
    DatasetError,
    MissingStructureError,
    UnknownLabelError,
    UsageError,
)
from tests.altered import forget_hashes, rewrite

DATA = Path(__file__).parents[1] / "data"


# Against an independent computation, from the source's NIfTI files


@pytest.mark.parametrize("grid", ["sct", "mri"])
def test_every_number_is_that_of_an_independent_computation(
    cohort: lp.Cohort, phantom_source: Path, grid: Any
) -> None:
    sources = SOURCES if grid == "mri" else "clinical"
    exact = lp.dvh(cohort, sources=sources, grid=grid, metrics=METRICS)
    table = lp.dvh(cohort, sources=sources, grid=grid, metrics=METRICS, method="table")
    expected = independent(phantom_source, grid)
    assert keys_of(exact) == keys_of(table)
    assert set(keys_of(exact)) == set(expected)
    for number, key in enumerate(keys_of(exact)):
        found, binned, right = exact.iloc[number], table.iloc[number], expected[key]
        assert found[list(right)].to_dict() == pytest.approx(right, rel=1e-6, nan_ok=True)
        for metric in ("D98%", "D2%", "D0.03cc", "mean", "min", "max"):
            assert binned[metric] == pytest.approx(right[metric], abs=0.0501, nan_ok=True)
        assert binned.volume_cc == pytest.approx(right["volume_cc"])


def test_the_table_has_the_volume_at_every_edge(cohort: lp.Cohort, phantom_source: Path) -> None:
    home = next(iter(sorted(phantom_source.glob("basePart/*Acq_*"))))
    table = cohort.sql("SELECT * FROM dvh WHERE grid = 'sct' AND structure = 'Rectum'")
    row = table[table.patient_id == home.name].iloc[0]
    values, voxels, voxel_cc = covered_doses(home, "sCT/mask_Rectum.nii.gz")
    assert row.volume_cc == pytest.approx(voxels * voxel_cc)
    assert row.voxel_cc == pytest.approx(voxel_cc)
    exact = [np.sum(values >= i / 10) * voxel_cc for i in range(len(row.cumulative_cc) + 1)]
    assert row.cumulative_cc.tolist() == pytest.approx(exact[:-1])
    assert exact[-1] == 0 < exact[-2]
    curve = lp.dvh(cohort[home.name], "Rectum", step_gy=0.25).cumulative_cc[0]
    for gy in (0.0, 10.25, 42.0):
        assert float(curve.sel(dose=gy)) == pytest.approx(np.sum(values >= gy) * voxel_cc)
    structures = cohort.sql("SELECT * FROM planning WHERE structure = 'Rectum'")
    planned = structures[structures.patient_id == home.name].iloc[0]
    assert row.covered_pct == planned.dose_covered_pct


# Curves


def test_curves_are_labelled(cohort: lp.Cohort, tmp_path: Path) -> None:
    curves = lp.dvh(cohort, ["Rectum", "PTVT_427"], method="table")
    assert curves.sizes["segmentation"] == 2 * len(cohort)
    assert curves.dose.attrs["units"] == "Gy"
    assert curves.cumulative_cc.attrs["units"] == "cm3"
    assert np.allclose(np.diff(curves.dose), 0.1)
    rectum = curves.sel(structure="Rectum")
    assert set(rectum.patient_id.values.tolist()) == set(cohort.ids)
    one = rectum.sel(patient_id=cohort.ids[1])
    assert one.cumulative_cc.dims == ("dose",)
    assert float(one.cumulative_cc[0]) == pytest.approx(
        float(one.volume_cc * one.covered_pct / 100)
    )
    assert (curves.cumulative_cc.diff("dose") <= 0).all()
    assert (curves.cumulative_cc[:, -1] == 0).all()
    curves.to_netcdf(tmp_path / "curves.nc")
    with xr.open_dataset(tmp_path / "curves.nc") as again:
        np.testing.assert_array_equal(again.cumulative_cc, curves.cumulative_cc)


def test_a_curve_from_voxels_agrees_with_the_table_at_its_edges(extended: lp.Patient) -> None:
    fine = lp.dvh(extended, sources=SOURCES, grid="mri", step_gy=0.01)
    coarse = lp.dvh(extended, sources=SOURCES, grid="mri", method="table")
    shared = fine.cumulative_cc[:, ::10]
    np.testing.assert_allclose(
        shared, coarse.cumulative_cc[:, : shared.shape[1]], rtol=1e-12, atol=1e-12
    )
    assert sorted(set(fine.source.values.tolist())) == sorted(SOURCES)
    assert set(fine.fold.values[fine.source == "nnunet_fold"].tolist()) == set(range(10))
    assert set(fine.observer.values[fine.source == "observer"].tolist()) == {
        "obsB",
        "obsC",
        "obsD",
        "obsE",
    }
    assert np.isnan(fine.step.values[fine.source == "clinical"]).all()


@pytest.mark.parametrize("step", [0.3, 0.5, 1, 2.0])
def test_steps_are_multiples_of_the_tables(extended: lp.Patient, step: float) -> None:
    curves = lp.dvh(extended, "Rectum", method="table", step_gy=step)
    assert curves.dose.values.tolist() == [
        i * round(10 * step) / 10 for i in range(len(curves.dose))
    ]
    exact = lp.dvh(extended, "Rectum", step_gy=step)
    np.testing.assert_allclose(exact.cumulative_cc[0], curves.cumulative_cc[0], rtol=1e-12)


def test_zero_outside_only_where_asked(cohort: lp.Cohort) -> None:
    patient = cohort[0]
    for method in ("voxels", "table"):
        out, zero = (
            lp.dvh(
                patient,
                "Rectum",
                metrics=["V0Gy[cc]", "V20Gy", "V20Gy[cc]", "min"],
                method=method,
                outside=outside,
            )
            for outside in ("leave out", "zero")
        )
        share = out.covered_pct[0]
        assert share < 100
        assert zero.covered_pct[0] == share
        assert zero["V0Gy[cc]"][0] == pytest.approx(zero.volume_cc[0])
        assert out["V0Gy[cc]"][0] == pytest.approx(zero.volume_cc[0] * share / 100)
        assert zero["V20Gy"][0] == pytest.approx(out["V20Gy"][0] * share / 100)
        assert zero["V20Gy[cc]"][0] == pytest.approx(out["V20Gy[cc]"][0])
        assert out["min"][0] > 1
        assert zero["min"][0] == pytest.approx(0, abs=0.05)


def test_a_frame_says_its_units(extended: lp.Patient) -> None:
    frame = lp.dvh(extended, "CTVT_427", metrics=["D98%", "V95%[cc]", "HI"])
    assert frame.attrs["units"] == {
        "volume_cc": "cm3",
        "covered_pct": "%",
        "D98%": "Gy",
        "V95%[cc]": "cc",
        "HI": "1",
    }
    assert (frame.attrs["method"], frame.attrs["grid"]) == ("voxels", "sct")
    assert list(frame.columns[-3:]) == ["D98%", "V95%[cc]", "HI"]


def test_the_table_reads_no_voxel(cohort: lp.Cohort, no_voxels: Callable[[], Any]) -> None:
    with no_voxels():
        lp.dvh(cohort, metrics=METRICS, method="table")
        lp.plan_check(cohort, "icru")


# Bad input


def test_a_structure_that_is_missing_is_not_unknown(cohort: lp.Cohort, lacking: lp.Patient) -> None:
    for method in ("voxels", "table"):
        with pytest.raises(MissingStructureError, match="lacks clinical PenileBulb on the sct"):
            lp.dvh(lacking, ["Rectum", "PenileBulb"], method=method)
        with pytest.raises(MissingStructureError, match="none of the 1 patients"):
            lp.dvh(cohort[[lacking.patient_id]], "PenileBulb", metrics="mean", method=method)
        assert len(lp.dvh(cohort, "PenileBulb", metrics="mean", method=method)) == len(cohort) - 1
        with pytest.raises(UnknownLabelError, match="nearest: PenileBulb") as raised:
            lp.dvh(lacking, "Penilebulb", method=method)
        assert not isinstance(raised.value, MissingStructureError)


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"metrics": ["D98"]}, UsageError, "nearest: D98%"),
        ({"grid": "dose"}, UsageError, "expected 'mri' or 'sct'"),
        ({"method": "tabel"}, UsageError, "expected 'voxels' or 'table'"),
        ({"outside": "nan"}, UsageError, "expected 'leave out' or 'zero'"),
        ({"sources": "observers", "grid": "mri"}, UnknownLabelError, "nearest: observer"),
        ({"sources": ["clinical", "nnunet"]}, UsageError, "choose the mri grid"),
        ({"structures": []}, UsageError, "at least one"),
        ({"step_gy": 0}, UsageError, "above 0"),
        ({"step_gy": True}, UsageError, "above 0"),
        ({"step_gy": math.nan}, UsageError, "above 0"),
        ({"step_gy": 0.01, "method": "table"}, UsageError, "a multiple of 0.1 Gy"),
        ({"step_gy": 0.25, "method": "table"}, UsageError, "a multiple of 0.1 Gy"),
        ({"step_gy": 1e-6}, UsageError, "a larger step_gy"),
    ],
)
def test_arguments_that_are_wrong(
    extended: lp.Patient, arguments: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        lp.dvh(extended, **arguments)


def test_who_cannot_be_asked(cohort: lp.Cohort) -> None:
    with pytest.raises(UsageError, match="a patient or a cohort"):
        lp.dvh("newAcq_1")  # type: ignore[call-overload]
    for ask in (lp.dvh, lambda patients: lp.plan_check(patients, "icru")):
        with pytest.raises(UsageError, match="no patients"):
            ask(cohort.where("false"))
    base = cohort.where("part = 'base'")
    for method in ("voxels", "table"):
        with pytest.raises(UnknownLabelError, match="3 patients of the cohort have no observer"):
            lp.dvh(base, sources="observer", grid="mri", method=method)
        with pytest.raises(UnknownLabelError, match=r"part = 'extended'"):
            lp.dvh(base[0], sources="nnunet", grid="mri", method=method)


@pytest.fixture(scope="module")
def without_dose(phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> lp.Cohort:
    """A patient without dose on the sCT grid, and one with NaN in it and no planning grid."""
    from lundprobe_zarr.conversion.arrays.patient import convert_patient
    from lundprobe_zarr.conversion.source.inventory import take_inventory

    home = tmp_path_factory.mktemp("without") / "source"
    shutil.copytree(phantom_source, home)
    shutil.rmtree(home / "extendedPart")
    first, second, third = sorted(p for p in (home / "basePart").iterdir() if p.is_dir())
    shutil.rmtree(third)
    (first / "sCT/dose_interpolated.nii.gz").unlink()
    file = second / "sCT/dose_interpolated.nii.gz"
    image = nib.load(file)
    dose = np.asarray(image.dataobj).copy()
    rectum = np.argwhere(np.asarray(nib.load(second / "sCT/mask_Rectum.nii.gz").dataobj))
    dose[tuple(rectum[0])] = np.nan
    nib.Nifti1Image(dose, image.affine, image.header).to_filename(file)
    (second / "sCT/dose_original.nii.gz").unlink()
    for patient in take_inventory(home).patients:
        result = convert_patient(patient, home.with_name("dataset"), "standard")
        assert result.status == "converted", result.error
    finalise(home.with_name("dataset"))
    return lp.open_cohort(home.with_name("dataset"))


@pytest.mark.parametrize("method", ["voxels", "table"])
def test_a_dose_that_is_absent_or_no_number_is_never_zero(
    without_dose: lp.Cohort, method: Any
) -> None:
    first, second = without_dose
    with pytest.raises(UnknownLabelError, match="has no dose on the sct grid") as raised:
        lp.dvh(first, method=method)
    assert raised.value.patient == first.patient_id
    assert len(lp.dvh(first, grid="mri", method=method).segmentation)
    frame = lp.dvh(without_dose, metrics=METRICS, method=method)
    mine = frame.patient_id == first.patient_id
    assert frame.loc[mine, list(METRICS)].isna().all(axis=None)
    assert frame.loc[mine, "covered_pct"].notna().all()
    other = frame[~mine].set_index("structure")
    assert other.loc["Rectum", list(METRICS)].isna().all()
    assert other.loc["Bladder", list(METRICS)].drop("CI[95%]").notna().all()
    assert other.covered_pct.isna().all()
    curves = lp.dvh(second, ["Rectum", "Bladder"], method=method)
    assert np.isnan(curves.sel(structure="Rectum").cumulative_cc).all()
    assert not np.isnan(curves.sel(structure="Bladder").cumulative_cc).any()


@pytest.fixture(scope="module", params=[1, 2])
def older(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that an earlier version wrote, without the table."""
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(DATA / f"schema-{request.param}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_a_dataset_without_the_table_says_how_to_get_it(older: Path) -> None:
    cohort = lp.open_cohort(older)
    assert "dvh" not in cohort.manifest.tables
    for ask in (
        lambda: lp.dvh(cohort, metrics="mean", method="table"),
        lambda: lp.dvh(cohort[0], method="table"),
        lambda: lp.plan_check(cohort, "icru"),
        lambda: cohort.sql("SELECT * FROM dvh"),
        lambda: cohort.table("dvh"),
    ):
        with pytest.raises(DatasetError, match="no table dvh") as raised:
            ask()
        assert raised.value.command == Command("finalise", ("--rebuild",), cohort.location.url)
    exact = lp.dvh(cohort, metrics=["mean", "max"], grid="mri")
    finalise(older, rebuild=True)
    rebuilt = lp.open_cohort(older)
    table = lp.dvh(rebuilt, metrics=["mean", "max"], grid="mri", method="table")
    np.testing.assert_allclose(table["max"], exact["max"], atol=0.0501)
    np.testing.assert_allclose(table["mean"], exact["mean"], atol=0.0501)


# Plan checks


def constraint(metric: str, limit: str, structure: str = "PTVT_427") -> dict[str, str]:
    return {"structure": structure, "metric": metric, "limit": limit, "citation": "a test"}


def check(cohort: lp.Cohort | lp.Patient, *constraints: dict[str, str], **options: Any) -> Any:
    return lp.plan_check(cohort, {"name": "t", "constraints": list(constraints)}, **options)


def test_plans_are_checked(cohort: lp.Cohort, lacking: lp.Patient) -> None:
    frame = check(
        cohort,
        constraint("D98%[%]", ">= 95 %"),
        constraint("max", "<= 1 Gy"),
        constraint("mean", "<= 50 Gy", "PenileBulb"),
    )
    assert len(frame) == 3 * len(cohort)
    assert frame.patient_id.tolist() == [i for i in cohort.ids for _ in range(3)]
    by_metric = frame.groupby("metric").status.agg(set)
    assert by_metric["D98%[%]"] == {"pass"}
    assert by_metric["max"] == {"fail"}
    assert by_metric["mean"] == {"pass", "missing"}
    row = frame[frame.status == "missing"]
    assert row.patient_id.tolist() == [lacking.patient_id]
    assert row.reason.tolist() == ["no PenileBulb on the sct grid"]
    assert row.value.isna().all()
    assert frame[frame.status != "missing"].value.notna().all()
    one = check(cohort[0], constraint("max", "<= 1 Gy"))
    assert one.status.tolist() == ["fail"]


def test_what_the_table_cannot_tell_is_read_from_voxels(cohort: lp.Cohort) -> None:
    exact = lp.dvh(cohort, "PTVT_427", metrics=["D98%", "V41.03Gy", "HI", "CI[95%]"])
    methods = set()
    for metric in ("D98%", "V41.03Gy", "HI", "CI[95%]"):
        unit = exact.attrs["units"][metric].replace("1", "")
        for sign in (-1e-4, 1e-4):
            limits = [f"{v + sign:.6f}" for v in exact[metric]]
            for number, limit in enumerate(limits):
                (row,) = check(cohort[number], constraint(metric, f"> {limit} {unit}")).itertuples()
                assert row.status == ("pass" if sign < 0 else "fail"), metric
                methods.add((metric, row.method))
                if row.method == "voxels":
                    assert row.value == pytest.approx(exact[metric][number])
    assert methods >= {(m, "voxels") for m in ("D98%", "HI", "CI[95%]")}
    far = check(cohort, constraint("D98%", "> 30 Gy"), constraint("V41Gy", "<= 100 %"))
    assert set(far.method) == {"table"}
    read = check(cohort, constraint("D98%", "> 30 Gy"), method="voxels")
    assert read.value.tolist() == exact["D98%"].tolist()
    assert set(read.method) == {"voxels"}


def test_what_cannot_be_evaluated_says_why(cohort: lp.Cohort, without_dose: lp.Cohort) -> None:
    frame = check(
        cohort[0],
        constraint("D98%", ">= 1 Gy", "Rectum"),  # partly outside the planning dose grid
        constraint("V38Gy", "<= 15 %", "Rectum"),
        constraint("D500cc", ">= 1 Gy"),
        constraint("CI[200%]", ">= 0.5"),
    )
    assert frame.status.tolist() == ["not evaluable", "pass", "not evaluable", "not evaluable"]
    assert frame.reason[0].endswith("% of it is outside the planning dose grid")
    assert frame.value[0] > 1
    assert frame.reason[1] == ""
    assert frame.reason[2] == "smaller than 500 cm3"
    assert "no volume that receives the dose" in frame.reason[3]
    assert (frame.covered_pct[:2] < 100).all()
    zero = check(cohort[0], constraint("D98%", ">= 1 Gy", "Rectum"), outside="zero")
    assert zero.status.tolist() == ["fail"]
    for method in ("table", "voxels"):
        dark = check(
            without_dose[0],
            constraint("D98%", ">= 1 Gy"),
            constraint("CI[95%]", ">= 0.1"),
            method=method,
        )
        assert set(dark.status) == {"not evaluable"}
        assert dark.reason[0].startswith("no dose on the sct grid")


def test_constraints_are_named_or_filed(cohort: lp.Cohort, tmp_path: Path) -> None:
    file = tmp_path / "ours.json"
    document = {"name": "ours", "constraints": [constraint("max", "<= 50 Gy")]}
    file.write_text(json.dumps(document))
    for given in (file, str(file), document):
        assert set(lp.plan_check(cohort, given).status) == {"pass"}
    assert set(lp.plan_check(cohort, "icru").citation.str[:14]) == {"ICRU Report 62"}
    with pytest.raises(UsageError, match="nearest: icru"):
        lp.plan_check(cohort, "icru83")
    with pytest.raises(UsageError, match="a name, a path or a mapping"):
        lp.plan_check(cohort, 3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a patient or a cohort"):
        lp.plan_check("newAcq_1", "icru")  # type: ignore[arg-type]
    file.write_text(json.dumps({"name": "x", "constraints": [constraint("max", "<= 5 cc")]}))
    with pytest.raises(UsageError, match=r"ours.json: constraint 1: .*expected a limit in Gy"):
        lp.plan_check(cohort, file)


def test_a_table_of_another_conversion_is_said(copied: Path) -> None:
    """Its bins do not tell, and the store has no such structure."""
    cohort = lp.open_cohort(copied)
    lacking = cohort.where("missing_PenileBulb")[0]
    other = next(
        p for p in cohort if p.patient_id != lacking.patient_id and p.row["part"] == "base"
    )
    file = copied / "metadata/dvh/base-00000.parquet"
    table = pq.read_table(file)
    rows = table.to_pylist()
    bulb = next(
        r
        for r in rows
        if r["patient_id"] == other.patient_id
        and r["structure"] == "PenileBulb"
        and r["grid"] == "sct"
    )
    at = next(n for n, r in enumerate(rows) if r["patient_id"] == lacking.patient_id)
    rows.insert(at, bulb | {"patient_id": lacking.patient_id})
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    forget_hashes(copied)
    rewrite(copied / "lundprobe.json", lambda m: None)
    again = lp.open_cohort(copied)[lacking.patient_id]
    near = lp.dvh(again, "PenileBulb", metrics="max", method="table")["max"][0]
    with pytest.raises(UsageError, match="which the store lacks"):
        check(again, constraint("max", f"<= {near:.2f} Gy", "PenileBulb"))
