"""The state of a running service: datasets, access, audit log, limits. Nothing else is shared."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from starlette.requests import Request

from lundprobe_zarr.service.access.audit import Audit, Visit
from lundprobe_zarr.service.access.callers import Access, Caller, Kind
from lundprobe_zarr.service.access.limits import LimitKeeper
from lundprobe_zarr.service.access.proxies import Proxies
from lundprobe_zarr.service.datasets.published import Published, Revision
from lundprobe_zarr.service.datasets.queries import Queries
from lundprobe_zarr.service.http.answers import HttpError, gated, no_repository, no_revision
from lundprobe_zarr.service.logs import AccessLog
from lundprobe_zarr.service.metrics import Metrics
from lundprobe_zarr.service.settings import Settings

#: Paths that answer without a token, and leave no line in the audit log; none says anything of a
#: dataset.
OPEN_PATHS = frozenset({"/healthz", "/api/agent-harnesses", "/enter", "/", "/favicon.ico"})
#: Where the files of the page are, which are such paths too.
PAGE_FILES = "/page/"
#: Paths that bring a token in their body, or need none, and are recorded.
LOG_IN, LOG_OUT = "/login", "/logout"
LOG_IN_PATHS = frozenset({LOG_IN, LOG_OUT})
#: Name of the revision that is served now.
MAIN = "main"


@dataclass
class Service:
    """What requests work with. One a process; a second process has its own."""

    settings: Settings
    published: dict[str, Published]
    access: Access
    audit: Audit
    limits: LimitKeeper
    proxies: Proxies
    metrics: Metrics
    access_log: AccessLog
    queries: Queries = field(default_factory=Queries)

    def finished(self, visit: Visit) -> None:
        """Record a request at its end, before its last byte is sent.

        Raises `HttpError` (503) if the audit log cannot be written: then nothing may be answered.
        """
        if not is_open(visit.route):
            self.audit.write(visit)
        visit.count()

    def without_places(self, message: str) -> str:
        """Return a message with the names of datasets for where they are, which is nobody's."""
        for published in self.published.values():
            for place in (published.location.url, published.root):
                message = message.replace(place, published.name) if place else message
        return message

    def unknown_caller(self, path: str) -> HttpError:
        """Return the error for a request without a token, wherever it goes."""
        parts = path.strip("/").split("/")
        name = next((f"{a}/{b}" for a, b in pairwise(parts) if f"{a}/{b}" in self.published), None)
        how = "Give a token: set HF_TOKEN, or the header `Authorization: Bearer TOKEN`."
        if name is None:
            return HttpError(401, f"This service gives nothing without a token. {how}", "GatedRepo")
        return gated(name, f"{how} {self.published[name].revision.how_to_apply}", known=False)

    def revision(self, caller: Caller, name: str, kind: Kind) -> Revision:
        """Return a dataset as it is now, for a caller who may have this kind of its content.

        Raises `HttpError`: 404 if the service has no such dataset, 403 without the grant.
        """
        found = self.published.get(name)
        if found is None:
            raise no_repository(name)
        now = found.revision
        if not caller.may(name, kind):
            raise gated(name, f"Your token does not give you its {kind}. {now.how_to_apply}", True)
        return now

    def named_revision(self, caller: Caller, name: str, kind: Kind, revision: str) -> Revision:
        """Return a dataset at the revision a request names: `main` or the sha served now.

        Raises like `revision`, and `HttpError` (404) for any other revision.
        """
        now = self.revision(caller, name, kind)
        if revision not in (MAIN, f"refs/heads/{MAIN}", now.sha):
            raise no_revision(name, revision, now.sha)
        return now


def is_open(path: str) -> bool:
    """Return whether a path answers without a token, and is not recorded."""
    return path in OPEN_PATHS or path.startswith(PAGE_FILES)


def service_of(request: Request) -> Service:
    """Return the service that a request is made to."""
    service: Service = request.app.state.service
    return service


def caller_of(request: Request) -> Caller:
    """Return who makes a request."""
    caller: Caller = request.scope["caller"]
    return caller
