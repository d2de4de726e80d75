"""Limits of callers: requests at a time and bytes a day."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from lundprobe_zarr.service.access import Caller
from lundprobe_zarr.service.answers import HttpError
from lundprobe_zarr.service.audit import Visit


class LimitKeeper:
    """Counts what callers take, and refuses what exceeds their limits."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()

    @contextmanager
    def request(self, caller: Caller) -> Iterator[None]:
        """Count a request while it runs. Raises `HttpError` (429) beyond the caller's limit."""
        most = caller.limits.requests
        if most is not None and self._running[caller.name] >= most:
            raise HttpError(
                429,
                f"{caller.name} has {most} requests running, which is its limit. Wait for one.",
                headers={"Retry-After": "1"},
            )
        self._running[caller.name] += 1
        try:
            yield
        finally:
            self._running[caller.name] -= 1

    def sent(self, visit: Visit) -> None:
        """Count the bytes of an answer."""
