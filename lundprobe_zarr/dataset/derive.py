"""Derive table rows from a store's metadata, so that tables can be rebuilt from stores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from lundprobe_zarr.dataset.content import patient_content
from lundprobe_zarr.geometry.affine import origin_lps, spacing
from lundprobe_zarr.schema.tables import CONTENT, store_path
from lundprobe_zarr.stores.metadata import FIDUCIAL_PATH, StoreMetadata, VolumeArray
from lundprobe_zarr.vocabulary.names import GRIDS, STRUCTURES


def patient_row(store: StoreMetadata, store_bytes: int) -> dict[str, Any]:
    """Return a row of the `patients` table; `store_bytes` is the size of the store's objects."""
    a = store.attributes
    masks = (
        store.labels("mri/clinical").get("structure", []) if "mri/clinical" in store.groups else []
    )
    missing = [s for s in STRUCTURES if s not in masks]
    row: dict[str, Any] = {
        "patient_id": store.patient_id,
        "part": a["part"],
        "protocol": a["protocol"],
        "store": store_path(store.patient_id),
    }
    for grid in GRIDS:
        row |= _grid_columns(store, grid)
    return row | {
        **{f"missing_{s}": s in missing for s in STRUCTURES},
        "missing_structures": missing,
        "multi_component_structures": a["multi_component_structures"],
        "n_fiducials": store.n_fiducials,
        **_dose_range(store),
        "sct_warning_text": a["protocol"] == "oldAcq",
        "geometry_matches_csv": a["geometry_matches_csv"],
        "findings": a["findings"],
        "source_bytes": sum(record.bytes for _, record in store.records),
        "store_bytes": store_bytes,
        CONTENT: patient_content(store),
    }


def _grid_columns(store: StoreMetadata, grid: str) -> dict[str, Any]:
    if grid not in store.groups:
        return {f"{grid}_{c}": None for c in ("shape", "spacing_mm", "origin_mm")}
    attributes = store.groups[grid]
    return {
        f"{grid}_shape": attributes["shape"],
        f"{grid}_spacing_mm": spacing(attributes["affine"])[::-1].tolist(),
        f"{grid}_origin_mm": origin_lps(attributes["affine"]).tolist(),
    }


def _dose_range(store: StoreMetadata) -> dict[str, float | None]:
    dose = store.arrays.get("dose/dose")
    low, high = (dose.sources[0].range if dose else None) or (None, None)
    return {"dose_min_gy": low, "dose_max_gy": high}


def array_rows(store: StoreMetadata) -> Iterator[dict[str, Any]]:
    """Yield rows of the `arrays` table: one per source file, the fiducial text last."""
    for array, record in store.records:
        text = array is None
        yield {
            "patient_id": store.patient_id,
            "part": store.attributes["part"],
            "source_path": record.path,
            "source_bytes": record.bytes,
            "source_sha256": record.sha256,
            "source_dtype": None if text else record.dtype,
            "labels": json.dumps(record.labels),
            "exact": record.exact,
            "max_abs_error": record.max_abs_error,
            "stored_bytes": record.stored_bytes,
            **_array_columns(array),
        }


def _array_columns(array: VolumeArray | None) -> dict[str, Any]:
    if array is None:
        group, _, variable = FIDUCIAL_PATH.rpartition("/")
        return {
            "source_shape": None,
            "group": group,
            "variable": variable,
            "stored_dtype": "float64",
        }
    return {
        "source_shape": list(array.volume_shape),
        "group": array.spec.group,
        "variable": array.spec.variable,
        "stored_dtype": array.dtype_name,
    }
