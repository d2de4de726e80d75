"""Single bits flipped in a dataset on a disk: what reading then gives, and what notices.

An object is flipped in place, read and validated in this process, and flipped back. Readers that
know nothing of this package, xarray and pyarrow, read as well: what they give silently wrong has
to be noticed by `validate`.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xarray as xr
import zarr

from lundprobe_zarr import PatchStream, open_cohort
from lundprobe_zarr.conversion.tables.fragments import load_fragments
from lundprobe_zarr.dataset.converter_notes import NOTES
from lundprobe_zarr.dataset.objects import ROOT, SIDE_FILES
from lundprobe_zarr.errors import LundProbeError
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.schema.manifest import MANIFEST_NAME
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.opening import open_store

SHARDS = "shards"
STORE_ROOT = "metadata of a store (root zarr.json)"
NODES = "metadata of groups and arrays (other zarr.json)"
SMALL = "labels, axes, flags, fiducials"
TABLES = "tables"
MANIFEST = "manifest"
SIDE = "card, catalog, Croissant"
MEMORY = "measured rows kept for finalise"
#: Kinds of objects, and how many flips of each a long run tries.
FLIPS = {
    SHARDS: 200,
    STORE_ROOT: 250,
    NODES: 150,
    SMALL: 120,
    TABLES: 250,
    MANIFEST: 200,
    SIDE: 50,
    MEMORY: 50,
}
READ, QUICK, DEEP, HARMLESS, UNNOTICED = "read", "validate", "deep", "harmless", "unnoticed"
_BOX = (8, 30, 30)


@dataclass(frozen=True)
class Flip:
    """One bit of an object, named relative to the dataset."""

    kind: str
    name: str
    bit: int


@dataclass(frozen=True)
class Outcome:
    """Of a flip: what noticed it first, or that there was nothing to notice.

    `wrong` is whether our readers gave something else than before without an error, `plain_wrong`
    whether those of others did.
    """

    flip: Flip
    noticed: str
    wrong: bool
    plain_wrong: bool


def objects(dataset: Path) -> dict[str, list[str]]:
    """Names of all objects of a dataset, by kind; of the converter's notes only measured rows."""
    found: dict[str, list[str]] = {kind: [] for kind in FLIPS}
    shards = set(_shards(dataset))
    for file in sorted(f for f in dataset.rglob("*") if f.is_file()):
        name = file.relative_to(dataset).as_posix()
        kind = _kind(name, shards)
        if kind is not None and file.stat().st_size:
            found[kind].append(name)
    return found


def _shards(dataset: Path) -> Iterator[str]:
    for store in sorted((dataset / "patients").glob("*.zarr")):
        metadata = open_store(Location(dataset), store.stem)
        yield from (f"patients/{store.name}/{key}" for _, _, key in metadata.shards())


def _kind(name: str, shards: set[str]) -> str | None:
    if name == MANIFEST_NAME:
        return MANIFEST
    if name in SIDE_FILES:
        return SIDE
    if name.startswith("metadata/"):
        return TABLES
    if name.startswith(NOTES):
        return MEMORY if name.endswith(".parquet") else None
    if name.endswith(ROOT):
        return STORE_ROOT if name.count("/") == 2 else NODES
    return SHARDS if name in shards else SMALL


def draw(dataset: Path, flips: Mapping[str, int], seed: int) -> list[Flip]:
    """So many flips of each kind: any object of the kind, then any bit of it."""
    rng, there = random.Random(seed), objects(dataset)
    return [
        Flip(kind, name, rng.randrange(8 * (dataset / name).stat().st_size))
        for kind, count in flips.items()
        for name in (rng.choice(there[kind]) for _ in range(count))
    ]


@contextmanager
def flipped(dataset: Path, flip: Flip) -> Iterator[None]:
    """The bit is the other one inside the block."""
    _turn(dataset / flip.name, flip.bit)
    try:
        yield
    finally:
        _turn(dataset / flip.name, flip.bit)


