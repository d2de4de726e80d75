"""Registration with `datasets` and torch, through interfaces that are not public.

Two tables of `datasets` get an entry: `packaged_modules._PACKAGED_DATASETS_MODULES`, where
`load_dataset("lundprobe")` looks for a builder, and `features.features._FEATURE_TYPES`, where
stored features are looked up by name. Both are plain dicts. The entry is made once the module has
run, whichever library is imported first. If a table has changed, `import datasets` still works,
and `problems` records it; `lundprobe_zarr.load_dataset` needs neither table. A third non-public
interface is used by `examples.SeekableExamples`. In torch the documented table
`default_collate_fn_map` gets an entry.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from lundprobe_zarr.huggingface.batches import Handle, refuse
from lundprobe_zarr.huggingface.names import BUILDER, FEATURE
from lundprobe_zarr.vocabulary.version import package_version

BUILDER_MODULE = "lundprobe_zarr.huggingface.builder"

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
    table = getattr(module, "_FEATURE_TYPES", None)
    if not isinstance(table, dict) or not all(isinstance(t, type) for t in table.values()):
        problems[FEATURE] = f"{module.__name__} has no table of features as it used to"
        return
    from lundprobe_zarr.huggingface.feature import Voxels  # needs what datasets needs anyway

    table[FEATURE] = Voxels


def ensure_feature() -> None:
    """Register the feature by the public, experimental function if it is not registered yet.

    The builder calls this, as datasets before 5.1 looks up features by name, and the table of
    features may have changed.
    """
    from datasets.features import features

    if FEATURE in getattr(features, "_FEATURE_TYPES", ()):
        return
    from lundprobe_zarr.huggingface.feature import Voxels

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*experimental", UserWarning)
        features.register_feature(Voxels, FEATURE)


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


def register_with_datasets() -> None:
    """Register builder and feature with `datasets`: now if it is imported, else on import.

    Importing `lundprobe_zarr` calls this; a second call does nothing.
    """
    if any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        return
    for name, action in _ACTIONS.items():
        if name in sys.modules:
            action(sys.modules[name])
    sys.meta_path.insert(0, _WhenImported())
