"""Be one peer: open a store, read boxes of it, say what each took.

A program for the environment in which the peer is installed, which need not have this package. It
reads JSON objects, one a line, and answers each with one:

- first the peer's name and the place, see `Place`; the answer has the versions;
- `{"check": box}`: SHA-256 of the image, float32 (z, y, x), of the masks, bool (mask, z, y, x), and
  of the label map that nnU-Net makes of them;
- `{"read": box}`: milliseconds by the clock and of the processor, every thread counted;
- `{"stream": [box, …], "ahead": n}`: seconds by the clock and of the processor for all of them, of
  which `n` are read at a time;
- `{"memory": true}`: bytes that the process had when it was ready to read, and at most since.

A box is the number of its patient and its first voxel: (n, z, y, x).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

Box = Sequence[int]
#: The masks that are read with the image, and whose voxels patches are drawn about.
MASKS = ("CTVT_427", "Rectum", "Bladder")
#: `zarr` with its pipeline that decodes a shard in one call, which it has from 3.3 on.
FUSED = "zarr.core.codec_pipeline.FusedCodecPipeline"


@dataclass(frozen=True)
class Place:
    """Where the patches are: stores, and the same voxels as other files.

    `root` is the dataset's folder or URL; `keys` are those of a bucket. `structures` are the masks
    that are read, `indices` their places in each patient's array of masks. `files` has a folder a
    patient, by its number, with `image.npy` (z, y, x), `mask.npy` (mask, z, y, x), `image.nii.gz`
    and `mask_NAME.nii.gz`; and `patches.npy` and `masks.npy` with what is in all `boxes`.
    """

    root: str
    patients: tuple[str, ...]
    structures: tuple[str, ...]
    indices: tuple[tuple[int, ...], ...]
    size: tuple[int, int, int]
    boxes: tuple[Box, ...]
    keys: dict[str, str]
    files: str

    @property
    def stores(self) -> list[str]:
        """Folder or URL of each patient's store."""
        return [f"{self.root}/patients/{patient}.zarr" for patient in self.patients]

    @property
    def remote(self) -> bool:
        """Whether there is a network between."""
        return "://" in self.root

    def slices(self, box: Box) -> tuple[slice, ...]:
        """Slices (z, y, x) of a patch."""
        return tuple(slice(a, a + s) for a, s in zip(box[1:], self.size, strict=True))


