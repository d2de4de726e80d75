"""What a web server may answer to a range that was asked for."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lundprobe_zarr.storage.location import Location, Range

pytest.importorskip("aiohttp")
from lundprobe_zarr.storage.web import WebFiles

_DATA = bytes(range(256)) * 4


@contextmanager
def served(status: int, says_which: bool, ranges: bool) -> Iterator[Location]:
    """A server of one object that answers so, whatever is asked for."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers["Range"])
            assert found is not None
            start = int(found[1] or len(_DATA) - int(found[2]))
            last = min(int(found[2] or len(_DATA)), len(_DATA) - 1) if found[1] else len(_DATA) - 1
            body = _DATA[start : last + 1] if ranges else _DATA
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if says_which:
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(_DATA)}")
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Location(f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "says_which", "ranges"),
    [
        pytest.param(206, True, True, id="as it should be"),
        pytest.param(200, False, False, id="the whole, as it takes no ranges"),
        pytest.param(200, True, True, id="the range, with the status of the whole"),
    ],
)
def test_the_bytes_asked_for_are_given(status: int, says_which: bool, ranges: bool) -> None:
    heard = pytest.warns(UserWarning, match="ignores byte ranges")
    ignored = nullcontext() if ranges else heard
    with served(status, says_which, ranges) as location, ignored:
        found = location.read_ranges([Range("a", 100, 200), Range("a", 1000, 2000)])
    assert found == [_DATA[100:200], _DATA[1000:]]


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (None, 100, _DATA[:100]),
        (900, None, _DATA[900:]),
        (-100, None, _DATA[-100:]),
        (100, 200, _DATA[100:200]),
    ],
)
@pytest.mark.parametrize("ranges", [True, False])
def test_zarr_gets_the_bytes_that_it_asks_for(
    start: int | None, stop: int | None, expected: bytes, ranges: bool
) -> None:
    with served(206 if ranges else 200, ranges, ranges) as location:
        client = WebFiles(skip_instance_cache=True)
        assert client.cat_file(f"{location.url}/a", start=start, end=stop) == expected


def test_a_server_without_ranges_is_warned_of_once() -> None:
    with served(200, False, False) as location:
        with pytest.warns(UserWarning, match=f"{location.url}: ignores byte ranges.*nginx"):
            location.read_ranges([Range("a", 100, 200), Range("b", 100, 200)])
        # A warning would be an error here.
        Location(location.url).read_ranges([Range("a", 100, 200)])
