"""The package as installed: what a wheel holds, what importing it pulls in, who imports whom."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lundprobe_zarr

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "datasets", "duckdb", "distributed")


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def sources() -> set[str]:
    """Files of the tree that belong in a wheel, by their path in it."""
    library = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "lundprobe_zarr").rglob("*")
        if p.suffix in (".py", ".json", ".css", ".js", ".html", ".svg") or p.name == "py.typed"
    }
    converter = {
        f"lundprobe_zarr/{p.relative_to(ROOT).as_posix()}"
        for p in (ROOT / "conversion").rglob("*.py")
    }
    return library | converter


#: What reads files of the package that are no modules.
_DATA = """
import lundprobe_zarr
from lundprobe_zarr.measures.constraints import shipped_sets
from lundprobe_zarr.quality.rules import rules_with
from lundprobe_zarr.service.page import page
print(lundprobe_zarr.__file__, "index.html" in page().files)
print(*shipped_sets(), bool(rules_with(None)))
"""


def test_wheel_holds_the_tree_and_works_without_it(tmp_path):
    built = run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "d"),
        str(copy_of_tree(tmp_path / "tree")), cwd=tmp_path,
    )  # fmt: skip
    (wheel,) = (tmp_path / "d").glob("*.whl")
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert names == sources()
    assert "would be ignored" not in built
    place = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(place)
    others = [p for p in sys.path if p.endswith("-packages")]  # -S: not this checkout's link
    code = f"import sys; sys.path[:0] = {[str(place), *others]!r}\n{_DATA}"
    shown = run(sys.executable, "-I", "-S", "-c", code, cwd=tmp_path).split()
    assert shown == [str(place / "lundprobe_zarr" / "__init__.py"), "True", "icru", "True"]


def copy_of_tree(folder: Path) -> Path:
    """The files that git knows of, or would: building leaves its traces there, not here."""
    listed = run("git", "ls-files", "-co", "--exclude-standard").splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.mark.parametrize("module", ["lundprobe_zarr", "lundprobe_zarr.cli.app"])
def test_importing_pulls_in_nothing_heavy(module, tmp_path):
    heavy = (*HEAVY, "numpy", "pyarrow", "zarr", "xarray", "dask", "rich.console")
    code = f"import sys, {module}; print([m for m in {heavy!r} if m in sys.modules])"
    assert run(sys.executable, "-c", code) == "[]\n"


def test_public_names_import_lazily():
    code = (
        "import sys, lundprobe_zarr as lp; lp.write_phantom; "
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert run(sys.executable, "-c", code) == "[]\n"


def test_the_converter_has_one_name():
    code = (
        "import sys, lundprobe_zarr.conversion.run.run; "
        "print([m for m in sys.modules if m.partition('.')[0] == 'conversion'])"
    )
    assert run(sys.executable, "-c", code) == "[]\n"


def test_the_public_names_are_all_that_dir_lists():
    code = "import lundprobe_zarr as lp; print([n for n in dir(lp) if not n.startswith('__')])"
    public = ast.literal_eval(run(sys.executable, "-c", code))
    assert public == sorted(lundprobe_zarr.__all__)
    assert {"BalancedSampling", "GridSampling", "to_monai", "to_torchio", "Sample"} <= set(public)
    needs_more = {"monai_dataset", "to_monai", "to_torchio", "torch_dataset", "torchio_subjects"}
    for name in set(public) - needs_more:
        assert getattr(lundprobe_zarr, name) is not None


def test_a_type_checker_finds_the_types_of_an_editable_install(tmp_path):
    """In an environment that holds nothing but the link that `make demo` makes."""
    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv"))
    python = tmp_path / "venv" / "bin" / "python"
    run(str(python), str(ROOT / "scripts" / "link_types.py"), cwd=tmp_path)
    code = (
        "import lundprobe_zarr as lp; reveal_type(lp.open_cohort); "
        "reveal_type(next(iter(lp.PatchStream(lp.open_cohort(''), (1, 1, 1))))['seed'])"
    )
    shown = run(
        sys.executable, "-m", "mypy", "--python-executable", str(python),
        "--cache-dir", str(tmp_path / "cache"), "-c", code, cwd=tmp_path,
    )  # fmt: skip
    assert "-> lundprobe_zarr.cohort.core.Cohort" in shown
    assert 'Revealed type is "int"' in shown.replace("builtins.int", "int")


def test_import_contracts_hold():
    tree = run(sys.executable, "scripts/one_tree.py").strip()
    config = str(ROOT / "pyproject.toml")
    command = (
        "from importlinter.cli import lint_imports; "
        f"raise SystemExit(lint_imports({config!r}, no_cache=True))"
    )
    assert "0 broken" in run(sys.executable, "-c", command, cwd=Path(tree))


def test_module_runs_as_the_command_does():
    assert run(sys.executable, "-m", "lundprobe_zarr", "--version").startswith("lundprobe-zarr ")
