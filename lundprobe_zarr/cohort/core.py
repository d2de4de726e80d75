"""Cohorts: sets of patients of one dataset, selected with SQL, by number or by id."""

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

from lundprobe_zarr.cohort.patient import PageView, Patient
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
from lundprobe_zarr.vocabulary.markup import summary_html
from lundprobe_zarr.vocabulary.names import STRUCTURES
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
    """Open a converted dataset as the cohort of all its patients.

    This reads the manifest and the patients table, but no store. Other tables are read on first
    use.

    Parameters
    ----------
    url : str or path
        A path, or any URL that fsspec supports.
    storage_options : mapping, optional
        Options of the fsspec file system, such as credentials.

    Raises
    ------
    NotADatasetError
        If there is no dataset.
    SchemaVersionError
        If its schema is newer than this version.
    DatasetError
        If one of its files is damaged.
    """
    return open_cohort_at(Location(url, storage_options))


def open_cohort_at(location: Location) -> Cohort:
    """Return all patients of the dataset at a location; see `open_cohort`."""
    return Cohort(Dataset.open(location))


def load_cohort(
    path: str | os.PathLike[str],
    url: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
) -> Cohort:
    """Load a cohort that `Cohort.save` wrote.

    The dataset must be the one it was saved from: the same name, DOI and precision, and the same
    patients with the same parts, protocols, stores and source sizes. Location and time of
    conversion do not matter. Values are not compared.

    Parameters
    ----------
    path : str or path
        The saved file, on a local disk.
    url, storage_options
        The dataset, as for `open_cohort`.

    Raises
    ------
    UsageError
        If the file is invalid or was changed, if it was saved from another dataset, if a patient
        is absent, or if `url` is a cohort. Also raises like `open_cohort`.
    """
    if isinstance(url, Cohort):
        raise UsageError(
            "load_cohort was given a cohort for the dataset's path or URL",
            expected=f"a path or URL, e.g. lp.load_cohort(path, {url.location.url!r})",
            remedy="to select patients of an open cohort, use cohort[list_of_ids]",
        )
    saved = read_saved(path, SavedCohort)
    cohort = open_cohort(url, storage_options)
    dataset, where = cohort.dataset, cohort.location.url
    check_patients(path, saved.patient_ids, set(dataset.row_of), where)
    check_dataset(path, saved, dataset.identity, where)
    return cohort._pick(saved.patient_ids, tuple(saved.selection))


def load_splits(path: str | os.PathLike[str], cohort: Cohort) -> Splits[Cohort]:
    """Load splits that `Splits.save` wrote, as cohorts.

    Parameters
    ----------
    path : str or path
        The saved file, on a local disk.
    cohort : Cohort
        A cohort with all their patients, of the same dataset in the sense of `load_cohort`.

    Raises
    ------
    UsageError
        If the file is invalid or was changed, if its sets overlap, if it was saved from another
        dataset, if a patient is not in `cohort`, or if `cohort` is a path or URL.
    """
    if isinstance(cohort, (str, os.PathLike)):
        raise UsageError(
            f"load_splits was given {cohort!r} for a cohort",
            expected=f"a cohort, e.g. lp.load_splits(path, lp.open_cohort({os.fspath(cohort)!r}))",
        )
    saved, ids = read_splits(path)
    where = cohort.location.url
    check_dataset(path, saved, cohort.dataset.identity, where)
    check_patients(path, ids, set(cohort.ids), f"the cohort of {where}")
    return Splits(saved, cohort._pick)


#: Patients that a notebook shows of a cohort.
_SHOWN = 5


def _lacking(row: Mapping[str, Any]) -> str:
    return ", ".join(s for s in STRUCTURES if row[f"missing_{s}"])


class PatientIndexError(UnknownLabelError, IndexError):
    """A number that is out of range for its cohort."""


