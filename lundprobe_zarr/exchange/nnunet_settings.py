"""What an export to nnU-Net is made of: channels, labels, names. Checked before anything is read.

nnU-Net's format: https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from lundprobe_zarr.dataset.label_masks import MaskSource
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.measures.label_map import IGNORE, LabelScheme
from lundprobe_zarr.vocabulary.names import MODALITY_UNITS
from lundprobe_zarr.vocabulary.suggest import unknown_label

Missing = Literal["skip", "ignore"]
FILE_ENDING = ".nii.gz"
#: Level of gzip. With zlib-ng, level 6 makes files 0.2 % smaller in 1.3 times the time.
LEVEL = 3
LEVELS = range(1, 10)
DATASET_IDS = range(1, 1000)
#: Modality -> name of its channel. nnU-Net normalises a channel by its name: `CT` by the mean,
#: deviation and percentiles of the foreground of all patients, which suits HU; any other name by
#: those of each image. Source: documentation/explanation_normalization.md of nnU-Net 2.
CHANNEL_NAMES = {"T2w": "T2w", "sCT": "CT"}
#: Modalities of each grid that has any. The sCT of the MRI grid is the registered one.
_MODALITIES = {"mri": ("T2w", "sCT"), "sct": ("sCT",)}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Channel:
    """One input channel: the modality, and the name that nnU-Net reads its normalisation from."""

    modality: str
    name: str

    @classmethod
    def of(cls, text: str) -> Channel:
        """Return the channel of `MODALITY` or `MODALITY=NAME`.

        Raises `UnknownLabelError` for another modality, `UsageError` for an empty name.
        """
        modality, equals, name = text.partition("=")
        if modality not in MODALITY_UNITS:
            raise unknown_label("channel", modality, MODALITY_UNITS)
        if equals and not name.strip():
            raise UsageError(f"channel {text!r}", expected="a name after =, such as zscore")
        return cls(modality, name.strip() or CHANNEL_NAMES[modality])


@dataclass(frozen=True)
class Settings:
    """How the cases of an export are made; two exports with equal settings make equal files."""

    dataset_id: int
    name: str
    channels: tuple[Channel, ...]
    scheme: LabelScheme
    regions: bool
    source: MaskSource
    missing: str
    level: int

    @classmethod
    def of(
        cls,
        dataset_id: int,
        name: str,
        channels: str | Sequence[str],
        labels: Sequence[str],
        *,
        regions: bool,
        priority: Sequence[str] | None,
        source: MaskSource,
        missing: str,
        level: int,
    ) -> Settings:
        """Return checked settings. Raises `UsageError` and `UnknownLabelError`."""
        _require_number("dataset id", dataset_id, DATASET_IDS)
        _require_number("level", level, LEVELS)
        if not _NAME.fullmatch(name):
            raise UsageError(f"name {name!r}", expected="letters, digits, _ and -")
        if missing not in get_args(Missing):
            expected = " or ".join(map(repr, get_args(Missing)))
            raise UsageError(f"missing={missing!r}", expected=expected)
        return cls(
            dataset_id,
            name,
            _channels([channels] if isinstance(channels, str) else channels, source.grid),
            LabelScheme.of(labels, priority),
            regions,
            source,
            missing,
            level,
        )

    @property
    def folder(self) -> str:
        """Name of the dataset's folder."""
        return f"{self.prefix}_{self.name}"

    @property
    def prefix(self) -> str:
        """What the names of all folders with this dataset id begin with."""
        return f"Dataset{self.dataset_id:03d}"

    @property
    def image_path(self) -> str:
        """Path in the store of the array that holds the channels."""
        return f"{self.source.grid}/image"

    def with_patterns(self, patterns: set[int]) -> Settings:
        """Return the settings with a label for each combination that occurs, if for regions."""
        if not self.regions:
            return self
        return replace(self, scheme=self.scheme.with_regions(patterns))

    def labels(self, ignore: bool) -> dict[str, int | list[int]]:
        """Return the labels of `dataset.json`, with or without the ignore label."""
        found: dict[str, int | list[int]] = dict(self.scheme.labels)
        return found | ({IGNORE: self.scheme.ignore} if ignore else {})

    def document(self) -> dict[str, Any]:
        """Return a JSON-ready form."""
        scheme = self.scheme
        return {
            "dataset_id": self.dataset_id,
            "name": self.name,
            "channels": {c.modality: c.name for c in self.channels},
            "labels": list(scheme.structures),
            "priority": list(scheme.priority),
            "regions": None if scheme.regions is None else list(scheme.regions),
            "source": str(self.source),
            "missing": self.missing,
            "level": self.level,
        }


def _channels(given: Sequence[str], grid: str) -> tuple[Channel, ...]:
    channels = tuple(Channel.of(text) for text in given)
    modalities = [c.modality for c in channels]
    if not channels or len(set(modalities)) < len(modalities):
        raise UsageError(
            f"channels {','.join(given) or 'none'}",
            expected=f"one or more of {', '.join(MODALITY_UNITS)}, each once",
        )
    for modality in modalities:
        if modality not in _MODALITIES[grid]:
            raise UsageError(
                f"channel {modality} on the {grid} grid, which has "
                f"{', '.join(_MODALITIES[grid])} alone: all channels and labels have to be on one",
                remedy=f"choose the mri grid for {', '.join(modalities)}: the sCT there is "
                "registered to T2w",
            )
    return channels


def _require_number(name: str, value: object, known: range) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value not in known:
        raise UsageError(f"{name} {value!r}", expected=f"{known.start} to {known.stop - 1}")
