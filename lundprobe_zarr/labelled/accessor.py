"""The accessor `.lp` on labelled data, and many patients in one labelled object.

Importing this module registers the accessor on `xarray.Dataset` and `xarray.DataArray`.
Operations are lazy unless stated otherwise: geometry comes from coordinates and attributes,
locations of structures come from the tables, and voxels are read when they are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

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
    """Geometry, resampling, cropping and selection for arrays and Datasets."""

    def __init__(self, data: Labelled) -> None:
        self._data: Labelled = data

    @property
    def affine(self) -> FloatArray:
        """Affine (4, 4), float64, voxel (i, j, k) -> mm, RAS; (i, j, k) count along x, y, z.

        It describes the current voxels: sliced, strided, reversed or resampled. The affine of an
        unchanged array equals the stored one exactly. An oblique grid has no mm coordinates, so
        call `track` before slicing or reversing its arrays.

        Raises
        ------
        UsageError
            If voxels are not evenly spaced, or if their location is unknown.
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
        """Add coordinates `z_index`, `y_index`, `x_index` that number the voxels.

        Oblique grids have no coordinates in mm. With these, `affine` stays correct after slicing.

        Returns
        -------
        xarray.DataArray or xarray.Dataset
            The data with the coordinates.

        Raises
        ------
        UsageError
            As `affine` does.
        """
        return tracked(require_volume(self._data), grid_of(self._data))

    def resample(
        self, spacing_mm: float | Sequence[float], *, order: int | None = None
    ) -> Labelled:
        """Resample to another voxel size. Lazy.

        Old and new volume share their centre. The new one has exactly the requested spacing and as
        many voxels as fit between the outer edges of the old one. Coarser voxels are samples, not
        means. Outermost values extend half a voxel. Except with order 0, integers become float32.
        Masks are interpolated as 0 and 1 and are True where the result is at least ½, which keeps
        their volume and outline. Variables without `z y x` are unchanged.

        Parameters
        ----------
        spacing_mm
            Voxel size, mm (z, y, x, or one number).
        order
            Spline order, 0 (nearest) to 5. Default 1 (linear).

        Returns
        -------
        xarray.DataArray or xarray.Dataset
            The resampled data.

        Raises
        ------
        UsageError
            For an invalid spacing or order, if `z`, `y` or `x` is not a dimension, or as `affine`
            does.
        """
        return resample_to(self._data, respaced(grid_of(self._data), spacing_mm), order)

    def resample_like(
        self, other: AnyLabelled, *, order: int | None = None, fill: float | None = None
    ) -> Labelled:
        """Resample to the voxels of other data, e.g. the planning dose to the MRI grid. Lazy.

        Parameters
        ----------
        other
            Array or Dataset on the target grid.
        order
            Spline order, as in `resample`.
        fill
            Value of voxels whose centre lies outside the volume; False in masks. Integers that
            cannot hold it become float32.

        Returns
        -------
        xarray.DataArray or xarray.Dataset
            The resampled data.

        Raises
        ------
        UsageError
            If the target reaches beyond the volume and `fill` is not given, or as `resample` does.
        """
        return resample_to(self._data, grid_of(other), order, fill)

    def region(self, target: Target, tables: Tables | None = None) -> Region:
        """Return the bounding box of a target, to crop data on other grids; see `crop`.

        Parameters
        ----------
        target, tables
            As in `crop`.

        Returns
        -------
        Region
            The box, mm, LPS.

        Raises
        ------
        UnknownLabelError, MissingStructureError, UsageError
            As `crop` does.
        """
        return region_of(self._data, target, tables)

    def crop(
        self,
        target: Target,
        tables: Tables | None = None,
        *,
        margin_mm: float = 0.0,
        fill: float | None = None,
    ) -> Labelled:
        """Crop to a structure with a margin, without reading a mask. Lazy.

        The box comes from `bbox_start` and `bbox_stop` of the structures table and follows slicing
        and resampling. Of data as they are stored, no more than the box is read.

        Parameters
        ----------
        target
            Name of a clinical structure; or a row of the structures table of the same patient and
            grid; or a `Region` of any grid; or first and end voxel (z, y, x; end exclusive).
        tables
            The patient, or a cohort with the patient: where the name of a structure is looked up.
        margin_mm
            Smallest margin around the target, mm.
        fill
            Value of voxels beyond the volume; False in masks. Integers that cannot hold it become
            float32. None clips the box to the volume.

        Returns
        -------
        xarray.DataArray or xarray.Dataset
            The cropped data.

        Raises
        ------
        UnknownLabelError
            For an unknown structure.
        MissingStructureError
            For a structure that the patient lacks.
        UsageError
            For a target of other voxels or outside the volume, or as `affine` does.

        Examples
        --------
            patient.mri.lp.crop("Rectum", patient, margin_mm=15).image.sel(modality="T2w")
        """
        return crop_to(self._data, region_of(self._data, target, tables), margin_mm, fill)

    def select(self, **labels: Label | Sequence[Label]) -> Labelled:
        """Select by label as `.sel` does, with informative errors. Lazy.

        Parameters
        ----------
        **labels
            A label or list of labels of `modality`, `structure`, `fold`, `step` or `observer`.

        Returns
        -------
        xarray.DataArray or xarray.Dataset
            The selected data.

        Raises
        ------
        MissingStructureError
            For a label that the patient lacks.
        UnknownLabelError
            For a label that does not exist.
        UsageError
            For a dimension without labels.

        Examples
        --------
            patient.observers.mask.lp.select(structure="Rectum", step=2, observer="obsC")
        """
        return select_labels(self._data, labels)

    def structure(self, name: str) -> xr.DataArray:
        """Select one structure of an array or of a Dataset's `mask`; raise as `select` does."""
        return select_structure(self._data, name)


