"""`serve`: give datasets to those who may have them, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lundprobe_zarr.cli.place import (
    PredictionsPlace,
    StorageOptions,
    parse_options,
    predictions_option,
)
from lundprobe_zarr.cli.serving import (
    AccessLogForm,
    Admission,
    absolute,
    access_log_form,
    log_level,
)
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.service.packages import require_packages

if TYPE_CHECKING:
    from lundprobe_zarr.service.access.exposure import Exposure
    from lundprobe_zarr.service.settings import Settings


Datasets = Annotated[
    list[str],
    typer.Argument(metavar="DATASET...", help="Converted datasets: folders or bucket URLs."),
]
Names = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OWNER/NAME",
        help="Name of each dataset, in order [default: lund-probe or phantom/<precision>].",
    ),
]
Host = Annotated[str, typer.Option(help="Address to listen at.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any free one.")]
PublicUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="URL by which clients reach the service.")
]
Access = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Tokens; make them with `lundprobe-zarr token add`."),
]
Audit = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a line to this file for each request.")
]
Workers = Annotated[int, typer.Option(min=1, help="Processes.")]
PlaneCache = Annotated[
    int, typer.Option(min=0, help="Memory of each process for decoded voxels, MB.")
]
Public = Annotated[bool, typer.Option("--public", help="Let everyone in, without a token.")]
AllowPublic = Annotated[
    bool, typer.Option("--allow-public", help="With --public: even to data of real patients.")
]
Redirect = Annotated[
    bool, typer.Option("--redirect", help="Send clients straight to the bucket, by signed URLs.")
]
Accel = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Let nginx send the files: path of its internal location of the datasets.",
    ),
]
State = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Folder of the service's own files, such as indexes."),
]
SqlWorkers = Annotated[
    int, typer.Option(min=1, max=64, help="SQL queries at a time, in each process.")
]
SqlTimeout = Annotated[
    float, typer.Option(min=0.1, max=3600, help="Longest time of an SQL query, seconds.")
]
SqlMemory = Annotated[
    str, typer.Option(metavar="SIZE", help="Memory limit of an SQL query, beyond the tables.")
]
Certificate = Annotated[
    Path | None, typer.Option(metavar="FILE", help="TLS certificate with its chain, PEM.")
]
Key = Annotated[Path | None, typer.Option(metavar="FILE", help="Key of the certificate, PEM.")]
TrustedProxy = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ADDRESS",
        help="Address or network of a reverse proxy whose X-Forwarded-For is trusted.",
    ),
]
Oidc = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="How people sign in: a JWT, or the proxy's headers."),
]
AccessLog = Annotated[
    AccessLogForm,
    typer.Option(help="Print a line for each request; auto: in colour, on a terminal only."),
]


def serve(
    datasets: Datasets,
    name: Names = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    public_url: PublicUrl = None,
    access: Access = None,
    audit: Audit = None,
    workers: Workers = 1,
    plane_cache_mb: PlaneCache = 512,
    public: Public = False,
    allow_public: AllowPublic = False,
    redirect: Redirect = False,
    accel: Accel = None,
    state: State = None,
    sql_workers: SqlWorkers = 2,
    sql_timeout: SqlTimeout = 30.0,
    sql_memory: SqlMemory = "1GB",
    certificate: Certificate = None,
    key: Key = None,
    trusted_proxy: TrustedProxy = None,
    oidc: Oidc = None,
    access_log: AccessLog = AccessLogForm.auto,
    predictions: PredictionsPlace = None,
    storage_options: StorageOptions = None,
) -> None:
    """Serve datasets to Hugging Face clients, xarray, fsspec and DuckDB.

    Clients set HF_ENDPOINT to the URL and HF_TOKEN to a token. Without --access the service makes
    one token for as long as it runs, and prints it.
    """
    require_packages()
    from lundprobe_zarr.service.access.exposure import Exposure
    from lundprobe_zarr.service.settings import Settings, usual_state
    from lundprobe_zarr.service.voxels.volumes import CACHE_OPTION

    exposure = Exposure(host, public_url, certificate, key, tuple(trusted_proxy or ()))
    admission = Admission(access, audit, oidc, public, allow_public)
    sql = _sql_options(sql_workers, sql_timeout, sql_memory)
    admission.check(exposure)
    options = parse_options(storage_options)
    named = named_datasets(datasets, name or [], options, admission.synthetic_only)
    if redirect:
        _require_buckets(named, options)
    settings = Settings(
        datasets=named,
        state=str(state or usual_state()),
        storage_options=options,
        redirect=redirect,
        accel=_internal_location(accel),
        options=sql | {CACHE_OPTION: plane_cache_mb} | predictions_option(predictions, options),
        access_log=access_log_form(access_log),
        log_level=log_level(),
    )
    _run(settings, admission, exposure, port, workers)


def _sql_options(workers: int, seconds: float, memory: str) -> dict[str, Any]:
    """Return the service's options of SQL. Raises `UsageError` for what is no time or size."""
    from lundprobe_zarr.sql.worker import limits

    limits(seconds, memory)
    return {"sql": {"workers": workers, "seconds": seconds, "memory": memory}}


