"""Series of images: T2w as MR, synthetic CT as CT."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage

from lundprobe_zarr.exchange.dicom.header import Series, Study, add_pixels, add_plane, texts
from lundprobe_zarr.exchange.dicom.lattice import Planes
from lundprobe_zarr.exchange.dicom.uids import digest_of, uid
from lundprobe_zarr.exchange.dicom.values import Stored, hounsfield, whole_numbers


@dataclass(frozen=True)
class ImageKind:
    """An image of the store, as a series: folder, series number, grid and label."""

    name: str
    number: int
    grid: str
    modality: str
    description: str

    @property
    def is_ct(self) -> bool:
        """Whether it is a CT series, in HU."""
        return self.modality == "sCT"

    @property
    def array(self) -> str:
        """Array of the store that holds it."""
        return f"{self.grid}/image"


#: Series of images, in the order in which they are written.
IMAGE_KINDS = (
    ImageKind("MR_T2w", 1, "mri", "T2w", "T2w MRI"),
    ImageKind("CT_sCT", 2, "sct", "sCT", "synthetic CT, its own grid"),
    ImageKind("CT_sCT_on_MRI", 3, "mri", "sCT", "synthetic CT, resampled to the MRI grid"),
)


@dataclass(frozen=True)
class ImageSeries:
    """A series as other objects refer to it: kind, planes, headers without pixels in order."""

    kind: ImageKind
    planes: Planes
    series: Series
    max_abs_error: float
    headers: list[Dataset]


def instances(
    study: Study, kind: ImageKind, planes: Planes, volume: npt.NDArray[Any]
) -> tuple[ImageSeries, Iterator[Dataset]]:
    """Return a series of a stored volume (z, y, x), and its instances to be saved in turn.

    Raises `UsageError` for values that its integers cannot hold.
    """
    name = f"{kind.array} [modality={kind.modality}]"
    stored = (hounsfield if kind.is_ct else whole_numbers)(planes.ordered(volume), name)
    series = Series(kind.number, _series_uid(study, kind, planes, stored), kind.description)
    found = ImageSeries(kind, planes, series, stored.max_abs_error, [])
    return found, _written(study, found, stored)


def _written(study: Study, found: ImageSeries, stored: Stored) -> Iterator[Dataset]:
    """Yield each instance; once it is saved it is kept without its pixels."""
    for plane, pixels in enumerate(stored.integers):
        data = _instance(study, found, stored, plane)
        add_pixels(data, pixels)
        yield data
        del data.PixelData
        found.headers.append(data)


def _series_uid(study: Study, kind: ImageKind, planes: Planes, stored: Stored) -> str:
    digest = digest_of(stored.integers, planes.positions, np.array(planes.orientation))
    sizes = texts([planes.row_mm, planes.column_mm, planes.step_mm])
    scale = stored.slope, str(stored.intercept), stored.integers.dtype.str
    header = study.position, str(study.precision)  # other headers need other UIDs, too
    return uid("series", study.patient_id, kind.name, digest, *sizes, *scale, *header)


def _instance(study: Study, found: ImageSeries, stored: Stored, plane: int) -> Dataset:
    kind, planes = found.kind, found.planes
    sop_class = CTImageStorage if kind.is_ct else MRImageStorage
    data = study.instance(sop_class, "CT" if kind.is_ct else "MR", found.series, plane + 1)
    data.PatientPosition = study.position
    data.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if kind.is_ct else "OTHER"]
    data.DerivationDescription = derivation(study, kind, stored)
    data.AcquisitionNumber = None
    data.BurnedInAnnotation = "NO"
    add_plane(data, planes, plane)
    data.SpacingBetweenSlices = data.SliceThickness
    (_add_ct if kind.is_ct else _add_mr)(data, stored)
    return data


def derivation(study: Study, kind: ImageKind, stored: Stored) -> str:
    """Return how the pixels came to be, for Derivation Description (at most 1,024 characters)."""
    source = f"{study.source(kind.array)}: {kind.description}."
    if not stored.max_abs_error:
        return f"{source} Values are exactly those of the array."
    return f"{source} Values are rounded to whole HU; largest error {stored.max_abs_error:.6g} HU."


def _add_mr(data: Dataset, stored: Stored) -> None:
    # The store does not know the sequence. "Research mode" is the least said of those that the
    # standard has (PS3.3 C.8.3.1); times are of type 2 and empty.
    data.ScanningSequence, data.SequenceVariant = "RM", "NONE"
    data.ScanOptions = data.MRAcquisitionType = ""
    data.RepetitionTime = data.EchoTime = data.EchoTrainLength = None
    low, high = int(stored.integers.min()), int(stored.integers.max())
    data.WindowCenter, data.WindowWidth = texts([(low + high) / 2, max(1, high - low)])


def _add_ct(data: Dataset, stored: Stored) -> None:
    data.KVP = None
    data.RescaleSlope, data.RescaleIntercept = stored.slope, texts([stored.intercept])[0]
    data.RescaleType = "HU"
    data.WindowCenter, data.WindowWidth = "40", "400"  # soft tissue
