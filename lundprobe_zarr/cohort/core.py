"""Cohorts: any set of patients of one dataset, chosen with SQL, by number or by id."""

from __future__ import annotations

import json
import operator
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
import pyarrow as pa

from lundprobe_zarr.cohort.patient import Patient
from lundprobe_zarr.cohort.saved import (
    SavedCohort,
    SavedSplits,
    check_dataset,
    check_patients,
    read_saved,
)
from lundprobe_zarr.cohort.splits import Splits, divide, read_splits
from lundprobe_zarr.dataset.arrow import to_arrow
from lundprobe_zarr.dataset.dataset import Dataset, Rows
from lundprobe_zarr.errors import UnknownLabelError, UsageError
from lundprobe_zarr.sql.predicate import parse_predicate
from lundprobe_zarr.sql.query import restricted, run_query
from lundprobe_zarr.sql.worker import MEMORY, TIMEOUT, limits
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.extensions import cohort_function
from lundprobe_zarr.vocabulary.suggest import suggestion

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from datasets import IterableDataset

    from lundprobe_zarr.geometry.common_grid import CommonGrid
    from lundprobe_zarr.schema.manifest import Manifest


def open_cohort(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> Cohort:
    """All patients of the converted dataset at `url` (a path, or any URL fsspec knows).

    Reads the manifest and the patients table, no store; other tables are read when first asked
    for. Raises `NotADatasetError` if there is no dataset, `SchemaVersionError` if it is of a
    newer schema, `DatasetError` if a file of it is damaged.
    """
    return open_cohort_at(Location(url, storage_options))


def open_cohort_at(location: Location) -> Cohort:
    """All patients of the dataset at a location; see `open_cohort`."""
    return Cohort(Dataset.open(location))


def load_cohort(
    path: str | os.PathLike[str],
    url: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
) -> Cohort:
    """The cohort that `Cohort.save` wrote to the local file `path`, of the dataset at `url`.

    The dataset has to be the one it was saved from: the same name, DOI and
    precision, and the same patients, each with the same id, part, protocol, store and bytes of
    source files. Where it is and when it was converted does not matter; values are not compared.

    Raises `UsageError` if the file is not sound or was changed, if it was saved from another
    dataset (the message says what differs), if a patient is absent, or if `url` is a cohort; else
    as `open_cohort`.
    """
    if isinstance(url, Cohort):
        raise UsageError(
            "load_cohort was given a cohort for the dataset's path or URL",
            expected=f"that, e.g. lp.load_cohort(path, {url.location.url!r})",
            remedy="of a cohort that is open, cohort[list_of_ids] chooses patients",
        )
    saved = read_saved(path, SavedCohort)
    cohort = open_cohort(url, storage_options)
    dataset, where = cohort.dataset, cohort.location.url
    check_patients(path, saved.patient_ids, set(dataset.row_of), where)
    check_dataset(path, saved, dataset.identity, where)
    return cohort._pick(saved.patient_ids, tuple(saved.selection))


def load_splits(path: str | os.PathLike[str], cohort: Cohort) -> Splits[Cohort]:
    """The splits saved in a local file, of the patients of `cohort`.

    The dataset has to be the one they were saved from, as `load_cohort` says; `cohort` may hold
    more patients than the splits do.

    Raises `UsageError` if the file was changed or is none, if its sets overlap, if it was saved
    from another dataset (the message says what differs), if a patient is not in `cohort`, or if
    that is a path or URL.
    """
    if isinstance(cohort, (str, os.PathLike)):
        raise UsageError(
            f"load_splits was given {cohort!r} for a cohort",
            expected=f"one, e.g. lp.load_splits(path, lp.open_cohort({os.fspath(cohort)!r}))",
        )
    saved, ids = read_splits(path)
    where = cohort.location.url
    check_dataset(path, saved, cohort.dataset.identity, where)
    check_patients(path, ids, set(cohort.ids), f"the cohort of {where}")
    return Splits(saved, cohort._pick)


class PatientIndexError(UnknownLabelError, IndexError):
    """A patient's number beyond the end of its cohort."""


class Cohort:
    """A set of patients of one `dataset`, always in the order of its patients table.

    `selection` says in words how they were chosen: predicates as they were given, and other steps
    in square brackets. Tables are read once for all cohorts taken from one `open_cohort`.
    """

    def __init__(
        self,
        dataset: Dataset,
        choose: Callable[[], Rows] | None = None,
        selection: tuple[str, ...] = (),
    ) -> None:
        self.dataset = dataset
        self._choose = choose
        self.selection = selection

    @cached_property
    def _rows(self) -> Rows:
        if self._choose is None:
            return np.arange(len(self.dataset.ids), dtype=np.int64)
        return self._choose()

    def __getstate__(self) -> dict[str, Any]:
        rows = self._rows  # workers get the outcome, not the way to it
        return {"dataset": self.dataset, "selection": self.selection, "_rows": rows}

    @property
    def location(self) -> Location:
        """Where the dataset is."""
        return self.dataset.location

    @property
    def manifest(self) -> Manifest:
        """The dataset's manifest."""
        return self.dataset.manifest

    def __repr__(self) -> str:
        """How many of whom, by part and protocol; of which dataset; how chosen."""
        chosen = "".join(f"\n  where {step}" for step in self.selection)
        return (
            f"<Cohort: {len(self)} of {len(self.dataset.ids)} patients ({self._counts()}) "
            f"of {self.location.url}{chosen}>"
        )

    def _counts(self) -> str:
        table = self.dataset.columns("patients", ["part", "protocol"]).take(to_arrow(self._rows))
        pairs = Counter(zip(*table.to_pydict().values(), strict=True))
        counted = [f"{n} {part} {protocol}" for (part, protocol), n in sorted(pairs.items())]
        return ", ".join(counted) or "none"

    @cached_property
    def ids(self) -> list[str]:
        """Patient ids, in order."""
        known = self.dataset.ids
        return [known[row] for row in self._rows.tolist()]

    @property
    def patients(self) -> pd.DataFrame:
        """The cohort's rows of the patients table, a new frame each time: change it as you like."""
        frame: pd.DataFrame = self.table("patients").to_pandas()
        return frame

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Patient]:
        return (Patient(self.dataset, i) for i in self.ids)

    def __eq__(self, other: object) -> bool:
        """Whether both have the same patients of the same dataset, wherever its copies are.

        How they were chosen does not matter. Datasets are the same as `load_cohort` says.
        """
        if not isinstance(other, Cohort):
            return NotImplemented
        return self.ids == other.ids and self.dataset.is_same(other.dataset)

    def __hash__(self) -> int:
        return hash(tuple(self.ids))

    def _ipython_key_completions_(self) -> list[str]:
        """What a notebook offers after `cohort["`."""
        return self.ids

    def __contains__(self, patient: object) -> bool:
        """Whether a patient, or a patient id, is in the cohort."""
        return (patient.patient_id if isinstance(patient, Patient) else patient) in self._row_of

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return dict(zip(self.ids, self._rows.tolist(), strict=True))

    @overload  # a str is an iterable of str, too: the first that fits counts
    def __getitem__(self, key: str | SupportsIndex) -> Patient: ...  # type: ignore[overload-overlap]
    @overload
    def __getitem__(self, key: slice | Iterable[str]) -> Cohort: ...
    def __getitem__(self, key: str | SupportsIndex | slice | Iterable[str]) -> Patient | Cohort:
        """A patient by id or number; a cohort by slice or by several ids.

        Raises `UnknownLabelError` for an id that is not in the cohort or a number beyond its end
        (then an `IndexError` too), `UsageError` for what is neither, such as a mask.
        """
        if isinstance(key, str):
            return Patient(self.dataset, self._known(key))
        if isinstance(key, slice):
            rows = self._rows[key]
            name = ":".join("" if v is None else str(v) for v in (key.start, key.stop, key.step))
            return self._derive(lambda: np.sort(rows), f"[patients {name}]")
        is_one = getattr(key, "ndim", 0) == 0 and not isinstance(key, bool)
        if is_one and isinstance(key, SupportsIndex):
            return Patient(self.dataset, self._numbered(operator.index(key)))
        return self._pick(self._several(key), (*self.selection, "[chosen by id]"))

    def _several(self, key: object) -> list[str]:
        """The ids that a key of several is made of."""
        ids: list[Any] = list(key) if isinstance(key, Iterable) else [key]
        if wrong := [i for i in ids if not isinstance(i, str)]:
            raise UsageError(
                f"cohort[...] was given {wrong[0]!r}, {type(wrong[0]).__name__}",
                expected=(
                    "a patient's id or number, a slice, or several ids, e.g. "
                    "cohort[list(frame.patient_id)]"
                ),
                remedy="by values, cohort.where(...) chooses",
            )
        return [self._known(i) for i in ids]

    def _known(self, patient_id: str) -> str:
        if patient_id in self._row_of:
            return patient_id
        if patient_id in self.dataset.row_of:
            raise UnknownLabelError(
                f"patient {patient_id!r} is in the dataset but not in this cohort of {len(self)}",
                patient=patient_id,
            )
        raise UnknownLabelError(
            f"no patient {patient_id!r} in {self.location.url}",
            remedy=suggestion(patient_id, self.dataset.ids),
        )

    def _numbered(self, number: int) -> str:
        if -len(self) <= number < len(self):
            return self.ids[number]
        raise PatientIndexError(
            f"no patient number {number} in this cohort of {len(self)}", remedy="numbers begin at 0"
        )

    def where(
        self, predicate: str, *, timeout: float = TIMEOUT, memory: int | str = MEMORY
    ) -> Cohort:
        """The patients of this cohort for whom an SQL predicate holds.

        It may speak of any column of the patients table, and of any structure by name:
        `Rectum.volume_cc` is the clinical delineation on the MRI grid, `sct.Rectum.volume_cc` the
        one on the synthetic CT's, `nnunet.Rectum.volume_cc` the network's; the fields are the
        measured columns of the structures table. What a patient lacks is NULL: a comparison with
        it does not hold, nor does its negation, and `Rectum IS NULL` asks for it.

            cohort.where("protocol = 'newAcq' AND NOT missing_PenileBulb")
            cohort.where("Rectum.volume_cc > 60 AND CTVT_427.d95_gy >= 0.95 * 42.7")

        Raises `QueryError` at once for a mistake in the predicate, before anything is read. Who is
        chosen is decided when first asked for, and only then can a table fail to be read, or a
        cast in the predicate fail on a patient's value. `timeout` (seconds) and `memory` (bytes, or
        text such as "2GB") bound it as they do `sql`; `QueryLimitError` is raised beyond.
        """
        parsed = parse_predicate(predicate, limits(timeout, memory))
        return self._derive(lambda: parsed.choose(self.dataset, self._rows), predicate)

    def _derive(self, choose: Callable[[], Rows], step: str) -> Cohort:
        return Cohort(self.dataset, choose, (*self.selection, step))

    def _pick(self, ids: Iterable[str], selection: tuple[str, ...]) -> Cohort:
        rows = np.unique(np.array([self.dataset.row_of[i] for i in ids], np.int64))
        return Cohort(self.dataset, lambda: rows, selection)

    def sql(
        self, query: str, *, timeout: float = TIMEOUT, memory: int | str = MEMORY
    ) -> pd.DataFrame:
        """What a SELECT over the dataset's tables gives, as DuckDB has it.

        The tables are patients, structures, slices, foreground and arrays, with the rows of this
        cohort's patients; those that the query names are read, once. Nothing else can be reached,
        and nothing written.

            cohort.sql("SELECT structure, avg(volume_cc) FROM clinical GROUP BY ALL")

        It runs in a process of its own, which is ended after `timeout` seconds and gets `memory`
        (bytes, or text such as "2GB") beyond the tables; the first query waits for its start.

        Raises `QueryError` for a query that is not one SELECT of these tables, or cannot be run,
        and `QueryLimitError` for one that was ended.
        """
        frame: pd.DataFrame = self.sql_table(query, timeout=timeout, memory=memory).to_pandas()
        return frame

    def sql_table(
        self, query: str, *, timeout: float = TIMEOUT, memory: int | str = MEMORY
    ) -> pa.Table:
        """As `sql`, as an Arrow table: whole numbers stay such where some are missing."""
        return run_query(self.dataset, query, self._rows, limits(timeout, memory))

    def table(self, name: str) -> pa.Table:
        """The rows of a table that are of this cohort's patients, with what its columns mean.

        Read once, whole. Raises `UnknownLabelError` for a table there is none of, `DatasetError`
        if it cannot be read.
        """
        return restricted(self.dataset, name, self._rows)

    @overload
    def to_xarray(self) -> xr.DataTree: ...
    @overload
    def to_xarray(
        self,
        grid: CommonGrid,
        *,
        structures: Sequence[str] | None = None,
        columns: Sequence[str] = ("protocol", "part"),
        fill: float = ...,
    ) -> xr.Dataset: ...
    def to_xarray(self, grid: CommonGrid | None = None, **options: Any) -> xr.DataTree | xr.Dataset:
        """All patients in one labelled, lazy object: `lundprobe_zarr.to_xarray(cohort, ...)`.

        A tree with a child a patient, each on its own grids; or, with a `CommonGrid`, a Dataset
        of all on that. What it takes and raises is said there.
        """
        found: xr.DataTree | xr.Dataset = cohort_function("to_xarray")(self, grid, **options)
        return found

    def to_hf(self, config: str = "patients", **options: Any) -> IterableDataset:
        """A stream of rows for Hugging Face `datasets`: tables, lazy volumes, slices or patches.

        `config` and `options` are those of `lundprobe_zarr.load_dataset`, and so is what is raised.
        """
        stream: IterableDataset = cohort_function("to_hf")(self, config, **options)
        return stream

    def __and__(self, other: Cohort) -> Cohort:
        """Patients of both."""
        return self._combine(other, operator.and_, "({}) AND ({})", "[both of: {} | {}]")

    def __or__(self, other: Cohort) -> Cohort:
        """Patients of either."""
        return self._combine(other, operator.or_, "({}) OR ({})", "[either of: {} | {}]")

    def __sub__(self, other: Cohort) -> Cohort:
        """Patients of this and not the other."""
        return self._combine(
            other, operator.sub, "({}) AND ({}) IS NOT TRUE", "[first but not second of: {} | {}]"
        )

    def _combine(
        self, other: Cohort, how: Callable[[set[str], set[str]], set[str]], sql: str, words: str
    ) -> Cohort:
        if not isinstance(other, Cohort):
            return NotImplemented
        if other.dataset is not self.dataset:
            differences = self.dataset.identity.differences(other.dataset.identity)
            if differences:
                raise UsageError(
                    f"cohorts of two datasets: {self.location.url} has "
                    f"{'; '.join(differences)} as {other.location.url} has",
                    remedy="combine cohorts of one dataset",
                )
        ids = how(set(self.ids), set(other.ids))
        if self.predicate is None or other.predicate is None:
            step = words.format("; ".join(self.selection), "; ".join(other.selection))
        else:
            step = sql.format(self.predicate, other.predicate)
        return self._pick(ids, (step,))

    @property
    def predicate(self) -> str | None:
        """One predicate that chooses this cohort from the dataset; None if other steps did."""
        if any(step.startswith("[") for step in self.selection):
            return None
        if len(self.selection) == 1:
            return self.selection[0]
        return " AND ".join(f"({step})" for step in self.selection) or "true"

    def split(
        self,
        test: float = 0.15,
        folds: int | None = None,
        stratify: Sequence[str] = ("protocol",),
        seed: int = 0,
        *,
        val: float | None = None,
    ) -> Splits[Cohort]:
        """A test set and `folds` folds of the rest, by patient, each stratum spread evenly.

        `test` is the share of patients held out, rounded to a whole number of them. `folds` is 5
        unless it is given. With `val`, a share of all patients too, there are no folds but one
        division of the rest, `splits.train` and `splits.val` (which `splits.folds` has as its only
        one): it excludes `folds`, and the test set is the same as with them. `stratify`
        names columns of the patients table whose values make up a stratum. The same ids, columns
        and seed give the same splits on any machine and with any version of any library. Raises
        `UsageError` for a share, a number of folds or a seed that makes no sense, for an unknown
        column, and for columns of so many values that most patients are alone in their stratum.
        """
        columns = [stratify] if isinstance(stratify, str) else list(stratify)
        divided = divide(self._strata(columns), columns, test, folds, seed, val)
        identity, selection = self.dataset.identity, list(self.selection)
        saved = SavedSplits(dataset=identity, selection=selection, **divided)
        return Splits(saved, self._pick)

    def _strata(self, columns: list[str]) -> dict[str, list[str]]:
        """Ids of the patients by stratum, which is the JSON text of their values in `columns`."""
        known = self.dataset.table("patients").column_names
        for column in columns:
            if column not in known:
                raise UsageError(
                    f"stratify: no column {column!r} in the patients table",
                    remedy=suggestion(column, known),
                )
        rows = self.dataset.columns("patients", ["patient_id", *columns]).take(self._rows)
        strata: dict[str, list[str]] = {}
        for row in rows.to_pylist():
            key = json.dumps([row[c] for c in columns], default=str)
            strata.setdefault(key, []).append(row["patient_id"])
        return strata

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write who is in this cohort, how they were chosen and from which dataset, as JSON.

        The local file is small, can be cited, and holds no URL and no credentials; `load_cohort`
        opens it. Raises `OSError` if it cannot be written.
        """
        SavedCohort(
            dataset=self.dataset.identity,
            selection=list(self.selection),
            patient_ids=self.ids,
        ).write(path)
