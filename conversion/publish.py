"""Turn finished stores into a dataset: tables, manifest and card, from the stores alone."""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pyarrow as pa

from lundprobe_zarr.errors import (
    DamagedStoreError,
    DatasetError,
    NotADatasetError,
    SchemaVersionError,
)
from lundprobe_zarr.schema.card import dataset_card, dataset_catalog
from lundprobe_zarr.schema.croissant import CROISSANT_NAME, croissant
from lundprobe_zarr.schema.layout import SCHEMA_VERSION
from lundprobe_zarr.schema.manifest import ACCESS, ACCESS_SYNTHETIC, MANIFEST_NAME, Manifest
from lundprobe_zarr.schema.tables import (
    COHORT_FILE,
    CONTENT,
    MEASURED,
    PATIENTS,
    TABLES,
    store_path,
    table_file,
)
from lundprobe_zarr.store.content import dataset_content, table_content
from lundprobe_zarr.store.dataset import open_manifest
from lundprobe_zarr.store.describe import array_rows, patient_row
from lundprobe_zarr.store.location import Location
from lundprobe_zarr.store.memory import Absent, absent
from lundprobe_zarr.store.metadata import StoreMetadata, parse_store
from lundprobe_zarr.store.sound import write_sound
from lundprobe_zarr.vocabulary.names import PARTS
from lundprobe_zarr.vocabulary.version import package_version

from .fragments import load_fragments, parquet
from .place import located

#: What follows the patient's id in the name of a store.
SUFFIX = ".zarr"
#: Stores asked for at a time.
_REQUESTS = 16


@dataclass(frozen=True)
class Published:
    """What `finalise` made: the manifest, and stores it left out with the reason.

    `absent` are patients of the source who are not in the dataset; None if none is known of.
    """

    manifest: Manifest
    left_out: tuple[str, ...]
    absent: Absent | None


def finalise(dataset: Location | Path, rebuild: bool = False) -> Published:
    """Write tables, manifest, card, catalog and Croissant file of all complete stores in `dataset`.

    Reads each store's metadata, and voxels only where measured rows are lost or on `rebuild`. A
    store that cannot be read is left out and named. The manifest comes last, so that a reader
    sees the old dataset or the new one. Raises `NotADatasetError` if there is no store,
    `DatasetError` if stores differ in precision.
    """
    dataset = located(dataset)
    dataset.require_writable()
    stores, left_out = read_stores(dataset, store_names(dataset))
    if not stores:
        raise NotADatasetError(
            f"{dataset.url}: no patient's store in {dataset.path('patients')}; expected at least "
            "one; run `lundprobe-zarr convert` first" + "".join(f"\n  {line}" for line in left_out)
        )
    manifest = _manifest(dataset.url, stores)
    tables = _Tables(dataset, rebuild)
    _forget_hashes(dataset)
    tables.write(stores)
    content = dataset_content(tables.content_of_patients, tables.content)
    about = {"tables": tables.files, "cohort": COHORT_FILE, "content": content}
    manifest = manifest.model_copy(update=about | {"table_sha256": tables.sha256})
    texts = {
        "README.md": dataset_card(manifest, tables.sizes),
        "catalog.yaml": dataset_catalog(manifest, stores[0].patient_id),
        CROISSANT_NAME: croissant(manifest),
        MANIFEST_NAME: manifest.dump(),
    }
    for name, text in texts.items():
        write_sound(dataset, name, text.encode())
    _remove_stale(dataset, manifest)
    return Published(manifest, tuple(left_out), absent(dataset, (s.patient_id for s in stores)))


def store_names(dataset: Location) -> list[str]:
    """Names of what claims to be a store, complete or not, such as `<patient_id>.zarr`."""
    there = dataset.children("patients")
    return [name for name in there if name.endswith(SUFFIX) and not name.startswith(".")]


def read_stores(dataset: Location, names: Sequence[str]) -> tuple[list[StoreMetadata], list[str]]:
    """Metadata of the stores that can be read, and of the others why not."""
    stores, left_out = [], []
    with ThreadPoolExecutor(_REQUESTS) as pool:
        for name, found in zip(names, pool.map(partial(_store, dataset), names), strict=True):
            if isinstance(found, StoreMetadata):
                stores.append(found)
            else:
                left_out.append(f"{name}: {found}")
    return stores, left_out


def _store(dataset: Location, name: str) -> StoreMetadata | str:
    """A store's metadata, or why it cannot be used; raises `DatasetError` if it cannot be got."""
    place = f"patients/{name}"
    try:
        store = parse_store(dataset.read(f"{place}/zarr.json"), dataset.path(place))
    except FileNotFoundError:
        return "not complete: it has no zarr.json"
    except (DamagedStoreError, SchemaVersionError) as error:
        return str(error)
    fits = store_path(store.patient_id) == place
    return store if fits else f"holds patient {store.patient_id}"


def _manifest(dataset: str, stores: list[StoreMetadata]) -> Manifest:
    precision = _precision(dataset, stores)
    synthetic = _is_synthetic(dataset, stores)
    return Manifest.model_validate(
        {
            "schema_version": SCHEMA_VERSION,
            "name": "LUND-PROBE phantom (synthetic)" if synthetic else "LUND-PROBE",
            "precision": precision,
            "synthetic": synthetic,
            "headers_stripped": all(s.attributes.get("headers_stripped", False) for s in stores),
            "access": ACCESS_SYNTHETIC if synthetic else ACCESS,
            "converter": f"lundprobe-zarr {package_version()}",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "patients": {p: sum(s.attributes["part"] == p for s in stores) for p in PARTS},
            "tables": {},
        }
    )


