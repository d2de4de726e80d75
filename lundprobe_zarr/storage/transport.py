"""Byte ranges of objects over HTTP by libcurl: many at once, in the calling thread.

libcurl needs a third of the processor time per range that an event loop in Python needs. There is
no background thread: each read takes a set of connections, waits for its answers, and returns the
set. So there are as many sets as reads that ever ran at the same time. A forked child has none.
"""

from __future__ import annotations

import os
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from typing import Any
from urllib.parse import urljoin, urlsplit

import pycurl

from lundprobe_zarr.storage.forks import keep, on_fork

#: Most concurrent requests of one read; others wait.
_AT_ONCE = 64
#: Most redirects followed, as in HTTP clients of Python.
_REDIRECTS = 10
_MOVED = (301, 302, 303, 307, 308)
#: Bytes that libcurl passes per call: larger pieces, fewer calls.
_PIECE = 128 * 1024
#: Most bytes of an answer to make room for before any arrives: metadata may name any size.
_MOST_ROOM = 64 * 1024**2
#: Most seconds between checks for silent servers, and the pause when there is no socket to wait
#: for, as during a DNS lookup.
_LOOK, _NAP = 0.25, 0.001
#: `select` supports no descriptors from here on. Near it a read polls, which takes more processor
#: time.
_MOST_DESCRIPTORS = 1024 - 2 * _AT_ONCE
#: libcurl's codes of invalid or incomplete answers: 1 and 8 no HTTP, 16 and 92 no HTTP/2, 18 too
#: short, 61 an unknown encoding.
_SPOILT = (1, 8, 16, 18, 61, 92)
_AGENT = "lundprobe-zarr"
Headers = Mapping[str, str]


class UnreachableServerError(ConnectionError):
    """A server that cannot be reached, or that closed the connection; libcurl gives the detail."""


class IncompleteReadError(OSError):
    """An answer that is not HTTP, or that is incomplete; libcurl gives the detail."""


class StatusError(OSError):
    """An HTTP error: its `status` and `headers`."""

    def __init__(self, status: int, headers: Headers) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.headers = headers


@dataclass(frozen=True)
class Line:
    """How servers are reached.

    Attributes
    ----------
    silence : float
        Seconds that a server may send nothing.
    proxy : str
        URL of the proxy; empty for none.
    certificates : str, optional
        File of the certificates that are trusted; by default those that Python trusts.
    """

    silence: float
    proxy: str = ""
    certificates: str | None = None


@dataclass(frozen=True)
class RangeRequest:
    """A request: URL, headers to send, and the bytes `start` to `stop` - 1."""

    url: str
    start: int
    stop: int
    headers: Headers

    @property
    def bytes(self) -> str:
        """The range as HTTP names it, e.g. `bytes=0-99`."""
        return f"bytes={self.start}-{self.stop - 1}"


@dataclass(frozen=True)
class Answer:
    """An answer: status, headers by name in the form `Content-Range`, body, and URL."""

    status: int
    headers: Headers
    body: bytes
    url: str


def fetch(requests: Sequence[RangeRequest], seconds: float, line: Line) -> list[Answer | OSError]:
    """Return the answer to every request, or its error, within `seconds`.

    Errors are `UnreachableServerError`, `IncompleteReadError` and `TimeoutError`; an
    answer may have any status. Redirects are followed; another server gets no headers.
    """
    idle = _IDLE.setdefault(line, [])
    try:
        connections = idle.pop()
    except IndexError:  # a check before would not do: another thread may take the last one
        connections = _Connections(line)
    found = connections.fetch(requests, seconds)
    idle.append(connections)  # after an exception, also Ctrl-C, they are dropped
    return found


class _Transfer:
    """A running request: what has arrived, and when the last byte did."""

    def __init__(self, number: int, request: RangeRequest, redirects: int) -> None:
        self.number, self.request, self.redirects = number, request, redirects
        self.head: list[bytes] = []
        # Room for the whole answer: nothing is joined, or grows, as it arrives.
        self.body = BytesIO(bytes(min(request.stop - request.start, _MOST_ROOM)))
        self.arrived, self.since = 0, time.monotonic()

    def is_silent(self, now: float, silence: float) -> bool:
        """Return whether nothing arrived for longer than `silence` seconds."""
        arrived = len(self.head) + self.body.tell()
        if arrived != self.arrived:
            self.arrived, self.since = arrived, now
        return now - self.since > silence

    def answer(self, status: int) -> Answer:
        """Return the answer, its headers without those of a proxy."""
        headers: dict[str, str] = {}
        for line in self.head:
            if line.startswith(b"HTTP/"):  # of the answer itself: a proxy's came before
                headers.clear()
                continue
            name, _, value = line.decode("latin-1").partition(":")
            headers[_title(name)] = value.strip()
        self.body.truncate()
        return Answer(status, headers, self.body.getvalue(), self.request.url)


@lru_cache(maxsize=256)
def _title(name: str) -> str:
    """Return a header's name in the usual capitals: HTTP/2 has none, some servers have others."""
    return "-".join(part.capitalize() for part in name.strip().split("-"))


