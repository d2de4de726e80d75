"""What DICOM calls the structures: types of ROIs, names of TG-263, codes of SNOMED CT and DICOM.

Names of the option `tg263`: AAPM Report 263, "Standardizing Nomenclatures in Radiation Oncology",
2018 (doi:10.1016/j.ijrobp.2017.12.013): its list of structures for organs, its rule for targets, by
which the dose in cGy follows an underscore.
Codes: PS3.16, CID 9502 and 7151, as pydicom lists them.
"""

from __future__ import annotations

from dataclasses import dataclass

from lundprobe_zarr.vocabulary.names import PRESCRIPTION_GY

Code = tuple[str, str, str]  # value, scheme, meaning

_ANATOMICAL: Code = ("91723000", "SCT", "Anatomical Structure")
_TARGET: Code = ("130041", "DCM", "RT Target")
LEFT: Code = ("7771000", "SCT", "Left")
RIGHT: Code = ("24028007", "SCT", "Right")
_FEMORAL_HEAD: Code = ("2812003", "SCT", "Femoral head")
_CENTIGRAY = round(PRESCRIPTION_GY * 100)


@dataclass(frozen=True)
class Roi:
    """A structure: name in TG-263, RT ROI Interpreted Type (PS3.3 C.8.8.8), colour, codes."""

    tg263: str
    interpreted_type: str
    colour: tuple[int, int, int]
    kind: Code
    category: Code = _ANATOMICAL
    side: Code | None = None


ROIS: dict[str, Roi] = {
    "CTVT_427": Roi(
        f"CTV_{_CENTIGRAY}",
        "CTV",
        (86, 180, 233),
        ("228792002", "SCT", "Clinical target volume"),
        _TARGET,
    ),
    "PTVT_427": Roi(
        f"PTV_{_CENTIGRAY}",
        "PTV",
        (0, 114, 178),
        ("228793007", "SCT", "Planning target volume"),
        _TARGET,
    ),
    "Rectum": Roi("Rectum", "ORGAN", (0, 158, 115), ("34402009", "SCT", "Rectum")),
    "Bladder": Roi("Bladder", "ORGAN", (240, 228, 66), ("89837001", "SCT", "Bladder")),
    # The bulb has no code in PS3.16: that of the organ it is part of, and its own name.
    "PenileBulb": Roi("PenileBulb", "ORGAN", (204, 121, 167), ("18911002", "SCT", "Penis")),
    "Genitalia": Roi(
        "Genitals", "ORGAN", (213, 94, 0), ("90418005", "SCT", "Male external genitalia")
    ),
    "FemoralHead_L": Roi("Femur_Head_L", "ORGAN", (230, 159, 0), _FEMORAL_HEAD, side=LEFT),
    "FemoralHead_R": Roi("Femur_Head_R", "ORGAN", (180, 110, 0), _FEMORAL_HEAD, side=RIGHT),
    "BODY": Roi("External", "EXTERNAL", (216, 222, 233), ("38266002", "SCT", "Entire body")),
}
FIDUCIAL_COLOUR = (255, 215, 0)


def roi_name(structure: str, tg263: bool) -> str:
    """Return what a structure is called: its name in LUND-PROBE or in TG-263."""
    return ROIS[structure].tg263 if tg263 else structure
