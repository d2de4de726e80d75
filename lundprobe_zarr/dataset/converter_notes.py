"""Read the converter's notes: which patients of the source are absent."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.storage.location import Location

#: Folder of a dataset for the converter's notes. Reading voxels and tables does not need it.
NOTES = ".conversion"
#: The ids of all patients of the last source; a folder with one file per failed patient.
SOURCE_NOTE, FAILED_NOTES = f"{NOTES}/source.json", f"{NOTES}/failed"
_NAMED = 5


@dataclass(frozen=True)
class Absent:
    """Patients of the source who are not in the dataset: failed, or not converted yet.

    `source_patients` is the number of all patients in the source.
    """

    source_patients: int
    failed: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        here = self.source_patients - len(self.failed) - len(self.missing)
        parts = [f"{here} of the source's {self.source_patients} patients are here"]
        parts += [f"{_listed(self.failed)} failed"] if self.failed else []
        parts += [f"{_listed(self.missing)} not converted yet"] if self.missing else []
        return "; ".join(parts)


def _listed(patients: tuple[str, ...]) -> str:
    more = ", …" if len(patients) > _NAMED else ""
    return f"{len(patients)} ({', '.join(patients[:_NAMED])}{more})"


def absent(location: Location, there: Iterable[str]) -> Absent | None:
    """Return the patients of the source who are not in `there`; None if none, or if unknown.

    Only the dataset that the converter wrote has its notes; a copy does not.
    """
    known = _source_patients(location)
    present = set(there)
    lacking = [i for i in known if i not in present]
    if not lacking:
        return None
    noted = _failed(location)
    return Absent(
        len(known),
        tuple(i for i in lacking if i in noted),
        tuple(i for i in lacking if i not in noted),
    )


def failed_before(location: Location) -> list[str]:
    """Return the patients whose last conversion failed, from the converter's notes; one listing."""
    return location.children(FAILED_NOTES)


def _failed(location: Location) -> set[str]:
    try:
        return set(failed_before(location)) if location.can_list else set()
    except DatasetError:  # permission to read a bucket may not include listing it
        return set()


def _source_patients(location: Location) -> list[str]:
    try:
        noted = json.loads(location.read(SOURCE_NOTE))
    except (FileNotFoundError, DatasetError, ValueError):  # optional: it may be lost or private
        return []
    patients = noted.get("patients") if isinstance(noted, dict) else None
    return sorted(map(str, patients)) if isinstance(patients, list) else []
