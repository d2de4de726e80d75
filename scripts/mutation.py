"""Mutation testing of the pure cores: do the tests of their room notice a small change?

Cosmic Ray's operators make the mutants: one changed operator, number, truth value or decorator
each. A mutant is never written to disk. It runs in a fork of this process, which has the heavy
libraries imported already; there it takes the place of its module, and pytest runs the module's
tests until the first one fails. Run it as `make mutation`, see docs/testing.md.

    python scripts/mutation.py                      every mutant of every module
    python scripts/mutation.py --sample 60 --seed 1 order shard
    python scripts/mutation.py --again              those alive the last time
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import resource
import signal
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from hypothesis import Phase, settings

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENT = ROOT / "scripts" / "mutation_equivalent.toml"
RESULTS = ROOT / "build" / "mutation"

#: Module -> the tests of its room that are about it and convert nothing.
CORES: dict[str, tuple[str, ...]] = {
    "lundprobe_zarr/patches/order.py": (
        "patches/test_order_rules.py",
        "patches/test_patch_order.py",
    ),
    "lundprobe_zarr/patches/sampling.py": (
        "patches/test_sampling_rules.py",
        "patches/test_patch_sampling.py",
    ),
    "lundprobe_zarr/cohort/splits.py": ("cohort/test_splits_rules.py", "cohort/test_splits.py"),
    "lundprobe_zarr/schema/precision.py": (
        "schema/test_precision_rules.py",
        "schema/test_precision.py",
    ),
    "conversion/arrays/values.py": ("conversion/test_values_rules.py",),
    "conversion/tables/measure.py": ("conversion/test_measure_rules.py",),
    "lundprobe_zarr/measures/dose_volume.py": ("measures/test_measures.py",),
    "lundprobe_zarr/measures/masks.py": (
        "measures/test_masks_rules.py",
        "measures/test_measures.py",
    ),
    "lundprobe_zarr/measures/coverage.py": ("measures/test_measures.py",),
    "lundprobe_zarr/stores/shard.py": ("stores/test_shard_rules.py", "stores/test_shard.py"),
    "lundprobe_zarr/geometry/affine.py": (
        "geometry/test_affine_rules.py",
        "geometry/test_geometry.py",
    ),
    "lundprobe_zarr/geometry/lattice.py": ("geometry/test_lattice_rules.py",),
    "lundprobe_zarr/geometry/common_grid.py": ("geometry/test_lattice_rules.py",),
}
#: What is imported before the forks: no module of ours, which a mutant could be part of.
PRELOADED = (
    "hypothesis.strategies",
    "hypothesis.extra.numpy",
    "scipy.ndimage",
    "zarr",
    "xarray",
    "nibabel",
    "pandas",
    "pyarrow.parquet",
    "duckdb",
    "pydantic",
    "cc3d",
)
#: Replacements tried: a bound moved by one, a comparison turned round, an operation by another.
BINARY = {
    "Add": ("Sub",),
    "Sub": ("Add",),
    "Mul": ("Div",),
    "Div": ("Mul",),
    "FloorDiv": ("Mul", "Div"),
    "Mod": ("FloorDiv",),
    "Pow": ("Mul",),
    "RShift": ("LShift",),
    "LShift": ("RShift",),
    "BitAnd": ("BitOr",),
    "BitOr": ("BitAnd",),
    "BitXor": ("BitAnd",),
}
COMPARISON = {
    "Lt": ("LtE", "GtE"),
    "LtE": ("Lt", "Gt"),
    "Gt": ("GtE", "LtE"),
    "GtE": ("Gt", "Lt"),
    "Eq": ("NotEq",),
    "NotEq": ("Eq",),
    "Is": ("IsNot",),
    "IsNot": ("Is",),
    "In": ("NotIn",),
    "NotIn": ("In",),
}
#: Tests that need fixtures of a conftest.py; importing those takes longer than most tests.
NEED_CONFTEST = ("cohort/",)
#: Up to the first failure, whose report nobody reads; that what is imported already cannot be
#: rewritten is no matter.
PYTEST = (
    *("-x", "-q", "--tb=no", "--no-header", "-p", "no:cacheprovider"),
    *("-p", "_hypothesis_pytestplugin", "--hypothesis-profile=mutation"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)
MEMORY_BYTES = 12 << 30


@dataclass(frozen=True)
class Mutant:
    """One change: the operator that makes it, the line number, that line before and after."""

    module: str
    operator: str
    line: int
    before: str
    after: str
    code: str

    @property
    def change(self) -> tuple[str, str, str]:
        """What tells the mutant from others although lines move."""
        return self.module, self.before, self.after


def operators() -> Iterator[str]:
    """Names of Cosmic Ray's operators that are used."""
    for name in operator_names():
        kind, *what = name.removeprefix("core/").split("_")
        if kind == "ReplaceBinaryOperator":
            wanted = what[1] in BINARY.get(what[0], ())
        elif kind == "ReplaceComparisonOperator":
            wanted = what[1] in COMPARISON.get(what[0], ())
        else:
            wanted = not get_operator(name).arguments()
        if wanted:
            yield name


