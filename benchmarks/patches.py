"""Training patches: latency against other ways to read them, sustained rate, memory, from afar.

All ways read the same boxes of the same patient, 32×192×192 voxels of T2w at full size, alone and
with three masks, from a warm page cache; they take turns. Peers with what settings:

- tensorstore: the same stores, as many copying threads as cores, image and masks requested at
  the same time.
- blosc2: nnU-Net's way: a b2nd of the float32 voxels and one of a label map, Zstd level 8, blocks
  and chunks fitted to the patch and the caches as nnU-Net does it, opened with mmap.
- nibabel: the slice of `.nii.gz` through `dataobj`; MONAI: `LoadImage` and a crop; TorchIO:
  `ScalarImage` and a crop. They decompress the volume for every patch.
- webdataset, litdata: patches cut beforehand, as .npy in a tar and as LitData's chunks of 64 MB,
  read in order. That fixes the patches for good.

`sustained` compares a stream that reads ahead, and tensorstore asked for four patches at a time,
with the decoding alone of the same chunks, out of memory, on as many threads. `remote` reads over
HTTP from a server process on loopback that waits 20 ms before each answer, `bucket` from an S3
server (`--rclone`: the program, of at least 1.65) behind a proxy that holds requests back for as
long. All that is measured runs on `--cores` cores; the servers have those that are left, if there
are any.

    python -m benchmarks.patches --dataset /tmp/bench/standard --source /tmp/bench/source
"""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import remote
from benchmarks.record import write_results
from lundprobe_zarr import PatchStream, open_cohort
from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.patches import BalancedSampling, Content, Plan
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stores.shard import ShardCodec
from lundprobe_zarr.stream.patch import read_patch

SIZE = (32, 192, 192)
MASKS = ("CTVT_427", "Rectum", "Bladder")
LATENCY = 0.02
ROUNDS = 3
PEERS = (
    "tensorstore", "blosc2", "nibabel", "monai", "torchio", "webdataset", "litdata", "torch",
    "s3fs", "aiohttp",
)  # fmt: skip
#: nnU-Net's cache sizes, bytes: a block fits the first level, a chunk the third.
L1, L3, FILL = 32768, 1441792, 0.8
Start = tuple[int, int, int]
Read = Callable[[Start], Any]


def main() -> None:
    """Measure and write benchmarks/results/patches.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = Path(__file__).parent / "work"
    parser.add_argument("--dataset", type=Path, default=work / "standard")
    parser.add_argument("--source", type=Path, default=work / "source")
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--patches", type=int, default=96)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rclone", type=Path, default=None)
    parser.add_argument("--only", choices=["latency", "sustained", "remote"], default=None)
    options = parser.parse_args()
    spare = pin(options.cores)
    cohort = open_cohort(options.dataset)
    figures: dict[str, Any] = {
        "patch": "×".join(map(str, SIZE)),
        "masks": list(MASKS),
        "cores_measured": len(os.sched_getaffinity(0)),
        "cores_of_the_server": len(spare) or "the same",
        "load_average_before": [round(load, 1) for load in os.getloadavg()],
        "peers": {name: _version(name) for name in PEERS},
    }
    with tempfile.TemporaryDirectory() as folder:
        if options.only in (None, "latency"):
            figures["latency"] = latency(cohort, options.source, Path(folder), options.repeats)
        if options.only in (None, "sustained"):
            figures["sustained"] = sustained(options.dataset, options.patches)
        if options.only in (None, "remote"):
            place = options.dataset, Path(folder), options.patches
            with remote.served(options.dataset, LATENCY, spare) as server:
                figures["remote"] = from_afar(*place, Target(server.url, {}, server.count))
            if options.rclone:
                with bucket(options.dataset, Path(folder), options.rclone, spare) as target:
                    figures["bucket"] = from_afar(*place, target)
    print(write_results("patches", figures))
    print(json.dumps(figures, indent=2))


def pin(count: int) -> list[int]:
    """Keep this process and its children to so many cores; gives the others."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:count])
    return cores[count:]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def latency(cohort: Cohort, source: Path, folder: Path, repeats: int) -> dict[str, Any]:
    """Milliseconds of a patch, the same boxes for all, one after another in turn."""
    patient_id = cohort.ids[0]
    reader = StoreReader.open(cohort.location, patient_id)
    starts = boxes(cohort, reader, repeats)
    files = next(source.glob(f"*/{patient_id}/MR_StorT2"))
    figures = {}
    for name, masks in (("T2w", ()), ("T2w_and_masks", MASKS)):
        with ExitStack() as stack:
            found = ways(reader, masks, files, folder, stack)
            figures[name] = compared(found, starts)
    if find_spec("webdataset"):
        figures["precut_webdataset"] = precut(reader, starts, folder)
    if find_spec("litdata"):
        figures["precut_litdata"] = precut_chunks(reader, starts, folder)
    return figures


