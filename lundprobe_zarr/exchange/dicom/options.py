"""What an export to DICOM writes, and under which names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.schema.layout import SEGMENTATION_SOURCES
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.vocabulary.suggest import require_structure, unknown_label

#: Sources of segmentations, as the table of structures names them.
SOURCES = tuple(dict.fromkeys(SEGMENTATION_SOURCES.values()))
#: Defined terms of Patient Position for patients who lie (PS3.3 C.7.3.1.1.2).
PATIENT_POSITIONS = ("HFS", "HFP", "HFDL", "HFDR", "FFS", "FFP", "FFDL", "FFDR")
UNCERTAINTY = "mri/nnunet/uncertainty"
_LISTS = ("structures", "sources")


@dataclass(frozen=True)
class DicomOptions:
    """What is written of a patient, and how it is called.

    Attributes
    ----------
    structures : tuple of str, optional
        Structures to write; all that the patient has if left out.
    sources : tuple of str, optional
        Sources of segmentations, of `SOURCES`; all that the patient has if left out. Structure
        sets hold clinical ones. Uncertainty maps come with `nnunet`.
    tg263 : bool
        Name structures as AAPM TG-263 does: see `names`.
    patient_position : str
        Patient Position of images, of `PATIENT_POSITIONS`. The store does not know it; without
        it the attribute is empty.
    """

    structures: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    tg263: bool = False
    patient_position: str = ""

    def __post_init__(self) -> None:
        for structure in self.structures or ():
            require_structure(structure)
        for source in self.sources or ():
            if source not in SOURCES:
                raise unknown_label("source", source, SOURCES)
        if self.patient_position not in ("", *PATIENT_POSITIONS):
            raise UsageError(
                f"patient position {self.patient_position!r}",
                expected=f"one of {', '.join(PATIENT_POSITIONS)}",
            )

    def takes(self, source: str, structure: str) -> bool:
        """Return whether a structure of a source is to be written."""
        return (self.sources is None or source in self.sources) and (
            self.structures is None or structure in self.structures
        )

    def to_report(self) -> dict[str, Any]:
        """Return the options as `report.json` holds them."""
        listed = {n: v if v is None else list(v) for n, v in vars(self).items() if n in _LISTS}
        return listed | {"tg263": self.tg263, "patient_position": self.patient_position}


def report_head(store: StoreMetadata, options: DicomOptions) -> dict[str, Any]:
    """Return what `report.json` says of a patient before its objects are known."""
    return {
        "patient_id": store.patient_id,
        "precision": store.attributes.get("precision"),
        "store_sha256": store.sha256,
        "options": options.to_report(),
    }
