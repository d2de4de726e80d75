"""Constants that no known column holds are named, in whatever SQL; legal ones never are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.errors import QueryError
from lundprobe_zarr.sql.constants import check_query_values
from lundprobe_zarr.sql.session import parse_select
from lundprobe_zarr.vocabulary.names import STRUCTURES

WRONG = [
    ("FROM structures WHERE structure = 'Bladdr'", "no 'Bladdr' in structure; nearest: Bladder"),
    ("FROM structures WHERE 'Bladdr' = structure", "nearest: Bladder"),
    ("FROM structures WHERE structure <> 'bladder'", "nearest: Bladder"),
    ("FROM structures WHERE source = 'observers'", "nearest: observer"),
    ("FROM patients WHERE protocol = 'newacq'", "nearest: newAcq"),
    ("FROM structures WHERE observer = 'obsA'", "no 'obsA' in observer; nearest: obs"),
    ("FROM structures WHERE grid = 'dose'", "expected one of mri, sct"),
    ("FROM structures WHERE fold = 10", "no '10' in fold"),
    ("FROM structures WHERE step NOT IN (1, 3)", "no '3' in step"),
    ("FROM structures s JOIN patients p USING (patient_id) WHERE P.protocol = 'x'", "protocol"),
    ("FROM structures s JOIN patients p ON s.structure = 'x'", "structure"),
    ("FROM structures WHERE structure IN ('Rectum', 'Bladdr')", "Bladdr"),
    ("FROM structures WHERE structure IN ['Bladdr']", "Bladdr"),
    ("FROM structures WHERE (structure, grid) = ('Rectum', 'mr')", "'mr' in grid"),
    ("FROM structures WHERE (structure, grid) IN (('Rectum', 'mr'))", "'mr' in grid"),
    ("SELECT CASE structure WHEN 'Bladdr' THEN 1 END FROM structures", "Bladdr"),
    ("SELECT CASE WHEN structure = 'Bladdr' THEN 1 END FROM structures", "Bladdr"),
    ("SELECT count(*) FILTER (WHERE structure = 'Bladdr') FROM structures", "Bladdr"),
    ("SELECT structure FROM structures GROUP BY 1 HAVING structure = 'Bladdr'", "Bladdr"),
    ("WITH a AS (FROM structures WHERE structure = 'Bladdr') FROM a", "Bladdr"),
    ("WITH a AS (SELECT structure AS s FROM structures) FROM a WHERE s = 'Bladdr'", "Bladdr"),
    ("FROM (SELECT * FROM structures) WHERE structure = 'Bladdr'", "Bladdr"),
    ("FROM patients WHERE EXISTS (FROM structures WHERE protocol = 'x')", "protocol"),
    ("SELECT (SELECT 1 FROM foreground WHERE s.source = 'x' LIMIT 1) FROM structures s", "source"),
    ("SELECT 1 UNION ALL SELECT 1 FROM foreground WHERE structure = 'x'", "structure"),
    ("FROM patients WHERE list_contains(missing_structures, 'Bladdr')", "Bladdr"),
    ("FROM structures WHERE structure IS DISTINCT FROM 'Bladdr'", "Bladdr"),
    ("FROM structures WHERE structure = ANY(['Rectum', 'Bladdr'])", "nearest: Bladder"),
    ("FROM structures WHERE structure <> ALL(['Bladdr'])", "nearest: Bladder"),
    ("FROM patients WHERE list_has_any(missing_structures, ['PenilBulb'])", "PenileBulb"),
    ("FROM patients WHERE ['PenilBulb'] && missing_structures", "PenileBulb"),
    ("FROM patients WHERE list_has_all(missing_structures, ['Rectum', 'x'])", "no 'x' in missing"),
    ("FROM patients WHERE protocol BETWEEN 'newAq' AND 'oldAcq'", "nearest: newAcq"),
    ("FROM structures WHERE structure BETWEEN 'Bladder' AND 'FemoralHeadL'", "FemoralHead_L"),
    ("FROM arrays WHERE variable = 'images'", "no 'images' in variable; nearest: image"),
    ("FROM arrays WHERE \"group\" = 'mri/clincal'", "nearest: mri/clinical"),
    ("FROM patients WHERE patient_id = 'newAcq_1'", "expected oldAcq_ or newAcq_ and 16"),
    ("FROM patients WHERE patient_id IN ('NEWACQ_0123456789ABCDEF')", "in patient_id"),
]
RIGHT = [
    "FROM structures WHERE structure = 'Bladder' AND 'mri' = grid AND observer IS NULL",
    "FROM structures WHERE structure LIKE 'Bl%' OR structure < 'C'",
    "FROM structures WHERE structure BETWEEN 'A' AND 'C'",
    "FROM structures WHERE structure BETWEEN 'Fem' AND 'Fem~' OR fold BETWEEN 2 AND 20",
    "FROM patients WHERE patient_id BETWEEN 'newAcq_0' AND 'newAcq_8'",
    "FROM patients WHERE patient_id = 'newAcq_0123456789abcdef' OR patient_id LIKE 'old%'",
    "FROM structures WHERE structure = ANY(['Rectum']) OR structure = ANY(SELECT 'x')",
    "FROM patients WHERE list_has_any(missing_structures, ['Rectum'] || findings)",
    "FROM arrays WHERE \"group\" = 'dose' AND variable <> 'fiducial_position'",
    "FROM structures WHERE lower(structure) = 'bladder'",
    "FROM structures WHERE structure || '' = 'x' OR contains(structure, 'Head')",
    "FROM structures WHERE step = 1.0 OR fold = '1'",
    "SELECT 'all' AS x FROM patients",
    "SELECT 'all' AS structure FROM structures GROUP BY ALL HAVING structure = 'all'",
    "FROM (SELECT 'all' AS structure UNION ALL SELECT structure FROM structures) "
    "WHERE structure = 'all'",
    "WITH patients AS (SELECT 'x' AS protocol) FROM patients WHERE protocol = 'x'",
    "WITH a(protocol) AS (SELECT 'x') FROM a WHERE protocol = 'x'",
    "FROM structures t(structure, part) WHERE structure = 'newAcq_1' OR part = 'x'",
    "FROM (VALUES ('x')) t(structure) WHERE structure = 'x'",
    "FROM (SELECT lower(protocol) AS protocol FROM patients) WHERE protocol = 'newacq'",
    "FROM (SELECT * REPLACE ('x' AS structure) FROM structures) WHERE structure = 'x'",
    "FROM (SELECT structure, patient_id AS source FROM structures) "
    "WHERE source = 'newAcq_0123456789abcdef'",
    "SELECT [structure FOR structure IN ['x'] IF structure = 'x'] FROM structures",
    "SELECT list_filter(['x'], lambda structure: structure = 'x') FROM structures",
    "SELECT patient_id AS part FROM patients ORDER BY part = 'x'",
    "WITH RECURSIVE t(structure) AS (SELECT 'x' UNION SELECT structure || 'y' FROM t "
    "WHERE structure = 'x') FROM t WHERE structure = 'xy'",
    "FROM patients WHERE contains(part, 'ext') OR NOT list_contains(missing_structures, 'BODY')",
    "FROM (PIVOT structures ON source IN ('x') USING count(*) GROUP BY structure)",
    "FROM range(3) t(structure) WHERE structure = 12",
    "FROM patients WHERE protocol = NULL OR protocol IN (SELECT 'x')",
]


@pytest.mark.parametrize(("query", "message"), WRONG)
def test_a_constant_that_nobody_has_is_named(phantom: Cohort, query: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        phantom.sql(query)


@pytest.mark.parametrize("query", RIGHT)
def test_a_legal_query_is_not_refused(phantom: Cohort, query: str) -> None:
    phantom.sql(query)


def test_a_predicate_tells_a_part_of_a_text_from_a_whole(phantom: Cohort) -> None:
    assert len(phantom.where("contains(part, 'ext')")) == 1
    with pytest.raises(QueryError, match="no 'ext' in part; nearest: extended; expected one of"):
        phantom.where("part IS NOT DISTINCT FROM 'ext'")
    with pytest.raises(QueryError, match="no 'CTV' in missing_structures"):
        phantom.where("list_contains(missing_structures, 'CTV')")


PLACES = [
    "FROM structures WHERE {}",
    "FROM structures AS s, patients AS p WHERE NOT ({})",
    "WITH a AS (SELECT * FROM structures) SELECT * FROM a JOIN a b ON a.{}",
    "SELECT * FROM (SELECT DISTINCT structure FROM structures ORDER BY 1) WHERE {}",
    "SELECT sum(CASE WHEN {} THEN 1 ELSE 0 END) FROM foreground",
]


@settings(max_examples=60, deadline=None)
@given(value=st.sampled_from(STRUCTURES) | st.text("Bladerx ', %", max_size=9), data=st.data())
def test_only_values_of_the_column_pass(value: str, data: st.DataObject) -> None:
    quoted = "'" + value.replace("'", "''") + "'"
    form = data.draw(st.sampled_from(["structure = {}", "structure <> {}", "structure IN ({})"]))
    query = data.draw(st.sampled_from(PLACES)).format(form.format(quoted))
    try:
        check_query_values(parse_select(query), query)
        passed = True
    except QueryError:
        passed = False
    assert passed == (value in STRUCTURES)
