"""Rows by patient: as if all rows were dicts and grouped one by one."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lundprobe_zarr.dataset.rows import RowsByPatient


@given(st.lists(st.lists(st.sampled_from("cab"))))
def test_as_grouped_one_by_one_whatever_the_order_and_the_chunks(chunks: list[list[str]]) -> None:
    rows = [{"patient_id": p, "n": n} for n, p in enumerate(p for some in chunks for p in some)]
    grouped: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault(row["patient_id"], []).append(row)
    ids = pa.chunked_array(chunks, pa.string())
    table = pa.table({"patient_id": ids, "n": pa.array(range(len(rows)), pa.int64())})
    found = RowsByPatient(table)
    assert {patient: found.of(patient) for patient in found} == grouped
    assert list(found) == list(grouped)
    assert len(found) == len(grouped)
    assert found.of("nobody") == []
