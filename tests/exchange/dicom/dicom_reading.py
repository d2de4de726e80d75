"""DICOM files read back without anything of ours: pydicom, SimpleITK, and a few lines of fill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset

from lundprobe_zarr.stores.reader import StoreReader


def series(folder: Path) -> sitk.Image:
    """Return a series as ITK puts it together, by the positions of its planes."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def lps_affine(image: sitk.Image) -> np.ndarray:
    """Return the map (4, 4) of an image's voxels (i, j, k) to mm, LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return affine


def filled(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the places (row, column) of which an odd number of crossings lie to the left."""
    flips = np.zeros((shape[0], shape[1] + 1), np.int64)
    for (r0, c0), (r1, c1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        rows = np.arange(np.ceil(min(r0, r1)), np.ceil(max(r0, r1)))
        if len(rows):
            columns = c0 + (rows - r0) * (c1 - c0) / (r1 - r0)
            np.add.at(flips, (rows.astype(int), np.ceil(columns).astype(int)), 1)
    return np.cumsum(flips, axis=1)[:, :-1] % 2 == 1


def contours(structure_set: Dataset) -> Iterator[tuple[str, str, np.ndarray, list[str]]]:
    """Yield each contour: ROI's name, type, points (n, 3) and the instances it refers to."""
    names = {r.ROINumber: r.ROIName for r in structure_set.StructureSetROISequence}
    for roi in structure_set.ROIContourSequence:
        for item in roi.get("ContourSequence", []):
            points = np.array(item.ContourData, float).reshape(-1, 3)
            assert len(points) == item.NumberOfContourPoints
            uids = [r.ReferencedSOPInstanceUID for r in item.get("ContourImageSequence", [])]
            yield names[roi.ReferencedROINumber], item.ContourGeometricType, points, uids


def masks(structure_set: Dataset, image: sitk.Image, unite: bool = False) -> dict[str, np.ndarray]:
    """Return each structure's mask (k, j, i): contours of a plane united, or else by XOR."""
    to_index = np.linalg.inv(lps_affine(image))
    found: dict[str, np.ndarray] = {}
    for name, kind, points, _ in contours(structure_set):
        if kind == "POINT":
            continue
        i, j, k = to_index[:3, :3] @ points.T + to_index[:3, 3:]
        plane = round(k[0])
        np.testing.assert_allclose(k, plane, atol=1e-3)
        mask = found.setdefault(name, np.zeros(image.GetSize()[::-1], bool))
        inside = filled(np.stack([j, i], axis=1), mask.shape[1:])
        mask[plane] = mask[plane] | inside if unite else mask[plane] ^ inside
    return found


def stored(reader: StoreReader, path: str, **labels: object) -> np.ndarray:
    """Return a volume of the store (z, y, x)."""
    array = reader.array(path)
    record = next(r for r in array.sources if r.labels == labels)
    return reader.volume(array, record)


def all_files(folder: Path) -> list[Path]:
    """Return the DICOM files of a patient's folder, sorted."""
    return sorted(folder.rglob("*.dcm"))


def read(file: Path) -> Dataset:
    """Read a DICOM file."""
    return pydicom.dcmread(file)
