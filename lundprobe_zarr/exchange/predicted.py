"""Predicted masks in NIfTI files, as nnU-Net and others write them.

A folder holds a label map for each patient, `<patient_id>.nii.gz`, with nnU-Net's `dataset.json`,
or a folder for each patient with a mask for each structure, `<patient_id>/<Structure>.nii.gz` or
`<patient_id>/mask_<Structure>.nii.gz`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.dataset.predictions import Mask, NotCompared, grid_named
from lundprobe_zarr.errors import DatasetError, LundProbeError, UsageError
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.geometry.reorient import turned
from lundprobe_zarr.measures.labels import (
    NO_STRUCTURES,
    Labels,
    label_masks,
    label_numbers,
    require_known_numbers,
)
from lundprobe_zarr.schema.header import affine_mm
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.vocabulary.names import STRUCTURES, is_patient_id
from lundprobe_zarr.vocabulary.suggest import suggestion

_ENDINGS = (".nii.gz", ".nii")
_DATASET = "dataset.json"


class NiftiPredictions:
    """The predicted masks in a folder of NIfTI files: a `MaskSource` of one name.

    `labels` say which numbers are which structure; None: the folder's `dataset.json`, or that of
    the folder it is in. Raises `UsageError` for a folder without such files or labels,
    or with two files of the same prediction.
    """

    def __init__(self, folder: Path, labels: Labels | None = None, name: str | None = None) -> None:
        if not folder.is_dir():
            raise UsageError("no such folder", where=folder, expected="a folder of predictions")
        self.folder = folder
        self.name = name or folder.absolute().name
        self._given = labels
        if not self._maps and not self._masks:
            raise UsageError(
                "no predictions",
                where=folder,
                expected="`<patient_id>.nii.gz` label maps, or `<patient_id>/<Structure>.nii.gz`",
            )
        _ = self._numbers  # what is wrong about labels is said now
        self._require_one_file_each()

    def _require_one_file_each(self) -> None:
        """Require one file of each prediction: two would be ambiguous."""
        maps = [f for f in self._files if is_patient_id(_stem(f))]
        masks = [m for some in self._masks.values() for m in some]
        seen: dict[tuple[str, str], Path] = {}
        keys = [(_stem(f), "") for f in maps] + [(m.parent.name, _structure(m)) for m in masks]
        for key, file in zip(keys, maps + masks, strict=True):
            first = seen.get((key[0], "")) or seen.setdefault(key, file)
            if first != file:
                raise UsageError(
                    f"two files of the same: {first.relative_to(self.folder)} and "
                    f"{file.relative_to(self.folder)}",
                    where=self.folder,
                    expected="for each patient a label map, or one mask for each structure",
                    remedy="remove one of them",
                )

    @property
    def names(self) -> list[str]:
        """The one name of these predictions."""
        return [self.name]

    def patients(self, name: str) -> list[str]:
        """Ids of the patients, in order."""
        return sorted({*self._maps, *self._masks})

    def grid(self, name: str, store: StoreMetadata) -> str | None:
        """Return None: the affine of each file says where its voxels are."""
        return None

    @property
    def left_out(self) -> list[NotCompared]:
        """Files that are of no patient, and labels and masks that are of no structure."""
        strange = [f for f in self._files if not is_patient_id(_stem(f))]
        found = [NotCompared(_stem(f), self.name, None, "no patient's id") for f in strange]
        names = list(self._all_numbers) if self._maps else []
        names += [_structure(f) for some in self._masks.values() for f in some]
        for label in dict.fromkeys(names):
            if label not in (*STRUCTURES, *NO_STRUCTURES):
                reason = f"no structure of this name; {suggestion(label, STRUCTURES)}"
                found.append(NotCompared("", self.name, label, reason))
        return found

    @cached_property
    def _files(self) -> list[Path]:
        return sorted(f for f in self.folder.iterdir() if f.is_file() and _is_nifti(f))

    @cached_property
    def _maps(self) -> dict[str, Path]:
        return {_stem(f): f for f in self._files if is_patient_id(_stem(f))}

    @cached_property
    def _masks(self) -> dict[str, list[Path]]:
        """Files of masks by patient."""
        folders = [f for f in self.folder.iterdir() if f.is_dir() and is_patient_id(f.name)]
        found = {f.name: sorted(m for m in f.iterdir() if _is_nifti(m)) for f in sorted(folders)}
        return {i: files for i, files in found.items() if files}

    @cached_property
    def _all_numbers(self) -> dict[str, tuple[int, ...]]:
        if self._given is not None:
            return label_numbers(self._given)
        for folder in (self.folder, self.folder.absolute().parent):
            if (folder / _DATASET).is_file():
                return _labels_of(folder / _DATASET)
        raise UsageError(
            f"label maps without {_DATASET}",
            where=self.folder,
            expected="which number is which structure",
            remedy="copy nnU-Net's dataset.json there, or give labels={1: 'Rectum', …}",
        )

    @cached_property
    def _numbers(self) -> dict[str, tuple[int, ...]]:
        """Numbers of the structures in label maps."""
        if not self._maps:
            return {}
        found = {n: numbers for n, numbers in self._all_numbers.items() if n in STRUCTURES}
        if not found:
            raise UsageError(
                f"labels {', '.join(self._all_numbers)}, none of which is a structure",
                where=self.folder,
                expected=f"some of {', '.join(STRUCTURES)}",
                remedy="give labels={1: 'Rectum', …}",
            )
        return found

    def read(
        self, name: str, store: StoreMetadata, grid: str, wanted: Iterable[str] | None
    ) -> Iterator[tuple[str, Mask]]:
        """Yield structures and masks (z, y, x) of a patient: see `MaskSource`.

        Raises `UsageError` for a file of another lattice or other numbers, `DatasetError` for one
        that cannot be read.
        """
        names = set(STRUCTURES if wanted is None else wanted)
        if store.patient_id in self._maps:
            file = self._maps[store.patient_id]
            values = self._values(file, store, grid)
            try:
                require_known_numbers(values, self._all_numbers)
            except UsageError as error:
                error.where = str(file)
                raise
            numbers = {s: n for s, n in self._numbers.items() if s in names}
            yield from label_masks(values, numbers)
            return
        for file in self._masks[store.patient_id]:
            if (structure := _structure(file)) in names:
                yield structure, self._mask(file, store, grid)

    def _mask(self, file: Path, store: StoreMetadata, grid: str) -> Mask:
        values = self._values(file, store, grid)
        mask: Mask = values != 0
        inside = values[mask]
        if inside.size and (others := inside[inside != inside[0]]).size:
            raise UsageError(
                f"a mask of 0, {inside[0]} and {others[0]}",
                where=file,
                expected="0 and one other number",
            )
        return mask

    def _values(self, file: Path, store: StoreMetadata, grid: str) -> npt.NDArray[Any]:
        """Return whole numbers (z, y, x) of a patient's grid."""
        values, affine = _read(file)
        if values.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                whole = values.astype(np.int32)
            if not np.array_equal(values, whole):
                raise UsageError(
                    f"{values.dtype} with fractions",
                    where=file,
                    expected="whole numbers: labels, or a mask",
                    remedy="of probabilities make a mask first",
                )
            values = whole
        found = turned(values, affine, grid_named(store, grid))
        if found is None:
            raise self._another_lattice(file, values, affine, store, grid)
        return found

    def _another_lattice(
        self,
        file: Path,
        values: npt.NDArray[Any],
        affine: npt.NDArray[np.float64],
        store: StoreMetadata,
        grid: str,
    ) -> UsageError:
        lattices = {n: store.grid(n) for n in ("mri", "sct")}
        fits = [
            n
            for n, g in lattices.items()
            if g is not None and turned(values, affine, g) is not None
        ]
        own = values.shape[::-1] if values.ndim == 3 else values.shape
        return UsageError(
            f"{_described(affine, own)}",
            where=file,
            patient=store.patient_id,
            expected=f"the {grid} grid of patient {store.patient_id}, "
            f"{_described_grid(grid_named(store, grid))}",
            remedy=f"it is on the {fits[0]} grid: give grid={fits[0]!r}"
            if fits
            else "predict on the patient's image, or resample the prediction to it: nothing is "
            "resampled here",
        )


