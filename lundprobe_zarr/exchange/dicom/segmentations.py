"""Segmentations of all sources as DICOM SEG, and uncertainty as parametric maps, by highdicom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from highdicom import (
    AlgorithmIdentificationSequence,
    VOILUTFunctionValues,
    VOILUTTransformation,
)
from highdicom.color import CIELabColor
from highdicom.pm import (
    DerivedPixelContrastValues,
    ImageFlavorValues,
    ParametricMap,
    RealWorldValueMapping,
)
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.exchange.dicom.header import (
    BODY_PART,
    MANUFACTURER,
    NO_DATE,
    NO_TIME,
    Series,
    deidentify,
)
from lundprobe_zarr.exchange.dicom.images import ImageSeries
from lundprobe_zarr.exchange.dicom.masks import Cut
from lundprobe_zarr.exchange.dicom.names import ROIS, Code, roi_name
from lundprobe_zarr.exchange.dicom.uids import digest_of, uid
from lundprobe_zarr.vocabulary.files import Label
from lundprobe_zarr.vocabulary.version import package_version

#: Series numbers: a segmentation's is 30 and more, a map's 60 and more.
_SEGMENTATIONS, _MAPS = 30, 60
#: Most bytes of the segments of one object while it is made. highdicom takes all segments at once
#: and adds them up as 64-bit numbers; a source of more goes into several objects of its series.
MOST_BYTES = 950_000_000
_SUM_BYTES = 8
_Made = TypeVar("_Made", bound=Dataset)


@dataclass(frozen=True)
class Segment:
    """A mask of a source with its labels, cut from a volume in the order of the series."""

    labels: Mapping[str, Label]
    cut: Cut

    @property
    def structure(self) -> str:
        """Structure it is of."""
        return str(self.labels["structure"])


@dataclass(frozen=True)
class SegmentSource:
    """A source of segmentations: number, how it came to be, and what its algorithm is called."""

    number: int
    description: str
    kind: SegmentAlgorithmTypeValues
    algorithm: str | None = None

    def label(self, segment: Segment, tg263: bool) -> str:
        """Return what a segment is called: structure, fold or observer and step."""
        labels, name = segment.labels, roi_name(segment.structure, tg263)
        if "fold" in labels:
            return f"{name} nnU-Net fold {labels['fold']}"
        if "observer" in labels:
            return f"{name} {labels['observer']} step {labels['step']}"
        return f"{name} nnU-Net" if self.algorithm else name


_NNUNET = SegmentAlgorithmTypeValues.AUTOMATIC
#: By the names of sources in the table of structures.
SEGMENT_SOURCES: dict[str, SegmentSource] = {
    "clinical": SegmentSource(0, "clinical delineation", SegmentAlgorithmTypeValues.MANUAL),
    "nnunet": SegmentSource(1, "nnU-Net, ensemble of ten folds", _NNUNET, "nnU-Net ensemble"),
    "nnunet_fold": SegmentSource(2, "nnU-Net, each fold", _NNUNET, "nnU-Net fold"),
    "observer": SegmentSource(
        3,
        "nnU-Net, edited by observers",
        SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        "nnU-Net, edited by hand",
    ),
}


def groups(segments: Sequence[Segment], plane_bytes: int) -> Iterator[list[Segment]]:
    """Share segments out over objects of at most `MOST_BYTES`, in their order."""
    group: list[Segment] = []
    for segment in segments:
        if group and _bytes([*group, segment], plane_bytes) > MOST_BYTES:
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _bytes(segments: Sequence[Segment], plane_bytes: int) -> int:
    first, last = _extent(segments)
    return (last - first) * plane_bytes * (len(segments) + _SUM_BYTES)


def _extent(segments: Sequence[Segment]) -> tuple[int, int]:
    """Return the range of planes that hold a voxel of any segment; one plane if none does."""
    boxes = [s.cut.box[0] for s in segments if s.cut.voxels.size]
    return min((b.start for b in boxes), default=0), max((b.stop for b in boxes), default=1)


def segments_uid(images: ImageSeries, source: str, segments: Sequence[Segment], tg263: bool) -> str:
    """Return the UID of the series of a source's segments."""
    content: list[str | bytes] = []
    for segment in segments:
        content.append(f"{SEGMENT_SOURCES[source].label(segment, tg263)} {segment.cut.box}")
        content.append(digest_of(np.packbits(segment.cut.voxels)))
    return uid("segmentations", images.series.uid, source, *content)


