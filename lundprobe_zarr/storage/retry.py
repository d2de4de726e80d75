"""The retry policy: how long a server may take, and what is asked again.

Three limits: how long a server may say nothing, how long all attempts at one answer may take, and
how often a request is made. So a server that never answers, or ever so slowly, ends in an error
within a time that is known. `docs/reliability.md` says what they come to.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.storage.cores import waiting
from lundprobe_zarr.storage.failures import failures
from lundprobe_zarr.storage.urls import AZURE, BY_HTTP, GCS, S3

_LOG = logging.getLogger("lundprobe_zarr.storage")

#: Storage option that sets the first of the limits; it is ours, and not handed to fsspec.
TIMEOUT = "timeout"
#: Seconds without a byte after which a request has failed.
_SILENCE = 30.0
#: All attempts together may last this many times as long, and a second more for so many bytes.
_TIMES, _SLOWEST = 4, 50_000
#: Bytes that an object is taken to have at most whose size is not known: tables, metadata.
UNKNOWN = 4 << 20
_T = TypeVar("_T")


class Clock:
    """The time, and how to let it pass; a test has one of its own."""

    def now(self) -> float:
        """Return seconds of a clock that only goes forward."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Sleep, and let another thread use this thread's core meanwhile."""
        with waiting():
            time.sleep(seconds)


#: What every policy goes by that is not given another one.
CLOCK = Clock()


@dataclass(frozen=True)
class RetryPolicy:
    """How a request is repeated that failed.

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
        """Make the policy of the storage option `timeout`; None is the usual one.

        Raises `UsageError` for what is no time.
        """
        if seconds is None:
            return cls()
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise UsageError(
                f"storage option {TIMEOUT}={seconds!r}",
                expected=(f"for how many seconds a server may say nothing, e.g. {_SILENCE:g}"),
            )
        return cls(float(seconds))

    @classmethod
    def growing(cls, retries: int, first: float = 0.2, growth: float = 3.0) -> RetryPolicy:
        """Make a policy of `retries` repeats, each pause `growth` times the one before."""
        return cls(pauses=tuple(first * growth**n for n in range(retries)))

    def allowed(self, size: int = 0) -> float:
        """Return the seconds for an answer of `size` bytes, or to send as many, in all attempts."""
        return _TIMES * self.silence + size / _SLOWEST

    def limits(self, protocol: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return storage options with the limit on silence as the protocol's client knows it.

        And of web servers, objects as they are: not compressed on the way. What is given already
        stays.
        """
        if protocol in BY_HTTP:
            import aiohttp

            silence = aiohttp.ClientTimeout(sock_connect=self.silence, sock_read=self.silence)
            given = options.get("client_kwargs") or {}
            # Ranges are of an object's own bytes: a server that compresses has others to count.
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

        Each has half of the time that is left, for it may be the way that is slow, and the last
        has all.
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
        """Return what `attempt`, given its seconds, returns; repeated after what `repeats` says."""
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
        """Return what `attempt` returns, repeated after an error of `kind` if `repeats` says so.

        `repeats` is called before each pause, and may prepare the next attempt. The last attempt
        raises what it raises.
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


#: For what is not repeated: what lies on a local disk stays as it is.
ONCE = RetryPolicy(pauses=())
