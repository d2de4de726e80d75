"""Geometry of labelled arrays, also after slicing.

Positions come from the coordinates `z y x` (mm, LPS). A grid that is not aligned with the
patient's axes has no such coordinates; there the affine of the stored grid applies, and a sliced
array can be located only if `track` had numbered its voxels.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import xarray as xr

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import (
    SAME_GRID_MM,
    FloatArray,
    affine_from_axes,
    axis_coordinates,
    is_aligned,
    ras_to_lps,
)
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.schema.attributes import AFFINE, SHAPE, STORED_GRID, plain, structured
from lundprobe_zarr.schema.layout import AXIS_ATTRIBUTES
from lundprobe_zarr.schema.records import SOURCES
from lundprobe_zarr.vocabulary.files import parse_path
from lundprobe_zarr.vocabulary.names import SPATIAL_DIMS, is_patient_id

Labelled = TypeVar("Labelled", xr.DataArray, xr.Dataset)
AnyLabelled = xr.DataArray | xr.Dataset

#: Coordinates that number an array's voxels in a grid, by dimension.
INDEX_NAMES: dict[str, str] = {dim: f"{dim}_index" for dim in SPATIAL_DIMS}
#: Coordinates are float64 up to some hundred mm: equal ones agree to about 1e-13 mm.
_SAME_LATTICE_MM = 1e-6


@dataclass(frozen=True, eq=False)
class Home:
    """The stored grid of some voxels, with patient and name of the grid if known."""

    grid: Grid
    patient_id: str | None
    name: str | None

    def to_attribute(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        affine, shape = self.grid.affine.tolist(), [int(n) for n in self.grid.shape]
        return {"patient_id": self.patient_id, "grid": self.name, AFFINE: affine, SHAPE: shape}


def home_of(data: AnyLabelled) -> Home | None:
    """Return the stored grid of an array or of a Dataset's first volume; None if unknown.

    It comes from the attribute `sources` (the NIfTI header and path of each source file) or, for
    resampled data, `stored_grid`. A Dataset's own `affine` and `shape` take precedence.
    """
    if isinstance(data, xr.DataArray):
        return _home_of_attributes(data.attrs)
    if STORED_GRID in data.attrs:
        return _home_of_attributes(data.attrs)
    homes = (_home_of_attributes(v.attrs) for v in data.variables.values())
    home = next((h for h in homes if h is not None), None)
    own = _own_grid(data.attrs)
    if own is None:
        return home
    return replace(home, grid=own) if home else Home(own, None, None)


def _home_of_attributes(attributes: Mapping[str, Any]) -> Home | None:
    found = structured({n: attributes[n] for n in (STORED_GRID, SOURCES) if n in attributes})
    if STORED_GRID in found:
        stored = found[STORED_GRID]
        grid = _own_grid(stored)
        return Home(grid, stored["patient_id"], stored["grid"]) if grid else None
    source = next((s for s in found.get(SOURCES, ()) if s.get("header")), None)
    if source is None:
        return None
    patient_id, name = _whose(str(source["path"]))
    return Home(_grid_of_header(base64.b64decode(source["header"])), patient_id, name)


def _own_grid(attributes: Mapping[str, Any]) -> Grid | None:
    if AFFINE not in attributes or SHAPE not in attributes:
        return None
    z, y, x = (int(n) for n in attributes[SHAPE])
    return Grid(_affine(attributes), (z, y, x))


def _affine(attributes: Mapping[str, Any]) -> FloatArray:
    """Return the attribute `affine`, sixteen numbers or nested lists, as (4, 4)."""
    return np.array(attributes[AFFINE], dtype=np.float64).reshape(4, 4)


def _grid_of_header(raw: bytes) -> Grid:
    # Imported late: opening a patient should not import nibabel.
    from lundprobe_zarr.schema.header import affine_mm, parse_header

    header = parse_header(raw)
    i, j, k = (int(n) for n in header["dim"][1:4])
    return Grid(affine_mm(header), (k, j, i))


def _whose(path: str) -> tuple[str | None, str | None]:
    """Return patient and grid of a source file's path."""
    parts = path.split("/")
    for place, part in enumerate(parts):
        if is_patient_id(part):
            record = parse_path("/".join(parts[place + 1 :]))
            return part, record.grid if record else None
    return None, None


def grid_of(data: AnyLabelled) -> Grid:
    """Return the lattice of the current voxels of an array or Dataset.

    An axis of one voxel, or a scalar coordinate (`.isel(z=3)`), has the stored voxels' thickness.
    Raise `UsageError` if voxels are not evenly spaced, or if their location is unknown.
    """
    coordinates = data.coords
    if all(dim in coordinates for dim in SPATIAL_DIMS):
        return _grid_of_positions(data)
    if all(name in coordinates for name in INDEX_NAMES.values()):
        return _grid_of_indices(data)
    return _grid_of_whole(data)