class Peer:
    """One that reads volumes by calls that wait; `volumes` gives a call for image and masks each.

    Of a patch from afar these run at the same time. A stream reads patches in threads.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.pool = ThreadPoolExecutor(1 + len(place.structures)) if place.remote else None

    def volumes(self, box: Box) -> list[Callable[[], Any]]:
        """Calls that read image and masks."""
        raise NotImplementedError

    def read(self, box: Box) -> list[Any]:
        """Read image and masks of one patch, as soon as may be."""
        calls = self.volumes(box)
        if self.pool is None:
            return [call() for call in calls]
        return [asked.result() for asked in [self.pool.submit(call) for call in calls]]

    def stream(self, boxes: Sequence[Box], ahead: int) -> int:
        """Read many, `ahead` of them at a time; give how many."""
        with ThreadPoolExecutor(ahead) as pool:
            waiting: deque[Any] = deque()
            for box in boxes:
                waiting.append(pool.submit(lambda b: [c() for c in self.volumes(b)], box))
                if len(waiting) > 2 * ahead:
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()
        return len(boxes)

    def labels(self, read: Sequence[Any]) -> bool:
        """Whether what was read has a label map in place of masks."""
        return False


class Zarr(Peer):
    """zarr-python, with the pipeline of codecs that is asked for."""

    def __init__(self, place: Place, pipeline: str | None = None, obstore: bool = False) -> None:
        super().__init__(place)
        import zarr

        if pipeline:
            zarr.config.set({"codec_pipeline.path": pipeline})
        if pipeline and place.remote:  # threads that wait for a server need no core
            zarr.config.set({"threading.max_workers": 16})
        groups = [zarr.open_group(self.opened(s, obstore), mode="r") for s in place.stores]
        self.arrays = [(group["mri/image"], group["mri/clinical/mask"]) for group in groups]

    def opened(self, store: str, obstore: bool) -> Any:
        """What zarr opens: a path, or a store over fsspec or obstore."""
        place = self.place
        if not place.remote:
            return store
        if not obstore:
            from zarr.storage import FsspecStore

            return FsspecStore.from_url(store, storage_options=place.keys, read_only=True)
        from zarr.storage import ObjectStore

        return ObjectStore(obstore_of(store, place.keys), read_only=True)

    def volumes(self, box: Box) -> list[Callable[[], Any]]:
        (image, mask), at = self.arrays[box[0]], self.place.slices(box)
        places = self.place.indices[box[0]]
        return [lambda: image[(0, *at)], *(lambda i=i: mask[(i, *at)] for i in places)]


def obstore_of(store: str, keys: dict[str, str]) -> Any:
    """The store of a patient for obstore."""
    from obstore.store import HTTPStore, S3Store

    plain = {"allow_http": True}
    if not keys:
        return HTTPStore.from_url(store, client_options=plain)
    bucket, _, prefix = store.removeprefix("s3://").partition("/")
    secret = {"access_key_id": keys["key"], "secret_access_key": keys["secret"]}
    endpoint = {"endpoint": keys["endpoint_url"], "region": "us-east-1"}
    return S3Store(bucket, prefix=prefix, **secret, **endpoint, client_options=plain)


class Xarray(Peer):
    """`xr.open_zarr` without dask."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        import xarray as xr

        options = {"storage_options": place.keys} if place.keys else {}
        self.arrays = [
            [
                xr.open_zarr(store, group=group, chunks=None, **options)[name]
                for group, name in (("mri", "image"), ("mri/clinical", "mask"))
            ]
            for store in place.stores
        ]

    def volumes(self, box: Box) -> list[Callable[[], Any]]:
        image, mask = self.arrays[box[0]]
        at = dict(zip("zyx", self.place.slices(box), strict=True))
        chosen = [image.isel(modality=0), *(mask.sel(structure=s) for s in self.place.structures)]
        return [lambda one=one: one.isel(**at).values for one in chosen]


