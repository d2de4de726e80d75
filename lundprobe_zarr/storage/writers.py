"""Names of writing processes, by which others see whether these still run."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path


def writer() -> str:
    """Return a name for what this process writes: host, process and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def named(name: str) -> tuple[str, str]:
    """Return host and process of a name made by `writer`."""
    host, _, process = name.rpartition("-")[0].rpartition("-")
    return host, process


def is_alive(name: str) -> bool | None:
    """Return whether the process of a name is alive; None if that is not known here."""
    host, process = named(name)
    if host != socket.gethostname() or not process.isdigit():
        return None
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(int(process))


def _is_zombie(process: int) -> bool:
    """Return whether a process has ended without being waited for; in a container it may stay."""
    try:
        state = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2]
    except OSError:  # not Linux, or it has just ended
        return False
    return state.split()[:1] == [b"Z"]