def _axis(data: AnyLabelled, name: str) -> tuple[float, float | None, int]:
    """Return first value, step (None for one value) and length of an axis' coordinate."""
    values = np.atleast_1d(np.asarray(data.coords[name].values, dtype=np.float64))
    if not values.size:
        raise UsageError(
            f"no voxels along {name!r}",
            expected="at least one",
            remedy=(
                "slice in the order of the coordinate: if it descends, use "
                f".sel({name}=slice(high, low))"
            ),
        )
    if values.ndim > 1:
        raise UsageError(f"coordinate {name!r} has shape {values.shape}", expected="one dimension")
    if values.size == 1:
        return float(values[0]), None, 1
    step = (values[-1] - values[0]) / (values.size - 1)
    uneven = float(np.abs(values - values[0] - step * np.arange(values.size)).max())
    if not np.isfinite(values).all() or step == 0 or uneven > SAME_GRID_MM:
        raise UsageError(
            f"voxels are not evenly spaced along {name!r}: steps of {np.unique(np.diff(values))}",
            expected="equal steps",
            remedy="select a slice, start:stop:step",
        )
    return float(values[0]), float(step), int(values.size)


def _grid_of_positions(data: AnyLabelled) -> Grid:
    axes = [_axis(data, dim) for dim in SPATIAL_DIMS]
    reference = _reference(data)
    if reference is not None and not is_aligned(reference.affine):
        reference = None
    steps = [_step(dim, step, reference) for dim, (_, step, _) in zip("zyx", axes, strict=True)]
    z, y, x = (length for _, _, length in axes)
    found = Grid(affine_from_axes([first for first, _, _ in axes], steps), (z, y, x))
    return found if reference is None else _on_lattice(found, reference)


def _reference(data: AnyLabelled) -> Grid | None:
    """Return a grid with more detail than coordinates have: thickness, slight tilt."""
    home = home_of(data)
    return _own_grid(data.attrs) or (home.grid if home else None)


def _step(dim: str, step: float | None, reference: Grid | None) -> float:
    if step is not None:
        return step
    if reference is None:
        raise UsageError(
            f"one voxel along {dim!r} and no attribute with its thickness",
            expected="two voxels, or an array with the attributes it was opened with",
        )
    row = "xyz".index(dim)
    return float(ras_to_lps(reference.affine)[row, row])


def _on_lattice(found: Grid, reference: Grid) -> Grid:
    """Return `found` computed exactly from `reference` if it is a slice of it; else `found`."""
    lps, base = ras_to_lps(found.affine), ras_to_lps(reference.affine)
    steps, sizes = np.diag(lps)[:3], np.diag(base)[:3]
    start, step = (lps[:3, 3] - base[:3, 3]) / sizes, steps / sizes
    whole_start, whole_step = np.rint(start), np.rint(step)
    longest = np.array(found.shape[::-1]) * np.abs(step - whole_step)
    if np.any((np.abs(start - whole_start) + longest) * np.abs(sizes) > _SAME_LATTICE_MM):
        return found
    return reference.stepped(whole_start[::-1], whole_step[::-1], found.shape)


def _grid_of_indices(data: AnyLabelled) -> Grid:
    axes = [_axis(data, name) for name in INDEX_NAMES.values()]
    affine = _affine(data.coords[INDEX_NAMES["z"]].attrs)
    z, y, x = (length for _, _, length in axes)
    start = np.array([first for first, _, _ in axes])
    step = np.array([1.0 if step is None else step for _, step, _ in axes])
    return Grid(affine, (z, y, x)).stepped(start, step, (z, y, x))


def _grid_of_whole(data: AnyLabelled) -> Grid:
    reference = _reference(data)
    sizes = tuple(data.sizes.get(dim) for dim in SPATIAL_DIMS)
    if reference is None or sizes != reference.shape:
        whole = "unknown" if reference is None else reference.shape
        raise UsageError(
            f"voxels (z, y, x) = {sizes} without mm coordinates, and the stored "
            f"grid is {whole}: the location of the voxels is unknown",
            remedy=(
                "on such a grid call `.lp.track()` on the whole array before "
                "slicing it, or `.lp.crop`"
            ),
        )
    return reference


def unplaced(data: Labelled) -> Labelled:
    """Return `data` without coordinates of location."""
    return data.drop_vars([n for n in (*SPATIAL_DIMS, *INDEX_NAMES.values()) if n in data.coords])


