"""File systems in forked processes: those of the parent are kept there, and never used.

To let go of one would close its connections: they would be taken out of the parent's event loop,
whose epoll the child shares, and the parent would wait for its next answer until a timeout of
minutes. So a child keeps what it was born with, and opens its own.
"""

from __future__ import annotations

import os
from typing import Any

from fsspec import AbstractFileSystem

_inherited: list[Any] = []


def keep(filesystem: Any) -> None:
    """Have a file system of the parent's outlive the forked process."""
    _inherited.append(filesystem)


def _keep_cached() -> None:
    """Keep what fsspec's caches hold, which it empties when they are next used in a child."""
    kinds = [AbstractFileSystem]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
        _inherited.extend(getattr(kind, "_cache", {}).values())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_cached)
