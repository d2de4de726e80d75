"""Servers and clients in network namespaces, a core each, and the lines between them.

The two namespaces are joined by a pair of virtual devices. In the server's run nginx, over HTTP and
as an S3 server that checks no signature, and rclone's S3 server, which checks every one. A line is
`line.c`, compiled here, on the server's core: a process in front of a server that delays, shapes
and resets, since the kernel may have no `tc netem`. It must be run by root, on two cores at least.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

SERVER, CLIENT = "lundprobe-server", "lundprobe-client"
HOST, NGINX, RCLONE, LINES = "10.201.77.1", 8080, 8090, 8100
BUCKET, MANY = "lund-probe", "many"
KEYS = {"key": "lund-probe", "secret": "not-a-secret"}
BLOB = 16 << 20
_CONFIGURATION = """
daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/errors.log;
events {{ worker_connections 1024; }}
http {{
  log_format short '$uri $status $bytes_sent';
  access_log {folder}/requests.log short buffer=64k flush=200ms;
  sendfile on; tcp_nodelay on; keepalive_requests 1000000; keepalive_timeout 300;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{
    listen {host}:{port}; root {folder}/root;
    # A folder is nothing in a bucket; clients take a refusal for one of the credentials.
    error_page 403 =404 @none; location @none {{ return 404; }}
  }}
}}
"""


class Line(NamedTuple):
    """Seconds that a request is late, bytes a second (0: no limit), share of requests reset."""

    latency: float = 0.0
    rate: float = 0.0
    resets: float = 0.0


class Traffic(NamedTuple):
    """What nginx answered: requests, bytes with headers."""

    requests: int
    bytes: int


@dataclass
class Network:
    """The servers; `ports` are theirs, by name: `nginx`, `rclone` where there is one."""

    folder: Path
    program: Path
    ports: dict[str, int]

    @contextmanager
    def line(self, line: Line) -> Iterator[dict[str, int]]:
        """The ports behind a line, those of the servers themselves where it has no properties."""
        if line == Line():
            yield self.ports
            return
        with ExitStack() as stack:
            found = {}
            for number, (name, port) in enumerate(self.ports.items()):
                found[name] = LINES + number
                given = [HOST, str(found[name]), str(port), *map(str, line)]
                stack.enter_context(_server([str(self.program), *given], found[name]))
            yield found

    def traffic(self, since: str, until: str) -> Traffic:
        """What nginx answered between two marks that a client set, see `mark`."""
        for _ in range(100):
            lines = (self.folder / "requests.log").read_text().splitlines()
            places = {one.split()[0]: number for number, one in enumerate(lines)}
            if f"/mark/{until}" in places:
                break
            time.sleep(0.1)  # nginx writes its log a little later
        between = lines[places[f"/mark/{since}"] + 1 : places[f"/mark/{until}"]]
        answered = [one.split() for one in between if not one.startswith("/mark/")]
        return Traffic(len(answered), sum(int(fields[2]) for fields in answered))


def mark(name: str) -> None:
    """Leave a mark of a name used once in nginx's log, from a process in the client's namespace."""
    with socket.create_connection((HOST, NGINX)) as connection:
        connection.sendall(f"GET /mark/{name} HTTP/1.0\r\n\r\n".encode())
        while connection.recv(1 << 16):
            pass


def places(ports: dict[str, int], local: str = "", folder: str = BUCKET) -> dict[str, Any]:
    """Root and storage options of a dataset by the name of each place that serves it."""
    found: dict[str, Any] = {"local": (local, {})} if local else {}
    web = f"http://{HOST}:{ports['nginx']}"
    found["http"] = (f"{web}/{folder}", {})
    found["s3_unsigned"] = (f"s3://{folder}", KEYS | {"endpoint_url": web})
    if "rclone" in ports:
        found["s3"] = (
            f"s3://{folder}",
            KEYS | {"endpoint_url": f"http://{HOST}:{ports['rclone']}"},
        )
    return found


def client() -> list[str]:
    """What a command begins with to run in the client's namespace, on the second core."""
    return ["ip", "netns", "exec", CLIENT, "taskset", "-c", str(_cores()[1])]


