"""The consensus of observers or folds, and the folds' uncertainty, as labelled lazy volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import xarray as xr

from lundprobe_zarr.dataset.compared import (
    STAPLE_LEVEL,
    Segmentation,
    StructureMasks,
    has_map,
    segmentations,
)
from lundprobe_zarr.errors import MissingStructureError, UsageError
from lundprobe_zarr.labelled.grid import grid_of, home_of, with_grid
from lundprobe_zarr.measures.consensus import (
    Ties,
    decision_patterns,
    majority,
    pattern_counts,
    require_raters,
    staple,
)
from lundprobe_zarr.measures.uncertainty import decision_sd, disagreement, entropy_bits, fold_mean
from lundprobe_zarr.vocabulary.names import STEPS
from lundprobe_zarr.vocabulary.suggest import require_structure

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Patient

Method = Literal["majority", "staple"]
Source = Literal["observer", "nnunet_fold"]
_METHODS, _SOURCES = get_args(Method), get_args(Source)


def consensus(
    patient: Patient,
    structure: str,
    method: Method = "majority",
    *,
    source: Source = "observer",
    step: int = 1,
    observers: Sequence[str] | None = None,
    ties: Ties = "background",
) -> xr.Dataset:
    """Return the consensus of a patient's observers, or of the folds, of one structure.

    Reads their masks once; the volumes returned are lazy. STAPLE (Warfield et al., 2004,
    doi:10.1109/TMI.2004.828354) is taken over the whole MRI grid, and equals ITK's.

    Parameters
    ----------
    patient : Patient
        An extended patient.
    structure : str
        `CTVT_427` or `Rectum`.
    method : {'majority', 'staple'}
        By votes, or by STAPLE.
    source : {'observer', 'nnunet_fold'}
        Whose masks.
    step : {1, 2}
        Step of the observers: without or with the uncertainty map. Folds have none.
    observers : sequence of str, optional
        Some of the observers. Default: all who drew in this step.
    ties : {'background', 'foreground'}
        What a voxel is that exactly half of them marked, by votes.

    Returns
    -------
    xarray.Dataset
        `mask (z, y, x)`, bool; by STAPLE where the probability is at least 0.5. By STAPLE also
        `probability (z, y, x)`, float32, and `sensitivity` and `specificity` by `observer` or
        `fold`, NaN if all masks are empty. Attributes name method, raters and ties.

    Raises
    ------
    UnknownLabelError
        For an unknown structure, or a patient without network and observers.
    MissingStructureError
        For a structure that was not segmented by them.
    UsageError
        For another method, source, step or `ties`, an observer who did not draw, or fewer than two
        masks.
    """
    _require("method", method, _METHODS)
    _require("source", source, _SOURCES)
    there = _there(patient, structure)
    raters = _raters(patient, structure, there, source, step, observers)
    masks = _read(patient, structure, raters)
    patterns = decision_patterns(list(masks.masks.values()))
    counts = pattern_counts(patterns, len(raters), masks.voxels)
    lazy = _patterns(patient, structure, raters)
    dim = "observer" if source == "observer" else "fold"
    about: dict[str, Any] = {
        "method": method,
        "source": source,
        dim + "s": [str(_label(r)) for r in raters],
    }
    about |= {"structure": structure} | ({"step": step} if source == "observer" else {})
    if method == "majority":
        inside = majority(len(raters), ties)
        mask = _looked_up(patient, lazy, inside, f"majority of {len(raters)} masks")
        return xr.Dataset({"mask": mask}, attrs=about | {"ties": ties})
    found = staple(counts)
    inside = found.probability >= STAPLE_LEVEL
    likely = found.probability.astype(np.float32)
    labels = np.array([_label(r) for r in raters])
    return xr.Dataset(
        {
            "mask": _looked_up(patient, lazy, inside, "STAPLE, probability of at least 0.5"),
            "probability": _looked_up(patient, lazy, likely, "probability by STAPLE"),
            "sensitivity": (dim, found.sensitivity, {"units": "1"}),
            "specificity": (dim, found.specificity, {"units": "1"}),
        },
        {dim: labels},
        attrs=about | {"prior": found.prior},
    )


def fold_uncertainty(patient: Patient, structure: str) -> xr.Dataset:
    """Return estimates of uncertainty made of the folds' masks, beside the dataset's map. Lazy.

    Parameters
    ----------
    patient : Patient
        An extended patient.
    structure : str
        `CTVT_427` or `Rectum`.

    Returns
    -------
    xarray.Dataset
        Volumes (z, y, x), float32. Of the share p of n folds whose mask holds a voxel:
        `fold_mean` p; `entropy`, bits; `decision_sd`, sqrt(p (1 - p)); `disagreement`, the share
        of pairs of folds that differ. `map`, if there is one: the dataset's uncertainty map, the
        standard deviation of the folds' SoftMax.

    Raises
    ------
    UnknownLabelError
        For an unknown structure, or a patient without network.
    MissingStructureError
        For a structure without folds.
    """
    there = _there(patient, structure)
    folds = [s for s in there if s.source == "nnunet_fold"]
    if not folds:
        raise MissingStructureError(f"patient {patient.patient_id} has no folds of {structure}")
    n = len(folds)
    volumes = _selected(patient, structure, folds)
    held = volumes.astype(np.uint8).sum("fold", dtype=np.uint8, keep_attrs=False)
    k = np.arange(n + 1)
    p = fold_mean(k, n)
    tables = {
        "fold_mean": (p, "share of the folds' masks"),
        "entropy": (entropy_bits(p), "entropy of the folds' masks, bits"),
        "decision_sd": (decision_sd(p), "standard deviation of the folds' masks"),
        "disagreement": (disagreement(k, n), "share of pairs of folds that differ"),
    }
    found = {
        name: _looked_up(patient, held, table.astype(np.float32), text)
        for name, (table, text) in tables.items()
    }
    if has_map(patient.dataset.store(patient.patient_id), structure):
        found["map"] = patient.nnunet.uncertainty.sel(structure=structure, drop=True)
    return xr.Dataset(found, attrs={"structure": structure, "folds": n})


def _require(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{name}={value!r}", expected=" or ".join(map(repr, known)))


def _there(patient: Patient, structure: str) -> list[Segmentation]:
    """Return the patient's segmentations of a structure; raises if there are none."""
    require_structure(structure)
    found = segmentations(patient.dataset.store(patient.patient_id))
    if not found:
        _ = patient.nnunet  # says that base patients have none
    if structure not in found:
        raise MissingStructureError(
            f"patient {patient.patient_id} has no segmentations of {structure} by network or "
            "observers",
            remedy=f"there are {', '.join(found) or 'none'}",
        )
    return found[structure]


