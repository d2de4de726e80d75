"""The API of the public Hub's dataset viewer: its paths, parameters and shapes.

https://huggingface.co/docs/dataset-viewer describes it. Configurations are tables, splits are
parts. Every answer has the header `X-Revision`, which clients compare with the dataset's sha.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from lundprobe_zarr.dataset.dataset import Rows
from lundprobe_zarr.publish.croissant import CROISSANT_NAME
from lundprobe_zarr.schema.manifest import Manifest
from lundprobe_zarr.schema.tables import PATIENTS
from lundprobe_zarr.service.access.callers import Kind
from lundprobe_zarr.service.core import caller_of, service_of
from lundprobe_zarr.service.datasets.published import Revision
from lundprobe_zarr.service.datasets.tables import NeedsWorkerError
from lundprobe_zarr.service.gate import visit_of
from lundprobe_zarr.service.http.answers import json_answer, no_entry
from lundprobe_zarr.service.http.operations import MOST_CHARACTERS, Operation, Parameter, invalid
from lundprobe_zarr.service.http.shapes import (
    CROISSANT,
    FIRST_ROWS,
    INFO,
    IS_VALID,
    PAGE,
    PARQUET,
    SIZE,
    SPLITS,
    STATISTICS,
)
from lundprobe_zarr.storage.location import Range
from lundprobe_zarr.vocabulary.suggest import suggestion

#: Header with the revision that an answer is of.
REVISION_HEADER = "X-Revision"
#: Most rows of a page.
PAGE_ROWS = 100
#: Most bytes of the rows of `/first-rows`, as in the public viewer.
_FIRST_BYTES = 1_000_000
_MOST_WORDS = 16
_ORDER = re.compile(r'\s*(?:"([^"]+)"|(\w+))(?:\s+(asc|desc))?\s*', re.IGNORECASE)

_TAG = "viewer"
_DATASET = Parameter("dataset", "Name of the dataset, `owner/name`.", True)
_CONFIG = Parameter("config", "Name of a table.", True, example=PATIENTS.name)
_ANY_CONFIG = Parameter("config", "Name of a table; all if absent.", example=PATIENTS.name)
_SPLIT = Parameter("split", "Name of a part: `base` or `extended`.", True, example="base")
_OFFSET = Parameter("offset", "First row.", default=0, most=2**53)
_LENGTH = Parameter("length", "Most rows.", default=PAGE_ROWS, most=PAGE_ROWS)
_WHERE = Parameter(
    "where",
    "A condition. On `patients` it is a predicate as `Cohort.where` takes it, which may name "
    "structures, as in `Rectum.volume_cc > 60`; on other tables it is about their columns.",
    True,
    most=MOST_CHARACTERS,
    example="protocol = 'newAcq'",
)
_QUERY = Parameter("query", "Words, all of which a row's texts must contain.", True, example="base")
_ORDERBY = Parameter("orderby", "A column, and `ASC` or `DESC`; by default the rows' order.")
_OF_SPLIT = (_DATASET, _CONFIG, _SPLIT)
_HEADERS = {REVISION_HEADER: "The revision that the answer is of."}


def _operation(summary: str, answer: Mapping[str, Any], *query: Parameter) -> Operation:
    answers, errors = {"application/json": answer}, (404, 422, 503)
    return Operation(summary, _TAG, query, answers=answers, headers=_HEADERS, errors=errors)


_is_valid = _operation("Say which endpoints work for a dataset.", IS_VALID, _DATASET)
_splits = _operation("List the tables and parts.", SPLITS, _DATASET, _ANY_CONFIG)
_info = _operation("Return `DatasetInfo` of each table.", INFO, _DATASET, _ANY_CONFIG)
_size = _operation("Count rows, columns and bytes.", SIZE, _DATASET, _ANY_CONFIG)
_parquet = _operation("List the Parquet files with their URLs.", PARQUET, _DATASET, _ANY_CONFIG)
_first_rows = _operation("Return the first rows, up to 1 MB.", FIRST_ROWS, *_OF_SPLIT)
_rows = _operation("Return a page of rows.", PAGE, *_OF_SPLIT, _OFFSET, _LENGTH)
_filter = _operation(
    "Return a page of the rows where a condition holds.",
    PAGE,
    *(*_OF_SPLIT, _WHERE, _ORDERBY, _OFFSET, _LENGTH),
)
_search = _operation(
    "Return a page of the rows that contain words.", PAGE, *_OF_SPLIT, _QUERY, _OFFSET, _LENGTH
)
_statistics = _operation("Describe the distribution of each column.", STATISTICS, *_OF_SPLIT)
_croissant = _operation("Return the dataset's Croissant metadata.", CROISSANT, _DATASET)


def routes() -> list[BaseRoute]:
    """Return the routes of the viewer's API."""
    return [
        Route("/is-valid", is_valid),
        Route("/splits", splits),
        Route("/info", info),
        Route("/size", size),
        Route("/parquet", parquet),
        Route("/first-rows", first_rows),
        Route("/rows", rows),
        Route("/filter", filter_rows),
        Route("/search", search),
        Route("/statistics", statistics),
        Route("/croissant", croissant),
    ]


