"""Make a dataset from complete stores: tables, manifest and card, from the stores only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from lundprobe_zarr.conversion.notes.draft import located
from lundprobe_zarr.conversion.notes.lease import lease_tables
from lundprobe_zarr.conversion.tables.files import SUFFIX, TableFiles, table_files
from lundprobe_zarr.conversion.tables.upgrade import upgrade_stores
from lundprobe_zarr.dataset.content import dataset_content
from lundprobe_zarr.dataset.converter_notes import Absent, absent
from lundprobe_zarr.dataset.opening import open_manifest
from lundprobe_zarr.errors import (
    Command,
    DamagedStoreError,
    DatasetError,
    NotADatasetError,
    SchemaVersionError,
)
from lundprobe_zarr.publish.card import dataset_card, dataset_catalog
from lundprobe_zarr.publish.croissant import CROISSANT_NAME, croissant
from lundprobe_zarr.schema.layout import SCHEMA_VERSION
from lundprobe_zarr.schema.manifest import ACCESS, ACCESS_SYNTHETIC, MANIFEST_NAME, Manifest
from lundprobe_zarr.schema.tables import COHORT_FILE, TABLES, store_path
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.reread import write_verified
from lundprobe_zarr.stores.metadata import HOLDS_ANOTHER, StoreMetadata, parse_store
from lundprobe_zarr.stores.place import StorePlace, convert_again
from lundprobe_zarr.vocabulary.names import PARTS, is_patient_id
from lundprobe_zarr.vocabulary.version import package_version

#: Stores in memory at a time.
_AT_A_TIME = 64


@dataclass(frozen=True)
class Published:
    """Result of `finalise`: the manifest, and omitted stores with the reason.

    `absent` are patients of the source who are not in the dataset; None if none are known.
    `upgraded` are patients whose stores had an older schema. `unmeasured` are patients whose
    segmentations were not compared yet; the tables of comparisons are therefore left out.
    """

    manifest: Manifest
    left_out: tuple[str, ...]
    absent: Absent | None
    upgraded: tuple[str, ...] = ()
    unmeasured: tuple[str, ...] = ()


def finalise(dataset: Location | Path, rebuild: bool = False) -> Published:
    """Write tables, manifest, card, catalog and Croissant file of all complete stores in `dataset`.

    Reads each store's metadata, and voxels only if measured rows are lost or on `rebuild`. Memory
    does not grow with the number of stores. A store that cannot be read is omitted and reported.
    On `rebuild`, stores of an older schema are upgraded. Tables of comparisons are written once
    `measure` has measured all patients who have any. All files are prepared before the first is
    written; the manifest is written last. If another conversion is writing tables, this waits for
    it. Raises `NotADatasetError` if there is no store, and `DatasetError` if stores differ in
    precision, have an older schema without `rebuild`, or a file cannot be written. On a local disk
    all files are then unchanged.
    """
    dataset = located(dataset)
    dataset.require_writable()
    if not store_names(dataset):  # nothing is written then, not even a lease
        raise _nothing_in(dataset, [])
    with lease_tables(dataset), table_files(dataset, rebuild) as tables:
        ids = [name.removesuffix(SUFFIX) for name in store_names(dataset)] if rebuild else []
        upgraded = upgrade_stores(dataset, [i for i in ids if is_patient_id(i)])
        return replace(_finalise(dataset, tables), upgraded=upgraded)


def _nothing_in(dataset: Location, left_out: Sequence[str]) -> NotADatasetError:
    return NotADatasetError(
        f"no patient's store in {dataset.path('patients')}",
        where=dataset.url,
        expected="at least one",
        remedy="run `lundprobe-zarr convert` first" + "".join(f"\n  {line}" for line in left_out),
    )


def _finalise(dataset: Location, tables: TableFiles) -> Published:
    stores, left_out = _gather(dataset, tables)
    if not stores:
        raise _nothing_in(dataset, left_out)
    manifest = _manifest(dataset.url, stores)
    objects = tables.complete()
    content = dataset_content(tables.content_of_patients, tables.content)
    about = {"tables": tables.files, "cohort": COHORT_FILE, "content": content}
    manifest = manifest.model_copy(update=about | {"table_sha256": tables.sha256})
    texts = {
        "README.md": dataset_card(manifest, tables.sizes),
        "catalog.yaml": dataset_catalog(manifest, stores[0].patient_id),
        CROISSANT_NAME: croissant(manifest),
        MANIFEST_NAME: manifest.dump(),
    }
    _write(dataset, objects | {name: text.encode() for name, text in texts.items()})
    _remove_stale(dataset, manifest)
    lacking = absent(dataset, (s.patient_id for s in stores))
    return Published(
        manifest, tuple(left_out), lacking, unmeasured=tuple(sorted(tables.unmeasured))
    )


@dataclass(frozen=True)
class _Store:
    """The properties of a store that the manifest needs."""

    patient_id: str
    part: str
    precision: str
    synthetic: bool
    headers_stripped: bool
    levels: int


def _gather(dataset: Location, tables: TableFiles) -> tuple[list[_Store], list[str]]:
    """Read the stores, add their rows to `tables`, and return stores and reasons for omissions.

    No rows are added after stores with different settings are found.
    """
    known: list[_Store] = []
    left_out: list[str] = []
    names, kinds = store_names(dataset), set()
    for first in range(0, len(names), _AT_A_TIME):
        stores, left = read_stores(dataset, names[first : first + _AT_A_TIME])
        left_out += left
        _require_present_schema(dataset, stores)
        some = [_known(s) for s in stores]
        known += some
        kinds |= {(s.precision, s.synthetic, s.headers_stripped, s.levels) for s in some}
        if len(kinds) == 1:
            tables.add(stores)
    return known, left_out


def _require_present_schema(dataset: Location, stores: Sequence[StoreMetadata]) -> None:
    for store in stores:
        version = store.attributes["schema_version"]
        if version < SCHEMA_VERSION:
            raise DatasetError(
                f"the store of patient {store.patient_id} is of schema version {version}",
                where=dataset.url,
                expected=f"{SCHEMA_VERSION}, as this version of lundprobe-zarr writes",
                remedy=upgrade_remedy(dataset),
            )


def upgrade_remedy(dataset: Location) -> str:
    """Return the remedy for a dataset of an older schema."""
    return (
        f"upgrade it with `{Command('finalise', ('--rebuild',), dataset.url)}`, which needs no "
        "source"
    )


def _known(store: StoreMetadata) -> _Store:
    a = store.attributes
    stripped = bool(a.get("headers_stripped", False))
    kind = str(a["precision"]), a["synthetic"], stripped, store.level_count
    return _Store(store.patient_id, a["part"], *kind)


def store_names(dataset: Location) -> list[str]:
    """Return the names of all stores, complete or not, such as `<patient_id>.zarr`."""
    names = dataset.children("patients")
    return [name for name in names if name.endswith(SUFFIX) and not name.startswith(".")]


def read_stores(dataset: Location, names: Sequence[str]) -> tuple[list[StoreMetadata], list[str]]:
    """Return the metadata of readable stores, and the reasons for the others.

    Raises `DatasetError` if the storage fails.
    """
    stores, left_out = [], []
    texts = dataset.read_each(f"patients/{name}/zarr.json" for name in names)
    for name, text in zip(names, texts, strict=True):
        found = _store(dataset, name, text)
        if isinstance(found, StoreMetadata):
            stores.append(found)
        else:
            left_out.append(f"{name}: {found}")
    return stores, left_out


def _store(dataset: Location, name: str, text: bytes | None) -> StoreMetadata | str:
    """Return a store's metadata, or the reason why it cannot be used."""
    if text is None:
        return "not complete: it has no zarr.json"
    try:
        store = parse_store(text, StorePlace(dataset.url, name.removesuffix(SUFFIX)))
    except (DamagedStoreError, SchemaVersionError) as error:
        return str(error)
    if store_path(store.patient_id) == f"patients/{name}":
        return store
    return f"{HOLDS_ANOTHER} {store.patient_id}, not of this one"


