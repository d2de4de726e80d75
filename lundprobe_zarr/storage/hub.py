"""Datasets on a Hugging Face Hub, or on a service with its API, read at one revision.

Hugging Face's own file system reads megabytes ahead, one range after another, and resolves a name
several times. A Hub also serves its files over plain HTTP, below `/resolve/<revision>/`. So one
request resolves the revision, and then the web client reads exact ranges of it concurrently. A
dataset that is replaced later has another revision: an error, never a mixture of both.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
import yarl
from fsspec.asyn import sync_wrapper

from lundprobe_zarr.storage.failures import ERROR_CODE
from lundprobe_zarr.storage.web import WebFiles

#: A dataset on the Hub of HF_ENDPOINT; only a revision below `refs/` may hold slashes.
_ON_HUB = re.compile(
    r"(?:hf://)?(?P<root>datasets/(?P<name>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr|heads)/[^/]+|[^/]+))?)(?P<below>/.*)?"
)
#: The same by its address.
_ON_WEB = re.compile(
    r"(?P<root>(?P<endpoint>https?://.+)/datasets/(?P<name>[^/]+/[^/]+)/resolve/"
    r"(?P<revision>[^/]+))(?P<below>/.*)?"
)
#: A revision that never changes: a commit.
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: A small file to request. A 404 names the commit too.
_ANY_FILE = ".gitattributes"
_COMMIT_HEADER = "X-Repo-Commit"
#: Statuses from here on say nothing about the dataset.
_FAILING = 500


def is_hub(target: str) -> bool:
    """Return whether a URL names a dataset of a Hub, by `hf://datasets/` or by its address."""
    return _parsed(target) is not None


def _parsed(target: str) -> re.Match[str] | None:
    return (_ON_WEB if target.startswith("http") else _ON_HUB).fullmatch(target)


class HubFiles(WebFiles):
    """Files of one dataset of a Hub, all of the revision that the first request found.

    Parameters
    ----------
    repository : str
        `owner/name`.
    revision : str
        Branch, tag or commit.
    endpoint, token : str, optional
        Hub and token; by default those of Hugging Face's own tools, from HF_ENDPOINT and
        HF_TOKEN or the token file. The token is sent to the endpoint only. False is no token.
    **options
        As for the web client.
    """

    protocol = "hf"
    cachable = False  # another instance may have another revision
    #: A Hub accepts commits, not single objects.
    read_only = True

    def __init__(
        self,
        repository: str,
        revision: str = "main",
        endpoint: str | None = None,
        token: str | bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._repository, self._revision = repository, revision
        self._endpoint = (endpoint or _endpoint()).rstrip("/")
        if found := _token() if token in (None, True) else token:
            authorization = {"Authorization": f"Bearer {found}"}
            self.kwargs["headers"] = authorization | dict(self.kwargs.get("headers") or {})
        # Kept by fsspec and shared: closing connections with each dataset would take time.
        self._connections = WebFiles(
            client_kwargs=self.client_kwargs,
            asynchronous=self.asynchronous,
            loop=options.get("loop"),
        )
        self._commit = revision if _COMMIT.fullmatch(revision) else None
        self._asking = asyncio.Lock()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("hf://").rstrip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        found = _parsed(path)
        assert found is not None, path
        given = {k: found[k] for k in found.re.groupindex if k in ("endpoint", "revision")}
        revision = unquote(given.pop("revision") or "main")
        # A dataset named by its address has the credentials of its options only.
        alone = {"token": False} if "endpoint" in given else {}
        return {"repository": found["name"], "revision": revision, **given, **alone}

    def pinned(self, target: str) -> str:
        """Return a URL of this dataset with its revision; unchanged before the first read."""
        found = _parsed(target)
        if self._commit is None or found is None:
            return target
        below = found["below"] or ""
        if target.startswith("http"):
            return f"{found['root'].rpartition('/')[0]}/{self._commit}{below}"
        return f"hf://datasets/{self._repository}@{self._commit}{below}"

    def encode_url(self, url: str) -> yarl.URL:
        """Return the address of a file at the revision that is read."""
        found = _parsed(url)
        below = quote((found["below"] if found else None) or "", safe="/")
        return yarl.URL(f"{self._base}/resolve/{quote(self._read, safe='')}{below}", encoded=True)

    def address(self, name: str) -> tuple[str, dict[str, str]] | None:
        """Return URL and headers as the web client does; None before the revision is known."""
        return None if self._commit is None else super().address(name)

    @property
    def _base(self) -> str:
        return f"{self._endpoint}/datasets/{self._repository}"

    @property
    def _read(self) -> str:
        return self._commit or self._revision

    async def set_session(self) -> Any:
        """Return the connections, after the revision is resolved: every request calls this."""
        session = await self._connections.set_session()
        if self._commit is None:
            async with self._asking:
                if self._commit is None:
                    self._commit = await self._ask(session)
        return session

    async def _ask(self, session: aiohttp.ClientSession) -> str:
        """Request the commit of the revision.

        A web server that happens to have such a path names no commit: its files are read as is.
        """
        url = self.encode_url(f"datasets/{self._repository}/{_ANY_FILE}")
        async with session.head(url, allow_redirects=True, **self.kwargs) as answer:
            for one in (answer, *answer.history):
                if _COMMIT.fullmatch(commit := one.headers.get(_COMMIT_HEADER, "")):
                    return commit
            if ERROR_CODE in answer.headers or answer.status >= _FAILING:
                answer.raise_for_status()
            return self._revision

    async def _ls(self, url: str, detail: bool = True, **kwargs: Any) -> Any:
        entries = [entry async for entry in self._entries(url, recursive=False)]
        return entries if detail else [entry["name"] for entry in entries]

    ls = sync_wrapper(_ls)  # the base class registered its own finalizer

    async def _find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **kwargs: Any,
    ) -> Any:
        depth = path.rstrip("/").count("/") + (maxdepth or 0)
        found = {
            entry["name"]: entry
            async for entry in self._entries(path, recursive=True)
            if (withdirs or entry["type"] == "file")
            and (maxdepth is None or entry["name"].count("/") <= depth)
        }
        return found if detail else list(found)

    async def _entries(self, path: str, recursive: bool) -> AsyncIterator[Mapping[str, Any]]:
        """Yield the entries of a folder, or all below it; the Hub lists them in pages."""
        found = _parsed(path)
        assert found is not None, path
        session = await self.set_session()
        below = quote((found["below"] or "").strip("/"), safe="")
        listed = f"{self._endpoint}/api/datasets/{self._repository}/tree"
        first = f"{listed}/{quote(self._read, safe='')}/{below}".rstrip("/")
        url = yarl.URL(f"{first}?recursive={str(recursive).lower()}", encoded=True)
        while True:
            async with session.get(url, **self.kwargs) as answer:
                self._raise_not_found_for_status(answer, path)
                for entry in await answer.json():
                    yield _info(found["root"], entry)
                more = answer.links.get("next")
            if more is None:
                return
            url = yarl.URL(str(more["url"]), encoded=True)
            if (
                url.origin() != yarl.URL(self._endpoint).origin()
            ):  # the token is sent to no other server
                raise aiohttp.ClientPayloadError(
                    f"the next page of the listing is at {url.origin()}"
                )


def _info(root: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry in the form of fsspec; its ETag changes when the file is replaced."""
    kind = "directory" if entry["type"] == "directory" else "file"
    tag = (entry.get("lfs") or {}).get("oid") or entry["oid"]
    return {"name": f"{root}/{entry['path']}", "type": kind, "size": entry["size"], "ETag": tag}


def _endpoint() -> str:
    """Return the Hub of Hugging Face's tools, or HF_ENDPOINT if it was set later."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT") or str(constants.ENDPOINT)


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()
