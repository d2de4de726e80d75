"""Structure sets: contours of masks on the planes of a series, fiducials as points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, RTStructureSetStorage

from lundprobe_zarr.exchange.dicom.header import Series, Study
from lundprobe_zarr.exchange.dicom.images import ImageSeries
from lundprobe_zarr.exchange.dicom.keyhole import joined
from lundprobe_zarr.exchange.dicom.lattice import Planes
from lundprobe_zarr.exchange.dicom.masks import Cut
from lundprobe_zarr.exchange.dicom.names import FIDUCIAL_COLOUR, ROIS, roi_name
from lundprobe_zarr.exchange.dicom.uids import uid
from lundprobe_zarr.figures.contours import Places, Polygon, mask_polygons
from lundprobe_zarr.geometry.affine import FloatArray

#: Series number of the structure set of image series 1, 2 …: 11, 12 …
_FIRST_NUMBER = 10
#: Fewest points of a contour that holds an area.
_FEWEST_POINTS = 3
_CONTOUR_DATA = Tag("ContourData")
#: Detached Study Management, retired, and still what stands for a study here (PS3.3 C.8.8.5).
_STUDY = UID("1.2.840.10008.3.1.2.3.1")


@dataclass(frozen=True)
class Contour:
    """A closed contour on a plane, by number: its points and their text for Contour Data."""

    plane: int
    points: int
    data: str


@dataclass
class Contours:
    """The contours of a structure, with so many holes; `dropped` had fewer than three points."""

    found: list[Contour] = field(default_factory=list)
    holes: int = 0
    dropped: int = 0


def contours_of(mask: Cut, planes: Planes) -> Contours:
    """Outline a mask, cut from a volume in the order of `planes`, at level 0.5 on each plane.

    A hole is part of its outline: see `keyhole.joined`. Coordinates are rounded to 1e-6 mm.
    """
    result = Contours()
    z, y, x = mask.start
    for number, plane in enumerate(mask.voxels):
        for polygon in mask_polygons(plane, (y, x)) if plane.any() else ():
            _add(result, z + number, polygon, planes)
    return result


def _add(result: Contours, plane: int, polygon: Polygon, planes: Planes) -> None:
    line: Places = joined(polygon)
    if len(line) < _FEWEST_POINTS:
        result.dropped += 1
        return
    result.holes += len(polygon.rings) - 1
    numbers = planes.points(plane, line).ravel().tolist()
    text = "\\".join(["%.6f"] * len(numbers)) % tuple(numbers)
    result.found.append(Contour(plane, len(line), text))


@dataclass(frozen=True)
class _Region:
    """An ROI: name, interpreted type, colour, and its contours."""

    name: str
    interpreted_type: str
    colour: tuple[int, int, int]
    contours: list[Dataset]


def structure_set(
    study: Study,
    images: ImageSeries,
    structures: Mapping[str, Contours],
    fiducials: FloatArray,
    tg263: bool,
) -> Dataset:
    """Return the structure set of a series: clinical structures, then fiducials.

    `fiducials` are positions (n, 3), x, y, z, mm, LPS.
    """
    regions = [*_areas(images, structures, tg263), *_points(images, fiducials)]
    content = [f"{r.name}|{c[_CONTOUR_DATA].value}" for r in regions for c in r.contours]
    series_uid = uid("structures", images.series.uid, *(r.name for r in regions), *content)
    number = _FIRST_NUMBER + images.series.number
    series = Series(number, series_uid, f"structures of {images.kind.name}")
    data = study.instance(RTStructureSetStorage, "RTSTRUCT", series, 1)
    data.OperatorsName = ""
    data.StructureSetLabel = images.kind.name  # at most 16 characters
    data.StructureSetDescription = (
        "Outlines of LUND-PROBE masks at level 0.5, halfway between voxel centres. Points rounded "
        "to 1e-6 mm. A voxel is of the mask if its centre is within. Holes joined by keyholes."
    )
    data.StructureSetDate = data.StructureSetTime = ""
    data.ReferencedFrameOfReferenceSequence = [_frame(study, images)]
    rows = [_rows(study, n, region) for n, region in enumerate(regions, 1)]
    data.StructureSetROISequence = [row[0] for row in rows]
    data.ROIContourSequence = [row[1] for row in rows]
    data.RTROIObservationsSequence = [row[2] for row in rows]
    data.ApprovalStatus = "UNAPPROVED"
    return data


def _areas(
    images: ImageSeries, structures: Mapping[str, Contours], tg263: bool
) -> Iterator[_Region]:
    for structure, contours in structures.items():
        roi = ROIS[structure]
        items = [
            _contour("CLOSED_PLANAR", c.points, c.data, images.headers[c.plane])
            for c in contours.found
        ]
        name = roi_name(structure, tg263)
        yield _Region(name, roi.interpreted_type, roi.colour, items)


def _points(images: ImageSeries, fiducials: FloatArray) -> Iterator[_Region]:
    for number, position in enumerate(fiducials, 1):
        text = "\\".join(f"{n:.6f}" for n in position)
        item = _contour("POINT", 1, text, _nearest(images, position))
        yield _Region(f"Fiducial_{number}", "MARKER", FIDUCIAL_COLOUR, [item])


def _nearest(images: ImageSeries, position: FloatArray) -> Dataset | None:
    """Return the header of the plane within half a step of a position, if there is one."""
    planes = images.planes
    normal = np.cross(planes.along_row, planes.along_column)
    away = np.abs((planes.positions - position) @ normal)
    near = int(away.argmin())
    return images.headers[near] if away[near] <= planes.step_mm / 2 else None


def _contour(kind: str, points: int, text: str, header: Dataset | None) -> Dataset:
    item = Dataset()
    if header is not None:
        item.ContourImageSequence = [_reference(header)]
    item.ContourGeometricType, item.NumberOfContourPoints = kind, points
    # As text: pydicom would make an object of each of some 100,000 numbers.
    item.add(DataElement(_CONTOUR_DATA, "DS", text, already_converted=True))
    return item


def _reference(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    return item


def _frame(study: Study, images: ImageSeries) -> Dataset:
    """Return what the structures refer to: frame, study, series and all its instances."""
    series, of_study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = images.series.uid
    series.ContourImageSequence = [_reference(h) for h in images.headers]
    of_study.ReferencedSOPClassUID = _STUDY
    of_study.ReferencedSOPInstanceUID = images.headers[0].StudyInstanceUID
    of_study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = study.frame_uid
    frame.RTReferencedStudySequence = [of_study]
    return frame


def _rows(study: Study, number: int, region: _Region) -> Sequence[Dataset]:
    """Return an ROI's items: of the structure set, its contours, and its observation."""
    roi, contour, observation = Dataset(), Dataset(), Dataset()
    roi.ROINumber, roi.ROIName = number, region.name
    roi.ReferencedFrameOfReferenceUID = study.frame_uid
    roi.ROIGenerationAlgorithm = ""  # LUND-PROBE does not say which were drawn, which computed
    contour.ROIDisplayColor = list(region.colour)
    contour.ReferencedROINumber = number
    if region.contours:
        contour.ContourSequence = region.contours
    observation.ObservationNumber = observation.ReferencedROINumber = number
    observation.RTROIInterpretedType = region.interpreted_type
    observation.ROIInterpreter = ""
    return roi, contour, observation