def _manifest(dataset: str, stores: list[_Store]) -> Manifest:
    precision, stripped, levels = _kind(dataset, stores)
    synthetic = _is_synthetic(dataset, stores)
    return Manifest.model_validate(
        {
            "schema_version": SCHEMA_VERSION,
            "name": "LUND-PROBE phantom (synthetic)" if synthetic else "LUND-PROBE",
            "precision": precision,
            "synthetic": synthetic,
            "headers_stripped": stripped,
            "levels": levels,
            "access": ACCESS_SYNTHETIC if synthetic else ACCESS,
            "converter": f"lundprobe-zarr {package_version()}",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "patients": {p: sum(s.part == p for s in stores) for p in PARTS},
            "tables": {},
        }
    )


def _kind(dataset: str, stores: list[_Store]) -> tuple[str, bool, int]:
    """Return the precision of all stores, whether headers were stripped, and number of levels."""
    kinds = [(s.precision, s.headers_stripped, s.levels) for s in stores]
    found = Counter(kinds).most_common()
    most = found[0][0]
    if len(found) > 1:
        others = [s.patient_id for s, kind in zip(stores, kinds, strict=True) if kind != most]
        named = (f"{_kind_name(*kind)} ({n})" for kind, n in found)
        raise DatasetError(
            f"its stores were converted in different ways, {' and '.join(named)}",
            where=dataset,
            expected="one precision, one treatment of headers and one number of levels",
            remedy=(
                "convert those that differ from the first again, or remove their stores, and run "
                f"`{Command('finalise', dataset=dataset)}`:\n  {{command}}"
            ),
            command=convert_again(others, dataset, *most),
        )
    return most