def _raters(
    patient: Patient,
    structure: str,
    there: Sequence[Segmentation],
    source: Source,
    step: int,
    observers: Sequence[str] | None,
) -> list[Segmentation]:
    if source == "nnunet_fold" and observers is not None:
        raise UsageError(f"observers={list(observers)} of folds", remedy="leave either out")
    if step not in STEPS:
        raise UsageError(f"step={step!r}", expected=" or ".join(map(str, STEPS)))
    held = [s for s in there if s.source == source and s.step in (None, step)]
    if observers is not None:
        drew = [s.observer for s in held]
        if strange := [o for o in observers if o not in drew]:
            raise UsageError(
                f"patient {patient.patient_id} has no {structure} of {strange[0]!r} in step {step}",
                expected=f"some of {', '.join(str(o) for o in drew) or 'none'}",
            )
        held = [s for s in held if s.observer in observers]
    require_raters(len(held))
    return held


def _label(rater: Segmentation) -> str | int:
    label = rater.fold if rater.observer is None else rater.observer
    assert label is not None  # a rater is an observer or a fold
    return label


def _read(patient: Patient, structure: str, raters: Sequence[Segmentation]) -> StructureMasks:
    store = patient.dataset.store(patient.patient_id)
    return StructureMasks.read(patient.location, store, structure, raters)


def _selected(patient: Patient, structure: str, raters: Sequence[Segmentation]) -> xr.DataArray:
    """Return the raters' masks, lazy, along `observer` or `fold`, in their order."""
    if raters[0].source == "observer":
        masks: xr.DataArray = patient.observers.mask
        masks = masks.sel(structure=structure, step=raters[0].step, drop=True)
        return masks.sel(observer=[_label(r) for r in raters])
    folds: xr.DataArray = patient.nnunet.fold_mask
    return folds.sel(structure=structure, drop=True).sel(fold=[_label(r) for r in raters])


def _patterns(patient: Patient, structure: str, raters: Sequence[Segmentation]) -> xr.DataArray:
    """Return which raters marked each voxel, lazy, as bits: uint16 (z, y, x)."""
    masks = _selected(patient, structure, raters)
    dim = str(masks.dims[0])
    bits = xr.DataArray(np.uint16(1) << np.arange(len(raters), dtype=np.uint16), dims=dim)
    found: xr.DataArray = (masks.astype(np.uint16) * bits).sum(dim, dtype=np.uint16)
    return found


def _looked_up(
    patient: Patient, numbers: xr.DataArray, table: npt.NDArray[Any], text: str
) -> xr.DataArray:
    """Return `table[numbers]`, lazy, on the MRI grid."""
    take: Callable[..., Any] = table.__getitem__
    found: xr.DataArray = xr.apply_ufunc(
        take, numbers, dask="parallelized", output_dtypes=[table.dtype]
    )
    whole = patient.mri
    found.attrs = {"units": "1", "long_name": text}
    return with_grid(found, grid_of(whole), home_of(whole))
