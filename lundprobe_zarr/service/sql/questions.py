"""SQL over a dataset's tables, and cohorts: `POST /api/datasets/<owner>/<name>/sql` and `/cohort`.

They are below the dataset, as all that the Hub's API says of one, and not below a version number:
the revision in `X-Revision` and in the body says which data, and the formats are standards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.cohort.saved import SavedCohort, SavedSplits, parse_saved
from lundprobe_zarr.dataset.dataset import Rows
from lundprobe_zarr.errors import QueryError, QueryLimitError, QueryProcessError, UsageError
from lundprobe_zarr.schema.tables import PATIENTS
from lundprobe_zarr.service.access.callers import Kind
from lundprobe_zarr.service.core import MAIN, caller_of, service_of
from lundprobe_zarr.service.datasets.published import Revision
from lundprobe_zarr.service.gate import visit_of
from lundprobe_zarr.service.http.answers import HttpError, json_answer, json_bytes
from lundprobe_zarr.service.http.bodies import MOST_BYTES, read_fields
from lundprobe_zarr.service.http.operations import MOST_CHARACTERS, Operation, Parameter
from lundprobe_zarr.service.http.shapes import COHORT, SAVED, SQL_JSON
from lundprobe_zarr.service.hub.viewer import REVISION_HEADER, rows_where
from lundprobe_zarr.service.sql.results import FORMATS, NAMES, Format, format_of, written
from lundprobe_zarr.sql.query import parse_query
from lundprobe_zarr.sql.worker import SqlWorker

#: Header that says whether rows beyond `limit` were left out.
TRUNCATED_HEADER = "X-Truncated"
#: Most rows of a result.
_MOST_ROWS = 1_000_000
_REVISION = {
    "type": "string",
    "default": MAIN,
    "minLength": 1,
    "maxLength": 100,
    "description": "`main`, or the sha of the revision that must be the one served.",
}
_SQL_BODY = {
    "type": "object",
    "required": ["sql"],
    "additionalProperties": False,
    "properties": {
        "sql": {
            "type": "string",
            "minLength": 1,
            "maxLength": MOST_CHARACTERS,
            "description": "One SELECT over the tables, in DuckDB's SQL.",
            "example": "SELECT protocol, count(*) AS n FROM patients GROUP BY ALL",
        },
        "where": {
            "type": "string",
            "minLength": 1,
            "maxLength": MOST_CHARACTERS,
            "description": "A predicate on patients, as of a cohort: the tables then hold these "
            "patients alone.",
        },
        "limit": {
            "type": "integer",
            "minimum": 1,
            "maximum": _MOST_ROWS,
            "description": f"Most rows. Those beyond are left out, and {TRUNCATED_HEADER} says so. "
            f"Without it, a result of more than {_MOST_ROWS} rows is refused.",
        },
        "revision": _REVISION,
    },
}
#: Most bytes of a body with a saved file. A patient takes about 40, so 200,000 patients fit: more
#: than twice what SQL over the tables is measured with.
_MOST_SAVED_BYTES = 8 * 1024**2
_COHORT_BODY = {
    "type": "object",
    "required": ["where"],
    "additionalProperties": False,
    "properties": {
        "where": {
            "type": "string",
            "minLength": 1,
            "maxLength": MOST_CHARACTERS,
            "description": "A predicate on patients, as `Cohort.where` takes it.",
            "example": "protocol = 'newAcq' AND Rectum.volume_cc > 60",
        },
        "revision": _REVISION,
    },
}
_SAVED_BODY = {
    "type": "object",
    "required": ["text"],
    "additionalProperties": False,
    "properties": {
        "text": {
            "type": "string",
            "minLength": 1,
            "maxLength": _MOST_SAVED_BYTES,
            "description": "The contents of the file, as `Cohort.save` or `Splits.save` wrote it.",
        },
        "revision": _REVISION,
    },
}
_HEADERS = {REVISION_HEADER: "The revision that the answer is of."}
_ERRORS = (400, 404, 408, 413, 422, 429, 503)

_sql = Operation(
    "Run a read-only SELECT over the tables.",
    "cohorts",
    (
        Parameter(
            "format", "Form of the result; by default as `Accept` asks, else JSON.", choices=NAMES
        ),
    ),
    _SQL_BODY,
    {form.media_type: SQL_JSON if form.name == "json" else {} for form in FORMATS},
    _HEADERS | {TRUNCATED_HEADER: "`true` if rows beyond `limit` were left out."},
    (*_ERRORS, 406),
)
_cohort = Operation(
    "Select patients by a predicate.",
    "cohorts",
    (
        Parameter(
            "format",
            "`json` has the ids and the saved cohort; `file` is the saved cohort alone, which "
            "`lundprobe_zarr.load_cohort` reads.",
            choices=("json", "file"),
        ),
    ),
    _COHORT_BODY,
    {"application/json": {"anyOf": [COHORT, COHORT["properties"]["cohort"]]}},
    _HEADERS,
    _ERRORS,
)


_saved = Operation(
    "Check a saved cohort or split against this dataset.",
    "cohorts",
    (),
    _SAVED_BODY,
    {"application/json": SAVED},
    _HEADERS,
    _ERRORS,
)


def routes() -> list[BaseRoute]:
    """Return the routes of SQL and cohorts."""
    base = "/api/datasets/{owner}/{name}"
    return [
        Route(f"{base}/sql", sql, methods=["POST"]),
        Route(f"{base}/cohort", cohort, methods=["POST"]),
        Route(f"{base}/saved", saved, methods=["POST"]),
    ]


async def _requested(
    request: Request, operation: Operation, most_bytes: int = MOST_BYTES
) -> tuple[Revision, dict[str, Any], dict[str, Any]]:
    """Return the dataset, the parameters and the fields of a request. Raises `HttpError`."""
    assert operation.body is not None
    name = f"{request.path_params['owner']}/{request.path_params['name']}"
    visit = visit_of(request)
    visit.dataset = name
    service, caller = service_of(request), caller_of(request)
    now = service.revision(caller, name, Kind.TABLES)
    given = operation.read_query(request)
    fields = await read_fields(request, operation.body, most_bytes)
    now = service.named_revision(caller, name, Kind.TABLES, fields["revision"])
    visit.sha = now.sha
    return now, given, fields


@_sql
async def sql(request: Request) -> Response:
    """Answer a SELECT over the tables."""
    now, given, fields = await _requested(request, _sql)
    predicate = fields["where"]
    visit_of(request).sql = (
        fields["sql"] if predicate is None else f"{fields['sql']}\n-- {predicate}"
    )
    form = format_of(given["format"], request.headers.get("accept"))
    queries, caller = service_of(request).queries, caller_of(request)
    most = fields["limit"]
    bounds = queries.bounds(caller, (_MOST_ROWS if most is None else most) + 1)
    query = await queries.aside(parse_query, fields["sql"])
    await queries.aside(now.tables.load, query.names)

    if predicate is None:
        chosen = np.arange(now.tables.whole(PATIENTS.name).num_rows, dtype=np.int64)
    else:
        chosen = await rows_where(request, now, PATIENTS.name, predicate)

    def run(worker: SqlWorker) -> pa.Table:
        return query.run(now.dataset, chosen, bounds, worker)

    table = await queries.run(request, caller, run)
    return await queries.aside(_result, request, now.sha, table, most, form)


def _result(
    request: Request, sha: str, table: pa.Table, most: int | None, form: Format
) -> Response:
    """Return a result in its form. Raises `HttpError` (413) for one of too many rows."""
    if most is None and table.num_rows > _MOST_ROWS:
        raise HttpError(
            413,
            f"The result has more than {_MOST_ROWS} rows. Select fewer, or give `limit` to get the "
            "first ones.",
            "QueryLimit",
        )
    is_cut = most is not None and table.num_rows > most
    content = written(table.slice(0, most) if is_cut else table, form, is_cut)
    headers = {
        REVISION_HEADER: sha,
        TRUNCATED_HEADER: str(is_cut).lower(),
        "Cache-Control": "private, no-cache",
        "Vary": "Accept, Accept-Encoding, Authorization",
    }
    if form.name == "json":
        return json_bytes(request, content, headers)
    return Response(content, 200, headers, form.media_type)


@_cohort
async def cohort(request: Request) -> Response:
    """Answer a predicate with the ids of its patients, and with a saved cohort."""
    now, given, fields = await _requested(request, _cohort)
    predicate = fields["where"]
    visit_of(request).sql = predicate
    rows = await rows_where(request, now, PATIENTS.name, predicate)
    is_file = given["format"] == "file"
    return await service_of(request).queries.aside(_chosen, request, now, predicate, rows, is_file)


def _chosen(request: Request, now: Revision, predicate: str, rows: Rows, is_file: bool) -> Response:
    """Return the patients in `rows`, or the file of them alone."""
    chosen = Cohort(now.dataset, lambda: rows, (predicate,))
    document = SavedCohort(
        dataset=chosen.dataset.identity, selection=[predicate], patient_ids=chosen.ids
    )
    headers = {REVISION_HEADER: now.sha}
    if is_file:
        headers["Content-Disposition"] = 'attachment; filename="cohort.json"'
        return json_bytes(request, document.text().encode(), headers)
    answer = {
        "num_patients": len(chosen),
        "patient_ids": chosen.ids,
        "cohort": json.loads(document.text()),
    }
    return json_answer(request, answer, headers)


@_saved
async def saved(request: Request) -> Response:
    """Answer the text of a saved file with its lists of patients, if it was not changed."""
    now, _, fields = await _requested(request, _saved, _MOST_SAVED_BYTES)
    return await service_of(request).queries.aside(_read_back, request, now, fields["text"])


def _read_back(request: Request, now: Revision, text: str) -> Response:
    """Return what a saved file holds, and how the dataset that it was saved from differs.

    Raises `HttpError` (422) for a text that no saved file has, or that was changed since.
    """
    try:
        found: SavedCohort | SavedSplits
        if f'"{SavedSplits.KIND}"' in text:
            found = parse_saved(text, "the saved file", SavedSplits)
        else:
            found = parse_saved(text, "the saved file", SavedCohort)
    except UsageError as error:
        raise HttpError(422, str(error), "InvalidParameter") from error
    identity = Cohort(now.dataset).dataset.identity
    answer = {
        "kind": found.kind,
        "differences": found.dataset.differences(identity),
        "subsets": [
            {"name": name, "where": where, "patient_ids": ids}
            for name, where, ids in _subsets(found)
        ],
    }
    return json_answer(request, answer, {REVISION_HEADER: now.sha})


def _subsets(found: SavedCohort | SavedSplits) -> Iterator[tuple[str, str, list[str]]]:
    """Yield each list of patients with its name, and the predicate that selected it, or ""."""
    if isinstance(found, SavedCohort):
        several = len(found.selection) > 1
        steps = (f"({step})" if several else step for step in found.selection)
        yield "cohort", " AND ".join(steps), found.patient_ids
        return
    if found.test:
        yield "test", "", found.test
    for number, ids in enumerate(found.validation):
        yield f"validation {number}" if len(found.validation) > 1 else "validation", "", ids
    if found.train is not None:
        yield "train", "", found.train


def query_problem(error: QueryError) -> HttpError:
    """Return the answer for a query that is wrong, or that exceeded a limit."""
    if isinstance(error, QueryProcessError):
        return HttpError(
            503,
            "The process for SQL could not be started. The service's log says why.",
            headers={"Retry-After": "5"},
        )
    if isinstance(error, QueryLimitError):
        status = 413 if error.limit == "result" else 422
        return HttpError(status, _without_options(error), "QueryLimit")
    details = {} if error.position is None else {"position": error.position}
    return HttpError(422, str(error), "InvalidQuery", details=details)


def _without_options(error: QueryLimitError) -> str:
    """Return a limit's message without the options of Python and the command line."""
    where = "" if error.where is None else f"{error.where}: "
    return f"{where}{error.finding}; ask for fewer rows, without unbounded lists and joins"