def _kind_name(precision: str, stripped: bool, levels: int) -> str:
    options = (" --strip-headers" if stripped else "") + (f" --levels {levels}" if levels else "")
    return f"{precision} with{options}" if options else precision


def _is_synthetic(dataset: str, stores: list[_Store]) -> bool:
    real = [s.patient_id for s in stores if not s.synthetic]
    phantom = [s.patient_id for s in stores if s.synthetic]
    if real and phantom:
        raise DatasetError(
            f"has synthetic patients ({phantom[0]}, {len(phantom)} in all) "
            f"and others ({real[0]}, {len(real)} in all)",
            where=dataset,
            expected="one kind",
            remedy="convert them to separate destinations",
        )
    return bool(phantom)


def _write(dataset: Location, objects: Mapping[str, Path | bytes]) -> None:
    """Write all objects of a dataset except its stores, in order: the manifest last."""
    if dataset.is_local:
        dataset.write_together(objects, partial(_forget_hashes, dataset))
        return
    _forget_hashes(dataset)
    for name, contents in objects.items():
        data = contents.read_bytes() if isinstance(contents, Path) else contents
        write_verified(dataset, name, data)


def _forget_hashes(dataset: Location) -> None:
    """Remove the hashes of table files from the current manifest, before these files change.

    The dataset then stays readable until the new manifest is written, or if this is interrupted.
    """
    try:
        manifest = open_manifest(dataset)
    except DatasetError:  # missing or unreadable
        return
    if manifest.table_sha256:
        without_hashes = manifest.model_copy(update={"table_sha256": {}})
        dataset.write(MANIFEST_NAME, without_hashes.dump().encode())


def _remove_stale(dataset: Location, manifest: Manifest) -> None:
    """Remove table files of an earlier run that the manifest no longer names."""
    named = {f for parts in manifest.tables.values() for files in parts.values() for f in files}
    for name in dataset.find("metadata"):
        file = f"metadata/{name}"
        of_ours = name.partition("/")[0] in TABLES and name.endswith(".parquet")
        if of_ours and file not in named:
            dataset.delete(file)
