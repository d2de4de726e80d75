"""What the converter remembers beside the stores, as far as readers want it: who is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.storage.location import Location

#: Folder of a dataset for what the converter remembers; reading voxels and tables needs none of it.
NOTES = ".conversion"
#: The ids of all patients of the source last converted from, and a file a patient that failed.
SOURCE_NOTE, FAILED_NOTES = f"{NOTES}/source.json", f"{NOTES}/failed"
_NAMED = 5


@dataclass(frozen=True)
class Absent:
    """Patients of the source who are not in the dataset: their conversion failed, or is to come.

    `source_patients` is how many patients the source has in all.
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
    """Patients of the source beyond those `there`; None if there is none, or nothing is known.

    Known only of the dataset that the converter wrote, not of a copy: it is no part of the data.
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
    """Patients whose last conversion failed, by what the converter noted; one listing."""
    return location.children(FAILED_NOTES)


def _failed(location: Location) -> set[str]:
    try:
        return set(failed_before(location)) if location.can_list else set()
    except DatasetError:  # who may read a bucket may not always list it
        return set()


def _source_patients(location: Location) -> list[str]:
    try:
        noted = json.loads(location.read(SOURCE_NOTE))
    except (FileNotFoundError, DatasetError, ValueError):  # a memory: it may be lost or private
        return []
    patients = noted.get("patients") if isinstance(noted, dict) else None
    return sorted(map(str, patients)) if isinstance(patients, list) else []