class DatasetAccessor(_Accessor[xr.Dataset]):
    """`dataset.lp`: geometry, cropping and resampling of all volumes of a Dataset; DVH plots."""

    def plot_dvh(
        self,
        by: Literal["protocol", "part", "source", "step", "observer", "fold"] | None = None,
        *,
        volume: Literal["%", "cc"] = "%",
        quantiles: tuple[float, float] = (5, 95),
    ) -> Figure:
        """Plot the cumulative dose-volume histograms that `lundprobe_zarr.dvh` returns.

        Of one patient, each segmentation is a line. Of several, each structure is the median of the
        volume at each dose with a band between two quantiles. The caption says of how many.

        Parameters
        ----------
        by
            Property to compare, e.g. `protocol`: a panel a structure, a median and band a value.
        volume
            `%` of the counted volume, or `cc` (cm³).
        quantiles
            Ends of the band, percent of the segmentations.

        Returns
        -------
        matplotlib.figure.Figure
            The figure, which a notebook shows; it has no pyplot state.

        Raises
        ------
        UsageError
            For another Dataset than curves of `dvh`, or an invalid argument.

        Examples
        --------
            lp.dvh(patient).lp.plot_dvh()
            lp.dvh(cohort, "Rectum", method="table").lp.plot_dvh(by="protocol")
        """
        from lundprobe_zarr.figures.dvh import draw_dvh

        return draw_dvh(self._data, by, volume, quantiles)


