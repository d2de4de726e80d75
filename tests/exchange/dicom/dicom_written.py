"""A patient of a dataset, written as DICOM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lundprobe_zarr.exchange.dicom.export import ExportedDicom, export_dicom
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.reader import StoreReader


@dataclass(frozen=True)
class Written:
    """A patient's store and DICOM files."""

    reader: StoreReader
    exported: ExportedDicom

    @property
    def home(self) -> Path:
        return self.exported.folder

    @property
    def patient_id(self) -> str:
        return self.reader.metadata.patient_id


def patients(dataset: Path) -> list[str]:
    return sorted(p.stem for p in (dataset / "patients").iterdir())


def write(dataset: Path, out: Path, extended: bool) -> Written:
    """Write the first base or extended patient of a dataset."""
    location = Location(dataset)
    readers = [StoreReader.open(location, p) for p in patients(dataset)]
    part = "extended" if extended else "base"
    reader = next(r for r in readers if r.metadata.attributes["part"] == part)
    return Written(reader, export_dicom(location, reader.metadata.patient_id, out))
