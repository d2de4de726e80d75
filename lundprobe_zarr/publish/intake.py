"""The driver behind the entry `cohort` of a dataset's Intake catalog.

Imported by intake alone, when that entry is opened; the other entries need nothing of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from intake.source.base import DataSource

from lundprobe_zarr.cohort import open_cohort

if TYPE_CHECKING:
    import pandas as pd

    from lundprobe_zarr.cohort import Cohort


class CohortSource(DataSource):  # type: ignore[misc]  # intake has no types
    """Patients of a dataset for whom an SQL predicate holds.

    `urlpath` is the dataset's path or URL, `where` a predicate as `Cohort.where` takes it.
    """

    name = "lundprobe_cohort"
    version = "1"
    container = "dataframe"
    partition_access = False

    def __init__(
        self,
        urlpath: str,
        where: str = "true",
        storage_options: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(storage_options=storage_options, metadata=metadata)
        self._urlpath = urlpath
        self._where = where

    def to_cohort(self) -> Cohort:
        """The cohort itself; raises as `open_cohort` and `Cohort.where` do."""
        return open_cohort(self._urlpath, self.storage_options).where(self._where)

    def read(self) -> pd.DataFrame:
        """The cohort's rows of the patients table; raises as `to_cohort` does."""
        return self.to_cohort().patients
