"""The retry policy: time limits of requests, and which are repeated.

There are three limits: how long a server may send nothing, how long all attempts at one answer may
take, and how often a request is made. So a server that never answers, or very slowly, leads to an
error within a known time. `docs/reliability.md` has the resulting times.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.storage.failures import failures
from lundprobe_zarr.storage.urls import AZURE, BY_HTTP, GCS, S3

_LOG = logging.getLogger("lundprobe_zarr.storage")

#: Storage option that sets the first of the limits; it is ours, and not passed to fsspec.
TIMEOUT = "timeout"
#: Seconds without a byte after which a request has failed.
_SILENCE = 30.0
#: All attempts together may take this many times as long, plus a second per so many bytes.
_TIMES, _SLOWEST = 4, 50_000
#: Assumed largest size of an object of unknown size: tables, metadata.
UNKNOWN = 4 << 20
_T = TypeVar("_T")


class Clock:
    """Reads and waits for the time; tests replace it."""

    def now(self) -> float:
        """Return seconds of a monotonic clock."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)


#: The clock of policies that are given no other.
CLOCK = Clock()


@dataclass(frozen=True)
class RetryPolicy:
    """Limits and pauses by which failed requests are repeated.

    Attributes
    ----------
    silence : float
        Seconds that a server may send nothing.
    pauses : tuple of float
        Seconds before the second attempt, the third, and so on.
    clock : Clock
        Measures and passes the time.
    """

    silence: float = _SILENCE
    pauses: tuple[float, ...] = (0.1, 0.5)
    clock: Clock = field(default=CLOCK, compare=False, repr=False)

    @classmethod
    def of(cls, seconds: object) -> RetryPolicy:
        """Make the policy of the storage option `timeout`; None is the default.

        Raises `UsageError` for an invalid time.
        """
        if seconds is None:
            return cls()
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise UsageError(
                f"storage option {TIMEOUT}={seconds!r}",
                expected=(f"for how many seconds a server may send nothing, e.g. {_SILENCE:g}"),
            )
        return cls(float(seconds))

    @classmethod
    def growing(cls, retries: int, first: float = 0.2, growth: float = 3.0) -> RetryPolicy:
        """Make a policy of `retries` repeats, each pause `growth` times the one before."""
        return cls(pauses=tuple(first * growth**n for n in range(retries)))

    def allowed(self, size: int = 0) -> float:
        """Return the seconds for receiving or sending `size` bytes, over all attempts."""
        return _TIMES * self.silence + size / _SLOWEST

    def limits(self, protocol: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return storage options with the limit on silence in the terms of the protocol's client.

        Web servers are also asked not to compress. Options that are given already stay.
        """
        if protocol in BY_HTTP:
            import aiohttp

            silence = aiohttp.ClientTimeout(sock_connect=self.silence, sock_read=self.silence)
            given = options.get("client_kwargs") or {}
            # Ranges count an object's own bytes, not those of a compressed answer.
            headers = {"Accept-Encoding": "identity", **dict(given.get("headers") or {})}
            return {**options, "client_kwargs": {"timeout": silence, **given, "headers": headers}}
        if protocol in S3:
            limits = {"connect_timeout": self.silence, "read_timeout": self.silence}
            return {**options, "config_kwargs": {**limits, **(options.get("config_kwargs") or {})}}
        if protocol in GCS:
            import aiohttp

            silence = aiohttp.ClientTimeout(sock_connect=self.silence, sock_read=self.silence)
            return {"requests_timeout": silence, **options}
        if protocol in AZURE:
            limits = {"connection_timeout": self.silence, "read_timeout": self.silence}
            return {**limits, **options}
        return dict(options)

    def attempts(self, size: int) -> Iterator[float]:
        """Yield the seconds of each attempt at an answer of `size` bytes, after its pause.

        Each attempt has half of the time left, since another connection may be faster; the last
        has all of it.
        """
        until = self.clock.now() + self.allowed(size)
        for pause in self.pauses:
            yield (until - self.clock.now()) / 2
            if self.clock.now() + pause >= until:
                return
            _LOG.debug("a request failed; it is repeated after %g s", pause)
            self.clock.sleep(pause)
        yield until - self.clock.now()

    def request(
        self,
        attempt: Callable[[float], _T],
        size: int,
        repeats: Callable[[BaseException], bool],
    ) -> _T:
        """Return the result of `attempt(seconds)`; repeat it after errors `repeats` selects."""
        failed: BaseException | None = None
        for seconds in self.attempts(size):
            try:
                return attempt(seconds)
            except failures() as error:
                failed = error
                if not repeats(error):
                    break
        assert failed is not None
        raise failed

    def repeat(
        self,
        attempt: Callable[[], _T],
        kind: type[BaseException],
        repeats: Callable[[Any], bool],
    ) -> _T:
        """Return the result of `attempt`; repeat it after errors of `kind` that `repeats` selects.

        `repeats` is called before each pause, and may prepare the next attempt. The error of the
        last attempt is raised.
        """
        for pause in self.pauses:
            try:
                return attempt()
            except kind as error:
                if not repeats(error):
                    raise
                _LOG.debug("%s; it is read again after %g s", type(error).__name__, pause)
            self.clock.sleep(pause)
        return attempt()


#: Policy without repeats: a local disk gives the same bytes again.
ONCE = RetryPolicy(pauses=())