class _Connections:
    """Connections of libcurl to any servers, of one thread at a time."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._multi = pycurl.CurlMulti()
        self._idle: list[Any] = []
        self._crowded = False

    def fetch(self, requests: Sequence[RangeRequest], seconds: float) -> list[Answer | OSError]:
        """Send requests at the same time; return an answer or error for each, in their order."""
        self._crowded |= _are_descriptors_many()
        found: list[Answer | OSError] = [TimeoutError(f"not within {seconds:g} s")] * len(requests)
        queue = deque(_Transfer(number, one, 0) for number, one in enumerate(requests))
        running: dict[Any, _Transfer] = {}
        try:
            self._run(queue, running, found, time.monotonic() + seconds)
        finally:
            for curl in running:
                self._multi.remove_handle(curl)  # which closes its connection
        return found

    def _run(
        self,
        queue: deque[_Transfer],
        running: dict[Any, _Transfer],
        found: list[Answer | OSError],
        until: float,
    ) -> None:
        now = looked = time.monotonic()
        look = min(_LOOK, self._line.silence / 4)
        while (queue or running) and now < until:
            while queue and len(running) < _AT_ONCE:
                self._begin(queue.popleft(), running)
            _, count = self._multi.perform()
            now = time.monotonic()
            if count < len(running):
                queue.extend(self._ended(running, found))
            elif now - looked > look:
                looked = now
                self._drop_silent(running, found, now)
            else:
                self._wait(max(0.0, min(look, until - now)))

    def _begin(self, transfer: _Transfer, running: dict[Any, _Transfer]) -> None:
        curl = self._idle.pop() if self._idle else self._made()
        request = transfer.request
        headers = {"accept-encoding": "Accept-Encoding: identity"}
        headers |= {k.lower(): f"{k}: {v}" if v else f"{k};" for k, v in request.headers.items()}
        headers["range"] = f"Range: {request.bytes}"
        curl.setopt(pycurl.URL, request.url)
        curl.setopt(pycurl.HTTPHEADER, list(headers.values()))
        # Not a Python function: an exception raised there by a signal, as of Ctrl-C, would be lost.
        curl.setopt(pycurl.HEADERFUNCTION, transfer.head.append)
        curl.setopt(pycurl.WRITEFUNCTION, transfer.body.write)
        transfer.since = time.monotonic()
        self._multi.add_handle(curl)
        running[curl] = transfer

    def _made(self) -> Any:
        curl = pycurl.Curl()
        options = {
            "NOSIGNAL": 1,
            "BUFFERSIZE": _PIECE,
            "USERAGENT": _AGENT,
            "PROXY": self._line.proxy,  # empty: none, whatever libcurl finds in the environment
            **_trusted(self._line.certificates),
        }
        for option, value in options.items():
            curl.setopt(getattr(pycurl, option), value)
        return curl

    def _ended(
        self, running: dict[Any, _Transfer], found: list[Answer | OSError]
    ) -> list[_Transfer]:
        """Record the answers that are complete; return the requests to make after redirects."""
        moved = []
        left = 1
        while left:
            left, done, failed = self._multi.info_read()
            for curl in done:
                transfer = running[curl]
                answer = transfer.answer(curl.getinfo(pycurl.RESPONSE_CODE))
                further = _redirected(transfer, answer)
                if further:
                    moved.append(further)
                else:
                    found[transfer.number] = answer
            for curl, code, message in failed:
                kind = IncompleteReadError if code in _SPOILT else UnreachableServerError
                found[running[curl].number] = kind(f"libcurl says: {message or code}")
            for curl in (*done, *(one[0] for one in failed)):
                self._multi.remove_handle(curl)
                running.pop(curl).body.close()  # libcurl refers to it until its next transfer
                self._idle.append(curl)
        return moved

    def _drop_silent(
        self,
        running: dict[Any, _Transfer],
        found: list[Answer | OSError],
        now: float,
    ) -> None:
        silence = self._line.silence
        for curl in [c for c, t in running.items() if t.is_silent(now, silence)]:
            self._multi.remove_handle(curl)
            found[running.pop(curl).number] = TimeoutError(f"nothing arrived for {silence:g} s")

    def _wait(self, seconds: float) -> None:
        """Wait for the next bytes, or until libcurl's own timer ends."""
        due = self._multi.timeout()  # milliseconds; -1 for none
        if due == 0:
            return
        if due > 0:
            seconds = min(seconds, due / 1000)
        if self._crowded or self._multi.select(seconds) < 1:
            time.sleep(_NAP)


def _are_descriptors_many() -> bool:
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    return lowest >= _MOST_DESCRIPTORS


def _redirected(transfer: _Transfer, answer: Answer) -> _Transfer | None:
    """Return the request to make after a redirect; None without one."""
    place = answer.headers.get("Location")
    if answer.status not in _MOVED or not place or transfer.redirects >= _REDIRECTS:
        return None
    url = urljoin(transfer.request.url, place)
    if urlsplit(url).scheme not in ("http", "https"):
        return None
    headers = transfer.request.headers if _origin(url) == _origin(transfer.request.url) else {}
    request = replace(transfer.request, url=url, headers=headers)
    return _Transfer(transfer.number, request, transfer.redirects + 1)


def _origin(url: str) -> tuple[str, str]:
    return urlsplit(url)[:2]


def _trusted(file: str | None) -> dict[str, str]:
    """Return libcurl's options for the certificates of a file, or for those that Python trusts."""
    if file:
        return {"CAINFO": file}
    usual = ssl.get_default_verify_paths()  # by SSL_CERT_FILE and SSL_CERT_DIR, if they are set
    places = {"CAINFO": usual.cafile, "CAPATH": usual.capath}
    return {option: place for option, place in places.items() if place}


#: Idle sets of connections, the most recently used last.
_IDLE: dict[Line, list[_Connections]] = {}


def _forked() -> None:
    # Closing the parent's connections would end its TLS sessions.
    keep(dict(_IDLE))
    _IDLE.clear()


on_fork(in_child=_forked)
