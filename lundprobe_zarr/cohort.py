"""Cohorts and patients: select with SQL, hold lazy labelled data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from lundprobe_zarr.errors import QueryError, UnknownLabelError
from lundprobe_zarr.schema.manifest import Manifest
from lundprobe_zarr.schema.tables import PATIENTS
from lundprobe_zarr.store.dataset import open_manifest, read_table
from lundprobe_zarr.store.location import Location

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def open_cohort(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> Cohort:
    """All patients of the converted dataset at `url` (a path, or any URL fsspec knows).

    Reads the manifest and the patients table, no store. Raises `NotADatasetError` if there is no
    dataset, `SchemaVersionError` if it is of a newer schema.
    """
    location = Location(url, storage_options)
    manifest = open_manifest(location)
    return Cohort(location, manifest, read_table(location, manifest, "patients"))


class Cohort:
    """A set of patients of one dataset, in the order of its patients table."""

    def __init__(self, location: Location, manifest: Manifest, table: pa.Table) -> None:
        self._location = location
        self.manifest = manifest
        self._table = table
        self._ids: list[str] = table.column("patient_id").to_pylist()

    def __repr__(self) -> str:
        return f"<Cohort: {len(self)} patients of {self._location.url}>"

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[Patient]:
        return (Patient(self._location, i) for i in self._ids)

    def __getitem__(self, key: int | str) -> Patient:
        if isinstance(key, int):
            return Patient(self._location, self._ids[key])
        if key not in self._ids:
            raise UnknownLabelError(
                f"no patient {key!r} in this cohort of {len(self)}; it has "
                f"{', '.join(self._ids[:3])} …"
            )
        return Patient(self._location, key)

    @cached_property
    def patients(self) -> pd.DataFrame:
        """The cohort's rows of the patients table."""
        frame: pd.DataFrame = self._table.to_pandas()
        return frame

    def where(self, predicate: str) -> Cohort:
        """The patients of this cohort for which an SQL predicate over the patients columns holds.

        Example: `cohort.where("protocol = 'newAcq' AND NOT missing_PenileBulb")`. Raises
        `QueryError` for a predicate that cannot be run.
        """
        with _sandbox() as connection:
            connection.register("patients", self._table)
            query = f"SELECT patient_id FROM patients WHERE (\n{predicate}\n)"
            try:
                statements = connection.extract_statements(query)
                if len(statements) != 1:
                    raise QueryError(f"{predicate!r} is not one predicate")
                chosen = {row[0] for row in connection.execute(query).fetchall()}
            except duckdb.Error as error:
                raise QueryError(
                    f"predicate {predicate!r}: {error}; columns are {', '.join(_columns())}"
                ) from error
        keep = pa.array([i in chosen for i in self._ids], pa.bool_())
        return Cohort(self._location, self.manifest, self._table.filter(keep))


def _columns() -> list[str]:
    return [c.name for c in PATIENTS.columns]


def _sandbox() -> duckdb.DuckDBPyConnection:
    """A connection from which SQL reaches no file, network, extension or Python variable."""
    return duckdb.connect(
        config={
            "enable_external_access": False,
            "python_enable_replacements": False,
            "lock_configuration": True,
        }
    )


class Patient:
    """One patient's store, opened lazily."""

    def __init__(self, location: Location, patient_id: str) -> None:
        self._location = location
        self.patient_id = patient_id

    def __repr__(self) -> str:
        return f"<Patient {self.patient_id} of {self._location.url}>"

    @cached_property
    def tree(self) -> xr.DataTree:
        """The store as a lazy, dask-backed DataTree; a dask chunk is a slab of slices.

        Raises `DamagedStoreError` if the store is missing or its metadata unsound.
        """
        from lundprobe_zarr.store.tree import open_tree

        return open_tree(self._location, self.patient_id)

    @property
    def mri(self) -> xr.Dataset:
        """Images and dose on the MRI grid."""
        return self.tree["mri"].to_dataset()

    @property
    def sct(self) -> xr.Dataset:
        """Synthetic CT and dose on its own grid."""
        return self.tree["sct"].to_dataset()

    @property
    def dose(self) -> xr.Dataset:
        """Dose on the planning grid."""
        return self.tree["dose"].to_dataset()

    @property
    def clinical(self) -> xr.Dataset:
        """Clinical delineations and fiducials on the MRI grid."""
        return self.tree["mri/clinical"].to_dataset()
