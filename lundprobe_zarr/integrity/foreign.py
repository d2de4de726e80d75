"""Whether a place holds something that is no dataset, and that writing one there would replace."""

from __future__ import annotations

from lundprobe_zarr.dataset.converter_notes import NOTES
from lundprobe_zarr.dataset.objects import SIDE_FILES
from lundprobe_zarr.dataset.opening import open_manifest
from lundprobe_zarr.errors import DatasetError
from lundprobe_zarr.schema.manifest import MANIFEST_NAME
from lundprobe_zarr.schema.tables import COHORT_FILE, TABLES
from lundprobe_zarr.storage.location import Location


def foreign_files(place: Location) -> list[str]:
    """Files at `place` with names of a dataset's own though no dataset is or was begun there.

    Such as the README.md of a project: writing a dataset there would replace it. A dataset shows
    by the converter's notes, a store or a manifest, so that one that was broken off or has lost
    some of these is none.
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