def _precision(dataset: str, stores: list[StoreMetadata]) -> str:
    found = Counter(str(s.attributes["precision"]) for s in stores).most_common()
    if len(found) > 1:
        most = found[0][0]
        others = [s.patient_id for s in stores if s.attributes["precision"] != most]
        raise DatasetError(
            f"{dataset}: its stores were converted with "
            f"{' and '.join(f'{p} ({n})' for p, n in found)} precision; expected one; convert "
            f"those that are not {most} again, or remove their stores and run `lundprobe-zarr "
            f"finalise {shlex.quote(dataset)}`:\n  lundprobe-zarr convert SOURCE "
            f"{shlex.quote(dataset)} --precision {most} --overwrite --patients {','.join(others)}"
        )
    return found[0][0]


def _is_synthetic(dataset: str, stores: list[StoreMetadata]) -> bool:
    real = [s.patient_id for s in stores if not s.attributes["synthetic"]]
    phantom = [s.patient_id for s in stores if s.attributes["synthetic"]]
    if real and phantom:
        raise DatasetError(
            f"{dataset}: holds synthetic patients ({phantom[0]}, {len(phantom)} in all) beside "
            f"others ({real[0]}, {len(real)} in all); expected one kind; convert them to "
            "destinations of their own"
        )
    return bool(phantom)


class _Tables:
    """The tables of all stores: written part by part; files, rows, bytes and content of each."""

    def __init__(self, dataset: Location, rebuild: bool) -> None:
        self._dataset = dataset
        self._rebuild = rebuild
        self.files: dict[str, dict[str, list[str]]] = {name: {} for name in TABLES}
        self.sizes: dict[str, dict[str, tuple[int, int]]] = {name: {} for name in TABLES}
        self.content: dict[str, dict[str, str]] = {name: {} for name in TABLES}
        self.content_of_patients: dict[str, str] = {}
        self.sha256: dict[str, str] = {}

    def write(self, stores: list[StoreMetadata]) -> None:
        """Write every table, and the patients of all parts at once."""
        bytes_of = _store_bytes(self._dataset, stores)
        patients = []
        for part in PARTS:
            chosen = [s for s in stores if s.attributes["part"] == part]
            if chosen:
                tables = self._of_part(chosen, bytes_of)
                self._write_part(part, tables)
                patients.append(tables[PATIENTS.name])
        for table in patients:
            ids, hashes = (table[c].to_pylist() for c in ("patient_id", CONTENT))
            self.content_of_patients |= zip(ids, hashes, strict=True)
        self._write_file(COHORT_FILE, parquet(pa.concat_tables(patients)))

    def _write_part(self, part: str, tables: dict[str, pa.Table]) -> None:
        for name, table in tables.items():
            file, data = table_file(name, part), parquet(table)
            self._write_file(file, data)
            self.files[name][part] = [file]
            self.sizes[name][part] = table.num_rows, len(data)
            self.content[name][part] = table_content(name, table)

    def _write_file(self, file: str, data: bytes) -> None:
        write_sound(self._dataset, file, data)
        self.sha256[file] = hashlib.sha256(data).hexdigest()

    def _of_part(
        self, stores: list[StoreMetadata], bytes_of: Mapping[str, int]
    ) -> dict[str, pa.Table]:
        measured = load_fragments(self._dataset, stores, self._rebuild)
        patients = [patient_row(s, bytes_of[s.patient_id]) for s in stores]
        return {
            "patients": TABLES["patients"].from_rows(patients),
            "arrays": TABLES["arrays"].from_rows(row for s in stores for row in array_rows(s)),
            **{name: pa.concat_tables([f[name] for f in measured]) for name in MEASURED},
        }


def _forget_hashes(dataset: Location) -> None:
    """Let the manifest that is there say nothing of the files of tables, which now change.

    So that the dataset can be read until the new one is there, and if this is broken off.
    """
    try:
        manifest = open_manifest(dataset)
    except DatasetError:  # none, or none that anyone can read
        return
    if manifest.table_sha256:
        unproved = manifest.model_copy(update={"table_sha256": {}})
        dataset.write(MANIFEST_NAME, unproved.dump().encode())


def _store_bytes(dataset: Location, stores: list[StoreMetadata]) -> Mapping[str, int]:
    """Bytes of all objects of each patient's store; in a bucket by one listing of all."""
    if dataset.is_local:  # where stores that are being written come and go in between
        ids = [s.patient_id for s in stores]
        return {i: sum(dataset.find(store_path(i)).values()) for i in ids}
    total: Counter[str] = Counter()
    for name, size in dataset.find("patients").items():
        total[name.partition("/")[0].removesuffix(SUFFIX)] += size
    return total


def _remove_stale(dataset: Location, manifest: Manifest) -> None:
    """Remove table files of an earlier run that the manifest no longer names."""
    named = {f for parts in manifest.tables.values() for files in parts.values() for f in files}
    for name in dataset.find("metadata"):
        file = f"metadata/{name}"
        if "/" in name and name.endswith(".parquet") and file not in named:
            dataset.delete(file)
