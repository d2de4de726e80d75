"""A table's rows by patient, kept as Arrow columns and converted to dicts on request.

The dicts of many patients would take about twenty times the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

Row = dict[str, Any]


class RowsByPatient:
    """The rows of a table with a column `patient_id`, by patient, in their order."""

    def __init__(self, table: pa.Table) -> None:
        ids = table.column("patient_id").combine_chunks().dictionary_encode("encode")
        codes = ids.indices.to_numpy(zero_copy_only=False)
        order = np.argsort(codes, kind="stable")
        if not np.array_equal(order, np.arange(len(order))):  # avoids a copy of sorted tables
            table, codes = table.take(order), codes[order]
        self._table = table
        patients = ids.dictionary.to_pylist()
        ends = np.searchsorted(codes, np.arange(len(patients) + 1)).tolist()
        self._ranges = dict(zip(patients, pairwise(ends), strict=True))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the patients' ids, in the order of first occurrence."""
        return iter(self._ranges)

    def __len__(self) -> int:
        """Return the number of patients."""
        return len(self._ranges)

    def of(self, patient_id: str) -> list[Row]:
        """Return the rows of a patient; empty for a patient who is not in the table."""
        start, end = self._ranges.get(patient_id, (0, 0))
        rows: list[Row] = self._table.slice(start, end - start).to_pylist()
        return rows
