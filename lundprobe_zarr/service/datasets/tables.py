"""The tables of one revision: each is read once, and kept for all requests."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lundprobe_zarr.dataset.arrow import to_arrow
from lundprobe_zarr.dataset.dataset import Dataset, Rows
from lundprobe_zarr.dataset.opening import maker_of, table_footer, table_schema
from lundprobe_zarr.schema.tables import PATIENTS, STRUCTURES_TABLE, VIEWS
from lundprobe_zarr.service.datasets.statistics import column_statistics
from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.sql.condition import rows_where
from lundprobe_zarr.sql.predicate import parse_predicate
from lundprobe_zarr.sql.worker import Limits, SqlWorker
from lundprobe_zarr.vocabulary.suggest import suggestion

_T = TypeVar("_T")

#: Results of conditions that are kept: pages of one result, and predicates that many clients ask.
_KEPT = 256
#: Names of Arrow's types in `datasets`, where they differ.
_DTYPES = {"double": "float64", "float": "float32", "halffloat": "float16"}


class NeedsWorkerError(Exception):
    """Raised for a condition whose cost is not bounded, where no worker was given."""


class _NoWorker(SqlWorker):
    """Stands for a worker where only conditions of bounded cost may run."""

    def run(self, *_arguments: Any, **_more: Any) -> pa.Table:
        """Refuse."""
        raise NeedsWorkerError


_NO_WORKER = _NoWorker()


class Tables:
    """The tables of a dataset as configurations with splits.

    A configuration is a table, a split is a part. Rows are in the order of the Parquet files.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._lock = threading.RLock()
        self._made: dict[Any, Any] = {}
        self._found_lock = threading.Lock()  # never held while something is read
        self._found: OrderedDict[tuple[str, str], Rows] = OrderedDict()

    @cached_property
    def splits(self) -> Mapping[str, tuple[str, ...]]:
        """Splits of each configuration, the default one first.

        A table without a row has no file, and is no configuration. SQL knows it all the same.
        """
        tables = self._dataset.manifest.tables
        order = sorted(tables, key=lambda name: name != PATIENTS.name)
        found = {name: tuple(p for p, files in tables[name].items() if files) for name in order}
        return {name: splits for name, splits in found.items() if splits}

    def files(self, config: str, split: str) -> list[str]:
        """Return the Parquet files of a split, relative to the dataset."""
        return self._dataset.manifest.tables[config][split]

    def require(self, config: str, split: str | None = None) -> None:
        """Raise `HttpError` (404) for an unknown configuration or split."""
        if config not in self.splits:
            raise HttpError(
                404,
                f"There is no config {config!r}; {suggestion(config, self.splits)}.",
                "ConfigNotFound",
            )
        if split is not None and split not in self.splits[config]:
            raise HttpError(
                404,
                f"Config {config!r} has no split {split!r}; "
                f"{suggestion(split, self.splits[config])}.",
                "SplitNotFound",
            )

    def _once(self, key: Any, make: Callable[[], _T]) -> _T:
        """Make something once; others wait for it."""
        if key not in self._made:
            with self._lock:
                if key not in self._made:
                    self._made[key] = make()
        found: _T = self._made[key]
        return found

    def whole(self, config: str) -> pa.Table:
        """Return a whole table. Raises `DatasetError` if it cannot be read."""
        return self._once(("table", config), lambda: self._dataset.table(config))

    def load(self, names: Iterable[str]) -> None:
        """Read tables and views that SQL names, so that they are in memory once.

        Raises `HttpError` (422) for one that this dataset lacks, and like `whole`.
        """
        for name in names:
            table = VIEWS[name].table if name in VIEWS else name
            if table not in self._dataset.manifest.tables:
                raise HttpError(
                    422,
                    f"This dataset has no table {table!r}; who holds it makes it with "
                    f"`{maker_of(table)}`. It has {', '.join(self._dataset.manifest.tables)}.",
                    "InvalidParameter",
                )
            self.whole(table)
            if name in VIEWS:
                self._once(("view", name), partial(self._dataset.view, name))

    def sizes(self, config: str, split: str) -> tuple[int, int]:
        """Return rows, and bytes without compression, of a split; from its files' footers."""
        return self._once(("sizes", config, split), lambda: self._sizes(config, split))

    def _sizes(self, config: str, split: str) -> tuple[int, int]:
        location = self._dataset.location
        footers = [table_footer(location, file) for file in self.files(config, split)]
        groups = [f.row_group(n) for f in footers for n in range(f.num_row_groups)]
        return sum(f.num_rows for f in footers), sum(g.total_byte_size for g in groups)

    def rows(self, config: str, split: str) -> Rows:
        """Return the row numbers of a split in the whole table."""
        return self._once(("rows", config, split), lambda: self._rows(config, split))

    def _rows(self, config: str, split: str) -> Rows:
        if config == PATIENTS.name and self._dataset.manifest.cohort is not None:
            part = self.whole(config).column("part")  # one file with all parts
            return np.flatnonzero(pc.equal(part, split).to_numpy()).astype(np.int64)
        earlier = self.splits[config][: self.splits[config].index(split)]
        start = sum(self.sizes(config, other)[0] for other in earlier)
        return np.arange(start, start + self.sizes(config, split)[0], dtype=np.int64)

    def take(self, config: str, rows: Rows) -> pa.Table:
        """Return some rows of a whole table, by number."""
        return self.whole(config).take(to_arrow(rows))

    def features(self, config: str) -> dict[str, dict[str, Any]]:
        """Return the columns in the form of `datasets.Features.to_dict`."""
        return self._once(("features", config), lambda: self._features(config))

    def _features(self, config: str) -> dict[str, dict[str, Any]]:
        first = self.files(config, self.splits[config][0])[0]
        schema = table_schema(self._dataset.location, first)
        return {field.name: feature(field.type) for field in schema}

    def statistics(self, config: str, split: str) -> list[dict[str, Any]]:
        """Return the statistics of a split's columns."""
        return self._once(("statistics", config, split), lambda: self._statistics(config, split))

    def _statistics(self, config: str, split: str) -> list[dict[str, Any]]:
        table = self.take(config, self.rows(config, split))
        found = (column_statistics(name, table.column(name)) for name in table.column_names)
        return [each for each in found if each is not None]

    def kept(self, config: str, condition: str) -> Rows | None:
        """Return the rows where a condition holds if they are known; None if they are not."""
        with self._found_lock:
            found = self._found.get((config, condition))
            if found is not None:
                self._found.move_to_end((config, condition))
            return found

    def where(
        self, config: str, condition: str, bounds: Limits, by: SqlWorker | None = None
    ) -> Rows:
        """Return the rows of a whole table where a condition holds.

        On `patients` it is a predicate as `Cohort.where` takes it, else a condition on the
        table's own columns. Raises `QueryError` if it is invalid, `QueryLimitError` beyond its
        bounds, and `NeedsWorkerError` if it needs a worker and there is none.
        """
        worker = by or _NO_WORKER
        if config == PATIENTS.name:
            predicate = parse_predicate(condition, bounds, worker)
            if predicate.mentions:
                self.whole(STRUCTURES_TABLE.name)
            everyone = np.arange(self.whole(config).num_rows, dtype=np.int64)
            found = predicate.choose(self._dataset, everyone)
        else:
            held = rows_where(self.whole(config), config, condition, bounds, worker)
            found = np.flatnonzero(held).astype(np.int64)
        with self._found_lock:
            self._found[config, condition] = found
            while len(self._found) > _KEPT:
                self._found.popitem(last=False)
        return found

    def search(self, config: str, words: list[str]) -> Rows:
        """Return the rows in which every word occurs in a text, whatever its case."""
        table = self.whole(config)
        found = np.ones(table.num_rows, bool)
        for word in words:
            found &= _holding(table, word)
        return np.flatnonzero(found).astype(np.int64)


def _holding(table: pa.Table, word: str) -> npt.NDArray[np.bool_]:
    """Return for each row whether one of its texts, or texts in a list, contains a word."""
    found = np.zeros(table.num_rows, bool)
    for column in table.columns:
        if pa.types.is_string(column.type):
            held = pc.match_substring(column, word, ignore_case=True).fill_null(False)
            found |= held.to_numpy()
        elif pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
            whole = column.combine_chunks()
            texts, rows = pc.list_flatten(whole), pc.list_parent_indices(whole)
            held = pc.match_substring(texts, word, ignore_case=True).fill_null(False)
            found[rows.filter(held).to_numpy()] = True
    return found


def feature(kind: pa.DataType) -> dict[str, Any]:
    """Return an Arrow type in the form of `datasets.Features.to_dict`."""
    if pa.types.is_fixed_size_list(kind):
        inner = feature(kind.value_type)
        return {"feature": inner, "length": kind.list_size, "_type": "List"}
    if pa.types.is_list(kind):
        return {"feature": feature(kind.value_type), "_type": "List"}
    return {"dtype": _DTYPES.get(str(kind), str(kind)), "_type": "Value"}
