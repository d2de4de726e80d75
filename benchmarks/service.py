"""The service beside nginx: bytes, clients, first rows, training, SQL, start.

Server and client are pinned to a core each; nginx serves the same files without token or log. The
load is made by wrk. `nginx`, `wrk` and `taskset` are needed; elsewhere a figure is left out and
says so.

    python -m benchmarks.service --dataset /tmp/bench/full --many /tmp/bench/467 --minutes 10
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.request import Request, urlopen

import httpx

import lundprobe_zarr as lp
from benchmarks.record import write_results
from benchmarks.remote import held_back
from lundprobe_zarr.patches import BalancedSampling
from lundprobe_zarr.service.access.callers import new_token, token_sha256
from lundprobe_zarr.service.settings import Settings

SERVER_CORE, CLIENT_CORE = 0, 1
RANGE_BYTES = 115_000
NAME = "bench/dataset"
LATENCY = 0.02
PATCH = (32, 192, 192)
RUNAWAY = (
    "SELECT sum(hash(a.z_mm + b.z_mm + c.z_mm + d.z_mm)) "
    "FROM slices a, slices b, slices c, slices d"
)
#: Seconds between an answer to SQL and the next question of the same client.
PAUSE = 1.0
PROGRAM = """
import sys
from lundprobe_zarr.service.run import listen, run
from lundprobe_zarr.service.settings import Settings
settings = Settings.load(sys.argv[1])
host, port = "127.0.0.1", int(settings.public_url.rpartition(":")[2])
run(settings, listen(host, port), int(sys.argv[2]))
"""
LUA = """
local size, span = %d, %d
function request()
  local start = math.random(0, math.max(0, size - span - 1))
  wrk.headers["Range"] = "bytes=" .. start .. "-" .. (start + span - 1)
  return wrk.format("GET", nil)
end
"""
NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 2048; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; keepalive_requests 10000000;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream service {{ server 127.0.0.1:{service}; keepalive 64; keepalive_requests 10000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ root {dataset}; }}
    location /datasets/ {{
      proxy_pass http://service; proxy_http_version 1.1; proxy_set_header Connection "";
    }}
    location /_files/bench/dataset/ {{
      internal; alias {dataset}/; etag off; add_header ETag $upstream_http_etag;
      add_header X-Repo-Commit $upstream_http_x_repo_commit;
    }}
  }}
}}
"""


def main() -> None:
    """Measure and write benchmarks/results/service.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = Path(__file__).parent / "work"
    parser.add_argument("--dataset", type=Path, default=work / "standard", help="full size")
    parser.add_argument("--many", type=Path, help="467 patients, of any size")
    parser.add_argument("--seconds", type=int, default=5, help="of one run of wrk")
    parser.add_argument("--minutes", type=float, default=10, help="of 200 clients held")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", help="one group of figures")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for name, measure in GROUPS.items():
        if options.only in (None, name):
            figures[name] = measure(options)
            print(name, json.dumps(figures[name], indent=1), flush=True)
    print(write_results("service", figures, f"_{options.only}" if options.only else ""))


@dataclass(frozen=True)
class Running:
    """A server: its URL, token and process."""

    url: str
    token: str
    process: subprocess.Popen[bytes]
    start_seconds: float

    @property
    def files(self) -> str:
        """URL of the files of the dataset."""
        return f"{self.url}/datasets/{NAME}/resolve/main"

    @property
    def headers(self) -> dict[str, str]:
        """Headers with the token."""
        return {"Authorization": f"Bearer {self.token}"}


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pinned(core: int | None) -> list[str]:
    """Return what pins a command to a core."""
    return ["taskset", "-c", str(core)] if core is not None and shutil.which("taskset") else []


@contextmanager
def service(
    dataset: Path, folder: Path, core: int | None = SERVER_CORE, workers: int = 1, **more: Any
) -> Iterator[Running]:
    """Serve a dataset from another process, with token check and audit log."""
    token, port = new_token(), free_port()
    settings = Settings(
        datasets={NAME: str(dataset)},
        state=str(folder / "state"),
        public_url=f"http://127.0.0.1:{port}",
        audit=str(folder / "audit.jsonl"),
        token_sha256=token_sha256(token),
        **more,
    )
    program = [sys.executable, "-c", PROGRAM, settings.dump(), str(workers)]
    started = time.perf_counter()
    process = subprocess.Popen([*pinned(core), *program])
    try:
        answering(f"{settings.public_url}/healthz")
        took = time.perf_counter() - started
        yield Running(settings.public_url, token, process, took)
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def nginx(dataset: Path, folder: Path, service_port: int, core: int = SERVER_CORE) -> Iterator[str]:
    """Serve the same files by nginx, and the service behind it under /datasets/."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, dataset=dataset, port=port, service=service_port))
    process = subprocess.Popen([*pinned(core), "nginx", "-c", str(config)])
    try:
        answering(f"http://127.0.0.1:{port}/lundprobe.json")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def answering(url: str) -> None:
    """Wait until a server answers."""
    until = time.monotonic() + 60
    while True:
        try:
            urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def largest(dataset: Path) -> Path:
    """Return the largest file of a dataset."""
    files = (p for p in (dataset / "patients").rglob("*") if p.is_file())
    return max(files, key=lambda p: p.stat().st_size)


