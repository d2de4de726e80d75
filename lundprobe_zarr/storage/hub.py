"""A dataset on a Hugging Face Hub, or on a service that speaks as one: read at one revision.

Hugging Face's own file system reads ahead by megabytes, one range after another, and asks several
times what a name stands for. A Hub gives its files by plain HTTP too, below `/resolve/<revision>/`:
so one request says which revision there is, and from then on the web client reads exact ranges of
it, side by side. What is replaced later has another revision, and is an error, never a mixture.
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

#: A dataset on the Hub that the environment names; a revision may hold slashes if it is a `refs/`.
_ON_HUB = re.compile(
    r"(?:hf://)?(?P<root>datasets/(?P<name>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr|heads)/[^/]+|[^/]+))?)(?P<below>/.*)?"
)
#: The same by its address.
_ON_WEB = re.compile(
    r"(?P<root>(?P<endpoint>https?://.+)/datasets/(?P<name>[^/]+/[^/]+)/resolve/"
    r"(?P<revision>[^/]+))(?P<below>/.*)?"
)
#: A revision that never is another: a commit.
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: A small file to ask for. That it is not there says as much.
_ANY_FILE = ".gitattributes"
_COMMIT_HEADER = "X-Repo-Commit"
#: Statuses from here on say nothing of what was asked for.
_FAILING = 500


def is_hub(target: str) -> bool:
    """Whether a URL names a dataset of a Hub, by `hf://datasets/` or by its address."""
    return _parsed(target) is not None


def _parsed(target: str) -> re.Match[str] | None:
    return (_ON_WEB if target.startswith("http") else _ON_HUB).fullmatch(target)


class HubFiles(WebFiles):
    """Files of one dataset of a Hub, all of the revision that was there at the first request.

    Parameters
    ----------
    repository : str
        `owner/name`.
    revision : str
        Branch, tag or commit.
    endpoint, token : str, optional
        Hub and token; by default those that Hugging Face's own tools take, from HF_ENDPOINT and
        HF_TOKEN or the token file. The token goes to the endpoint alone. False is none.
    **options
        As for the web client.
    """

    protocol = "hf"
    cachable = False  # another one may be of another revision
    #: A Hub takes commits, not objects one by one.
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
        # Kept by fsspec and shared: closing connections with each dataset would take a while.
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
        # By its address, a dataset is asked for as its options say, and as nothing else does.
        alone = {"token": False} if "endpoint" in given else {}
        return {"repository": found["name"], "revision": revision, **given, **alone}

    def pinned(self, target: str) -> str:
        """Return a URL of this dataset with the revision that is read; as it is if none was."""
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
        """As of the web's; None until it is known which revision is read."""
        return None if self._commit is None else super().address(name)

    @property
    def _base(self) -> str:
        return f"{self._endpoint}/datasets/{self._repository}"

    @property
    def _read(self) -> str:
        return self._commit or self._revision

    async def set_session(self) -> Any:
        """Return the connections, once it is known which revision is read: all else asks here."""
        session = await self._connections.set_session()
        if self._commit is None:
            async with self._asking:
                if self._commit is None:
                    self._commit = await self._ask(session)
        return session

    async def _ask(self, session: aiohttp.ClientSession) -> str:
        """Ask which commit the revision is.

        A web server that happens to have such a path says nothing of commits: it is read as it is.
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

    ls = sync_wrapper(_ls)  # the base class has tied its own

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
        """Yield what is in a folder, or all below it, as the Hub lists it page by page."""
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
            if url.origin() != yarl.URL(self._endpoint).origin():  # the token goes to no other
                raise aiohttp.ClientPayloadError(f"the listing goes on at {url.origin()}")


def _info(root: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of a listing as fsspec has it; its ETag is what tells a replaced file."""
    kind = "directory" if entry["type"] == "directory" else "file"
    tag = (entry.get("lfs") or {}).get("oid") or entry["oid"]
    return {"name": f"{root}/{entry['path']}", "type": kind, "size": entry["size"], "ETag": tag}


def _endpoint() -> str:
    """Return the Hub that Hugging Face's tools ask, and HF_ENDPOINT if it was set since."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT") or str(constants.ENDPOINT)


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()
