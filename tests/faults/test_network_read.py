"""Servers that fail, stall or answer wrongly: the right result or a named error in time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import DamagedStoreError, DatasetError, UsageError
from lundprobe_zarr.integrity.copy import copy_dataset
from lundprobe_zarr.storage import retry
from lundprobe_zarr.storage.location import Location, Range
from lundprobe_zarr.storage.reread import read_verified
from lundprobe_zarr.storage.web import require_range
from lundprobe_zarr.stores.reader import StoreReader
from tests.faults.flips import cohort_digest, patient_digest
from tests.faults.proxy import (
    ON_WEB,
    SILENT,
    SLOWLY_REPEATED,
    Remote,
    lasting,
    passing,
    s3_behind,
    sprinkled,
    web_behind,
    within,
)

T2W = [("mri/image", {"modality": "T2w"})]
BOX = (slice(0, 14), slice(0, 60), slice(0, 60))
#: One of each kind: the benchmark has them all.
QUICK_ON_S3 = ("500", "slow down", "reset amid", "stall", "trickle", "short", "other range")
#: Seconds after which something is taken to hang; far more than anything below may take.
HANGS = 60.0


@pytest.fixture(scope="module")
def patient(dataset: Path) -> str:
    """A base patient."""
    return lp.open_cohort(dataset).ids[0]


@pytest.fixture(scope="module")
def sound(dataset: Path, patient: str) -> tuple[str, str]:
    """What reading gives where nothing fails."""
    return cohort_digest(dataset), patient_digest(dataset, patient)


@pytest.fixture(scope="module")
def web(dataset: Path) -> Iterator[Remote]:
    with web_behind(dataset) as remote:
        yield remote


@pytest.fixture(scope="module")
def s3(dataset: Path) -> Iterator[Remote]:
    pytest.importorskip("moto.moto_server.werkzeug_app", reason="pip install 'moto[s3,server]'")
    with s3_behind(dataset) as remote:
        yield remote


@pytest.fixture(params=["web", "s3"])
def remote(request: pytest.FixtureRequest) -> Remote:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Remote)
    return found


@pytest.fixture(autouse=True)
def lines_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits do not grow with what is asked for."""
    monkeypatch.setattr(retry, "_SLOWEST", 10**9)


def read(remote: Remote, patient: str, seconds: float) -> tuple[str, str]:
    options = remote.reach(timeout=seconds)
    return cohort_digest(remote.url, options), patient_digest(remote.url, patient, options)


@pytest.mark.parametrize("fault", ON_WEB)
def test_a_fault_of_a_web_server_that_passes_makes_no_difference(web, patient, sound, fault):
    """Of the manifest, a table, a store's metadata, a shard and a small array."""
    parts = ("lundprobe.json", "structures/base", "zarr.json", "/image/c/0", "position/c")
    with web.proxy.spoiling(passing(fault, parts)) as met:
        found = within(HANGS, lambda: read(web, patient, 0.4 if fault in SILENT else 5))
    assert found == sound
    assert met[fault] >= len(parts)


@pytest.mark.parametrize("fault", QUICK_ON_S3)
def test_a_fault_of_s3_that_passes_makes_no_difference(s3, patient, sound, fault):
    """Of a shard and, where s3's client does not wait for seconds, of the other objects."""
    all_parts = ("lundprobe.json", "structures/base", "zarr.json", "mri/image/c/0")
    parts = all_parts[3:] if fault in SLOWLY_REPEATED else all_parts
    with s3.proxy.spoiling(passing(fault, parts)) as met:
        found = within(HANGS, lambda: read(s3, patient, 0.6 if fault in SILENT else 8))
    assert found == sound
    assert met[fault] >= len(parts)


@pytest.mark.parametrize("seed", [1, 2])
def test_faults_of_all_kinds_that_pass_make_no_difference(web, patient, sound, seed):
    faults = [f for f in ON_WEB if f not in SILENT]
    with web.proxy.spoiling(sprinkled(faults, 0.3, seed, ("GET", "HEAD"))) as met:
        assert within(HANGS, lambda: read(web, patient, 5)) == sound
    assert met.total() > 5


@pytest.mark.parametrize("fault", ON_WEB)
@pytest.mark.parametrize("part", ["mri/image/c/0", "structures/base"])
def test_a_fault_that_stays_is_named_in_time(web, patient, sound, fault, part):
    started, seconds = time.monotonic(), 0.3
    with web.proxy.spoiling(lasting(fault, part)):
        if fault == "whole" and "image" in part:  # a server that takes no ranges: slow, not wrong
            assert within(HANGS, lambda: read(web, patient, 5)) == sound
            return
        with pytest.raises(DatasetError) as raised:
            within(HANGS, lambda: read(web, patient, seconds if fault in SILENT else 5))
    assert part in str(raised.value)
    assert "; " in str(raised.value), "it says what to do"
    if fault in SILENT:
        assert "no answer within the time allowed" in str(raised.value)
        assert time.monotonic() - started < 4 * seconds + 10, "and not a minute later"


