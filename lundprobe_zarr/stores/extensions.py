"""Methods that upper rooms add to trees, cohorts and patients. Their modules are imported on use.

A tree has the accessor `.lp`, a cohort has `to_xarray`, and a patient has `view`. Stores and
cohorts may not import the rooms of these methods. So the package names the modules, and they are
imported when a tree is opened or the method is called.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

_modules: list[str] = []
_functions: dict[str, str] = {}


def extend_trees(module: str) -> None:
    """Name a module that registers an accessor with xarray; it is imported with the first tree."""
    if module not in _modules:
        _modules.append(module)


def load_extensions() -> None:
    """Import the modules named by `extend_trees`. Every function that opens a tree calls this."""
    for module in _modules:
        import_module(module)


def extend_cohorts(name: str, module: str) -> None:
    """Name the module whose function `name` is that method of cohorts or patients."""
    _functions[name] = module


def cohort_function(name: str) -> Callable[..., Any]:
    """Import and return a function named by `extend_cohorts`; it takes the cohort or patient."""
    function: Callable[..., Any] = getattr(import_module(_functions[name]), name)
    return function
