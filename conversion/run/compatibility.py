"""Compatibility of a conversion with the existing stores of its destination.

A dataset has one precision, and has either patients or phantoms. A conversion is refused before its
first patient if the stores to be kept and those to be written differ in this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lundprobe_zarr.conversion.source.inventory import Inventory, PatientSource
from lundprobe_zarr.conversion.source.nifti import peek_nifti
from lundprobe_zarr.conversion.tables.files import SUFFIX
from lundprobe_zarr.conversion.tables.publish import read_stores, store_names, upgrade_remedy
from lundprobe_zarr.dataset.opening import open_manifest
from lundprobe_zarr.errors import (
    DamagedStoreError,
    DatasetError,
    SchemaVersionError,
    SourceError,
    UsageError,
)
from lundprobe_zarr.schema.layout import SCHEMA_VERSION
from lundprobe_zarr.schema.precision import Precision
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata, parse_store
from lundprobe_zarr.stores.place import StorePlace

#: Patients named in a message.
_NAMED = 5
#: Every patient has this image. A phantom's is marked as synthetic.
_IMAGE = "MR_StorT2/image.nii.gz"


def absent_from_source(inventory: Inventory, dataset: Location) -> tuple[str, ...]:
    """Return the patients of the dataset who are not in the source, in order."""
    known = {p.patient_id for p in inventory.whole}
    return tuple(sorted(i for i in _stored(dataset) if i not in known))


def require_compatible(
    inventory: Inventory, dataset: Location, precision: Precision, overwrite: bool
) -> None:
    """Require that existing stores are compatible with a conversion of `inventory`.

    Raises `UsageError` with the incompatible stores. Reads the metadata of the stores that would be
    kept, and of one more.
    """
    if not overwrite:
        _require_schema_of_manifest(dataset)
        _require_same_kind(dataset, precision, inventory)
    kept = _kept(inventory, dataset)
    if not kept:
        return
    found, _ = read_stores(dataset, [f"{i}{SUFFIX}" for i in kept])
    for store in found:
        _require_schema(dataset, store.attributes["schema_version"])
    _require_one_precision(dataset, precision, found, kept)
    _require_one_kind_of_headers(dataset, inventory, found)
    _require_levels(dataset, inventory, found)
    _require_one_kind(dataset, inventory, found)


def _stored(dataset: Location) -> list[str]:
    return [name.removesuffix(SUFFIX) for name in store_names(dataset)]


def _kept(inventory: Inventory, dataset: Location) -> dict[str, str]:
    """Return the patients whose stores would be kept, with the reasons."""
    why = {p.patient_id: "not among the selected patients" for p in inventory.unchosen}
    for patient in (*inventory.patients, *inventory.other_shares):
        why[patient.patient_id] = f"cannot be converted: {patient.problem}"
    converted = {p.patient_id for p in _convertible(inventory)}
    kept = [i for i in _stored(dataset) if i not in converted]
    return {i: why.get(i, "not in the source") for i in kept}


def _convertible(inventory: Inventory) -> Iterator[PatientSource]:
    patients = (*inventory.patients, *inventory.other_shares)
    yield from (p for p in patients if p.problem is None)


def _require_same_kind(dataset: Location, precision: Precision, inventory: Inventory) -> None:
    """Require the precision, header treatment and levels of the first readable store."""
    for name in store_names(dataset):
        try:
            store = parse_store(
                dataset.read(f"patients/{name}/zarr.json"),
                StorePlace(dataset.url, name.removesuffix(SUFFIX)),
            )
        except (DamagedStoreError, FileNotFoundError):  # to be converted again
            continue
        _require_schema(dataset, store.attributes["schema_version"])
        _require_precision_of(store, dataset, precision)
        _require_headers_of(store, dataset, inventory.strips_headers)
        _require_levels(dataset, inventory, [store])
        return


def _require_schema_of_manifest(dataset: Location) -> None:
    """Require the present schema. The manifest is upgraded last, so this detects interruptions."""
    try:
        manifest = open_manifest(dataset)
    except SchemaVersionError:
        raise
    except DatasetError:  # missing or unreadable: it will be written again
        return
    _require_schema(dataset, manifest.schema_version)


def _require_schema(dataset: Location, version: int) -> None:
    """Require the present schema version: a dataset has one schema."""
    if version < SCHEMA_VERSION:
        raise UsageError(
            f"{dataset.url} is of schema version {version}, and this version of "
            f"lundprobe-zarr writes {SCHEMA_VERSION}",
            expected="one schema version for all its patients",
            remedy=(
                f"{upgrade_remedy(dataset)}, then convert; or convert all again "
                "with --overwrite; nothing was written"
            ),
        )


def _require_precision_of(store: StoreMetadata, dataset: Location, precision: Precision) -> None:
    found = store.attributes["precision"]
    if found != precision:
        raise UsageError(
            f"{dataset.url} was converted with precision {found}, not {precision}",
            remedy=(
                f"choose --precision {found}, another destination, or convert all "
                "again with --overwrite"
            ),
        )


def _require_headers_of(store: StoreMetadata, dataset: Location, stripped: bool) -> None:
    found = bool(store.attributes.get("headers_stripped", False))
    if found is not stripped:
        was, do = ("with", "give") if found else ("without", "leave out")
        raise UsageError(
            f"{dataset.url} was converted {was} --strip-headers",
            expected="the same for all its patients",
            remedy=(
                f"{do} --strip-headers, choose another destination, or convert all "
                "again with --overwrite"
            ),
        )


def _require_levels(
    dataset: Location, inventory: Inventory, stores: Sequence[StoreMetadata]
) -> None:
    other = {s.level_count for s in stores if s.level_count != inventory.levels}
    if other and inventory.patients:
        found = min(other)
        raise UsageError(
            f"{dataset.url} was converted with {found or 'no'} coarser levels, not with "
            f"{inventory.levels or 'none'}",
            expected="the same number for all its patients",
            remedy=(
                f"{f'give --levels {found}' if found else 'leave out --levels'}, choose another "
                "destination, or convert all again with --overwrite; nothing was written"
            ),
        )


def _require_one_precision(
    dataset: Location,
    precision: Precision,
    stores: Sequence[StoreMetadata],
    kept: Mapping[str, str],
) -> None:
    other = {s.patient_id: str(s.attributes["precision"]) for s in stores}
    other = {i: p for i, p in other.items() if p != precision}
    if not other:
        return
    lines = [f"{i} ({other[i]}): {kept[i]}" for i in other]
    raise UsageError(
        f"{len(other)} of its patients would keep another precision than {precision}",
        where=dataset.url,
        expected="one precision",
        remedy=(
            "convert to a new folder, or with the existing precision, or convert all "
            "patients at once; or, if you do not need these, remove their stores, such "
            f"as {dataset.path(store_path(next(iter(other))))}; nothing was written{_listed(lines)}"
        ),
    )


def _require_one_kind_of_headers(
    dataset: Location, inventory: Inventory, stores: Sequence[StoreMetadata]
) -> None:
    wanted = inventory.strips_headers
    other = [s.patient_id for s in stores if s.attributes.get("headers_stripped", False) != wanted]
    if not other or not inventory.patients:
        return
    were, do = ("without", "leave out") if wanted else ("with", "give")
    raise UsageError(
        f"{len(other)} of its patients were converted {were} --strip-headers and would be kept",
        where=dataset.url,
        expected="the same for all patients",
        remedy=(
            f"{do} --strip-headers, or convert all patients at once, or to a new "
            f"folder; nothing was written{_listed(other)}"
        ),
    )


def _require_one_kind(
    dataset: Location, inventory: Inventory, stores: Sequence[StoreMetadata]
) -> None:
    synthetic = _is_synthetic(inventory)
    other = [s.patient_id for s in stores if bool(s.attributes["synthetic"]) is not synthetic]
    if synthetic is None or not other:
        return
    stored, source = ("patients", "a phantom") if synthetic else ("phantoms", "patients")
    raise UsageError(
        f"{dataset.url} has stores of {stored}, {len(other)} in all, and "
        f"{inventory.root} is of {source}",
        expected="one kind",
        remedy=f"convert to a new folder; nothing was written{_listed(other)}",
    )


def _is_synthetic(inventory: Inventory) -> bool | None:
    """Return whether the source is a phantom; None if no image can be read."""
    for patient in _convertible(inventory):
        for entry in patient.entries:
            if entry.path == _IMAGE:
                try:
                    layout = peek_nifti(entry.file, entry.path)
                except SourceError:  # the conversion will report it
                    break
                return layout.is_synthetic
    return None


def _listed(lines: Sequence[str]) -> str:
    more = [f"… and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
    return "".join(f"\n  {line}" for line in (*lines[:_NAMED], *more))
