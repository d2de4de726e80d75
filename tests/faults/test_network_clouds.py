"""GCS and Azure that fail, stall or answer wrongly: the right result or a named error in time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path

import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.storage import retry
from lundprobe_zarr.stores.reader import StoreReader
from tests.faults.flips import patient_digest
from tests.faults.proxy import (
    SILENT,
    Remote,
    azure_behind,
    gcs_behind,
    lasting,
    passing,
    within,
)

T2W = [("mri/image", {"modality": "T2w"})]
BOX = (slice(0, 14), slice(0, 60), slice(0, 60))
FAULTS = ("500", "reset before", "reset amid", "stall", "trickle", "short", "other range")
HANGS = 60.0


@pytest.fixture(scope="module")
def patient(dataset: Path) -> str:
    """A base patient."""
    return lp.open_cohort(dataset).ids[0]


@pytest.fixture(scope="module", params=["gcs", "azure"])
def cloud(request: pytest.FixtureRequest, dataset: Path) -> Iterator[Remote]:
    kinds = {"gcs": gcs_behind, "azure": azure_behind}
    behind: AbstractContextManager[Remote] = kinds[request.param](dataset)
    with behind as remote:
        yield remote


@pytest.fixture(autouse=True)
def lines_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits do not grow with what is asked for."""
    monkeypatch.setattr(retry, "_SLOWEST", 10**9)


@pytest.fixture(autouse=True)
def azure_repeats_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's client repeats a request that failed, after 15 seconds and more."""
    if find_spec("adlfs") is None:
        return
    from azure.storage.blob._shared import policies_async as policies

    for kind in (policies.ExponentialRetry, policies.LinearRetry):
        monkeypatch.setattr(kind, "get_backoff_time", lambda policy, settings: 0.1)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_shard_that_passes_makes_no_difference(cloud, patient, dataset, fault):
    expected = patient_digest(dataset, patient)
    options = cloud.reach(timeout=0.6 if fault in SILENT else 8)
    with cloud.proxy.spoiling(passing(fault, ("image/c/0", "image%2Fc%2F0"))) as met:
        found = within(HANGS, lambda: patient_digest(cloud.url, patient, options))
    assert found == expected
    assert met[fault] >= 1


@pytest.mark.parametrize("fault", ["stall", "trickle", "other range"])
def test_a_fault_of_a_shard_that_stays_is_named_in_time(cloud, patient, fault):
    reader = StoreReader.open(cloud.location(timeout=0.5), patient)
    started = time.monotonic()
    with (
        cloud.proxy.spoiling(lasting(fault, patient, ("GET",))),
        pytest.raises(DatasetError) as raised,
    ):
        within(HANGS, lambda: reader.read(T2W, BOX))
    assert f"{patient}.zarr/mri/image/c/0" in str(raised.value)
    assert time.monotonic() - started < 4 * 0.5 + 10
    assert reader.read(T2W, BOX), "a failure is not remembered"


def test_a_stall_of_metadata_ends_in_time(cloud, patient):
    started = time.monotonic()
    with (
        cloud.proxy.spoiling(lasting("stall", patient, ("GET",))),
        pytest.raises(DatasetError, match="no answer within the time allowed"),
    ):
        within(HANGS, lambda: StoreReader.open(cloud.location(timeout=0.5), patient))
    assert time.monotonic() - started < 4 * 0.5 + 10
