"""Check the tables of comparisons against the stores and other tables; reads no voxel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from math import isclose
from typing import Any

from lundprobe_zarr.dataset.compared import Segmentation, comparable, edits, pairs
from lundprobe_zarr.dataset.rows import Row
from lundprobe_zarr.stores.metadata import StoreMetadata

_REMEDY = "run measure --overwrite"
_SIDE = Segmentation._fields
#: Columns of the tables that are compared, besides `patient_id`.
COMPARED_COLUMNS = {
    "agreement": (
        "structure", "pair", *(f"{side}_{name}" for side in "ab" for name in _SIDE), "a_cc", "b_cc",
    ),
    "uncertainty": ("structure", "step", "observer", "estimate", "bin_low", "inside_voxels"),
}  # fmt: skip
Key = tuple[Any, ...]


def compared_findings(
    store: StoreMetadata, rows: Mapping[str, list[Row] | None], structures: list[Row]
) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a patient's rows of comparisons, by table.

    `rows` are those of the tables, None for one that the dataset lacks; `structures` are the
    patient's rows of that table.
    """
    volumes = {_segmented(row): row for row in structures if row["grid"] == "mri"}
    if (agreement := rows.get("agreement")) is not None:
        expected: list[Key] = [
            (structure, kind, *a, *b)
            for structure, there in comparable(store).items()
            for kind, a, b in pairs(there)
        ]
        found: list[Key] = [
            (r["structure"], r["pair"], *_side(r, "a"), *_side(r, "b")) for r in agreement
        ]
        yield from (("agreement", f) for f in _rows(expected, found))
        yield from (("agreement", f) for f in _volumes(agreement, volumes))
    if (uncertainty := rows.get("uncertainty")) is not None:
        rows_of: list[Key] = [
            (structure, o.step, o.observer, estimate, low)
            for structure in comparable(store)
            for o, estimate, low in edits(store, structure)
        ]
        names = COMPARED_COLUMNS["uncertainty"][:-1]
        yield from (
            ("uncertainty", f)
            for f in _rows(rows_of, [tuple(r[n] for n in names) for r in uncertainty])
        )
        yield from (("uncertainty", f) for f in _inside(uncertainty, volumes))


def _side(row: Row, side: str) -> Segmentation:
    return Segmentation(**{name: row[f"{side}_{name}"] for name in _SIDE})


def _segmented(row: Row) -> tuple[str, Segmentation]:
    return row["structure"], Segmentation(**{name: row[name] for name in _SIDE})


def _rows(expected: Iterable[Key], found: Iterable[Key]) -> Iterator[str]:
    wanted, there = Counter(expected), Counter(found)
    lacking, strange = wanted - there, there - wanted
    if lacking:
        example = " ".join(str(v) for v in next(iter(lacking)) if v is not None)
        yield f"lacks {lacking.total()} rows, such as {example}; {_REMEDY}"
    if strange:
        example = " ".join(str(v) for v in next(iter(strange)) if v is not None)
        yield f"{strange.total()} rows too many, such as {example}; {_REMEDY}"


def _volumes(rows: Iterable[Row], volumes: Mapping[tuple[str, Segmentation], Row]) -> Iterator[str]:
    """Yield volumes that differ from the structures table; a consensus is not in that table."""
    for row, side in ((row, side) for row in rows for side in "ab"):
        key = row["structure"], _side(row, side)
        recorded = volumes[key]["volume_cc"] if key in volumes else None
        if recorded is not None and not isclose(row[f"{side}_cc"], recorded, rel_tol=1e-6):
            yield f"{side}_cc is {row[f'{side}_cc']}; structures has {recorded}; {_REMEDY}"


def _inside(rows: Iterable[Row], volumes: Mapping[tuple[str, Segmentation], Row]) -> Iterator[str]:
    """Yield voxels of observers by fold mean whose sum differs from the structures table."""
    total: Counter[tuple[str, Segmentation]] = Counter()
    for row in rows:
        if row["estimate"] == "fold_mean":
            who = Segmentation("observer", row["observer"], row["step"])
            total[row["structure"], who] += row["inside_voxels"]
    for key, voxels in total.items():
        recorded = volumes[key]["voxels"] if key in volumes else None
        if recorded not in (None, voxels):
            finding = f"{voxels} voxels of {key[0]} {key[1].observer}"
            yield f"{finding}; structures has {recorded}; {_REMEDY}"
