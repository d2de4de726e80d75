"""Names, sidecars and descriptions of the Brain Imaging Data Structure (BIDS).

The T2w image is raw data, all else lies below `derivatives/lundprobe-zarr`. Once voxels are
resampled or cropped, nothing is raw: the whole output is a derivative dataset then. Where BIDS has
no name: the synthetic CT is a `ct`, as extension proposal BEP024 has it; dose and uncertainty are
our own. `.bidsignore` lists those, so that validators pass over them.
Specification: https://bids-specification.readthedocs.io, version 1.10.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from lundprobe_zarr.patches.frame import Frame
from lundprobe_zarr.schema.manifest import Manifest
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.vocabulary.files import SourceFile
from lundprobe_zarr.vocabulary.names import STRUCTURE_TABLE
from lundprobe_zarr.vocabulary.version import package_version

_VERSION = "1.10.0"
#: Where what is not raw lies.
DERIVATIVES = PurePosixPath("derivatives/lundprobe-zarr")
#: Patterns of files that BIDS knows nothing of.
IGNORED = "*_ct.*\n*_dose.*\n*_uncertainty.*\nexport_report.json\n.lundprobe-export/\n"

_SUFFIXES = {"sCT": "ct", "fiducial_mask": "mask", "fold_mask": "mask"}
_DESCRIPTIONS = {s.label: s.description for s in STRUCTURE_TABLE}
_SPACES = {
    "sct": "voxels of the synthetic CT as planned on; same patient coordinates as the T2w image",
    "dose": "voxels of the planned dose; same patient coordinates as the T2w image",
}


def subject(patient_id: str) -> str:
    """Return a patient's name, `sub-` and the letters and digits of the id, all BIDS allows."""
    return f"sub-{_label(patient_id)}"


def _label(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z]", "", text)


def _is_raw(file: SourceFile, frame: Frame) -> bool:
    return frame.is_stored and file.grid == "mri" and file.labels.get("modality") == "T2w"


def home(file: SourceFile, patient_id: str, frame: Frame) -> PurePosixPath:
    """Return the patient's folder that holds a file, relative to the output folder."""
    top = PurePosixPath() if _is_raw(file, frame) or not frame.is_stored else DERIVATIVES
    return top / subject(patient_id)


def path(file: SourceFile, patient_id: str, frame: Frame) -> PurePosixPath:
    """Return the path of a volume's `.nii.gz`, relative to the output folder."""
    what = str(file.labels.get("modality", file.variable))
    entities = {} if _is_raw(file, frame) else _entities(file, frame)
    name = "_".join((subject(patient_id), *(f"{k}-{v}" for k, v in entities.items())))
    return home(file, patient_id, frame) / "anat" / f"{name}_{_SUFFIXES.get(what, what)}.nii.gz"


def _entities(file: SourceFile, frame: Frame) -> dict[str, str]:
    """Return the entities between subject and suffix, in the order that BIDS prescribes."""
    found = {}
    if file.grid != "mri":
        found["space"] = "sCT" if file.grid == "sct" else "dose"
    if frame.spacing_mm is not None:
        found["res"] = _resolution(frame)
    if "structure" in file.labels or file.variable == "fiducial_mask":
        found["label"] = _label(str(file.labels.get("structure", "fiducials")))
    found["desc"] = _description(file) + _cropped(file, frame)
    return {k: v for k, v in found.items() if v}


def _cropped(file: SourceFile, frame: Frame) -> str:
    return f"Crop{_label(frame.crop)}" if frame.crop else ""


def _resolution(frame: Frame) -> str:
    sizes = [f"{v:g}".replace(".", "p") for v in _sizes(frame)]
    return f"{sizes[0] if len(set(sizes)) == 1 else 'x'.join(sizes)}mm"


def _sizes(frame: Frame) -> tuple[float, ...]:
    """Return the voxel size as x, y, z, mm."""
    spacing = frame.spacing_mm
    assert isinstance(spacing, tuple)
    return tuple(float(v) for v in reversed(spacing))


def _description(file: SourceFile) -> str:
    """Return who made a segmentation, or how an image was made."""
    if file.variable == "image":
        return "synthetic" if file.labels["modality"] == "sCT" else ""
    if file.variable == "dose":
        return "planned"
    if file.group == "mri/observers":
        return f"{file.labels['observer']}Step{file.labels['step']}"
    if file.group == "mri/nnunet":
        return f"nnunetFold{file.labels['fold']}" if "fold" in file.labels else "nnunet"
    return "clinical"