def _internal_location(accel: str | None) -> str | None:
    """Return nginx's internal location without a slash at its end. Raises `UsageError`."""
    if accel is not None and not accel.startswith("/"):
        raise UsageError(f"--accel {accel}", expected="a path, such as /_files")
    return accel.rstrip("/") if accel else None


def _run(
    settings: Settings, admission: Admission, exposure: Exposure, port: int, workers: int
) -> None:
    """Listen, add to the settings who may come in and how, and serve until the end."""
    from lundprobe_zarr.service.access.callers import new_token, token_sha256
    from lundprobe_zarr.service.logs import log_to_stderr
    from lundprobe_zarr.service.run import listen, run

    token = new_token() if admission.needs_token else None
    listening = listen(exposure.host, port)
    settings = replace(
        admission.applied(settings),
        token_sha256=token_sha256(token) if token else None,
        public_url=exposure.url(listening.getsockname()[1]),
        trusted_proxies=exposure.trusted_proxies,
        only_proxies=exposure.only_proxies,
        certificate=absolute(exposure.certificate),
        key=absolute(exposure.key),
    )
    log_to_stderr(settings.log_level)
    run(settings, listening, workers, lambda: _announce(settings, token))


def named_datasets(
    datasets: Sequence[str], names: Sequence[str], options: Mapping[str, Any], refuse_real: bool
) -> dict[str, str]:
    """Return each dataset's path or URL by its name.

    Raises `UsageError` for names that do not fit and, with `refuse_real`, for a dataset of real
    patients; `DatasetError` for what is no dataset.
    """
    from lundprobe_zarr.dataset.opening import open_manifest
    from lundprobe_zarr.service.access.callers import DATASET_NAME
    from lundprobe_zarr.service.datasets.published import require_synthetic, usual_name
    from lundprobe_zarr.storage.location import Location

    if names and len(names) != len(datasets):
        raise UsageError(
            f"--name: {len(names)} names for {len(datasets)} datasets", expected="a name for each"
        )
    found: dict[str, str] = {}
    for number, url in enumerate(datasets):
        location = Location(url, options)
        manifest = open_manifest(location)
        if refuse_real:
            require_synthetic(location, manifest)
        name = names[number] if names else usual_name(manifest)
        if not DATASET_NAME.fullmatch(name):
            raise UsageError(
                f"--name {name}", expected="OWNER/NAME of letters, digits, `.`, `_` and `-`"
            )
        if name in found:
            raise UsageError(
                f"two datasets are named {name}", remedy="give each a --name OWNER/NAME"
            )
        found[name] = str(location.local()) if location.is_local else url
    return found


def _require_buckets(datasets: Mapping[str, str], options: Mapping[str, Any]) -> None:
    """Raise `UsageError` unless there is a bucket to redirect to, and no storage signs no URLs.

    Datasets in local folders may be served beside those in buckets.
    """
    from lundprobe_zarr.storage.location import Location

    far = [place for url in datasets.values() if not (place := Location(url, options)).is_local]
    unsigned = [place.url for place in far if not place.signs_urls]
    if far and not unsigned:
        return
    raise UsageError(
        "its storage signs no URLs" if unsigned else "no dataset is in a bucket",
        where=f"--redirect: {unsigned[0]}" if unsigned else "--redirect",
        expected="a dataset in a bucket of S3, Google Cloud Storage or Azure",
        remedy="leave --redirect out: the service then sends the bytes itself",
    )


def _announce(settings: Settings, token: str | None) -> None:
    from lundprobe_zarr.cli.console import say

    for name, url in settings.datasets.items():
        say(f"Serving {url} as {name}")
    say(f"  export HF_ENDPOINT={settings.public_url}", "cyan")
    if token is not None:
        say(f"  export HF_TOKEN={token}", "cyan")
        say("  The token is valid until this service ends. Make lasting ones with")
        say("  `lundprobe-zarr token add NAME --access FILE`, and give --access FILE.")
    say(f"  The page to look at it: {settings.public_url}/")
    if settings.audit is None:
        say("  Nothing records who reads what: --audit FILE does.")
