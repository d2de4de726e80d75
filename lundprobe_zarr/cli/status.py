"""Exit statuses, and the one line an error becomes."""

from __future__ import annotations

from lundprobe_zarr.errors import (
    DatasetError,
    LundProbeError,
    QueryError,
    SourceNotFoundError,
    UnknownLabelError,
    UsageError,
)
from lundprobe_zarr.storage.failures import described

DONE, FAILED, WRONG_USAGE, NO_DATASET = 0, 1, 2, 3
#: As shells have it: 128 and the number of the signal, SIGINT or SIGTERM.
INTERRUPTED, TERMINATED = 130, 143

_WRONG_USAGE = (UsageError, SourceNotFoundError, QueryError, UnknownLabelError)


def exit_status(error: BaseException) -> int:
    """Exit status for an error: wrong usage, no dataset or a damaged one, or any other failure."""
    if isinstance(error, _WRONG_USAGE):
        return WRONG_USAGE
    return NO_DATASET if isinstance(error, DatasetError) else FAILED


def describe(error: BaseException) -> str:
    """What went wrong, for the user: an operating system's error gets its file named."""
    if isinstance(error, LundProbeError) or not isinstance(error, OSError):
        return str(error)
    return described(error, "")
