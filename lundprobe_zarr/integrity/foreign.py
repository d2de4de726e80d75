"""Files that are of no dataset, and that writing a dataset would replace."""

from __future__ import annotations

from lundprobe_zarr.dataset.converter_notes import NOTES
from lundprobe_zarr.dataset.objects import SIDE_FILES
from lundprobe_zarr.dataset.opening import open_manifest
from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.schema.manifest import MANIFEST_NAME
from lundprobe_zarr.schema.tables import COHORT_FILE, TABLES
from lundprobe_zarr.storage.location import Location


def foreign_files(place: Location) -> list[str]:
    """Return files at `place` that have names of a dataset's files, though it has no dataset.

    An example is the README.md of a project, which writing a dataset there would replace. The
    converter's notes, a store or a manifest show that there is a dataset, also an interrupted or
    incomplete one: then the result is empty.
    """
    if place.children(NOTES) or any(n.endswith(".zarr") for n in place.children("patients")):
        return []
    held = [name for name in (*SIDE_FILES, MANIFEST_NAME, COHORT_FILE) if place.exists(name)]
    held += [f"metadata/{t}/{n}" for t in TABLES for n in place.children(f"metadata/{t}")]
    return [] if MANIFEST_NAME in held and _has_manifest(place) else held


def _has_manifest(place: Location) -> bool:
    try:
        open_manifest(place)
    except DatasetError:
        return False
    return True