def segmentation(
    images: ImageSeries,
    source: str,
    series_uid: str,
    segments: Sequence[Segment],
    number: int,
    tg263: bool,
) -> Segmentation:
    """Return an object of a source's segments; `number` is its place in the series, from 1."""
    about = SEGMENT_SOURCES[source]
    first, last = _extent(segments)
    pixels = np.zeros((last - first, *images.planes.shape[1:], len(segments)), np.uint8)
    for n, segment in enumerate(segments):
        z, y, x = segment.cut.box
        pixels[z.start - first : z.stop - first, y, x, n] = segment.cut.voxels
    kind = images.kind
    series = Series(
        _SEGMENTATIONS + 10 * (kind.number - 1) + about.number,
        series_uid,
        f"{about.description}, on {kind.name}",
    )
    patient_id = str(images.headers[0].PatientID)
    described = [_described(n, s, about, patient_id, tg263) for n, s in enumerate(segments, 1)]
    data = Segmentation(
        source_images=images.headers[first:last],
        pixel_array=pixels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        content_description=about.description,
        omit_empty_frames=any(s.cut.voxels.size for s in segments),  # but an object has one
        **_identity(series, uid("segmentation", series_uid, number), number),
    )
    return _settled(data)


def _described(
    number: int, segment: Segment, about: SegmentSource, patient_id: str, tg263: bool
) -> SegmentDescription:
    roi, label = ROIS[segment.structure], about.label(segment, tg263)
    described = SegmentDescription(
        number,
        label,
        _coded(roi.category),
        _coded(roi.kind),
        about.kind,
        _algorithm(about),
        tracking_uid=uid("tracking", patient_id, label),  # alike on all grids of the patient
        tracking_id=label,
        display_color=CIELabColor.from_rgb(*roi.colour),
    )
    if roi.side is not None:
        kind = described.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [_coded(roi.side)]
    return described


def _coded(code: Code) -> CodedConcept:
    return CodedConcept(*code)


def _algorithm(about: SegmentSource) -> AlgorithmIdentificationSequence | None:
    if about.algorithm is None:
        return None
    # LUND-PROBE does not say which version; the attribute may not be empty.
    family = codes.DCM.ArtificialIntelligence
    return AlgorithmIdentificationSequence(about.algorithm, family, version="not stated")


def uncertainty_map(
    images: ImageSeries, structure: str, number: int, volume: npt.NDArray[Any], tg263: bool
) -> ParametricMap:
    """Return a stored map (z, y, x) as a parametric map of the same floats.

    Raises `UsageError` for values that are not finite.
    """
    values = np.ascontiguousarray(images.planes.ordered(volume))
    low, high = float(values.min()), float(values.max())
    if not np.isfinite((low, high)).all():
        raise UsageError(
            f"mri/nnunet/uncertainty [structure={structure}] has values that are not finite numbers"
            ", which DICOM cannot hold",
            expected="finite numbers",
            remedy="export NIfTI files, which hold them",
        )
    name = f"uncertainty of {roi_name(structure, tg263)}"
    series_uid = uid("uncertainty", images.series.uid, name, digest_of(values))
    meaning = RealWorldValueMapping(
        lut_label="uncertainty",
        lut_explanation="standard deviation of the ten folds' SoftMax",
        unit=codes.UCUM.NoUnits,
        value_range=(low, max(high, np.nextafter(low, 1.0))),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.DCM.StandardDeviation,
    )
    window = VOILUTTransformation(
        window_center=(low + high) / 2,
        window_width=max(high - low, 1e-6),
        voi_lut_function=VOILUTFunctionValues.LINEAR_EXACT,  # others have widths from 1
    )
    data = ParametricMap(
        source_images=images.headers,
        pixel_array=values,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[meaning],
        voi_lut_transformations=[window],
        image_flavor=ImageFlavorValues.VOLUME,
        derived_pixel_contrast=DerivedPixelContrastValues.STD_DEVIATION,
        content_description="voxel-wise standard deviation of the folds' SoftMax",
        **_identity(
            Series(_MAPS + number, series_uid, name), uid("uncertainty map", series_uid), 1
        ),
    )
    return _settled(data)


def _identity(series: Series, instance_uid: str, number: int) -> dict[str, Any]:
    """Return the arguments that both kinds of objects take."""
    return {
        "series_instance_uid": series.uid,
        "series_number": series.number,
        "series_description": series.description,
        "sop_instance_uid": instance_uid,
        "instance_number": number,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MANUFACTURER,
        "software_versions": package_version(),
        "device_serial_number": "0",
        "content_date": NO_DATE,
        "content_time": NO_TIME,
    }


def _settled(data: _Made) -> _Made:
    """Replace what highdicom generates at random by values derived from the content."""
    del data.InstanceCreationDate, data.InstanceCreationTime
    for equipment in data.get("ContributingEquipmentSequence", ()):
        equipment.pop("ContributionDateTime", None)
    deidentify(data)
    data.BodyPartExamined = BODY_PART
    dimensions = uid("dimensions", data.SOPInstanceUID)
    for item in (*data.DimensionOrganizationSequence, *data.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    return data
