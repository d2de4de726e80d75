"""A table's rows by patient, kept as Arrow columns and made into dicts only as they are asked for.

As dicts the rows of many patients take some twenty times the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

Row = dict[str, Any]


class RowsByPatient:
    """The rows of a table with a column `patient_id`, of one patient at a time, in their order."""

    def __init__(self, table: pa.Table) -> None:
        ids = table.column("patient_id").combine_chunks().dictionary_encode("encode")
        codes = ids.indices.to_numpy(zero_copy_only=False)
        order = np.argsort(codes, kind="stable")
        if not np.array_equal(order, np.arange(len(order))):  # else as it is, without a copy
            table, codes = table.take(order), codes[order]
        self._table = table
        patients = ids.dictionary.to_pylist()
        ends = np.searchsorted(codes, np.arange(len(patients) + 1)).tolist()
        self._places = dict(zip(patients, pairwise(ends), strict=True))

    def __iter__(self) -> Iterator[str]:
        """The patients, in the order in which they come first."""
        return iter(self._places)

    def __len__(self) -> int:
        """Number of patients."""
        return len(self._places)

    def of(self, patient_id: str) -> list[Row]:
        """The rows of a patient; none of one who is not in the table."""
        start, end = self._places.get(patient_id, (0, 0))
        rows: list[Row] = self._table.slice(start, end - start).to_pylist()
        return rows