def placed(data: Labelled, grid: Grid) -> Labelled:
    """Return `data` with the coordinates of `grid`: mm, or indices if oblique."""
    bare = unplaced(data)
    axes = axis_coordinates(grid.affine, grid.shape)
    if not axes:
        return tracked(bare, grid)
    return bare.assign_coords({d: ((d,), v, AXIS_ATTRIBUTES[d]) for d, v in axes.items()})


def tracked(data: Labelled, grid: Grid) -> Labelled:
    """Return `data` with coordinates that number the voxels of `grid`."""
    coords: dict[Hashable, Any] = {}
    for dim, size in zip(SPATIAL_DIMS, grid.shape, strict=True):
        attributes = {
            "long_name": f"index along {dim} in the grid of `affine`",
            AFFINE: grid.affine.tolist(),
        }
        coords[INDEX_NAMES[dim]] = ((dim,), np.arange(size), plain(attributes))
    return data.assign_coords(coords)


def traceable(data: Labelled, grid: Grid) -> Labelled:
    """Return `data` so that slices can be located: numbered if it has no mm coordinates."""
    if all(dim in data.coords for dim in SPATIAL_DIMS) or INDEX_NAMES["z"] in data.coords:
        return data
    return tracked(data, grid)


def with_grid(data: Labelled, grid: Grid, home: Home | None) -> Labelled:
    """Return `data` with coordinates and attributes of its own `grid`.

    Drop `sources`, which describes stored voxels. `home` keeps the grid that tables refer to.
    """
    kept = {k: v for k, v in data.attrs.items() if k not in (SOURCES, AFFINE, SHAPE, STORED_GRID)}
    own = {AFFINE: grid.affine.tolist(), SHAPE: [int(n) for n in grid.shape]}
    stored = {STORED_GRID: home.to_attribute()} if home else {}
    result = placed(data, grid)  # a new object: `data` keeps its own attributes
    result.attrs = kept | plain(own | stored)
    return result


def over_volumes(
    data: Labelled, function: Callable[[xr.DataArray], xr.DataArray], grid: Grid
) -> Labelled:
    """Apply `function`, which returns volumes on `grid`, to an array or a Dataset's volumes.

    Variables without `z y x` are unchanged.
    """
    home = home_of(data)
    if isinstance(data, xr.DataArray):
        return with_grid(function(require_volume(data)), grid, home)
    variables = {
        name: with_grid(function(require_volume(v)), grid, home) if _is_spatial(v) else v
        for name, v in data.data_vars.items()
    }
    return with_grid(xr.Dataset(variables, attrs=data.attrs), grid, home)


def over_arrays(data: Labelled, function: Callable[[xr.DataArray], xr.DataArray]) -> Labelled:
    """Apply `function`, which keeps the geometry, to an array or each array of a Dataset."""
    if isinstance(data, xr.DataArray):
        return function(data)
    return data.assign({name: function(v) for name, v in data.data_vars.items()})


def _is_spatial(data: xr.DataArray) -> bool:
    return bool(set(SPATIAL_DIMS) & set(data.dims))


def require_volume(data: Labelled) -> Labelled:
    """Return `data`; raise `UsageError` if it lacks one of the dimensions `z y x`."""
    if not set(SPATIAL_DIMS) <= set(data.dims):
        name = repr(data.name) if isinstance(data, xr.DataArray) else list(data.data_vars)
        raise UsageError(
            f"{name} has dimensions {tuple(data.dims)}",
            expected="z, y and x among them",
            remedy="keep a slice as a dimension with e.g. `.isel(z=[3])`",
        )
    return data


def single_volume(data: xr.DataArray) -> xr.DataArray:
    """Return one volume as (z, y, x), with scalar coordinates as axes of one voxel.

    Raise `UsageError` with the labels of any other dimension.
    """
    left = [d for d in data.dims if d not in SPATIAL_DIMS]
    if left:
        choices = "; ".join(f"{d} is one of {data[d].values.tolist()}" for d in left)
        raise UsageError(
            f"array {data.name!r} holds several volumes: {choices}",
            remedy=f"select one, e.g. `.sel({left[0]}={data[left[0]].values.tolist()[0]!r})`",
        )
    for dim in SPATIAL_DIMS:
        if dim not in data.dims:
            data = _as_axis(data, dim)
    return data.transpose(*SPATIAL_DIMS)


def _as_axis(data: xr.DataArray, dim: str) -> xr.DataArray:
    if dim not in data.coords and INDEX_NAMES[dim] not in data.coords:
        raise UsageError(
            f"array {data.name!r} has neither dimension nor coordinate {dim!r}",
            expected="one",
            remedy=f"keep a slice as a dimension with e.g. `.isel({dim}=[3])`",
        )
    return data.expand_dims(dim)
