"""Names for what a process writes, that tell the living from the dead."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path


def writer() -> str:
    """A name for what this process writes: host, process and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def named(name: str) -> tuple[str, str]:
    """Host and process of who `writer` named."""
    host, _, process = name.rpartition("-")[0].rpartition("-")
    return host, process


def is_alive(name: str) -> bool | None:
    """Whether the process is alive that `writer` named; None if that cannot be told here."""
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
    """Whether a process has ended, and nobody has asked how: in a container it may stay so."""
    try:
        state = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2]
    except OSError:  # not Linux, or it is gone this instant
        return False
    return state.split()[:1] == [b"Z"]
