"""How long a server may take, and what is asked again.

Three limits: how long a server may say nothing, how long all attempts at one answer may take, and
how often a request is made. So a server that never answers, or ever so slowly, ends in an error
within a time that is known. `docs/reliability.md` says what they come to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.storage.failures import failures
from lundprobe_zarr.storage.urls import S3, WEB

#: Storage option that sets the first of the limits; it is ours, and not handed to fsspec.
TIMEOUT = "timeout"
#: A request that failed for a passing reason is made this often in all, after these pauses.
PAUSES = (0.1, 0.5)
#: Seconds without a byte after which a request has failed.
_SILENCE = 30.0
#: All attempts together may last this many times as long, and a second more for so many bytes.
_TIMES, _SLOWEST = 4, 50_000
#: Bytes that an object is taken to have at most whose size is not known: tables, metadata.
UNKNOWN = 4 << 20
_T = TypeVar("_T")


@dataclass(frozen=True)
class Patience:
    """With servers: `silence` is how many seconds they may send nothing."""

    silence: float = _SILENCE

    @classmethod
    def of(cls, seconds: object) -> Patience:
        """As the option `timeout` has it; None is the usual. Raises `UsageError` for no time."""
        if seconds is None:
            return cls()
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise UsageError(
                f"storage option {TIMEOUT}={seconds!r}; expected for how many seconds a server may "
                f"say nothing, e.g. {_SILENCE:g}"
            )
        return cls(float(seconds))

    def allowed(self, size: int = 0) -> float:
        """Seconds for an answer, or something to send, of `size` bytes, with all attempts."""
        return _TIMES * self.silence + size / _SLOWEST

    def limits(self, protocol: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Storage options with the limit on silence as the protocol's client knows it.

        Limits that are given already stay.
        """
        if protocol in WEB:
            import aiohttp

            silence = aiohttp.ClientTimeout(sock_connect=self.silence, sock_read=self.silence)
            given = options.get("client_kwargs") or {}
            return {**options, "client_kwargs": {"timeout": silence, **given}}
        if protocol in S3:
            limits = {"connect_timeout": self.silence, "read_timeout": self.silence}
            return {**options, "config_kwargs": {**limits, **(options.get("config_kwargs") or {})}}
        return dict(options)

    def attempts(self, size: int) -> Iterator[float]:
        """Seconds for each attempt at an answer of `size` bytes, after the pause before it.

        Each has half of the time that is left, for it may be the way that is slow, and the last
        has all.
        """
        until = time.monotonic() + self.allowed(size)
        for pause in PAUSES:
            yield (until - time.monotonic()) / 2
            if time.monotonic() + pause >= until:
                return
            time.sleep(pause)
        yield until - time.monotonic()

    def persist(
        self,
        attempt: Callable[[float], _T],
        size: int,
        repeats: Callable[[BaseException], bool],
    ) -> _T:
        """What `attempt`, given its seconds, gives; made again after what `repeats` says."""
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
