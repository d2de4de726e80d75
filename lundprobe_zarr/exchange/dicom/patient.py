"""All DICOM objects of one patient, one after another, with a report of what was written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from lundprobe_zarr.exchange.dicom.dose import dose_instance
from lundprobe_zarr.exchange.dicom.header import Study, save
from lundprobe_zarr.exchange.dicom.images import IMAGE_KINDS, ImageSeries, instances
from lundprobe_zarr.exchange.dicom.lattice import Planes, planes_of
from lundprobe_zarr.exchange.dicom.masks import cut, ordered
from lundprobe_zarr.exchange.dicom.options import UNCERTAINTY, DicomOptions, report_head
from lundprobe_zarr.exchange.dicom.segmentations import (
    Segment,
    groups,
    segmentation,
    segments_uid,
    uncertainty_map,
)
from lundprobe_zarr.exchange.dicom.structures import Contours, contours_of, structure_set
from lundprobe_zarr.geometry.affine import FloatArray
from lundprobe_zarr.schema.layout import SEGMENTATION_SOURCES
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import FIDUCIAL_PATH, StoreMetadata, VolumeArray
from lundprobe_zarr.stores.reader import StoreReader, Volume

_DOSE = "dose/dose"
#: The series that segmentations of a grid refer to.
_SEGMENTED = {"mri": "MR_T2w", "sct": "CT_sCT"}

Object = dict[str, Any]


def write_patient(
    location: Location,
    store: StoreMetadata,
    draft: Path,
    home: Path,
    options: DicomOptions,
    on_volume: Callable[[str], None],
) -> dict[str, Any]:
    """Write all objects of a patient below `draft`, which errors call `home`; return the report.

    Raises as `export.export_dicom` does.
    """
    study = Study(
        store.patient_id,
        bool(store.attributes["synthetic"]),
        store.attributes.get("precision"),
        options.patient_position,
    )
    reader = StoreReader(location, store)
    writer = _Writer(reader, study, _Folder(draft, home), options, on_volume)
    return {
        **report_head(store, options),
        "frame_of_reference_uid": study.frame_uid,
        "objects": list(writer.objects()),
    }


@dataclass(frozen=True)
class _Folder:
    """Where files are written, and what errors call the place."""

    draft: Path
    home: Path

    def save(self, data: Dataset, name: str, **how: Any) -> None:
        """Write a data set into the draft; errors name its final place."""
        save(data, self.draft / name, self.home / name, **how)


class _Writer:
    def __init__(
        self,
        reader: StoreReader,
        study: Study,
        folder: _Folder,
        options: DicomOptions,
        on_volume: Callable[[str], None],
    ) -> None:
        self._reader, self._study, self._on_volume = reader, study, on_volume
        self._folder, self._options = folder, options
        self._store = reader.metadata
        names = ("mri", "sct", "dose")
        grids = {name: grid for name in names if (grid := self._store.grid(name)) is not None}
        self._planes = {name: planes_of(grid, name) for name, grid in grids.items()}

    def objects(self) -> Iterator[Object]:
        """Write objects in turn; yield what the report says of each."""
        series: dict[str, ImageSeries] = {}
        for kind in IMAGE_KINDS:
            if (volume := self._volume(kind.array, modality=kind.modality)) is None:
                continue
            found, written = instances(self._study, kind, self._planes[kind.grid], volume)
            del volume  # it takes more memory than all that is made of it
            series[kind.name] = found
            yield self._images(found, written)
        yield from self._of_structures(series)
        if (volume := self._volume(_DOSE)) is not None:
            data, rounding = dose_instance(self._study, self._planes["dose"], volume)
            yield self._file("RTDOSE", data) | rounding
        yield from self._maps(series)

    def _images(self, found: ImageSeries, written: Iterable[Dataset]) -> Object:
        name = found.kind.name
        for data in written:
            self._folder.save(data, f"{name}/{data.InstanceNumber:04}.dcm")
        first = found.headers[0]
        return {
            "name": name,
            "modality": first.Modality,
            "files": len(found.headers),
            "series_instance_uid": found.series.uid,
            "max_abs_error": found.max_abs_error,
            "derivation": first.DerivationDescription,
        }

    def _file(self, name: str, data: Dataset, **how: Any) -> Object:
        self._folder.save(data, f"{name}.dcm", **how)
        return {
            "name": name,
            "modality": data.Modality,
            "files": 1,
            "series_instance_uid": str(data.SeriesInstanceUID),
        }

    def _of_structures(self, series: dict[str, ImageSeries]) -> Iterator[Object]:
        """Write the structure sets of each grid's series, then its segmentations."""
        for grid, name in _SEGMENTED.items():
            on_grid = [s for s in series.values() if s.kind.grid == grid]
            if not on_grid:
                continue
            clinical = self._segments(f"{grid}/clinical/mask")
            planes = self._planes[grid]
            contours = {s.structure: contours_of(s.cut, planes) for s in clinical}
            for images in on_grid:
                yield from self._structures(images, contours)
            referred = series.get(name, on_grid[0])
            for path, source in SEGMENTATION_SOURCES.items():
                if path.startswith(f"{grid}/"):
                    found = clinical if source == "clinical" else self._segments(path)
                    yield from self._segmentations(referred, source, found)

    def _structures(self, images: ImageSeries, contours: dict[str, Contours]) -> Iterator[Object]:
        fiducials = self._fiducials()
        if not contours and not len(fiducials):
            return
        data = structure_set(self._study, images, contours, fiducials, self._options.tg263)
        # Explicit VR has room for 64 kB of coordinates; the outline of a body takes more.
        written = self._file(f"RTSTRUCT_{images.kind.name}", data, syntax=ImplicitVRLittleEndian)
        yield written | {
            "contours": {name: len(c.found) for name, c in contours.items()},
            "holes": {name: c.holes for name, c in contours.items()},
            "dropped_contours": {name: c.dropped for name, c in contours.items()},
            "fiducials": len(fiducials),
        }

    def _segmentations(
        self, images: ImageSeries, source: str, segments: list[Segment]
    ) -> Iterator[Object]:
        _, rows, columns = images.planes.shape
        tg263 = self._options.tg263
        series_uid = segments_uid(images, source, segments, tg263)
        for number, group in enumerate(groups(segments, rows * columns), 1):
            data = segmentation(images, source, series_uid, group, number, tg263)
            written = self._file(f"SEG_{images.kind.name}_{source}_{number}", data)
            yield written | {"segments": [s.SegmentLabel for s in data.SegmentSequence]}

    def _maps(self, series: dict[str, ImageSeries]) -> Iterator[Object]:
        array = self._store.arrays.get(UNCERTAINTY)
        images = series.get("MR_T2w") or series.get("CT_sCT_on_MRI")
        for number, record in enumerate(array.sources if array and images else ()):
            structure = str(record.labels["structure"])
            if array and images and self._options.takes("nnunet", structure):
                volume = self._read(array, record)
                tg263 = self._options.tg263
                data = uncertainty_map(images, structure, number, volume, tg263)
                yield self._file(f"UNCERTAINTY_{structure}", data)

    def _read(self, array: VolumeArray, record: SourceRecord) -> Volume:
        volume = self._reader.volume(array, record)
        self._on_volume(record.path)
        return volume

    def _volume(self, path: str, **labels: Any) -> Volume | None:
        """Return the stored volume (z, y, x) with these labels; None if the patient has none."""
        array = self._store.arrays.get(path)
        for record in array.sources if array else ():
            if array and record.labels == labels:
                return self._read(array, record)
        return None

    def _segments(self, path: str) -> list[Segment]:
        """Return the masks of an array that were asked for, in the order of planes."""
        array = self._store.arrays.get(path)
        if array is None:
            return []
        planes: Planes = self._planes[array.spec.grid]
        found = []
        for record in array.sources:
            if self._options.takes(SEGMENTATION_SOURCES[path], str(record.labels["structure"])):
                mask = cut(self._read(array, record))
                kept = ordered(mask, planes.shape[0], planes.flipped)
                found.append(Segment(record.labels, kept))
        return found

    def _fiducials(self) -> FloatArray:
        """Return the positions of fiducials (n, 3), x, y, z, mm, LPS."""
        count = self._store.n_fiducials
        if not count:
            return np.zeros((0, 3))
        return self._reader.small_array(FIDUCIAL_PATH, (count, 3), np.dtype(np.float64))