def _requested(request: Request, operation: Operation) -> tuple[Revision, dict[str, Any]]:
    """Return the dataset that a request names, and its parameters. Raises `HttpError`."""
    given = operation.read_query(request)
    visit = visit_of(request)
    visit.dataset = given["dataset"]
    now = service_of(request).revision(caller_of(request), given["dataset"], Kind.TABLES)
    visit.sha = now.sha
    if given.get("config") is not None:
        now.tables.require(given["config"], given.get("split"))
        if "split" in given:
            visit.path = now.tables.files(given["config"], given["split"])[0]
    return now, given


async def _answer(request: Request, now: Revision, make: Callable[[], Any]) -> Response:
    """Make an answer in a thread, with the header that says which revision it is of."""
    headers = {REVISION_HEADER: now.sha}
    return await service_of(request).queries.aside(lambda: json_answer(request, make(), headers))


@_is_valid
async def is_valid(request: Request) -> Response:
    """Say that every endpoint works."""
    now, _ = _requested(request, _is_valid)
    works = ("viewer", "preview", "search", "filter", "statistics")
    return await _answer(request, now, lambda: dict.fromkeys(works, True))


def _pairs(now: Revision, config: str | None) -> list[tuple[str, str]]:
    """Return each configuration, or one, with each of its splits."""
    known = now.tables.splits
    return [(c, s) for c in known if config in (None, c) for s in known[c]]


def _complete(**contents: Any) -> dict[str, Any]:
    """Return contents with the fields that say that nothing is missing."""
    return {**contents, "pending": [], "failed": [], "partial": False}


@_splits
async def splits(request: Request) -> Response:
    """List the splits of each configuration."""
    now, given = _requested(request, _splits)
    found = [
        {"dataset": now.name, "config": config, "split": split}
        for config, split in _pairs(now, given["config"])
    ]
    return await _answer(request, now, lambda: {"splits": found, "pending": [], "failed": []})


@_info
async def info(request: Request) -> Response:
    """Describe one configuration, or each by its name."""
    now, given = _requested(request, _info)
    config = given["config"]

    def make() -> dict[str, Any]:
        if config is not None:
            return {"dataset_info": _dataset_info(now, config), "partial": False}
        found = {name: _dataset_info(now, name) for name in now.tables.splits}
        return _complete(dataset_info=found)

    return await _answer(request, now, make)


def _dataset_info(now: Revision, config: str) -> dict[str, Any]:
    """Return a configuration in the form that `datasets.DatasetInfo.from_dict` takes."""
    manifest = now.dataset.manifest
    sizes = {split: now.tables.sizes(config, split) for split in now.tables.splits[config]}
    short = now.name.rpartition("/")[2]
    return {
        "description": _description(manifest),
        "citation": manifest.citation,
        "homepage": f"https://doi.org/{manifest.doi}",
        "license": manifest.access,
        "features": now.tables.features(config),
        "builder_name": "parquet",
        "dataset_name": short,
        "config_name": config,
        "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
        "splits": {
            split: {
                "name": split,
                "num_bytes": size,
                "num_examples": count,
                "dataset_name": short,
            }
            for split, (count, size) in sizes.items()
        },
        "download_size": sum(_stored(now, config, split) for split in sizes),
        "dataset_size": sum(size for _, size in sizes.values()),
    }


def _description(manifest: Manifest) -> str:
    counts = ", ".join(f"{n} {part}" for part, n in manifest.patients.items())
    return f"{manifest.name}, precision {manifest.precision}. Patients: {counts}."


def _stored(now: Revision, config: str, split: str) -> int:
    """Return the bytes of a split's Parquet files."""
    files = (now.file(path) for path in now.tables.files(config, split))
    return sum(file.size for file in files if file is not None)


