"""The accessor `.lp` on labelled data, and many patients in one labelled object.

Importing this module registers the accessor on `xarray.Dataset` and `xarray.DataArray`.
Select labels with `.lp.select`, which checks them: plain `.sel` raises a bare `KeyError`.
Everything is lazy unless it says otherwise: geometry comes from coordinates and attributes,
places of structures from the tables, and voxels stay unread until something computes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, overload

import xarray as xr

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.affine import FloatArray, origin_lps
from lundprobe_zarr.geometry.common_grid import CommonGrid
from lundprobe_zarr.geometry.lattice import respaced
from lundprobe_zarr.labelled.cohort import cohort_on_grid, cohort_tree
from lundprobe_zarr.labelled.crop import Region, Tables, Target, crop_to, region_of
from lundprobe_zarr.labelled.grid import (
    AnyLabelled,
    Labelled,
    grid_of,
    require_volume,
    tracked,
)
from lundprobe_zarr.labelled.resample import resample_to
from lundprobe_zarr.labelled.select import select_labels, select_structure
from lundprobe_zarr.vocabulary.files import Label

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from nibabel.nifti1 import Nifti1Image

    from lundprobe_zarr.cohort import Cohort

__all__ = ["CommonGrid", "DataArrayAccessor", "DatasetAccessor", "Region", "accessor", "to_xarray"]


class _Accessor(Generic[Labelled]):
    """What arrays and Datasets have in common: where voxels lie, and other voxels of the same."""

    def __init__(self, data: Labelled) -> None:
        self._data: Labelled = data

    @property
    def affine(self) -> FloatArray:
        """Affine (4, 4), float64, voxel (i, j, k) -> mm, RAS; (i, j, k) count along x, y, z.

        It is that of the voxels as they are now: sliced, strided, reversed or resampled. The
        affine of an untouched array is the stored one to the last bit. Raises `UsageError` if
        voxels are unevenly spaced, or if nothing tells which ones they are: slices of an oblique
        grid, which has no mm coordinates, can only be placed after `track`. (Nor can it be seen
        that such an array was reversed as a whole: `track` first.)
        """
        return grid_of(self._data).affine

    @property
    def spacing_mm(self) -> FloatArray:
        """Distance of neighbouring voxel centres along z, y, x (3,), mm, float64, positive.

        An axis of one voxel has the thickness of the stored voxels. Raises as `affine` does.
        """
        return grid_of(self._data).spacing_mm

    @property
    def origin_mm(self) -> FloatArray:
        """Centre of the first voxel, z, y, x (3,), mm, LPS, float64. Raises as `affine` does."""
        return origin_lps(grid_of(self._data).affine)

    def track(self) -> Labelled:
        """The data with coordinates `z_index`, `y_index`, `x_index` that number its voxels.

        For oblique grids, which have no coordinates in mm: with these, `affine` stays right
        whatever slicing follows. Raises as `affine` does.
        """
        return tracked(require_volume(self._data), grid_of(self._data))

    def resample(
        self, spacing_mm: float | Sequence[float], *, order: int | None = None
    ) -> Labelled:
        """The same volume with voxels of `spacing_mm` (z, y, x, or one for all). Lazy.

        Alignment: old and new volume share their *centre*; the new one has as many voxels as fit
        between the old one's outer edges, and exactly the spacing asked for. So edges coincide
        where the extent is a multiple of the spacing, and the own spacing changes nothing.

        Values: `order` is that of the spline, 0 (nearest) to 5; 1 (linear) if not given. Masks
        are interpolated as 0 and 1, and are mask where that is a half or more: the volume is kept
        and the outline not shifted, where nearest would round half-way places to one side. Apart
        from order 0, integers become float32. Coarser voxels are samples, not means.

        Edges: within half an old voxel of the outermost centres, which is still inside the
        volume, the outermost value is carried on; nothing beyond is asked for.

        Variables without `z y x` stay as they are. Raises `UsageError` if spacing or order make
        no sense, if `z`, `y` or `x` is no dimension any more, or as `affine` does.
        """
        return resample_to(self._data, respaced(grid_of(self._data), spacing_mm), order)

    def resample_like(
        self, other: AnyLabelled, *, order: int | None = None, fill: float | None = None
    ) -> Labelled:
        """The data on the voxels of `other`, e.g. the planning dose on the MRI. Lazy.

        Values as in `resample`. `fill` is for voxels whose centre lies outside the volume, in
        masks always False; integers that cannot hold it become float32. Without it, such voxels
        are an error: `UsageError`.
        """
        return resample_to(self._data, grid_of(other), order, fill)

    def region(self, target: Target, tables: Tables | None = None) -> Region:
        """Where a structure is, from the tables, to crop other grids to. See `crop`."""
        return region_of(self._data, target, tables)

    def crop(
        self,
        target: Target,
        tables: Tables | None = None,
        *,
        margin_mm: float = 0.0,
        fill: float | None = None,
    ) -> Labelled:
        """The voxels around a structure, and at least `margin_mm` beyond. Reads no mask. Lazy.

        `target` is a clinical structure by name, looked up in `tables`: the patient, or a cohort
        with it. Or it is a row of the structures table, of the same patient and grid, for a
        network's or an observer's segmentation too; or a `Region`, from any grid; or first and
        end voxel (z, y, x; exclusive) of this array. The box is the table's `bbox_start` to
        `bbox_stop`, wherever slicing or resampling has since put it.

            patient.mri.lp.crop("Rectum", patient, margin_mm=15).image.sel(modality="T2w")

        Crop first and select labels after, as here: then computing reads that box alone, where
        the other way round dask has whole slices read.

        The box ends at the volume's edge; with `fill` it is padded with that beyond (masks with
        False; integers that cannot hold it become float32).

        Raises `UnknownLabelError` for no structure of this dataset, `MissingStructureError` for
        one that the patient lacks, `UsageError` for a target that belongs to other voxels or lies
        beside these, or as `affine` does.
        """
        return crop_to(self._data, region_of(self._data, target, tables), margin_mm, fill)

    def select(self, **labels: Label | Sequence[Label]) -> Labelled:
        """As `.sel` with labels of modality, structure, fold, step or observer, checked. Lazy.

        The way to select by label, or by a list of them: what goes wrong is said in full.

            patient.observers.mask.lp.select(structure="Rectum", step=2, observer="obsC")

        Where `.sel` raises a bare `KeyError`, this raises `MissingStructureError` for a label
        that this patient lacks and `UnknownLabelError` for one that does not exist, both naming
        those there are; `UsageError` for a dimension without labels.
        """
        return select_labels(self._data, labels)

    def structure(self, name: str) -> xr.DataArray:
        """The structure's slice of an array, or of a Dataset's `mask`. Lazy. Raises as `select`."""
        return select_structure(self._data, name)


class DatasetAccessor(_Accessor[xr.Dataset]):
    """`dataset.lp`: geometry, cropping and resampling of all volumes of a Dataset."""


class DataArrayAccessor(_Accessor[xr.DataArray]):
    """`array.lp`: geometry, cropping, resampling, other libraries' images, pictures."""

    def to_nifti(self) -> Nifti1Image:
        """The volume as a nibabel image: values (i, j, k), the affine exactly. Reads the volume.

        Physical values in the array's type; masks as uint8. Sform and qform are both set, but on
        a sheared grid, which a qform cannot say, the sform alone. Units mm. Other dimensions have
        to be selected first (`UsageError` names their labels).
        """
        from lundprobe_zarr.labelled.convert import to_nifti

        return to_nifti(self._data)

    def to_sitk(self) -> Any:
        """The volume as a SimpleITK image, masks as uint8. Reads the volume.

        `TransformIndexToPhysicalPoint((i, j, k))` is the array's coordinates x, y, z there: both
        are mm, LPS. Raises `UsageError` without SimpleITK, or as `to_nifti` does.
        """
        from lundprobe_zarr.labelled.convert import to_sitk

        return to_sitk(self._data)

    def plot(
        self,
        view: str = "axial",
        at: float | None = None,
        *,
        masks: AnyLabelled | None = None,
        structures: Sequence[str] | None = None,
        **style: Any,
    ) -> Figure:
        """One slice with outlines of structures. Reads that slice alone, as far as chunks allow.

        `view` is `axial`, `coronal` or `sagittal`; `at` the place of the slice along its normal,
        mm, LPS, nearest voxel (middle if not given; on an oblique grid mm from the first voxel).
        `masks` is an array with a `structure` coordinate on the same voxels, or a Dataset with
        such a `mask`, of which `structures` (all, if not given) are drawn. `style` goes to
        `Axes.imshow`; grey between the 1st and 99.7th percentile if not given.

        Every millimetre is as long in all directions; the patient's right is at the left, and
        anterior or superior at the top. The figure has no pyplot state: `savefig` it, or have it
        as a notebook cell's value, which shows it. Raises `UsageError` for an unknown view or a
        place outside, and as `structure` and `to_nifti` do.
        """
        from lundprobe_zarr.labelled.plot import plot_slice

        return plot_slice(self._data, view, at, masks, structures, **style)