def sidecar(
    file: SourceFile, record: SourceRecord, store: StoreMetadata, frame: Frame
) -> dict[str, Any]:
    """Return the metadata of a file: what it shows, its units, and where it comes from."""
    raw = _is_raw(file, frame)
    fields: dict[str, Any] = {"Description": _described(file)}
    if file.kind == "mask":
        fields["Type"] = "ROI"
    elif file.variable in ("image", "dose"):
        units = {"T2w": "arbitrary", "sCT": "HU"}
        fields["Units"] = units.get(str(file.labels.get("modality")), "Gy")
    shows_fiducials = file.variable == "fiducial_mask" or file.labels.get("modality") == "T2w"
    if shows_fiducials and store.fiducial_record is not None:
        # Of the T2w image too: a patient may have positions without a mask.
        fields["FiducialPositionsLPS"] = _positions(store.fiducial_record.text or "")
    if not raw and file.grid in _SPACES:
        fields["SpatialReference"] = _SPACES[file.grid]
    if not raw and file.labels.get("modality") == "T2w":
        fields["SkullStripped"] = False  # BIDS requires it of images that are not raw
    if frame.spacing_mm is not None:
        sizes = " x ".join(f"{v:g}" for v in _sizes(frame))
        rule = "True where the linearly interpolated mask is at least 0.5"
        fields["Resolution"] = f"{sizes} mm, " + (
            rule if file.kind == "mask" else "linearly interpolated"
        )
    if frame.crop is not None:
        fields["Cropped"] = f"to the clinical {frame.crop} and {frame.margin_mm:g} mm around it"
    return fields | {"SourceFile": record.path, "SourceFileSHA256": record.sha256}


def _positions(text: str) -> list[list[float]]:
    """Return the positions x, y, z, mm, LPS, of a text with one a line, as conversion reads it."""
    lines = text.removeprefix("\ufeff").splitlines()
    return [[float(cell) for cell in line.split(",")] for line in lines if line.strip()]


def _described(file: SourceFile) -> str:
    structure = file.labels.get("structure")
    if structure is None:
        return {"image": f"{file.labels.get('modality')} image", "dose": "planned dose"}.get(
            file.variable, "3 mm spheres at the gold fiducials"
        )
    what = "uncertainty of" if file.variable == "uncertainty" else "segmentation of"
    return f"{what} {structure}, {_DESCRIPTIONS[str(structure)]}"


def top_files(
    manifest: Manifest, participants: Iterable[Mapping[str, Any]], frame: Frame
) -> dict[str, bytes]:
    """Return the files that describe the dataset, by path: descriptions, participants, readme.

    `participants` have `patient_id`, `part`, `protocol` and `missing_structures`.
    """
    raw = frame.is_stored
    about = {
        "Name": f"{manifest.name} (synthetic)" if manifest.synthetic else manifest.name,
        "BIDSVersion": _VERSION,
        "DatasetType": "raw" if raw else "derivative",
        "HowToAcknowledge": manifest.citation,
        "SourceDatasets": [{"DOI": f"doi:{manifest.doi}"}],
        "GeneratedBy": [{"Name": "lundprobe-zarr", "Version": package_version()}],
    }
    found = {
        "dataset_description.json": json_bytes(about),
        "participants.tsv": _table(participants).encode(),
        "participants.json": json_bytes(_COLUMNS),
        "README.md": _readme(manifest, raw).encode(),
        ".bidsignore": IGNORED.encode(),
    }
    if raw:
        derived = about | {"DatasetType": "derivative", "DatasetLinks": {"raw": "../.."}}
        derived["Name"] = f"{about['Name']}: synthetic CT, dose and segmentations"
        found[str(DERIVATIVES / "dataset_description.json")] = json_bytes(derived)
        found[str(DERIVATIVES / ".bidsignore")] = IGNORED.encode()
    return found


_COLUMNS = {
    "patient_id": {"Description": "id in LUND-PROBE"},
    "part": {
        "Description": "part of the dataset",
        "Levels": {
            "base": "clinical segmentations",
            "extended": "segmentations of networks and observers, too",
        },
    },
    "protocol": {
        "Description": "acquisition protocol",
        "Levels": {"oldAcq": "older protocol", "newAcq": "newer protocol"},
    },
    "missing_structures": {
        "Description": "structures, separated by commas, that were not delineated on the T2w image"
    },
}


def _table(participants: Iterable[Mapping[str, Any]]) -> str:
    rows = ["\t".join(("participant_id", *_COLUMNS))]
    for row in participants:
        lacking = ",".join(row["missing_structures"]) or "n/a"
        cells = (row["patient_id"], row["part"], row["protocol"], lacking)
        rows.append("\t".join((subject(row["patient_id"]), *cells)))
    return "\n".join(rows) + "\n"


def _readme(manifest: Manifest, raw: bool) -> str:
    where = f"below `{DERIVATIVES}`" if raw else "beside the images"
    return (
        f"# {manifest.name}\n\n{manifest.access}\n\nCite: {manifest.citation}\n\n"
        f"Segmentations, synthetic CT and dose are {where}. A structure that was not delineated "
        "has no file: `participants.tsv` and `export_report.json` list it. BIDS has no names for "
        "synthetic CT (`_ct`, as BEP024 proposes), dose (`_dose`) and uncertainty "
        "(`_uncertainty`); `.bidsignore` lists them. Structures overlap (the PTV holds the CTV), "
        "so each has a `_mask` of its own and there is no `_dseg`.\n"
    )


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """Return a document as readable JSON."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
