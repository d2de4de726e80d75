"""Statistics of a table's columns, in the form of the public dataset viewer.

Its rules, from https://huggingface.co/docs/dataset-viewer/statistics: numbers have ten bins at
most, texts with few different values are labels, other texts and lists are described by their
lengths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_BINS = 10
#: Texts are labels up to this many different values, whatever their share ...
_FEW_LABELS = 10
#: ... and up to this share of the rows, with fewer values than this.
_LABEL_SHARE, _MOST_LABELS = 0.2, 1000
_DIGITS = 5


def column_statistics(name: str, column: pa.ChunkedArray) -> dict[str, Any] | None:
    """Return the statistics of a column; None for a type that has none, as a structure."""
    described = _described(column.combine_chunks())
    if described is None:
        return None
    kind, found = described
    return {"column_name": name, "column_type": kind, "column_statistics": found}


def _described(values: pa.Array) -> tuple[str, dict[str, Any]] | None:
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _described(values.dictionary_decode())
    if pa.types.is_boolean(kind):
        return "bool", _nulls(values) | {"frequencies": _frequencies(values, str)}
    if pa.types.is_integer(kind):
        return "int", _numbers(values)
    if pa.types.is_floating(kind):
        finite = pc.if_else(pc.is_finite(values), values, pa.scalar(None, kind))
        return "float", _numbers(finite)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _texts(values)
    if pa.types.is_fixed_size_list(kind):
        lengths = pc.if_else(values.is_valid(), kind.list_size, pa.scalar(None, pa.int64()))
        return "list", _numbers(lengths)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return "list", _numbers(pc.list_value_length(values))
    return None


def _texts(values: pa.Array) -> tuple[str, dict[str, Any]]:
    different = pc.count_distinct(values).as_py()
    share = different / (len(values) - values.null_count or 1)
    if different <= _FEW_LABELS or (share <= _LABEL_SHARE and different < _MOST_LABELS):
        counted = {"n_unique": different, "frequencies": _frequencies(values, lambda text: text)}
        return "string_label", _nulls(values) | counted
    return "string_text", _numbers(pc.utf8_length(values))


def _nulls(values: pa.Array) -> dict[str, Any]:
    share = values.null_count / len(values) if len(values) else 0.0
    return {"nan_count": values.null_count, "nan_proportion": round(share, _DIGITS)}


def _frequencies(values: pa.Array, name: Any) -> Mapping[str, int]:
    counts = values.drop_null().value_counts().to_pylist()
    return {name(each["values"]): each["counts"] for each in counts}


def _numbers(values: pa.Array) -> dict[str, Any]:
    """Return the distribution of numbers: integers keep whole edges, as the public viewer's do."""
    nulls = _nulls(values)
    numbers = values.drop_null().to_numpy(zero_copy_only=False)
    if not len(numbers):
        keys = ("min", "max", "mean", "median", "std", "histogram")
        return nulls | dict.fromkeys(keys)
    whole = pa.types.is_integer(values.type)
    spread = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else 0.0
    return nulls | {
        "min": _plain(numbers.min(), whole),
        "max": _plain(numbers.max(), whole),
        "mean": _rounded(np.mean(numbers)),
        "median": _rounded(np.median(numbers)),
        "std": _rounded(spread),
        "histogram": _histogram(numbers, whole),
    }


def _histogram(numbers: npt.NDArray[Any], whole: bool) -> dict[str, list[Any]]:
    edges = _whole_edges(numbers) if whole else _edges(numbers)
    counts, _ = np.histogram(numbers, np.asarray(edges))
    return {
        "hist": [int(n) for n in counts],
        "bin_edges": [edge if whole else _rounded(edge) for edge in edges],
    }


def _whole_edges(numbers: npt.NDArray[Any]) -> list[int]:
    """Return edges of at most ten bins of equal whole width; the last bin may be narrower."""
    low, high = int(numbers.min()), int(numbers.max())
    width = math.ceil((high - low + 1) / _BINS)
    return [*range(low, high + 1, width), high]


def _edges(numbers: npt.NDArray[Any]) -> list[float]:
    low, high = float(numbers.min()), float(numbers.max())
    return [low, high] if low == high else [float(x) for x in np.linspace(low, high, _BINS + 1)]


def _plain(number: Any, whole: bool) -> int | float:
    return int(number) if whole else _rounded(number)


def _rounded(number: Any) -> float:
    return round(float(number), _DIGITS)
