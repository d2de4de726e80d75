"""Options and columns of each configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from lundprobe_zarr.errors import UnknownLabelError, UsageError
from lundprobe_zarr.huggingface.references import REFERENCE
from lundprobe_zarr.schema.tables import TABLES
from lundprobe_zarr.vocabulary.names import GRIDS, MODALITY_UNITS, STRUCTURES
from lundprobe_zarr.vocabulary.suggest import nearest

#: Configurations whose rows are those of a table, and those whose rows hold voxels.
TABLE_CONFIGS = ("patients", "structures")
VOXEL_CONFIGS = ("slices", "volumes", "patches")
CONFIGS = TABLE_CONFIGS + VOXEL_CONFIGS

#: Modalities on each grid.
MODALITIES: dict[str, tuple[str, ...]] = {"mri": tuple(MODALITY_UNITS), "sct": ("sCT",), "dose": ()}
#: Default number of rows that threads read ahead in a stream.
READ_AHEAD = {"slices": 8, "patches": 8}
ON_ERROR = ("raise", "skip")

_PLACE_SAYS = "the first argument says where the dataset is"
_NO_HUB = "nothing is taken from the Hugging Face Hub"
#: Options of `datasets.load_dataset` that `lundprobe_zarr.load_dataset` has no use for, and why.
_ELSEWHERE = {
    "path": _PLACE_SAYS,
    "data_files": _PLACE_SAYS,
    "data_dir": _PLACE_SAYS,
    "name": "the second argument, config, is that",
    "revision": _NO_HUB,
    "token": f"{_NO_HUB}; storage_options takes credentials",
    "trust_remote_code": _NO_HUB,
    "download_config": f"{_NO_HUB}; storage_options says how to reach a server",
    "verification_mode": "voxels are compared with their checksums whenever they are read",
    "save_infos": "the card in the dataset's folder has them",
    "features": "columns chooses them; change them with .cast(features)",
}

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
    """Return the name of a configuration; raise `UnknownLabelError` with the known ones."""
    if name not in CONFIGS:
        raise _unknown(f"no configuration {name!r}", name, CONFIGS)
    return name


def schema_of(config: str, grid: str, columns: Sequence[str] | None) -> pa.Schema:
    """Return the columns of a configuration; references to voxels are of type `REFERENCE`.

    Raise `UnknownLabelError` for an unknown column, `UsageError` without columns.
    """
    fields = {field.name: field for field in _fields(config)}
    if grid == "dose":
        fields = {n: f for n, f in fields.items() if n not in ("image", *_OF_MASKS)}
    chosen = list(fields) if columns is None else _sequence("columns", columns)
    for name in chosen:
        if name not in fields:
            raise _unknown(f"columns: no column {name!r} in {config}", name, fields)
    if not chosen or len(set(chosen)) != len(chosen):
        raise UsageError(f"columns={chosen}", expected="at least one, each once")
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
    """Return modalities of a grid, default all; raise `UnknownLabelError` with the known ones."""
    return _labels("modalities", given, MODALITIES[grid], f" on grid {grid!r}")


def structures_of(given: Sequence[str] | None) -> tuple[str, ...]:
    """Return structures, default all; raise `UnknownLabelError` with the known ones."""
    return _labels("structures", given, STRUCTURES, "")


def require_grid(config: str, grid: str) -> None:
    """Raise `UsageError` if a configuration does not exist on a grid."""
    allowed = ("mri",) if config in ("slices", *TABLE_CONFIGS) else GRIDS
    if grid not in allowed:
        raise UsageError(f"grid={grid!r} of {config}", expected=f"one of {', '.join(allowed)}")


def require_on_error(on_error: str) -> None:
    """Raise `UsageError` for an unknown error policy."""
    if on_error not in ON_ERROR:
        raise UsageError(f"on_error={on_error!r}", expected=f"one of {', '.join(ON_ERROR)}")


def require_read_ahead(rows: Any) -> None:
    """Raise `UsageError` unless `rows` is None or a number of rows."""
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 0):
        raise UsageError(f"read_ahead={rows!r}", expected="a number of rows, from 0 on")


def require_one_process(num_proc: int | None) -> None:
    """Raise `UsageError` for `num_proc` with streaming."""
    if num_proc is not None:
        raise UsageError(
            f"num_proc={num_proc!r} with streaming=True",
            expected=(
                "one of the two: workers of a DataLoader read a stream, and "
                "threads read ahead, see read_ahead"
            ),
        )


def require_options(given: Iterable[str], known: Sequence[str]) -> None:
    """Raise `UsageError` for an unknown option of `load_dataset`."""
    for name in given:
        if name in known:
            continue
        if name in _ELSEWHERE:
            raise UsageError(f"not an option here: {_ELSEWHERE[name]}", where=name)
        near = "".join(f"nearest: {', '.join(n)}; " for n in [nearest(name, known)] if n)
        raise UsageError(
            "no such option", where=name, remedy=f"{near}expected one of {', '.join(known)}"
        )


def require_patches_alone(config: str, given: Mapping[str, Any], spacing_mm: Any) -> None:
    """Raise `UsageError` for options of `patches` with another configuration."""
    names = [*given, *([] if spacing_mm is None else ["spacing_mm"])]
    if config != "patches" and names:
        raise UsageError(
            f"{', '.join(names)} of {config}", expected="these options with patches only"
        )


def _sequence(name: str, given: Any) -> list[str]:
    if isinstance(given, str):
        raise UsageError(f"{name}={given!r}", expected=f"a list, e.g. [{given!r}]")
    if not isinstance(given, Sequence) or not all(isinstance(label, str) for label in given):
        raise UsageError(f"{name}={given!r}", expected="a list of names")
    return list(given)


def _unknown(text: str, name: str, known: Iterable[str]) -> UnknownLabelError:
    names = list(known)
    near = "".join(f"nearest: {', '.join(n)}; " for n in [nearest(name, names)] if n)
    return UnknownLabelError(str(text), remedy=f"{near}there are {', '.join(names) or 'none'}")


def _labels(
    name: str, given: Sequence[str] | None, known: Sequence[str], where: str
) -> tuple[str, ...]:
    chosen = tuple(known) if given is None else tuple(_sequence(name, given))
    for label in chosen:
        if label not in known:
            raise _unknown(f"{name}: no {label!r}{where}", label, known)
    if len(set(chosen)) != len(chosen):
        raise UsageError(f"{name}={list(chosen)}", expected="each once")
    return chosen
