"""How far segmentations agree: the table of a dataset as a DataFrame, and any two masks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from lundprobe_zarr.cohort import Cohort, Patient
from lundprobe_zarr.dataset.compared import (
    PAIRS,
    How,
    agreement_rows,
    box_spacing,
    comparable,
    segmentations,
)
from lundprobe_zarr.dataset.predicted import PREDICTION_PAIRS, Wanted, compare_predictions
from lundprobe_zarr.dataset.predictions import MaskSource, NotCompared
from lundprobe_zarr.errors import MissingStructureError, UnknownLabelError, UsageError
from lundprobe_zarr.geometry.affine import COSINE_TOLERANCE, SAME_GRID_MM, largest_shift, spacing
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.labelled.grid import grid_of, single_volume
from lundprobe_zarr.labelled.predictions import AnyPredictions, mask_source
from lundprobe_zarr.labelled.resample import resample_to
from lundprobe_zarr.measures.agreement import TOLERANCES_MM
from lundprobe_zarr.measures.agreement import agreement as agreement_of
from lundprobe_zarr.measures.consensus import TIES, Ties
from lundprobe_zarr.measures.labels import Labels
from lundprobe_zarr.vocabulary.names import TARGETS
from lundprobe_zarr.vocabulary.suggest import require_structure, suggestion

if TYPE_CHECKING:
    import pyarrow as pa

#: Columns of integers that have nulls.
_LABELS = ("a_step", "a_fold", "b_step", "b_fold")
#: Largest relative difference between spacings that count as equal: headers hold float32.
_SAME_SPACING = 1e-4

AnyMask = xr.DataArray | npt.NDArray[np.bool_]


def agreement(
    of: Patient | Cohort,
    structures: str | Sequence[str] | None = None,
    pairs: str | Sequence[str] | None = None,
    *,
    compute: bool = False,
    ties: Ties = "background",
    tolerances_mm: Sequence[float] = TOLERANCES_MM,
    predictions: AnyPredictions | None = None,
    labels: Labels | None = None,
    grid: str = "mri",
) -> pd.DataFrame:
    """Return how far segmentations agree: of network and observers, or predictions with any.

    The rows are those of the table `agreement`, which `lundprobe-zarr measure` makes. With
    `compute` they are computed now from the voxels, some seconds per patient, and options may
    differ from the table's.

    With `predictions`, these are compared with what the dataset holds, now and from the voxels: a
    is a segmentation of the dataset, b the prediction, `b_source` its name. What cannot be compared
    is in no row: a patient without prediction, a structure that was not predicted, or that the
    patient lacks. `frame.attrs["not_compared"]` lists it with the reasons.

    Parameters
    ----------
    of : Patient or Cohort
        Whose segmentations. Patients without network and observers have no rows.
    structures : str or sequence of str, optional
        `CTVT_427` or `Rectum`; default: both. Of predictions any; default: all predicted.
    pairs : str or sequence of str, optional
        Kinds of pairs, a before b: `observer_observer` (of a step), `nnunet_observer`,
        `step1_step2`, `fold_nnunet`, and with the consensus of a step's observers
        `consensus_observer`, `consensus_nnunet`, `consensus_fold`, `consensus_step1_step2`.
        Of predictions `clinical_prediction`, `nnunet_prediction`, `fold_prediction`,
        `observer_prediction`. Default: all.
    compute : bool
        Whether to read the voxels instead of the table.
    ties : {'background', 'foreground'}
        With `compute`: what becomes of a voxel that exactly half of the observers marked, in the
        consensus by majority.
    tolerances_mm : sequence of float
        With `compute` or `predictions`: tolerances of the surface Dice, mm; columns
        `surface_dice_<t>mm`.
    predictions : str, path, Predictions or mapping, optional
        What `write_prediction` wrote, or a folder of NIfTI files: label maps
        `<patient_id>.nii.gz` with nnU-Net's `dataset.json`, or a mask for each structure,
        `<patient_id>/<Structure>.nii.gz`. `{"unet-v1": folder}` gives a folder another name. Files
        whose axes are exchanged or reversed are turned exactly; nothing is resampled.
    labels : mapping, optional
        Of label maps, which number is which structure, in place of `dataset.json`.
    grid : {'mri', 'sct'}
        The grid of the predictions.

    Returns
    -------
    pandas.DataFrame
        `patient_id, part, protocol, structure, pair`, what a and b are, and the measures;
        distances in mm, volumes in cm³, differences b - a. `docs/agreement.md` defines them.

    Raises
    ------
    UnknownLabelError
        For an unknown structure, if there are no extended patients, or if the dataset has no table
        yet.
    MissingStructureError
        For a structure that was not segmented by network and observers.
    UsageError
        For an unknown kind of pair, or options without `compute`; for predictions of another
        lattice than the patient's grid, and numbers without a label.
    DatasetError
        For a prediction that was made of other contents than the patient's, or cannot be read.
    """
    if predictions is not None:
        how = How(ties, tuple(float(t) for t in tolerances_mm))
        _require_options(how, compute=True)
        which = predictions_wanted(of, structures, pairs, grid, how)
        return predicted_agreement(of, mask_source(predictions, labels), which)
    if labels is not None or grid != "mri":
        raise UsageError("labels or grid without predictions", remedy="give predictions too")
    kinds = _kinds(pairs, PAIRS)
    wanted = _structures(of, structures)
    tolerances = tuple(float(t) for t in tolerances_mm)
    how = How(ties, tolerances)
    _require_options(how, compute)
    frame = _computed(of, wanted, how) if compute else _stored(_table(of, "agreement"))
    _require_rows(of, frame, wanted)
    chosen = frame["structure"].isin(wanted) & frame["pair"].isin(kinds)
    return frame[chosen].reset_index(drop=True)


def predictions_wanted(
    of: Patient | Cohort,
    structures: str | Sequence[str] | None,
    pairs: str | Sequence[str] | None,
    grid: str,
    how: How | None = None,
) -> Wanted:
    """Return what is compared of predictions. Raises like `agreement`."""
    chosen = None if structures is None else _structures(of, structures)
    return Wanted(_kinds(pairs, PREDICTION_PAIRS), chosen, grid, how or How())


def predicted_agreement(
    of: Patient | Cohort,
    predictions: MaskSource,
    wanted: Wanted,
    done: Callable[[str], None] = lambda patient_id: None,
) -> pd.DataFrame:
    """Compare predictions with the segmentations of patients: see `agreement`, which this serves.

    `done` is called with each patient.
    """
    patients = [of] if isinstance(of, Patient) else list(of)
    stores = (p.dataset.store(p.patient_id) for p in patients)
    found = compare_predictions(of.location, stores, predictions, wanted, done)
    known = of.dataset.row_of
    strangers = [
        NotCompared(i, name, None, "no such patient in the dataset")
        for name in predictions.names
        for i in predictions.patients(name)
        if i not in known
    ]
    left_out = [*predictions.left_out, *strangers, *found.left_out]
    if not found.rows:
        who = f"patient {of.patient_id}" if isinstance(of, Patient) else f"{len(patients)} patients"
        reasons = "; ".join(f"{n.patient_id or n.structure}: {n.reason}" for n in left_out[:3])
        raise UnknownLabelError(
            f"nothing of predictions {', '.join(predictions.names)} compares with {who}",
            remedy=reasons,
        )
    frame = pd.DataFrame(found.rows).astype(dict.fromkeys(_LABELS, "Int64"))
    frame.attrs["not_compared"] = [n._asdict() for n in left_out]
    return frame


def _kinds(pairs: str | Sequence[str] | None, known: Collection[str]) -> list[str]:
    kinds = list(known) if pairs is None else [pairs] if isinstance(pairs, str) else list(pairs)
    for kind in kinds:
        if kind not in known:
            raise UsageError(
                f"pairs: no kind {kind!r}",
                expected=f"one of {', '.join(known)}",
                remedy=suggestion(kind, known),
            )
    return kinds


def _structures(of: Patient | Cohort, structures: str | Sequence[str] | None) -> list[str]:
    if not isinstance(of, (Patient, Cohort)):
        raise UsageError(
            f"agreement was given {type(of).__name__}",
            expected="a patient or a cohort",
            remedy="for two masks use lp.compare_masks",
        )
    if structures is None:
        return list(TARGETS)
    wanted = [structures] if isinstance(structures, str) else list(structures)
    for structure in wanted:
        require_structure(structure)
    return wanted


def _require_options(how: How, compute: bool) -> None:
    if how.ties not in TIES:
        raise UsageError(f"ties={how.ties!r}", expected=" or ".join(map(repr, TIES)))
    if not how.tolerances_mm or not all(np.isfinite(t) and t >= 0 for t in how.tolerances_mm):
        raise UsageError(f"tolerances_mm={how.tolerances_mm}", expected="millimetres, 0 or more")
    if not compute and how != How():
        raise UsageError(
            f"ties={how.ties!r}, tolerances_mm={how.tolerances_mm}: the table has "
            f"{How().ties!r} and {How().tolerances_mm}",
            remedy="give compute=True too, which reads the voxels",
        )


def table_of(of: Patient | Cohort, name: str) -> pd.DataFrame:
    """Return the rows of a table of comparisons as a DataFrame. Raises like `Cohort.table`."""
    return _stored(_table(of, name))


def _table(of: Patient | Cohort, name: str) -> pa.Table:
    if isinstance(of, Patient):
        return of.dataset.patient_rows(name, of.patient_id)
    return of.table(name)


def _stored(table: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = table.to_pandas()
    return frame.astype({name: "Int64" for name in _LABELS if name in frame})


def _computed(of: Patient | Cohort, structures: Iterable[str], how: How) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for patient in [of] if isinstance(of, Patient) else of:
        store = patient.dataset.store(patient.patient_id)
        # A patient whose grid is askew fails alone, and is left out of a cohort, as of the table.
        if segmentations(store) if isinstance(of, Patient) else comparable(store):
            rows += agreement_rows(patient.location, store, structures, how)
    frame = pd.DataFrame(rows, columns=None if rows else ["structure", "pair"])
    return frame.astype({name: "Int64" for name in _LABELS if name in frame})


def _require_rows(of: Patient | Cohort, frame: pd.DataFrame, structures: Sequence[str]) -> None:
    there = list(frame["structure"].unique())
    who = f"patient {of.patient_id}" if isinstance(of, Patient) else f"this cohort of {len(of)}"
    if not there and isinstance(of, Patient):
        store = of.dataset.store(of.patient_id)
        if segmentations(store):
            box_spacing(store)
    if not there and not any(s not in TARGETS for s in structures):
        raise UnknownLabelError(
            f"{who} has no segmentations of network or observers: base patients have none",
            remedy="select extended patients with cohort.where(\"part = 'extended'\")",
        )
    for structure in structures:
        if structure not in there:
            raise MissingStructureError(
                f"{who} has no segmentations of {structure} by network or observers",
                remedy=f"there are {', '.join(there or TARGETS)}",
            )


def compare_masks(
    a: AnyMask,
    b: AnyMask,
    *,
    spacing_mm: Sequence[float] | None = None,
    tolerances_mm: Sequence[float] = TOLERANCES_MM,
    resample: bool = False,
) -> pd.Series:
    """Compare two masks with the measures of the table `agreement`. Reads them.

    Labelled masks know where their voxels are. They are compared only if they have the same
    voxels, and a `spacing_mm` that contradicts them, such as one in x, y, z order, is refused. For
    plain arrays the order of the spacing cannot be checked.

    Parameters
    ----------
    a, b : xarray.DataArray or numpy.ndarray
        Masks, bool (z, y, x). Differences are b - a.
    spacing_mm : sequence of float, optional
        Distance of voxel centres along z, y, x, mm. Required for two plain arrays.
    tolerances_mm : sequence of float
        Tolerances of the surface Dice, mm.
    resample : bool
        Whether to resample a labelled `b` to the voxels of a labelled `a` if they differ. Its
        surface then moves by up to half a voxel, and what lies outside the grid of `a` is left out.

    Returns
    -------
    pandas.Series
        `a_cc, b_cc, difference_cc, dice, surface_dice_1mm, surface_dice_2mm, hd95_mm, hd_mm,
        assd_mm, added_path_mm, added_voxels, removed_voxels`; None where not defined.

    Raises
    ------
    UsageError
        If the masks have different voxels, are not bool, or hold several volumes, if the spacing is
        missing or contradicts them, or if the axes of their grid are not at right angles.

    Examples
    --------
        network = patient.nnunet.mask.sel(structure="Rectum")
        lp.compare_masks(network, patient.mask("Rectum"))
    """
    first, second = _volume(a), _volume(b)
    if isinstance(first, xr.DataArray) and isinstance(second, xr.DataArray):
        second = _alike(first, second, resample)
    grids = [grid_of(v) for v in (first, second) if isinstance(v, xr.DataArray)]
    sizes = _checked(spacing_mm, _spacing(grids[0]) if grids else None)
    found = agreement_of(np.asarray(first), np.asarray(second), sizes, tolerances_mm)
    return pd.Series(found, dtype=object)


def _volume(mask: AnyMask) -> AnyMask:
    return single_volume(mask) if isinstance(mask, xr.DataArray) else np.asarray(mask)


def _alike(a: xr.DataArray, b: xr.DataArray, resample: bool) -> xr.DataArray:
    """Return `b` on the voxels of `a`; raise `UsageError` if it is not and must not be moved."""
    there, here = grid_of(a), grid_of(b)
    if there.shape == here.shape and (
        largest_shift(there.affine, here.affine, there.shape[::-1]) <= SAME_GRID_MM
    ):
        return b
    if not resample:
        raise _different(there, here)
    return resample_to(b, there, fill=0)


def _different(a: Grid, b: Grid) -> UsageError:
    def described(grid: Grid) -> str:
        """Return shape and voxel size in words."""
        return f"{grid.shape} of {np.round(grid.spacing_mm, 4).tolist()} mm"

    return UsageError(
        f"masks of different voxels: {described(a)} and {described(b)}",
        expected="masks of one grid",
        remedy="to resample b to the voxels of a, give resample=True",
    )


def _spacing(grid: Grid) -> tuple[float, float, float]:
    columns = grid.affine[:3, :3] / spacing(grid.affine)
    if np.abs(columns.T @ columns - np.eye(3)).max() > COSINE_TOLERANCE:
        raise UsageError(
            "the axes of the masks' grid are not at right angles",
            expected="a grid whose voxels are boxes",
            remedy="resample both to one first, with `.lp.resample_like`",
        )
    z, y, x = (float(s) for s in grid.spacing_mm)
    return z, y, x


def _checked(
    given: Sequence[float] | None, known: tuple[float, float, float] | None
) -> tuple[float, float, float]:
    if given is None:
        if known is None:
            raise UsageError(
                "two plain arrays without spacing_mm",
                expected="spacing_mm=(z, y, x), or labelled masks, which know it",
            )
        return known
    sizes = _three(given)
    if known is None:
        return sizes
    if not np.allclose(sizes, known, rtol=_SAME_SPACING, atol=0):
        is_turned = np.allclose(sorted(sizes), sorted(known), rtol=_SAME_SPACING, atol=0)
        raise UsageError(
            f"spacing_mm={tuple(round(s, 4) for s in sizes)}"
            + (", in another order" if is_turned else ""),
            expected=f"{tuple(round(s, 4) for s in known)} (z, y, x), as the labelled masks say",
            remedy="leave spacing_mm out",
        )
    return known


def _three(given: Sequence[float]) -> tuple[float, float, float]:
    sizes = [float(s) for s in given]
    if len(sizes) != 3:
        raise UsageError(f"spacing_mm={tuple(sizes)}", expected="three numbers (z, y, x)")
    return sizes[0], sizes[1], sizes[2]
