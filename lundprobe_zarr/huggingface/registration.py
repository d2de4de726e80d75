"""Registration with `datasets` and torch, once they are imported.

Three entries are made, each by the most public way there is:

- the feature of voxels, by `datasets.features.features.register_feature`;
- the builder "lundprobe", for `load_dataset("lundprobe", …)`, in the dict
  `packaged_modules._PACKAGED_DATASETS_MODULES`, as there is no function for it;
- in torch, the documented table `default_collate_fn_map`.

The entries are made when those modules have run, by a finder in `sys.meta_path`, so that
importing this package imports neither. With `LUNDPROBE_NO_IMPORT_HOOK=1` in the environment there
is no finder; `register_with_datasets` then makes the entries when it is called. If `datasets` has
changed, importing it still works, and `problems` says what is missing;
`lundprobe_zarr.load_dataset` needs no entry. One more non-public interface is used by
`examples.SeekableExamples`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from lundprobe_zarr.huggingface.batches import Handle, refuse
from lundprobe_zarr.huggingface.names import BUILDER, FEATURE
from lundprobe_zarr.vocabulary.version import package_version

BUILDER_MODULE = "lundprobe_zarr.huggingface.builder"

#: Variable of the environment that keeps `import lundprobe_zarr` from adding a finder.
NO_HOOK = "LUNDPROBE_NO_IMPORT_HOOK"

#: Names that could not be registered, with the reason.
problems: dict[str, str] = {}


def _register_builder(module: ModuleType) -> None:
    table = getattr(module, "_PACKAGED_DATASETS_MODULES", None)
    if not isinstance(table, dict) or not all(_is_entry(entry) for entry in table.values()):
        problems[BUILDER] = f"{module.__name__} has no table of builders as it used to"
        return
    # The second item is part of the cache's path: another version may make other rows.
    table[BUILDER] = (BUILDER_MODULE, f"lundprobe-zarr-{package_version()}")


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and all(isinstance(e, str) for e in entry)


def _register_feature(module: ModuleType) -> None:
    if FEATURE in getattr(module, "_FEATURE_TYPES", ()):
        return
    register = getattr(module, "register_feature", None)
    if not callable(register):
        problems[FEATURE] = f"{module.__name__} has no function register_feature as it used to"
        return
    from lundprobe_zarr.huggingface.feature import Voxels  # needs what datasets needs anyway

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*experimental", UserWarning)
        register(Voxels, FEATURE)


def ensure_feature() -> None:
    """Register the feature if it is not registered yet.

    The builder calls this, as datasets before 5.1 looks up features by name.
    """
    from datasets.features import features

    _register_feature(features)


def _register_collate(module: ModuleType) -> None:
    table = getattr(module, "default_collate_fn_map", None)
    if isinstance(table, dict):
        table[Handle] = refuse


_ACTIONS: dict[str, Callable[[ModuleType], None]] = {
    "torch.utils.data._utils.collate": _register_collate,
    "datasets.packaged_modules": _register_builder,
    "datasets.features.features": _register_feature,
}


class _WhenImported(MetaPathFinder):
    """Finder of the modules of `_ACTIONS`, which acts once they have run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec with an extended loader; None for all other modules."""
        if name not in _ACTIONS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            _extend(spec.loader, _ACTIONS[name])
        return spec


def _extend(loader: Any, action: Callable[[ModuleType], None]) -> None:
    execute = loader.exec_module

    def execute_and_act(module: ModuleType) -> None:
        execute(module)
        action(module)

    loader.exec_module = execute_and_act


def register_on_import() -> None:
    """Make the entries now where a library is imported already, else once it is.

    Importing `lundprobe_zarr` calls this; a second call does nothing, nor does any if the
    environment has `LUNDPROBE_NO_IMPORT_HOOK=1`.
    """
    switched_off = os.environ.get(NO_HOOK, "") not in ("", "0")
    if switched_off or any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        return
    for name, action in _ACTIONS.items():
        if name in sys.modules:
            action(sys.modules[name])
    sys.meta_path.insert(0, _WhenImported())


def register_with_datasets() -> None:
    """Make `datasets.load_dataset("lundprobe", …)` known now; import `datasets` for it.

    Only needed where `LUNDPROBE_NO_IMPORT_HOOK=1` keeps `import lundprobe_zarr` from doing so. With
    torch imported before, its collate function is made to refuse lazy voxels, too.

    Raises
    ------
    ImportError
        If `datasets` is not installed.
    """
    for name, action in _ACTIONS.items():
        if name.startswith("datasets."):
            action(import_module(name))
        elif name in sys.modules:
            action(sys.modules[name])
