"""What may be asked of each configuration, and the columns its rows have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from lundprobe_zarr.errors import UnknownLabelError, UsageError
from lundprobe_zarr.schema.tables import TABLES
from lundprobe_zarr.views.huggingface.reading import REFERENCE
from lundprobe_zarr.vocabulary.names import GRIDS, MODALITY_UNITS, STRUCTURES
from lundprobe_zarr.vocabulary.nearest import suggestion

#: Configurations whose rows are those of a table, and those whose rows hold voxels.
TABLE_CONFIGS = ("patients", "structures")
VOXEL_CONFIGS = ("slices", "volumes", "patches")
CONFIGS = TABLE_CONFIGS + VOXEL_CONFIGS

#: Images there are on each grid.
MODALITIES: dict[str, tuple[str, ...]] = {"mri": tuple(MODALITY_UNITS), "sct": ("sCT",), "dose": ()}
#: Rows read ahead of a stream, by threads, unless it is said how many.
READ_AHEAD = {"slices": 8, "patches": 8}
ON_ERROR = ("raise", "skip")

_WHO = tuple(TABLES["patients"].schema)[:3]  # patient_id, part, protocol
_TRIPLE, _PLACE = pa.list_(pa.float64(), 3), pa.list_(pa.int64(), 3)
_GRID = (
    pa.field("shape", _PLACE),
    pa.field("spacing_mm", _TRIPLE),
    pa.field("origin_mm", _TRIPLE),
)
#: First voxel of a patch, and its affine, voxel (i, j, k) of the patch -> mm, RAS.
_PATCH = (
    pa.field("start", _PLACE),
    pa.field("affine", pa.list_(pa.list_(pa.float64(), 4), 4)),
    pa.field("spacing_mm", _TRIPLE),
)
_VOXELS = (
    pa.field("image", REFERENCE),
    pa.field("mask", REFERENCE),
    pa.field("structures", pa.list_(pa.string())),
    pa.field("present", pa.list_(pa.bool_())),
    pa.field("dose", REFERENCE),
)
#: Columns that only a grid with masks has.
_OF_MASKS = ("mask", "structures", "present")


def require_config(name: str) -> str:
    """`name`, if it is a configuration; raises `UnknownLabelError`, listing them."""
    if name not in CONFIGS:
        raise UnknownLabelError(
            f"no configuration {name!r}; {suggestion(name, CONFIGS)}; expected one of "
            f"{', '.join(CONFIGS)}"
        )
    return name


def schema_of(config: str, grid: str, columns: Sequence[str] | None) -> pa.Schema:
    """Columns of a configuration's rows; references to voxels are of type `REFERENCE`.

    Raises `UnknownLabelError` for one of `columns` that there is none of.
    """
    fields = {field.name: field for field in _fields(config)}
    if grid == "dose":
        fields = {n: f for n, f in fields.items() if n not in ("image", *_OF_MASKS)}
    chosen = list(fields) if columns is None else _sequence("columns", columns)
    for name in chosen:
        if name not in fields:
            raise UnknownLabelError(
                f"columns: no column {name!r} in {config}; {suggestion(name, fields)}; there are "
                f"{', '.join(fields)}"
            )
    return pa.schema([fields[name] for name in chosen])


def _fields(config: str) -> list[pa.Field]:
    if config in TABLE_CONFIGS:
        return list(TABLES[config].schema)
    if config == "slices":
        return [*TABLES["slices"].schema, *_VOXELS]
    if config == "volumes":
        return [*_WHO, *_GRID, *_VOXELS]
    return [*_WHO, *_PATCH, *_VOXELS]


def modalities_of(grid: str, given: Sequence[str] | None) -> tuple[str, ...]:
    """Modalities asked for of a grid, default all; raises `UnknownLabelError`, listing them."""
    return _labels("modalities", given, MODALITIES[grid], f" on grid {grid!r}")


def structures_of(given: Sequence[str] | None) -> tuple[str, ...]:
    """Structures asked for, default all; raises `UnknownLabelError`, listing them."""
    return _labels("structures", given, STRUCTURES, "")


def require_grid(config: str, grid: str) -> None:
    """Raises `UsageError` unless a configuration is to be had on a grid."""
    allowed = ("mri",) if config in ("slices", *TABLE_CONFIGS) else GRIDS
    if grid not in allowed:
        raise UsageError(f"grid={grid!r} of {config}; expected one of {', '.join(allowed)}")


def require_on_error(on_error: str) -> None:
    """Raises `UsageError` unless it is known what to do about a row that cannot be read."""
    if on_error not in ON_ERROR:
        raise UsageError(f"on_error={on_error!r}; expected one of {', '.join(ON_ERROR)}")


def require_read_ahead(rows: Any) -> None:
    """Raises `UsageError` unless `rows` is None or a number of rows."""
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 0):
        raise UsageError(f"read_ahead={rows!r}; expected a number of rows, from 0 on")


def require_patches_alone(config: str, given: Mapping[str, Any], spacing_mm: Any) -> None:
    """Raises `UsageError` for options of `patches` with another configuration."""
    names = [*given, *([] if spacing_mm is None else ["spacing_mm"])]
    if config != "patches" and names:
        raise UsageError(f"{', '.join(names)} of {config}; expected with patches alone")


def _sequence(name: str, given: Any) -> list[str]:
    if isinstance(given, str):
        raise UsageError(f"{name}={given!r}; expected a list, e.g. [{given!r}]")
    return list(given)


def _labels(
    name: str, given: Sequence[str] | None, known: Sequence[str], where: str
) -> tuple[str, ...]:
    chosen = tuple(known) if given is None else tuple(_sequence(name, given))
    for label in chosen:
        if label not in known:
            raise UnknownLabelError(
                f"{name}: no {label!r}{where}; {suggestion(str(label), known)}; there are "
                f"{', '.join(known) or 'none'}"
            )
    if len(set(chosen)) != len(chosen):
        raise UsageError(f"{name}={list(chosen)}; expected each once")
    return chosen
