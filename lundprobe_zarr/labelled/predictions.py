"""Predictions of a patient's structures, kept beside the dataset: write them and open them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from lundprobe_zarr.cohort import Patient
from lundprobe_zarr.dataset.predictions import (
    MaskSource,
    StoredPredictions,
    grid_named,
    is_name,
    provenance_table,
    require_apart,
    require_prediction_name,
    require_predictions,
    whose,
)
from lundprobe_zarr.errors import MissingStructureError, UsageError
from lundprobe_zarr.exchange.predicted import NiftiPredictions
from lundprobe_zarr.geometry.affine import SAME_GRID_MM, largest_shift
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.labelled.grid import Home, grid_of, home_of, require_volume, with_grid
from lundprobe_zarr.measures.labels import (
    Labels,
    label_masks,
    label_numbers,
    require_known_numbers,
    structure_numbers,
)
from lundprobe_zarr.patches.prediction import Prediction
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.blocks import lazy_variable
from lundprobe_zarr.stores.lazy import LazyVolumes
from lundprobe_zarr.stores.prediction import prediction_spec, write_prediction_store
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stores.tree import TEXT
from lundprobe_zarr.vocabulary.names import SPATIAL_DIMS, STRUCTURES, is_patient_id
from lundprobe_zarr.vocabulary.suggest import require_structure

Mask = npt.NDArray[np.bool_]
AnyMasks = Prediction | xr.DataArray | npt.NDArray[Any] | Mapping[str, Any]
_COLUMNS = ("prediction", "patient_id", "grid", "structure", "voxels", "volume_cc", "created")


class Predictions:
    """The predictions at a place; `open_predictions` returns it.

    Whatever is read is of the very patient that is asked about: a prediction that was made of
    another patient, or before the patient was converted again from other files, is refused.
    """

    def __init__(self, place: Location) -> None:
        self.stored = StoredPredictions(place)

    def __repr__(self) -> str:
        """Return place and names, with the number of patients of each."""
        counted = [f"{n} ({len(self.patients(n))} patients)" for n in self.names]
        return f"<Predictions at {self.stored.place.url}: {', '.join(counted) or 'none'}>"

    @property
    def names(self) -> list[str]:
        """Names of the predictions, in order."""
        return self.stored.names

    def patients(self, name: str) -> list[str]:
        """Return the ids of the patients of a prediction, in order.

        Raises `UnknownLabelError` if there is no such prediction.
        """
        return self.stored.patients(self.stored.require(name))

    @property
    def table(self) -> pd.DataFrame:
        """A row per prediction, patient and structure; reads each store's metadata.

        Columns: `prediction, patient_id, grid, structure, voxels, volume_cc` (cm³)`, created` and
        `provenance` (dict).
        """
        rows = provenance_table(self.stored.all())
        return pd.DataFrame(rows, columns=[*_COLUMNS, "provenance"])

    def provenance(self, patient: Patient, name: str) -> dict[str, Any]:
        """Return what was said of a prediction when it was written. Raises like `open`."""
        return dict(self._reader(patient, name)[1].about.provenance)

    def open(self, patient: Patient, name: str) -> xr.Dataset:
        """Return a patient's prediction: lazy `mask (structure, z, y, x)`, bool.

        Raises
        ------
        UnknownLabelError
            If there is no such prediction, or none of this patient.
        DatasetError
            If it was made of other contents than the patient's, or its store is damaged.
        """
        reader, found = self._reader(patient, name)
        path = prediction_spec(found.about.grid).path
        structures = np.array([m.structure for m in found.about.masks], dtype=TEXT)
        attributes = {"units": "1", "long_name": "predicted segmentation"}
        lazy = lazy_variable(("structure", *SPATIAL_DIMS), LazyVolumes(reader, path), attributes)
        mask = xr.Dataset({"mask": lazy}, {"structure": structures}).mask
        home = Home(found.grid, patient.patient_id, found.about.grid)
        attributes = {"prediction": name, "provenance": json.dumps(found.about.provenance)}
        return xr.Dataset({"mask": with_grid(mask, found.grid, home)}, attrs=attributes)

    def mask(self, patient: Patient, structure: str, name: str) -> xr.DataArray:
        """Return a predicted mask, lazy: bool (z, y, x). Raises like `open`.

        Raises `MissingStructureError` for a structure that was not predicted.
        """
        require_structure(structure)
        masks: xr.DataArray = self.open(patient, name).mask
        there = [str(s) for s in masks.structure.values]
        if structure not in there:
            raise MissingStructureError(
                f"prediction {name!r} of patient {patient.patient_id} has no {structure}",
                remedy=f"it has {', '.join(there)}",
            )
        return masks.sel(structure=structure)

    def _reader(self, patient: Patient, name: str) -> tuple[StoreReader, Any]:
        return self.stored.reader(name, patient.dataset.store(patient.patient_id))


#: What stands for predictions: their place, opened or not, or a name and a folder of NIfTI files.
AnyPredictions = str | os.PathLike[str] | Predictions | Mapping[str, str | os.PathLike[str]]


def open_predictions(
    location: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> Predictions:
    """Open the predictions that `write_prediction` wrote to a place.

    Parameters
    ----------
    location : str or path
        The folder, or the URL of the bucket's folder.
    storage_options : mapping, optional
        Options of the fsspec file system, such as credentials.

    Returns
    -------
    Predictions
        Names, patients, structures, and the masks. An empty folder or bucket has no names.

    Raises
    ------
    NotADatasetError
        If the place does not exist, or holds something else than predictions.
    DatasetError
        If it cannot be listed.

    Examples
    --------
        predictions = lp.open_predictions("predictions")
        predictions.table
        predictions.mask(patient, "Rectum", "unet")
    """
    place = Location(location, storage_options)
    require_predictions(place)
    return Predictions(place)


def write_prediction(
    patient: Patient,
    masks: AnyMasks,
    name: str,
    provenance: Mapping[str, Any],
    *,
    to: str | os.PathLike[str],
    labels: Labels | Sequence[str] | None = None,
    grid: str = "mri",
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Write a segmentation of a patient to a place of predictions, beside the dataset.

    It appears under its name whole or not at all, once every voxel was read back and compared.
    The dataset is not changed.

    Parameters
    ----------
    patient : Patient
        Whose structures were segmented.
    masks : Prediction, xarray.DataArray, numpy.ndarray or mapping
        Masks on the patient's grid: bool (structure, z, y, x); a map of whole numbers (z, y, x),
        with `labels`; or structure -> bool (z, y, x). A labelled array has to lie on the grid. A
        `Prediction` that was made on another lattice has to be moved first: `.native()`.
    name : str
        Name of the prediction, for all patients alike, e.g. `unet-v1`.
    provenance : mapping
        What made it, as JSON can hold it, e.g. `{"model": "unet", "version": "1.2"}`.
    to : str or path
        Folder or bucket for predictions; not the dataset or in it.
    labels : mapping or sequence of str, optional
        Of a map of whole numbers, which are which structure: `{1: "Rectum"}` or, as in nnU-Net's
        `dataset.json`, `{"Rectum": 1, "PTVT_427": [1, 2]}`. Of an array of masks without labels,
        the structures in its order.
    grid : {'mri', 'sct'}
        The patient's grid that the masks are on.
    overwrite : bool
        Whether to replace a prediction of this name and patient.
    storage_options : mapping, optional
        Options of the fsspec file system of `to`.

    Raises
    ------
    UsageError
        If the masks are of another type, shape or lattice, or labelled as other structures, if a
        number has no label, if the name cannot be one, if `to` is a dataset, or if the prediction
        is there already.
    UnknownLabelError
        For an unknown structure, or if the patient lacks the grid.
    DatasetError
        If it cannot be written; it is an `OSError`.
    VerificationError
        If other voxels are read back than were written.

    Examples
    --------
        predicted = collected.finish(patient.patient_id).native().map(lambda v: v.argmax(axis=0))
        lp.write_prediction(
            patient, predicted, "unet-v1", {"model": "unet"}, to="predictions", labels={1: "Rectum"}
        )
    """
    if not isinstance(patient, Patient):
        raise UsageError(
            f"write_prediction was given {type(patient).__name__}", expected="a patient"
        )
    require_prediction_name(name)
    recorded = _provenance(provenance)
    place = Location(to, storage_options)
    place.require_writable()
    require_apart(place)
    store = patient.dataset.store(patient.patient_id)
    found = _masks(masks, labels, patient, grid_named(store, grid))
    own = StoredPredictions(place).at(name)
    if not overwrite and own.exists(f"{store_path(patient.patient_id)}/zarr.json"):
        raise UsageError(
            f"prediction {name!r} of patient {patient.patient_id} is there already",
            where=place.url,
            remedy="give another name, or overwrite=True",
        )
    write_prediction_store(own, whose(store, grid), name, found, recorded)