def boxes(cohort: Cohort, reader: StoreReader, count: int) -> list[Start]:
    """First voxels of patches as training draws them."""
    sampling = BalancedSampling(MASKS, per_patient=count)
    plan = Plan(cohort[[reader.metadata.patient_id]], Content(), SIZE, sampling=sampling)
    return plan.starts(reader.metadata)


def compared(found: dict[str, tuple[Read, int]], starts: list[Start]) -> dict[str, Any]:
    """Median, smallest and largest milliseconds of each way; slow ones read fewer of the boxes.

    Of each box the fastest of some rounds counts, in which all ways take turns: what disturbs the
    machine disturbs one of them at a time.
    """
    expected = {s: np.asarray(found["ours"][0](s)) for s in starts[:2]}
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for number, start in enumerate(starts):
        rounds: dict[str, list[float]] = {n: [] for n, (_, most) in found.items() if number < most}
        for _ in range(ROUNDS):
            for name, times in rounds.items():
                if times and found[name][1] < len(starts):
                    continue  # slow ones once
                begun = time.perf_counter()
                image = found[name][0](start)
                times.append(time.perf_counter() - begun)
                if start in expected:
                    np.testing.assert_array_equal(np.asarray(image), expected[start], err_msg=name)
        for name, times in rounds.items():
            seconds[name].append(min(times))
    ours = statistics.median(seconds["ours"])
    return {
        name: {
            "median_ms": round(1000 * statistics.median(values), 2),
            "min_ms": round(1000 * min(values), 2),
            "max_ms": round(1000 * max(values), 2),
            "reads": len(values),
            "ours_takes": round(ours / statistics.median(values), 4),
        }
        for name, values in seconds.items()
    }


def ways(
    reader: StoreReader, masks: tuple[str, ...], files: Path, folder: Path, stack: ExitStack
) -> dict[str, tuple[Read, int]]:
    """Ways to read a patch, each with how often at most; all give the image (z, y, x)."""
    content = Content(structures=masks)
    found: dict[str, tuple[Read, int]] = {
        "ours": (lambda start: read_patch(reader, content, start, SIZE)["image"][0], 10**9)
    }
    paths = [files / "image.nii.gz", *(files / f"mask_{m}.nii.gz" for m in masks)]
    if find_spec("tensorstore"):
        found["tensorstore"] = (of_tensorstore(reader, masks), 10**9)
    if find_spec("blosc2"):
        found["blosc2_nnunet"] = (of_blosc2(reader, masks, folder), 10**9)
    found["nibabel"] = (of_nibabel(paths), 2)
    if find_spec("monai"):
        found["monai"] = (of_monai(paths), 2)
    if find_spec("torchio"):
        found["torchio"] = (of_torchio(paths), 2)
    return found


def _slices(start: Start) -> tuple[slice, ...]:
    return tuple(slice(a, a + s) for a, s in zip(start, SIZE, strict=True))


def of_tensorstore(reader: StoreReader, masks: tuple[str, ...]) -> Read:
    """Straight from the store's arrays."""
    image = opened_by_tensorstore(reader, "mri/image")
    mask = opened_by_tensorstore(reader, "mri/clinical/mask") if masks else None
    places = [reader.index(reader.array("mri/clinical/mask"), {"structure": m})[0] for m in masks]

    def read(start: Start) -> Any:
        box = _slices(start)
        wanted = [image[(0, *box)].read(), *(mask[(p, *box)].read() for p in places)]
        read_all = [future.result() for future in wanted]
        return read_all[0]

    return read


def opened_by_tensorstore(reader: StoreReader, path: str) -> Any:
    """One array of a store."""
    import tensorstore

    store = reader.location.path(f"patients/{reader.metadata.patient_id}.zarr")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store}/{path}/"}}
    spec["context"] = {"data_copy_concurrency": {"limit": len(os.sched_getaffinity(0))}}
    return tensorstore.open(spec).result()


