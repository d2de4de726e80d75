"""The driver of the entry `cohort` in a dataset's Intake catalog.

Only intake imports it, when that entry is opened. The other entries do not need this package.
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

    `urlpath` is the dataset's path or URL; `where` is a predicate for `Cohort.where`.
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
        """Return the cohort. Raises like `open_cohort` and `Cohort.where`."""
        return open_cohort(self._urlpath, self.storage_options).where(self._where)

    def read(self) -> pd.DataFrame:
        """Return the cohort's rows of the patients table. Raises like `to_cohort`."""
        return self.to_cohort().patients
