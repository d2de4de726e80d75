"""Turn finished stores into a dataset: tables, manifest and card, from the stores alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lundprobe_zarr.errors import DatasetError, NotADatasetError
from lundprobe_zarr.schema.card import dataset_card, dataset_catalog
from lundprobe_zarr.schema.croissant import CROISSANT_NAME, croissant
from lundprobe_zarr.schema.layout import SCHEMA_VERSION
from lundprobe_zarr.schema.manifest import ACCESS, ACCESS_SYNTHETIC, MANIFEST_NAME, Manifest
from lundprobe_zarr.schema.tables import COHORT_FILE, MEASURED, TABLES, store_path, table_file
from lundprobe_zarr.store.describe import array_rows, patient_row
from lundprobe_zarr.store.metadata import StoreMetadata, parse_store
from lundprobe_zarr.vocabulary.names import PARTS
from lundprobe_zarr.vocabulary.version import package_version

from .fragments import load_fragments, write_parquet
from .state import write_atomically

_SUFFIX = ".zarr"


@dataclass(frozen=True)
class Published:
    """What `finalise` made: the manifest, and stores it left out with the reason."""

    manifest: Manifest
    left_out: tuple[str, ...]


def finalise(dataset: Path, rebuild: bool = False) -> Published:
    """Write tables, manifest, card, catalog and Croissant file of all complete stores in `dataset`.

    Reads each store's metadata, and voxels only where measured rows are lost or on `rebuild`. A
    store that cannot be read is left out and named. The manifest comes last, so that a reader
    sees the old dataset or the new one. Raises `NotADatasetError` if there is no store,
    `DatasetError` if stores differ in precision.
    """
    stores, left_out = _stores(dataset)
    if not stores:
        raise NotADatasetError(
            f"{dataset}: no patient's store in {dataset / 'patients'}; expected at least one; run "
            "`lundprobe-zarr convert` first" + "".join(f"\n  {line}" for line in left_out)
        )
    manifest = _manifest(dataset, stores)
    tables = _write_tables(dataset, stores, rebuild)
    write_parquet(_all_parts(dataset, tables["patients"]), dataset / COHORT_FILE)
    manifest = manifest.model_copy(update={"tables": tables, "cohort": COHORT_FILE})
    write_atomically(dataset / "README.md", dataset_card(manifest, _sizes(dataset, manifest)))
    write_atomically(dataset / "catalog.yaml", dataset_catalog(manifest, stores[0].patient_id))
    write_atomically(dataset / CROISSANT_NAME, croissant(manifest))
    write_atomically(dataset / MANIFEST_NAME, manifest.dump())
    _remove_stale(dataset, manifest)
    return Published(manifest, tuple(left_out))


def _stores(dataset: Path) -> tuple[list[StoreMetadata], list[str]]:
    stores, left_out = [], []
    folder = dataset / "patients"
    for path in sorted(folder.glob(f"*{_SUFFIX}")) if folder.is_dir() else []:
        if path.name.startswith("."):
            continue
        try:
            store = parse_store((path / "zarr.json").read_bytes(), str(path))
        except (DatasetError, OSError) as error:  # or no folder at all
            left_out.append(f"{path.name}: {error}")
            continue
        if store_path(store.patient_id) == f"patients/{path.name}":
            stores.append(store)
        else:
            left_out.append(f"{path.name}: holds patient {store.patient_id}")
    return stores, left_out


def _manifest(dataset: Path, stores: list[StoreMetadata]) -> Manifest:
    precisions = {str(s.attributes["precision"]) for s in stores}
    if len(precisions) > 1:
        raise DatasetError(
            f"{dataset}: its stores were converted with {' and '.join(sorted(precisions))} "
            "precision; expected one; convert again with --overwrite"
        )
    synthetic = _is_synthetic(dataset, stores)
    return Manifest.model_validate(
        {
            "schema_version": SCHEMA_VERSION,
            "name": "LUND-PROBE phantom (synthetic)" if synthetic else "LUND-PROBE",
            "precision": precisions.pop(),
            "synthetic": synthetic,
            "access": ACCESS_SYNTHETIC if synthetic else ACCESS,
            "converter": f"lundprobe-zarr {package_version()}",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "patients": {p: sum(s.attributes["part"] == p for s in stores) for p in PARTS},
            "tables": {},
        }
    )


def _is_synthetic(dataset: Path, stores: list[StoreMetadata]) -> bool:
    real = [s.patient_id for s in stores if not s.attributes["synthetic"]]
    phantom = [s.patient_id for s in stores if s.attributes["synthetic"]]
    if real and phantom:
        raise DatasetError(
            f"{dataset}: holds synthetic patients ({phantom[0]}, {len(phantom)} in all) beside "
            f"others ({real[0]}, {len(real)} in all); expected one kind; convert them to "
            "destinations of their own"
        )
    return bool(phantom)


def _write_tables(
    dataset: Path, stores: list[StoreMetadata], rebuild: bool
) -> dict[str, dict[str, list[str]]]:
    files: dict[str, dict[str, list[str]]] = {name: {} for name in TABLES}
    for part in PARTS:
        chosen = [s for s in stores if s.attributes["part"] == part]
        for name, table in _tables(dataset, chosen, rebuild).items() if chosen else ():
            file = table_file(name, part)
            write_parquet(table, dataset / file)
            files[name][part] = [file]
    return files


def _all_parts(dataset: Path, files: dict[str, list[str]]) -> pa.Table:
    return pa.concat_tables([pq.read_table(dataset / f) for part in files.values() for f in part])


def _tables(dataset: Path, stores: list[StoreMetadata], rebuild: bool) -> dict[str, pa.Table]:
    patients = [patient_row(s, _tree_bytes(dataset / store_path(s.patient_id))) for s in stores]
    fragments = [load_fragments(dataset, s, rebuild) for s in stores]
    return {
        "patients": TABLES["patients"].from_rows(patients),
        "arrays": TABLES["arrays"].from_rows(row for s in stores for row in array_rows(s)),
        **{name: pa.concat_tables([f[name] for f in fragments]) for name in MEASURED},
    }


def _tree_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    return (f for f in folder.rglob("*") if f.is_file())


def _sizes(dataset: Path, manifest: Manifest) -> dict[str, dict[str, tuple[int, int]]]:
    """Rows and bytes of every table by part, for the card."""
    return {
        name: {
            part: (
                sum(pq.read_metadata(dataset / f).num_rows for f in files),
                sum((dataset / f).stat().st_size for f in files),
            )
            for part, files in parts.items()
        }
        for name, parts in manifest.tables.items()
    }


def _remove_stale(dataset: Path, manifest: Manifest) -> None:
    """Remove table files of an earlier run that the manifest no longer names."""
    named = {f for parts in manifest.tables.values() for files in parts.values() for f in files}
    for path in (dataset / "metadata").glob("*/*.parquet"):
        if path.relative_to(dataset).as_posix() not in named:
            path.unlink()
