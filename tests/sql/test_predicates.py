"""`Cohort.where`: what a predicate may say, and what is said of one that cannot be run."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lundprobe_zarr.cohort import Cohort, open_cohort
from lundprobe_zarr.errors import QueryError, UsageError
from lundprobe_zarr.schema.tables import PATIENTS
from lundprobe_zarr.sql.columns import example
from lundprobe_zarr.sql.predicate import FIELDS, SEGMENTATIONS, parse_predicate
from lundprobe_zarr.sql.session import STEADY, changing_functions, session
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
        ("Retum.volume_cc > 60", "no structure 'Retum'; nearest: Rectum"),
        ("Rectum.volum > 60", "Rectum has no 'volum'; nearest: volume_cc"),
        ("Rectum.D95 > 60", "Rectum has no 'D95'; nearest: .*d95_gy"),
        ("volume_cc > 60", "'volume_cc' is a structure's field: write e.g. Rectum.volume_cc"),
        (
            "protocol = 'newacq'",
            "no 'newacq' in protocol; nearest: newAcq; expected one of oldAcq, newAcq",
        ),
        ("'test' <> part", "no 'test' in part; expected one of base, extended"),
        ("protocol IN ('newAcq', 'OldAcq')", "no 'OldAcq' in protocol"),
        ("NOT list_contains(missing_structures, 'Penile_Bulb')", "no 'Penile_Bulb' in missing_st"),
        ("'Genital' IN missing_structures", "no 'Genital' in missing_structures; .*Genitalia"),
        (
            "mri_spacing_mm[0] > 2",
            r"element \[0\] of a list; SQL counts from 1, so z, y, x are \[1\]",
        ),
        (
            "Rectum.bbox_start[0] IS NULL",
            r"element \[0\] of a list; SQL counts from 1, so z, y, x are \[1\]",
        ),
        ("sct.Blader.volume_cc > 60", "no structure 'Blader' after sct; nearest: Bladder"),
        ("nnunet > 60", "'nnunet' needs a structure: write e.g. nnunet.Rectum.volume_cc"),
        ("CTV.volume_cc > 5", "no structure 'CTV'; nearest: CTVT_427$"),
        ("ptv IS NULL", "no column 'ptv'; nearest: PTVT_427, missing_PTVT_427$"),
        ("sct.CTV.volume_cc > 5", "no structure 'CTV' after sct; nearest: CTVT_427; write"),
        ("FemHead.volume_cc > 5", "nearest: FemoralHead_R, FemoralHead_L$"),
        ("Femur.volume_cc > 5", "nearest: FemoralHead_L, FemoralHead_R$"),
        ('"Penile bulb".volume_cc > 5', "no structure 'Penile bulb'; nearest: PenileBulb$"),
        ("prostate.volume_cc > 5", "no structure 'prostate'; nearest: CTVT_427$"),
        ("p.protocol = 'x'", "no structure 'p'; there are CTVT_427, PTVT_427, .*, BODY$"),
        ("Rectum.dose > 40", "Rectum has no 'dose'; nearest: dose_min_gy, .*dose_mean_gy$"),
        ("protocol = newAcq", "no column 'newAcq'; a text takes single quotes: 'newAcq'$"),
        ("protocol IN (newacq)", "no column 'newacq'; a text takes single quotes: 'newAcq'$"),
        ("part = extended", "no column 'extended'; a text takes single quotes: 'extended'$"),
        ("patient_id = oldAcq_240bc0bc896a131e", "quotes: 'oldAcq_240bc0bc896a131e'$"),
        ("dose > 40", "no column 'dose'; nearest: dose_shape, "),
        ("fold = 3", r"'fold' has no single value per patient; use cohort\.sql"),
        ("observers.Rectum.volume_cc > 3", "'observers' has no single value"),
        ("structures.volume_cc > 5", "'structures' has no single value"),
        ("zzz = 1", "no column 'zzz'; there are patient_id"),
        (
            "n_fiducials",
            "is a whole number, not true or false; expected a condition; "
            "n_fiducials is a whole number, e.g. n_fiducials > 2$",
        ),
        ("Rectum", "is a whole structure, not true or false; .* e.g. Rectum.volume_cc > 60$"),
        ("Rectum > 60", "cannot compare a whole structure with a whole number; Rectum is a str"),
        ("Rectum = 'x'", "'x' is not a whole structure; Rectum is a structure"),
        (
            "Rectum.volume_cc > 'abc'",
            "'abc' is not a number; Rectum.volume_cc is a number, e.g. Rectum.volume_cc > 60$",
        ),
        ("dose_max_gy > 40 AND sct.Rectum.d95_gy < 'x'", "sct.Rectum.d95_gy is a number, e.g. sct"),
        (
            "protocol > 5",
            "cannot compare text with a whole number; protocol is text, e.g. protocol = 'newAcq'$",
        ),
        ("n_fiducials = 'three'", "'three' is not a whole number; n_fiducials is a whole"),
        ("missing_Rectum > 'x'", "'x' is not true or false; .* e.g. NOT missing_Rectum$"),
        ("protocol = 'newAcq' OR 'oldAcq'", "'oldAcq' is not true or false; protocol is text"),
        ("mri_shape > 5", r"a list with a whole number; mri_shape is three .*mri_shape\[1\] > 2$"),
        ("missing_structures = 'BODY'", r"'BODY' is not a list; .*list_contains\(missing_struct"),
        ("'BODY' IN missing_structures OR BODY IN missing_structures", "as a text, is 'BODY'"),
        ("protocol.x = 1", "protocol has no 'x'; protocol is text"),
        ("protocol LIKE 5", "LIKE cannot take text and a whole number; protocol is text"),
        ("abs(protocol) > 1", "abs cannot take text; protocol is text, e.g. protocol = 'newAcq'$"),
        ("dose_max_gy + protocol > 1", r"\+ cannot take a number and text; dose_max_gy is a num"),
        ("fooo(n_fiducials) = 1", "no function 'fooo'; nearest: floor; n_fiducials is a whole"),
        # DuckDB 1.4 has no operator of that name, not even to say that there is none.
        ("n_fiducials => 3", "no operator =>; nearest: =; n_fiduc|syntax error at or near .=>"),
        ("count(*) > 1", "cannot contain aggregates, which .* use cohort.sql"),
        ("row_number() OVER () > 1", "cannot contain window functions, which .* cohort.sql"),
        ("n_fiducials = 3 AND", "syntax error .*; expected an SQL condition as after WHERE"),
        ("patient_id IN (SELECT patient_id FROM structures)", "holds a subquery"),
        ("EXISTS (FROM read_csv('/etc/passwd'))", "holds a subquery"),
        ("random() < 0.5", r"random\(\) changes between runs"),
        ("now() > TIMESTAMP '2020-01-01'", r"now\(\) changes between runs"),
        ("current_setting('threads') = 1", "changes between runs"),
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
    assert "STRUCT" not in str(caught.value)
    assert "Error:" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(predicate)


def test_every_example_in_a_message_is_right() -> None:
    for name in (*PATIENTS.schema.names, "Rectum", *(f"sct.Rectum.{f}" for f in FIELDS)):
        parse_predicate(example(name))


def test_functions_taken_for_steady_are_so() -> None:
    """In the catalogue of the DuckDB that is installed."""
    query = "SELECT DISTINCT function_name FROM duckdb_functions()"
    with session(query, {}) as connection:
        there = {row[0] for row in connection.execute(query).fetchall()}
    assert there >= STEADY
    assert not STEADY & changing_functions()


FIRST = """
import duckdb, sys
duckdb.execute("SELECT ?::VARCHAR", ["DuckDB 1.4 imports pandas"])
known = set(sys.modules)
from lundprobe_zarr import open_cohort
cohort = open_cohort(sys.argv[1])
assert len(cohort.where("Rectum.volume_cc > 0 AND sct.Rectum IS NOT NULL AND part = 'base'"))
print(*(m for m in ("pandas", "xarray", "zarr") if m in set(sys.modules) - known))
"""


def test_a_choice_waits_for_no_library_it_does_not_need(dataset: Path) -> None:
    command = [sys.executable, "-c", FIRST, str(dataset)]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout == "\n"


def test_a_cast_that_fails_on_a_value_is_named_when_decided(phantom: Cohort) -> None:
    cohort = phantom.where("CAST(protocol AS INTEGER) = 1")
    with pytest.raises(QueryError, match=r"'\w+' \(in protocol\) is not a whole number; pro"):
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
