"""Cases of SQL: predicates and queries, well-formed and not, that reach for what they may not."""

from __future__ import annotations

import random

from benchmarks.hostile.changes import TEXTS
from benchmarks.hostile.material import Material
from lundprobe_zarr.cohort import open_cohort
from lundprobe_zarr.schema.tables import TABLES

_NAMES = (
    *("protocol", "part", "n_fiducials", "dose_max_gy", "findings", "missing_structures", "store"),
    *("Rectum", "Rectum.volume_cc", "sct.Bladder.d95_gy", "nnunet.CTVT_427.bbox_start[1]", "BODY"),
    *(
        "patients.part",
        "missing_PenileBulb",
        "mri_shape[3]",
        '"part"',
        "nonsense",
        "a.b.c",
        "rowid",
    ),
    *("структура", "Rectum.*", "patients", "COLUMNS('.*')", "_ROW", '"row of the patients table"'),
)
_VALUES = (
    *("1", "0", "-1", "1e400", "NULL", "true", "'base'", "'newAcq'", "42.7", "'a''b'", "[1, 2]"),
    *("{'a': 1}", "DATE '2020-01-01'", "INTERVAL 1 DAY", "0x10", "$1", "?", "E'\\n'", "'\\'", "''"),
    *(
        "9223372036854775807",
        "-170141183460469231731687303715884105728",
        "'\u202e'",
        "$$x$$",
        "b''",
    ),
)
_OPERATORS = (
    *(" = ", " <> ", " < ", " AND ", " OR ", " IS NULL OR ", " LIKE ", " IN ", " + ", " / ", " % "),
    *(" || ", "::", " BETWEEN ", " ~ ", " -> ", " ** ", " IS NOT DISTINCT FROM ", ", ", ".", "; "),
)
_FUNCTIONS = (
    *("abs", "lower", "len", "list_contains", "coalesce", "sum", "regexp_matches", "struct_pack"),
    *("getenv", "current_setting", "read_csv", "read_text", "glob", "nextval", "query", "sqrt"),
    *("list_transform", "strftime", "hash", "unnest", "row_number", "json_extract", "try_cast"),
    *("printf", "format", "chr", "to_json", "version", "pragma_version", "write_log", "sleep"),
)
_REACHES = (
    *("read_csv('/etc/passwd')", "'/etc/passwd'", "glob('/*')", "read_parquet('x.parquet')"),
    *(
        "COPY patients TO 'out.csv'",
        "ATTACH 'x.db' AS x",
        "INSTALL httpfs",
        "LOAD httpfs",
        "VACUUM",
    ),
    *("PRAGMA database_list", "SET threads = 1", "EXPORT DATABASE 'out'", "CALL pragma_version()"),
    *("SELECT 1", "WITH a AS (FROM 'x.csv') FROM a", "CREATE TABLE t AS SELECT 1", "USE memory"),
    *("FROM duckdb_settings()", "sqlite_master", "information_schema.tables", "'https://h/x.csv'"),
)
_COMMENTS = ("--", "--\n", "/*", "*/", "/* a */", "/**/", "\n", "\t", "\u00a0", "\u2028", "\0", "#")


class Questions:
    """Makes and runs cases of predicates and queries."""

    def __init__(self, material: Material) -> None:
        self._cohort = open_cohort(material.dataset)
        for table in TABLES:  # read once, so that a case takes no longer than its SQL
            self._cohort.table(table)

    def predicate(self, rng: random.Random) -> str:
        """A condition, or what is not quite one."""
        if rng.random() < 0.25:
            return _soup(rng)
        return _expression(rng, rng.randrange(4))

    def run_predicate(self, text: str) -> None:
        """Choose patients by it: some of those there are."""
        if not 0 <= len(self._cohort.where(text)) <= len(self._cohort):
            raise AssertionError("more patients than there are")

    def query(self, rng: random.Random) -> str:
        """A SELECT of the tables, or of what is not theirs."""
        kind = rng.random()
        if kind < 0.2:
            return _soup(rng)
        table = rng.choice((*TABLES, *TABLES, *_REACHES))
        what = ", ".join(_expression(rng, 1) for _ in range(rng.randint(1, 2)))
        text = f"SELECT {what} FROM {table}"
        if kind < 0.4:
            text += f" WHERE {_expression(rng, 2)}"
        elif kind < 0.5:
            text = f"WITH {rng.choice(('a', *TABLES))} AS ({text}) FROM {rng.choice(('a', table))}"
        elif kind < 0.6:
            joint = rng.choice(("UNION ALL", "JOIN", ",", ";", "INTERSECT"))
            text += f" {joint} {rng.choice(_REACHES)}"
        elif kind < 0.7:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice((*_COMMENTS, *TEXTS)) + text[at:]
        return text

    def run_query(self, text: str) -> None:
        """Ask it."""
        self._cohort.sql_table(text)


def _expression(rng: random.Random, depth: int) -> str:
    if depth <= 0:
        return rng.choice(_NAMES if rng.random() < 0.6 else _VALUES)
    kind = rng.randrange(8)
    inner = _expression(rng, depth - 1)
    if kind < 3:
        return inner + rng.choice(_OPERATORS) + _expression(rng, depth - 1)
    if kind == 3:
        return f"NOT ({inner})"
    if kind == 4:
        return f"{rng.choice(_FUNCTIONS)}({inner})"
    if kind == 5:
        return f"CASE WHEN {inner} THEN {_expression(rng, 0)} END"
    if kind == 6:
        return f"{rng.choice(('CAST', 'TRY_CAST'))}({inner} AS {rng.choice(_KINDS)})"
    return f"({inner}) {rng.choice(('IS NULL', 'IN (1, 2)', f'IN ({rng.choice(_REACHES)})'))}"


_KINDS = (
    "INTEGER",
    "BOOLEAN",
    "VARCHAR",
    "DOUBLE",
    "DATE",
    "INTEGER[]",
    "DECIMAL(38, 3)",
    "JSON",
    "x",
)


def _soup(rng: random.Random) -> str:
    """Words of SQL in any order."""
    words = (*_NAMES, *_VALUES, *_OPERATORS, *_FUNCTIONS, *_REACHES, *_COMMENTS, *TEXTS, "(", ")")
    return " ".join(rng.choice(words) for _ in range(rng.randint(1, 9)))
