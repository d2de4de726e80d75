"""Each rule of this package flags what it is about, and nothing else of the phantom."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from altered_tables import Copy, Row

import lundprobe_zarr as lp
from lundprobe_zarr.quality.check import QualityReport
from lundprobe_zarr.quality.outcome import Outcome
from lundprobe_zarr.quality.rules import shipped_rules

#: What is odd about the tiny phantom: its lattices are coarse on purpose.
COARSE = {"volume-ratio", "mri-pixel", "mri-slice", "mri-matrix", "dose-grid"}
ODD = {*COARSE, "gaps", "fiducial-count"}
BASE, EXTENDED = "oldAcq_54a18438dd932ce3", "newAcq_cba26d19714d0247"


def outcome(report: QualityReport, rule: str) -> Outcome:
    return next(o for o in report.outcomes if o.rule.id == rule)


def only(cohort: lp.Cohort, *rules: str) -> QualityReport:
    """Check by some rules alone."""
    off = [{"id": r.id, "severity": "off"} for r in shipped_rules() if r.id not in rules]
    return lp.qc(cohort, off)


@pytest.fixture(scope="module")
def report(dataset: Path) -> QualityReport:
    return lp.qc(lp.open_cohort(dataset))


def test_the_phantom_breaks_those_that_it_should(report: QualityReport) -> None:
    assert {o.rule.id for o in report.outcomes if o.status == "flagged"} == ODD
    assert {o.rule.id for o in report.outcomes if o.status == "nothing to check"} == {
        "volume-outlier",  # ten patients of a protocol at least
        "dose-outlier",
    }
    assert not any(o.is_lacking for o in report.outcomes)
    passed = [o for o in report.outcomes if o.status == "passed"]
    of_extended = ("extended-complete", "observer-unedited")
    assert all(o.checked == (1 if o.rule.id in of_extended else 4) for o in passed)


def test_the_gap_is_on_the_authors_list_on_both_grids(report: QualityReport) -> None:
    said = [f.message for f in outcome(report, "gaps").findings]
    assert len(said) == 2
    assert all(re.match(r"Bladder \((mri|sct) grid\).*: 1; on the authors' list$", m) for m in said)


def is_clinical(row: Row, structure: str, grid: str = "sct") -> bool:
    place = row["source"], row["grid"], row["structure"], row["patient_id"]
    return place == ("clinical", grid, structure, BASE)


def clinical(structure: str, grid: str = "sct", **values: Any) -> Callable[[Row], object]:
    return lambda row: row.update(values) if is_clinical(row, structure, grid) else None


def patient(**values: Any) -> Callable[[Row], object]:
    return lambda row: row.update(values) if row["patient_id"] == BASE else None


def unedited(row: Row) -> None:
    if row["source"] in ("nnunet", "observer") and row["structure"] == "Rectum":
        row["mask_sha256"] = "equal" if row["step"] in (None, 2) else "other"


def without_a_fold(row: Row) -> bool:
    return row["fold"] != 3


BROKEN: dict[str, tuple[str, str, Callable[[Row], object], str]] = {
    "coverage": ("coverage", "structures", clinical("PTVT_427", dose_covered_pct=98.765),
                 r"PTVT_427 \(sct grid\): 98.76 %"),
    "a-voxel": ("coverage", "structures", clinical("PTVT_427", dose_covered_pct=99.9996),
                r"PTVT_427 \(sct grid\): 99.99 %"),
    "dose-present": ("dose-present", "patients", patient(dose_max_gy=None, dose_min_gy=None),
                     "no planning dose"),
    "ptv-d98": ("ptv-d98", "structures", clinical("PTVT_427", d98_gy=40.56),
                "40.560 Gy, less than 40.565 Gy"),
    "ptv-d2": ("ptv-d2", "structures", clinical("PTVT_427", d2_gy=45.69),
               "45.690 Gy, more than 45.689 Gy"),
    "cold": ("dose-maximum", "patients", patient(dose_max_gy=42.69), "99.98 % of 42.7 Gy"),
    "hot": ("dose-maximum", "patients", patient(dose_max_gy=46.98), "110.02 % of 42.7 Gy"),
    "empty-mask": ("empty-mask", "structures", clinical("Rectum", voxels=0),
                   r"clinical mask of Rectum \(sct grid\) is empty"),
    "unlisted": ("components-unlisted", "structures", clinical("Rectum", components=2),
                 r"Rectum \(sct grid\): 2 connected components, not on"),
    "listed": ("components-listed", "structures", clinical("Rectum", listed_by_authors=True),
               r"Rectum \(sct grid\): on the authors' list of several components, has 1"),
    "ctv-in-ptv": ("ctv-in-ptv", "structures", clinical("CTVT_427", outside_voxels=3),
                   r"3 of \d+ voxels of the CTV \(sct grid\)"),
    "narrow": ("ptv-margin", "structures", clinical("PTVT_427", margin_min_mm=-9.0), "-9.0 to"),
    "wide": ("ptv-margin", "structures", clinical("PTVT_427", margin_max_mm=30.0), "to 30.0 mm"),
    "ptv-in-body": ("ptv-in-body", "structures", clinical("PTVT_427", outside_voxels=1),
                    r"1 of \d+ voxels of the PTV"),
    "fiducials": ("fiducials-in-ctv", "structures",
                  clinical("CTVT_427", "mri", fiducials_inside=1), "1 of 3 fiducials"),
    "femoral-heads": ("femoral-heads", "structures",
                      clinical("FemoralHead_L", "mri", centroid_mm=[0.0, 0.0, -999.0]),
                      r"FemoralHead_L lies -\d+ mm to the left"),
    "field-of-view": ("field-of-view", "patients", patient(mri_spacing_mm=[10.5, 8.0, 8.0]),
                      "456.0 mm; oldAcq has 448 mm"),
    "geometry-table": ("geometry-table", "patients", patient(geometry_matches_csv=False),
                       "differ from the authors' geometry table, or their file is absent"),
    "missing-unlisted": ("missing-unlisted", "patients",
                         patient(findings=["absent: x.nii.gz (not listed as missing)"]), "absent"),
    "a-finding": ("converter-findings", "patients", patient(findings=["odd <b>"]), "odd <b>"),
    "a-fold": ("extended-complete", "structures", without_a_fold, "36 of 38 masks"),
    "unedited": ("observer-unedited", "structures", unedited,
                 "Rectum: obs[B-E] left the network's mask as it was in step 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_rule_flags_the_one_patient_who_breaks_it(tables: Copy, case: str) -> None:
    rule, table, change, said = BROKEN[case]
    tables.change(table, change)
    (found,) = only(tables.open(), rule).outcomes
    assert found.status == "flagged"
    who = EXTENDED if rule in ("extended-complete", "observer-unedited") else BASE
    assert {f.patient_id for f in found.findings} == {who}
    assert found.flagged == 1
    assert all(re.search(said, f.message) for f in found.findings)


def test_d98_of_a_ptv_partly_outside_the_dose_grid_is_not_said_to_be_kept(tables: Copy) -> None:
    tables.change("structures", clinical("PTVT_427", dose_covered_pct=44.0))
    (found,) = only(tables.open(), "ptv-d98").outcomes
    (whole,) = only(tables.open(), "ptv-d2").outcomes
    assert (found.flagged, found.checked) == (0, whole.checked - 1)
    tables.change("structures", clinical("PTVT_427", dose_covered_pct=44.0, d98_gy=40.0))
    (found,) = only(tables.open(), "ptv-d98").outcomes
    assert [f.patient_id for f in found.findings] == [BASE]


def test_what_has_no_dose_is_not_checked_for_it(tables: Copy) -> None:
    nothing = dict.fromkeys(("dose_max_gy", "dose_min_gy"))
    tables.change("patients", patient(**nothing))
    columns = ("d98_gy", "d2_gy", "dose_covered_pct", "dose_mean_gy")
    tables.change("structures", lambda row: row.update(dict.fromkeys(columns)))
    report = only(tables.open(), "dose-maximum", "coverage", "ptv-d98", "ptv-d2")
    assert {o.rule.id: (o.status, o.checked) for o in report.outcomes} == {
        "dose-maximum": ("passed", 3),
        **dict.fromkeys(("coverage", "ptv-d98", "ptv-d2"), ("nothing to check", 0)),
    }


def test_a_list_that_is_not_known_flags_nothing(tables: Copy) -> None:
    tables.change("structures", lambda row: row.update(listed_by_authors=None, components=5))
    report = only(tables.open(), "gaps", "components-unlisted", "components-listed")
    for rule in ("components-unlisted", "components-listed"):
        assert outcome(report, rule).status == "nothing to check"
    assert "is not known" in outcome(report, "gaps").findings[0].message


def test_small_structures_and_body_are_left_out_of_the_ratio(tables: Copy) -> None:
    def double(row: Row) -> None:
        if row["structure"] in ("BODY", "PenileBulb", "Rectum") and row["grid"] == "sct":
            row["volume_cc"] *= 2 if row["structure"] != "PenileBulb" else 0.5

    tables.change("structures", double)
    found = only(tables.open(), "volume-ratio").outcomes[0].findings
    assert not any("BODY" in f.message for f in found)
    assert sum("Rectum" in f.message for f in found) == 4


def test_outliers_are_those_of_an_independent_robust_z_score(simulated: Path) -> None:
    cohort = lp.open_cohort(simulated)
    (found,) = only(cohort, "volume-outlier").outcomes
    rows = cohort.sql("SELECT * FROM clinical WHERE voxels > 0")
    x = np.log(rows.volume_cc)
    keys = [rows.protocol, rows.structure]
    middle = x.groupby(keys).transform("median")
    mad = (x - middle).abs().groupby(keys).transform("median")
    expected = rows[(0.6745 * (x - middle) / mad).abs() > 3.5]
    assert found.checked == 467
    assert len(expected) > 0
    assert sorted(f.patient_id for f in found.findings) == sorted(expected.patient_id)


def test_every_rule_says_where_its_limit_is_from_and_names_units() -> None:
    for rule in shipped_rules():
        assert rule.citation, rule.id
        assert bool(rule.quantity) == bool(rule.unit), rule.id
