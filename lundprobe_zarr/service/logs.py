"""What the service prints: its log, without tokens, and a line a request."""

from __future__ import annotations

import logging
import os
import sys
import time

from lundprobe_zarr.service.access.audit import Visit
from lundprobe_zarr.service.access.callers import without_tokens
from lundprobe_zarr.vocabulary.text import escaped, size

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
#: Colours of statuses by their first digit: done, sent elsewhere, client's mistake, ours (ANSI).
_COLORS = {2: "32", 3: "36", 4: "33", 5: "31"}
_DIM = "2"
_MOST_PATH = 200


class _WithoutTokens(logging.Formatter):
    """Formats a record; no token passes, wherever it came from."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, without tokens."""
        return without_tokens(super().format(record))


def log_to_stderr(level: int) -> None:
    """Log what the package and uvicorn say from a level on, uvicorn's notes at most as warnings.

    uvicorn says which process starts and ends (INFO), and what went wrong.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithoutTokens(_FORMAT))
    for name in ("lundprobe_zarr", "uvicorn"):
        log = logging.getLogger(name)
        log.handlers[:] = [handler]
        log.propagate = False
        log.setLevel(level)


class AccessLog:
    """Prints a line a request; a full disk or a closed pipe loses lines, never an answer.

    Parameters
    ----------
    form : str
        "color", "json" (as the audit log has it) or "none".
    """

    def __init__(self, form: str) -> None:
        self._form = form

    def write(self, visit: Visit) -> None:
        """Print the line of a request that has ended."""
        if self._form == "none":
            return
        line = visit.line() if self._form == "json" else _line(visit).encode()
        try:
            os.write(1, line)  # one call, so that lines of several processes do not mix
        except OSError:
            self._form = "none"
            logging.getLogger(__name__).warning("requests are not printed any more: no output")


def _line(visit: Visit) -> str:
    color = _COLORS.get(visit.status // 100, "0")
    route = escaped(without_tokens(visit.route), keep="")
    shown = route if len(route) <= _MOST_PATH else f"{route[:_MOST_PATH]}…"
    caller = escaped(visit.caller or "–", keep="")
    clock = time.strftime("%H:%M:%S", time.localtime(visit.began))
    return (
        f"\x1b[{_DIM}m{clock}\x1b[0m \x1b[{color}m{visit.status}\x1b[0m {visit.method:4} {shown} "
        f"\x1b[{_DIM}m{size(visit.sent)} {visit.seconds * 1000:.1f} ms {caller} {visit.address}"
        "\x1b[0m\n"
    )
