"""The benchmark of a user's own disk or bucket: its figures are what the server has seen."""

from __future__ import annotations

import pytest

from lundprobe_zarr.errors import StreamError, UsageError
from lundprobe_zarr.stream import benchmark as stream_bench
from lundprobe_zarr.stream.benchmark import Benchmark, benchmark

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


def test_what_cannot_be_measured_is_said(cohort, web):
    with pytest.raises(UsageError, match="0 patches"):
        benchmark(cohort, SIZE, patches=0)
    with (
        web.traffic.failing(lambda method, path: 404 if "/c/" in path else None),
        pytest.raises(StreamError, match="not there"),
    ):
        benchmark(web.cohort, SIZE, patches=2)