def annotations(code: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Spans (line, column) of annotations and type aliases, which nothing evaluates."""
    spans = []
    for node in ast.walk(ast.parse(code)):
        found: list[ast.expr | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            found = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            found = [node.returns]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            found = [node.test]
        spans += [
            ((e.lineno, e.col_offset), (e.end_lineno or 0, e.end_col_offset or 0))
            for e in found
            if e is not None
        ]
    return spans


def mutants(module: str) -> list[Mutant]:
    """Every mutant of a module, those within annotations left out."""
    code = (ROOT / module).read_text(encoding="utf-8")
    lines, idle = code.splitlines(), annotations(code)
    made = []
    for name in operators():
        operator = get_operator(name)()
        nodes = ast_nodes(get_ast(code))
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        for number, (start, _) in enumerate(places):
            if any(a <= start < b for a, b in idle):
                continue
            changed = mutate_code(code, get_operator(name)(), number)
            if changed is None or changed == code:
                continue
            at, before, after = difference(lines, changed.splitlines())
            made.append(Mutant(module, name, at, before, after, changed))
    return made


def difference(old: list[str], new: list[str]) -> tuple[int, str, str]:
    """Number of the line that a change begins in, and the changed lines before and after."""
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    spans = [span for span in matcher.get_opcodes() if span[0] != "equal"]
    _, a, _, c, _ = spans[0]
    b, d = spans[-1][2], spans[-1][4]
    text = (" ".join(line.strip() for line in part).strip() for part in (old[a:b], new[c:d]))
    return a + 1, *text


def equivalents() -> dict[tuple[str, str, str], str]:
    """Changes that no test can notice, and why."""
    listed = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))["equivalent"]
    return {(e["module"], e["before"], e["after"]): e["why"] for e in listed}


class Instead(MetaPathFinder, Loader):
    """Loads one module from other source than its file's."""

    def __init__(self, name: str, path: Path, code: str) -> None:
        self._name, self._path, self._code = name, path, code

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        """Ours, if it is the one."""
        if fullname != self._name:
            return None
        return ModuleSpec(fullname, self, origin=str(self._path))

    def exec_module(self, module: ModuleType) -> None:
        """Run the other source."""
        exec(compile(self._code, str(self._path), "exec"), module.__dict__)


def import_name(module: str) -> str:
    """Under which name a file is imported."""
    name = module.removesuffix(".py").replace("/", ".")
    return name if name.startswith("lundprobe_zarr.") else f"lundprobe_zarr.{name}"


def start(module: str, code: str, tests: Sequence[str]) -> int:
    """Fork a process that runs the tests on a module of this source; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 2
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.setsid()
        sys.meta_path.insert(0, Instead(import_name(module), ROOT / module, code))
        alone = () if any(t.startswith(NEED_CONFTEST) for t in tests) else ("--noconftest",)
        status = int(pytest.main([*PYTEST, *alone, *(f"tests/{t}" for t in tests)]))
    finally:
        os._exit(status)


def run(todo: list[Mutant], tests: Sequence[str], limit: float, jobs: int) -> dict[int, str]:
    """Outcome of each mutant: `killed`, `alive` or `timeout` (which counts as killed)."""
    outcome: dict[int, str] = {}
    running: dict[int, tuple[int, float]] = {}
    waiting = list(enumerate(todo))[::-1]
    while waiting or running:
        while waiting and len(running) < jobs:
            number, mutant = waiting.pop()
            running[start(mutant.module, mutant.code, tests)] = number, time.monotonic()
        for pid, (number, begun) in list(running.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                outcome[number] = "alive" if status == 0 else "killed"
            elif time.monotonic() - begun > limit:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                outcome[number] = "timeout"
            else:
                continue
            del running[pid]
        time.sleep(0.01)
    return outcome


def baseline(module: str, tests: Sequence[str]) -> float:
    """Seconds that the tests take on the module as it is; exits if they fail."""
    begun = time.monotonic()
    code = (ROOT / module).read_text(encoding="utf-8")
    _, status = os.waitpid(start(module, code, tests), 0)
    if status:
        sys.exit(f"{module}: its tests fail without any change: pytest {' '.join(tests)}")
    return time.monotonic() - begun


def examine(module: str, options: argparse.Namespace) -> str:
    """Run a module's mutants; prints those alive and returns the module's row of the table."""
    tests, known = CORES[module], equivalents()
    every = mutants(module)
    todo = [m for m in every if m.change not in known]
    idle, population = len(every) - len(todo), len(todo)
    kept = RESULTS / (import_name(module) + ".json")
    if options.again:
        alive_before = {tuple(change) for change in json.loads(kept.read_text())}
        todo = [m for m in todo if m.change in alive_before]
    elif options.sample and options.sample < len(todo):
        todo = random.Random(options.seed).sample(todo, options.sample)
    seconds = baseline(module, tests)
    print(f"# {module}: {len(todo)} of {population} mutants, tests {seconds:.1f} s", flush=True)
    outcome = run(todo, tests, 20 + 5 * seconds, options.jobs)
    alive = [m for n, m in enumerate(todo) if outcome[n] == "alive"]
    for m in sorted(alive, key=lambda m: m.line):
        print(f"{m.line}: - {m.before}\n{' ' * len(str(m.line))}  + {m.after}", flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps([m.change for m in alive], indent=1))
    killed = len(todo) - len(alive)
    share = 100 * killed / len(todo) if todo else 100.0
    return f"| `{module}` | {population} | {idle} | {len(todo)} | {killed} | {share:.0f} % |"


def main() -> None:
    """Examine the modules that are named, or all; exits with 1 if one is below `--at-least`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("modules", nargs="*", help="parts of module paths; all without")
    parser.add_argument("--sample", type=int, default=0, help="mutants a module; 0 is every one")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--again", action="store_true", help="only those alive the last time")
    parser.add_argument("--at-least", type=float, default=0, help="percent of mutants killed")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    # The same examples each time, and none that fails is made small.
    settings.register_profile(
        "mutation", deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate)
    )
    for name in PRELOADED:
        importlib.import_module(name)
    wanted = [m for m in CORES if not options.modules or any(w in m for w in options.modules)]
    rows = [examine(module, options) for module in wanted]
    print("\n| module | mutants | equivalent | run | killed | share |\n|---|--:|--:|--:|--:|--:|")
    print("\n".join(rows))
    shares = [float(row.split("|")[-2].strip(" %")) for row in rows]
    sys.exit(int(any(share < options.at_least for share in shares)))


if __name__ == "__main__":
    main()