def _turn(file: Path, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(bit // 8)
        byte = opened.read(1)[0] ^ (1 << bit % 8)
        opened.seek(bit // 8)
        opened.write(bytes([byte]))


def cohort_digest(url: str | Path, options: Mapping[str, Any] | None = None) -> str:
    """Digest of all that a cohort says: its manifest, every row of every table."""
    cohort = open_cohort(url, options)
    names = sorted(cohort.manifest.tables)
    tables = [cohort.sql(f"SELECT * FROM {n}").to_dict("list") for n in names]
    # What of the manifest only proves other objects is not what anybody reads.
    said = cohort.manifest.model_dump(exclude={"table_sha256", "cohort"})
    return _digest([said, tables, cohort.patients.to_dict("list")])


def patient_digest(
    url: str | Path, patient_id: str, options: Mapping[str, Any] | None = None
) -> str:
    """Digest of all of a patient: every variable of the tree, and a stream's patches."""
    cohort = open_cohort(url, options)[[patient_id]]
    grid = PatchStream(
        cohort, _BOX, structures=("CTVT_427", "Rectum"), dose=True, sampling="grid", threads=0,
        retries=0, shuffle=False, pad="zero",
    )  # fmt: skip
    tree = cohort[0].tree
    return _digest([_values(tree), [sorted(sample.items()) for sample in grid]])


@dataclass
class Bench:
    """A dataset to flip bits in, and what reading gave while it was sound."""

    dataset: Path
    _sound: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert validate(Location(self.dataset), deep=True).problems == ()
        for patient_id in self.ids:
            for reading in ("voxels", "plain", "rows"):
                self._sound[reading, patient_id] = getattr(self, reading)(patient_id)
        self._sound["cohort", ""] = self.cohort()
        for name in objects(self.dataset)[TABLES]:
            self._sound["table", name] = self.table(name)

    @cached_property
    def ids(self) -> list[str]:
        """Every patient."""
        return open_cohort(self.dataset).ids

    def cohort(self) -> str:
        """Digest of all that a cohort says: its manifest, every row of every table."""
        return cohort_digest(self.dataset)

    def voxels(self, patient_id: str) -> str:
        """Digest of all of a patient: every variable of the tree, and a stream's patches."""
        return patient_digest(self.dataset, patient_id)

    def plain(self, patient_id: str) -> str:
        """Digest of what xarray reads of a patient, and zarr of each group and array by itself."""
        store = self.dataset / "patients" / f"{patient_id}.zarr"
        found: list[Any] = []
        for file in sorted(store.rglob(f"*/{ROOT}")):
            node = zarr.open(str(file.parent), mode="r")
            found.append(sorted(node.attrs.items()))
            found += [node[...]] if isinstance(node, zarr.Array) else []
        with xr.open_datatree(store, engine="zarr") as tree:
            return _digest([*found, _values(tree)])

    def table(self, name: str) -> str:
        """Digest of what pyarrow reads of a table's file."""
        return _digest(pq.read_table(self.dataset / name).to_pylist())

    def rows(self, patient_id: str) -> str:
        """Digest of the measured rows that `finalise` would take."""
        (tables,) = load_fragments(self.dataset, [open_store(Location(self.dataset), patient_id)])
        return _digest([tables[name].to_pylist() for name in sorted(tables)])

    def try_out(self, flip: Flip) -> Outcome:
        """What comes of a flip."""
        kept = (self.dataset / flip.name).read_bytes() if flip.kind == MEMORY else b""
        with flipped(self.dataset, flip):
            noticed, wrong, plain_wrong = self._look(flip)
            if kept:  # it may have been measured anew
                (self.dataset / flip.name).write_bytes(kept)
                _turn(self.dataset / flip.name, flip.bit)
        return Outcome(flip, noticed, wrong, plain_wrong)

    def _look(self, flip: Flip) -> tuple[str, bool, bool]:
        plain_wrong = self._differs_plainly(flip)
        try:
            wrong = any(getattr(self, r)(*a) != self._sound[k] for r, a, k in self._readings(flip))
        except LundProbeError:
            return READ, False, plain_wrong
        if self._is_noticed(deep=False):
            return QUICK, wrong, plain_wrong
        if self._is_noticed(deep=True):
            return DEEP, wrong, plain_wrong
        return UNNOTICED if wrong or plain_wrong else HARMLESS, wrong, plain_wrong

    def _readings(self, flip: Flip) -> list[tuple[str, tuple[str, ...], tuple[str, str]]]:
        """Readings that the object of a flip may have a part in."""
        patient = _patient(flip.name)
        if flip.kind == MEMORY:
            patient = Path(flip.name).stem
            return [("rows", (patient,), ("rows", patient))]
        if patient:
            return [("voxels", (patient,), ("voxels", patient))]
        return [("cohort", (), ("cohort", ""))]

    def _differs_plainly(self, flip: Flip) -> bool:
        patient = _patient(flip.name)
        key = ("plain", patient) if patient else ("table", flip.name)
        if key not in self._sound or flip.kind == SHARDS:
            return False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return bool(getattr(self, key[0])(key[1]) != self._sound[key])
        except Exception:  # noqa: BLE001 - whatever others raise: it is no silent error
            return False

    def _is_noticed(self, deep: bool) -> bool:
        try:
            return bool(validate(Location(self.dataset), deep=deep).problems)
        except LundProbeError:
            return True


def _patient(name: str) -> str:
    return name.split("/")[1].removesuffix(".zarr") if name.startswith("patients/") else ""


def _values(tree: xr.DataTree) -> list[Any]:
    """Everything in a tree: attributes, variables, their values."""
    found: list[Any] = []
    for node in tree.subtree:
        dataset = node.to_dataset(inherit=False)
        found.append((node.path, sorted(dataset.attrs.items(), key=str)))
        for name in sorted(map(str, dataset.variables)):
            variable = dataset.variables[name]
            about = (name, variable.dims, sorted(variable.attrs.items(), key=str))
            found.append((about, np.asarray(variable.values)))
    return found


def _digest(found: Any) -> str:
    sha256 = hashlib.sha256()
    _feed(sha256, found)
    return sha256.hexdigest()


def _feed(sha256: Any, found: Any) -> None:
    """Feed anything made of lists, tuples, dicts and arrays, all values exactly."""
    if isinstance(found, np.ndarray) and found.dtype.kind not in "OT":
        sha256.update(f"{found.dtype} {found.shape}".encode())
        sha256.update(np.ascontiguousarray(found).data)
    elif isinstance(found, list | tuple | np.ndarray):
        sha256.update(f"[{len(found)}".encode())
        for one in found:
            _feed(sha256, one)
    elif isinstance(found, dict):
        _feed(sha256, [[k, v] for k, v in found.items()])
    else:
        sha256.update(repr(found).encode())


def summary(outcomes: list[Outcome]) -> dict[str, dict[str, int]]:
    """Counts by kind: what noticed, and how often others' readers gave something else."""
    table: dict[str, dict[str, int]] = {}
    for kind in dict.fromkeys(o.flip.kind for o in outcomes):
        mine = [o for o in outcomes if o.flip.kind == kind]
        counts = Counter(o.noticed for o in mine)
        table[kind] = {
            "flips": len(mine),
            **{n: counts[n] for n in (READ, QUICK, DEEP, HARMLESS, UNNOTICED)},
            "others_wrong": sum(o.plain_wrong for o in mine),
        }
    return table