@_size
async def size(request: Request) -> Response:
    """Count rows and bytes of the dataset, or of one configuration."""
    now, given = _requested(request, _size)
    return await _answer(request, now, lambda: _sizes(now, given["config"]))


def _sizes(now: Revision, config: str | None) -> dict[str, Any]:
    found = [_size_of(now, *pair) for pair in _pairs(now, config)]
    names = [name for name in now.tables.splits if config in (None, name)]
    configs = [_total(found, {"dataset": now.name, "config": name}) for name in names]
    for each in configs:
        each["num_columns"] = len(now.tables.features(each["config"]))
    if config is not None:
        return _complete(size={"config": configs[0], "splits": found})
    whole = _total(found, {"dataset": now.name})
    return _complete(size={"dataset": whole, "configs": configs, "splits": found})


def _size_of(now: Revision, config: str, split: str) -> dict[str, Any]:
    count, memory = now.tables.sizes(config, split)
    return {
        "dataset": now.name,
        "config": config,
        "split": split,
        "num_bytes_parquet_files": _stored(now, config, split),
        "num_bytes_memory": memory,
        "num_rows": count,
        "num_columns": len(now.tables.features(config)),
    }


def _total(found: list[dict[str, Any]], of: dict[str, Any]) -> dict[str, Any]:
    """Return the sums over those splits that have the values `of`."""
    some = [each for each in found if of.items() <= each.items()]
    keys = ("num_bytes_parquet_files", "num_bytes_memory", "num_rows")
    sums = {key: sum(each[key] for each in some) for key in keys}
    return of | {"num_bytes_original_files": sums["num_bytes_parquet_files"]} | sums


@_parquet
async def parquet(request: Request) -> Response:
    """List the Parquet files; their URLs name the revision, so they never change."""
    now, given = _requested(request, _parquet)
    base = f"{service_of(request).settings.public_url}/datasets/{now.name}/resolve/{now.sha}"
    found = [
        {
            "dataset": now.name,
            "config": config,
            "split": split,
            "url": f"{base}/{path}",
            "filename": path.rpartition("/")[2],
            "size": file.size,
        }
        for config, split in _pairs(now, given["config"])
        for path in now.tables.files(config, split)
        if (file := now.file(path)) is not None
    ]
    return await _answer(request, now, lambda: _complete(parquet_files=found))


@_first_rows
async def first_rows(request: Request) -> Response:
    """Return the first hundred rows, or as many of them as 1 MB holds."""
    now, given = _requested(request, _first_rows)
    config, split = given["config"], given["split"]

    def make() -> dict[str, Any]:
        chosen = now.tables.rows(config, split)[:PAGE_ROWS]
        found = _listed(now, config, chosen, np.arange(len(chosen)))
        whole: list[dict[str, Any]] = []
        used = 0
        for row in found:
            used += len(json.dumps(row, separators=(",", ":")))
            if used > _FIRST_BYTES and whole:
                break
            whole.append(row)
        return {
            "dataset": now.name,
            "config": config,
            "split": split,
            "features": _features(now, config),
            "rows": whole,
            "truncated": len(whole) < len(found),
        }

    return await _answer(request, now, make)


@_rows
async def rows(request: Request) -> Response:
    """Return a page of a split's rows."""
    now, given = _requested(request, _rows)
    config, split = given["config"], given["split"]

    def make() -> dict[str, Any]:
        chosen = now.tables.rows(config, split)
        return _page(now, given, chosen, np.arange(len(chosen)))

    return await _answer(request, now, make)


@_filter
async def filter_rows(request: Request) -> Response:
    """Return a page of the rows where a condition holds."""
    now, given = _requested(request, _filter)
    config, condition = given["config"], given["where"]
    visit_of(request).sql = condition
    order = await service_of(request).queries.aside(_order, now, config, given["orderby"])
    found = await rows_where(request, now, config, condition)

    def make() -> dict[str, Any]:
        numbers = _within(now.tables.rows(config, given["split"]), found)
        if order is not None:
            numbers = _sorted(now, given, numbers, *order)
        return _page(now, given, now.tables.rows(config, given["split"])[numbers], numbers)

    return await _answer(request, now, make)


async def rows_where(request: Request, now: Revision, config: str, condition: str) -> Rows:
    """Return the rows of a whole table where a condition holds.

    Raises like `Tables.where`, and like `Queries.run` if it needs a process.
    """
    found = now.tables.kept(config, condition)
    if found is not None:
        return found
    queries, caller = service_of(request).queries, caller_of(request)
    bounds = queries.bounds(caller)
    try:
        return await queries.aside(now.tables.where, config, condition, bounds)
    except NeedsWorkerError:
        return await queries.run(
            request, caller, lambda by: now.tables.where(config, condition, bounds, by)
        )


