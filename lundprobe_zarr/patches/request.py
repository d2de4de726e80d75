"""The content of a sample: which volumes of a patient, on which grid, as which arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from lundprobe_zarr.errors import UnknownLabelError, UsageError
from lundprobe_zarr.geometry.lattice import voxel_sizes
from lundprobe_zarr.patches.sampling import require_structures
from lundprobe_zarr.schema.layout import LABEL_ORDER
from lundprobe_zarr.vocabulary.files import Label
from lundprobe_zarr.vocabulary.names import GRIDS, TARGETS
from lundprobe_zarr.vocabulary.suggest import suggestion

#: Modalities of each grid that are read by default.
_OWN_MODALITY: dict[str, tuple[str, ...]] = {"mri": ("T2w",), "sct": ("sCT",), "dose": ()}
_MODALITIES: dict[str, tuple[str, ...]] = {"mri": ("T2w", "sCT"), "sct": ("sCT",), "dose": ()}

#: Labels along the label axes of a sample's arrays: axis -> labels.
Labels = dict[str, tuple[Label, ...]]

#: Names of the volume arrays of a sample; their last axes are z, y, x.
VOLUMES = (
    "image", "mask", "dose", "nnunet_mask", "fold_mask", "uncertainty", "observer_mask",
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One array of a sample: its name, the path of the stored array, and its labels.

    `labels` maps the sample's label axes to labels, in the order of the stored array's label
    dimensions. `present` names the array of flags (labels…) of volumes that a patient may lack; a
    missing volume is all zero. With None, a missing volume is an error.
    """

    name: str
    path: str
    labels: Mapping[str, tuple[Label, ...]] = field(default_factory=dict)
    present: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the label axes."""
        return tuple(len(labels) for labels in self.labels.values())

    def volumes(self) -> Iterable[tuple[tuple[int, ...], tuple[Label, ...]]]:
        """Return every index along the label axes with its labels."""
        return zip(np.ndindex(self.shape), product(*self.labels.values()), strict=True)


@dataclass(frozen=True)
class Content:
    """What a sample holds. Missing masks and extended data are zero and flagged as not present.

    A missing modality or dose raises an error when it is read.

    Parameters
    ----------
    grid
        `mri`, `sct` or `dose`: the grid of all arrays.
    modalities
        Channels of `image (modality, z, y, x)`. None is T2w on the MRI grid, sCT on the sCT grid.
    structures
        Clinical masks: `mask (structure, z, y, x)` bool, with `present (structure)`. A mask file
        without a voxel counts as present; `cohort.where("Rectum.volume_cc > 0")` leaves it out.
    dose
        Add `dose (z, y, x)`, Gy.
    nnunet, folds, uncertainty, observers
        Data of extended patients, each with a `…_present`: `nnunet_mask (target, …)`,
        `fold_mask (target, fold, …)`, `uncertainty (target, …)`,
        `observer_mask (target, step, observer, …)`.
    steps, targets
        Labels of the axes `step` and `target` of extended data.
    spacing_mm
        Resample to this voxel size, mm (z, y, x, or one number). None keeps the stored voxels.
    image_dtype
        NumPy type of images. None keeps the stored type, which may differ between patients. If an
        integer type cannot hold every value, reading raises `UsageError`.
    """

    grid: str = "mri"
    modalities: Sequence[str] | None = None
    structures: Sequence[str] = ()
    dose: bool = False
    nnunet: bool = False
    folds: Sequence[int] = ()
    uncertainty: bool = False
    observers: Sequence[str] = ()
    steps: Sequence[int] = (1, 2)
    targets: Sequence[str] = TARGETS
    spacing_mm: float | Sequence[float] | None = None
    image_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.grid not in GRIDS:
            raise UsageError(f"grid={self.grid!r}", expected=f"one of {', '.join(GRIDS)}")
        modalities = _OWN_MODALITY[self.grid] if self.modalities is None else self.modalities
        self._set(
            "modalities",
            _labels(f"modalities of grid {self.grid!r}", modalities, _MODALITIES[self.grid]),
        )
        self._set("structures", _labels("structures", self.structures, LABEL_ORDER["structure"]))
        require_structures(self.structures)
        for name in ("dose", "nnunet", "uncertainty"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name}={getattr(self, name)!r}", expected="True or False")
        for name, known in (
            ("folds", LABEL_ORDER["fold"]),
            ("observers", LABEL_ORDER["observer"]),
            ("steps", LABEL_ORDER["step"]),
            ("targets", TARGETS),
        ):
            self._set(name, _labels(name, getattr(self, name), known))
        if self.spacing_mm is not None:
            self._set("spacing_mm", tuple(voxel_sizes(self.spacing_mm).tolist()))
        self._check()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def is_extended(self) -> bool:
        """Whether it asks for data that only patients of the extended part have."""
        return bool(self.nnunet or self.uncertainty or self.folds or self.observers)

    def _check(self) -> None:
        if self.grid != "mri" and self.is_extended:
            raise UsageError(
                f"folds, uncertainty or observers on grid {self.grid!r}",
                expected="grid='mri', the only grid with them",
            )
        if self.grid == "dose" and self.structures:
            raise UsageError(
                "masks on grid 'dose'", expected="grid='mri' or 'sct', which have masks"
            )
        if not self.blocks:
            raise UsageError(
                "patches without content", expected="modalities, structures or dose, e.g. dose=True"
            )
        if self.image_dtype is not None and _kind(self.image_dtype) not in "iuf":
            raise UsageError(
                f"image_dtype={self.image_dtype!r}", expected="a numeric type, e.g. 'float32'"
            )

    @property
    def blocks(self) -> list[Block]:
        """The arrays of a sample, in order."""
        wanted: tuple[tuple[Any, str, str, dict[str, Any], str | None], ...] = (
            (self.modalities, "image", "image", {"modality": self.modalities}, None),
            (self.structures, "mask", "clinical/mask", {"structure": self.structures}, "present"),
            (self.dose, "dose", "dose", {}, None),
            (self.nnunet, "nnunet_mask", "nnunet/mask", {}, "nnunet_present"),
            (self.folds, "fold_mask", "nnunet/fold_mask", {"fold": self.folds}, "fold_present"),
            (self.uncertainty, "uncertainty", "nnunet/uncertainty", {}, "uncertainty_present"),
            (
                self.observers,
                "observer_mask",
                "observers/mask",
                {"step": self.steps, "observer": self.observers},
                "observer_present",
            ),
        )
        found = []
        for asked, name, path, labels, present in wanted:
            if present not in (None, "present"):
                labels = {"target": self.targets} | labels
            if asked:
                found.append(Block(name, f"{self.grid}/{path}", labels, present))
        return found

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a sample per voxel; values count as float32."""
        return sum(
            int(np.prod(b.shape)) * (1 if b.name.endswith("mask") else 4) for b in self.blocks
        )

    @property
    def labels(self) -> Labels:
        """Labels along every label axis of the sample's arrays: axis -> labels."""
        return {axis: labels for block in self.blocks for axis, labels in block.labels.items()}


def _kind(dtype: Any) -> str:
    try:
        return str(np.dtype(dtype).kind)
    except TypeError:
        return "none"


def _labels(name: str, given: Any, known: Sequence[Label]) -> tuple[Label, ...]:
    """Return labels as a tuple; raise `UnknownLabelError`, or `UsageError` for duplicates."""
    if isinstance(given, bool) and name in ("folds", "steps"):  # True would be fold 1
        raise UsageError(
            f"{name}={given}",
            expected=f"which of {', '.join(map(str, known))}, e.g. {name}={known}",
        )
    labels = (given,) if isinstance(given, (str, int)) else tuple(given)
    for label in labels:
        if label not in known:
            raise UnknownLabelError(
                f"unknown {label!r}", where=name, remedy=suggestion(str(label), map(str, known))
            )
    if len(set(labels)) != len(labels):
        raise UsageError(f"{name}={labels}", expected="no duplicates")
    return labels
