"""`Cohort.where`: what a predicate may say, and what is said of one that cannot be run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lundprobe_zarr.cohort import Cohort, open_cohort
from lundprobe_zarr.cohort.predicate import FIELDS, SEGMENTATIONS, parse_predicate
from lundprobe_zarr.errors import QueryError, UsageError
from lundprobe_zarr.vocabulary.names import STRUCTURES


def chosen_by_pandas(cohort: Cohort, grid: str, source: str, structure: str) -> pd.DataFrame:
    rows = cohort.sql(
        "SELECT * FROM structures "
        f"WHERE grid = '{grid}' AND source = '{source}' AND structure = '{structure}'"
    )
    return rows.set_index("patient_id")


@pytest.mark.parametrize("prefix", SEGMENTATIONS)
@pytest.mark.parametrize("structure", ["Rectum", "CTVT_427", "PenileBulb"])
def test_a_shorthand_is_the_row_of_the_structures_table(
    many: Cohort, prefix: str, structure: str
) -> None:
    rows = chosen_by_pandas(many, *SEGMENTATIONS[prefix], structure)
    name = f"{prefix}.{structure}" if prefix else structure
    found = many.where(f"{name}.volume_cc > 70 AND {name}.d95_gy < 43")
    expected = rows[(rows.volume_cc > 70) & (rows.d95_gy < 43)].index
    assert set(found.ids) == set(expected)
    assert set(many.where(f"{name} IS NULL").ids) == set(many.ids) - set(rows.index)
    assert set(many.where(f"{name} IS NOT NULL").ids) == set(rows.index)


@pytest.mark.parametrize("part", [slice(None), slice(100, 300), slice(None, None, 7)])
def test_lists_and_nulls_stay_with_their_patients(many: Cohort, part: slice) -> None:
    rows = chosen_by_pandas(many, "sct", "clinical", "Genitalia")
    cohort = many[part]
    found = cohort.where("sct.Genitalia.bbox_start[2] > 200 AND mri_shape[3] > 200")
    shapes = cohort.patients.set_index("patient_id").mri_shape
    starts = rows.bbox_start.reindex(cohort.ids).dropna()
    expected = [i for i, start in starts.items() if start[1] > 200 and shapes[i][2] > 200]
    assert found.ids == expected != []
    assert cohort.where("sct.Genitalia.bbox_start IS NULL").ids == [
        i for i in cohort.ids if i not in rows.index
    ]


def test_the_example_of_the_documentation(phantom: Cohort) -> None:
    found = phantom.where(
        "Rectum.volume_cc > 60 AND CTVT_427.d95_gy >= 0.95 * 42.7 AND NOT missing_PenileBulb"
    )
    rectum, ctv = (chosen_by_pandas(phantom, "mri", "clinical", s) for s in ("Rectum", "CTVT_427"))
    expected = [
        row.patient_id
        for row in phantom.patients.itertuples()
        if rectum.volume_cc[row.patient_id] > 60
        and ctv.d95_gy[row.patient_id] >= 0.95 * 42.7
        and not row.missing_PenileBulb
    ]
    assert found.ids == expected != []


def test_every_field_of_every_structure_can_be_mentioned() -> None:
    for structure in STRUCTURES:
        parse_predicate(" AND ".join(f"{structure}.{f} IS NOT NULL" for f in FIELDS))


@pytest.mark.parametrize(
    ("predicate", "expected"),
    [
        ("rectum.VOLUME_CC > 0", 4),
        ("patients.protocol = 'newAcq'", 2),
        ("patients.Rectum.volume_cc > 0", 4),
        ("Rectum['volume_cc'] > 0", 4),
        ("mri.Rectum.volume_cc > sct.Rectum.volume_cc - 1e6 -- both grids", 4),
        ("Rectum.bbox_start[1] >= 0 AND mri_shape[1] > 0", 4),
        ("len([f for f in findings if f LIKE '%fiducials%']) > 0", 1),
        ("COLUMNS('^missing_[A-Z].*') = false", 2),
        ("'Genitalia' IN missing_structures", 1),
        ("NULL::BOOLEAN", 0),
        ("true", 4),
        ("nnunet.Rectum.volume_cc > 0", 1),
        ("NOT (PenileBulb.volume_cc < 0)", 3),
    ],
)
def test_what_duckdb_understands_is_understood(
    phantom: Cohort, predicate: str, expected: int
) -> None:
    assert len(phantom.where(predicate)) == expected


@pytest.mark.parametrize(
    ("predicate", "message"),
    [
        ("protocl = 'newAcq'", "no column 'protocl'; nearest: protocol"),
        ("DOSE_MAXGY > 44", "no column 'DOSE_MAXGY'; nearest: dose_max_gy"),
        ('protocol = "newAcq"', "no column 'newAcq'; a text takes single quotes: 'newAcq'"),
        ("Retum.volume_cc > 60", "no column 'Retum'; nearest: Rectum"),
        ("Rectum.volum > 60", "Rectum has no 'volum'; nearest: volume_cc"),
        ("Rectum.D95 > 60", "Rectum has no 'D95'; nearest: .*d95_gy"),
        ("volume_cc > 60", "'volume_cc' is of a structure: say of which, e.g. Rectum.volume_cc"),
        ("sct.Blader.volume_cc > 60", "no structure 'Blader' after sct; nearest: Bladder"),
        ("nnunet > 60", "no structure '' after nnunet"),
        ("zzz = 1", "no column 'zzz'; there are patient_id"),
        ("n_fiducials", "is BIGINT, not true or false"),
        ("Rectum", r"is STRUCT\(.*, not true or false"),
        ("protocol > 5", "Cannot compare values of type VARCHAR"),
        ("fooo(n_fiducials) = 1", "fooo does not exist"),
        ("count(*) > 1", "cannot contain aggregates"),
        ("row_number() OVER () > 1", "cannot contain window functions"),
        ("patient_id IN (SELECT patient_id FROM structures)", "holds a subquery"),
        ("EXISTS (FROM read_csv('/etc/passwd'))", "holds a subquery"),
        ("random() < 0.5", r"random\(\) changes from run to run"),
        ("now() > TIMESTAMP '2020-01-01'", r"now\(\) changes from run to run"),
        ("current_setting('threads') = 1", "changes from run to run"),
        ("current_date > DATE '2020-01-01'", "no column 'current_date'"),
        ("true) OR (1=1", "syntax error"),
        ("true ORDER BY 1", "holds more than a condition"),
        ("true LIMIT 1", "holds more than a condition"),
        ("true GROUP BY part", "holds more than a condition"),
        ("true USING SAMPLE 2", "holds more than a condition"),
        ("true UNION SELECT 1", "holds more than a condition"),
        ("true WINDOW w AS ()", "syntax error"),
        ("true; DROP TABLE patients", "not a SELECT"),
        ("true; SELECT 1", "2 statements"),
        ("true;", "syntax error"),
        ("n_fiducials = ?", "holds a parameter"),
        ("n_fiducials = $n", "holds a parameter"),
        ("", "the predicate is empty"),
        ("(", "syntax error"),
        ("true /*", "unterminated"),
        ("read_csv('/etc/passwd') IS NULL", "table function"),
    ],
)
def test_a_mistake_is_named_before_anything_is_read(
    dataset: Path, reads: Any, predicate: str, message: str
) -> None:
    cohort = open_cohort(dataset)
    with reads.counted() as names, pytest.raises(QueryError, match=message) as caught:
        cohort.where(predicate)
    assert names == []
    assert "LINE 1" not in str(caught.value)


def test_a_cast_that_fails_on_a_value_is_named_when_decided(phantom: Cohort) -> None:
    cohort = phantom.where("CAST(protocol AS INTEGER) = 1")
    with pytest.raises(QueryError, match=r"Could not convert string '\w+' to INT32"):
        len(cohort)


def test_a_condition_nested_beyond_reason_is_refused(phantom: Cohort) -> None:
    with pytest.raises(QueryError):
        phantom.where("NOT " * 5000 + "true")


def test_what_is_no_text_is_refused(phantom: Cohort) -> None:
    with pytest.raises(UsageError, match="is Series; expected SQL text"):
        phantom.where(phantom.patients.n_fiducials == 3)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.text("()'\";-*/ =aR.1,\n", max_size=25))
def test_any_text_is_a_predicate_or_a_query_error(many: Cohort, text: str) -> None:
    with suppress(QueryError):
        assert 0 <= len(many.where(text)) <= len(many)