@dataclass(frozen=True)
class Load:
    """What wrk says: requests and MB a second, 99th percentile of the latency, errors."""

    requests: float
    megabytes: float
    p99_ms: float
    errors: int


_FACTORS = {"B": 1e-6, "KB": 1.024e-3, "MB": 1.048576, "GB": 1073.741824}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


def wrk(
    url: str,
    token: str | None,
    seconds: int,
    clients: int,
    script: str = "",
    core: int | None = CLIENT_CORE,
) -> Load:
    """Load a URL with wrk."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        header = ["-H", f"Authorization: Bearer {token}"] if token else []
        command = [
            *pinned(core), "wrk", "-t1", f"-c{clients}", f"-d{seconds}", "--latency",
            "--timeout", "30s", *header, "-s", file.name, url,
        ]  # fmt: skip
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    transfer = re.search(r"Transfer/sec:\s+([\d.]+)(\w+)", said)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s|m)", said)
    if rate is None or transfer is None or p99 is None:
        raise RuntimeError(said)
    wrong = [int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", said)]
    socket_errors = re.search(r"Socket errors: (.*)", said)
    if socket_errors:
        wrong += [int(n) for n in re.findall(r"\d+", socket_errors[1])]
    return Load(
        float(rate[1]),
        float(transfer[1]) * _FACTORS[transfer[2]],
        float(p99[1]) * _MILLISECONDS[p99[2]],
        sum(wrong),
    )


def measure_bytes(options: argparse.Namespace) -> dict[str, Any]:
    """Ranges and whole shards: the service, nginx, and nginx in front of the service, in turn."""
    file = largest(options.dataset)
    path, size = file.relative_to(options.dataset).as_posix(), file.stat().st_size
    ranges = LUA % (size, RANGE_BYTES)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            service(options.dataset, folder) as ours,
            service(options.dataset, folder, accel="/_files") as behind,
            nginx(options.dataset, folder, int(behind.url.rpartition(":")[2])) as peer,
        ):
            places = {
                "nginx": (f"{peer}/{path}", None),
                "service": (f"{ours.files}/{path}", ours.token),
                "nginx in front": (
                    f"{peer}/datasets/{NAME}/resolve/main/{path}",
                    behind.token,
                ),
            }
            errors = 0
            for _ in range(options.repeats):
                for who, (url, token) in places.items():
                    load = wrk(url, token, options.seconds, 8, ranges)
                    found.setdefault(f"{who}: ranges a second", []).append(load.requests)
                    whole = wrk(url, token, options.seconds, 2)
                    found.setdefault(f"{who}: MB a second of whole shards", []).append(
                        whole.megabytes
                    )
                    errors += load.errors + whole.errors
    figures: dict[str, Any] = {k: round(statistics.median(v), 1) for k, v in found.items()}
    for who in ("service", "nginx in front"):
        for what in ("ranges a second", "MB a second of whole shards"):
            pairs = zip(found[f"{who}: {what}"], found[f"nginx: {what}"], strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            figures[f"{who} / nginx: {what}"] = round(ratio, 3)
    return {
        "range_bytes": RANGE_BYTES,
        "shard_bytes": size,
        "clients": "8 for ranges, 2 for whole shards",
        "repeats": options.repeats,
        "errors": errors,
        **figures,
    }


def measure_clients(options: argparse.Namespace) -> dict[str, Any]:
    """200 clients at a time, for minutes: errors, latency, memory."""
    file = largest(options.dataset)
    path, size = file.relative_to(options.dataset).as_posix(), file.stat().st_size
    memory: list[float] = []
    done = threading.Event()
    with tempfile.TemporaryDirectory() as name, service(options.dataset, Path(name)) as ours:

        def watch() -> None:
            while not done.wait(1):
                memory.append(resident(ours.process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        seconds = round(60 * options.minutes)
        load = wrk(f"{ours.files}/{path}", ours.token, seconds, 200, LUA % (size, RANGE_BYTES))
        done.set()
        watcher.join()
        lines = sum(1 for _ in (Path(name) / "audit.jsonl").open("rb"))
    return {
        "clients": 200,
        "minutes": options.minutes,
        "errors": load.errors,
        "requests_a_second": round(load.requests, 1),
        "p99_ms": round(load.p99_ms, 1),
        "resident_mb_first_and_most": [round(memory[0], 1), round(max(memory), 1)],
        "audit_lines": lines,
    }


def resident(process: int) -> float:
    """Return the resident memory of a process, MB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


