"""`doctor`: what this machine and installation have, and whether a dataset can be reached."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lundprobe_zarr.cli.place import StorageOptions, locate
from lundprobe_zarr.cli.status import FAILED, describe
from lundprobe_zarr.errors import LundProbeError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from lundprobe_zarr.storage.location import Location

_PACKAGE = "lundprobe-zarr"
_LIBRARIES = (
    "zarr", "xarray", "dask", "fsspec", "pyarrow", "duckdb", "numpy", "nibabel", "datasets",
    "huggingface_hub", "torch",
)  # fmt: skip
#: Extras for those who develop this package.
_OURS = ("dev", "docs", "clouds", "frameworks")
#: Fewer files at a time are not enough for many workers that read a bucket.
_FILES = 1024
#: Requests whose median is the latency, and the bytes of each.
_REQUESTS, _BYTES = 5, 16
#: Places where credentials are looked for: what they are for, a variable, or a file.
_VARIABLES = {
    "Hugging Face": ("HF_TOKEN",),
    "S3": ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    "Google Cloud": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "Azure": ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_CLIENT_ID"),
    "storage options": ("LUNDPROBE_STORAGE_OPTIONS",),
}
_FILES_OF = {
    "Hugging Face": ("~/.cache/huggingface/token",),
    "S3": ("~/.aws/credentials", "~/.aws/config"),
    "Google Cloud": ("~/.config/gcloud/application_default_credentials.json",),
    "Azure": ("~/.azure/azureProfile.json",),
}
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what to do if it is wrong."""

    section: str
    name: str
    found: str
    wrong: bool = False
    remedy: str = ""


def doctor(
    dataset: Annotated[
        str | None, typer.Argument(help="Path or URL of a dataset to try to reach.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    storage_options: StorageOptions = None,
) -> None:
    """Show what this installation has, and whether a dataset can be reached and read in parts.

    Names of credentials are shown, never their values. Exit status 1 if something is wrong.
    """
    checks = [*_machine(), *_libraries(), *_extras(), *_credentials(), *_registration()]
    if dataset is not None:
        checks += _dataset(locate(dataset, storage_options))
    if as_json:
        typer.echo(json.dumps([vars(check) for check in checks], indent=2))
    else:
        _show(checks)
    if any(check.wrong for check in checks):
        raise typer.Exit(FAILED)


def _show(checks: list[Check]) -> None:
    from lundprobe_zarr.cli.console import facts, heading, say

    for section in dict.fromkeys(check.section for check in checks):
        heading(section)
        facts((c.name, c.found) for c in checks if c.section == section)
    say()
    wrong = [check for check in checks if check.wrong]
    for check in wrong:
        said = f"{check.found}; {check.remedy}" if check.remedy else check.found
        say(f"{check.name}: {said}", "bold red")
    if not wrong:
        say("Nothing is wrong.", "bold")


def _machine() -> Iterator[Check]:
    from lundprobe_zarr.cli.console import size
    from lundprobe_zarr.storage.decode_pool import cores

    section = "This machine"
    yield Check(section, "Python", f"{platform.python_version()}, {sys.executable}")
    yield Check(section, "system", platform.platform())
    yield Check(section, "cores", f"{cores()} for this process, of {os.cpu_count()}")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Check(section, "memory", size(memory))
    folder = tempfile.gettempdir()
    yield Check(section, "temporary files", f"{size(shutil.disk_usage(folder).free)} at {folder}")
    yield from _file_limit(section)


def _file_limit(section: str) -> Iterator[Check]:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = soft == resource.RLIM_INFINITY
    low = not unlimited and soft < _FILES
    remedy = f"expected {_FILES} or more: ulimit -n {_FILES}"
    found = "no limit" if unlimited else f"{soft}, can be raised to {hard}"
    yield Check(section, "open files", found, low, remedy if low else "")


def _libraries() -> Iterator[Check]:
    for name in (_PACKAGE, *_LIBRARIES):
        yield Check("Versions", name, _version(name) or "not installed")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> Iterator[Check]:
    from packaging.requirements import Requirement

    about = metadata.distribution(_PACKAGE)
    asked = [Requirement(text) for text in about.requires or ()]
    for extra in about.metadata.get_all("Provides-Extra") or ():
        if extra not in _OURS:
            lacking = [str(r.name) for r in asked if _is_of(r, extra) and not _is_met(r)]
            install = f"lacks {', '.join(lacking)}: pip install '{_PACKAGE}[{extra}]'"
            yield Check("Extras", extra, install if lacking else "installed")


def _is_of(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate()


def _is_met(requirement: Requirement) -> bool:
    version = _version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _credentials() -> Iterator[Check]:
    for whom, variables in _VARIABLES.items():
        files = _FILES_OF.get(whom, ())
        found = [name for name in variables if os.environ.get(name)]
        found += [name for name in files if Path(name).expanduser().is_file()]
        yield Check("Credentials (names only)", whom, ", ".join(found) or "none")
    set_ = [n for n in _PROXIES if os.environ.get(n) or os.environ.get(n.lower())]
    yield Check("Credentials (names only)", "proxy and certificates", ", ".join(set_) or "none")


def _registration() -> Iterator[Check]:
    from lundprobe_zarr.huggingface import registration

    off = os.environ.get(registration.NO_HOOK, "") not in ("", "0")
    found = f"switched off by {registration.NO_HOOK}" if off else "on import"
    yield Check("Hugging Face", 'load_dataset("lundprobe")', found)
    if _version("datasets") is not None and not off:
        import datasets  # noqa: F401  what registers itself, and records problems
    for name, problem in registration.problems.items():
        yield Check("Hugging Face", name, problem, True, "use lundprobe_zarr.load_dataset")


def _dataset(location: Location) -> Iterator[Check]:
    from lundprobe_zarr.dataset.opening import open_manifest

    section = f"Dataset {location.url}"
    begun = time.perf_counter()
    try:
        manifest = open_manifest(location)
        took = time.perf_counter() - begun
        name = f"{manifest.name}, {manifest.precision}, schema {manifest.schema_version}"
        yield Check(section, "manifest", f"{name}, read in {took * 1000:.0f} ms")
        table = next(files[0] for files in manifest.tables["patients"].values())
        yield from _ranges(location, section, table)
    except (LundProbeError, OSError) as error:
        yield Check(section, "reading", describe(error), True)


def _ranges(location: Location, section: str, name: str) -> Iterator[Check]:
    """Read parts of an object and the whole of it, and compare."""
    from lundprobe_zarr.storage.location import Range

    whole = location.read(name)
    wanted = Range(name, len(whole) - _BYTES, len(whole))
    times = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(_REQUESTS):
            begun = time.perf_counter()
            (part,) = location.read_ranges([wanted])
            times.append(time.perf_counter() - begun)
    if part != whole[wanted.start :]:
        remedy = "do not read data from this server; tell its operator"
        yield Check(section, "ranges", "the server sends other bytes than asked for", True, remedy)
    elif said:
        remedy = "expected a server that takes ranges, such as nginx or a bucket"
        yield Check(section, "ranges", "ignored: the server sends whole objects", True, remedy)
    else:
        latency = sorted(times)[_REQUESTS // 2]
        yield Check(section, "ranges", f"taken, {latency * 1000:.1f} ms for {_BYTES} bytes")
