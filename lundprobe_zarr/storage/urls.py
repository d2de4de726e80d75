"""URLs of datasets: their protocol, the packages it needs, and the credentials they hold."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.storage.failures import redacted
from lundprobe_zarr.vocabulary.text import escaped

#: What to install for a protocol: the names of this package's extras.
EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "azure"),
    **dict.fromkeys(("http", "https", "hf"), "http"),
}
#: A URL without one or both slashes, which would be taken for a folder of that name.
_HALF_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{0,1}(?!/)(.*)", re.DOTALL)
_PROTOCOLS = {*EXTRAS, "file", "local", "memory", "hf", "ftp", "sftp", "oci", "oss"}
WEB = ("http", "https")
HUB = ("hf",)
#: Protocols of objects that our web client reads.
BY_HTTP = (*WEB, *HUB)
S3 = ("s3", "s3a")
GCS = ("gs", "gcs")
AZURE = ("az", "abfs", "abfss")
#: Connections a bucket client may hold. botocore's 10 would make a patch of five arrays queue.
_POOL = 64
#: Signature version of S3. Clients use it for requests by default, but not for signed URLs, whose
#: older version newer regions and servers refuse.
_SIGNATURE = "s3v4"


#: Places on a Hugging Face Hub that may hold a dataset; the name of a model has no prefix.
_ON_HUB = re.compile(r"hf://(?:datasets/[^/]+/[^/]|(?:buckets|spaces)/).*", re.S)
#: The text before the last URL of a chain, such as `simplecache::`; a name may hold `::` as well.
_CHAIN = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*(?:://.*)?::)+(?=[A-Za-z][A-Za-z0-9+.-]*://)", re.S)
_FILE_URL = re.compile(r"(?:file|local)://(?:localhost(?=/))?(.*)", re.S)


def is_chain(url: str) -> bool:
    """Return whether a URL is a chain of fsspec, e.g. `simplecache::s3://bucket/lund-probe`."""
    return _CHAIN.match(url) is not None


def path_of(url: str) -> str | None:
    """Return the local path of a path or `file://` URL; None for any other place.

    A path is taken literally, also where fsspec would interpret it: `::`, `?`, `#`, `%20`. In a
    `file://` URL `%20` stands for a space, as `pathlib.Path.as_uri` writes it.
    """
    if found := _FILE_URL.fullmatch(url):
        return unquote(found[1]) or "/"
    return url if "://" not in url else None


def protocol_of_url(url: str) -> str:
    """Return the protocol of a URL, `file` for a path, of a chain that of its last URL."""
    return _last(url).partition("://")[0] if "://" in url else "file"


def _last(url: str) -> str:
    """Return the last URL of a chain, or the only one."""
    chain = _CHAIN.match(url)
    return url[chain.end() :] if chain else url


def separate(url: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return `url` without the credentials it holds, and `options` with them.

    The query of a web URL, such as the signature of a shared folder, is sent with every request.
    Raises `UsageError` for an invalid URL, or one of a bucket with a password in it.
    """
    _require_url(url)
    if (path := path_of(url)) is not None:
        # Printed commands hold it, and would take a leading - for an option.
        return f"./{path}" if path.startswith("-") else path, options
    for name in ("client_kwargs", "config_kwargs"):
        if not isinstance(options.get(name) or {}, Mapping):
            kind = type(options[name]).__name__
            raise UsageError(
                f"storage option {name} is a {kind}", expected="a dict of what the client takes"
            )
    protocol = protocol_of_url(url)
    if protocol in S3:
        ours: dict[str, Any] = {"max_pool_connections": _POOL}
        # Multi-region access points, named by an ARN, use another version.
        if not options.get("anon") and "arn:" not in url:
            ours["signature_version"] = _SIGNATURE
        options["config_kwargs"] = ours | dict(options.get("config_kwargs") or {})
    parts = urlsplit(url)
    if protocol not in WEB or parts.scheme not in WEB:
        _refuse_password(url, protocol)
        return url, options
    if parts.query:
        options["params"] = dict(parse_qsl(parts.query, True)) | options.get("params", {})
    user, at, host = parts.netloc.rpartition("@")
    if at:
        token = base64.b64encode(unquote(user).encode()).decode()
        options["headers"] = {"Authorization": f"Basic {token}"} | options.get("headers", {})
    return urlunsplit((parts.scheme, host, parts.path, "", "")), options


def _require_url(url: str) -> None:
    """Raise `UsageError` for what is neither a path nor a URL with a host or bucket in it."""
    shown = escaped(redacted(url, whole=True), keep="")
    begun = _HALF_URL.match(url)
    if begun is not None and begun[1].lower() in _PROTOCOLS:
        right = escaped(redacted(f"{begun[1]}://{begun[2]}", whole=True), keep="")
        raise UsageError(
            f"a URL of {begun[1]} without its two slashes",
            expected=right,
            remedy="write that, or, if it is a folder of that name, ./ before it",
        )
    if any(c < " " or c == "\x7f" for c in url):
        raise UsageError("holds a control code", where=shown, expected="a path or a URL without")
    try:
        urlsplit(url)
    except ValueError as error:
        raise UsageError(f"no URL ({error})", where=shown, expected="a path or a URL") from None
    protocol = protocol_of_url(url)
    if protocol in EXTRAS and not urlsplit(_last(url)).netloc:
        what = "server" if protocol in WEB else "bucket"
        raise UsageError(
            f"no {what} in it", where=shown, expected=f"e.g. {protocol}://{what}/lund-probe"
        )
    if protocol in HUB and not _ON_HUB.fullmatch(_last(url)):
        raise UsageError(
            "no dataset of a Hub",
            where=shown,
            expected="hf://datasets/OWNER/NAME, and after NAME perhaps @REVISION",
        )


def _refuse_password(url: str, protocol: str) -> None:
    if protocol in EXTRAS and redacted(url) != url and "@" in url:
        raise UsageError(
            "credentials in the URL of a bucket",
            where=redacted(url, whole=True),
            expected=(
                "credentials as `storage_options`, or where the provider's own tools find them"
            ),
        )


#: Options with credentials of a bucket's client, which it prefers to anonymous access.
_WHO = ("key", "secret", "token", "account_key", "sas_token", "credential", "connection_string")


def anonymous_options(protocol: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return options for anonymous access; None for a protocol where that is not known."""
    rest = {name: value for name, value in options.items() if name not in _WHO}
    if protocol in S3:
        return rest | {"anon": True}
    if protocol in GCS:
        return rest | {"token": "anon"}
    if protocol in AZURE:
        account = re.search(r"AccountName=([^;]+)", str(options.get("connection_string", "")))
        return rest | ({"account_name": account[1]} if account else {}) | {"anon": True}
    return rest | {"token": False} if protocol == "hf" else None