ROWS = """
import json, sys, time
import datasets
kind, where, token = sys.argv[1:4]
started = time.perf_counter()
if kind == "service":
    rows = datasets.load_dataset(where, "patients", split="base", streaming=True, token=token)
else:
    rows = datasets.load_dataset(
        "parquet", data_files=where + "/metadata/patients/base-00000.parquet",
        split="train", streaming=True,
    )
first = next(iter(rows))
print(json.dumps({"seconds": time.perf_counter() - started, "columns": len(first)}))
"""


def measure_rows(options: argparse.Namespace) -> dict[str, Any]:
    """First row by `load_dataset(streaming=True)`: the service, and a plain static server."""
    found: dict[str, list[float]] = {"service": [], "static": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            service(options.dataset, folder, core=None) as ours,
            nginx(options.dataset, folder, free_port()) as static,
        ):
            environment = {
                **os.environ,
                "HF_ENDPOINT": ours.url,
                "HF_HOME": str(folder / "home"),
                "HF_UPDATE_DOWNLOAD_COUNTS": "0",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_DISABLE_XET": "1",
            }
            counts = []
            for _ in range(options.repeats):
                for kind, where in (("service", NAME), ("static", static)):
                    shutil.rmtree(folder / "home", ignore_errors=True)
                    before = lines_of(folder / "audit.jsonl")
                    said = subprocess.run(
                        [sys.executable, "-c", ROWS, kind, where, ours.token],
                        env=environment, capture_output=True, text=True, check=True,
                    )  # fmt: skip
                    found[kind].append(json.loads(said.stdout.splitlines()[-1])["seconds"])
                    if kind == "service":
                        counts.append(lines_of(folder / "audit.jsonl") - before)
    ratios = [a / b for a, b in zip(found["service"], found["static"], strict=True)]
    return {
        "seconds": {k: round(statistics.median(v), 3) for k, v in found.items()},
        "service / static": round(statistics.median(ratios), 3),
        "requests": max(counts),
        "repeats": options.repeats,
    }


