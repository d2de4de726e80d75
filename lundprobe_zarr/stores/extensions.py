"""What upper floors add to things of lower ones: modules to import when that is first wanted.

A tree comes with its accessor `.lp`, a cohort with `to_xarray`, and a patient with `view`; all are
views, and stores and cohorts may not know of views. So the package, which knows all, names the
modules; they are imported when a tree is opened or the method called, and nobody else has to wait.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

_modules: list[str] = []
_functions: dict[str, str] = {}


def extend_trees(module: str) -> None:
    """Have `module` imported, for what it registers with xarray, before a tree is handed out."""
    if module not in _modules:
        _modules.append(module)


def load_extensions() -> None:
    """Import what was named; whoever opens a tree calls this. Costs nothing the second time."""
    for module in _modules:
        import_module(module)


def extend_cohorts(name: str, module: str) -> None:
    """Have the function `name` of `module` serve as that method of cohorts, or of patients too."""
    _functions[name] = module


def cohort_function(name: str) -> Callable[..., Any]:
    """The function named by `extend_cohorts`, imported now. The cohort or patient comes first."""
    function: Callable[..., Any] = getattr(import_module(_functions[name]), name)
    return function
