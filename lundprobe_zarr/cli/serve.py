"""`serve`: give datasets to those who may have them, over HTTP."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lundprobe_zarr.cli.place import StorageOptions, parse_options, require_file
from lundprobe_zarr.errors import MissingPackageError, UsageError
from lundprobe_zarr.vocabulary.version import with_extra

if TYPE_CHECKING:
    from lundprobe_zarr.service.settings import Settings

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def serve(
    datasets: Annotated[
        list[str],
        typer.Argument(metavar="DATASET...", help="Converted datasets: folders or bucket URLs."),
    ],
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Name of each dataset, in order [default: lund-probe or phantom/<precision>].",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any free one.")] = 8000,
    public_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="URL by which clients reach the service."),
    ] = None,
    access: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Tokens; make them with `lundprobe-zarr token add`."),
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a line a request to this file.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    public: Annotated[
        bool, typer.Option("--public", help="Let everyone in, without a token.")
    ] = False,
    allow_public: Annotated[
        bool, typer.Option("--allow-public", help="With --public: even to data of real patients.")
    ] = False,
    redirect: Annotated[
        bool,
        typer.Option("--redirect", help="Send clients straight to the bucket, by signed URLs."),
    ] = False,
    accel: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Let nginx send the files: path of its internal location of the datasets.",
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder of the service's own files, such as indexes."),
    ] = None,
    sql_workers: Annotated[
        int, typer.Option(min=1, max=64, help="SQL queries at a time, in each process.")
    ] = 2,
    sql_timeout: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Most seconds of an SQL query.")
    ] = 30.0,
    sql_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Most memory of an SQL query beyond the tables.")
    ] = "1GB",
    storage_options: StorageOptions = None,
) -> None:
    """Serve datasets to Hugging Face clients, xarray, fsspec and DuckDB.

    Clients set HF_ENDPOINT to the URL and HF_TOKEN to a token. Without --access the service makes
    one token for as long as it runs, and prints it.
    """
    _require_packages()
    from lundprobe_zarr.service.access import new_token, token_sha256
    from lundprobe_zarr.service.run import listen, run
    from lundprobe_zarr.service.settings import Settings

    options = parse_options(storage_options)
    named = _named(datasets, name or [], options, public and not allow_public)
    require_file("--audit", audit)
    token = None if public or access else new_token()
    listening = listen(host, port)
    settings = Settings(
        datasets=named,
        state=str(state or _state_folder()),
        public_url=(public_url or _local_url(host, listening.getsockname()[1])).rstrip("/"),
        storage_options=options,
        access=str(access.absolute()) if access else None,
        audit=str(audit.absolute()) if audit else None,
        public=public,
        token_sha256=token_sha256(token) if token else None,
        redirect=redirect,
        accel=accel.rstrip("/") if accel else None,
        options={
            "sql": {"workers": sql_workers, "seconds": sql_timeout, "memory": sql_memory},
        },
    )
    _announce(settings, token)
    run(settings, listening, workers)


def _require_packages() -> None:
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"the package {error.name} is not installed", remedy=with_extra("serve")
        ) from error


def _named(
    datasets: Sequence[str], names: Sequence[str], options: Mapping[str, Any], refuse_real: bool
) -> dict[str, str]:
    """Return each dataset's path or URL by its name.

    Raises `UsageError` for names that do not fit and, with `refuse_real`, for a dataset of real
    patients; `DatasetError` for what is no dataset.
    """
    from lundprobe_zarr.dataset.opening import open_manifest
    from lundprobe_zarr.storage.location import Location

    if names and len(names) != len(datasets):
        raise UsageError(
            f"--name: {len(names)} names for {len(datasets)} datasets", expected="a name for each"
        )
    found: dict[str, str] = {}
    for number, url in enumerate(datasets):
        location = Location(url, options)
        manifest = open_manifest(location)
        if refuse_real and not manifest.synthetic:
            raise UsageError(
                "--public: a dataset of real patients, which is under controlled access",
                where=location.url,
                expected="synthetic data",
                remedy="leave --public out; or, if the terms allow it, add --allow-public",
            )
        name = names[number] if names else f"{_owner(manifest.synthetic)}/{manifest.precision}"
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"--name {name}", expected="OWNER/NAME of letters, digits, `.`, `_` and `-`"
            )
        if name in found:
            raise UsageError(
                f"two datasets are named {name}", remedy="give each a --name OWNER/NAME"
            )
        found[name] = str(location.local()) if location.is_local else url
    return found


def _owner(synthetic: bool) -> str:
    return "phantom" if synthetic else "lund-probe"


def _state_folder() -> Path:
    """Return the folder for a service's own files, as the XDG base directories have it."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "lundprobe-zarr"


def _local_url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announce(settings: Settings, token: str | None) -> None:
    from lundprobe_zarr.cli.console import say

    for name, url in settings.datasets.items():
        say(f"Serving {url} as {name}")
    say(f"  export HF_ENDPOINT={settings.public_url}", "cyan")
    if token is not None:
        say(f"  export HF_TOKEN={token}", "cyan")
        say("  The token is valid until this service ends. Make lasting ones with")
        say("  `lundprobe-zarr token add NAME --access FILE`, and give --access FILE.")
