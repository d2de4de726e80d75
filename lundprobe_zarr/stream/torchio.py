"""Patients as subjects of TorchIO, whose images are read when their voxels are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from lundprobe_zarr.errors import MissingPackageError
from lundprobe_zarr.patches.frame import Frame
from lundprobe_zarr.stream.torch import channels_first
from lundprobe_zarr.stream.whole import Missing, WholeVolumes, content_of
from lundprobe_zarr.vocabulary.version import with_extra

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort

try:
    torchio: Any = import_module("torchio")
except ImportError as error:
    raise MissingPackageError(
        "TorchIO is not installed", remedy=f"torchio_subjects needs it: {with_extra('torchio')}"
    ) from error


def torchio_subjects(
    cohort: Cohort,
    images: str | Sequence[str] | None = None,
    structures: str | Sequence[str] = (),
    *,
    grid: str = "mri",
    sources: str | Sequence[str] = "clinical",
    dose: bool = False,
    uncertainty: bool = False,
    spacing_mm: float | Sequence[float] | None = None,
    crop: str | None = None,
    margin_mm: float = 0.0,
    image_dtype: str | None = "float32",
    transform: Callable[..., Any] | None = None,
    missing: Missing = "error",
) -> Any:
    """Make a `torchio.SubjectsDataset` of a cohort, a subject a patient. Needs TorchIO.

    A subject has `patient_id` and images (channel, x, y, z) with the affine voxel -> mm, RAS:
    `image` as `ScalarImage`, masks as `LabelMap`, `dose` and `uncertainty` as `Image`, as
    `to_torchio` has them. Images read their voxels when these are asked for; `affine`, `spacing`,
    `orientation` and `shape` need the store's metadata alone.

    Parameters
    ----------
    cohort, images, structures, grid, sources, dose, uncertainty, spacing_mm, crop, margin_mm
        As in `monai_dataset`.
    image_dtype, missing
        As in `monai_dataset`.
    transform : callable, optional
        A transform of TorchIO, applied to each subject.

    Returns
    -------
    torchio.SubjectsDataset
        The dataset, for `torchio.Queue`, `SubjectsLoader` and, by `dry_iter()`, samplers.

    Raises
    ------
    MissingPackageError
        If TorchIO or torch is not installed.
    MissingStructureError, UnknownLabelError, UsageError
        As `monai_dataset` does.

    Examples
    --------
        subjects = lp.torchio_subjects(cohort, "T2w", "Rectum")
        subjects[0].image.spacing
    """
    content = content_of(
        images, structures, grid, sources, dose, uncertainty, spacing_mm, image_dtype
    )
    volumes = WholeVolumes(cohort, content, Frame(spacing_mm, crop, margin_mm), missing)
    subjects = [
        torchio.Subject(
            patient_id=patient_id,
            **{name: _image(StoredVolume(volumes, patient_id, name)) for name in volumes.names},
        )
        for patient_id in volumes.ids
    ]
    return torchio.SubjectsDataset(subjects, transform)


class StoredVolume:
    """One volume of a patient, as the `reader` of a TorchIO image."""

    def __init__(self, volumes: WholeVolumes, patient_id: str, name: str) -> None:
        self._volumes, self.patient_id, self.name = volumes, patient_id, name

    def __deepcopy__(self, memo: object) -> StoredVolume:
        """Return itself: TorchIO copies subjects each time it hands them out."""
        return self

    def __call__(self, path: object) -> tuple[Any, Any]:
        """Read the voxels: a tensor (channel, x, y, z) and the affine; masks are uint8."""
        sample = self._volumes.read(self.patient_id, self.name)
        tensor = channels_first(sample)[self.name]
        return tensor, np.asarray(sample["affine"])

    @property
    def affine(self) -> Any:
        """Affine (4, 4), float64, voxel -> mm, RAS."""
        return self._volumes.box(self.patient_id).grid.affine

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (channel, x, y, z)."""
        channels = len(self._volumes.names[self.name])
        return (channels, *reversed(self._volumes.box(self.patient_id).size))


class _Stored(torchio.Image):
    """Base of images of a store: geometry is known before voxels are read."""

    def __init__(self, path: Any = None, *arguments: Any, **options: Any) -> None:
        # the path is a name alone: there is no such file
        super().__init__(path, *arguments, **options | {"verify_path": False})

    @property
    def _stored(self) -> StoredVolume | None:
        """The volume that is not read yet."""
        return self.reader if isinstance(self.reader, StoredVolume) and not self._loaded else None


def _known_before(name: str) -> property:
    """Return a property of TorchIO's images that a stored volume knows before it is read."""
    original = getattr(torchio.Image, name)

    def get(self: Any) -> Any:
        stored = self._stored
        return original.fget(self) if stored is None else getattr(stored, name)

    return property(get, original.fset, doc=original.__doc__)


class StoredImage(_Stored):
    """A `torchio.Image` whose voxels are in a store."""

    affine = _known_before("affine")
    shape = _known_before("shape")


class StoredScalarImage(_Stored, torchio.ScalarImage):
    """A `torchio.ScalarImage` whose voxels are in a store."""

    affine = _known_before("affine")
    shape = _known_before("shape")


class StoredLabelMap(_Stored, torchio.LabelMap):
    """A `torchio.LabelMap` whose voxels are in a store."""

    affine = _known_before("affine")
    shape = _known_before("shape")


def _image(volume: StoredVolume) -> Any:
    path = f"{volume.patient_id}_{volume.name}"
    if volume.name.endswith("mask"):
        return StoredLabelMap(path, reader=volume)
    if volume.name == "image":
        return StoredScalarImage(path, reader=volume)
    return StoredImage(path, type=volume.name, reader=volume)
