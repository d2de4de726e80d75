"""uvicorn's HTTP protocol with bounds on a request's head: its size, and the time it may take."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Most bytes of a request's line and headers; the longest path and token need less than 2 kB.
_MOST_HEAD_BYTES = 32_768
#: Seconds for a request's line and headers to arrive.
_HEAD_SECONDS = 15.0
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n"
    b"\r\n"
)


class BoundedProtocol(HttpToolsProtocol):
    """A connection that is closed when a request's head is too long or too slow.

    uvicorn bounds neither: a client could fill the memory with headers, or hold connections open
    by a byte a minute.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time for the first request's head."""
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head, before it is parsed."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._late is None:
                self._expect()
            # A body may follow in the same data: what counts is a head that does not end.
            if self._head_bytes > _MOST_HEAD_BYTES and b"\r\n\r\n" not in data[:_MOST_HEAD_BYTES]:
                self.transport.write(_TOO_LARGE)
                self.transport.close()
                return
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """End the time for the head."""
        self._in_head = False
        self._arrived()
        super().on_headers_complete()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope["transport"] = self.transport  # tells the gate when the client has left

    def on_message_complete(self) -> None:
        """Count from zero from the next request's head on."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def _expect(self) -> None:
        self._late = self.loop.call_later(_HEAD_SECONDS, self._give_up)

    def _arrived(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        self.transport.close()