class Tensorstore(Peer):
    """tensorstore, which reads by promises: no threads of ours."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        import tensorstore

        copying = {"data_copy_concurrency": {"limit": len(os.sched_getaffinity(0))}}
        context = tensorstore.Context(copying)
        self.arrays = [
            [
                tensorstore.open(
                    {"driver": "zarr3", "kvstore": self.kvstore(f"{store}/{path}/")},
                    context=context,
                    read=True,
                ).result()
                for path in ("mri/image", "mri/clinical/mask")
            ]
            for store in place.stores
        ]

    def kvstore(self, path: str) -> dict[str, Any]:
        """Where the bytes of an array are."""
        place = self.place
        if not place.remote:
            return {"driver": "file", "path": path}
        if not place.keys:
            return {"driver": "http", "base_url": path}
        os.environ["AWS_ACCESS_KEY_ID"] = place.keys["key"]
        os.environ["AWS_SECRET_ACCESS_KEY"] = place.keys["secret"]
        bucket, _, key = path.removeprefix("s3://").partition("/")
        endpoint = {"endpoint": place.keys["endpoint_url"], "aws_region": "us-east-1"}
        return {"driver": "s3", "bucket": bucket, "path": key, **endpoint}

    def asked(self, box: Box) -> list[Any]:
        """Promises of image and masks."""
        (image, mask), at = self.arrays[box[0]], self.place.slices(box)
        masks = [mask[(i, *at)].read() for i in self.place.indices[box[0]]]
        return [image[(0, *at)].read(), *masks]

    def read(self, box: Box) -> list[Any]:
        return [promise.result() for promise in self.asked(box)]

    def stream(self, boxes: Sequence[Box], ahead: int) -> int:
        waiting: deque[Any] = deque()
        for box in boxes:
            waiting.append(self.asked(box))
            if len(waiting) > ahead:
                for promise in waiting.popleft():
                    promise.result()
        for promises in waiting:
            for promise in promises:
                promise.result()
        return len(boxes)


class Ours(Peer):
    """This package: `read_patch` for one, `PatchStream` for many."""

    def __init__(self, place: Place) -> None:
        import lundprobe_zarr.stream.stream  # noqa: F401 - what the first patch would import
        from lundprobe_zarr import open_cohort
        from lundprobe_zarr.patches import Content
        from lundprobe_zarr.stores.reader import StoreReader

        self.place, self.cohort = place, open_cohort(place.root, place.keys)[list(place.patients)]
        self.readers = [StoreReader.open(self.cohort.location, p) for p in place.patients]
        self.content, self.streams = Content(structures=place.structures), {}

    def read(self, box: Box) -> list[Any]:
        from lundprobe_zarr.stream.patch import read_patch

        sample = read_patch(self.readers[box[0]], self.content, box[1:], self.place.size)
        return [sample["image"][0], *sample.get("mask", ())]

    def patches(self, count: int, threads: int | None) -> Any:
        """The stream that draws as many patches as there are boxes, which are these boxes."""
        from lundprobe_zarr import PatchStream
        from lundprobe_zarr.patches import BalancedSampling

        if count not in self.streams:
            sampling = BalancedSampling(MASKS, per_patient=count // len(self.cohort))
            self.streams[count] = PatchStream(
                self.cohort, self.place.size, structures=self.place.structures, threads=threads,
                sampling=sampling,
            )  # fmt: skip
        return self.streams[count]

    def stream(self, boxes: Sequence[Box], ahead: int) -> int:
        patches = self.patches(len(boxes), ahead if self.place.remote else None)
        patches.seek(0)
        drawn = [(s["patient_id"], *(int(v) for v in s["start"])) for s in patches]
        if drawn != [(self.place.patients[box[0]], *box[1:]) for box in boxes]:
            raise SystemExit("the stream drew other boxes than its peers were given")
        return len(drawn)


class DecodeAlone(Peer):
    """Decoding alone: the same chunks, out of memory, on all cores. A stream's limit.

    It knows shards of whole volumes from a disk, and reads them by itself: the index at the end,
    16 bytes a chunk and 4 of its checksum; Blosc and 4 bytes of crc32c in each chunk.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.memory = threading.local()
        self.chunks: list[tuple[bytes, tuple[int, ...], str]] = []

    def take(self, boxes: Sequence[Box]) -> None:
        """Read the chunks of boxes into memory."""
        for number, store in enumerate(self.place.stores):
            own = [self.place.slices(box) for box in boxes if box[0] == number]
            self.take_volume(Path(store, "mri/image"), 0, own)
            for index in self.place.indices[number]:
                self.take_volume(Path(store, "mri/clinical/mask"), index, own)

    def take_volume(self, array: Path, number: int, boxes: Sequence[tuple[slice, ...]]) -> None:
        """Read the chunks of boxes of one volume."""
        about = json.loads((array / "zarr.json").read_text())
        chunk = tuple(about["codecs"][0]["configuration"]["chunk_shape"][1:])
        grid = [-(-n // c) for n, c in zip(about["shape"][1:], chunk, strict=True)]
        data = np.fromfile(array / f"c/{number}/0/0/0", np.uint8)
        index = data[-16 * int(np.prod(grid)) - 4 : -4].view(np.uint64).reshape(*grid, 2)
        for box in boxes:
            spans = zip(box, chunk, strict=True)
            touched = index[tuple(slice(s.start // c, -(-s.stop // c)) for s, c in spans)]
            for offset, size in touched.reshape(-1, 2).tolist():
                if offset < data.size:  # not of a chunk that was left out, as empty
                    part = data[offset : offset + size].tobytes()
                    self.chunks.append((part, chunk, about["data_type"]))

    def decode(self, chunk: tuple[bytes, tuple[int, ...], str]) -> None:
        """Check and decode one chunk, into memory that its thread keeps."""
        from google_crc32c import value
        from numcodecs.blosc import decompress

        data, shape, dtype = chunk
        kept = vars(self.memory)
        if (shape, dtype) not in kept:
            kept[shape, dtype] = np.empty(shape, dtype)
        if value(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise SystemExit("a chunk fails its checksum")
        decompress(data[:-4], kept[shape, dtype])

    def stream(self, boxes: Sequence[Box], ahead: int) -> int:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            deque(pool.map(self.decode, self.chunks, chunksize=8), 0)
        return len(boxes)


class Blosc2(Peer):
    """nnU-Net's preprocessed files: image and one label map, opened with mmap."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        import blosc2

        blosc2.set_nthreads(len(os.sched_getaffinity(0)))
        self.opened = [
            self.files(Path(place.files, str(number))) for number in range(len(place.patients))
        ]

    def files(self, folder: Path) -> list[Any]:
        """A patient's arrays, written if they are not there."""
        import blosc2

        names = ["image", "labels"][: 2 if self.place.structures else 1]
        for name in names:
            if not (folder / f"{name}.b2nd").exists():
                image = name == "image"
                voxels = np.load(folder / ("image.npy" if image else "mask.npy"))
                volume = (voxels.astype(np.float32) if image else label_map(voxels))[None]
                chunks, blocks = fitted(volume.shape, volume.dtype.itemsize, self.place.size)
                cparams = {"codec": blosc2.Codec.ZSTD, "clevel": 8}
                fit = {"chunks": chunks, "blocks": blocks, "cparams": cparams}
                blosc2.asarray(volume, **fit, urlpath=str(folder / f"{name}.b2nd"), mmap_mode="w+")
        paths = [str(folder / f"{name}.b2nd") for name in names]
        return [blosc2.open(path, mode="r", mmap_mode="r") for path in paths]

    def volumes(self, box: Box) -> list[Callable[[], Any]]:
        at = (0, *self.place.slices(box))
        return [lambda array=array: array[at] for array in self.opened[box[0]]]

    def labels(self, read: Sequence[Any]) -> bool:
        return len(read) > 1


#: nnU-Net's cache sizes, bytes: a block fits the first level, a chunk the third.
L1, L3, FILL = 32768, 1441792, 0.8


def fitted(
    shape: Sequence[int], itemsize: int, size: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Chunks and blocks (c, z, y, x) for patches of a size, by nnU-Net's rule."""
    block = [shape[0], *(2 ** int(np.ceil(np.log2(s))) for s in size)]
    while np.prod(block) * itemsize > L1 * FILL:
        axis = int(np.argmax([b / s for b, s in zip(block[1:], size, strict=True)])) + 1
        block[axis] = max(1, block[axis] // 2)
    block = [min(b, n) for b, n in zip(block, shape, strict=True)]
    chunk = list(block)
    while np.prod(chunk) * itemsize < L3 * FILL:
        rows = zip(chunk[1:], size, shape[1:], strict=True)
        ratios = [c / s if c < n else np.inf for c, s, n in rows]
        axis = int(np.argmin(ratios)) + 1
        if chunk[axis] >= min(shape[axis], 2 * size[axis - 1]):
            break
        chunk[axis] = min(chunk[axis] + block[axis], shape[axis])
    return tuple(chunk), tuple(block)


class Files(Peer):
    """`.nii.gz` by a library's own call, which decompresses the volume for every patch."""

    def __init__(self, place: Place, library: str) -> None:
        super().__init__(place)
        self.names = ["image", *(f"mask_{s}" for s in place.structures)]
        self.one = {"nibabel": by_nibabel, "monai": by_monai, "torchio": by_torchio}[library]()

    def volumes(self, box: Box) -> list[Callable[[], Any]]:
        at, folder = self.place.slices(box)[::-1], Path(self.place.files, str(box[0]))
        paths = [str(folder / f"{name}.nii.gz") for name in self.names]
        return [lambda path=path: self.one(path, at).T for path in paths]


def by_nibabel() -> Callable[[str, Any], Any]:
    """Slices of compressed files through `dataobj`."""
    import nibabel

    return lambda path, box: np.asarray(nibabel.load(path).dataobj[box])


def by_monai() -> Callable[[str, Any], Any]:
    """`LoadImage`, then a crop."""
    from monai.transforms import LoadImage

    load = LoadImage(image_only=True, dtype=None, ensure_channel_first=False)
    return lambda path, box: load(path)[box].numpy()


def by_torchio() -> Callable[[str, Any], Any]:
    """`ScalarImage`, then a crop."""
    import torchio

    return lambda path, box: torchio.ScalarImage(path).data[(0, *box)].numpy()


class Miao(Peer):
    """miao's `VolumeDataset` in sequential order, each box a volume of its own; T2w alone.

    It knows OME-Zarr groups whose axes have one letter. So it gets such a group, with a link to the
    array of the store. Its cache is off: the others have none. Its boxes need a voxel more below.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        from miao import MiaoConfig, VolumeConfig, VolumeDataset

        for number, store in enumerate(place.stores):
            group = Path(place.files, str(number), "miao.zarr", "mri")
            group.mkdir(parents=True, exist_ok=True)
            (group / "zarr.json").write_text(json.dumps(self.ome()))
            if not (group / "image").exists():
                (group / "image").symlink_to(f"{store}/mri/image")
        volumes = [
            VolumeConfig(
                name=str(number), path=str(Path(place.files, str(box[0]), "miao.zarr")),
                image_key="mri", zarr_version="zarr3", normalize=False, fixed_axes={"c": 0},
                bounding_box=[[a - 1, a + s] for a, s in zip(box[1:], place.size, strict=True)],
            )
            for number, box in enumerate(place.boxes)
        ]  # fmt: skip
        config = MiaoConfig(
            volumes=volumes, output_axes="lzyx", patch_size=list(place.size),
            resolutions=[[1.0, 1.0, 1.0]], sampling="sequential", cache_bytes=0,
        )  # fmt: skip
        self.dataset = VolumeDataset(config)
        self.numbers = {tuple(box): number for number, box in enumerate(place.boxes)}
        if len(self.dataset) != len(place.boxes):
            raise SystemExit("miao reads other boxes than it was given")

    def ome(self) -> dict[str, Any]:
        """Metadata of a group with the image at a voxel size of 1."""
        axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space"} for n in "zyx")]
        scale = {"type": "scale", "scale": [1.0] * 4}
        levels = [{"path": "image", "coordinateTransformations": [scale]}]
        ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
        return {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}

    def volumes(self, box: Box) -> list[Callable[[], Any]]:
        number = self.numbers[tuple(box)]
        return [lambda: np.asarray(self.dataset[number]["img"]).reshape(self.place.size)]


class Precut(Peer):
    """Patches that were cut before, read in order: samples of `opened()`."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        folder = Path(place.files)
        self.patches = np.load(folder / "patches.npy", mmap_mode="r")
        self.masks = np.load(folder / "masks.npy", mmap_mode="r")
        self.home = folder / f"{type(self).__name__}-{len(place.structures)}"
        self.samples: Any = None
        if not self.home.exists():
            self.home.mkdir()
            self.write()

    def sample(self, number: int) -> dict[str, Any]:
        """What is stored of a patch."""
        found = {"image": np.array(self.patches[number])}
        return found | ({"mask": np.array(self.masks[number])} if self.place.structures else {})

    def write(self) -> None:
        """Store all samples."""
        raise NotImplementedError

    def opened(self) -> Iterable[Any]:
        """All samples in order."""
        raise NotImplementedError

    def read(self, box: Box) -> list[Any]:
        number = self.place.boxes.index(tuple(box))
        if number == 0 or self.samples is None:
            self.samples = iter(self.opened())
            self.next = 0
        while self.next < number:
            next(self.samples)
            self.next += 1
        self.next += 1
        found = next(self.samples)
        return [found["image"], *found.get("mask", ())]

    def stream(self, boxes: Sequence[Box], ahead: int) -> int:
        return sum(1 for _ in self.opened())


class WebDataset(Precut):
    """`.npy` files in a tar."""

    def write(self) -> None:
        import webdataset

        with webdataset.TarWriter(str(self.home / "patches.tar")) as tar:
            for number in range(len(self.patches)):
                named = {f"{name}.npy": value for name, value in self.sample(number).items()}
                tar.write({"__key__": f"{number:06d}"} | named)

    def opened(self) -> Iterable[Any]:
        import webdataset

        found = webdataset.WebDataset(str(self.home / "patches.tar"), shardshuffle=False).decode()
        return ({k.removesuffix(".npy"): v for k, v in one.items()} for one in found)


class LitData(Precut):
    """LitData's chunks of 64 MB."""

    def write(self) -> None:
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(self.home), chunk_bytes=64 * 10**6)
        for number in range(len(self.patches)):
            writer[number] = self.sample(number)
        writer.done()
        writer.merge()

    def opened(self) -> Iterable[Any]:
        from litdata import StreamingDataset

        return iter(StreamingDataset(str(self.home)))


PEERS: dict[str, Callable[[Place], Peer]] = {
    "ours": Ours,
    "decode_alone": DecodeAlone,
    "zarr_oldest": Zarr,
    "zarr": Zarr,
    "zarr_fused": lambda place: Zarr(place, FUSED),
    "zarr_fused_obstore": lambda place: Zarr(place, FUSED, obstore=True),
    "zarrs": lambda place: Zarr(place, "zarrs.ZarrsCodecPipeline", obstore=True),
    "xarray": Xarray,
    "tensorstore": Tensorstore,
    "miao": Miao,
    "blosc2_nnunet": Blosc2,
    "nibabel": lambda place: Files(place, "nibabel"),
    "monai": lambda place: Files(place, "monai"),
    "torchio": lambda place: Files(place, "torchio"),
    "webdataset": WebDataset,
    "litdata": LitData,
}
_PACKAGES = (
    "lundprobe-zarr", "numpy", "zarr", "numcodecs", "zarrs", "obstore", "xarray", "tensorstore",
    "miao-io", "blosc2", "nibabel", "monai", "torchio", "torch", "webdataset", "litdata", "fsspec",
    "aiohttp", "s3fs", "pycurl",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Of Python, and of what is installed beside this program."""
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def label_map(masks: Any) -> Any:
    """One label a voxel of masks (mask, z, y, x), 0 outside, the later mask where two overlap."""
    labels = np.zeros(masks.shape[1:], np.int8)
    for number, mask in enumerate(masks, 1):
        labels[mask] = number
    return labels


def digests(peer: Peer, box: Box) -> dict[str, str]:
    """SHA-256 of what a peer reads, in one type for all peers."""
    image, *others = [np.asarray(volume) for volume in peer.read(box)]
    found = {"image": np.asarray(image, np.float32)}
    if peer.labels([image, *others]):
        found["labels"] = np.asarray(others[0], np.int8)
    elif others:
        found["masks"] = np.stack(others).astype(bool)
        found["labels"] = label_map(found["masks"])
    return {k: hashlib.sha256(np.ascontiguousarray(v)).hexdigest() for k, v in found.items()}


def resident(what: str) -> int:
    """Bytes: `VmRSS`, now in memory, or `VmHWM`, most since the last `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(s.split()[1]) * 1024 for s in lines if s.startswith(what))


def forget_peak() -> int:
    """Let the most memory count from here on; bytes now in memory."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def timed(action: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock and of the processor, which an action takes."""
    begun, used = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - begun, time.process_time() - used


def answer(peer: Peer, asked: dict[str, Any], before: int) -> dict[str, Any]:
    """What is said to one question."""
    if "check" in asked:
        return digests(peer, asked["check"])
    if "memory" in asked:
        return {"start": before, "peak": resident("VmHWM")}
    if "read" in asked:
        clock, processor = timed(lambda: peer.read(tuple(asked["read"])))
        return {"ms": 1000 * clock, "cpu_ms": 1000 * processor}
    boxes, ahead = [tuple(box) for box in asked["stream"]], int(asked["ahead"])
    if isinstance(peer, DecodeAlone) and not peer.chunks:
        peer.take(boxes)
    clock, processor = timed(lambda: peer.stream(boxes, ahead))
    return {"seconds": clock, "cpu_seconds": processor, "patches": len(boxes)}


def _frozen(value: Any) -> Any:
    """Tuples in place of lists, which JSON has."""
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


def main() -> None:
    """Answer until the questions end."""
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    lines = iter(sys.stdin)
    told = json.loads(next(lines))
    peer = PEERS[told["peer"]](Place(**{k: _frozen(v) for k, v in told["place"].items()}))
    found: dict[str, Any] = {"versions": versions()}
    before = forget_peak()
    print(json.dumps(found), file=said, flush=True)
    for line in lines:
        print(json.dumps(answer(peer, json.loads(line), before)), file=said, flush=True)
    said.flush()
    os._exit(0)  # a client's threads may not end by themselves


if __name__ == "__main__":
    main()
