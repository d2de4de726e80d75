"""Write the generated sections of README.md and docs/ from the package's own data.

A section stands between `<!-- generated: NAME -->` and `<!-- end -->`. With `--check` nothing is
written, and the exit status is 1 if a section is stale.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lundprobe_zarr.cli.info import type_name
from lundprobe_zarr.quality.paper import published_numbers, shown
from lundprobe_zarr.quality.rules import shipped_rules
from lundprobe_zarr.schema.layout import ARRAY_SPECS, GROUP_TITLES
from lundprobe_zarr.schema.tables import TABLES
from lundprobe_zarr.stores.metadata import FIDUCIAL_PATH
from lundprobe_zarr.vocabulary.files import KNOWN_FILES, SourceFile
from lundprobe_zarr.vocabulary.names import FOLDS, OBSERVERS, STEPS, STRUCTURE_TABLE, TARGETS

_ROOT = Path(__file__).resolve().parent.parent
_RESULTS = _ROOT / "benchmarks" / "results"
_SECTION = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def structures() -> str:
    """The nine structures, in canonical order."""
    rows = [
        (f"`{s.label}`", s.description, "some patients lack it" if s.optional else "")
        for s in STRUCTURE_TABLE
    ]
    return _table(("structure", "what it is", ""), rows)


def layout() -> str:
    """The groups of a store and their arrays."""
    rows = [
        (f"`/{group}`", title, ", ".join(f"`{array}`" for array in _arrays(group)))
        for group, title in GROUP_TITLES.items()
    ]
    return _table(("group", "what it holds", "arrays"), rows)


def _arrays(group: str) -> Iterator[str]:
    specs = [spec for spec in ARRAY_SPECS.values() if spec.group == group]
    yield from (f"{s.variable} ({', '.join(s.dims)})" for s in specs)
    yield from (f"{s.present} ({', '.join(s.label_dims)})" for s in specs if s.present)
    if FIDUCIAL_PATH.rpartition("/")[0] == group:
        yield f"{FIDUCIAL_PATH.rpartition('/')[2]} (fiducial, axis)"


#: What a label stands for in a file name, so that a hundred files make a few lines.
_PLACEHOLDERS = {"fold": ("<n>", "_fold_"), "step": ("<s>", "_step"), "observer": ("<obs>", "_")}


def files() -> str:
    """Every kind of source file and the slice of the array it fills."""
    rows = dict.fromkeys(_file_row(path, record) for path, record in KNOWN_FILES.items())
    legend = (
        "`<Structure>` is any of the nine, "
        f"`<Target>` is {' or '.join(f'`{t}`' for t in TARGETS)}; "
        f"n = {FOLDS[0]} … {FOLDS[-1]}, s = {' or '.join(map(str, STEPS))}, "
        f"obs = {', '.join(f'`{o}`' for o in OBSERVERS)}.\n"
    )
    return f"{_table(('file of a patient', 'array', 'slice'), rows)}\n{legend}"


def _file_row(path: str, record: SourceFile) -> tuple[str, str, str]:
    name, labels = path, []
    for dim, label in record.labels.items():
        token = str(label)
        if dim == "structure":
            token = "<Target>" if record.is_extended else "<Structure>"
            name = name.replace(f"mask_{label}", f"mask_{token}")
        elif dim in _PLACEHOLDERS:
            token, before = _PLACEHOLDERS[dim]
            name = name.replace(f"{before}{label}", f"{before}{token}")
        labels.append(f"{dim}={token}")
    place = f"`/{record.group}/{record.variable}`"
    return f"`{name}`", place, f"`{', '.join(labels)}`" if labels else ""


def tables() -> str:
    """Every column of every table."""
    parts = []
    for table in TABLES.values():
        rows = [
            (f"`{c.name}`", type_name(c.type), "yes" if c.nullable else "", c.unit, c.description)
            for c in table.columns
        ]
        head = ("column", "type", "null", "unit", "meaning")
        parts.append(f"## {table.name}\n\nA row is {table.row}.\n\n{_table(head, rows)}")
    return "\n".join(parts)


def rules() -> str:
    """The rules of quality control."""
    rows = [
        (f"`{rule.id}`", rule.severity, rule.title, rule.citation.replace("*", "\\*"))
        for rule in shipped_rules()
    ]
    return _table(("rule", "severity", "what holds", "where the limit is from"), rows)


def paper() -> str:
    """Every published number, with the SQL that asks a copy for it."""
    numbers = published_numbers()
    rows = [(n.what, shown(n.published), n.why) for n in numbers]
    parts = [_table(("number", "published", "why a copy may differ"), rows)]
    parts += [f"-- {n.what}\n{n.sql};\n" for n in numbers]
    return f"{parts[0]}\n```sql\n" + "\n".join(parts[1:]) + "```\n"


def _figures(name: str) -> dict[str, Any]:
    """The figures that `python -m benchmarks.NAME` left."""
    found: dict[str, Any] = json.loads((_RESULTS / f"{name}.json").read_text("utf-8"))["figures"]
    return found


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def figures() -> str:
    """What the format gives that NIfTI does not, each with the command that measured it."""
    latency = _latency()
    question, converted = _figures("question")["ways"], _figures("conversion")
    first = _figures("remote")["first_patch_untouched_patient"]
    flips, chosen = _figures("damage")["flips"], _figures("cohort")["467_patients"]
    peers = ("nibabel", "torchio", "monai")
    rows = [
        (
            f"a patch of 32×192×192 voxels, {what}",
            ", ".join(f"{_ms(latency[key][peer]['median_ms'])} ({peer})" for peer in peers),
            _ms(latency[key]["ours"]["median_ms"]),
            "`benchmarks.patches`",
        )
        for key, what in (("T2w", "T2w"), ("T2w_and_masks", "T2w and three masks"))
    ]
    rows += [
        (
            "a question of two patients' targets: bytes read",
            f"{question['nibabel']['megabytes_read']:.0f} MB",
            f"{question['lundprobe_zarr']['megabytes_read']:.0f} MB",
            "`benchmarks.question`",
        ),
        (
            "the first patch of a patient over HTTP",
            "whole files",
            f"{first['bytes'] / 1e6:.1f} MB in {first['requests']} requests",
            "`benchmarks.remote`",
        ),
        (
            "choosing among 467 patients by SQL",
            "no tables",
            _ms(chosen["where_structures"]["median_ms"]),
            "`benchmarks.cohort`",
        ),
        (
            f"{_figures('conversion')['patients']} patients on disk",
            f"{converted['standard']['source_mb']:,.0f} MB",
            f"{converted['standard']['store_mb']:,.0f} MB; `compact` "
            f"{converted['compact']['store_mb']:,.0f} MB",
            "`benchmarks.conversion`",
        ),
        (
            f"wrong values that nothing notices, of {flips['total']:,} flipped bits",
            "",
            str(sum(f["unnoticed"] for f in flips.values() if isinstance(f, dict))),
            "`benchmarks.damage`",
        ),
    ]
    return _table(("", "`.nii.gz`", "`lundprobe-zarr`", "measured by `python -m`"), rows)


def _latency() -> dict[str, Any]:
    """Milliseconds of a patch from the disk; results before 0.3 had no other place."""
    found = _figures("patches")
    latency: dict[str, Any] = found.get("local", found)["latency"]
    return latency


_READERS = {
    "ours": "Zarr v3, this package",
    "tensorstore": "the same arrays, tensorstore",
    "zarrs": "the same arrays, zarr-python with zarrs",
    "zarr_fused": "the same arrays, zarr-python's newest, fused pipeline",
    "zarr": "the same arrays, zarr-python's newest",
    "zarr_oldest": "the same arrays, the oldest zarr-python that serves",
    "xarray": "the same arrays, xarray without dask",
    "miao": "the same arrays, miao",
    "blosc2_nnunet": "Blosc2 chunks fitted to the patch, as nnU-Net makes them",
    "nibabel": "`.nii.gz`, nibabel",
    "torchio": "`.nii.gz`, TorchIO",
    "monai": "`.nii.gz`, MONAI",
    "webdataset": "patches cut before, uncompressed, WebDataset",
    "litdata": "patches cut before, uncompressed, LitData",
}


def formats() -> str:
    """The same voxels from other formats and readers."""
    latency = _latency()
    cut_before = {n: latency[f"precut_{n}"] for n in _READERS if f"precut_{n}" in latency}
    alone, both = latency["T2w"] | cut_before, latency["T2w_and_masks"]
    rows = [
        (what, *(_ms(found[name]["median_ms"]) if name in found else "" for found in (alone, both)))
        for name, what in _READERS.items()
        if name in alone
    ]
    return _table(("32×192×192 voxels, median", "T2w", "T2w and three masks"), rows)


def lines() -> str:
    """Patches of T2w and three masks over each line, beside the disk."""
    found = _figures("network")
    rows = []
    for line, figures in found.get("lines", {"near": found.get("near")}).items():
        for place, one in figures["T2w_and_masks"].items():
            part = f"{100 * one['part_of_line']:.0f} % of the line" if "part_of_line" in one else ""
            memory = f"{one['memory_mb']:.0f} MB" if "memory_mb" in one else ""
            times = [f"{one[k]:.2f}" for k in ("cpu_ms_to_local",) if k in one]
            rate = one.get("per_second_to_local")
            of_disk = part or (f"{rate:.2f} of the disk's" if rate else "")
            cells = (_ms(one["cpu_ms"]), *(times or [""]), f"{one['per_second']:.0f}")
            rows.append((line.replace("_", " "), place, *cells, of_disk, memory))
    head = ("line", "place", "processor", "to the disk", "patches a second", "which is", "memory")
    return _table(head, rows)


def sizes() -> str:
    """What patients take on disk, by precision."""
    converted = _figures("conversion")
    source = converted["standard"]["source_mb"]
    rows = [("`.nii.gz`, as published", f"{source:,.0f} MB", "1")]
    for precision in ("lossless", "standard", "compact"):
        found = converted[precision]
        rows.append((f"`{precision}`", f"{found['store_mb']:,.0f} MB", f"{found['ratio']:.2f}"))
    return _table((f"{converted['patients']} patients of full size", "on disk", "share"), rows)


SECTIONS: dict[str, Callable[[], str]] = {
    "structures": structures,
    "layout": layout,
    "files": files,
    "tables": tables,
    "rules": rules,
    "paper": paper,
    "figures": figures,
    "formats": formats,
    "lines": lines,
    "sizes": sizes,
}


def generate(text: str) -> str:
    """The text of a Markdown file with its generated sections as they should be."""
    return _SECTION.sub(lambda m: f"{m[1]}\n{SECTIONS[m['name']]()}\n{m[3]}", text)


def main(arguments: Sequence[str]) -> int:
    """Write, or check, README.md and everything in docs/."""
    stale = []
    for file in (_ROOT / "README.md", *sorted((_ROOT / "docs").rglob("*.md"))):
        text = file.read_text(encoding="utf-8")
        if (fresh := generate(text)) != text:
            stale.append(file.relative_to(_ROOT))
            if "--check" not in arguments:
                file.write_text(fresh, encoding="utf-8")
    if "--check" in arguments and stale:
        print(f"stale: {', '.join(map(str, stale))}; run `python scripts/generate_docs.py`")
        return 1
    print(f"generated sections: {', '.join(map(str, stale)) + ' written' if stale else 'fresh'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
