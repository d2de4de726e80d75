"""How much a command tells: `--verbose` logs to standard error, `--quiet` shows no progress."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass

#: The logger above those of all rooms.
_PACKAGE = "lundprobe_zarr"


@dataclass
class _Chosen:
    """What the options of the running command ask for."""

    quiet: bool = False


_CHOSEN = _Chosen()


class _ToStandardError(logging.Handler):
    """Writes to what is standard error now: whoever replaces it may close the one before."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record as a line."""
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # nobody reads it, or it is closed
            self.handleError(record)


def is_quiet() -> bool:
    """Whether progress is not to be shown."""
    return _CHOSEN.quiet


def set_verbosity(verbose: int, quiet: bool) -> None:
    """Log to standard error: what is done (1), every request and retry too (2 or more).

    Without, only warnings are logged. Messages hold no credentials: URLs are shown as messages of
    errors show them.
    """
    _CHOSEN.quiet = quiet
    log = logging.getLogger(_PACKAGE)
    log.handlers.clear()
    handler = _ToStandardError()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log.addHandler(handler)
    log.propagate = False
    log.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
