"""The benchmark of a user's own disk or bucket: its figures are what the server has seen."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lundprobe_zarr.cli.app import app
from lundprobe_zarr.errors import StreamError, UsageError
from lundprobe_zarr.stream import benchmark as stream_bench
from lundprobe_zarr.stream.benchmark import Benchmark, benchmark
from lundprobe_zarr.stream.prices import Prices

SIZE = (6, 12, 12)


def test_what_is_counted_is_what_the_server_sent(web, monkeypatch):
    seen = []
    rate = stream_bench._rate
    before = web.cohort, len(web.traffic.requests)

    def first(plan, count, threads):
        seen.append(len(web.traffic.requests))
        return rate(plan, count, threads)

    monkeypatch.setattr(stream_bench, "_used", lambda plan, count: (0.5, (8, 128, 128)))
    monkeypatch.setattr(stream_bench, "_rate", first)
    found = benchmark(before[0], SIZE, ("Rectum",), patches=9)
    asked = [r for r in web.traffic.requests[: seen[0]] if ".zarr/" in r.path][-found.requests :]
    assert found.patches == len(found.latencies) == 9
    assert found.requests == len(asked) == len([r for r in asked if r.method == "GET"])
    assert found.bytes == sum(r.sent for r in asked)
    assert 0 < found.fetching < sum(found.latencies)
    assert not found.local
    assert set(found.rates) == {4, 16, 32}


def test_chunks_that_patches_touch(cohort):
    """The tiny phantom's chunk is the whole volume, whichever box of it is read."""
    found = benchmark(cohort, SIZE, patches=4)
    shape = cohort.patients["mri_shape"].map(tuple)
    volumes = {s[0] * s[1] * s[2] for s in shape}
    assert found.chunk[1:] == tuple(int(n) for n in shape.iloc[-1][1:]) or found.used < 1
    assert 6 * 12 * 12 / max(volumes) / 2 < found.used < 1
    assert found.local


def test_recommendations_follow_the_figures():
    figures = Benchmark(
        "p", 4, [0.1] * 4, 0.3, 8, 100, 100, 0.2, (8, 128, 128), False,
        {4: 10.0, 16: 20.0, 32: 21.0},
    )  # fmt: skip
    threads, cache, used = figures.recommendations()
    assert threads.startswith("threads=16: 20.0 patches/s")
    assert cache.startswith("cache='FOLDER': 75%")
    assert "20% of the decoded voxels" in used
    assert figures.percentile(50) == pytest.approx(0.1)


def test_an_epoch_opens_each_patient_once(web, cohort):
    """With one patch a patient, an epoch is what reading that one asked for."""
    count = len(cohort)
    found = benchmark(web.cohort, SIZE, patches=count, per_patient=1)
    assert found.epoch is not None
    assert found.epoch.patches == found.epoch.patients == count
    assert found.epoch.requests == pytest.approx(found.requests)
    assert found.epoch.bytes == pytest.approx(found.bytes)
    more = benchmark(web.cohort, SIZE, patches=4 * count, per_patient=4)
    assert more.epoch is not None
    assert more.epoch.requests == pytest.approx(more.requests)
    assert more.epoch.requests < 4 * found.epoch.requests, "later patches open nothing"
    assert more.processor > 0


def prices_in(file: Path, **changes: object) -> Path:
    contents = {
        "name": "a bucket", "date": "2026-11-01", "source": "https://example.org",
        "currency": "EUR", "per_1000_requests": 0.4, "per_gib": 2.0,
    }  # fmt: skip
    file.write_text(json.dumps({k: v for k, v in (contents | changes).items() if v is not None}))
    return file


def test_what_an_epoch_costs(tmp_path):
    prices = Prices.load(prices_in(tmp_path / "p.json"))
    assert prices.of(requests=5000, size=3 * 2**30) == pytest.approx(5 * 0.4 + 3 * 2.0)


@pytest.mark.parametrize(
    "changes", [{"per_gib": None}, {"per_gib": -1}, {"per_1000_requests": "0.4"}, {"per_gib": True}]
)
def test_a_file_without_prices_is_refused(tmp_path, changes):
    with pytest.raises(UsageError, match=r"p\.json: no prices \(.*per_"):
        Prices.load(prices_in(tmp_path / "p.json", **changes))


def test_the_command_says_what_an_epoch_costs(dataset, tmp_path):
    file = prices_in(tmp_path / "p.json")
    arguments = ["bench", str(dataset), "--patch", "6,12,12", "--patches", "4"]
    ran = CliRunner().invoke(app, [*arguments, "--prices", str(file)])
    assert ran.exit_code == 0, ran.output
    assert re.search(r"such an epoch costs\s+\d\.\d\d EUR \(a bucket, 2026-11-01\)", ran.output)


def test_what_cannot_be_measured_is_said(cohort, web):
    with pytest.raises(UsageError, match="0 patches"):
        benchmark(cohort, SIZE, patches=0)
    with (
        web.traffic.failing(lambda method, path: 404 if "/c/" in path else None),
        pytest.raises(StreamError, match="not there"),
    ):
        benchmark(web.cohort, SIZE, patches=2)
