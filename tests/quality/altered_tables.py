"""Tables of a dataset that a test changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import lundprobe_zarr as lp
from lundprobe_zarr.schema.tables import COHORT_FILE, TABLES

Row = dict[str, Any]
Change = Callable[[Row], object]


class Copy:
    """The manifest and tables of the phantom, without stores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def change(self, table: str, change: Change) -> None:
        """Have `change` alter every row of a table in place; one that returns False is dropped."""
        files = sorted((self.folder / "metadata" / table).glob("*.parquet"))
        if table == "patients":
            files.append(self.folder / COHORT_FILE)
        for file in files:
            rows = pq.read_table(file).to_pylist()
            kept = [row for row in rows if change(row) is not False]
            pq.write_table(TABLES[table].from_rows(kept), file)

    def open(self) -> lp.Cohort:
        return lp.open_cohort(self.folder)
