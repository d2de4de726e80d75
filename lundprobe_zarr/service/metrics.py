"""Figures of a running service for its operator, summed over its worker processes.

Labels come from what the service knows (datasets, callers, statuses), never from what a client
sends: otherwise anybody could fill the memory with them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from lundprobe_zarr.service.access.audit import Visit
from lundprobe_zarr.service.datasets.published import Published

#: Where worker processes keep their figures, for all to sum up.
SHARED = "PROMETHEUS_MULTIPROC_DIR"
#: The text format that Prometheus reads.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# When each counter began would be as many lines again, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]
_SECONDS = (0.002, 0.01, 0.05, 0.2, 1.0, 5.0, 30.0)


class Metrics:
    """Counts requests. One a process; a scrape of any process sums up all.

    Parameters
    ----------
    published : mapping of str to Published
        The datasets that are served, by name.
    """

    def __init__(self, published: Mapping[str, Published]) -> None:
        self._published = published
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "lundprobe_requests",
            "Requests answered.",
            ("dataset", "what", "status"),
            registry=self._registry,
        )
        self._bytes = Counter(
            "lundprobe_sent_bytes", "Bytes sent.", ("dataset", "what"), registry=self._registry
        )
        self._seconds = Histogram(
            "lundprobe_request_seconds",
            "Seconds from a request to the end of its answer.",
            ("what",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._caller_requests = Counter(
            "lundprobe_caller_requests",
            "Requests by caller.",
            ("caller",),
            registry=self._registry,
        )
        self._caller_bytes = Counter(
            "lundprobe_caller_sent_bytes",
            "Bytes sent to a caller.",
            ("caller",),
            registry=self._registry,
        )
        self._caller_last = Gauge(
            "lundprobe_caller_last_request_seconds",
            "When a caller was last here, seconds since 1970.",
            ("caller",),
            multiprocess_mode="max",
            registry=self._registry,
        )
        self._running = Gauge(
            "lundprobe_running_requests",
            "Requests that run now.",
            multiprocess_mode="livesum",
            registry=self._registry,
        )

    def begin(self) -> None:
        """Count a request that begins."""
        self._running.inc()

    def end(self, visit: Visit) -> None:
        """Count a request that has ended."""
        self._running.dec()
        dataset = visit.dataset if visit.dataset in self._published else ""
        what = _what(visit)
        self._requests.labels(dataset, what, str(visit.status)).inc()
        self._seconds.labels(what).observe(visit.seconds)
        if visit.sent:
            self._bytes.labels(dataset, what).inc(visit.sent)
        if visit.caller is not None:
            self._caller_requests.labels(visit.caller).inc()
            self._caller_last.labels(visit.caller).set(time.time())
            if visit.sent:
                self._caller_bytes.labels(visit.caller).inc(visit.sent)

    def families(self) -> Iterable[Metric]:
        """Return the figures of all worker processes."""
        return self._whole().collect()

    def text(self) -> bytes:
        """Return the figures in Prometheus' text format, version 0.0.4."""
        return generate_latest(self._whole())

    def _whole(self) -> CollectorRegistry:
        folder = os.environ.get(SHARED)
        whole = CollectorRegistry()
        if folder is None:
            whole.register(_Same(self._registry))
        else:
            _forget_dead(Path(folder))
            MultiProcessCollector(whole, folder)  # type: ignore[no-untyped-call]
        whole.register(_Datasets(self._published))
        return whole


def _what(visit: Visit) -> str:
    if visit.sql is not None:
        return "sql"
    if visit.route.startswith("/datasets/"):
        return "bytes"
    return "api" if visit.route.startswith("/api/") else "other"


def _forget_dead(folder: Path) -> None:
    """Let go of gauges of live processes whose process has ended."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            with suppress(FileNotFoundError):  # another scrape was faster
                mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


class _Same(Collector):
    """The figures of a registry, for another registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of the registry."""
        return self._registry.collect()


class _Datasets(Collector):
    """What is served now."""

    def __init__(self, published: Mapping[str, Published]) -> None:
        self._published = published

    def collect(self) -> Iterator[Metric]:
        """Return a metric of datasets and revisions, and one of their files."""
        info = GaugeMetricFamily(
            "lundprobe_dataset_info", "Datasets, with their revision.", labels=("dataset", "sha")
        )
        files = GaugeMetricFamily("lundprobe_dataset_files", "Files.", labels=("dataset",))
        for name, one in self._published.items():
            now = one.revision
            info.add_metric((name, now.sha), 1)
            files.add_metric((name,), len(now.index.files))
        yield from (info, files)
