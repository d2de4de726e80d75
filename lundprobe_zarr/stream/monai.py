"""Patients as a dataset of MONAI: dictionaries of `MetaTensor`, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lundprobe_zarr.errors import MissingPackageError
from lundprobe_zarr.patches.frame import Frame
from lundprobe_zarr.stream.torch import to_monai
from lundprobe_zarr.stream.whole import Missing, WholeVolumes, content_of
from lundprobe_zarr.vocabulary.version import with_extra

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort

try:
    torch: Any = import_module("torch")
    data: Any = import_module("monai.data")
    transforms: Any = import_module("monai.transforms")
except ImportError as error:
    raise MissingPackageError(
        "MONAI is not installed", remedy=f"monai_dataset needs it: {with_extra('monai')}"
    ) from error


def monai_dataset(
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
    transform: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
    missing: Missing = "error",
) -> PatientsDataset:
    """Make a `monai.data.Dataset` of a cohort, an item a patient. Needs MONAI.

    An item is a dict with `patient_id` and volumes, as `MetaTensor` (channel, x, y, z) with the
    affine voxel -> mm, RAS: what `LoadImaged` and `EnsureChannelFirstd` make of the NIfTI files.
    The keys are `image`, `mask`, `dose`, `uncertainty`, `nnunet_mask`, `fold_mask`,
    `observer_mask`, of which those are there that were asked for; `dataset.channels` says what the
    channels are. Tables are read at once, voxels when an item is asked for, in any process.

    Parameters
    ----------
    cohort : Cohort
        The patients.
    images : str or sequence of str, optional
        Channels of `image`: `T2w` and `sCT` on the MRI grid, `sCT` on its own. Default: the image
        of the grid.
    structures : str or sequence of str
        Channels of `mask`, uint8.
    grid : {'mri', 'sct', 'dose'}
        Grid of all volumes.
    sources : str or sequence of str
        Masks of whom: `clinical` (`mask`), `nnunet` (`nnunet_mask`), `nnunet_fold` (`fold_mask`),
        `observer` (`observer_mask`). The latter three are of `CTVT_427` and `Rectum` among the
        structures, of extended patients.
    dose, uncertainty : bool
        Add `dose`, Gy, and the network's `uncertainty` of the structures.
    spacing_mm : float or sequence of float, optional
        Resample to this voxel size, mm (z, y, x, or one number), linearly; masks are 1 where the
        interpolated mask is at least ½.
    crop : str, optional
        Crop to the box of this clinical structure and `margin_mm`, after resampling.
    margin_mm : float
        Margin around it, mm.
    image_dtype : str, optional
        Type of `image`. None keeps the stored type, which may differ between patients.
    transform : callable or sequence of callables, optional
        Transforms of MONAI, applied to each item.
    missing : {'error', 'skip'}
        Raise an error for patients who lack something that was asked for, or leave them out. A
        missing structure never becomes an empty mask.

    Returns
    -------
    PatientsDataset
        The dataset. Caches take `dataset.data` and `dataset.load`, as in
        `PersistentDataset(dataset.data, [dataset.load, …], cache_dir)`, which reads nothing twice.

    Raises
    ------
    MissingPackageError
        If MONAI or torch is not installed.
    MissingStructureError
        If a patient lacks something, unless `missing="skip"`; or if all do.
    UnknownLabelError
        For an unknown image, structure or source.
    UsageError
        For another invalid argument.

    Examples
    --------
        train = lp.monai_dataset(cohort, "T2w", ["CTVT_427", "Rectum"], missing="skip")
        train[0]["image"].affine
    """
    content = content_of(
        images, structures, grid, sources, dose, uncertainty, spacing_mm, image_dtype
    )
    volumes = WholeVolumes(cohort, content, Frame(spacing_mm, crop, margin_mm), missing)
    return PatientsDataset(volumes, transform)


class LoadPatient(transforms.Transform):
    """The transform that reads a patient's volumes, to put before others.

    It takes an item of `PatientsDataset.data`, and returns the dict that `monai_dataset` says.
    """

    def __init__(self, volumes: WholeVolumes) -> None:
        self._volumes = volumes

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Read the volumes of one patient; raise as `WholeVolumes.read` does."""
        patient_id = data["patient_id"]
        converted = to_monai(self._volumes.read(patient_id))
        found: dict[str, Any] = {"patient_id": patient_id}
        for name in self._volumes.names:
            volume = converted[name]
            found[name] = volume.to(torch.uint8) if volume.dtype == torch.bool else volume
            found[name].meta |= {
                "filename_or_obj": f"{patient_id}_{name}",
                "original_affine": volume.affine.clone(),
                "spatial_shape": tuple(volume.shape[1:]),
                "space": "RAS",
                "original_channel_dim": 0,
            }
        return found


class PatientsDataset(data.Dataset):
    """A cohort as a `monai.data.Dataset`; made by `monai_dataset`.

    Attributes
    ----------
    data : list of dict
        An item a patient, without voxels: `patient_id`, and `key`, a hash of data and settings, by
        which the files of a `PersistentDataset` are distinguished.
    load : LoadPatient
        The transform that reads voxels.
    channels : dict of str to tuple of str
        What the channels of each volume are.
    """

    def __init__(self, volumes: WholeVolumes, transform: Any = None) -> None:
        self.load = LoadPatient(volumes)
        self.channels = volumes.names
        more = [] if transform is None else transform
        more = list(more) if isinstance(more, Sequence) else [more]
        items = [{"patient_id": i, "key": volumes.key} for i in volumes.ids]
        super().__init__(items, transforms.Compose([self.load, *more]))