# Not as decorators: these are untyped in xarray, and would make the classes untyped too.
xr.register_dataset_accessor("lp")(DatasetAccessor)  # type: ignore[no-untyped-call]
xr.register_dataarray_accessor("lp")(DataArrayAccessor)  # type: ignore[no-untyped-call]


@overload
def accessor(data: xr.DataArray) -> DataArrayAccessor: ...


@overload
def accessor(data: xr.Dataset) -> DatasetAccessor: ...


def accessor(data: xr.DataArray | xr.Dataset) -> DataArrayAccessor | DatasetAccessor:
    """`data.lp` with its type, which xarray does not tell type checkers and editors."""
    found: DataArrayAccessor | DatasetAccessor = data.lp
    return found


@overload
def to_xarray(cohort: Cohort) -> xr.DataTree: ...


@overload
def to_xarray(
    cohort: Cohort,
    grid: CommonGrid,
    *,
    structures: Sequence[str] | None = None,
    columns: Sequence[str] = ("protocol", "part"),
    fill: float = ...,
) -> xr.Dataset: ...


def to_xarray(
    cohort: Cohort,
    grid: CommonGrid | None = None,
    *,
    structures: Sequence[str] | None = None,
    columns: Sequence[str] = ("protocol", "part"),
    fill: float = float("nan"),
) -> xr.DataTree | xr.Dataset:
    """Many patients in one labelled, lazy object.

    Without `grid`: a DataTree with a child a patient, by patient id, each the patient's own tree
    on its own grids. Costs one request a patient, for its metadata.

    With `grid`, e.g. `CommonGrid(spacing_mm=(3, 1, 1), shape=(32, 128, 128))`: a Dataset of the
    MRI grid's volumes, resampled as by `lp.resample_like` to that grid about each patient's
    `centre` structure. No store is opened before something is computed; then each patient and
    label is a task of its own, which reads the part of one volume that the grid covers.

    - `image (patient, modality, z, y, x)` float32, `dose (patient, z, y, x)` float32, Gy,
      `mask (patient, structure, z, y, x)` bool, for `structures` (all nine if not given);
    - `present (patient, structure)`: where False, the patient lacks the organ and its mask is all
      False on purpose;
    - `z y x`: mm from the centre, along LPS axes; `centre (patient, axis)`: where that is, mm, LPS;
    - `columns` of the patients table, as coordinates along `patient`.

    `fill` is what images and doses hold outside the patient's volume, NaN unless you choose
    otherwise; a patient without sCT or dose has NaN there whatever `fill` is.

    Raises `MissingStructureError` if a patient has no `centre`, `UnknownLabelError` for a
    structure or column there is none of, `UsageError` for a grid or cohort of nothing.
    """
    if not len(cohort):
        raise UsageError(
            "the cohort has no patients", expected="one or more", remedy="widen its predicate"
        )
    if grid is None:
        return cohort_tree(cohort)
    return cohort_on_grid(cohort, grid, structures, columns, fill)
