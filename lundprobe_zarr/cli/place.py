"""Locations of datasets on the command line: a path or URL, and storage options."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lundprobe_zarr.errors import UsageError

if TYPE_CHECKING:
    from lundprobe_zarr.dataset.predictions import StoredPredictions
    from lundprobe_zarr.storage.location import Location

Dataset = Annotated[str, typer.Argument(help="Path or URL of a dataset.")]
StorageOptions = Annotated[
    str | None,
    typer.Option(
        envvar="LUNDPROBE_STORAGE_OPTIONS",
        metavar="JSON|@FILE",
        help="Options of fsspec for a URL, as a JSON object or a file that holds one. Usually not "
        "needed: credentials are found where the provider's own tools look for them.",
    ),
]
PredictionsPlace = Annotated[
    str | None,
    typer.Option(
        "--predictions",
        metavar="LOCATION",
        help="What lp.write_prediction wrote, a folder or bucket.",
    ),
]


def open_stored(
    place: str | None, options: Mapping[str, Any] | None = None
) -> StoredPredictions | None:
    """Return the predictions at a place. Raises `UsageError` if there are none."""
    if place is None:
        return None
    from lundprobe_zarr.dataset.predictions import StoredPredictions
    from lundprobe_zarr.storage.location import Location

    found = StoredPredictions(Location(place, options))
    if not found.names:
        raise UsageError(
            f"--predictions {place}: no predictions",
            expected="a place that lp.write_prediction wrote to",
            remedy="files of other programs are compared with `lundprobe-zarr agreement`; write "
            "them with lp.write_prediction first",
        )
    return found


def predictions_option(place: str | None, options: Mapping[str, Any]) -> dict[str, str]:
    """Return the service's option for predictions. Raises like `open_stored`."""
    found = open_stored(place, options)
    if found is None:
        return {}
    from lundprobe_zarr.service.voxels.volumes import PREDICTIONS_OPTION

    return {PREDICTIONS_OPTION: found.place.arguments[0]}


def parse_options(text: str | None, option: str = "--storage-options") -> dict[str, Any]:
    """Return storage options from JSON text, or from `@` and the name of a file.

    Raises `UsageError`, with nothing of the text in it: that may hold secrets.
    """
    if text is None:
        return {}
    where = f"{option} {text}" if text.startswith("@") else option
    try:
        held = Path(text[1:]).read_text(encoding="utf-8-sig") if text.startswith("@") else text
        options = json.loads(held)
    except OSError as error:
        raise UsageError(
            str(error.strerror), where=where, expected="a file that can be read"
        ) from error
    except ValueError:
        options = None
    if options is None and _is_file(text):
        raise UsageError(
            f"{option} {text}: a file without @ before it", expected=f"{option} @{text}"
        )
    if not isinstance(options, dict):
        raise UsageError(
            "not a JSON object",
            where=where,
            expected=(
                'one, e.g. \'{"endpoint_url": "https://minio.example.org"}\', or '
                "@ and the name of a file"
            ),
        )
    return options


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a name may be, or no name at all
        return False


def locate(url: str, storage_options: str | None, option: str = "--storage-options") -> Location:
    """Return the location of a dataset. Raises `UsageError` if `url` is empty."""
    from lundprobe_zarr.storage.location import Location

    if not url.strip():  # which would be the folder one is in
        raise UsageError(
            "the dataset's path or URL is empty",
            expected="one, or . for this folder",
            remedy="is a variable of the shell not set?",
        )
    return Location(url, parse_options(storage_options, option))


def require_file(option: str, path: Path | None) -> None:
    """Require that a file can be written at `path`, before there is work to lose.

    Raises `UsageError` if it is a folder, lies below a file or may not be written.
    """
    if path is None:
        return
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if path.is_dir():
        raise UsageError(f"{option} {path}: a folder", expected="the name of a file to write")
    if there != path and not there.is_dir():
        raise UsageError(f"{option} {path}: {there} is a file", expected="a folder")
    if not os.access(there if there != path else path.absolute().parent, os.W_OK):
        raise UsageError(f"{option} {path}: may not be written", remedy="choose another place")


def shown(location: Location) -> str:
    """Return a location for a message: an absolute path, or a URL without credentials."""
    return str(location.local().resolve()) if location.is_local else location.url


def write_report(path: Path | None, contents: str) -> None:
    """Write a report, if one was asked for, and the folders that lead to it."""
    if path is not None:
        from lundprobe_zarr.storage.local import named

        with named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(contents, encoding="utf-8")
