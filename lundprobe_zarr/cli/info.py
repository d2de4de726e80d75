"""`info`: what a dataset holds, what a patient has, what a column means."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lundprobe_zarr.cli.place import Dataset, StorageOptions, locate, parse_options
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.vocabulary.suggest import nearest

if TYPE_CHECKING:
    from lundprobe_zarr.dataset.converter_notes import Absent
    from lundprobe_zarr.schema.manifest import Manifest
    from lundprobe_zarr.storage.location import Location
    from lundprobe_zarr.stores.metadata import StoreMetadata


def info(
    dataset: Dataset,
    patient: Annotated[
        str | None, typer.Argument(help="A patient's id, or the name of a column.")
    ] = None,
    columns: Annotated[
        bool, typer.Option("--columns", help="List every column of every table with its meaning.")
    ] = False,
    storage_options: StorageOptions = None,
) -> None:
    """Describe a dataset, a patient or a column."""
    from lundprobe_zarr.cohort import open_cohort
    from lundprobe_zarr.dataset.opening import open_manifest
    from lundprobe_zarr.stores.opening import open_store
    from lundprobe_zarr.vocabulary.names import is_patient_id

    location = locate(dataset, storage_options)
    if _is_column(patient):
        _show_columns(open_manifest(location), patient)
    elif columns:
        _show_columns(open_manifest(location), None)
    elif patient is None:
        _show_dataset(location, open_manifest(location))
    else:
        cohort = open_cohort(dataset, parse_options(storage_options))
        if not is_patient_id(patient) and (columns_like := _columns_like(patient)):
            raise UsageError(
                f"no patient and no column {patient!r}",
                where=location.url,
                remedy=f"nearest columns: {', '.join(columns_like)}",
            )
        known = cohort[patient]
        _show_patient(open_store(location, known.patient_id))


def _show_dataset(location: Location, manifest: Manifest) -> None:
    from lundprobe_zarr.cli.console import facts, heading, say, table
    from lundprobe_zarr.dataset.converter_notes import absent
    from lundprobe_zarr.dataset.opening import read_table, table_rows
    from lundprobe_zarr.schema.tables import TABLES

    say(f"{manifest.name}, at {location.url}", "bold")
    if manifest.synthetic:
        say("Synthetic phantom: no voxel comes from a patient; never publish results on it.")
    patients = read_table(location, manifest, "patients").to_pylist()
    lacking = absent(location, (p["patient_id"] for p in patients))
    facts([*_contents(manifest, patients, lacking), *_terms(manifest)])
    heading("Tables")
    rows = [
        (name, str(table_rows(location, parts)), TABLES[name].row if name in TABLES else "")
        for name, parts in manifest.tables.items()
    ]
    table(("table", "rows", "a row is"), rows, right=("rows",))
    say()
    say(f"Columns: lundprobe-zarr info {shlex.quote(location.url)} --columns")
    if patients:
        first = patients[0]["patient_id"]
        say(f"A patient: lundprobe-zarr info {shlex.quote(location.url)} {first}")


def _contents(
    manifest: Manifest, patients: list[dict[str, Any]], lacking: Absent | None
) -> Iterator[tuple[str, str]]:
    from lundprobe_zarr.cli.console import count, size

    found = Counter((p["part"], p["protocol"]) for p in patients)
    yield "patients", str(len(patients))
    for part in manifest.patients:
        by = ", ".join(
            f"{n} {protocol}" for (of, protocol), n in sorted(found.items()) if of == part
        )
        yield f"  {part}", f"{manifest.patients[part]}" + (f" ({by})" if by else "")
    if lacking is not None:
        yield "incomplete", str(lacking)
    source, stored = (sum(p[f"{k}_bytes"] for p in patients) for k in ("source", "store"))
    ratio = f", {stored / source:.0%} of the source's {size(source)}" if source else ""
    yield "size", f"{size(stored)}{ratio}"
    yield "precision", manifest.precision
    if manifest.headers_stripped:
        yield "NIfTI headers", "without their free text, extensions and trailers (--strip-headers)"
    if manifest.levels:
        yield "levels for viewers", str(manifest.levels)
    odd = sum(bool(p["findings"]) for p in patients)
    yield "findings", f"{count(odd, 'patient')} with something odd" if odd else "none"
    if manifest.content is not None:
        yield "content", f"{manifest.content.sha256} (the same wherever the same data are)"
    yield "written", f"{manifest.created} by {manifest.converter}, schema {manifest.schema_version}"


def _terms(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "access", manifest.access
    yield "cite", manifest.citation


def _columns_like(name: str) -> list[str]:
    from lundprobe_zarr.schema.tables import TABLES

    return nearest(name, (c.name for t in TABLES.values() for c in t.columns))


def _is_column(name: str | None) -> bool:
    from lundprobe_zarr.schema.tables import TABLES

    return any(c.name == name for t in TABLES.values() for c in t.columns)


def _show_columns(manifest: Manifest, only: str | None) -> None:
    from lundprobe_zarr.cli.console import heading, say, table
    from lundprobe_zarr.schema.tables import TABLES, VIEWS

    for name in (n for n in manifest.tables if n in TABLES):
        rows = [
            (
                c.name,
                f"{type_name(c.type)}{' or null' if c.nullable else ''}",
                c.unit,
                c.description,
            )
            for c in TABLES[name].columns
            if only in (None, c.name)
        ]
        if not rows:
            continue
        heading(f"{name}: a row is {TABLES[name].row}")
        table(("column", "type", "unit", "meaning"), rows)
    if only is None:
        for view in VIEWS.values():
            where = " and ".join(f"{c} = '{v}'" for c, v in view.values.items())
            heading(f"{view.name}: a row is {view.row}")
            say(f"  In SQL: the rows of {view.table} with {where}.")


def type_name(arrow: Any) -> str:
    """An Arrow type in a word or two: `double`, `list of string`, `3 × int64`."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(arrow):
        return f"{arrow.list_size} × {arrow.value_type}"
    return f"list of {type_name(arrow.value_type)}" if pa.types.is_list(arrow) else str(arrow)