@pytest.mark.parametrize("fault", ["500", "slow down", "stall", "reset amid", "other range"])
def test_a_fault_of_s3_that_stays_is_named_in_time(s3, patient, fault):
    reader = StoreReader.open(s3.location(timeout=0.5), patient)
    started = time.monotonic()
    with s3.proxy.spoiling(lasting(fault, "mri/image/c/0")), pytest.raises(DatasetError) as raised:
        within(HANGS, lambda: reader.read(T2W, BOX))
    assert f"{patient}.zarr/mri/image/c/0" in str(raised.value)
    assert time.monotonic() - started < 4 * 0.5 + 10
    assert reader.read(T2W, BOX), "a failure is not remembered"


@pytest.mark.parametrize("fault", ["other bytes", "garbled"])
def test_wrong_bytes_that_stay_are_damage_and_asked_for_thrice(web, patient, fault):
    reader = StoreReader.open(web.location(), patient)
    spoiling = web.proxy.spoiling(lasting(fault, "mri/image/c/0"))
    with spoiling as met, pytest.raises(DamagedStoreError, match="fails its checksum"):
        reader.read(T2W, BOX)
    assert met[fault] == 3


def test_damage_at_its_place_is_asked_for_twice():
    """What comes again as it was will not come otherwise."""
    fetched: list[bytes] = []

    def fetch() -> bytes:
        fetched.append(b"damaged")
        return fetched[-1]

    def parse(data: bytes) -> bytes:
        raise DatasetError("damaged")

    with pytest.raises(DatasetError, match="damaged"):
        read_verified(Location("memory://x"), "y", fetch, parse)
    assert len(fetched) == 2


def test_a_stream_gives_right_patches_while_servers_fail(web, dataset, patient):
    def epoch(url, options=None):
        cohort = lp.open_cohort(url, options)
        stream = lp.PatchStream(cohort, (6, 12, 12), structures=("Rectum",), threads=3)
        return [(s["patient_id"], s["image"].tobytes(), s["mask"].tobytes()) for s in stream]

    expected = epoch(dataset)
    faults = [f for f in ON_WEB if f not in SILENT]
    with web.proxy.spoiling(sprinkled(faults, 0.4, 3, ("GET",))) as met:
        assert within(HANGS, lambda: epoch(web.url, web.reach(timeout=5))) == expected
    assert met.total() > 3


def test_hugging_face_streams_the_right_voxels_while_servers_fail(web, dataset, patient):
    def rows(url, options=None):
        stream = lp.load_dataset(str(url), "slices", streaming=True, storage_options=options)
        found = []
        for row in stream["base"].take(3):
            found.append((row["patient_id"], row["z_index"], bytes(row["image"][...].data)))
        return found

    with web.proxy.spoiling(sprinkled(("503", "short", "garbled"), 0.3, 4, ("GET",))) as met:
        found = within(HANGS, lambda: rows(web.url, web.reach(timeout=5)))
    assert found == rows(dataset)
    assert met


def test_a_copy_from_a_server_that_fails_is_right_to_the_byte(web, dataset, tmp_path):
    faults = [f for f in ON_WEB if f not in SILENT]
    with web.proxy.spoiling(sprinkled(faults, 0.1, 5, ("GET", "HEAD"))) as met:
        report = within(HANGS, lambda: copy_dataset(web.location(), Location(tmp_path / "d")))
    assert not report.failures
    assert met.total() > 10
    for file in (tmp_path / "d").rglob("*/*"):
        if file.is_file():
            name = file.relative_to(tmp_path / "d")
            assert file.read_bytes() == (dataset / name).read_bytes(), name


def test_a_range_that_was_not_asked_for_is_no_answer():
    require_range("bytes=5-9", "bytes 5-9/100", 5)
    require_range("bytes=5-9", "bytes 5-7/8", 3)
    require_range("bytes=5-9", "bytes 5-9/*", 5)
    for sent, length in (
        ("bytes 6-10/100", 5),
        ("bytes 5-9/100", 4),
        ("bytes 5-8/100", 4),
        (None, 5),
        ("bytes */100", 0),
    ):
        with pytest.raises(aiohttp.ClientPayloadError, match="was requested"):
            require_range("bytes=5-9", sent, length)


def test_a_server_without_ranges_serves_the_end_of_a_small_object(web, dataset):
    """All of it comes, less than was asked for: that is not the range."""
    data = (dataset / "README.md").read_bytes()
    ignored = pytest.warns(UserWarning, match="ignores byte ranges")
    with web.proxy.spoiling(lasting("whole")), ignored:
        wanted = Range("README.md", 1000, 1000 + len(data) + 1)
        assert web.location().read_ranges([wanted]) == [data[1000:]]


@pytest.mark.parametrize("seconds", [0, -1, "5", True])
def test_a_timeout_that_makes_no_sense(seconds):
    with pytest.raises(UsageError, match=r"storage option timeout=.*e\.g\. 30"):
        Location("https://example.invalid/x", {"timeout": seconds})


def test_limits_that_are_given_stay():
    own = aiohttp.ClientTimeout(total=5)
    web = retry.RetryPolicy().limits("https", {"client_kwargs": {"timeout": own, "auth": None}})
    identity = {"Accept-Encoding": "identity"}
    assert web["client_kwargs"] == {"timeout": own, "auth": None, "headers": identity}
    s3 = retry.RetryPolicy(7).limits("s3", {"config_kwargs": {"read_timeout": 3}})
    assert s3["config_kwargs"] == {"connect_timeout": 7, "read_timeout": 3}