@contextmanager
def network(
    dataset: Path, many: Path | None = None, rclone: str | None = None
) -> Iterator[Network]:
    """Both namespaces, nginx, and rclone's S3 server if the program is given."""
    if os.geteuid() or len(_cores()) < 2:
        raise SystemExit("namespaces need root, and a core each for server and client")
    # The namespaces go when the block ends, whoever ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        _join(stack)
        folder = Path(name)
        root = folder / "root"
        (root / "ranges").mkdir(parents=True)
        (root / BUCKET).symlink_to(dataset.resolve())
        if many:
            (root / MANY).symlink_to(many.resolve())
        (root / "ranges" / "blob").write_bytes(Random(0).randbytes(BLOB))
        text = _CONFIGURATION.format(folder=folder, host=HOST, port=NGINX)
        (folder / "nginx.conf").write_text(text)
        command = ["nginx", "-c", str(folder / "nginx.conf"), "-p", name]
        stack.enter_context(_server(command, NGINX))
        ports = {"nginx": NGINX}
        if rclone:
            stack.enter_context(_server(_rclone(rclone, root), RCLONE))
            ports["rclone"] = RCLONE
        yield Network(folder, compiled(folder), ports)


def compiled(folder: Path) -> Path:
    """The program of a line."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise SystemExit("no C compiler; expected `cc`, e.g. of Debian's gcc")
    source = Path(__file__).with_name("line.c")
    subprocess.run([compiler, "-O2", "-o", str(folder / "line"), str(source)], check=True)
    return folder / "line"


def _rclone(program: str, root: Path) -> list[str]:
    command = [program, "serve", "s3", str(root), "--copy-links", "--no-modtime", "--read-only"]
    address = ["--addr", f"{HOST}:{RCLONE}", "--auth-key", ",".join(KEYS.values())]
    # It would read 16 MB ahead of every range, of which nothing is asked for.
    options = ["--buffer-size", "0", "--config", os.devnull, "--log-level", "ERROR"]
    return [*command, *address, *options]


def _join(stack: ExitStack) -> None:
    """Make both namespaces and the pair of devices between them."""
    for space in (SERVER, CLIENT):
        subprocess.run(["ip", "netns", "add", space], check=True)
        stack.callback(subprocess.run, ["ip", "netns", "del", space], check=False)
    pair = [SERVER, "type", "veth", "peer", "name", "lpclient", "netns", CLIENT]
    _ip("link", "add", "lpserver", "netns", *pair)
    ends = {SERVER: ("lpserver", HOST), CLIENT: ("lpclient", HOST[:-1] + "2")}
    for space, (device, address) in ends.items():
        _ip("-n", space, "address", "add", f"{address}/24", "dev", device)
        _ip("-n", space, "link", "set", device, "up")
        _ip("-n", space, "link", "set", "lo", "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _cores() -> Sequence[int]:
    return sorted(os.sched_getaffinity(0))


@contextmanager
def _server(command: list[str], port: int) -> Iterator[None]:
    """Run a server in its namespace on the first core, until the block ends."""
    inside = ["ip", "netns", "exec", SERVER, "taskset", "-c", str(_cores()[0])]
    asks = [*inside, sys.executable, "-c", _ASK.format(host=HOST, port=port)]
    with subprocess.Popen([*inside, *command]) as process:
        try:
            if subprocess.run(asks, check=False).returncode or process.poll() is not None:
                raise SystemExit(f"{command[0]} does not listen on port {port}")
            yield
        finally:
            process.terminate()


#: Waits until a server listens.
_ASK = """
import socket, sys, time
for _ in range(100):
    try:
        socket.create_connection(("{host}", {port}), 1).close()
        sys.exit(0)
    except OSError:
        time.sleep(0.1)
sys.exit(1)
"""
