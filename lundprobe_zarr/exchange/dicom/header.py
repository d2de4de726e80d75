"""What all objects of a patient say alike: patient, study, equipment; and how they are saved.

Nothing here comes from a header of the source: what is not known is empty where DICOM allows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from lundprobe_zarr.exchange.dicom.lattice import Planes
from lundprobe_zarr.exchange.dicom.uids import uid
from lundprobe_zarr.storage.local import named
from lundprobe_zarr.vocabulary.version import package_version

MANUFACTURER = "lundprobe-zarr"
BODY_PART = "PELVIS"  # PS3.16, annex L
#: Where DICOM asks for a date and time and forbids none: one that nobody takes for real.
NO_DATE, NO_TIME = "19000101", "000000"
#: PS3.3 C.7.1.1, each at most 64 characters.
_METHOD = (
    "Patient ID is the pseudonym of LUND-PROBE",
    "Written from voxels and geometry alone, no source header copied",
)


@dataclass(frozen=True)
class Series:
    """A series: its number and UID, and a description of at most 64 characters."""

    number: int
    uid: str
    description: str


@dataclass(frozen=True)
class Study:
    """A patient's study: one frame of reference, in which images, structures and dose lie.

    `precision` is the dataset's, None if it is not known. `position` is Patient Position
    (PS3.3 C.7.3.1.1.2), "" if it is not known.
    """

    patient_id: str
    synthetic: bool
    precision: str | None = None
    position: str = ""

    @property
    def frame_uid(self) -> str:
        """UID of the frame of reference."""
        return uid("frame of reference", self.patient_id)

    def source(self, array: str) -> str:
        """Return where values are from, for Derivation Description (at most 1,024 characters).

        Errors that are told beside it are those of the store's values, which conversion may have
        rounded: by how much at most, the precision says.
        """
        held = f" (precision {self.precision})" if self.precision else ""
        return f"From the LUND-PROBE array {array} of a converted dataset{held}"

    def instance(self, sop_class: UID, modality: str, series: Series, number: int) -> Dataset:
        """Return a dataset with the attributes that all objects share; its UID is by number."""
        data = Dataset()
        data.SpecificCharacterSet = "ISO_IR 192"
        data.SOPClassUID, data.SOPInstanceUID = sop_class, uid("instance", series.uid, number)
        data.PatientID = self.patient_id
        data.PatientName = f"{self.patient_id}^"  # a family name alone
        data.StudyInstanceUID = uid("study", self.patient_id)
        data.StudyDescription = "LUND-PROBE, synthetic phantom" if self.synthetic else "LUND-PROBE"
        for unknown in ("BirthDate", "Sex"):
            setattr(data, f"Patient{unknown}", "")
        for unknown in ("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID"):
            setattr(data, unknown, "")
        data.AccessionNumber = ""
        deidentify(data)
        data.Modality, data.SeriesInstanceUID = modality, series.uid
        data.SeriesNumber, data.SeriesDescription = series.number, series.description
        data.BodyPartExamined = BODY_PART
        data.InstanceNumber = number
        data.FrameOfReferenceUID, data.PositionReferenceIndicator = self.frame_uid, ""
        data.Manufacturer = data.ManufacturerModelName = MANUFACTURER
        data.SoftwareVersions = package_version()
        return data


def deidentify(data: Dataset) -> None:
    """Say that the patient's identity was removed, and how (PS3.3 C.7.1.1)."""
    data.PatientIdentityRemoved = "YES"
    data.DeidentificationMethod = list(_METHOD)
    data.LongitudinalTemporalInformationModified = "REMOVED"


def add_plane(data: Dataset, planes: Planes, number: int) -> None:
    """Say where the pixels of a plane, by number, lie (PS3.3 C.7.6.2)."""
    data.PixelSpacing = texts([planes.row_mm, planes.column_mm])
    data.ImageOrientationPatient = texts(planes.orientation)
    data.ImagePositionPatient = texts(planes.positions[number].tolist())
    data.SliceThickness = texts([planes.step_mm])[0]
    data.Rows, data.Columns = planes.shape[1:]


def add_pixels(data: Dataset, pixels: Any) -> None:
    """Put integers (…, rows, columns) into a dataset (PS3.3 C.7.6.3)."""
    bits = pixels.dtype.itemsize * 8
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit = bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.add_new("PixelData", "OW", pixels.astype(pixels.dtype.newbyteorder("<")).tobytes())


def texts(numbers: list[float]) -> list[str]:
    """Return numbers as DICOM's decimal strings: the nearest of at most 16 characters."""
    return [format_number_as_ds(float(n)) for n in numbers]


def save(data: Dataset, path: Path, shown: Path, syntax: UID = ExplicitVRLittleEndian) -> None:
    """Write a dataset to `path`, which errors call `shown`. Raises `OSError`."""
    if not hasattr(data, "file_meta"):
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = syntax
    with named(shown):
        path.parent.mkdir(parents=True, exist_ok=True)
        data.save_as(path, enforce_file_format=True)
