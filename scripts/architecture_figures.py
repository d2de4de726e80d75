"""Print the figures of docs/architecture.md: rooms, import chains, circles, and a voxel's way.

A module counts for a voxel's way if one of its functions runs between the call that hands the
voxel over and its end; a function counts as a hand-over if it is called from another module.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("lundprobe_zarr", "conversion")
sys.path.insert(0, str(ROOT))  # before the environment's link, whose paths are not below ROOT


def modules() -> dict[str, Path]:
    """Every module by its name as installed."""
    found = {}
    for place in PLACES:
        for path in (ROOT / place).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if place == "lundprobe_zarr" else ("lundprobe_zarr", *parts)
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


def room_of(name: str) -> str:
    """The room of a module: the package it lies in."""
    parts = name.split(".")
    if len(parts) > 2 and parts[1] == "conversion":
        return ".".join(parts[1:3]) if len(parts) > 3 else "conversion"
    return parts[1] if len(parts) > 2 else "(top)"


def rooms() -> dict[str, tuple[int, int]]:
    """Files and lines of each room, without packages' own `__init__`."""
    files: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for name, path in modules().items():
        is_package = path.name == "__init__.py"
        room = room_of(f"{name}.__init__" if is_package else name)
        files[room] += not is_package
        lines[room] += len(path.read_text(encoding="utf-8").splitlines())
    return {room: (files[room], lines[room]) for room in sorted(lines)}


def imports() -> dict[str, set[str]]:
    """Modules that each module imports, those for the type checker alone too."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, base] if base else up)
            if base.partition(".")[0] == "conversion":
                base = f"lundprobe_zarr.{base}"
            for alias in node.names:
                for wanted in (f"{base}.{alias.name}", base):
                    if wanted in known and wanted != name:
                        graph[name].add(wanted)
                        break
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected groups of modules (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for following in graph[node]:
            if following not in index:
                visit(following)
                low[node] = min(low[node], low[following])
            elif following in stack:
                low[node] = min(low[node], index[following])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """The longest chain of imports that enters no circle twice."""
    of = {name: group[0] for group in circles(graph) for name in group}
    merged: dict[str, set[str]] = {}
    for name, wanted in graph.items():
        merged.setdefault(of.get(name, name), set()).update(of.get(w, w) for w in wanted)

    @cache
    def chain(name: str) -> tuple[str, ...]:
        ways = [chain(w) for w in merged[name] if w != name]
        return (name, *max(ways, key=len, default=()))

    return list(max((chain(name) for name in merged), key=len))


def traced(action: Callable[[], Any]) -> tuple[set[str], set[tuple[str, str]]]:
    """Modules of this package that run during `action`, and functions called from another one."""
    stops: set[str] = set()
    handed: set[tuple[str, str]] = set()

    def short(frame: Any) -> str:
        path = Path(frame.f_code.co_filename)
        if ".venv" in path.parts or not path.is_relative_to(ROOT):
            return ""
        relative = path.relative_to(ROOT)
        return relative.as_posix() if relative.parts[0] in PLACES else ""

    def watch(frame: Any, event: str, _: Any) -> None:
        if event != "call" or not (here := short(frame)):
            return
        stops.add(here)
        before = frame.f_back
        while before is not None and not short(before):
            before = before.f_back
        if before is None or short(before) != here:
            name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
            handed.add((here, name))

    import threading

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        action()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return stops, handed


def voxel_ways() -> dict[str, tuple[set[str], set[tuple[str, str]]]]:
    """The way of one voxel in, by conversion, and out: by a patch, and by xarray."""
    import lundprobe_zarr as lp

    try:
        from lundprobe_zarr.conversion.arrays.patient import convert_patient
        from lundprobe_zarr.conversion.source.inventory import take_inventory
        from lundprobe_zarr.conversion.tables.publish import finalise
    except ImportError:  # the tree before rooms
        from conversion.inventory import take_inventory
        from conversion.patient import convert_patient
        from conversion.publish import finalise

    ways = {}
    with tempfile.TemporaryDirectory() as folder:
        source, dataset = Path(folder, "source"), Path(folder, "dataset")
        lp.write_phantom(source, patients=1, extended=0)
        (patient,) = take_inventory(source).patients
        ways["in: convert a patient"] = traced(
            lambda: convert_patient(patient, dataset, "standard")
        )
        finalise(dataset)
        cohort = lp.open_cohort(dataset)
        stream = lp.PatchStream(cohort, patch_size=(4, 16, 16), threads=0, seed=1)
        ways["out: a patch"] = traced(lambda: next(iter(stream)))
        ways["out: xarray"] = traced(lambda: cohort[0].mri.image[0, 2:4, 2:4, 2:4].compute())
    return ways


def main() -> None:
    """Print all figures."""
    found = rooms()
    for room, (files, lines) in found.items():
        print(f"{room:24} {files:3} files {lines:6} lines")
    print(
        f"all: {sum(f for f, _ in found.values())} files, {sum(n for _, n in found.values())} lines"
    )
    graph = imports()
    ties = circles(graph)
    print(f"circles of modules: {len(ties)}", *(" ".join(c) for c in ties), sep="\n  ")
    chain = longest_chain(graph)
    print(f"longest import chain: {len(chain)}: {' > '.join(chain)}")
    for way, (stops, handed) in voxel_ways().items():
        print(f"{way}: {len(stops)} modules, {len(handed)} functions called from another module")
        print("   ", ", ".join(sorted(stops)))


if __name__ == "__main__":
    main()
