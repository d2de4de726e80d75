"""JSON schemas of the answers, for the service's OpenAPI description."""

from __future__ import annotations

from typing import Any

from lundprobe_zarr.service.http.operations import Schema

_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer", "minimum": 0}
_TRUTH: Schema = {"type": "boolean"}
_ANY: Schema = {}


def record(**fields: Schema) -> dict[str, Any]:
    """Return the schema of an object that has all of these fields."""
    return {"type": "object", "required": list(fields), "properties": fields}


def array(items: Schema) -> dict[str, Any]:
    """Return the schema of a list."""
    return {"type": "array", "items": items}


_NOTHING = {"type": "array", "maxItems": 0}
_COMPLETE: dict[str, Schema] = {
    "pending": _NOTHING,
    "failed": _NOTHING,
    "partial": {"const": False},
}
_FEATURES = array(record(feature_idx=_WHOLE, name=_TEXT, type={"type": "object"}))
_ROWS = array(record(row_idx=_WHOLE, row={"type": "object"}, truncated_cells=array(_TEXT)))
_COUNTS = {"num_bytes_parquet_files": _WHOLE, "num_bytes_memory": _WHOLE, "num_rows": _WHOLE}
_SPLIT = {"dataset": _TEXT, "config": _TEXT, "split": _TEXT}

ERROR = record(error=_TEXT)
IS_VALID = record(viewer=_TRUTH, preview=_TRUTH, search=_TRUTH, filter=_TRUTH, statistics=_TRUTH)
SPLITS = record(splits=array(record(**_SPLIT)), pending=_NOTHING, failed=_NOTHING)
INFO = record(dataset_info={"type": "object"}, partial={"const": False})
SIZE = record(
    size=record(splits=array(record(**_SPLIT, **_COUNTS, num_columns=_WHOLE))), **_COMPLETE
)
PARQUET = record(
    parquet_files=array(record(**_SPLIT, url=_TEXT, filename=_TEXT, size=_WHOLE)), **_COMPLETE
)
FIRST_ROWS = record(**_SPLIT, features=_FEATURES, rows=_ROWS, truncated=_TRUTH)
PAGE = record(
    features=_FEATURES,
    rows=_ROWS,
    num_rows_total=_WHOLE,
    num_rows_per_page={"const": 100},
    partial={"const": False},
)
STATISTICS = record(
    num_examples=_WHOLE,
    statistics=array(
        record(column_name=_TEXT, column_type=_TEXT, column_statistics={"type": "object"})
    ),
    partial={"const": False},
)
CROISSANT = record(**{"@context": _ANY, "@type": _TEXT, "name": _ANY, "recordSet": array(_ANY)})
SAVED = record(
    kind=_TEXT,
    differences=array(_TEXT),
    subsets=array(record(name=_TEXT, where=_TEXT, patient_ids=array(_TEXT))),
)
SQL_JSON = record(
    columns=array(_TEXT),
    types=array(_TEXT),
    rows=array(array(_ANY)),
    num_rows=_WHOLE,
    truncated=_TRUTH,
)
COHORT = record(
    num_patients=_WHOLE,
    patient_ids=array(_TEXT),
    cohort=record(kind=_TEXT, selection=array(_TEXT), patient_ids=array(_TEXT), sha256=_TEXT),
)
