"""Reading from afar: requests, bytes and waiting, at a server that answers after 50 ms.

The server is a process of its own on loopback, serves files and byte ranges over HTTP, lists
nothing, counts every request and sleeps before each answer. So waiting shows as multiples of that
latency; bandwidth does not show at all, the bytes do.

The first patch lies about the target's centre, the second 70 voxels on along y and x: a full-size
one touches 2 × 2 columns of inner chunks there and 3 × 3 here, so it takes twice the bytes.

    python -m benchmarks.remote --dataset /tmp/lundprobe-bench/standard
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import write_results
from lundprobe_zarr import open_cohort
from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.reader import StoreReader
from tests.anywhere.servers import file_server

LATENCY = 0.05
SHAPE = (32, 192, 192)
MASKS = ("CTVT_427", "PTVT_427", "Rectum", "Bladder")
VOLUMES = [
    ("mri/image", {"modality": "T2w"}),
    *(("mri/clinical/mask", {"structure": s}) for s in MASKS),
]


def main() -> None:
    """Measure and write benchmarks/results/remote.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = Path(__file__).parent / "work"
    parser.add_argument("--dataset", type=Path, default=work / "standard")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    with served(options.dataset) as server:
        figures = measure(server, options.repeats)
    print(write_results("remote", figures))
    for name, value in figures.items():
        print(f"{name}: {value}")


@dataclass(frozen=True)
class Server:
    """A server in another process: where it is, and how to ask what it has counted."""

    url: str
    pipe: Connection

    def count(self) -> tuple[int, int]:
        """Requests and bytes sent since the last time this was asked."""
        self.pipe.send("count")
        requests, sent = self.pipe.recv()
        return requests, sent


@contextmanager
def served(
    dataset: Path, latency: float = LATENCY, cores: Collection[int] = ()
) -> Iterator[Server]:
    """Serve a dataset from another process that waits `latency` seconds before each answer.

    It runs on `cores`, if any are given.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(dataset, there, latency, cores))
    process.start()
    try:
        yield Server(here.recv(), here)
    finally:
        here.send("end")
        process.join()


def serve(dataset: Path, pipe: Connection, latency: float, cores: Collection[int]) -> None:
    """Serve until told to end."""
    if cores:
        os.sched_setaffinity(0, cores)
    with file_server(dataset) as (url, traffic):
        traffic.latency = latency
        pipe.send(url)
        while pipe.recv() != "end":
            pipe.send((len(traffic.requests), traffic.sent))
            traffic.requests.clear()


@contextmanager
def held_back(port: int, latency: float, cores: Collection[int] = ()) -> Iterator[int]:
    """A port that leads to another of this machine, with requests held back by `latency` s."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=hold_back, args=(port, there, latency, cores))
    process.start()
    try:
        yield here.recv()
    finally:
        process.terminate()
        process.join()


def hold_back(port: int, pipe: Connection, latency: float, cores: Collection[int]) -> None:
    """Pass bytes on until killed: those to the server `latency` seconds late."""
    if cores:
        os.sched_setaffinity(0, cores)

    async def passed_on(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wait: float
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 20):
                if wait:  # one request a connection at a time: nothing queues behind
                    await asyncio.sleep(wait)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, on = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        await asyncio.gather(passed_on(reader, on, latency), passed_on(back, writer, 0.0))

    async def listen() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 20)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(listen())


def measure(server: Server, repeats: int) -> dict[str, Any]:
    """All figures; every repeat starts without connections and without anything read."""
    steps: dict[str, list[dict[str, float]]] = {}
    cohort = fresh(server)
    patient_id = str(cohort.patients["patient_id"].iloc[-1])
    boxes = patches(StoreReader.open(cohort.location, patient_id))
    for _ in range(repeats):
        for name, figures in one_round(server, patient_id, boxes):
            steps.setdefault(name, []).append(figures)
    asked = sum(
        v.nbytes for v in StoreReader.open(cohort.location, patient_id).read(VOLUMES, boxes[0])
    )
    return {
        "latency_ms": 1000 * LATENCY,
        "patch": f"{'×'.join(map(str, SHAPE))} of T2w and {len(MASKS)} masks",
        "boxes_zyx": [[[s.start, s.stop] for s in box] for box in boxes],
        "voxel_bytes_asked_for": asked,
        "repeats": repeats,
        **{name: summary(found, asked) for name, found in steps.items()},
    }


def fresh(server: Server) -> Cohort:
    """The cohort over a client of its own: no connection is shared with any before."""
    return open_cohort(server.url, {"skip_instance_cache": True})


def patches(reader: StoreReader) -> list[tuple[slice, slice, slice]]:
    """Two boxes (z, y, x) around the target that share some chunks, as training draws them."""
    array = reader.array("mri/clinical/mask")
    (mask,) = reader.read([("mri/clinical/mask", {"structure": MASKS[0]})], (slice(None),) * 3)
    centre = [int(c) for c in np.argwhere(mask).mean(axis=0)]
    boxes = []
    for shift in (0, 70):
        starts = [
            min(max(0, c + shift * (n > 100) - s // 2), n - s)
            for c, s, n in zip(centre, SHAPE, array.volume_shape, strict=True)
        ]
        z, y, x = (slice(a, a + s) for a, s in zip(starts, SHAPE, strict=True))
        boxes.append((z, y, x))
    return boxes


def one_round(
    server: Server, patient_id: str, boxes: list[tuple[slice, slice, slice]]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Every step once, each with what it took."""
    cohort, taken = timed(server, lambda: fresh(server))
    yield "open_cohort", taken
    tree, taken = timed(server, lambda: cohort[patient_id].tree)
    yield "open_patient", taken
    location = Location(server.url, {"skip_instance_cache": True})
    location.size("lundprobe.json")  # the network is up; nothing of the patient is known
    reader, opened = timed(server, lambda: StoreReader.open(location, patient_id))
    _, taken = timed(server, lambda: reader.read(VOLUMES, boxes[0]))
    yield "first_patch_untouched_patient", {k: taken[k] + opened[k] for k in taken}
    yield "first_patch_open_patient", taken
    _, taken = timed(server, lambda: reader.read(VOLUMES, boxes[1]))
    yield "second_patch", taken
    image = tree["mri/image"].isel(modality=0)
    z, y, x = boxes[0]
    _, taken = timed(server, lambda: tree["mri/image"].isel(modality=0, z=z, y=y, x=x).values)
    yield "tree_patch_of_T2w_alone", taken
    _, taken = timed(server, lambda: image.values)
    yield "tree_whole_T2w", taken


def timed(server: Server, action: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What an action gives, and its seconds, requests and bytes."""
    server.count()
    started = time.perf_counter()
    result = action()
    seconds = time.perf_counter() - started
    requests, sent = server.count()
    return result, {"seconds": seconds, "requests": requests, "bytes": sent}


def summary(found: list[dict[str, float]], asked: int) -> dict[str, Any]:
    """One step's figures over all repeats."""
    multiples = [f["seconds"] / LATENCY for f in found]
    sent = statistics.median(f["bytes"] for f in found)
    return {
        "requests": int(statistics.median(f["requests"] for f in found)),
        "bytes": int(sent),
        "bytes_to_patch_voxel_bytes": round(sent / asked, 3),
        "multiples_of_latency_median": round(statistics.median(multiples), 2),
        "multiples_of_latency_best": round(min(multiples), 2),
    }


if __name__ == "__main__":
    main()
