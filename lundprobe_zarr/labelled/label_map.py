"""One label map of several masks of a patient, with its overlaps counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import xarray as xr

from lundprobe_zarr.dataset.label_masks import MaskSource, Tally, read_patterns, slabs
from lundprobe_zarr.errors import MissingStructureError, UsageError
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.labelled.grid import Home, with_grid
from lundprobe_zarr.measures.label_map import IGNORE, LabelScheme, Overlap, count_patterns
from lundprobe_zarr.stores.reader import StoreReader

if TYPE_CHECKING:
    import pandas as pd

    from lundprobe_zarr.cohort import Patient

Missing = Literal["error", "ignore"]
_MOST = int(np.iinfo(np.uint16).max)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label map and what became of the masks in it; see `label_map`.

    Attributes
    ----------
    array : xarray.DataArray
        The labels (z, y, x), uint8, or uint16 if one is above 255, with the coordinates of the
        grid. CF's `flag_values` and `flag_meanings` name them.
    labels : dict
        Name -> label: `background` is 0; `ignore` is there if a structure is absent.
    priority : tuple of str
        The structures, those first that win a shared voxel.
    voxels : dict
        Structure -> voxels of its mask, those that another structure won included.
    overlaps : tuple of Overlap
        Each pair that shares voxels: `first`, `second`, `voxels` and `winner`.
    absent : tuple of str
        Structures without a mask.
    hidden : tuple of str
        Structures with a mask of which other structures won every voxel.
    """

    array: xr.DataArray
    labels: dict[str, int]
    priority: tuple[str, ...]
    voxels: dict[str, int]
    overlaps: tuple[Overlap, ...]
    absent: tuple[str, ...]
    hidden: tuple[str, ...]

    def __repr__(self) -> str:
        names = ", ".join(f"{v} {n}" for n, v in self.labels.items())
        shared = "; ".join(
            f"{o.first} and {o.second} share {o.voxels} voxels" for o in self.overlaps
        )
        return f"<LabelMap {tuple(self.array.shape)}: {names}; {shared or 'no overlaps'}>"

    def frame(self) -> pd.DataFrame:
        """Return the overlaps as a table: `first`, `second`, `voxels`, `winner`."""
        import pandas as pd

        columns = ["first", "second", "voxels", "winner"]
        return pd.DataFrame([vars(o) for o in self.overlaps], columns=columns)


