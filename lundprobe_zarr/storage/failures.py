"""Errors of file systems as errors of a dataset, without secrets.

botocore, aiohttp, azure-core and gcsfs raise their own classes and messages, some of which repeat
the URL with its signature. Here they become one error: what was found, and what to do.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lundprobe_zarr.errors import DatasetError, LundProbeError
from lundprobe_zarr.vocabulary.text import escaped

#: Base classes of what the libraries below fsspec raise; looked up only where they are loaded.
_FOREIGN = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("azure.core.exceptions", "AzureError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
)
_NO_CREDENTIALS = re.compile(r"Credential|Auth|RefreshError|TokenRetrieval|SSO")
_UNREACHABLE = re.compile(r"Connect|Disconnect|Timeout|ServiceRequest|DNS|Transport")
_TIMED_OUT = re.compile(r"Timeout")
#: An answer that is incomplete, or is not the requested one.
_SPOILT = re.compile(r"Payload|BadHttpMessage|IncompleteRead|ResponseStreaming|FlexibleChecksum")
#: Statuses of transient failures.
_TRANSIENT = (429, 500, 502, 503, 504)
#: Error codes of S3 for refused credentials; some have status 400.
_REFUSED = {
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
}
#: Headers of a Hugging Face Hub, or of our service, with an error's code and message.
ERROR_CODE, _ERROR_MESSAGE = "X-Error-Code", "X-Error-Message"
#: Codes of a missing revision and a missing dataset: finding and remedy.
_GONE = {
    "RevisionNotFound": (
        "the server does not have this revision: the dataset was replaced since it was opened, or "
        "the revision is wrong",
        "open the dataset again",
    ),
    "RepoNotFound": (
        "the server has no such dataset, or none that these credentials may read",
        "check its name, HF_ENDPOINT, which names the server, and HF_TOKEN",
    ),
}
#: Most characters shown of a server's message.
_SAID = 500
#: Where credentials are set, by the start of a URL.
_CREDENTIALS = {
    ("s3://", "s3a://"): "`storage_options` (key, secret, for temporary ones token), or set "
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE",
    ("gs://", "gcs://"): "`storage_options` (token: a file of them), or set "
    "GOOGLE_APPLICATION_CREDENTIALS to that file",
    ("az://", "abfs://", "abfss://"): "`storage_options` (account_name and account_key or "
    "sas_token), or set AZURE_STORAGE_CONNECTION_STRING",
    ("http://", "https://"): "`storage_options` (headers), or in the URL",
    ("hf://",): "HF_TOKEN, by `hf auth login` or as `storage_options` (token); HF_ENDPOINT "
    "names its server",
}
#: Options that name the place and hold no secret, shown in messages.
_PUBLIC_OPTIONS = (
    "endpoint",
    "endpoint_url",
    "region_name",
    "account_name",
    "project",
    "account_host",
    "anon",
)
_SHORTEST_SECRET = 4
#: Finding and remedy of the operating system's errors.
_ROOM = "make room there, or choose another place"
_RIGHTS = "expected permission to read and write there; give it, or choose another place"
_MEANINGS = {
    errno.ENOSPC: ("no space left on the device", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EFBIG: (
        "a file would be larger than it may be",
        "raise the limit (`ulimit -f`), or choose a place on another file system",
    ),
    errno.EROFS: (
        "the file system is read-only",
        "mount it so that it can be written, or choose another place",
    ),
    errno.EACCES: ("permission denied", _RIGHTS),
    errno.EPERM: ("operation not permitted", _RIGHTS),
    errno.EIO: ("input/output error", "check the disk, or the server that provides it"),
    errno.ESTALE: ("the server of this disk has lost the file", "mount the disk again"),
    errno.EMFILE: ("too many open files", "raise the limit (`ulimit -n`)"),
    errno.ENFILE: ("too many open files on this machine", "end the programs that hold them open"),
}
_AGAIN = "then run the same command again"
#: `user:password@`, greedily, since secret keys may hold slashes; a bare `user@` only on the web:
#: in `abfs://container@account` it is the name of a container.
_USER_AND_PASSWORD = re.compile(r"(://)[^/@\s]*:\S*@|((?:https?|s?ftp)://)[^/@\s]+@")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\")]*")


def failures() -> tuple[type[BaseException], ...]:
    """Return the classes of errors that a file system may raise."""
    loaded = (getattr(sys.modules[m], name) for m, name in _FOREIGN if m in sys.modules)
    return OSError, *loaded


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status_of(error: BaseException) -> int | None:
    """Return the HTTP status of an error of aiohttp, azure, gcsfs or botocore; None without."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        return _number(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    named = (_number(getattr(error, a, None)) for a in ("status", "status_code", "code"))
    return next((s for s in named if s is not None), None)


def _number(value: object) -> int | None:
    return int(str(value)) if str(value).isdigit() else None


def _refusal(error: BaseException) -> str | None:
    """Return S3's error code for refused credentials; None for other errors."""
    for one in _chain(error):
        response = getattr(one, "response", None)
        code = response.get("Error", {}).get("Code") if isinstance(response, Mapping) else None
        if code in _REFUSED:
            return str(code)
    return None


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status that caused an error; None without one."""
    if is_spoilt(error):  # aiohttp gives these a status of its own
        return None
    return next((s for s in map(_status_of, _chain(error)) if s is not None), None)


def _header_text(error: BaseException, header: str) -> str | None:
    """Return the text of a header of a Hub's answer; None without it."""
    for one in _chain(error):
        for answer in (one, getattr(one, "response", None)):
            headers = getattr(answer, "headers", None)
            if isinstance(headers, Mapping) and header in headers:
                return escaped(str(headers[header]), keep="")[:_SAID]
    return None