def lines_of(file: Path) -> int:
    """Return the number of lines of a file; 0 without one."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


def measure_stream(options: argparse.Namespace) -> dict[str, Any]:
    """`PatchStream` over the service and over nginx, both 20 ms away, in turn."""
    rates: dict[str, list[float]] = {"service": [], "nginx": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (
            service(options.dataset, folder) as ours,
            nginx(options.dataset, folder, free_port()) as plain,
            held_back(int(ours.url.rpartition(":")[2]), LATENCY, (SERVER_CORE,)) as far,
            held_back(int(plain.rpartition(":")[2]), LATENCY, (SERVER_CORE,)) as plain_far,
        ):
            os.sched_setaffinity(0, {CLIENT_CORE})
            places = {
                "service": (
                    f"http://127.0.0.1:{far}/datasets/{NAME}/resolve/main",
                    {"headers": ours.headers},
                ),
                "nginx": (f"http://127.0.0.1:{plain_far}", {}),
            }
            for _ in range(options.repeats):
                for who, (url, storage_options) in places.items():
                    rates[who].append(patches_a_second(url, storage_options))
    ratios = [a / b for a, b in zip(rates["service"], rates["nginx"], strict=True)]
    return {
        "latency_ms": 1000 * LATENCY,
        "patch": "×".join(map(str, PATCH)) + " of T2w with three masks",
        "patches_a_second": {k: round(statistics.median(v), 2) for k, v in rates.items()},
        "service / nginx": round(statistics.median(ratios), 3),
        "repeats": options.repeats,
    }


def patches_a_second(url: str, storage_options: dict[str, Any], patches: int = 60) -> float:
    """Return the rate of a stream once it runs."""
    cohort = lp.open_cohort(url, storage_options)
    masks = ("CTVT_427", "Rectum", "Bladder")
    sampling = BalancedSampling(masks, per_patient=patches)
    stream = lp.PatchStream(cohort, PATCH, modalities=("T2w",), structures=masks, sampling=sampling)
    started = 0.0
    for number, _ in enumerate(stream):
        if number == 10:
            started = time.perf_counter()
        if number == 10 + patches:
            break
    return patches / (time.perf_counter() - started)


def measure_sql(options: argparse.Namespace) -> dict[str, Any]:
    """20 clients that ask predicates and queries of 467 patients; then beside a runaway query."""
    if options.many is None:
        return {"left out": "--many FOLDER was not given"}
    predicate = "protocol = 'newAcq' AND NOT missing_PenileBulb AND Rectum.volume_cc > {}"
    query = "SELECT structure, avg(volume_cc) FROM clinical WHERE volume_cc > {} GROUP BY structure"
    figures: dict[str, Any] = {"clients": 20, "pause_seconds": PAUSE}
    with (
        tempfile.TemporaryDirectory() as name,
        service(options.many, Path(name), core=None) as ours,
    ):
        ask(ours, "sql", {"sql": query.format(0)})
        ask(ours, "cohort", {"where": predicate.format(0)})
        figures["predicate"] = asked_by_many(ours, "cohort", "where", predicate)
        figures["query"] = asked_by_many(ours, "sql", "sql", query)
        runaway = threading.Thread(target=run_away, args=(ours, figures))
        runaway.start()
        time.sleep(1)
        figures["query beside a runaway one"] = asked_by_many(ours, "sql", "sql", query, 4)
        runaway.join()
    return figures


def ask(ours: Running, what: str, body: dict[str, Any]) -> httpx.Response:
    """Ask the cohort API once."""
    url = f"{ours.url}/api/datasets/{NAME}/{what}"
    return httpx.post(url, json=body, headers=ours.headers, timeout=120).raise_for_status()


def asked_by_many(
    ours: Running, what: str, field: str, text: str, each: int = 10
) -> dict[str, float]:
    """Return median and 95th percentile of 20 clients' waiting, ms; every text is another.

    The clients pause for `PAUSE` on average, each at its own pace, as people do.
    """
    took: list[float] = []

    def one(number: int) -> None:
        pace = Random(number)
        time.sleep(pace.uniform(0, PAUSE))
        with httpx.Client(headers=ours.headers, timeout=120) as client:
            for turn in range(each):
                started = time.perf_counter()
                client.post(
                    f"{ours.url}/api/datasets/{NAME}/{what}",
                    json={field: text.format(number + turn / 100)},
                ).raise_for_status()
                took.append(1000 * (time.perf_counter() - started))
                time.sleep(pace.uniform(0, 2 * PAUSE))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took.sort()
    return {
        "p50_ms": round(statistics.median(took), 1),
        "p95_ms": round(took[int(0.95 * len(took))], 1),
        "requests": len(took),
    }


def run_away(ours: Running, figures: dict[str, Any]) -> None:
    """Ask for a cross join without end, and note when and how it ended."""
    started = time.perf_counter()
    answer = httpx.post(
        f"{ours.url}/api/datasets/{NAME}/sql",
        json={"sql": RUNAWAY},
        headers=ours.headers,
        timeout=300,
    )
    figures["runaway"] = {
        "status": answer.status_code,
        "seconds": round(time.perf_counter() - started, 1),
    }


def measure_start(options: argparse.Namespace) -> dict[str, Any]:
    """Start of the service for 467 patients: the first time, and again."""
    if options.many is None:
        return {"left out": "--many FOLDER was not given"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with service(options.many, folder, core=None) as first:
            url = f"{first.url}/api/datasets/{NAME}"
            request = Request(url, headers=first.headers)
            files = len(json.load(urlopen(request))["siblings"])
        again = []
        for _ in range(options.repeats):
            with service(options.many, folder, core=None) as ours:
                again.append(ours.start_seconds)
    return {
        "files": files,
        "first_seconds": round(first.start_seconds, 2),
        "seconds": round(statistics.median(again), 2),
        "repeats": options.repeats,
    }


GROUPS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "start": measure_start,
    "bytes": measure_bytes,
    "rows": measure_rows,
    "stream": measure_stream,
    "sql": measure_sql,
    "clients": measure_clients,
}

if __name__ == "__main__":
    main()
