"""What stays in a dataset beside what is converted, and whether the two go together.

A dataset has one precision, and is of patients or of phantoms. What a conversion would leave as it
is may be of another kind than what it writes: that is refused before a patient is converted.
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
#: Every patient has one of these, and the phantom's say what they are.
_IMAGE = "MR_StorT2/image.nii.gz"


def strangers(inventory: Inventory, dataset: Location) -> tuple[str, ...]:
    """Patients in the dataset whom the source does not have, in order."""
    known = {p.patient_id for p in inventory.whole}
    return tuple(sorted(i for i in _stored(dataset) if i not in known))


def require_unmixed(
    inventory: Inventory, dataset: Location, precision: Precision, overwrite: bool
) -> None:
    """Require that the stores there fit those that a conversion of `inventory` would write.

    Raises `UsageError` that names those that do not. Reads the metadata of the stores that would
    stay as they are, and of one more.
    """
    if not overwrite:
        _require_schema_of_manifest(dataset)
        _require_same_kind(dataset, precision, inventory.strips_headers)
    staying = _staying(inventory, dataset)
    if not staying:
        return
    found, _ = read_stores(dataset, [f"{i}{SUFFIX}" for i in staying])
    for store in found:
        _require_schema(dataset, store.attributes["schema_version"])
    _require_one_precision(dataset, precision, found, staying)
    _require_one_kind_of_headers(dataset, inventory, found)
    _require_one_kind(dataset, inventory, found)


def _stored(dataset: Location) -> list[str]:
    return [name.removesuffix(SUFFIX) for name in store_names(dataset)]


def _staying(inventory: Inventory, dataset: Location) -> dict[str, str]:
    """Patients whose stores would stay as they are, and why."""
    why = {p.patient_id: "not among the patients asked for" for p in inventory.unchosen}
    for patient in (*inventory.patients, *inventory.other_shares):
        why[patient.patient_id] = f"cannot be converted: {patient.problem}"
    converted = {p.patient_id for p in _convertible(inventory)}
    there = [i for i in _stored(dataset) if i not in converted]
    return {i: why.get(i, "not in the source") for i in there}


def _convertible(inventory: Inventory) -> Iterator[PatientSource]:
    patients = (*inventory.patients, *inventory.other_shares)
    yield from (p for p in patients if p.problem is None)


def _require_same_kind(dataset: Location, precision: Precision, stripped: bool) -> None:
    """One dataset, one precision, headers with text or without: the first readable store tells."""
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
        _require_headers_of(store, dataset, stripped)
        return


def _require_schema_of_manifest(dataset: Location) -> None:
    """The manifest is upgraded last, so that it tells of an upgrade that was broken off."""
    try:
        manifest = open_manifest(dataset)
    except SchemaVersionError:
        raise
    except DatasetError:  # none, or none that anyone can read: it is written anew
        return
    _require_schema(dataset, manifest.schema_version)


def _require_schema(dataset: Location, version: int) -> None:
    """Require that what stays is of the schema that is written: one dataset, one schema."""
    if version < SCHEMA_VERSION:
        raise UsageError(
            f"{dataset.url} is of schema version {version}, and this version of "
            f"lundprobe-zarr writes {SCHEMA_VERSION}",
            expected="one for all its patients",
            remedy=(
                f"{upgrade_remedy(dataset)}, and convert then; or convert all again "
                "with --overwrite; nothing was written"
            ),
        )


def _require_precision_of(store: StoreMetadata, dataset: Location, precision: Precision) -> None:
    there = store.attributes["precision"]
    if there != precision:
        raise UsageError(
            f"{dataset.url} was converted with precision {there}, not {precision}",
            remedy=(
                f"choose --precision {there}, another destination, or convert all "
                "again with --overwrite"
            ),
        )


def _require_headers_of(store: StoreMetadata, dataset: Location, stripped: bool) -> None:
    there = bool(store.attributes.get("headers_stripped", False))
    if there is not stripped:
        was, do = ("with", "give") if there else ("without", "leave out")
        raise UsageError(
            f"{dataset.url} was converted {was} --strip-headers",
            expected="the same for all its patients",
            remedy=(
                f"{do} --strip-headers, choose another destination, or convert all "
                "again with --overwrite"
            ),
        )


def _require_one_precision(
    dataset: Location,
    precision: Precision,
    stores: Sequence[StoreMetadata],
    staying: Mapping[str, str],
) -> None:
    other = {s.patient_id: str(s.attributes["precision"]) for s in stores}
    other = {i: p for i, p in other.items() if p != precision}
    if not other:
        return
    lines = [f"{i} ({other[i]}): {staying[i]}" for i in other]
    raise UsageError(
        f"{len(other)} of its patients would keep another precision than {precision}",
        where=dataset.url,
        expected="one precision",
        remedy=(
            "convert to a new folder, with the precision that is there, or all "
            "patients at once; or, to do without these, remove their stores, such "
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
        f"{len(other)} of its patients were converted {were} --strip-headers and would stay",
        where=dataset.url,
        expected="the same for all",
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
    there, here = ("patients", "a phantom") if synthetic else ("phantoms", "patients")
    raise UsageError(
        f"{dataset.url} holds stores of {there}, {len(other)} in all, and "
        f"{inventory.root} is of {here}",
        expected="one kind",
        remedy=f"convert to a new folder; nothing was written{_listed(other)}",
    )


def _is_synthetic(inventory: Inventory) -> bool | None:
    """Whether the source is a phantom; None if its first image does not tell."""
    for patient in _convertible(inventory):
        for entry in patient.entries:
            if entry.path == _IMAGE:
                try:
                    layout = peek_nifti(entry.file, entry.path)
                except SourceError:  # the conversion will say so
                    break
                return layout.is_synthetic
    return None


def _listed(lines: Sequence[str]) -> str:
    more = [f"… and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
    return "".join(f"\n  {line}" for line in (*lines[:_NAMED], *more))
