"""A bit that flips in any object of a dataset is noticed, or makes no difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from tests.faults.flips import (
    DEEP,
    HARMLESS,
    MANIFEST,
    MEMORY,
    NODES,
    QUICK,
    READ,
    SHARDS,
    SIDE,
    SMALL,
    STORE_ROOT,
    TABLES,
    Bench,
    draw,
    summary,
)

#: How many flips of a kind, and what may notice them. `benchmarks/damage.py` tries many more.
EXPECTED = {
    SHARDS: (8, {READ}),
    STORE_ROOT: (8, {READ}),
    NODES: (4, {DEEP}),
    SMALL: (4, {READ, DEEP}),
    TABLES: (8, {READ, QUICK}),
    MANIFEST: (8, {READ}),
    SIDE: (2, {HARMLESS}),
    MEMORY: (3, {HARMLESS}),
}


@pytest.fixture(scope="module")
def bench(phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A dataset of one extended patient."""
    folder = tmp_path_factory.mktemp("flips") / "dataset"
    (patient,) = (p for p in take_inventory(phantom_source).patients if p.part == "extended")
    assert convert_patient(patient, folder, "standard").error is None
    finalise(folder)
    return Bench(folder)


@pytest.mark.parametrize("kind", EXPECTED)
def test_a_flipped_bit_is_noticed_or_harmless(bench: Bench, kind: str) -> None:
    count, allowed = EXPECTED[kind]
    outcomes = [bench.try_out(flip) for flip in draw(bench.dataset, {kind: count}, seed=7)]
    assert {o.noticed for o in outcomes} <= allowed, summary(outcomes)
    assert not [o for o in outcomes if o.wrong]
