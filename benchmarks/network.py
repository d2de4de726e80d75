"""What a network of its own costs the reader: rate, processor and memory from HTTP and S3, in turn.

Server and client have a network namespace each, joined by a pair of virtual devices, and a core
each. HTTP is nginx; S3 is rclone, a compiled server that checks every signature, and `s3_unsigned`
is nginx again, which checks none. Slow lines are `lines/line.c`, on the server's core; of each it
is measured first what bare libcurl gets through it.

- `ranges_cpu_ms`: processor time of the client a range, 16 at a time over connections that are
  kept, by each way to ask: a bare loop of libcurl, ours, fsspec's clients, obstore.
- `lines`: patches of 32×192×192 of T2w, alone and with three masks, by a stream that reads 16 at a
  time, against the same from the disk on one core too. Every round runs all places, each in a
  process of its own, and begins with another one; ratios are medians of the rounds. All places
  must give the same voxels. Bytes and requests are those of nginx's log.
- `first_patch`: of a patient of whom nothing was read, T2w and four masks, 20 ms away; in
  latencies. The first patient's also opens connections, each a latency more: `cold`.
- `lazily`: an epoch of a patch a patient of many tiny patients: requests until the cohort is open,
  until the first patch, and until the end.
- `asked`: the figures that were asked for, and what was found.

It must be run by root, on at least two cores. `--many` is a dataset of many patients, for example
467 of `lundprobe-zarr phantom --size tiny`.

    python -m benchmarks.network --dataset /tmp/bench/standard --many /tmp/bench/many
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import count, pairwise
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.lines.spaces import (
    BLOB,
    HOST,
    KEYS,
    MANY,
    NGINX,
    Line,
    Network,
    client,
    mark,
    network,
    places,
)
from benchmarks.peers.environments import environment
from benchmarks.peers.reader import MASKS, forget_peak, resident
from benchmarks.peers.rounds import rotated
from benchmarks.record import write_results

SIZE = (32, 192, 192)
SIZES = (115_000, 347_000)
AT_ONCE = 16
CONTENTS: dict[str, tuple[str, ...]] = {"T2w": (), "T2w_and_masks": MASKS}
FIRST_MASKS = ("CTVT_427", "PTVT_427", "Rectum", "Bladder")
_PACKAGES = ("pycurl", "aiohttp", "fsspec", "s3fs", "obstore")
_numbers = count()


@dataclass(frozen=True)
class Trial:
    """A line, what is read over it and how often; `patches` and `rounds` None: as many as given."""

    line: Line
    places: tuple[str, ...] = ("local", "http", "s3", "s3_unsigned")
    contents: tuple[str, ...] = tuple(CONTENTS)
    rounds: int | None = None
    patches: int | None = None


_SHORT = ("http", "s3")
TRIALS = {
    "near": Trial(Line()),
    "20_ms": Trial(Line(0.02)),
    "20_ms_1_Gbit": Trial(Line(0.02, 125e6), _SHORT, ("T2w_and_masks",), 2),
    "20_ms_1_percent_resets": Trial(
        Line(0.02, 0.0, 0.01), ("local", "http", "s3"), ("T2w_and_masks",), 3
    ),
    "80_ms_50_Mbit": Trial(Line(0.08, 6.25e6), _SHORT, ("T2w_and_masks",), 1, 20),
}


def main() -> None:
    """Measure and write benchmarks/results/network.json, or be one of the processes of that."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = Path(__file__).parent / "work"
    parser.add_argument("--dataset", type=Path, default=work / "standard")
    parser.add_argument("--many", type=Path, default=None)
    parser.add_argument("--environments", type=Path, default=work / "environments")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--patches", type=int, default=64)
    parser.add_argument("--lines", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--given", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](*options.given)))
        return
    rclone = str(environment("servers", options.environments.resolve(), sys.executable) / "rclone")
    figures: dict[str, Any] = {
        "load_average_before": [round(load, 1) for load in os.getloadavg()],
        "packages": {name: _version(name) for name in _PACKAGES} | _servers(rclone),
        "threads": AT_ONCE,
    }
    with network(options.dataset, options.many, rclone) as net:
        measure(options, net, figures)
    figures["load_average_after"] = [round(load, 1) for load in os.getloadavg()]
    print(write_results("network", figures))
    print(json.dumps(figures, indent=2))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _servers(rclone: str) -> dict[str, str]:
    """Versions of the servers."""
    nginx = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
    said = subprocess.run([rclone, "version"], capture_output=True, text=True, check=True).stdout
    return {"nginx": nginx.split("/")[-1].strip(), "rclone": said.split()[1]}


def measure(options: argparse.Namespace, net: Network, figures: dict[str, Any]) -> None:
    """Everything, over each line."""
    _say("ranges")
    figures["ranges_cpu_ms"] = in_client("ranges", options.rounds)
    figures["lines"] = {}
    for name in options.lines:
        _say(name)
        with net.line(TRIALS[name].line) as ports:
            figures["lines"][name] = over(options, net, name, ports)
    with net.line(TRIALS["20_ms"].line) as ports:
        _say("first patch")
        figures["first_patch"] = first_patches(options, net, ports)
        if options.many:
            _say("lazily")
            figures["lazily"] = lazy_epoch(net, ports)
    figures["asked"] = asked(figures)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def in_client(part: str, *given: Any) -> Any:
    """What a part gives that runs in the client's namespace, on the second core."""
    module = [sys.executable, "-m", "benchmarks.network", "--part", part]
    command = [*client(), *module, "--given", json.dumps(given)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{part} ended:\n{ran.stderr[-2000:]}")
    return json.loads(ran.stdout)


def over(
    options: argparse.Namespace, net: Network, name: str, ports: dict[str, int]
) -> dict[str, Any]:
    """Patches over a line, in rounds, and what the line carries."""
    trial = TRIALS[name]
    figures: dict[str, Any] = {
        "line": trial.line._asdict(),
        "libcurl_mb_a_second": {
            server: in_client("floor", server, port) for server, port in ports.items()
        },
    }
    there = places(ports, str(options.dataset.resolve()))
    patches = trial.patches or options.patches
    for content in trial.contents:
        found: dict[str, list[dict[str, float]]] = {place: [] for place in trial.places}
        for number in range(trial.rounds or options.rounds):
            for place in rotated(trial.places, number):
                name_of_mark = f"epoch-{next(_numbers)}"
                given = (*there[place], CONTENTS[content], patches, name_of_mark)
                one = in_client("epoch", *given)
                if place in ("http", "s3_unsigned"):
                    traffic = net.traffic(f"{name_of_mark}-timed", f"{name_of_mark}-end")
                    one["requests_a_patch"] = traffic.requests / one["patches"]
                    one["mb_a_patch"] = traffic.bytes / one["patches"] / 1e6
                found[place].append(one)
        same = {one["voxels"] for rounds in found.values() for one in rounds}
        if len(same) > 1:
            raise SystemExit(f"{content}: places give different voxels")
        figures[content] = compared(found, trial.line.rate)
    return figures


def compared(found: dict[str, list[dict[str, float]]], rate: float) -> dict[str, Any]:
    """Medians of each place, of its ratios to the disk in a round, and its part of a line."""
    figures: dict[str, Any] = {}
    for name, rounds in found.items():
        kinds = [kind for kind in rounds[0] if kind != "voxels"]
        figures[name] = {
            kind: round(statistics.median(one[kind] for one in rounds), 2) for kind in kinds
        }
        for kind in ("cpu_ms", "per_second") if "local" in found else ():
            pairs = zip(rounds, found["local"], strict=True)
            ratios = [one[kind] / local[kind] for one, local in pairs]
            figures[name][f"{kind}_to_local"] = round(statistics.median(ratios), 3)
        if rate and name != "local":  # the same ranges from all servers, and nginx has counted
            sent = 1e6 * statistics.median(one["mb_a_patch"] for one in found["http"])
            parts = [one["per_second"] * sent / rate for one in rounds]
            figures[name]["part_of_line"] = round(statistics.median(parts), 3)
    return figures


def first_patches(
    options: argparse.Namespace, net: Network, ports: dict[str, int]
) -> dict[str, Any]:
    """Latencies until the first patch of an untouched patient, by each way to ask for it."""
    there = places(ports, str(options.dataset.resolve()))
    latency = TRIALS["20_ms"].line.latency
    figures: dict[str, Any] = {}
    for way in FIRST:
        found: dict[str, list[dict[str, float]]] = {}
        for number in range(options.rounds):
            for place in rotated(("local", "http", "s3"), number):
                name = f"first-{next(_numbers)}"
                for kind, seconds in in_client("first", *there[place], way, name).items():
                    one = {"ms": 1000 * seconds}
                    if place == "http":
                        requests = net.traffic(f"{name}-{kind}", f"{name}-{kind}-end").requests
                        one["requests"] = requests
                    if place != "local":
                        one["latencies"] = seconds / latency
                    found.setdefault(f"{place}_{kind}", []).append(one)
        figures[way] = {
            name: {kind: round(statistics.median(o[kind] for o in many), 2) for kind in many[0]}
            for name, many in found.items()
        }
    return figures


def lazy_epoch(net: Network, ports: dict[str, int]) -> dict[str, Any]:
    """An epoch of many patients: what was asked for until when."""
    name = f"lazily-{next(_numbers)}"
    url, keys = places(ports, folder=MANY)["http"]
    figures: dict[str, Any] = in_client("lazily", url, keys, name)
    steps = ("begin", "open", "first", "end")
    for since, until in pairwise(steps):
        traffic = net.traffic(f"{name}-{since}", f"{name}-{until}")
        figures[f"requests_until_{until}"] = traffic.requests
    return figures


def asked(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures asked for beside those found, worst of the contents."""
    lines, found = figures["lines"], {}
    for place in ("http", "s3"):
        if "20_ms" in lines:
            both = [lines["20_ms"][content][place] for content in CONTENTS]
            rates = [one["per_second_to_local"] for one in both]
            found[f"{place}_rate_to_local_at_20_ms"] = (">=", 0.8, min(rates))
            found[f"{place}_cpu_to_local_at_20_ms"] = (
                "<=", 1.25, max(one["cpu_ms_to_local"] for one in both),
            )  # fmt: skip
            found[f"{place}_mb_over_start"] = ("<=", 300, max(one["memory_mb"] for one in both))
        if "80_ms_50_Mbit" in lines:
            part = lines["80_ms_50_Mbit"]["T2w_and_masks"][place]["part_of_line"]
            found[f"{place}_part_of_50_Mbit"] = (">=", 0.9, part)
        for way, first in figures["first_patch"].items():
            waited = first[f"{place}_warm"]["latencies"]
            found[f"{place}_first_patch_latencies_{way}"] = ("<=", 3, waited)
    if lazily := figures.get("lazily"):
        before = lazily["requests_until_open"] + lazily["requests_until_first"]
        found["requests_before_the_first_patch_to_patients"] = (
            "<=", 0.5, round(before / lazily["patients"], 3),
        )  # fmt: skip
    return {
        name: {
            "asked": f"{sign} {limit}",
            "found": value,
            "kept": value >= limit if sign == ">=" else value <= limit,
        }
        for name, (sign, limit, value) in found.items()
    }


Read = Callable[[Sequence[tuple[int, int]]], list[bytes]]


def ranges(rounds: int) -> dict[str, Any]:
    """Milliseconds of this process a range of `SIZES`, by every way in turn."""
    ways, figures = range_ways(), {}
    for size in SIZES:
        spans = spans_of(size)
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
    return figures


def spans_of(size: int) -> list[tuple[int, int]]:
    """Ranges of so many bytes of the object that is served for them."""
    random = Random(1)
    starts = [random.randrange(BLOB - size) for _ in range(AT_ONCE)]
    return [(start, start + size) for start in starts]


def floor(server: str, port: int) -> float:
    """Megabytes a second that bare libcurl gets from a server, over connections that are kept."""
    import pycurl

    url = f"http://{HOST}:{port}/ranges/blob"
    if server == "rclone":
        from s3fs import S3FileSystem

        files = S3FileSystem(
            **KEYS, endpoint_url=f"http://{HOST}:{port}",
            config_kwargs={"signature_version": "s3v4"},
        )  # fmt: skip
        url = files.sign("ranges/blob", expiration=600)
    multi, handles = pycurl.CurlMulti(), [pycurl.Curl() for _ in range(AT_ONCE)]
    spans = spans_of(SIZES[1])
    bare(multi, handles, url, spans[:AT_ONCE])
    begun, read = time.perf_counter(), 0
    while time.perf_counter() - begun < 2:
        read += sum(len(data) for data in bare(multi, handles, url, spans))
    return round(read / (time.perf_counter() - begun) / 1e6, 1)


def range_ways() -> dict[str, Read]:
    """Every way to read ranges of one object."""
    import pycurl
    from s3fs import S3FileSystem

    from lundprobe_zarr.storage.clients import read_by_client
    from lundprobe_zarr.storage.location import Location, Range
    from lundprobe_zarr.storage.web import WebFiles

    url, keys = f"http://{HOST}:{NGINX}/ranges", KEYS

    def ours(location: Location) -> Read:
        return lambda spans: location.read_ranges([Range("blob", a, b) for a, b in spans])

    def of(client: Any, name: str) -> Read:
        return lambda spans: read_by_client(
            client, [name] * len(spans), [a for a, _ in spans], [b for _, b in spans], 60
        )

    multi, handles = pycurl.CurlMulti(), [pycurl.Curl() for _ in range(AT_ONCE)]
    s3 = keys | {"endpoint_url": f"http://{HOST}:{NGINX}"}
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
            "ranges", endpoint=s3["endpoint_url"], access_key_id=KEYS["key"],
            secret_access_key=KEYS["secret"], region="us-east-1", client_options=plain,
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


def epoch(
    url: str, options: dict[str, Any], masks: Sequence[str], patches: int, name: str
) -> dict[str, Any]:
    """What a patch takes in two epochs; the one before opens connections."""
    import lundprobe_zarr.stream.stream  # noqa: F401 - what the first patch would import
    from lundprobe_zarr import PatchStream, open_cohort
    from lundprobe_zarr.patches import BalancedSampling

    cohort = open_cohort(url, options)
    sampling = BalancedSampling(MASKS, per_patient=-(-patches // len(cohort)))
    remote = "://" in url
    threads = AT_ONCE if remote else None
    before = forget_peak()
    stream = PatchStream(cohort, SIZE, structures=masks, threads=threads, sampling=sampling)
    voxels = 0
    for sample in stream:
        voxels = zlib.crc32(sample["image"], voxels)
        voxels = zlib.crc32(sample["mask"], voxels) if masks else voxels
    if remote:
        mark(f"{name}-timed")
    read, begun, used = 0, time.perf_counter(), time.process_time()
    for number in (1, 2):
        stream.seek(number)
        read += sum(1 for _ in stream)
    seconds, spent = time.perf_counter() - begun, time.process_time() - used
    if remote:
        mark(f"{name}-end")
    return {
        "cpu_ms": 1000 * spent / read,
        "per_second": read / seconds,
        "memory_mb": (resident("VmHWM") - before) / 1e6,
        "patches": read,
        "voxels": voxels,
    }


FIRST = ("reader", "dask", "values")


def first(url: str, options: dict[str, Any], way: str, name: str) -> dict[str, float]:
    """Seconds until a patch of the first patient, `cold`, and of the second, `warm`."""
    import dask

    from lundprobe_zarr import open_cohort
    from lundprobe_zarr.stores.reader import StoreReader

    cohort, found = open_cohort(url, options), {}
    for kind, patient_id in zip(("cold", "warm"), cohort.ids, strict=False):
        tree = cohort[patient_id].tree
        shape = tree["mri/image"].shape[1:]
        z, y, x = (slice((n - s) // 2, (n + s) // 2) for n, s in zip(shape, SIZE, strict=True))
        image = tree["mri/image"].isel(modality=0, z=z, y=y, x=x)
        masks = tree["mri/clinical/mask"].isel(z=z, y=y, x=x)
        arrays = [image, *(masks.sel(structure=s) for s in FIRST_MASKS)]
        reader = StoreReader.open(cohort.location, patient_id) if way == "reader" else None
        if "://" in url:
            mark(f"{name}-{kind}")
        begun = time.perf_counter()
        if reader:
            volumes = [("mri/clinical/mask", {"structure": s}) for s in FIRST_MASKS]
            reader.read([("mri/image", {"modality": "T2w"}), *volumes], (z, y, x))
        elif way == "dask":
            dask.compute(*arrays)
        else:
            [array.values for array in arrays]
        found[kind] = time.perf_counter() - begun
        if "://" in url:
            mark(f"{name}-{kind}-end")
    return found


def lazily(url: str, options: dict[str, Any], name: str) -> dict[str, Any]:
    """An epoch of a patch a patient, with marks between its steps."""
    import lundprobe_zarr.stream.stream  # noqa: F401 - what the first patch would import
    from lundprobe_zarr import PatchStream, open_cohort
    from lundprobe_zarr.patches import BalancedSampling

    before = forget_peak()
    mark(f"{name}-begin")
    begun = time.perf_counter()
    cohort = open_cohort(url, options)
    opened = time.perf_counter()
    mark(f"{name}-open")
    sampling = BalancedSampling(("Rectum",), per_patient=1)
    stream = PatchStream(
        cohort, (8, 32, 32), structures=("Rectum",), threads=AT_ONCE, sampling=sampling
    )
    samples = iter(stream)
    next(samples)
    first_read = time.perf_counter()
    mark(f"{name}-first")
    read = 1 + sum(1 for _ in samples)
    ended = time.perf_counter()
    mark(f"{name}-end")
    return {
        "patients": len(cohort),
        "patches": read,
        "open_s": round(opened - begun, 3),
        "first_patch_s": round(first_read - opened, 3),
        "epoch_s": round(ended - opened, 2),
        "memory_mb": round((resident("VmHWM") - before) / 1e6),
    }


PARTS: dict[str, Callable[..., Any]] = {
    "ranges": ranges,
    "floor": floor,
    "epoch": epoch,
    "first": first,
    "lazily": lazily,
}


if __name__ == "__main__":
    main()