class Cohort:
    """A set of patients of one dataset, always in the order of its patients table.

    Tables are read once for all cohorts of one `open_cohort`.

    Attributes
    ----------
    dataset : Dataset
        The dataset of the patients.
    selection : tuple of str
        The steps of the selection: predicates as given, other steps in square brackets.
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
        rows = self._rows  # worker processes get the result and need not select again
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
        """Return the number of patients by part and protocol, the dataset and the selection."""
        chosen = "".join(f"\n  where {step}" for step in self.selection)
        return (
            f"<Cohort: {len(self)} of {len(self.dataset.ids)} patients ({self._counts()}) "
            f"of {self.location.url}{chosen}>"
        )

    def _repr_html_(self) -> str:
        """Return counts, the selection and the first patients, for notebooks."""
        first = self[:_SHOWN].table("patients").to_pylist()
        rows = [(r["patient_id"], r["part"], r["protocol"], _lacking(r)) for r in first]
        left = len(self) - len(first)
        return summary_html(
            f"Cohort: {len(self)} of {len(self.dataset.ids)} patients",
            {
                "patients": self._counts(),
                "where": " and then ".join(self.selection) or "all",
                "dataset": repr(self.dataset),
            },
            ("patient_id", "part", "protocol", "not delineated"),
            rows,
            f"… and {left} more" if left else "",
        )

    def _counts(self) -> str:
        table = self.dataset.columns("patients", ["part", "protocol"]).take(to_arrow(self._rows))
        pairs = Counter(zip(*table.to_pydict().values(), strict=True))
        counted = [f"{n} {part} {protocol}" for (part, protocol), n in sorted(pairs.items())]
        return ", ".join(counted) or "none"

    @cached_property
    def ids(self) -> list[str]:
        """Patient ids, in the order of the patients table."""
        known = self.dataset.ids
        return [known[row] for row in self._rows.tolist()]

    @property
    def patients(self) -> pd.DataFrame:
        """The cohort's rows of the patients table. Each access returns a new DataFrame."""
        frame: pd.DataFrame = self.table("patients").to_pandas()
        return frame

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Patient]:
        return (Patient(self.dataset, i) for i in self.ids)

    def __eq__(self, other: object) -> bool:
        """Return whether both have the same patients of the same dataset.

        The selection steps do not matter. `load_cohort` says when datasets are the same.
        """
        if not isinstance(other, Cohort):
            return NotImplemented
        return self.ids == other.ids and self.dataset.is_same(other.dataset)

    def __hash__(self) -> int:
        return hash(tuple(self.ids))

    def _ipython_key_completions_(self) -> list[str]:
        """Return the completions of a notebook after `cohort["`."""
        return self.ids

    def __contains__(self, patient: object) -> bool:
        """Return whether a patient, or a patient id, is in the cohort."""
        return (patient.patient_id if isinstance(patient, Patient) else patient) in self._row_of

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return dict(zip(self.ids, self._rows.tolist(), strict=True))

    @overload  # a str is an iterable of str too: the first match counts
    def __getitem__(self, key: str | SupportsIndex) -> Patient: ...  # type: ignore[overload-overlap]
    @overload
    def __getitem__(self, key: slice | Iterable[str]) -> Cohort: ...
    def __getitem__(self, key: str | SupportsIndex | slice | Iterable[str]) -> Patient | Cohort:
        """Return a patient by id or number, or a cohort by slice or by several ids.

        Raises `UnknownLabelError` for an id that is not in the cohort, an error that is also an
        `IndexError` for a number out of range, and `UsageError` for other keys, such as a mask.
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
        """Return the ids of a key for several patients."""
        ids: list[Any] = list(key) if isinstance(key, Iterable) else [key]
        if wrong := [i for i in ids if not isinstance(i, str)]:
            raise UsageError(
                f"cohort[...] was given {wrong[0]!r}, {type(wrong[0]).__name__}",
                expected=(
                    "a patient's id or number, a slice, or several ids, e.g. "
                    "cohort[list(frame.patient_id)]"
                ),
                remedy="to select by values, use cohort.where(...)",
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
        """Return the patients of this cohort for whom an SQL predicate is true.

        The predicate may use any column of the patients table and any structure by name.
        `Rectum.volume_cc` is the clinical delineation on the MRI grid, `sct.Rectum.volume_cc` the
        one on the grid of the synthetic CT, and `nnunet.Rectum.volume_cc` the network's. The fields
        are the measured columns of the structures table. A structure that a patient lacks is NULL:
        comparisons with it are not true, nor are their negations. `Rectum IS NULL` selects such
        patients.

            cohort.where("protocol = 'newAcq' AND NOT missing_PenileBulb")
            cohort.where("Rectum.volume_cc > 60 AND CTVT_427.d95_gy >= 0.95 * 42.7")

        The predicate is checked at once, without reading data. Patients are selected on first use.
        Only then can reading a table or casting a patient's value fail.

        Parameters
        ----------
        predicate : str
            An SQL condition, as after WHERE.
        timeout : float
            Most seconds that the selection may take.
        memory : int or str
            Most memory beyond the tables: bytes, or text such as "2GB".

        Raises
        ------
        QueryError
            If the predicate is invalid.
        QueryLimitError
            If it exceeds the time or memory limit.
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
        """Return the result of a SELECT over the dataset's tables, in DuckDB's SQL.

        The tables are patients, structures, dvh, slices, foreground and arrays, restricted to this
        cohort's patients. Each table that a query names is read once. A query cannot access
        anything else, and cannot write.

            cohort.sql("SELECT structure, avg(volume_cc) FROM clinical GROUP BY ALL")

        Queries run in a separate process. The first query waits for its start.

        Parameters
        ----------
        query : str
            One SELECT statement.
        timeout : float
            Most seconds that the query may take.
        memory : int or str
            Most memory beyond the tables: bytes, or text such as "2GB".

        Raises
        ------
        QueryError
            If the query is not one SELECT of these tables, or fails.
        QueryLimitError
            If it exceeds the time or memory limit, or is cancelled.
        """
        frame: pd.DataFrame = self.sql_table(query, timeout=timeout, memory=memory).to_pandas()
        return frame

    def sql_table(
        self, query: str, *, timeout: float = TIMEOUT, memory: int | str = MEMORY
    ) -> pa.Table:
        """Return the result of `sql` as an Arrow table, where integers may have nulls."""
        return run_query(self.dataset, query, self._rows, limits(timeout, memory))

    def table(self, name: str) -> pa.Table:
        """Return this cohort's rows of a table, with column descriptions in the field metadata.

        The whole table is read once. Raises `UnknownLabelError` for an unknown table and
        `DatasetError` if it cannot be read.
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
        """Return all patients as one labelled, lazy object, as `lundprobe_zarr.to_xarray` does.

        Without a grid this is a tree with one child per patient, each on its own grids. With a
        `CommonGrid` it is a Dataset of all patients on that grid. Arguments and errors are those of
        `lundprobe_zarr.to_xarray`.
        """
        found: xr.DataTree | xr.Dataset = cohort_function("to_xarray")(self, grid, **options)
        return found

    def to_hf(self, config: str = "patients", **options: Any) -> IterableDataset:
        """Return a Hugging Face `IterableDataset` of tables, lazy volumes, slices or patches.

        `config`, `options` and errors are those of `lundprobe_zarr.load_dataset`.
        """
        stream: IterableDataset = cohort_function("to_hf")(self, config, **options)
        return stream

    def view(self, height: int = 800) -> PageView:
        """Return the page of these patients, which a notebook shows in a frame.

        A service of this process answers it, on 127.0.0.1 alone; it starts at the first view of a
        dataset and ends with the process. The object's `link()` opens the page in a browser.

        Parameters
        ----------
        height : int
            Height of the frame, pixels.

        Raises
        ------
        MissingPackageError
            If the packages of the extra `serve` are not installed.
        UsageError
            If the height, or what the environment says of the service, is invalid; if the patients
            were not selected by a condition, and are more than some 600.
        DatasetError
            If the dataset cannot be read.
        """
        page: PageView = cohort_function("view")(self, height)
        return page

    def __and__(self, other: Cohort) -> Cohort:
        """Return the patients of both cohorts."""
        return self._combine(other, operator.and_, "({}) AND ({})", "[both of: {} | {}]")

    def __or__(self, other: Cohort) -> Cohort:
        """Return the patients of either cohort."""
        return self._combine(other, operator.or_, "({}) OR ({})", "[either of: {} | {}]")

    def __sub__(self, other: Cohort) -> Cohort:
        """Return the patients of this cohort that are not in the other."""
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
        """One predicate that selects this cohort from the dataset; None after other steps."""
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
        """Split the patients into a test set and cross-validation folds, stratified.

        The same ids, columns and seed give the same splits on every machine and with every version
        of every library.

        Parameters
        ----------
        test : float
            Share of all patients in the test set, rounded to whole patients.
        folds : int, optional
            Number of folds of the other patients, 5 by default. Excludes `val`.
        stratify : sequence of str
            Columns of the patients table. Each combination of values is a stratum, and strata are
            spread evenly.
        seed : int
            Seed of the order of patients.
        val : float, optional
            Share of all patients in one validation set, instead of folds. The test set stays the
            same. The sets are `splits.train` and `splits.val`, and the only item of `splits.folds`.

        Raises
        ------
        UsageError
            If a share, the number of folds or the seed is invalid, if a column is unknown, or if
            most patients are alone in their stratum.
        """
        columns = [stratify] if isinstance(stratify, str) else list(stratify)
        divided = divide(self._strata(columns), columns, test, folds, seed, val)
        identity, selection = self.dataset.identity, list(self.selection)
        saved = SavedSplits(dataset=identity, selection=selection, **divided)
        return Splits(saved, self._pick)

    def _strata(self, columns: list[str]) -> dict[str, list[str]]:
        """Return the patients' ids by stratum, the JSON text of their values in `columns`."""
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
        """Write the patient ids, the selection and the dataset's identity as JSON.

        The file is small, can be cited, and contains no URL and no credentials. `load_cohort` reads
        it.

        Parameters
        ----------
        path : str or path
            A local file.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        SavedCohort(
            dataset=self.dataset.identity,
            selection=list(self.selection),
            patient_ids=self.ids,
        ).write(path)
