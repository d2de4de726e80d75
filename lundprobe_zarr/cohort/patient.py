"""One patient: table rows, and the store as lazy labelled data."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from lundprobe_zarr.dataset.dataset import Dataset
from lundprobe_zarr.errors import MissingStructureError, UnknownLabelError, UsageError
from lundprobe_zarr.stores.extensions import cohort_function
from lundprobe_zarr.vocabulary.names import STRUCTURES
from lundprobe_zarr.vocabulary.suggest import unknown_label

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from lundprobe_zarr.storage.location import Location


class PageView(Protocol):
    """The page of a patient or cohort, which notebooks show in a frame."""

    def link(self) -> str:
        """Return a new link, which opens the page once, for one browser of this machine."""

    def _repr_html_(self) -> str: ...

    def _repr_png_(self) -> bytes | None: ...


class Patient:
    """One patient of a dataset. The store's metadata is read on first use.

    Attributes
    ----------
    dataset : Dataset
        The dataset of the patient.
    patient_id : str
        The patient's id.
    """

    def __init__(self, dataset: Dataset, patient_id: str) -> None:
        self.dataset = dataset
        self.patient_id = patient_id

    def __repr__(self) -> str:
        return f"<Patient {self.patient_id} of {self.location.url}>"

    def _repr_html_(self) -> str:
        """Return a slice with contours, and what the patient has; this reads one slice."""
        card: str = cohort_function("patient_card")(self)
        return card

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same patient of the same dataset, or of a copy."""
        if not isinstance(other, Patient):
            return NotImplemented
        return self.patient_id == other.patient_id and self.dataset.is_same(other.dataset)

    def __hash__(self) -> int:
        return hash(self.patient_id)

    @property
    def location(self) -> Location:
        """Where the patient's dataset is."""
        return self.dataset.location

    @cached_property
    def row(self) -> dict[str, Any]:
        """The patient's row of the patients table: column -> value."""
        return self.dataset.patient(self.patient_id)

    @property
    def structures(self) -> pd.DataFrame:
        """The patient's rows of the structures table, one per segmentation.

        Raises `DatasetError` if the table cannot be read.
        """
        frame: pd.DataFrame = self.dataset.patient_rows("structures", self.patient_id).to_pandas()
        return frame.reset_index(drop=True)

    @cached_property
    def tree(self) -> xr.DataTree:
        """The store as a lazy, dask-backed DataTree.

        What is selected of a variable, by labels and box in any order, is one dask chunk of up to
        8 Mi voxels; of more, a chunk is a slab of slices of one volume.

        Raises `DamagedStoreError` if the store is missing or its metadata is damaged.
        """
        from lundprobe_zarr.stores.tree import open_tree

        return open_tree(self.location, self.patient_id)

    @property
    def mri(self) -> xr.Dataset:
        """Images and dose on the MRI grid."""
        return self._dataset("mri")

    @property
    def sct(self) -> xr.Dataset:
        """Synthetic CT and dose on the grid of the synthetic CT."""
        return self._dataset("sct")

    @property
    def dose(self) -> xr.Dataset:
        """Dose on the planning grid. Raises `UnknownLabelError` if the patient has none."""
        return self._dataset("dose")

    @property
    def clinical(self) -> xr.Dataset:
        """Clinical delineations and fiducials on the MRI grid."""
        return self._dataset("mri/clinical")

    @property
    def nnunet(self) -> xr.Dataset:
        """nnU-Net masks, folds and uncertainty. Raises `UnknownLabelError` if there are none."""
        return self._dataset("mri/nnunet", "nnU-Net output")

    @property
    def observers(self) -> xr.Dataset:
        """Masks of four observers in two steps. Raises `UnknownLabelError` if there are none."""
        return self._dataset("mri/observers", "observer masks")

    def _dataset(self, group: str, extra: str = "") -> xr.Dataset:
        if f"/{group}" in self.tree.groups:
            return self.tree[group].to_dataset()
        if extra and self.tree.attrs["part"] == "base":
            raise UnknownLabelError(
                f"patient {self.patient_id} has no {extra}: base patients have none",
                remedy="select extended patients with cohort.where(\"part = 'extended'\")",
            )
        groups = ", ".join(g.strip("/") for g in self.tree.groups if g != "/")
        raise UnknownLabelError(
            f"patient {self.patient_id} has no group {group!r}: its dataset had none of its files",
            remedy=f"it has {groups}",
        )

    def view(self, height: int = 800) -> PageView:
        """Return the page of this patient, which a notebook shows; see `Cohort.view`.

        Where no frame is shown, such as in a PDF, there is the picture of `lundprobe-zarr preview`.
        """
        page: PageView = cohort_function("view")(self, height)
        return page

    def mask(self, structure: str, grid: str = "mri") -> xr.DataArray:
        """Return a clinical mask, lazy: bool (z, y, x).

        Parameters
        ----------
        structure : str
            Name of the structure.
        grid : {'mri', 'sct'}
            Grid of the mask.

        Raises
        ------
        MissingStructureError
            If this patient lacks the structure.
        UnknownLabelError
            If there is no such structure.
        UsageError
            If `grid` is another value.
        """
        if grid not in ("mri", "sct"):
            raise UsageError(f"grid {grid!r} has no masks", expected="'mri' or 'sct'")
        if structure not in STRUCTURES:
            raise unknown_label("structure", structure, STRUCTURES)
        present = self._present(grid)
        if structure not in present:
            raise MissingStructureError(
                f"patient {self.patient_id} lacks {structure} on the {grid} "
                "grid: it was not delineated",
                remedy=f"there are {', '.join(present) or 'none'}",
            )
        mask: xr.DataArray = self.tree[f"{grid}/clinical"].to_dataset().mask
        return mask.sel(structure=structure)

    def _present(self, grid: str) -> list[str]:
        if f"/{grid}/clinical" not in self.tree.groups:
            return []
        labels = self.tree[f"{grid}/clinical"].to_dataset().coords.get("structure")
        return [] if labels is None else [str(label) for label in labels.values]
