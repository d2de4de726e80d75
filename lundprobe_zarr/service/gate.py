"""What every request passes: who it is from, the audit log, limits, headers, the last resort.

An ASGI application around all others. Bytes of files are answered here at once, without routing:
a patch takes a dozen requests of some hundred kB.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lundprobe_zarr.service.answers import HttpError
from lundprobe_zarr.service.audit import Visit
from lundprobe_zarr.service.content import is_content, send_content
from lundprobe_zarr.service.core import Service
from lundprobe_zarr.service.page import is_page
from lundprobe_zarr.service.session import with_credentials

_LOG = logging.getLogger("lundprobe_zarr.service")

#: Paths that answer without a token; none says anything of a dataset.
OPEN_PATHS = frozenset({"/healthz", "/api/agent-harnesses", "/enter"})
#: Status in the audit log of an answer whose client left before its end, as nginx has it.
CLIENT_LEFT = 499
#: Headers of every answer.
_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)
_POLICY = b"default-src 'none'; frame-ancestors 'none'; sandbox"
_HSTS = (b"strict-transport-security", b"max-age=31536000")


class Gate:
    """The outermost application of the service."""

    def __init__(self, service: Service, inner: ASGIApp) -> None:
        self._service = service
        self._inner = inner
        secure = service.settings.public_url.startswith("https:")
        self._headers = (*_HEADERS, _HSTS) if secure else _HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; anything but HTTP goes to the application within."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        client = scope.get("client") or ("?", 0)
        visit = Visit(scope["method"], scope["path"], str(client[0]))
        scope["visit"] = visit
        answer = _Answer(send, visit, self._service, self._headers)
        try:
            await self._admitted(scope, receive, answer, visit)
        except HttpError as error:
            if answer.has_begun:
                raise
            await error.response()(scope, receive, answer)
        except ClientDisconnect:
            pass
        except Exception:
            # The last resort: said in the log, not to the client.
            _LOG.exception("a request of %s failed", visit.route)
            if answer.has_begun:
                raise
            failure = HttpError(500, "The service failed. Its log says why.")
            await failure.response()(scope, receive, answer)
        finally:
            if not visit.ended:
                visit.status = CLIENT_LEFT
                self._service.finished(visit)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send, visit: Visit) -> None:
        path = scope["path"]
        if path in OPEN_PATHS or is_page(path):
            await self._inner(scope, receive, send)
            return
        url = self._service.settings.public_url
        headers = with_credentials(scope["method"], dict(scope["headers"]), url)
        caller = self._service.access.caller(headers)
        if caller is None:
            raise self._service.unknown_caller(path)
        visit.caller = caller.name
        scope["caller"] = caller
        with self._service.limits.request(caller):
            if is_content(path):
                await send_content(self._service, scope, send)
            else:
                await self._inner(scope, receive, send)


class _Answer:
    """`send` of a request: adds headers, counts bytes, writes the audit line before the end."""

    def __init__(
        self,
        send: Send,
        visit: Visit,
        service: Service,
        headers: tuple[tuple[bytes, bytes], ...],
    ) -> None:
        self._send = send
        self._visit = visit
        self._service = service
        self._headers = headers
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            self._visit.status = message["status"]
            _add_headers(message, self._headers)
        elif message["type"] == "http.response.body":
            self._visit.sent += len(message.get("body", b""))
            if not message.get("more_body", False):
                self._visit.ended = True
                self._service.finished(self._visit)
        await self._send(message)


def _add_headers(
    message: MutableMapping[str, Any], headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    given = list(message["headers"])
    given += headers
    if not any(name == b"content-security-policy" for name, _ in given):
        given.append((b"content-security-policy", _POLICY))
    message["headers"] = given


def visit_of(request: Request) -> Visit:
    """Return the visit of a request, for handlers to say what it was for."""
    visit: Visit = request.scope["visit"]
    return visit