def _provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON keeps of it."""
    try:
        if isinstance(provenance, Mapping):
            kept: dict[str, Any] = json.loads(json.dumps(dict(provenance), allow_nan=False))
            return kept
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"provenance that JSON cannot hold ({error})", expected="texts, numbers, lists, dicts"
        ) from error
    raise UsageError(
        f"provenance {provenance!r}", expected="a mapping, e.g. {'model': 'unet', 'version': '1'}"
    )


def _masks(
    masks: AnyMasks, labels: Labels | Sequence[str] | None, patient: Patient, grid: Grid
) -> dict[str, Mask]:
    """Return the mask of each structure, in canonical order."""
    if isinstance(masks, Prediction):
        _require_lattice(masks, patient, grid)
        masks = masks.values
    if isinstance(masks, Mapping):
        for name, mask in masks.items():
            _require_names(mask, name)
        found = {n: _volume(m, n, patient, grid) for n, m in masks.items()}
    else:
        found = _of_array(masks, labels, patient, grid)
    if not found:
        raise UsageError("no masks", expected="at least one structure")
    for structure in found:
        require_structure(structure)
    return {s: np.ascontiguousarray(found[s]) for s in STRUCTURES if s in found}


def _require_lattice(prediction: Prediction, patient: Patient, grid: Grid) -> None:
    if prediction.patient_id != patient.patient_id:
        raise _another_patient("a prediction", prediction.patient_id, patient)
    if prediction.lattice.shape != grid.shape or not np.array_equal(prediction.affine, grid.affine):
        raise UsageError(
            f"a prediction on {prediction.lattice.shape} voxels of "
            f"{np.round(prediction.spacing_mm, 4).tolist()} mm",
            expected=f"the patient's grid, {grid.shape} of "
            f"{np.round(grid.spacing_mm, 4).tolist()} mm",
            remedy="move it there with `.native()`, or give grid=",
        )


def _another_patient(what: str, patient_id: str | None, patient: Patient) -> UsageError:
    return UsageError(f"{what} of patient {patient_id}", expected=f"one of {patient.patient_id}")


def _volume(mask: Any, name: str, patient: Patient, grid: Grid) -> Mask:
    """Return one mask (z, y, x) of the grid."""
    values = _values(mask, patient, grid)
    if values.dtype != np.bool_ or values.shape != grid.shape:
        raise UsageError(
            f"mask of {name}: {values.dtype} {values.shape}",
            expected=f"bool {grid.shape} (z, y, x)",
            remedy=_mask_remedy(values),
        )
    return values


def _mask_remedy(values: npt.NDArray[Any]) -> str:
    if values.dtype == np.bool_:
        return "give the axes in the order z, y, x, or grid= if it is of another grid"
    if np.isin(values, (0, 1)).all():
        return "make it a mask with `.astype(bool)`"
    return "make a mask of probabilities with `> 0.5`, say"


def _require_names(array: Any, labels: Any) -> None:
    """Raise `UsageError` if a labelled array is of other structures than it is said to be."""
    if not isinstance(array, xr.DataArray) or "structure" not in array.coords:
        return
    own = [str(s) for s in np.atleast_1d(array.structure.values)]
    given = [labels] if isinstance(labels, str) else list(labels)
    if own != given:
        raise UsageError(
            f"masks labelled {', '.join(own)} as {', '.join(map(str, given))}",
            expected="the structures that the labelled array names, in its order",
            remedy="leave labels out, or give the values alone, without labels",
        )


def _values(array: Any, patient: Patient, grid: Grid) -> npt.NDArray[Any]:
    """Return the values (…, z, y, x) of an array; a labelled one has to lie on the grid."""
    if not isinstance(array, xr.DataArray):
        return np.asarray(array)
    home = home_of(array)
    if home is not None and home.patient_id not in (None, patient.patient_id):
        raise _another_patient("a labelled array", home.patient_id, patient)
    array = require_volume(array).transpose(..., *SPATIAL_DIMS)
    own = grid_of(array)
    shift = largest_shift(own.affine, grid.affine, grid.shape[::-1])
    if own.shape != grid.shape or shift > SAME_GRID_MM:
        raise UsageError(
            f"a labelled array of {own.shape} voxels, up to {shift:.3g} mm from the grid's",
            expected=f"all {grid.shape} voxels of the patient's grid",
            remedy="put it there with `.lp.resample_like`, sort axes that are reversed with "
            "`.sortby`, or give grid=",
        )
    return np.asarray(array)


def _of_array(
    masks: xr.DataArray | npt.NDArray[Any],
    labels: Labels | Sequence[str] | None,
    patient: Patient,
    grid: Grid,
) -> dict[str, Mask]:
    if isinstance(masks, xr.DataArray) and "structure" in masks.coords and labels is None:
        masks = masks if "structure" in masks.dims else masks.expand_dims("structure")
        labels = [str(s) for s in masks.structure.values]
    elif labels is not None and not isinstance(labels, Mapping):
        _require_names(masks, labels)
    values = _values(masks, patient, grid)
    if values.dtype == np.bool_:
        return _of_masks(values, labels, grid)
    if values.dtype.kind not in "iu" or values.shape != grid.shape:
        raise UsageError(
            f"an array of {values.dtype} {values.shape}",
            expected=f"bool (structure, *{grid.shape}) or whole numbers {grid.shape} (z, y, x)",
            remedy="of probabilities take `.argmax(axis=0)` or `> 0.5` first",
        )
    if not isinstance(labels, Mapping):
        raise UsageError(
            "a map of whole numbers without labels", expected="labels={1: 'Rectum', …}"
        )
    numbers = label_numbers(labels)
    require_known_numbers(values, numbers)
    return dict(label_masks(values, structure_numbers(numbers)))


def _of_masks(values: Mask, labels: Any, grid: Grid) -> dict[str, Mask]:
    names = [labels] if isinstance(labels, str) else labels
    if values.ndim == 3:
        values = values[None]
    is_list = isinstance(names, Sequence) and len(names) == len(values) == len(set(names))
    if not is_list or values.shape[1:] != grid.shape:
        raise UsageError(
            f"masks of shape {values.shape} with labels {labels!r}",
            expected=f"(structure, *{grid.shape}) and a structure for each",
            remedy="for example labels=['Rectum', 'Bladder']",
        )
    return dict(zip(names, values, strict=True))


def mask_source(
    predictions: AnyPredictions,
    labels: Labels | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> MaskSource:
    """Return where predicted masks come from: a place of predictions, or a folder of NIfTI files.

    Raises `UsageError` if there are none.
    """
    if isinstance(predictions, Predictions):
        return predictions.stored
    if isinstance(predictions, Mapping):
        if len(predictions) != 1:
            raise UsageError(
                f"{len(predictions)} folders of predictions",
                expected="one, e.g. {'unet-v1': 'nnunet/predicted'}",
            )
        [(name, folder)] = predictions.items()
        return NiftiPredictions(Path(folder), labels, require_prediction_name(name))
    place = Location(predictions, storage_options)
    if place.is_local and place.local().is_dir() and _holds_nifti(place.local()):
        name = place.local().name
        return NiftiPredictions(place.local(), labels, name if is_name(name) else "files")
    found = StoredPredictions(place)
    if not found.names:
        raise UsageError(
            "no predictions",
            where=place.url,
            expected="what lp.write_prediction wrote, or a folder of NIfTI files: "
            "`<patient_id>.nii.gz` with dataset.json, or `<patient_id>/<Structure>.nii.gz`",
        )
    if labels is not None:
        raise UsageError("labels of masks that name their structures", remedy="leave labels out")
    return found


def _holds_nifti(folder: Path) -> bool:
    return any(
        f.name.endswith((".nii", ".nii.gz")) or (f.is_dir() and is_patient_id(f.name))
        for f in folder.iterdir()
    )
