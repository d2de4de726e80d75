"""Export patients as a raw dataset of nnU-Net version 2.

Format: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md, and the
checks of `nnUNetv2_plan_and_preprocess --verify_dataset_integrity`.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lundprobe_zarr.cohort.core import Cohort
from lundprobe_zarr.cohort.splits import Splits
from lundprobe_zarr.dataset.label_masks import MaskSource
from lundprobe_zarr.errors import LundProbeError, UsageError
from lundprobe_zarr.exchange.nnunet_case import Examined, examine, write_case
from lundprobe_zarr.exchange.nnunet_folder import TEST, TRAINING, NnUNetFolder, Note
from lundprobe_zarr.exchange.nnunet_settings import LEVEL, Missing, Settings
from lundprobe_zarr.exchange.output import require_outside
from lundprobe_zarr.storage.decode_pool import DECODERS, cores
from lundprobe_zarr.stores.reader import StoreReader

if TYPE_CHECKING:
    import pandas as pd

#: Default number of folds; as many as nnU-Net makes itself.
FOLDS = 5
#: The two rounds of an export, as `Progress.started` is told them.
LOOKING, WRITING = "Looking at", "Writing"
_T = TypeVar("_T")
Folds = list[dict[str, list[str]]]


@dataclass(frozen=True)
class Progress:
    """Functions called during an export: with the number of patients, and with each when done."""

    started: Callable[[str, int], None] = lambda what, patients: None
    finished: Callable[[str, str | None], None] = lambda patient_id, error: None


@dataclass(frozen=True)
class NnUNetReport:
    """What an export came to.

    Attributes
    ----------
    folder : Path
        The dataset, below nnU-Net's raw folder.
    notes : tuple of Note
        The patients that are there, in the order of the cohort.
    kept : int
        How many of them an earlier call wrote.
    left_out : dict
        Patient id -> why it is left out.
    failed : dict
        Patient id -> the error for which it is not there.
    folds : list of dict or None
        The contents of `splits_final.json`; None without.
    settings : dict
        How the files were made.
    """

    folder: Path
    notes: tuple[Note, ...]
    kept: int
    left_out: dict[str, str]
    failed: dict[str, str]
    folds: Folds | None
    settings: dict[str, Any] = field(repr=False)

    def overlaps(self) -> pd.DataFrame:
        """Return pairs of structures that share voxels: `first`, `second`, `winner`, their sums.

        `patients` share `voxels` in all. `winner` is None for regions, where both keep them.
        """
        import pandas as pd

        voxels: Counter[tuple[str, str, str | None]] = Counter()
        patients: Counter[tuple[str, str, str | None]] = Counter()
        for o in (o for note in self.notes for o in note.overlaps):
            pair = o["first"], o["second"], o["winner"]
            voxels[pair] += o["voxels"]
            patients[pair] += 1
        rows = [(*pair, patients[pair], count) for pair, count in voxels.most_common()]
        return pd.DataFrame(rows, columns=["first", "second", "winner", "patients", "voxels"])

    def to_json(self) -> str:
        """Return a machine-readable form."""
        contents = {
            "settings": self.settings,
            "training": [n.patient_id for n in self.notes if n.subset == TRAINING],
            "test": [n.patient_id for n in self.notes if n.subset == TEST],
            "left_out": self.left_out,
            "failed": self.failed,
            "overlaps": self.overlaps().to_dict("records"),
            "patients": {
                n.patient_id: {
                    "absent": list(n.absent),
                    "hidden": list(n.hidden),
                    "ignored_voxels": n.ignored,
                    "voxels": n.voxels,
                    "overlaps": list(n.overlaps),
                    "not_finite": n.not_finite,
                }
                for n in self.notes
            },
        }
        return json.dumps(contents, indent=2, ensure_ascii=False) + "\n"


def export_nnunet(
    cohort: Cohort,
    out: str | os.PathLike[str],
    dataset_id: int,
    name: str,
    labels: Sequence[str],
    *,
    channels: str | Sequence[str] = "T2w",
    regions: bool = False,
    priority: Sequence[str] | None = None,
    missing: Missing = "skip",
    grid: str = "mri",
    test: Cohort | None = None,
    splits: Splits[Cohort] | None = None,
    folds: int = FOLDS,
    seed: int = 0,
    level: int = LEVEL,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> NnUNetReport:
    """Write patients as a raw dataset of nnU-Net version 2, a case each.

    Files are `.nii.gz` with every voxel and the geometry of the dataset. Each appears once it is
    complete, and `dataset.json` last. Run again with the same settings, it writes what is missing.
    At full size one worker takes some 110 MB, two take 150 MB, beyond Python and its libraries.

    Parameters
    ----------
    cohort : Cohort
        Whom to write.
    out : str or path
        nnU-Net's raw folder, `$nnUNet_raw`. The dataset is the folder `Dataset<id>_<name>` in it.
    dataset_id : int
        1 to 999.
    name : str
        Letters, digits, `_` and `-`.
    labels : sequence of str
        Structures, in the order of their labels.
    channels : str or sequence of str
        `T2w`, `sCT`, or both, in their order. `sCT=zscore` gives a channel another name; nnU-Net
        takes the normalisation from it. Default names: `T2w` (z-score of each image), `CT` for sCT.
    regions : bool
        Whether labels may overlap: each combination of structures that occurs gets a label, and
        each structure is a region of several labels, without loss. Else one structure wins.
    priority : sequence of str, optional
        Which structures win a shared voxel, as for `lundprobe_zarr.label_map`. With regions: which
        are painted last where nnU-Net predicts several.
    missing : {'skip', 'ignore'}
        What becomes of patients who lack a structure: left out, or the ignore label where it could
        be, as for `lundprobe_zarr.label_map`.
    grid : {'mri', 'sct'}
        Grid of channels and labels. T2w is on the MRI grid alone.
    test : Cohort, optional
        Patients of the cohort for `imagesTs` and `labelsTs`.
    splits : Splits, optional
        Test set and folds, made by `Cohort.split`. Patients in neither are not written. Default:
        `folds` folds of all who are not in `test`, stratified by protocol, with `seed`. With fewer
        patients than folds there is no `splits_final.json`.
    folds, seed : int
        See `splits`.
    level : int
        Level of gzip, 1 to 9.
    workers : int, optional
        Patients written at a time, each in a thread. Default: one per core.
    overwrite : bool
        Whether to replace an earlier export with other settings.
    progress : Progress, optional
        Functions to call with the progress.

    Returns
    -------
    NnUNetReport
        Who is there, who is left out and why, overlaps. `lundprobe-export.json` says the same.

    Raises
    ------
    UsageError
        If an argument is invalid, if there are no patients, if channels are on different grids, if
        `splits` and `test` contradict each other, or if the dataset id is taken.
    UnknownLabelError
        For an unknown structure or channel.
    OSError
        If a file cannot be written. What is there stays, and the same call continues.
    """
    settings = Settings.of(
        dataset_id, name, channels, labels, regions=regions, priority=priority,
        source=MaskSource.of(grid=grid), missing=missing, level=level,
    )  # fmt: skip
    if workers is not None and workers < 1:
        raise UsageError(f"workers={workers}", expected="at least 1")
    place = Path(out)
    require_outside(place)
    subsets = _subsets(cohort, test, splits)
    folder = NnUNetFolder(place, settings)
    folder.require_free()
    export = _Export(cohort, folder, settings, workers or cores(), progress or Progress())
    found = export.examined(subsets)
    ready = [e.patient_id for e in found if e.reason is None]
    training = [i for i in ready if subsets[i] == TRAINING]
    planned = _folds(cohort[training], splits, folds, seed)
    if overwrite:
        folder.clear()
    return export.written(found, subsets, planned)


def _subsets(cohort: Cohort, test: Cohort | None, splits: Splits[Cohort] | None) -> dict[str, str]:
    """Return whom to write, in the order of the cohort -> `Tr` or `Ts`."""
    held_out = set(test.ids if test is not None else ())
    if test is not None and not held_out:
        raise UsageError(
            f"no patients to test with, of {len(cohort)}",
            expected="one or more, or no test set",
            remedy="widen its predicate, or leave the test set out",
        )
    training = set(cohort.ids) - held_out
    if splits is not None:
        training = {i for fold in splits.folds for i in (*fold.train.ids, *fold.val.ids)}
        if both := sorted(training & held_out):
            raise UsageError(
                f"patient {both[0]} is in the test set and in the folds of the splits",
                expected="folds without a patient of the test set",
                remedy="leave out the test set, or split the other patients",
            )
        held_out |= set(splits.test.ids)
    if strange := sorted((training | held_out) - set(cohort.ids)):
        raise UsageError(
            f"patient {strange[0]} of the test set or splits is not in the cohort",
            expected="patients of the cohort",
        )
    if not training:
        raise UsageError(
            "no patients to train with",
            expected="one or more",
            remedy="widen the predicate, or narrow the test set",
        )
    return {i: TRAINING if i in training else TEST for i in cohort.ids if i in training | held_out}


def _folds(training: Cohort, splits: Splits[Cohort] | None, folds: int, seed: int) -> Folds | None:
    """Return the folds, given or made of the patients to train with."""
    if splits is None:
        if len(training) < folds:
            return None
        splits = training.split(test=0, folds=folds, seed=seed, stratify="protocol")
    return [{"train": fold.train.ids, "val": fold.val.ids} for fold in splits.folds]


def _of_those(folds: Folds | None, there: Container[str]) -> Folds | None:
    """Return the folds of the patients that are `there`."""
    if folds is None:
        return None
    return [{name: [i for i in ids if i in there] for name, ids in f.items()} for f in folds]


class _Export:
    """Looks at patients, then writes them, several at a time."""

    def __init__(
        self,
        cohort: Cohort,
        folder: NnUNetFolder,
        settings: Settings,
        workers: int,
        progress: Progress,
    ) -> None:
        self._cohort, self._folder, self._settings = cohort, folder, settings
        self._workers, self._progress = workers, progress
        self._stop = threading.Event()
        self._failed: dict[str, str] = {}

    def examined(self, subsets: Mapping[str, str]) -> list[Examined]:
        """Look at all patients. Raises `UsageError` if there is none to train with."""
        self._progress.started(LOOKING, len(subsets))
        found = self._each(
            list(subsets), lambda patient_id: examine(self._reader(patient_id), self._settings)
        )
        if not any(e.reason is None and subsets[i] == TRAINING for i, e in found.items()):
            reasons = Counter([*(e.reason for e in found.values()), *self._failed.values()])
            raise UsageError(
                f"no patient to train with is left of {len(subsets)}: "
                + "; ".join(f"{n}: {reason}" for reason, n in reasons.most_common(3) if reason),
                expected="one or more who have every channel and label",
                remedy="ask for fewer labels, or write --missing ignore (missing='ignore')",
            )
        return list(found.values())

    def written(
        self,
        found: Sequence[Examined],
        subsets: Mapping[str, str],
        folds: Folds | None,
    ) -> NnUNetReport:
        """Write who is not there yet, then what makes the folder a dataset."""
        self._settings = self._settings.with_patterns({p for e in found for p in e.patterns})
        self._folder = NnUNetFolder(self._folder.path.parent, self._settings)
        chosen = {e.patient_id: e for e in found if e.reason is None}
        document = self._document()
        before = self._folder.begin(
            document, {i: subsets[i] for i in chosen} | self._again(subsets)
        )
        kept = {i: note for i, note in before.items() if self._is_there(note, chosen.get(i))}
        new = [i for i in chosen if i not in kept]
        self._folder.open(dict.fromkeys(subsets[i] for i in chosen))
        self._folder.remove(i for i in self._cohort.dataset.ids if i not in kept)
        self._progress.started(WRITING, len(new))
        made = self._each(new, lambda i: self._write(chosen[i], subsets[i]))
        notes = {i: (kept | made)[i] for i in subsets if i in kept or i in made}
        report = NnUNetReport(
            self._folder.path,
            tuple(notes.values()),
            len(kept),
            {e.patient_id: e.reason for e in found if e.reason is not None},
            self._failed,
            _of_those(folds, notes),
            document,
        )
        self._folder.finish(self._cohort.manifest, report.notes, report.folds, report.to_json())
        return report

    def _is_there(self, note: Note, examined: Examined | None) -> bool:
        """Return whether a patient's files are there, and as far as is known the right ones."""
        if examined is None and note.patient_id not in self._failed:
            return False
        sha256 = None if examined is None else examined.store_sha256
        return note.holds(sha256, self._folder.path)

    def _again(self, subsets: Mapping[str, str]) -> dict[str, str]:
        """Patients who could not be looked at, and stay where they are if they are there."""
        return {i: subsets[i] for i in self._failed}

    def _document(self) -> dict[str, Any]:
        identity = self._cohort.dataset.identity
        about = {"dataset": identity.name, "doi": identity.doi, "precision": identity.precision}
        return about | self._settings.document()

    def _reader(self, patient_id: str) -> StoreReader:
        store = self._cohort.dataset.store(patient_id)
        decoders = 1 if self._workers > 1 else DECODERS
        return StoreReader(self._cohort.location, store, decoders)

    def _write(self, examined: Examined, subset: str) -> Note:
        reader = self._reader(examined.patient_id)
        with ExitStack() as failing:
            failing.callback(self._folder.remove, [examined.patient_id])  # no image without labels
            written = write_case(
                reader, examined, subset, self._settings, self._folder.path, self._stop
            )
            note = Note.of(examined, subset, written)
            self._folder.note(note)
            failing.pop_all()
        return note

    def _each(self, ids: Sequence[str], work: Callable[[str], _T]) -> dict[str, _T]:
        """Do some work on each patient; note who cannot be read, and stop at any other error."""
        done: dict[str, _T] = {}

        def one(patient_id: str) -> None:
            """Do the work on one patient, and report it."""
            try:
                done[patient_id] = work(patient_id)
            except LundProbeError as error:
                self._failed[patient_id] = str(error)
            self._progress.finished(patient_id, self._failed.get(patient_id))

        pool = ThreadPoolExecutor(self._workers, "lundprobe-nnunet")
        with pool, ExitStack() as failing:  # by a full disk, or Ctrl-C
            failing.callback(pool.shutdown, cancel_futures=True)
            failing.callback(self._stop.set)  # first: it ends what runs
            futures = [pool.submit(one, i) for i in ids]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
            failing.pop_all()
        return {i: done[i] for i in ids if i in done}
