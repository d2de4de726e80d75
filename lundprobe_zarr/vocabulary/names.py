"""Domain names: structures, modalities, parts, protocols, observers and folds.

This module is data. The README's tables and the store's labels are made from it.
Source: Rogowski et al., Sci Data 12, 611 (2025), doi:10.1038/s41597-025-04954-5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lundprobe_zarr.errors import UnknownLabelError


@dataclass(frozen=True)
class Structure:
    """A delineated organ or target. Patients may lack an `optional` one."""

    label: str
    description: str
    optional: bool = False


#: All nine structures, in the canonical order of every `structure` coordinate.
STRUCTURE_TABLE: tuple[Structure, ...] = (
    Structure("CTVT_427", "prostate clinical target volume, 42.7 Gy in 7 fractions"),
    Structure("PTVT_427", "planning target volume: the CTV with an isotropic 7 mm margin"),
    Structure("Rectum", "rectum"),
    Structure("Bladder", "urinary bladder"),
    Structure("PenileBulb", "penile bulb", optional=True),
    Structure("Genitalia", "external genitalia", optional=True),
    Structure("FemoralHead_L", "left femoral head"),
    Structure("FemoralHead_R", "right femoral head"),
    Structure("BODY", "external contour of the patient"),
)
STRUCTURES: tuple[str, ...] = tuple(s.label for s in STRUCTURE_TABLE)

#: Structure -> those that hold it: the PTV is the CTV with a margin, BODY the whole patient.
HELD_BY: dict[str, tuple[str, ...]] = {
    label: (*(("PTVT_427",) if label == "CTVT_427" else ()), "BODY")
    for label in STRUCTURES
    if label != "BODY"
} | {"BODY": ()}

#: Structures that the networks segmented and that the observers edited.
TARGETS: tuple[str, ...] = ("CTVT_427", "Rectum")

#: Imaging modality -> unit of its voxel values ("1" is dimensionless, as in CF).
MODALITY_UNITS: dict[str, str] = {"T2w": "1", "sCT": "HU"}
PARTS: tuple[str, ...] = ("base", "extended")
PROTOCOLS: tuple[str, ...] = ("oldAcq", "newAcq")
GRIDS: tuple[str, ...] = ("mri", "sct", "dose")
FOLDS: tuple[int, ...] = tuple(range(10))
STEPS: tuple[int, ...] = (1, 2)
OBSERVERS: tuple[str, ...] = ("obsB", "obsC", "obsD", "obsE")
AXES: tuple[str, ...] = ("x", "y", "z")
#: Dimensions of every volume, in the order of its axes.
SPATIAL_DIMS: tuple[str, ...] = ("z", "y", "x")

#: 42.7 Gy in 7 fractions (data descriptor, Methods): 100 % of the V-doses.
PRESCRIPTION_GY = 42.7
PRESCRIPTION_FRACTIONS = 7
#: PTV = CTV + 7 mm isotropic (data descriptor, Methods).
PTV_MARGIN_MM = 7.0
#: HU of air in the synthetic CT, also painted over the warning text (authors' export code).
AIR_HU = -999.5
#: Rows of the oldAcq sCT that carry a burnt-in warning text.
WARNING_TEXT_ROWS = 50

#: A whole patient id, as a regular expression that all regex dialects read alike.
PATIENT_ID_PATTERN = "^(oldAcq|newAcq)_[0-9a-f]{16}$"
_PATIENT_ID = re.compile(PATIENT_ID_PATTERN)
#: The form of a patient id, for messages.
PATIENT_ID_FORM = (
    "oldAcq_ or newAcq_ and 16 lower-case hexadecimal digits, e.g. newAcq_3fa9c0d211b7e845"
)


def is_patient_id(name: str) -> bool:
    """Return whether `name` is `oldAcq_` or `newAcq_` and 16 lower-case hexadecimal digits."""
    return _PATIENT_ID.fullmatch(name) is not None


def protocol_of(patient_id: str) -> str:
    """Return the acquisition protocol (`oldAcq` or `newAcq`) of a patient id.

    Raises `UnknownLabelError` if `patient_id` is no patient id.
    """
    match = _PATIENT_ID.fullmatch(patient_id)
    if match is None:
        raise UnknownLabelError(f"{patient_id!r} is no patient id", expected=PATIENT_ID_FORM)
    return match.group(1)


def structure_order(label: str) -> int:
    """Return a structure's index in the canonical order; raise `UnknownLabelError` if unknown."""
    try:
        return STRUCTURES.index(label)
    except ValueError:
        raise UnknownLabelError(
            f"unknown structure {label!r}", expected=f"one of {', '.join(STRUCTURES)}"
        ) from None
