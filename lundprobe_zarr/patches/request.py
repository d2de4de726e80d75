"""What a patch holds: which volumes of a patient, on which grid, as which arrays."""

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

#: Modality of each grid that is read unless others are asked for.
_OWN_MODALITY: dict[str, tuple[str, ...]] = {"mri": ("T2w",), "sct": ("sCT",), "dose": ()}
_MODALITIES: dict[str, tuple[str, ...]] = {"mri": ("T2w", "sCT"), "sct": ("sCT",), "dose": ()}

#: Labels along the label axes of a sample's arrays: axis -> labels.
Labels = dict[str, tuple[Label, ...]]

#: Names of all arrays of volumes that a sample may have; their last axes are z, y, x.
VOLUMES = (
    "image", "mask", "dose", "nnunet_mask", "fold_mask", "uncertainty", "observer_mask",
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One array of a sample: its name there, the stored array, and the labels along its axes.

    `labels` maps the names of a sample's axes to labels, in the order of the stored array's label
    dimensions. What is `optional` may be absent in a patient: then zeros, and the array `present`
    (labels…) says False.
    """

    name: str
    path: str
    labels: Mapping[str, tuple[Label, ...]] = field(default_factory=dict)
    present: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the label axes."""
        return tuple(len(labels) for labels in self.labels.values())

    def places(self) -> Iterable[tuple[tuple[int, ...], tuple[Label, ...]]]:
        """Every position along the label axes, and its labels."""
        return zip(np.ndindex(self.shape), product(*self.labels.values()), strict=True)


@dataclass(frozen=True)
class Content:
    """What to read of a patient.

    - `grid`: `mri`, `sct` or `dose`; everything in a sample is on this one.
    - `modalities`: channels of `image (modality, z, y, x)`; None is T2w on the MRI grid, sCT on
      its own.
    - `structures`: clinical masks, `mask (structure, z, y, x)` bool with `present (structure)`.
    - `dose`: `dose (z, y, x)`, Gy.
    - Of extended patients, for each of `targets`: `nnunet` gives `nnunet_mask (target, …)`,
      `folds` `fold_mask (target, fold, …)`, `uncertainty` `uncertainty (target, …)`, `observers`
      `observer_mask (target, step, observer, …)` of `steps`; each with a `…_present`.
    - `spacing_mm`: resample to voxels of this size (z, y, x, or one for all) on the way; None
      leaves the stored voxels.
    - `image_dtype`: NumPy type to turn images into; None leaves them as stored, which may differ
      between patients. Whole-number types have to hold every value: else reading is a `UsageError`.

    What a patient lacks of masks and of extended data is zero, and not `present`; a modality or
    dose that it lacks is an error when it is read.
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

    def _check(self) -> None:
        extended = self.nnunet or self.uncertainty or self.folds or self.observers
        if self.grid != "mri" and extended:
            raise UsageError(
                f"folds, uncertainty or observers on grid {self.grid!r}",
                expected="grid='mri', on which they are",
            )
        if self.grid == "dose" and self.structures:
            raise UsageError(
                "masks on grid 'dose'", expected="grid='mri' or 'sct', on which they are"
            )
        if not self.blocks:
            raise UsageError(
                "patches of nothing", expected="modalities, structures or dose, e.g. dose=True"
            )
        if self.image_dtype is not None and _kind(self.image_dtype) not in "iuf":
            raise UsageError(
                f"image_dtype={self.image_dtype!r}", expected="a type of numbers, e.g. 'float32'"
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
        """Bytes of all arrays of a sample for each of its voxels; values counted as float32."""
        return sum(
            int(np.prod(b.shape)) * (1 if b.name.endswith("mask") else 4) for b in self.blocks
        )

    @property
    def labels(self) -> Labels:
        """Labels along every label axis of a sample's arrays: axis -> labels."""
        return {axis: labels for block in self.blocks for axis, labels in block.labels.items()}


def _kind(dtype: Any) -> str:
    try:
        return str(np.dtype(dtype).kind)
    except TypeError:
        return "none"


def _labels(name: str, given: Any, known: Sequence[Label]) -> tuple[Label, ...]:
    """Labels as a tuple; raises `UnknownLabelError`, or `UsageError` for one given twice."""
    if isinstance(given, bool) and name in ("folds", "steps"):  # else True is fold 1
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
        raise UsageError(f"{name}={labels}", expected="each once")
    return labels
