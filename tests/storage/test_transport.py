"""libcurl on the way to a server: redirects, silence, TLS, forks, Ctrl-C."""

from __future__ import annotations

import datetime
import ipaddress
import multiprocessing
import os
import re
import signal
import ssl
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lundprobe_zarr.errors import DatasetError, UsageError
from lundprobe_zarr.storage import transport
from lundprobe_zarr.storage.location import Location, Range
from lundprobe_zarr.storage.transport import (
    Answer,
    IncompleteReadError,
    Line,
    RangeRequest,
    UnreachableServerError,
    fetch,
)

DATA = bytes(range(256)) * 4
Behave = Callable[["Handler"], bool]


class Handler(BaseHTTPRequestHandler):
    """Gives ranges of `DATA`, unless `behave` answers itself and returns True."""

    protocol_version = "HTTP/1.1"
    behave: Behave
    seen: list[tuple[str, dict[str, str]]]
    clients: set[tuple[str, int]]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.seen.append((self.path, dict(self.headers)))
        self.clients.add(self.client_address)
        if self.behave():
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert found is not None
        start, last = int(found[1]), min(int(found[2]), len(DATA) - 1)
        self.send_response(206)
        self.send_header("Content-Length", str(last + 1 - start))
        self.send_header("Content-Range", f"bytes {start}-{last}/{len(DATA)}")
        self.end_headers()
        self.wfile.write(DATA[start : last + 1])

    def redirect(self, place: str) -> bool:
        self.send_response(302)
        self.send_header("Location", place)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return True


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up."""


@contextmanager
def served(
    behave: Behave = lambda handler: False, context: ssl.SSLContext | None = None
) -> Iterator[tuple[str, type[Handler]]]:
    members = {"behave": behave, "seen": [], "clients": set()}
    kind: type[Handler] = type("Behaving", (Handler,), members)
    server = Server(("127.0.0.1", 0), kind)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    scheme = "https" if context else "http"
    try:
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}", kind
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(url: str, silence: float = 5.0, seconds: float = 10.0, **headers: str) -> object:
    (found,) = fetch([RangeRequest(url, 0, 10, headers)], seconds, Line(silence))
    return found


def test_a_redirect_carries_no_header_to_another_server():
    with served() as (other, to), served(lambda h: h.redirect(f"{other}/b?sig=1")) as (url, asked):
        found = get(f"{url}/a", Authorization="Bearer secret", Cookie="a=b")
    assert isinstance(found, Answer)
    assert found.body == DATA[:10]
    assert asked.seen[0][1]["Authorization"] == "Bearer secret"
    assert [path for path, _ in to.seen] == ["/b?sig=1"]
    assert "secret" not in str(to.seen)
    assert "Cookie" not in to.seen[0][1]
    assert to.seen[0][1]["Range"] == "bytes=0-9"


def test_a_redirect_within_a_server_carries_them():
    with served(lambda h: h.path == "/a" and h.redirect("b")) as (url, asked):
        found = get(f"{url}/a", Authorization="Bearer secret")
    assert isinstance(found, Answer)
    assert [h["Authorization"] for _, h in asked.seen] == ["Bearer secret"] * 2


@pytest.mark.parametrize("place", ["/a", "file:///etc/hostname", "ftp://127.0.0.1/a"])
def test_a_redirect_that_leads_nowhere_ends(place):
    with served(lambda h: h.redirect(place)) as (url, asked):
        found = get(f"{url}/a")
    assert isinstance(found, Answer)
    assert found.status == 302
    assert len(asked.seen) <= 11


def hold(handler: Handler) -> bool:
    time.sleep(1.5)
    return False


def test_silence_ends_a_request_and_no_other():
    with served(lambda h: h.path == "/still" and hold(h)) as (url, _):
        asked = [RangeRequest(f"{url}/{name}", 0, 10, {}) for name in ("still", "a", "b")]
        began = time.monotonic()
        still, *others = fetch(asked, 10, Line(0.2))
        assert time.monotonic() - began < 1.4
    assert isinstance(still, TimeoutError)
    assert [o.body for o in others if isinstance(o, Answer)] == [DATA[:10]] * 2


def test_a_deadline_ends_all():
    with served(hold) as (url, _):
        found = fetch([RangeRequest(url, 0, 10, {})] * 3, 0.2, Line(30))
    assert [type(f) for f in found] == [TimeoutError] * 3


def cut(handler: Handler) -> bool:
    handler.send_response(206)
    handler.send_header("Content-Length", "10")
    handler.end_headers()
    handler.wfile.write(b"12345")
    handler.close_connection = True
    return True


def test_an_answer_that_is_cut_short_is_no_answer():
    with served(cut) as (url, _):
        assert isinstance(get(url), IncompleteReadError)


def test_a_server_that_is_not_there():
    with served() as (url, _):
        pass
    assert isinstance(get(url), UnreachableServerError)


def test_more_ranges_than_are_asked_for_at_once_all_come():
    with served() as (url, kind):
        asked = [RangeRequest(url, n, n + 4, {}) for n in range(150)]
        found = fetch(asked, 30, Line(5))
    assert [f.body for f in found if isinstance(f, Answer)] == [DATA[n : n + 4] for n in range(150)]
    assert len(kind.clients) <= 64


def test_reads_one_after_another_share_a_connection():
    with served() as (url, kind):
        for _ in range(5):
            assert isinstance(get(url), Answer)
    assert len(kind.clients) == 1


def test_a_read_whose_idle_connections_another_takes_opens_its_own(monkeypatch):
    class Taken(list[object]):
        """A list that another thread empties once it was seen to hold something."""

        def __bool__(self) -> bool:
            return True

        def __len__(self) -> int:
            return 1

    monkeypatch.setitem(transport._IDLE, Line(5.0), Taken())
    with served() as (url, _):
        assert get(url).body == DATA[:10]  # type: ignore[attr-defined]


def test_descriptors_beyond_those_of_select(monkeypatch):
    monkeypatch.setattr(transport, "_MOST_DESCRIPTORS", 0)
    with served() as (url, _):
        assert isinstance(get(url, silence=6.0), Answer)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 that signs itself, with its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.datetime.now(datetime.UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    built = built.not_valid_before(now - datetime.timedelta(days=1))
    built = built.not_valid_after(now + datetime.timedelta(days=1)).add_extension(names, False)
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = tmp_path_factory.mktemp("certificate") / "both.pem"
    signed = built.sign(key, hashes.SHA256())
    file.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + secret)
    return file


@pytest.fixture
def encrypted(certificate: Path) -> Iterator[tuple[str, type[Handler]]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with served(context=context) as found:
        yield found


def test_certificates_are_those_that_the_environment_names(encrypted, certificate, monkeypatch):
    url, _ = encrypted
    with pytest.raises(DatasetError, match=r"cannot be reached.*certificate"):
        Location(url, {"timeout": 0.9}).read_ranges([Range("a", 0, 10)])
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert Location(url, {"timeout": 4.9}).read_ranges([Range("a", 0, 10)]) == [DATA[:10]]


def _read_in_child(url: str, line: Line) -> None:
    (found,) = fetch([RangeRequest(url, 0, 10, {})], 10, line)
    assert isinstance(found, Answer)


def test_a_forked_child_leaves_its_parents_connections_alone(encrypted, certificate):
    """Encrypted ones too, which whoever closes them ends for both."""
    url, kind = encrypted
    line = Line(8.0, certificates=str(certificate))
    _read_in_child(url, line)
    child = os.fork()
    if not child:
        _read_in_child(url, line)
        os.execv("/bin/true", ["true"])
    assert os.waitpid(child, 0)[1] == 0
    before = set(kind.clients)
    assert len(before) == 2
    _read_in_child(url, line)
    assert kind.clients == before


def test_children_forked_amid_reads_read_too():
    with served() as (url, _):
        line, over = Line(7.0), threading.Event()

        def reads() -> None:
            while not over.is_set():
                _read_in_child(url, line)

        threads = [threading.Thread(target=reads) for _ in range(3)]
        for thread in threads:
            thread.start()
        context = multiprocessing.get_context("fork")
        try:
            for _ in range(3):
                child = context.Process(target=_read_in_child, args=(url, line))
                child.start()
                child.join(20)
                assert child.exitcode == 0
        finally:
            over.set()
            for thread in threads:
                thread.join()


def test_ctrl_c_ends_a_read_at_once_and_the_next_one_is_right():
    with served(lambda h: h.path == "/still" and hold(h)) as (url, _):
        began = time.monotonic()
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            get(f"{url}/still", silence=3.0)
        assert time.monotonic() - began < 1.4
        assert isinstance(get(url, silence=3.0), Answer)


@pytest.mark.parametrize(
    ("options", "name", "sent"),
    [({"headers": {"X-Name": "\u00e9"}}, "a", "\u00e9"), ({"encoded": True}, "\u00e9", None)],
    ids=["header", "name"],
)
def test_text_that_libcurl_does_not_take_is_sent_by_the_web_client(options, name, sent):
    with served() as (url, asked):
        location = Location(url, {**options, "skip_instance_cache": True})
        assert location.read_ranges([Range(name, 0, 10)]) == [DATA[:10]]
    header = asked.seen[-1][1].get("X-Name")
    assert header is sent is None or header.encode("latin-1").decode() == sent


def test_a_place_on_the_web_without_pycurl_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lundprobe_zarr.storage.ranges", None)
    with pytest.raises(UsageError, match=r"pip install '\.\[http\]'"):
        Location("https://example.invalid/x", {"skip_instance_cache": True})


def test_environment_proxies_are_used_where_told_to(monkeypatch):
    """As an HTTP client in Python does: not unless `trust_env` says so."""
    with served() as (proxy, asked):
        monkeypatch.setenv("http_proxy", proxy)
        options = {"client_kwargs": {"trust_env": True}, "skip_instance_cache": True}
        location = Location("http://objects.invalid", options)
        assert location.read_ranges([Range("a", 0, 10)]) == [DATA[:10]]
    assert asked.seen[0][0] == "http://objects.invalid/a"


@pytest.mark.parametrize(
    "options", [{"ssl": False}, {"client_kwargs": {"cookies": {"a": "b"}}}, {"proxy": "http://p"}]
)
def test_options_that_only_fsspec_knows_leave_it_to_fsspec(options):
    location = Location("http://127.0.0.1:9", options)
    assert location._current.ranges is None


def test_an_object_shorter_than_anyone_has_memory_for():
    with served() as (url, _):
        (found,) = fetch([RangeRequest(url, 0, 10**15, {})], 10, Line(5))
    assert isinstance(found, Answer)
    assert found.body == DATA


@pytest.mark.parametrize("part", [1.0, 0.9], ids=["whole", "cut short"])
def test_idle_connections_hold_no_answers(part: float) -> None:
    size = 4 << 20

    def send(handler: Handler) -> bool:
        handler.send_response(206)
        handler.send_header("Content-Length", str(size))
        handler.send_header("Content-Range", f"bytes 0-{size - 1}/{size}")
        handler.end_headers()
        handler.wfile.write(bytes(int(part * size)))
        handler.close_connection = part < 1
        return True

    with served(send) as (url, _):
        tracemalloc.start()
        try:
            found = fetch([RangeRequest(url, 0, size, {})] * 4, 10, Line(5))
            kind = Answer if part == 1 else IncompleteReadError
            assert all(isinstance(one, kind) for one in found)
            assert all(len(one.body) == size for one in found if isinstance(one, Answer))
            del found
            assert tracemalloc.get_traced_memory()[0] < size
        finally:
            tracemalloc.stop()