def _show_patient(store: StoreMetadata) -> None:
    from lundprobe_zarr.cli.console import facts, heading, listing, say, table
    from lundprobe_zarr.schema.layout import GROUP_TITLES
    from lundprobe_zarr.vocabulary.grouping import grouped

    say(f"{store.patient_id}, at {store.where}", "bold")
    facts(_about(store))
    for group in (g for g in GROUP_TITLES if g in store.groups):
        heading(f"/{group}: {GROUP_TITLES[group]}")
        facts(_grid(store.groups[group]))
        table(("array", "dimensions", "shape", "type", "unit"), _arrays(store, group))
        listing(f"{d}: {', '.join(map(str, v))}" for d, v in store.labels(group).items())
    findings = store.attributes["findings"]
    if findings:
        heading(f"Findings: {len(findings)}")
        listing(grouped(findings), most=100)


def _about(store: StoreMetadata) -> Iterator[tuple[str, str]]:
    from lundprobe_zarr.cli.console import size
    from lundprobe_zarr.dataset.derive import patient_row
    from lundprobe_zarr.schema.tables import CONTENT

    row = patient_row(store, 0)
    yield "part", f"{row['part']}, {row['protocol']}"
    yield "precision", str(store.attributes["precision"])
    yield "missing structures", _or_none(row["missing_structures"])
    yield "several components", _or_none(row["multi_component_structures"])
    yield "fiducials", str(row["n_fiducials"])
    if row["dose_max_gy"] is not None:
        yield "dose", f"{row['dose_min_gy']:.2f} to {row['dose_max_gy']:.2f} Gy"
    stored = sum(r.stored_bytes for _, r in store.records)
    yield "content", row[CONTENT]
    yield "size", f"{size(stored)}, of {len(store.records)} files of {size(row['source_bytes'])}"


def _or_none(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _grid(attributes: dict[str, Any]) -> Iterator[tuple[str, str]]:
    from lundprobe_zarr.geometry.affine import origin_lps, spacing

    if "affine" in attributes:
        yield "spacing z y x", f"{_numbers(spacing(attributes['affine'])[::-1])} mm"
        yield "first voxel z y x", f"{_numbers(origin_lps(attributes['affine']))} mm, LPS"


def _numbers(values: Iterable[float]) -> str:
    return " × ".join(f"{v:.6g}" for v in values)


def _arrays(store: StoreMetadata, group: str) -> Iterator[tuple[str, str, str, str, str]]:
    for array in store.arrays.values():
        if array.spec.group == group:
            yield (
                array.spec.variable,
                " ".join(array.spec.dims),
                " × ".join(map(str, array.shape)),
                array.dtype.name,
                array.spec.units or "by modality",
            )