def of_blosc2(reader: StoreReader, masks: tuple[str, ...], folder: Path) -> Read:
    """nnU-Net's preprocessed files: image, and one label map."""
    import blosc2

    shape = reader.array("mri/image").volume_shape
    whole = read_patch(reader, Content(structures=masks or MASKS), (0, 0, 0), shape)
    labels = np.zeros(shape, np.int8)
    for number, mask in enumerate(whole["mask"], 1):
        labels[mask] = number
    names = []
    for name, volume in (("image", whole["image"].astype(np.float32)), ("labels", labels[None])):
        file = folder / f"{name}.b2nd"
        if not file.exists():
            chunks, blocks = fitted(volume.shape, volume.dtype.itemsize)
            cparams = {"codec": blosc2.Codec.ZSTD, "clevel": 8}
            fit = {"chunks": chunks, "blocks": blocks, "cparams": cparams}
            blosc2.asarray(volume, **fit, urlpath=str(file), mmap_mode="w+")
        names.append(str(file))
    blosc2.set_nthreads(len(os.sched_getaffinity(0)))
    opened = [blosc2.open(n, mode="r", mmap_mode="r") for n in names[: 2 if masks else 1]]

    def read(start: Start) -> Any:
        read_all = [array[(slice(None), *_slices(start))] for array in opened]
        return read_all[0][0]

    return read


