"""What upper floors add to opened trees: modules to import when the first tree is opened.

A tree comes with its accessor `.lp`, which is a view, and a store may not know of views. So the
package, which knows both, names the module; opening imports it, and nobody else has to wait.
"""

from __future__ import annotations

from importlib import import_module

_modules: list[str] = []


def extend_trees(module: str) -> None:
    """Have `module` imported, for what it registers with xarray, before a tree is handed out."""
    if module not in _modules:
        _modules.append(module)


def load_extensions() -> None:
    """Import what was named; whoever opens a tree calls this. Costs nothing the second time."""
    for module in _modules:
        import_module(module)