def _within(split: Rows, found: Rows) -> Rows:
    """Return the numbers within a split of rows of the whole table. Both are ascending."""
    place = np.searchsorted(split, found)
    inside = place < len(split)
    inside[inside] = split[place[inside]] == found[inside]
    return place[inside]


def _order(now: Revision, config: str, text: str | None) -> tuple[str, bool] | None:
    """Return the column to sort by, and whether the largest comes first. Raises `HttpError`."""
    if text is None:
        return None
    matched = _ORDER.fullmatch(text)
    name = text if matched is None else matched[1] or matched[2]
    known = now.tables.features(config)
    if matched is None or name not in known:
        raise invalid(f"orderby: no column {name[:80]!r} in {config}; {suggestion(name, known)}.")
    if known[name]["_type"] != "Value":
        raise invalid(f"orderby: {name} is a list, which has no order.")
    return name, (matched[3] or "").lower() == "desc"


def _sorted(
    now: Revision, given: dict[str, Any], numbers: Rows, column: str, largest_first: bool
) -> Rows:
    """Return row numbers by a column's values, null last; equal ones in the rows' order."""
    config, split = given["config"], given["split"]
    table = now.tables.take(config, now.tables.rows(config, split)[numbers]).select([column])
    table = table.append_column("", [np.arange(len(numbers))])
    by = [(column, "descending" if largest_first else "ascending"), ("", "ascending")]
    order = table.sort_by(by).column("").to_numpy()
    found: Rows = numbers[order]
    return found


@_search
async def search(request: Request) -> Response:
    """Return a page of the rows whose texts contain all words."""
    now, given = _requested(request, _search)
    words = given["query"].split()
    if len(words) > _MOST_WORDS:
        raise invalid(f"Parameter 'query' has {len(words)} words; expected at most {_MOST_WORDS}.")
    config, split = given["config"], given["split"]
    visit_of(request).sql = f"search: {given['query']}"

    def make() -> dict[str, Any]:
        chosen = now.tables.rows(config, split)
        numbers = _within(chosen, now.tables.search(config, words))
        return _page(now, given, chosen[numbers], numbers)

    return await _answer(request, now, make)


@_statistics
async def statistics(request: Request) -> Response:
    """Describe each column of a split."""
    now, given = _requested(request, _statistics)
    config, split = given["config"], given["split"]
    return await _answer(
        request,
        now,
        lambda: {
            "num_examples": now.tables.sizes(config, split)[0],
            "statistics": now.tables.statistics(config, split),
            "partial": False,
        },
    )


@_croissant
async def croissant(request: Request) -> Response:
    """Return the dataset's own Croissant document."""
    now, _ = _requested(request, _croissant)
    file = now.file(CROISSANT_NAME)
    if file is None:
        raise no_entry(now.name, CROISSANT_NAME, now.sha)
    wanted = [Range(file.path, 0, file.size)]

    def make() -> Any:
        return json.loads(now.dataset.location.read_ranges(wanted)[0])

    return await _answer(request, now, make)


def _features(now: Revision, config: str) -> list[dict[str, Any]]:
    """Return the columns as the viewer lists them."""
    known = now.tables.features(config)
    return [
        {"feature_idx": number, "name": name, "type": kind}
        for number, (name, kind) in enumerate(known.items())
    ]


def _page(now: Revision, given: dict[str, Any], chosen: Rows, numbers: Rows) -> dict[str, Any]:
    """Return a page of chosen rows of a whole table; `numbers` are theirs within the split."""
    part = slice(given["offset"], given["offset"] + given["length"])
    return {
        "features": _features(now, given["config"]),
        "rows": _listed(now, given["config"], chosen[part], numbers[part]),
        "num_rows_total": len(chosen),
        "num_rows_per_page": PAGE_ROWS,
        "partial": False,
    }


def _listed(now: Revision, config: str, chosen: Rows, numbers: Rows) -> list[dict[str, Any]]:
    values = now.tables.take(config, chosen).to_pylist()
    return [
        {"row_idx": number, "row": finite(row), "truncated_cells": []}
        for number, row in zip(numbers.tolist(), values, strict=True)
    ]


def finite(value: Any) -> Any:
    """Return a value as JSON can have it: null in place of infinities and of what is no number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return value