def is_gone(answer: Any) -> bool:
    """Return whether a Hub has no such dataset, or no such revision of it."""
    return answer.headers.get(ERROR_CODE) in _GONE


def is_missing(error: BaseException) -> bool:
    """Return whether an error means only that there is no such object."""
    if _header_text(error, ERROR_CODE) in _GONE:
        return False
    status = http_status(error)
    if status is not None:
        return status in (404, 410)
    absent = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    absent |= isinstance(error, OSError) and error.errno == errno.ELOOP  # a link to itself
    return absent and not _is_named(error, _UNREACHABLE)


def is_past_end(error: BaseException) -> bool:
    """Return whether a byte range was requested that begins after the object's end."""
    return http_status(error) == 416


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed a moment later."""
    status = http_status(error)
    if status is not None:
        return status in _TRANSIENT
    return _is_named(error, _UNREACHABLE) or is_spoilt(error)


def is_spoilt(error: BaseException) -> bool:
    """Return whether an answer was incomplete, or not the requested one."""
    return _is_named(error, _SPOILT)


def _is_named(error: BaseException, pattern: re.Pattern[str]) -> bool:
    kinds = (kind for e in _chain(error) for kind in type(e).__mro__)
    return any(pattern.search(kind.__name__) for kind in kinds)


def secrets_in(options: Mapping[str, Any]) -> frozenset[str]:
    """Return the texts in `options` that must not be shown: all but those of the place."""
    return frozenset(s for s in _leaves(options) if len(s) >= _SHORTEST_SECRET)


def public_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options, nested ones too, that name the place and hold no credentials."""
    found = {}
    for name, value in options.items():
        if name in _PUBLIC_OPTIONS:
            if redacted(str(value)) == str(value):  # an endpoint may hold a password
                found[name] = value
        elif isinstance(value, Mapping) and (inner := public_options(value)):
            found[name] = inner
    return found


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in _PUBLIC_OPTIONS:
                yield from _leaves(inner)
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        for inner in value:
            yield from _leaves(inner)


def redacted(text: str, secrets: Iterable[str] = (), whole: bool = False) -> str:
    """Return `text` with `***` for secrets, and for users, passwords and queries in URLs.

    `whole` if the text is one URL or path, whose query may hold any character.
    """
    if whole and "://" in text:
        text = re.sub(r"\?.*", "?***", text, count=1, flags=re.DOTALL)
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = _USER_AND_PASSWORD.sub(lambda m: f"{m[1] or m[2]}***@", text)
    return _QUERY.sub(r"\1?***", text)


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Within, an error of the operating system becomes a `DatasetError` of a place, with fields."""
    try:
        yield
    except LundProbeError:
        raise
    except OSError as error:
        raise explain(error, where, (), local=True) from error


def explain(error: BaseException, where: str, secrets: Iterable[str], local: bool) -> DatasetError:
    """Return the error for anything but a missing object: place, finding, remedy."""
    if local and isinstance(error, OSError):
        finding, remedy = meaning(error)
        return DatasetError(f"cannot be read or written: {finding}", where=where, remedy=remedy)
    finding, remedy = _finding(error, where)
    message = _header_text(error, _ERROR_MESSAGE)
    text = " ".join(redacted(message or str(error), secrets).split())
    speaker = "the server says" if message else type(error).__name__
    detail = f"{speaker}: {text}" if text else speaker
    return DatasetError(f"{finding} ({detail})", where=where, remedy=remedy)


def _finding(error: BaseException, where: str) -> tuple[str, str]:
    if gone := _GONE.get(_header_text(error, ERROR_CODE) or ""):
        return gone
    if problem := _of_credentials(error):
        return problem, (
            "expected credentials that are valid, not expired, and allowed there; pass them as "
            + _set_as(where)
        )
    status = http_status(error)
    if status is not None:
        return f"the server answered {status}", "try again later, or ask its operator"
    if _is_named(error, _TIMED_OUT):
        return "no answer within the time allowed", (
            "check the network, try again later, or allow more, e.g. "
            '`storage_options={"timeout": 120}`: seconds without a byte'
        )
    if is_spoilt(error):
        return "the answer is incomplete, or not the requested one", (
            "try again later, or ask the operator of the server or of a proxy"
        )
    if _is_named(error, _UNREACHABLE):
        return "the server cannot be reached", "check the URL, the network and the proxy settings"
    return "cannot be read or written", "check the URL and `storage_options`"


def _of_credentials(error: BaseException) -> str | None:
    """Return what is wrong with the credentials; None if the error is another one."""
    code = _refusal(error)
    if code:
        return f"access denied, a problem of credentials: {code}"
    if isinstance(error, PermissionError) or http_status(error) in (401, 403):
        return "access denied, a problem of credentials"
    return "no usable credentials" if _is_named(error, _NO_CREDENTIALS) else None


def _set_as(where: str) -> str:
    known = (words for begins, words in _CREDENTIALS.items() if where.startswith(begins))
    other = "`storage_options`, or set them up as the provider's own tools expect them"
    return next(known, other)


def meaning(error: OSError) -> tuple[str, str]:
    """Return the finding and the remedy of an error of the operating system."""
    known = _MEANINGS.get(error.errno or 0)
    if known is not None:
        return known[0], f"{known[1]}, {_AGAIN}"
    return error.strerror or str(error), "check that the place exists and may be used"


def described(error: OSError, where: str) -> str:
    """Return an error as a message: the file it names, or `where`, the finding, the remedy."""
    finding, remedy = meaning(error)
    place = error.filename if isinstance(error.filename, str) else where
    return f"{place}: {finding}; {remedy}" if place else f"{finding}; {remedy}"