def _described_grid(grid: Grid) -> str:
    return _described(grid.affine, grid.shape)


def _described(affine: npt.NDArray[np.float64], shape: tuple[int, ...]) -> str:
    rows = "; ".join(" ".join(f"{v:.6g}" for v in row) for row in affine[:3])
    return f"{tuple(int(n) for n in shape)} voxels (z, y, x) with affine [{rows}]"


def _read(file: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Return the values (i, j, k) of a file and its affine, mm, RAS."""
    import nibabel as nib

    try:
        image: Any = nib.Nifti1Image.from_filename(file)
        return np.asanyarray(image.dataobj), affine_mm(image.header)
    except LundProbeError:
        raise
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        raise DatasetError(
            f"cannot be read as NIfTI ({error})",
            where=file,
            expected="a complete .nii or .nii.gz",
            remedy="predict it again",
        ) from error


def _labels_of(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        labels = json.loads(file.read_text(encoding="utf-8"))["labels"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            "no labels in it", where=file, expected="nnU-Net's dataset.json with `labels`"
        ) from error
    if isinstance(labels, Mapping) and all(isinstance(v, str) for v in labels.values()):
        # As nnU-Net's first version has them: {"1": "Rectum"}
        labels = {int(k): v for k, v in labels.items() if k.isdecimal()}
    return label_numbers(labels)


def _is_nifti(file: Path) -> bool:
    return file.name.endswith(_ENDINGS) and not file.name.startswith(".")


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".nii")


def _structure(file: Path) -> str:
    return _stem(file).removeprefix("mask_")
