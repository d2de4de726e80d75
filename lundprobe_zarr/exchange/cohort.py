"""Write many patients' NIfTI files, in parallel; the same call continues an interrupted one."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lundprobe_zarr.cohort import Cohort, Patient
from lundprobe_zarr.errors import LundProbeError, UsageError
from lundprobe_zarr.exchange import bids
from lundprobe_zarr.exchange.choice import Choice
from lundprobe_zarr.exchange.output import require_outside
from lundprobe_zarr.exchange.shaped import Layout, Shape, Written, homes_of, write_patient
from lundprobe_zarr.patches.frame import Bounds, Frame
from lundprobe_zarr.storage.failures import explained
from lundprobe_zarr.storage.local import write_local
from lundprobe_zarr.stores.reader import StoreReader

#: Folder, in the output, of what was written of each patient, by which an export continues.
JOURNAL = ".lundprobe-export"
REPORT = "export_report.json"


@dataclass
class CohortExport:
    """How an export ended.

    Attributes
    ----------
    written, before : dict
        Patient id -> what was written by this call, and by earlier ones.
    failed : dict
        Patient id -> the error for which the patient was not written.
    """

    written: dict[str, Written] = field(default_factory=dict)
    before: dict[str, Written] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, Written]:
        """Everything there, by patient id."""
        return self.before | self.written


def export_nifti(
    patients: Cohort | Patient,
    out: str | os.PathLike[str],
    *,
    arrays: str | Sequence[str] | None = None,
    structures: str | Sequence[str] | None = None,
    sources: str | Sequence[str] | None = None,
    grids: str | Sequence[str] | None = None,
    crop: str | None = None,
    margin_mm: float = 0.0,
    spacing_mm: float | Sequence[float] | None = None,
    layout: Layout = "source",
    workers: int | None = None,
    on_patient: Callable[[str], None] | None = None,
) -> CohortExport:
    """Write patients as NIfTI files: those of the source, some of them, or in other shapes.

    Files whose voxels are as stored hold the bytes of the source, compared by SHA-256. Each
    patient's folders appear once they are complete, and the same call continues an interrupted
    export. A patient that cannot be written is in `failed`; the others are written. The file
    `export_report.json` lists files, structures that patients lack, and masks without a voxel in
    the box: these two have no file.

    Parameters
    ----------
    patients : Cohort or Patient
        Whom to write.
    out : str or path
        The output folder, outside of datasets.
    arrays : str or sequence of str, optional
        Some of `T2w`, `sCT`, `dose`, `mask`, `fiducials`, `uncertainty`. Default: all.
    structures, sources : str or sequence of str, optional
        Masks and uncertainty maps of these structures, and of these sources: `clinical`, `nnunet`,
        `nnunet_fold`, `observer`. Default: all.
    grids : str or sequence of str, optional
        Some of `mri`, `sct`, `dose`. Default: all.
    crop : str, optional
        Crop to the box of this clinical structure and `margin_mm`, after resampling.
    margin_mm : float
        Margin around it, mm.
    spacing_mm : float or sequence of float, optional
        Resample to this voxel size, mm (z, y, x, or one number), linearly; a mask is true where
        the interpolated mask is at least 0.5.
    layout : {'source', 'bids'}
        Names of files: as in the source tree, or of BIDS.
    workers : int, optional
        Patients at once. Default: one per core.
    on_patient : callable, optional
        Called with the id of each patient that was written or has failed.

    Returns
    -------
    CohortExport
        What was written of whom, and who failed and why.

    Raises
    ------
    UsageError
        For an invalid argument, if there are no patients, or if `out` is a file, is in a dataset,
        or holds an export of another kind.
    UnknownLabelError
        For an unknown array, structure, source or grid.
    DatasetError
        If a file cannot be written, such as on a full disk; it is an `OSError`.

    Examples
    --------
        chosen = cohort.where("protocol = 'newAcq'")
        lp.export_nifti(chosen, "nifti", arrays=["T2w", "mask"], structures="Rectum", grids="mri")
    """
    if isinstance(patients, Patient):
        patients = Cohort(patients.dataset)[[patients.patient_id]]
    if not isinstance(patients, Cohort):
        raise UsageError(
            f"export_nifti was given {type(patients).__name__}", expected="a patient or a cohort"
        )
    if workers is not None and workers < 1:
        raise UsageError(f"workers={workers}", expected="at least 1")
    given = (arrays, structures, sources, grids)
    choice = Choice(
        *(None if g is None else (g,) if isinstance(g, str) else tuple(g) for g in given)
    )
    shape = Shape(choice, Frame(spacing_mm, crop, margin_mm), layout)
    with explained(str(out)):
        return export_cohort(patients, Path(out), shape, workers, on_patient)


def export_cohort(
    cohort: Cohort,
    out: Path,
    shape: Shape,
    workers: int | None = None,
    on_patient: Callable[[str], None] | None = None,
) -> CohortExport:
    """Write the files of all patients of a cohort below `out`, several patients at once.

    A patient's folders appear once they are whole. Patients that are there already, as this
    shape makes them, are left alone, so the same call continues; one that is not whole any more is
    written again. A patient that cannot be written does not keep others. `export_report.json`
    lists files, structures that patients lack, and masks that have no voxel in the box.

    Parameters
    ----------
    cohort : Cohort
        The patients.
    out : Path
        The output folder.
    shape : Shape
        Which files, which voxels, and what names.
    workers : int, optional
        Patients at once. Default: one a core.
    on_patient
        Called with the id of each patient that was written or has failed.

    Raises
    ------
    UsageError
        If `out` holds an export of another shape or dataset, is a file, or is in a dataset; if the
        cohort is empty.
    OSError
        If a file cannot be written, such as on a full disk.
    """
    require_outside(out)
    if not len(cohort):
        raise UsageError(f"no patients: {cohort!r}", expected="at least one")
    job = _Job(cohort, out, shape)
    job.begin()
    result = job.result()
    todo = [i for i in cohort.ids if i not in result.before]
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        try:
            running = {pool.submit(job.write, i): i for i in todo}
            _collect(running, result, on_patient)
        except BaseException:  # a full disk, or Ctrl-C
            job.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    job.finish(result)
    return result


def _collect(
    running: dict[Future[Written], str],
    result: CohortExport,
    on_patient: Callable[[str], None] | None,
) -> None:
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            patient_id = running.pop(future)
            try:
                result.written[patient_id] = future.result()
            except LundProbeError as error:
                result.failed[patient_id] = str(error)
            if on_patient is not None:
                on_patient(patient_id)


class _Job:
    """One export: what is written of which patients, and what its journal says."""

    def __init__(self, cohort: Cohort, out: Path, shape: Shape) -> None:
        self.cohort, self.out, self.shape = cohort, out, shape
        self.journal = out / JOURNAL
        self.bounds: dict[str, dict[str, Bounds]] = {}
        self.stop = threading.Event()

    @property
    def _settings(self) -> dict[str, Any]:
        content = self.cohort.dataset.manifest.content
        identity = self.cohort.dataset.identity
        known = content.patients if content else identity.digest
        return {"shape": self.shape.to_json(), "dataset": {"name": identity.name, "content": known}}

    def begin(self) -> None:
        """Find the structure to crop to. Write down the settings, or require those of before.

        Raises `UsageError` if the output folder holds an export of other settings.
        """
        self.bounds = self.shape.frame.bounds(self.cohort)
        place = self.journal / "settings.json"
        settings = self._settings
        if place.exists():
            there = json.loads(place.read_bytes())
            if there != settings:
                raise UsageError(
                    f"{self.out} holds an export of another kind: {_difference(there, settings)}",
                    expected="the same options and dataset, which continue it",
                    remedy="choose another output folder",
                )
        else:
            write_local(place, bids.json_bytes(settings))

    def result(self) -> CohortExport:
        """Return the patients that are there and whole."""
        found = CohortExport()
        for patient_id in self.cohort.dataset.ids:
            written = self._there(patient_id)
            if written is not None:
                found.before[patient_id] = written
        return found

    def _there(self, patient_id: str) -> Written | None:
        """Return what was written of a patient; None if that is not there, or not whole."""
        written = self._entry(patient_id)
        if written is None:
            return None
        whole = all(_size(self.out / p) == size for p, size in written.files.items())
        return written if whole else None

    def _entry(self, patient_id: str) -> Written | None:
        """Return what the journal says of a patient; None if that is nothing of ours."""
        place = self.journal / f"{patient_id}.json"
        try:
            return Written(**json.loads(place.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write(self, patient_id: str) -> Written:
        """Write one patient; remove first what an interrupted export left of it."""
        entry = self._entry(patient_id)
        left = set(entry.homes) & homes_of(patient_id) if entry else set()
        for home in left:
            shutil.rmtree(self.out / home, ignore_errors=True)
        # several patients at once: each decodes alone
        reader = StoreReader.open(self.cohort.location, patient_id)
        reader.decoders = 1
        bounds, journal = self.bounds.get(patient_id, {}), self.journal / f"{patient_id}.json"
        return write_patient(reader, self.shape, bounds, self.out, journal, self.stop)

    def finish(self, result: CohortExport) -> None:
        """Write what describes the whole: the report and, for BIDS, the dataset.

        Patients that another process wrote into this folder during the run count.
        """
        there = self.result().before | result.all
        everything = {i: there[i] for i in self.cohort.dataset.ids if i in there}
        report = {
            **self._settings,
            "patients": {i: _reported(w) for i, w in everything.items()},
            "failed": result.failed,
        }
        if self.shape.layout == "bids":
            rows = [self.cohort.dataset.patient(i) for i, w in everything.items() if w.files]
            manifest = self.cohort.dataset.manifest
            for path, data in bids.top_files(manifest, rows, self.shape.frame).items():
                write_local(self.out / path, data)
        write_local(self.out / REPORT, bids.json_bytes(report))


def _reported(written: Written) -> dict[str, Any]:
    found = {"files": list(written.files), "missing": written.missing, "empty": written.empty}
    return found | {k: v for k in ("rounded", "stripped") if (v := getattr(written, k))}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _difference(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    if there.get("shape") == wanted["shape"]:
        return "of another dataset"
    before, now = dict(there.get("shape", {})), wanted["shape"]
    names = [k for k in now if before.get(k) != now[k]]
    return "; ".join(f"{k} {before.get(k)!r}, not {now[k]!r}" for k in names)
