"""What every request passes: who it is from, the audit log, limits, headers, the last resort.

An ASGI application around all others. Bytes of files are answered here at once, without routing:
a patch takes a dozen requests of some hundred kB.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lundprobe_zarr.service.access.audit import Visit
from lundprobe_zarr.service.access.proxies import Proxies
from lundprobe_zarr.service.access.session import FRAMES_OPTION, with_credentials
from lundprobe_zarr.service.core import LOG_IN_PATHS, Service, is_open
from lundprobe_zarr.service.http.answers import HttpError
from lundprobe_zarr.service.hub.content import is_content, send_content
from lundprobe_zarr.service.operator import STATUS

_LOG = logging.getLogger("lundprobe_zarr.service")

#: Status in the audit log of an answer whose client left before its end, as nginx has it.
CLIENT_LEFT = 499
_Headers = tuple[tuple[bytes, bytes], ...]
#: Headers of every answer.
_HEADERS: _Headers = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_NO_FRAMES = (b"x-frame-options", b"DENY")
_POLICY = b"default-src 'none'; frame-ancestors 'none'; sandbox"
_HSTS = (b"strict-transport-security", b"max-age=31536000")


#: What makes a browser ask for a token, as a password.
_ASK = 'Basic realm="any name, and a token as password"'
#: Peers that may come without TLS where all others must come through a proxy.
_THIS_MACHINE = ("127.0.0.0/8", "::1")


class Gate:
    """The outermost application of the service."""

    def __init__(self, service: Service, inner: ASGIApp) -> None:
        self._service = service
        self._inner = inner
        settings = service.settings
        self._headers = _HEADERS
        if settings.public_url.startswith("https:"):
            self._headers += (_HSTS,)
        if FRAMES_OPTION not in settings.options:  # else the page's policy says whose
            self._headers += (_NO_FRAMES,)
        near = Proxies((*settings.trusted_proxies, *_THIS_MACHINE))
        self._near = near if settings.only_proxies else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; anything but HTTP goes to the application within."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        service, peer, headers = self._service, _peer_of(scope), _headers_of(scope)
        visit = Visit(scope["method"], scope["path"], service.proxies.client(peer, headers))
        scope["visit"] = visit
        answer = _Answer(scope, send, visit, service, self._headers)
        service.metrics.begin()
        try:
            await self._answer(scope, receive, answer, peer, headers)
        finally:
            if not visit.ended:
                visit.status = CLIENT_LEFT if answer.is_over else 500
                with suppress(HttpError):  # the client has left; the log has it
                    service.finished(visit)
            service.metrics.end(visit)
            service.access_log.write(visit)

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        answer: _Answer,
        peer: str,
        headers: Mapping[bytes, bytes],
    ) -> None:
        """Answer a request; errors become answers, unless a part of another one was sent."""
        try:
            await self._admitted(scope, receive, answer, peer, headers)
        except HttpError as error:
            if answer.has_begun:
                raise
            if error.status == 401 and scope["path"] == STATUS:
                error.headers["WWW-Authenticate"] = _ASK
            with suppress(ClientDisconnect):
                await error.response()(scope, receive, answer)
        except (ClientDisconnect, asyncio.CancelledError) as error:
            answer.is_over = True
            if isinstance(error, asyncio.CancelledError):
                raise
        # The boundary of the service: whatever fails within ends in an answer that shows nothing
        # of it, and in the log with its traceback.
        except Exception:
            if answer.is_over:  # Starlette makes another error of it where an answer had begun
                return
            _LOG.exception("a request of %s failed", scope["path"])
            if answer.has_begun:
                raise
            failure = HttpError(500, "The service failed. Its log says why.")
            with suppress(ClientDisconnect):
                await failure.response()(scope, receive, answer)

    async def _admitted(
        self,
        scope: Scope,
        receive: Receive,
        answer: _Answer,
        peer: str,
        headers: Mapping[bytes, bytes],
    ) -> None:
        service, path, visit = self._service, scope["path"], answer.visit
        if is_open(path):
            await self._inner(scope, receive, answer)
            return
        if self._near is not None and not self._near.trusts(peer):
            raise HttpError(403, f"This service is reached by {service.settings.public_url} alone.")
        if path in LOG_IN_PATHS:
            await self._inner(scope, receive, answer)
            return
        headers = with_credentials(scope["method"], headers, service.settings.public_url)
        caller = service.access.caller(headers, peer)
        if caller is None:
            raise service.unknown_caller(path)
        visit.caller = caller.name
        scope["caller"] = caller
        with service.limits.request(caller) as visit.account:
            if is_content(path):
                await send_content(service, scope, answer)
            else:
                await self._inner(scope, receive, answer)


def _peer_of(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "?"


def _headers_of(scope: Scope) -> Mapping[bytes, bytes]:
    """Return the headers; one that is given twice is joined by commas (RFC 9110, section 5.3).

    So nobody can add a second identity or token to the first: the two together are neither.
    """
    given = scope["headers"]
    found: dict[bytes, bytes] = dict(given)
    if len(found) != len(given):
        found = {}
        for name, value in given:
            found[name] = b"%b, %b" % (found[name], value) if name in found else value
    return found


class _Answer:
    """`send` of a request: adds headers, counts bytes, writes the audit line before the end.

    The status line waits for the first piece of the body: if the audit log cannot be written, the
    answer is another one, and no byte of data has been sent.
    """

    def __init__(
        self, scope: Scope, send: Send, visit: Visit, service: Service, headers: _Headers
    ) -> None:
        self.visit = visit
        self.has_begun = False
        self.is_over = False  # nothing more can be sent: the client left, or was refused
        self._send = send
        self._service = service
        self._headers = headers
        self._start: Message | None = None
        self._is_head = scope["method"] == "HEAD"
        self._transport: asyncio.Transport | None = scope.get("transport")

    async def __call__(self, message: Message) -> None:
        """Send a message. Raises `ClientDisconnect` once the client has left."""
        if message["type"] == "http.response.start":
            self._start, self.visit.status = message, message["status"]
        elif message["type"] == "http.response.body":
            await self._body(message)
        else:
            await self._send(message)

    async def _body(self, message: Message) -> None:
        if self._transport is not None and self._transport.is_closing():
            self.is_over = True
            await asyncio.sleep(0)  # the server is notified next; before, it would log an error
            raise ClientDisconnect
        if not self._is_head:
            self.visit.sent += len(message.get("body", b""))
        try:
            self._record(message.get("more_body", False))
        except HttpError as error:
            if self.has_begun:
                raise
            self.is_over = True
            await self._refuse(error)
            raise ClientDisconnect from error  # nothing more is to be sent
        await self._begin()
        await self._send(message)

    def _record(self, more: bool) -> None:
        if not more:
            self.visit.ended = True
            self._service.finished(self.visit)
        elif not self.has_begun:
            self._service.audit.begin(self.visit)
        else:
            self.visit.count()

    async def _begin(self) -> None:
        if self._start is not None:
            start, self._start = self._start, None
            self.has_begun = True
            _add_headers(start, self._headers)
            await self._send(start)

    async def _refuse(self, error: HttpError) -> None:
        """Send another answer instead."""
        refusal = error.response()
        self._start = {
            "type": "http.response.start",
            "status": error.status,
            "headers": refusal.raw_headers,
        }
        body = bytes(refusal.body)
        self.visit.status, self.visit.sent, self.visit.ended = error.status, len(body), True
        await self._begin()
        await self._send({"type": "http.response.body", "body": body})


def _add_headers(message: Message, headers: _Headers) -> None:
    given = list(message["headers"])
    given += headers
    if not any(name == b"content-security-policy" for name, _ in given):
        given.append((b"content-security-policy", _POLICY))
    message["headers"] = given


def visit_of(request: Request) -> Visit:
    """Return the visit of a request, for handlers to say what it was for."""
    visit: Visit = request.scope["visit"]
    return visit
