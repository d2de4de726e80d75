"""`load_dataset("lundprobe")` is known however the two libraries meet, and costs nothing before."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import datasets
import pytest
from datasets.features.features import _FEATURE_TYPES
from datasets.load import _PACKAGED_DATASETS_MODULES

import lundprobe_zarr as lp
from lundprobe_zarr.errors import MissingPackageError
from lundprobe_zarr.huggingface import loading
from lundprobe_zarr.huggingface import registration as private

ROOT = Path(__file__).parents[2]
ORDERS = {
    "ours first": "import lundprobe_zarr, datasets",
    "theirs first": "import datasets, lundprobe_zarr",
    "from load": "import lundprobe_zarr; from datasets.load import load_dataset; import datasets",
    "features alone": "import lundprobe_zarr; import datasets.features; import datasets",
}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("order", ORDERS)
def test_either_may_be_imported_first(order, manifest):
    code = (
        f"{ORDERS[order]}\n"
        f"rows = datasets.load_dataset('lundprobe', 'volumes', data_files={manifest!r},\n"
        "    split='extended', streaming=True)\n"
        "print(next(iter(rows))['image'].shape[0])"
    )
    assert run(code) == "2\n"


def test_importing_us_does_not_import_datasets_nor_what_the_feature_needs():
    code = (
        "import sys, lundprobe_zarr\n"
        "print([m for m in ('datasets', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    assert run(code) == "[]\n"


def test_other_imports_and_their_loaders_are_left_alone():
    code = (
        "import lundprobe_zarr, datasets, inspect, datasets.packaged_modules as p\n"
        "import importlib; importlib.reload(p)\n"
        "assert 'lundprobe' in p._PACKAGED_DATASETS_MODULES\n"
        "assert inspect.getsource(p).startswith('import inspect')\n"
        "print(type(p.__loader__).__name__)"
    )
    assert run(code) == "SourceFileLoader\n"


def test_builder_and_feature_are_in_the_tables_that_datasets_looks_into():
    assert private.problems == {}
    assert _PACKAGED_DATASETS_MODULES["lundprobe"][0] == private.BUILDER_MODULE
    assert _FEATURE_TYPES["LundProbeVoxels"].__name__ == "Voxels"
    before = list(sys.meta_path)
    private.register_on_import()
    private.register_with_datasets()
    assert sys.meta_path == before


def test_the_hook_can_be_switched_off_and_the_entries_made_by_a_call():
    code = (
        "import os, sys; os.environ['LUNDPROBE_NO_IMPORT_HOOK'] = '1'\n"
        "before = list(sys.meta_path)\n"
        "import lundprobe_zarr as lp\n"
        "assert sys.meta_path == before\n"
        "import datasets.packaged_modules as p, datasets.features.features as f\n"
        "tables = p._PACKAGED_DATASETS_MODULES, f._FEATURE_TYPES\n"
        "print('lundprobe' in tables[0], 'LundProbeVoxels' in tables[1])\n"
        "lp.register_with_datasets()\n"
        "print('lundprobe' in tables[0], 'LundProbeVoxels' in tables[1])\n"
        "assert not [f for f in sys.meta_path if 'lundprobe' in type(f).__module__]"
    )
    assert run(code) == "False False\nTrue True\n"


@pytest.mark.parametrize("table", [None, [], {"json": "a module"}, {"json": ("a", "b", "c")}])
def test_an_unknown_table_of_builders_is_left_alone(table, monkeypatch):
    monkeypatch.setattr(private, "problems", {})
    module = ModuleType("datasets.packaged_modules")
    module._PACKAGED_DATASETS_MODULES = table
    private._register_builder(module)
    assert "packaged_modules" in private.problems["lundprobe"]
    assert table == module._PACKAGED_DATASETS_MODULES


def test_features_without_their_function_are_left_alone(monkeypatch):
    monkeypatch.setattr(private, "problems", {})
    private._register_feature(ModuleType("datasets.features.features"))
    assert "register_feature" in private.problems["LundProbeVoxels"]


def test_the_feature_is_registered_by_the_public_function():
    module = ModuleType("datasets.features.features")
    asked = []
    module.register_feature = lambda feature, name: asked.append((feature.__name__, name))
    private._register_feature(module)
    assert asked == [("Voxels", "LundProbeVoxels")]


def test_our_own_function_needs_no_registration(dataset, monkeypatch):
    monkeypatch.delitem(_PACKAGED_DATASETS_MODULES, "lundprobe")
    monkeypatch.delitem(_FEATURE_TYPES, "LundProbeVoxels")
    row = next(iter(lp.load_dataset(dataset, "volumes", split="base", streaming=True)))
    assert row["mask"][0].any()
    assert _FEATURE_TYPES["LundProbeVoxels"].__name__ == "Voxels"


def test_without_datasets_the_error_says_what_to_install(dataset, monkeypatch):
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"pip install 'datasets>=5.0'") as raised:
        lp.load_dataset(dataset)
    assert isinstance(raised.value, ImportError)


@pytest.mark.parametrize("old", ["4.8.5", "2.21.0", "3.0.0.dev0"])
def test_a_datasets_too_old_is_named(dataset, monkeypatch, old):
    monkeypatch.setattr(loading, "version", lambda name: old)
    with pytest.raises(MissingPackageError, match=rf"datasets {old} is installed; expected 5.0"):
        lp.load_dataset(dataset)


def test_the_oldest_version_claimed_is_the_one_checked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = [r for r in project["dependencies"] if r.startswith("datasets")]
    assert wanted == "datasets>=" + ".".join(map(str, loading.OLDEST))
    assert tuple(map(int, datasets.__version__.split(".")[:2])) >= loading.OLDEST