class DataArrayAccessor(_Accessor[xr.DataArray]):
    """`array.lp`: geometry, cropping, resampling, conversion to other libraries, plots."""

    def to_nifti(self) -> Nifti1Image:
        """Convert one volume to a nibabel image. Reads the volume.

        Returns
        -------
        nibabel.nifti1.Nifti1Image
            Physical values (i, j, k) in the array's type, masks as uint8, with the exact affine
            (RAS, mm) as sform and qform. A sheared grid has the sform only.

        Raises
        ------
        UsageError
            If dimensions other than `z y x` remain: select their labels first.
        """
        from lundprobe_zarr.labelled.convert import to_nifti

        return to_nifti(self._data)

    def to_sitk(self) -> Any:
        """Convert one volume to a SimpleITK image. Reads the volume.

        Returns
        -------
        SimpleITK.Image
            The volume, masks as uint8. `TransformIndexToPhysicalPoint((i, j, k))` equals the
            array's coordinates x, y, z; both are mm, LPS.

        Raises
        ------
        UsageError
            If SimpleITK is not installed, or as `to_nifti` does.
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
        """Plot one slice with outlines of structures. Reads the chunks of that slice only.

        The aspect is isotropic. The patient's right is on the left, anterior or superior at the
        top.

        Parameters
        ----------
        view
            `axial`, `coronal` or `sagittal`.
        at
            Position of the slice along its normal, mm, LPS; the nearest voxel is used. On an
            oblique grid, mm from the first voxel. Default: the middle.
        masks
            Array with a `structure` coordinate on the same voxels, or a Dataset with such a `mask`.
        structures
            Structures of `masks` to outline. Default: all.
        **style
            Arguments of `Axes.imshow`. Default: grey from the 1st to the 99.7th percentile.

        Returns
        -------
        matplotlib.figure.Figure
            The figure, which a notebook shows; it has no pyplot state.

        Raises
        ------
        UsageError
            For an unknown view or a position outside, or as `structure` and `to_nifti` do.
        """
        from lundprobe_zarr.labelled.plot import plot_slice

        return plot_slice(self._data, view, at, masks, structures, **style)


# Not as decorators: xarray's are untyped and would make the classes untyped.
xr.register_dataset_accessor("lp")(DatasetAccessor)  # type: ignore[no-untyped-call]
xr.register_dataarray_accessor("lp")(DataArrayAccessor)  # type: ignore[no-untyped-call]


@overload
def accessor(data: xr.DataArray) -> DataArrayAccessor: ...


@overload
def accessor(data: xr.Dataset) -> DatasetAccessor: ...


def accessor(data: xr.DataArray | xr.Dataset) -> DataArrayAccessor | DatasetAccessor:
    """Return `data.lp` with its type, for type checkers and editors.

    Parameters
    ----------
    data
        Labelled data of this package.

    Returns
    -------
    DataArrayAccessor or DatasetAccessor
        The accessor `.lp`.
    """
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
    """Open many patients as one labelled, lazy object.

    Without `grid`, each patient is a child of a DataTree on its own grids. This takes one request
    per patient, for the metadata.

    With `grid`, the volumes of the MRI grid are resampled, as `lp.resample_like` does, to that grid
    about each patient's `centre` structure. Stores are opened when voxels are computed. Each
    patient and label is one task, which reads the part of the volume that the grid covers.
    The Dataset has:

    - `image (patient, modality, z, y, x)` float32, `dose (patient, z, y, x)` float32, Gy,
      `mask (patient, structure, z, y, x)` bool;
    - `present (patient, structure)`: False where the patient lacks the structure, whose mask is
      then all False;
    - `z y x`: mm from the centre, along LPS axes; `centre (patient, axis)`: its location, mm, LPS.

    Parameters
    ----------
    cohort
        The patients.
    grid
        Common grid, e.g. `CommonGrid(spacing_mm=(3, 1, 1), shape=(32, 128, 128))`.
    structures
        Structures of `mask`. Default: all nine.
    columns
        Columns of the patients table to add as coordinates along `patient`.
    fill
        Value of images and doses outside the patient's volume. A patient without sCT or dose has
        NaN there.

    Returns
    -------
    xarray.DataTree or xarray.Dataset
        The tree of patients, or with `grid` the Dataset.

    Raises
    ------
    MissingStructureError
        If a patient lacks the `centre` structure.
    UnknownLabelError
        For an unknown structure or column.
    UsageError
        For an invalid grid or an empty cohort.
    """
    if not len(cohort):
        raise UsageError(
            "the cohort has no patients", expected="one or more", remedy="widen its predicate"
        )
    if grid is None:
        return cohort_tree(cohort)
    return cohort_on_grid(cohort, grid, structures, columns, fill)