def label_map(
    patient: Patient,
    structures: str | Sequence[str],
    *,
    priority: str | Sequence[str] | None = None,
    missing: Missing = "error",
    ignore: int | None = None,
    source: str = "clinical",
    grid: str = "mri",
    fold: int | None = None,
    step: int | None = None,
    observer: str | None = None,
) -> LabelMap:
    """Return one map of whole numbers of several structures, and where they overlap.

    The label of a structure is its place in `structures`, from 1 on; 0 is background. Reads the
    masks now, a few slices at a time.

    Parameters
    ----------
    patient : Patient
        Whose masks.
    structures : str or sequence of str
        The structures, in the order of their labels.
    priority : str or sequence of str, optional
        Which structures win a shared voxel, first to last. The structures that it does not name
        follow in canonical order: `CTVT_427`, `PTVT_427`, `Rectum`, `Bladder`, `PenileBulb`,
        `Genitalia`, `FemoralHead_L`, `FemoralHead_R`, `BODY`.
    missing : {'error', 'ignore'}
        What becomes of a structure that the patient lacks, or whose clinical mask is empty.
        `ignore` writes the label `ignore` wherever it could be: in each voxel that no other
        structure holds, and in each that only `PTVT_427` or `BODY` hold, if the missing structure
        precedes them. A missing `PTVT_427` or `BODY` could be in any voxel whose label it precedes.
        The column `missing_<S>` is false for an empty mask; `cohort.where("Rectum.volume_cc > 0")`
        selects patients whose mask has a voxel.
    ignore : int, optional
        The ignore label. Default: the one after the last.
    source : {'clinical', 'nnunet', 'nnunet_fold', 'observer'}
        Whose delineation. All but clinical ones are of extended patients.
    grid : {'mri', 'sct'}
        Grid of the masks.
    fold, step, observer
        Which fold of `nnunet_fold`, or which step and observer of `observer`.

    Returns
    -------
    LabelMap
        `array` is the map (z, y, x); `overlaps` and `voxels` are counted before anybody wins.

    Raises
    ------
    MissingStructureError
        For a structure that the patient lacks, with `missing="error"`.
    UnknownLabelError
        For an unknown structure, source, fold, step or observer.
    UsageError
        For a structure given twice, fiducials, a priority of others, an ignore label in use, and
        a grid without such masks.
    DamagedStoreError
        If a mask cannot be read.

    Examples
    --------
        found = lp.label_map(patient, ["Rectum", "Bladder", "CTVT_427"])
        found.array.sel(z=0, method="nearest"), found.overlaps
    """
    scheme = LabelScheme.of([structures] if isinstance(structures, str) else structures, priority)
    whose = MaskSource.of(source, grid, fold=fold, step=step, observer=observer)
    value = _ignore_label(scheme, ignore)
    store = patient.dataset.store(patient.patient_id)
    absent = _absent(patient, scheme, whose, whose.present(store), missing)
    lattice = store.grid(grid)
    assert lattice is not None  # a mask is there, or this raised
    labels, tally = _labelled(StoreReader(patient.location, store), whose, scheme, absent, value)
    named = {str(n): int(v) for n, v in scheme.labels.items() if isinstance(v, int)}
    named |= {IGNORE: value} if absent else {}
    array = _array(labels, named, lattice, Home(lattice, patient.patient_id, grid), str(whose))
    return LabelMap(
        array, named, scheme.priority, tally.voxels, tally.overlaps, tuple(absent), tally.hidden
    )


def _ignore_label(scheme: LabelScheme, ignore: int | None) -> int:
    if ignore is None:
        return scheme.ignore
    whole = isinstance(ignore, (int, np.integer)) and not isinstance(ignore, bool)
    if not whole or not scheme.ignore <= ignore <= _MOST:
        raise UsageError(
            f"ignore={ignore!r}",
            expected=f"a whole number from {scheme.ignore}, the first without a structure, to "
            f"{_MOST}",
        )
    return int(ignore)


def _absent(
    patient: Patient, scheme: LabelScheme, whose: MaskSource, there: Sequence[str], missing: str
) -> list[str]:
    if missing not in get_args(Missing):
        raise UsageError(f"missing={missing!r}", expected=" or ".join(map(repr, get_args(Missing))))
    absent = [s for s in scheme.structures if s not in there]
    if absent and (missing == "error" or len(absent) == len(scheme.structures)):
        raise MissingStructureError(
            f"patient {patient.patient_id} lacks {', '.join(absent)}, {whose}",
            patient=patient.patient_id,
            expected=f"some of {', '.join(there)}" if there else "a patient with such masks",
            remedy='leave it out, or write missing="ignore": a missing structure is not background'
            if there
            else None,
        )
    return absent


def _labelled(
    reader: StoreReader,
    whose: MaskSource,
    scheme: LabelScheme,
    absent: Sequence[str],
    ignore: int,
) -> tuple[np.ndarray, Tally]:
    table = scheme.table(absent, ignore)
    labels = np.empty(reader.array(whose.path).volume_shape, table.dtype)
    counts = np.zeros(len(table), np.int64)
    for box in slabs(reader, whose.path):
        patterns = read_patterns(reader, whose, scheme.structures, box)
        counts += count_patterns(patterns, len(scheme.structures))
        labels[box] = table[patterns]
    return labels, Tally.of(scheme, counts, absent, ignore)


def _array(
    labels: np.ndarray, named: dict[str, int], grid: Grid, home: Home, whose: str
) -> xr.DataArray:
    about = {
        "long_name": f"labels of {whose}",
        "units": "1",
        "flag_values": np.array(list(named.values()), labels.dtype),
        "flag_meanings": " ".join(named),
    }
    return with_grid(
        xr.DataArray(labels, dims=("z", "y", "x"), name="label", attrs=about), grid, home
    )
