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
_held: list[Any] = []


def keep(filesystem: Any) -> None:
    """Have a file system of the parent's outlive the forked process."""
    _inherited.append(filesystem)


def _hold_cached() -> None:
    """Before a fork: hold what fsspec's caches do, which it empties first thing in the child."""
    kinds = [AbstractFileSystem]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
        _held.extend(getattr(kind, "_cache", {}).values())


if hasattr(os, "register_at_fork"):
    # The child never lets go of what is held: it has its own copy of the list.
    os.register_at_fork(before=_hold_cached, after_in_parent=_held.clear)
