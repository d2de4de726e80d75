"""The application: every route of the service behind one gate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from lundprobe_zarr.errors import DatasetError, LundProbeError, QueryError, UnknownLabelError
from lundprobe_zarr.service import entry, openapi, operator, page
from lundprobe_zarr.service.access.audit import Audit
from lundprobe_zarr.service.access.entrance import access_of
from lundprobe_zarr.service.access.limits import LimitKeeper
from lundprobe_zarr.service.access.proxies import Proxies
from lundprobe_zarr.service.core import Service
from lundprobe_zarr.service.datasets.published import publish
from lundprobe_zarr.service.datasets.queries import Queries
from lundprobe_zarr.service.gate import CLIENT_LEFT, Gate
from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.service.hub import api, viewer
from lundprobe_zarr.service.logs import AccessLog, log_to_stderr
from lundprobe_zarr.service.metrics import Metrics
from lundprobe_zarr.service.settings import Settings
from lundprobe_zarr.service.sql import questions
from lundprobe_zarr.service.voxels import overlays, patients, planes
from lundprobe_zarr.service.voxels.volumes import Volumes

_LOG = logging.getLogger("lundprobe_zarr.service")

#: Where a worker process finds its settings.
ENVIRONMENT = "LUNDPROBE_ZARR_SERVICE"


def from_environment() -> ASGIApp:
    """Make the application in a worker process, from the settings its parent left for it."""
    settings = Settings.load(os.environ[ENVIRONMENT])
    log_to_stderr(settings.log_level)
    return make_app(settings)


def make_app(settings: Settings) -> ASGIApp:
    """Make the application. Raises `DatasetError` or `UsageError` for what cannot be served."""
    proxies = Proxies(settings.trusted_proxies)
    access = access_of(settings, proxies)
    published = publish(
        settings.datasets, settings.storage_options, settings.state_folder, settings.synthetic_only
    )
    service = Service(
        settings=settings,
        published=published,
        access=access,
        audit=Audit(Path(settings.audit) if settings.audit else None),
        queries=Queries.of(settings.options.get("sql", {})),
        limits=LimitKeeper(settings.state_folder / "limits"),
        proxies=proxies,
        metrics=Metrics(published),
        access_log=AccessLog(settings.access_log),
    )
    return application(service)


def application(service: Service) -> ASGIApp:
    """Make the application of a service."""
    app = Starlette(
        routes=[
            *_routes(),
            *operator.routes(),
            *api.routes(),
            *viewer.routes(),
            *questions.routes(),
            *openapi.routes(),
            *page.routes(),
            *entry.routes(service.settings),
            *patients.routes(),
            *planes.routes(),
            *overlays.routes(),
        ],
        lifespan=_lifespan,
        exception_handlers={
            HTTPException: _http_error,
            HttpError: _problem,
            LundProbeError: _library_error,
            ClientDisconnect: _client_left,
        },
    )
    app.router.redirect_slashes = False  # a redirect would be made of the request's Host
    app.state.service = service
    app.state.volumes = Volumes(service.settings)
    return Gate(service, app)


def _routes() -> list[BaseRoute]:
    return [Route("/healthz", _healthz)]


@contextlib.asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    """Follow the datasets while the service runs."""
    service: Service = app.state.service
    if entry.ENTRY_OPTION in service.settings.options:
        service.queries.prepare()  # somebody is about to open the page, whose table is a query
    stopping = asyncio.Event()
    followers = [asyncio.create_task(p.follow(stopping)) for p in service.published.values()]
    try:
        yield
    finally:
        stopping.set()
        await asyncio.gather(*followers, return_exceptions=True)
        service.queries.close()
        app.state.volumes.decoding.close()
        service.audit.close()
        service.limits.close()


async def _healthz(request: Request) -> Response:
    """Say that the process answers; nothing of any dataset."""
    del request
    return JSONResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})


def _problem(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HttpError)
    return error.response()


def _http_error(request: Request, error: Exception) -> Response:
    """Answer for a path or method that no route has."""
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path}: {error.detail}"
    return HttpError(error.status_code, said, headers=error.headers).response()


def _client_left(request: Request, error: Exception) -> Response:
    """Answer nobody: the status is for the audit log."""
    del request, error
    return Response(status_code=CLIENT_LEFT)


def _library_error(request: Request, error: Exception) -> Response:
    """Answer for an error of this package: the client's mistake is explained, ours is logged."""
    service: Service = request.app.state.service
    if isinstance(error, QueryError):
        answer = questions.query_problem(error)
        if answer.status == 503:
            _LOG.error("%s: %s", request.url.path, error)
        answer.message = service.without_places(answer.message)
        return answer.response()
    if isinstance(error, UnknownLabelError):
        return HttpError(422, service.without_places(str(error))).response()
    _LOG.error("%s: %s", request.url.path, error)
    if isinstance(error, DatasetError):
        return HttpError(
            503,
            "The dataset cannot be read now. The service's log says why. Try again.",
            headers={"Retry-After": "5"},
        ).response()
    return HttpError(500, "The service failed. Its log says why.").response()
