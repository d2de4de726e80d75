"""The one place where the package registers calls for a fork.

Registered are: the file systems of the parent, below; connections of libcurl (`storage.transport`);
decoder threads (`storage.decode_pool`); the lock of reading threads (`stream.forks`); the SQL
worker (`sql.worker`); services of notebooks (`service.notebook`). Objects that hold their own locks
or connections compare process ids instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from fsspec import AbstractFileSystem


def on_fork(
    before: Callable[[], object] | None = None,
    in_parent: Callable[[], object] | None = None,
    in_child: Callable[[], object] | None = None,
) -> None:
    """Register calls for every fork of this process; does nothing on systems without fork.

    Calls before a fork run last registered first; those after it, first registered first.
    """
    if hasattr(os, "register_at_fork"):
        calls = {"before": before, "after_in_parent": in_parent, "after_in_child": in_child}
        os.register_at_fork(**{name: call for name, call in calls.items() if call is not None})


# A child must never release a file system of its parent. That would close connections and remove
# them from the parent's event loop, whose epoll the child shares; the parent would then wait for
# its next answer until a timeout of minutes. So a child keeps them unused, and opens its own.
_inherited: list[Any] = []
_held: list[Any] = []


def keep(connected: Any) -> None:
    """Keep a file system or connections of the parent for the life of the forked process."""
    _inherited.append(connected)


def _hold_cached() -> None:
    """Hold the cached file systems before a fork: fsspec empties its caches in the child."""
    kinds = [AbstractFileSystem]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
        _held.extend(getattr(kind, "_cache", {}).values())


# Not cleared in the child, which has its own copy of the list.
on_fork(before=_hold_cached, in_parent=_held.clear)
