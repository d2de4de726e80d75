"""`export_dicom`: one patient of a dataset as a folder of DICOM files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lundprobe_zarr.errors import MissingStructureError, UsageError
from lundprobe_zarr.exchange.dicom.options import UNCERTAINTY, DicomOptions, report_head
from lundprobe_zarr.exchange.dicom.packages import require_packages
from lundprobe_zarr.exchange.output import require_new, require_outside
from lundprobe_zarr.schema.document import parse_json
from lundprobe_zarr.schema.layout import SEGMENTATION_SOURCES
from lundprobe_zarr.storage.folders import drafted
from lundprobe_zarr.storage.local import named
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.stores.opening import open_store

REPORT = "report.json"
_IMAGES = ("mri/image", "sct/image", "dose/dose")
#: Arrays of which structures are chosen, and the source that chooses them.
_BY_STRUCTURE = SEGMENTATION_SOURCES | {UNCERTAINTY: "nnunet"}


@dataclass(frozen=True)
class ExportedDicom:
    """A patient's folder, and what its `report.json` says: objects, rounding, contours."""

    folder: Path
    report: dict[str, Any]

    @property
    def objects(self) -> Sequence[dict[str, Any]]:
        """The objects written: a series of images, or a file."""
        found: list[dict[str, Any]] = self.report["objects"]
        return found


def is_written(location: Location, patient_id: str, out: Path, options: DicomOptions) -> bool:
    """Return whether a patient's folder is there, of this very store and with these options.

    One request. Raises `DamagedStoreError`.
    """
    try:
        written = parse_json((out / patient_id / REPORT).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    wanted = report_head(open_store(location, patient_id), options)
    return isinstance(written, dict) and all(written.get(k) == v for k, v in wanted.items())


def volumes_read(location: Location, patient_id: str, options: DicomOptions) -> int:
    """Return how many volumes `export_dicom` reads; one request. Raises `DamagedStoreError`."""
    store = open_store(location, patient_id)
    images = sum(len(store.arrays[p].sources) for p in _IMAGES if p in store.arrays)
    return images + sum(
        options.takes(source, str(record.labels["structure"]))
        for path, source in _BY_STRUCTURE.items()
        if path in store.arrays
        for record in store.arrays[path].sources
    )


def export_dicom(
    location: Location,
    patient_id: str,
    out: Path,
    options: DicomOptions | None = None,
    on_volume: Callable[[str], None] = lambda path: None,
) -> ExportedDicom:
    """Write a patient's images, structures, dose, segmentations and maps as DICOM.

    The folder `out`/<patient id> appears when all its files are written, so an export that was
    interrupted can be run again. Equal content gets equal files, UIDs included.

    Parameters
    ----------
    location : Location
        The dataset.
    patient_id : str
        A patient of it.
    out : Path
        Folder to write into. It may hold other patients.
    options : DicomOptions, optional
        What to write.
    on_volume : callable, optional
        Called with the source path of each volume that was read.

    Raises
    ------
    MissingPackageError
        Without the packages of the extra `dicom`.
    UsageError
        The patient's folder exists already; `out` is a file or in a dataset; a grid is sheared;
        values are not finite, or beyond what DICOM's integers hold; the patient lacks a source.
    MissingStructureError
        The patient lacks a structure of `options`.
    DamagedStoreError
        The store is damaged.
    OSError
        A file cannot be written.
    """
    require_packages()
    from lundprobe_zarr.exchange.dicom.patient import write_patient

    options = options or DicomOptions()
    require_outside(out)
    require_new(out / patient_id)
    store = open_store(location, patient_id)
    _require_there(store, options)
    with drafted(out / patient_id) as draft:
        report = write_patient(location, store, draft, out / patient_id, options, on_volume)
        with named(out / patient_id / REPORT):
            (draft / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        with named(out / patient_id):
            draft.rename(out / patient_id)
    return ExportedDicom(out / patient_id, report)


def _require_there(store: StoreMetadata, options: DicomOptions) -> None:
    """Require that the patient has each structure and source that was asked for."""
    there = [
        (SEGMENTATION_SOURCES[array.spec.path], str(record.labels["structure"]))
        for array in store.arrays.values()
        if array.spec.path in SEGMENTATION_SOURCES
        for record in array.sources
    ]
    for source in options.sources or ():
        if source not in {s for s, _ in there}:
            raise UsageError(
                f"patient {store.patient_id} has no segmentations of source {source}",
                where=store.where,
                expected=f"one of {', '.join(dict.fromkeys(s for s, _ in there))}",
            )
    for structure in options.structures or ():
        found = sorted({n for s, n in there if options.takes(s, n)})
        if structure not in found:
            raise MissingStructureError(
                f"patient {store.patient_id} lacks the structure {structure}",
                where=store.where,
                remedy="leave it out",
            )
