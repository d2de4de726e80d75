"""What a network of its own costs the reader: processor time and rate from HTTP and S3, in turn.

Server and client have a network namespace each, joined by a pair of virtual devices, and a core
each. The server is nginx: over HTTP, and as an S3 server that gives objects and checks no
signature, which is the server's work and not the client's. A line that is slow is a proxy on the
server's core: it holds every request back and sends answers no faster than the line.

- `ranges`: processor time of the client a range, 16 at a time over connections that are kept, by
  each way to ask: a bare loop of libcurl, ours, fsspec's clients, obstore where it is installed.
- `patches`: patches of 32×192×192 of T2w, alone and with three masks, by a stream that reads
  16 at a time, against the same from the disk. Every round runs all of them, each in a process of
  its own, and begins with another one; the ratios are medians of the rounds.

It must be run by root, on at least two cores.

    python -m benchmarks.network --dataset /tmp/bench/standard
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.record import write_results

SERVER, CLIENT = "lundprobe-server", "lundprobe-client"
HOST, PORT, SLOW = "10.201.77.1", 8080, 8081
BUCKET = "lund-probe"
MASKS = ("CTVT_427", "Rectum", "Bladder")
SIZES = (115_000, 347_000)
AT_ONCE = 16
#: Of lines: seconds that a request is held back, bytes a second.
LINES = {"near": (0.0, 0.0), "20_ms_1_Gbit": (0.02, 125e6), "80_ms_50_Mbit": (0.08, 6.25e6)}
_PACKAGES = ("pycurl", "aiohttp", "fsspec", "s3fs", "obstore")
_NGINX = """
daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/errors.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000; keepalive_timeout 300;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{ listen {host}:{port}; root {folder}/root; }}
}}
"""


def main() -> None:
    """Measure and write benchmarks/results/network.json, or be one of the processes of that."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = Path(__file__).parent / "work"
    parser.add_argument("--dataset", type=Path, default=work / "standard")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--patches", type=int, default=96)
    parser.add_argument("--lines", nargs="+", choices=LINES, default=list(LINES)[:2])
    parser.add_argument("--part", choices=["shape", "ranges", "epoch"], help=argparse.SUPPRESS)
    parser.add_argument("--given", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        {"shape": shape, "ranges": ranges, "epoch": epoch}[options.part](*options.given)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which leaves no namespace behind
    figures: dict[str, Any] = {
        "load_average_before": [round(load, 1) for load in os.getloadavg()],
        "packages": {name: _version(name) for name in _PACKAGES},
        "threads": AT_ONCE,
    }
    with network(options.dataset.resolve()) as start:
        figures["ranges_cpu_ms"] = in_client("ranges", options.rounds)
        for name in options.lines:
            latency, rate = LINES[name]
            with start(latency, rate) as port:
                figures[name] = patches(options, port)
    figures["load_average_after"] = [round(load, 1) for load in os.getloadavg()]
    print(write_results("network", figures))
    print(json.dumps(figures, indent=2))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@contextmanager
def network(dataset: Path) -> Iterator[Callable[[float, float], Any]]:
    """Two namespaces and nginx; yields what starts a line of a latency and a rate to it."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        for space in (SERVER, CLIENT):
            stack.callback(subprocess.run, ["ip", "netns", "del", space], check=False)
            subprocess.run(["ip", "netns", "add", space], check=True)
        ends = {SERVER: ("lpserver", HOST), CLIENT: ("lpclient", HOST[:-1] + "2")}
        pair = [SERVER, "type", "veth", "peer", "name", "lpclient", "netns", CLIENT]
        _ip("link", "add", "lpserver", "netns", *pair)
        for space, (device, address) in ends.items():
            _ip("-n", space, "address", "add", f"{address}/24", "dev", device)
            _ip("-n", space, "link", "set", device, "up")
            _ip("-n", space, "link", "set", "lo", "up")
        folder = Path(name)
        (folder / "root" / "ranges").mkdir(parents=True)
        (folder / "root" / BUCKET).symlink_to(dataset)
        (folder / "root" / "ranges" / "blob").write_bytes(Random(0).randbytes(16 << 20))
        text = _NGINX.format(folder=folder, host=HOST, port=PORT)
        (folder / "nginx.conf").write_text(text)
        stack.enter_context(_server(["nginx", "-c", str(folder / "nginx.conf"), "-p", name]))

        @contextmanager
        def line(latency: float, rate: float) -> Iterator[int]:
            if not latency:
                yield PORT
                return
            given = json.dumps([latency, rate])
            module = [sys.executable, "-m", "benchmarks.network", "--part", "shape"]
            with _server([*module, "--given", given]):
                yield SLOW

        yield line


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def _server(command: list[str]) -> Iterator[None]:
    """Run a server in its namespace on the first core, until the block ends."""
    inside = ["ip", "netns", "exec", SERVER, "taskset", "-c", str(_cores()[0])]
    with subprocess.Popen([*inside, *command]) as process:
        try:
            time.sleep(2)  # until it listens
            if process.poll() is not None:
                raise SystemExit(f"{command[0]} ended at once")
            yield
        finally:
            process.terminate()


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def in_client(part: str, *given: Any) -> Any:
    """What a part prints that runs in the client's namespace, on the second core."""
    inside = ["ip", "netns", "exec", CLIENT, "taskset", "-c", str(_cores()[1])]
    module = [sys.executable, "-m", "benchmarks.network", "--part", part]
    command = [*inside, *module, "--given", json.dumps(given)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def shape(latency: float, rate: float) -> None:
    """Pass bytes on until killed: requests `latency` s late, answers at `rate` bytes a second."""
    free = 0.0

    async def requests(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                await asyncio.sleep(latency)
                writer.write(data)
        writer.close()

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal free
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                now = time.monotonic()
                free = max(free, now) + len(data) / rate  # one line for all connections
                await asyncio.sleep(free - now)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, on = await asyncio.open_connection(HOST, PORT, limit=1 << 18)
        await asyncio.gather(requests(reader, on), answers(back, writer))

    async def listen() -> None:
        server = await asyncio.start_server(connected, HOST, SLOW, limit=1 << 18)
        await server.serve_forever()

    asyncio.run(listen())


Read = Callable[[Sequence[tuple[int, int]]], list[bytes]]


def ranges(rounds: int) -> None:
    """Print milliseconds of this process a range of `SIZES`, by every way in turn."""
    ways, random, figures = range_ways(), Random(1), {}
    for size in SIZES:
        starts = [random.randrange((16 << 20) - size) for _ in range(AT_ONCE)]
        spans = [(start, start + size) for start in starts]
        expected = ways["ours_http"](spans)
        for name, read in ways.items():
            if [bytes(data) for data in read(spans)] != expected:
                raise SystemExit(f"{name} reads other bytes")
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(4 * rounds):
            for name in rotated(list(ways), number):
                begun = time.process_time()
                ways[name](spans)
                spent[name].append(1000 * (time.process_time() - begun) / AT_ONCE)
        figures[str(size)] = {n: round(statistics.median(v), 3) for n, v in spent.items()}
    print(json.dumps(figures))


def rotated(names: list[str], number: int) -> list[str]:
    """Give names in turn, each round beginning with another one."""
    first = number % len(names)
    return names[first:] + names[:first]


def range_ways() -> dict[str, Read]:
    """Every way to read ranges of one object."""
    import pycurl
    from s3fs import S3FileSystem

    from lundprobe_zarr.storage.clients import read_by_client
    from lundprobe_zarr.storage.location import Location, Range
    from lundprobe_zarr.storage.web import WebFiles

    url, keys = f"http://{HOST}:{PORT}/ranges", {"key": "a", "secret": "b"}

    def ours(location: Location) -> Read:
        return lambda spans: location.read_ranges([Range("blob", a, b) for a, b in spans])

    def of(client: Any, name: str) -> Read:
        return lambda spans: read_by_client(
            client, [name] * len(spans), [a for a, _ in spans], [b for _, b in spans], 60
        )

    multi, handles = pycurl.CurlMulti(), [pycurl.Curl() for _ in range(AT_ONCE)]
    s3 = keys | {"endpoint_url": f"http://{HOST}:{PORT}"}
    found: dict[str, Read] = {
        "libcurl_bare": lambda spans: bare(multi, handles, f"{url}/blob", spans),
        "ours_http": ours(Location(url)),
        "ours_s3": ours(Location("s3://ranges", s3)),
        "fsspec_http": of(WebFiles(skip_instance_cache=True), f"{url}/blob"),
        "s3fs": of(S3FileSystem(**s3), "ranges/blob"),
    }
    if find_spec("obstore"):
        import obstore
        from obstore.store import HTTPStore, S3Store

        plain = {"allow_http": True}
        bucket = S3Store(
            "ranges", endpoint=s3["endpoint_url"], access_key_id="a", secret_access_key="b",
            region="us-east-1", client_options=plain,
        )  # fmt: skip
        stores = {"obstore_http": HTTPStore.from_url(url, client_options=plain)}
        for name, store in (stores | {"obstore_s3": bucket}).items():
            found[name] = lambda spans, store=store: obstore.get_ranges(  # type: ignore[misc]
                store, "blob", starts=[a for a, _ in spans], ends=[b for _, b in spans], coalesce=0
            )
    return found


def bare(multi: Any, handles: Sequence[Any], url: str, spans: Sequence[Any]) -> list[bytes]:
    """Nothing but libcurl: no check of what came, no limit of time."""
    found: list[list[bytes]] = []
    for curl, (start, stop) in zip(handles, spans, strict=True):
        found.append([])
        curl.setopt(curl.URL, url)
        curl.setopt(curl.RANGE, f"{start}-{stop - 1}")
        curl.setopt(curl.BUFFERSIZE, 1 << 17)
        curl.setopt(curl.WRITEFUNCTION, found[-1].append)
        multi.add_handle(curl)
    left = 1
    while left:
        _, left = multi.perform()
        if left:
            multi.select(1.0)
    multi.info_read()
    for curl in handles:
        multi.remove_handle(curl)
    return [b"".join(pieces) for pieces in found]


def patches(options: argparse.Namespace, port: int) -> dict[str, Any]:
    """Processor time and rate of patches from the disk, HTTP and S3, in rounds."""
    url = f"http://{HOST}:{port}"
    keys = {"key": "a", "secret": "b", "endpoint_url": url}
    places = {
        "local": (str(options.dataset.resolve()), {}),
        "http": (f"{url}/{BUCKET}", {}),
        "s3": (f"s3://{BUCKET}", keys),
    }
    figures: dict[str, Any] = {}
    for content, masks in (("T2w", ()), ("T2w_and_masks", MASKS)):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in places}
        for number in range(options.rounds):
            for name in rotated(list(places), number):
                found[name].append(in_client("epoch", *places[name], masks, options.patches))
        figures[content] = compared(found)
    return figures


def compared(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of each place, and of its ratios to the disk in the same round."""
    figures: dict[str, Any] = {}
    for name, rounds in found.items():
        figures[name] = {
            kind: round(statistics.median(one[kind] for one in rounds), 2) for kind in rounds[0]
        }
        for kind in ("cpu_ms", "per_second"):
            pairs = zip(rounds, found["local"], strict=True)
            ratios = [one[kind] / local[kind] for one, local in pairs]
            figures[name][f"{kind}_to_local"] = round(statistics.median(ratios), 3)
    return figures


def epoch(url: str, options: dict[str, Any], masks: Sequence[str], count: int) -> None:
    """Print what a patch takes in two epochs; the one before opens connections."""
    from lundprobe_zarr import PatchStream, open_cohort
    from lundprobe_zarr.patches import BalancedSampling

    cohort = open_cohort(url, options)
    sampling = BalancedSampling(MASKS, per_patient=-(-count // len(cohort)))
    threads = AT_ONCE if options or url.startswith("http") else None
    stream = PatchStream(
        cohort, (32, 192, 192), structures=masks, threads=threads, sampling=sampling
    )
    begun, used = time.perf_counter(), time.process_time()
    next(iter(stream))
    first = time.perf_counter() - begun
    read = 0
    for number in range(3):
        if number == 1:
            read, begun, used = 0, time.perf_counter(), time.process_time()
        stream.seek(number)
        read += sum(1 for _ in stream)
    seconds, spent = time.perf_counter() - begun, time.process_time() - used
    figures = {"cpu_ms": 1000 * spent / read, "per_second": read / seconds, "first_s": first}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