def fitted(shape: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunks and blocks (c, z, y, x) for patches of `SIZE`, by nnU-Net's rule."""
    block = [shape[0], *(2 ** int(np.ceil(np.log2(s))) for s in SIZE)]
    while np.prod(block) * itemsize > L1 * FILL:
        axis = int(np.argmax([b / s for b, s in zip(block[1:], SIZE, strict=True)])) + 1
        block[axis] = max(1, block[axis] // 2)
    block = [min(b, n) for b, n in zip(block, shape, strict=True)]
    chunk = list(block)
    while np.prod(chunk) * itemsize < L3 * FILL:
        ratios = [
            c / s if c < n else np.inf for c, s, n in zip(chunk[1:], SIZE, shape[1:], strict=True)
        ]
        axis = int(np.argmin(ratios)) + 1
        if chunk[axis] >= min(shape[axis], 2 * SIZE[axis - 1]):
            break
        chunk[axis] = min(chunk[axis] + block[axis], shape[axis])
    return tuple(chunk), tuple(block)


def of_nibabel(paths: list[Path]) -> Read:
    """Slices of compressed files."""
    import nibabel

    def read(start: Start) -> Any:
        box = _slices(start)[::-1]
        read_all = [np.asarray(nibabel.load(p).dataobj[box]) for p in paths]
        return read_all[0].T

    return read


def of_monai(paths: list[Path]) -> Read:
    """Load and crop."""
    from monai.transforms import LoadImage

    load = LoadImage(image_only=True, dtype=None, ensure_channel_first=False)

    def read(start: Start) -> Any:
        read_all = [load(p)[_slices(start)[::-1]] for p in paths]
        return read_all[0].numpy().T

    return read


def of_torchio(paths: list[Path]) -> Read:
    """Load and crop."""
    import torchio

    def read(start: Start) -> Any:
        box = (slice(None), *_slices(start)[::-1])
        read_all = [torchio.ScalarImage(p).data[box] for p in paths]
        return read_all[0][0].numpy().T

    return read


def precut(reader: StoreReader, starts: list[Start], folder: Path) -> dict[str, Any]:
    """Milliseconds of a patch out of a tar of those cut beforehand."""
    import webdataset

    file = folder / "patches.tar"
    with tarfile.open(file, "w") as tar:
        for number, start in enumerate(starts):
            out = io.BytesIO()
            np.save(out, read_patch(reader, Content(), start, SIZE)["image"])
            info = tarfile.TarInfo(f"{number:06d}.npy")
            info.size = out.tell()
            tar.addfile(info, io.BytesIO(out.getvalue()))
    seconds = []
    for _ in range(5):
        dataset = webdataset.WebDataset(str(file), shardshuffle=False).decode()
        begun = time.perf_counter()
        count = sum(1 for _ in dataset)
        seconds.append((time.perf_counter() - begun) / count)
    return {"median_ms": round(1000 * statistics.median(seconds), 2), "bytes": file.stat().st_size}


def precut_chunks(reader: StoreReader, starts: list[Start], folder: Path) -> dict[str, Any]:
    """Milliseconds of a patch out of LitData's chunks of those cut beforehand."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    home = folder / "litdata"
    home.mkdir()
    writer = BinaryWriter(str(home), chunk_bytes=64 * 10**6)
    for number, start in enumerate(starts):
        writer[number] = {"image": read_patch(reader, Content(), start, SIZE)["image"]}
    writer.done()
    writer.merge()
    seconds = []
    for _ in range(5):
        dataset = StreamingDataset(str(home))
        begun = time.perf_counter()
        count = sum(1 for _ in dataset)
        seconds.append((time.perf_counter() - begun) / count)
    size = sum(f.stat().st_size for f in home.iterdir())
    return {"median_ms": round(1000 * statistics.median(seconds), 2), "bytes": size}


#: A stream in a process of its own: first sample, rate, memory.
_STREAM = """
import json, sys, time
import lundprobe_zarr as lp
from lundprobe_zarr.patches import BalancedSampling
url, masks, each, threads, cache, epochs, options = json.loads(sys.argv[1])
import lundprobe_zarr.stream.stream, lundprobe_zarr.cohort, pyarrow.compute
cohort = lp.open_cohort(url, storage_options=options)
def rss():  # ru_maxrss would begin with the peak of the parent
    lines = open("/proc/self/status").read().splitlines()
    return next(int(s.split()[1]) * 1024 for s in lines if s.startswith("VmHWM"))
before = rss()
begun = time.perf_counter()
stream = lp.PatchStream(cohort, {size}, structures=masks, threads=threads, cache=cache,
                        sampling=BalancedSampling({masks}, per_patient=each))
rates, cpu, first = [], [], None
for epoch in range(epochs):
    stream.seek(0)
    started, used = time.perf_counter(), time.process_time()
    for number, sample in enumerate(stream, 1):
        first = first or time.perf_counter() - begun
    rates.append(number / (time.perf_counter() - started))
    cpu.append(round(1000 * (time.process_time() - used) / number, 2))
print(json.dumps({{"first_sample_s": round(first, 3), "per_second": rates, "cpu_ms_a_patch": cpu,
                  "memory_over_baseline_mb": round((rss() - before) / 1e6)}}))
"""


def streamed(
    url: str, masks: tuple[str, ...], each: int, threads: int | None = None,
    cache: str | None = None, epochs: int = 3, options: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a fresh process finds."""
    program = _STREAM.format(size=SIZE, masks=MASKS)
    given = json.dumps([url, masks, each, threads, cache, epochs, options])
    command = [sys.executable, "-c", program, given]
    ran = subprocess.run(command, capture_output=True, check=True, text=True)
    found: dict[str, Any] = json.loads(ran.stdout)
    found["per_second"] = [round(r, 1) for r in found["per_second"]]
    return found


def sustained(dataset: Path, patches: int) -> dict[str, Any]:
    """Samples per second, read ahead, against decoding alone."""
    cohort = open_cohort(dataset)
    each = -(-patches // len(cohort))
    figures = {}
    for name, masks in (("T2w", ()), ("T2w_and_masks", MASKS)):
        limits = [decode_limit(cohort, masks, min(each, 12))]
        stream = streamed(str(dataset), masks, each)
        limits.append(decode_limit(cohort, masks, min(each, 12)))  # the machine's speed wanders
        limit = statistics.mean(limits)
        figures[name] = stream | {
            "decode_limit_per_second": [round(x, 1) for x in limits],
            "part_of_decode_limit": round(statistics.median(stream["per_second"]) / limit, 3),
        }
    tensorstore = tensorstore_rate(cohort, each)
    if tensorstore:
        figures["T2w"]["tensorstore_per_second"] = tensorstore
    return figures


def decode_limit(cohort: Cohort, masks: tuple[str, ...], each: int) -> float:
    """Patches per second if their chunks only had to be decoded, on all cores."""
    taken: list[tuple[ShardCodec, bytes]] = []
    original = ShardCodec.decode_chunk

    def noted(self: ShardCodec, data: bytes, out: Any = None) -> Any:
        taken.append((self, bytes(data)))
        return original(self, data, out)

    ShardCodec.decode_chunk = noted  # type: ignore[method-assign]
    try:
        sampling = BalancedSampling(MASKS, per_patient=each)
        stream = PatchStream(cohort, SIZE, structures=masks, sampling=sampling)
        count = sum(1 for _ in stream)
    finally:
        ShardCodec.decode_chunk = original  # type: ignore[method-assign]
    scratch = threading.local()

    def decode(chunk: tuple[ShardCodec, bytes]) -> None:
        codec, data = chunk
        kept = vars(scratch).setdefault(codec.dtype, {})
        if codec.chunk not in kept:
            kept[codec.chunk] = np.empty(codec.chunk, codec.dtype)
        original(codec, data, "", kept[codec.chunk])

    seconds = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in range(3):
            begun = time.perf_counter()
            list(pool.map(decode, taken, chunksize=8))
            seconds.append(time.perf_counter() - begun)
    return count / min(seconds)


def tensorstore_rate(cohort: Cohort, each: int) -> float | None:
    """T2w patches per second that tensorstore reads, four asked for at a time."""
    if find_spec("tensorstore") is None:
        return None
    todo: list[Callable[[], Any]] = []
    for patient_id in cohort.ids:
        reader = StoreReader.open(cohort.location, patient_id)
        array = opened_by_tensorstore(reader, "mri/image")
        todo += [array[(0, *_slices(s))].read for s in boxes(cohort, reader, each)]
    rates = []
    for _ in range(3):
        begun, waiting = time.perf_counter(), []
        for read in todo:
            waiting.append(read())
            if len(waiting) > 4:
                waiting.pop(0).result()
        for read in waiting:
            read.result()
        rates.append(len(todo) / (time.perf_counter() - begun))
    return round(statistics.median(rates), 1)


@dataclass(frozen=True)
class Target:
    """A dataset far away: URL, storage options, and how to count requests and bytes, if at all."""

    url: str
    options: dict[str, Any]
    count: Callable[[], tuple[int, int]] | None


def from_afar(dataset: Path, folder: Path, patches: int, target: Target) -> dict[str, Any]:
    """Samples per second from a target, then again from the cache on disk."""
    each = -(-patches // len(open_cohort(dataset)))
    local = streamed(str(dataset), MASKS, each)
    figures: dict[str, Any] = {"latency_ms": 1000 * LATENCY, "local": local}
    best = max(local["per_second"])
    for threads in (4, 8, 16):
        if target.count:
            target.count()
        found = streamed(target.url, MASKS, each, threads, epochs=2, options=target.options)
        found["part_of_local"] = round(max(found["per_second"]) / best, 3)
        if target.count:
            requests, sent = target.count()
            count = 2 * each * len(open_cohort(dataset))
            found["requests_per_patch"] = round(requests / count, 1)
            found["bytes_per_patch"] = round(sent / count)
        figures[f"{threads}_threads"] = found
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        kept = streamed(target.url, MASKS, each, None, cache, epochs=3, options=target.options)
    again = streamed(str(dataset), MASKS, each)  # the machine's speed wanders
    best = statistics.median(local["per_second"] + again["per_second"])
    figures["cached"] = kept | {
        "epochs": "the same patches again",
        "local_before_and_after": round(best, 1),
        "part_of_local": round(statistics.median(kept["per_second"][1:]) / best, 3),
    }
    return figures


@contextmanager
def bucket(dataset: Path, folder: Path, rclone: Path, cores: list[int]) -> Iterator[Target]:
    """The dataset in a bucket of an S3 server on `cores`, each request held back by `LATENCY`."""
    root = folder / "buckets"
    root.mkdir()
    (root / "lund-probe").symlink_to(dataset.resolve())
    secrets = {"key": "lund-probe", "secret": "not-a-secret"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(rclone), "serve", "s3", str(root), "--copy-links", "--no-modtime"]
    command += ["--addr", f"127.0.0.1:{port}", "--auth-key", ",".join(secrets.values())]
    pinned = partial(os.sched_setaffinity, 0, cores) if cores else None
    with (
        subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=pinned) as server,
        remote.held_back(port, LATENCY, cores) as held,
    ):
        try:
            wait_for(port)
            endpoint = f"http://127.0.0.1:{held}"
            yield Target("s3://lund-probe", secrets | {"endpoint_url": endpoint}, None)
        finally:
            server.terminate()


def wait_for(port: int) -> None:
    """Wait until a server listens."""
    for _ in range(100):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise SystemExit(f"nothing listens on port {port}")


if __name__ == "__main__":
    main()
