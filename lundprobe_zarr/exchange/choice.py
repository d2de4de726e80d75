"""Which of a patient's files are wanted: by array, structure, source and grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lundprobe_zarr.errors import UnknownLabelError, UsageError
from lundprobe_zarr.schema.layout import SEGMENTATION_SOURCES
from lundprobe_zarr.vocabulary.files import KNOWN_FILES, SourceFile
from lundprobe_zarr.vocabulary.names import GRIDS, MODALITY_UNITS, STRUCTURES
from lundprobe_zarr.vocabulary.suggest import suggestion

#: What a file may be called in a choice: a modality, `dose`, `mask`, `fiducials`, `uncertainty`.
ARRAYS: tuple[str, ...] = (*MODALITY_UNITS, "dose", "mask", "fiducials", "uncertainty")
#: Who made a mask, as in the column `source` of the structures table.
SOURCES: tuple[str, ...] = tuple(dict.fromkeys(SEGMENTATION_SOURCES.values()))

_KNOWN = {"arrays": ARRAYS, "structures": STRUCTURES, "sources": SOURCES, "grids": GRIDS}


def array_of(file: SourceFile) -> str:
    """Return what a file is called in a choice, one of `ARRAYS`."""
    if file.variable == "image":
        return str(file.labels["modality"])
    if file.variable.startswith("fiducial"):
        return "fiducials"
    return "mask" if file.variable.endswith("mask") else file.variable


def source_of(file: SourceFile) -> str | None:
    """Return who made a mask or uncertainty map, one of `SOURCES`; None for images and dose."""
    if file.variable == "uncertainty":
        return "nnunet"
    return SEGMENTATION_SOURCES.get(f"{file.group}/{file.variable}")


@dataclass(frozen=True)
class Choice:
    """The files that are wanted; None leaves open.

    Parameters
    ----------
    arrays
        Some of `T2w`, `sCT`, `dose`, `mask`, `fiducials`, `uncertainty`.
    structures, sources
        Masks and uncertainty maps of these structures and of these sources: `clinical`, `nnunet`,
        `nnunet_fold`, `observer`. They do not choose among images, dose and fiducials.
    grids
        Some of `mri`, `sct`, `dose`.

    Raises
    ------
    UnknownLabelError
        For an unknown name.
    UsageError
        For an empty list, or a name given twice.
    """

    arrays: tuple[str, ...] | None = None
    structures: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    grids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, known in _KNOWN.items():
            _require(name, getattr(self, name), known)

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return all(getattr(self, f.name) is None for f in fields(self))

    def holds(self, file: SourceFile) -> bool:
        """Return whether a file is wanted."""
        return (
            _among(array_of(file), self.arrays)
            and _among(file.grid, self.grids)
            and (source_of(file) is None or self._holds_mask(file))
        )

    def _holds_mask(self, file: SourceFile) -> bool:
        structure = file.labels.get("structure")
        return _among(source_of(file), self.sources) and _among(structure, self.structures)

    def expected(self, part: str) -> dict[str, SourceFile]:
        """Return the files that a complete patient of a part would have, by path.

        Of base patients, what only extended ones have counts if it was asked for by name.
        """
        asked = bool(
            {"nnunet", "nnunet_fold", "observer"} & set(self.sources or ())
            or "uncertainty" in (self.arrays or ())
        )
        return {
            path: file
            for path, file in KNOWN_FILES.items()
            if self.holds(file) and (not file.is_extended or part == "extended" or asked)
        }


def _among(value: Any, wanted: Iterable[str] | None) -> bool:
    return wanted is None or value in wanted


def _require(name: str, given: Sequence[str] | None, known: Sequence[str]) -> None:
    if given is None:
        return
    for value in given:
        if value not in known:
            raise UnknownLabelError(
                f"unknown {value!r}", where=name, remedy=suggestion(value, known)
            )
    if not given or len(set(given)) < len(given):
        raise UsageError(f"{name}={list(given)}", expected="at least one, no duplicates")
