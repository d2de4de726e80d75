"""All that is used of others without being promised by them, and how it is put in place.

Two tables of `datasets`: `packaged_modules._PACKAGED_DATASETS_MODULES`, where
`load_dataset("lundprobe")` looks for a builder, and `features.features._FEATURE_TYPES`, where
stored features are looked up by name. Both are plain dicts that their modules define; an entry is
made as soon as the module has run, whichever of the two libraries is imported first. Where a table
is not what it was, nothing is done, `import datasets` works as ever, and `problems` says so to
whoever asks for our data:
`lundprobe_zarr.load_dataset` works without either. The third is `examples.SeekableExamples`. Of
torch it is one table, `default_collate_fn_map`, as its documentation shows how to extend it.
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

#: What could not be registered, and why; empty if all is well.
problems: dict[str, str] = {}


def _register_builder(module: ModuleType) -> None:
    table = getattr(module, "_PACKAGED_DATASETS_MODULES", None)
    if not isinstance(table, dict) or not all(_is_entry(entry) for entry in table.values()):
        problems[BUILDER] = f"{module.__name__} has no table of builders as it used to"
        return
    # The second is part of the cache's path: another version of ours may make other rows.
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
    """Register the feature the way that is promised, but experimental, if it is not known yet.

    datasets before 5.1 looks up the features of each dataset by their names. Called by the builder,
    so that it works where the table of features was not what it used to be when imported.
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
    """Finds the modules of `_ACTIONS` as ever, and acts once they have run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, its loader told to act afterwards; None for all other modules."""
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
    """Make builder and feature known to `datasets`: now if it is imported, else when it is.

    Called when `lundprobe_zarr` is imported; the second time it does nothing.
    """
    if any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        return
    for name, action in _ACTIONS.items():
        if name in sys.modules:
            action(sys.modules[name])
    sys.meta_path.insert(0, _WhenImported())
