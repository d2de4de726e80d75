"""Training patches by this package and by its peers: latency, rate, processor, memory.

All read the same boxes of the same patients, 32×192×192 voxels of T2w, alone and with three masks,
in the order in which a stream draws them, from a warm page cache. Each is a process of its own, in
the environment that it needs; they are asked in turn. Before anything is timed, all must read the
same voxels. Peers, with what settings:

- zarr_oldest, zarr: zarr-python, the oldest that this package takes and the newest, as they come;
  zarr_fused: the newest with its pipeline `FusedCodecPipeline`; from afar over fsspec, and
  zarr_fused_obstore over obstore.
- zarrs: zarr-python with the pipeline of the crate zarrs; from afar over obstore.
- xarray: `open_zarr(chunks=None)` on the newest zarr-python, no dask.
- tensorstore: as many copying threads as cores, image and masks asked for at the same time.
- miao: its `VolumeDataset` over tensorstore, cache off; T2w alone, from a disk.
- blosc2_nnunet: nnU-Net's way: a b2nd of the float32 voxels and one of a label map, Zstd level 8,
  blocks and chunks fitted to the patch and the caches as nnU-Net does it, opened with mmap.
- nibabel, monai, torchio: `.nii.gz`, of gzip's level 6, which they decompress for every patch.
- webdataset, litdata: patches cut beforehand, as .npy in a tar and as LitData's chunks of 64 MB,
  read in order. That fixes the patches for good.

Latency is of one patch at a time. In a stream some are read at a time: by us as `PatchStream` does
it, by tensorstore with promises, by the others in threads; 4 from the disk, 16 from afar. Memory is
the most that a process had over what it had when it was ready to read. decode_alone decodes the
same chunks out of memory. From the disk all have two cores. Over HTTP and S3 (both nginx,
which checks no signature) server and client have a core and a network namespace each, and a request
is 20 ms late; that part needs root.

    python -m benchmarks.patches --dataset /tmp/bench/standard --python312 python3.12
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.lines.spaces import Line, client, network, places
from benchmarks.peers.environments import OF, interpreter
from benchmarks.peers.reader import MASKS, Place
from benchmarks.peers.rounds import SLOW_AFAR, Settings, compared
from benchmarks.record import write_results
from lundprobe_zarr import open_cohort
from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.patches import BalancedSampling, Content, Plan
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stream.patch import read_patch

SIZE = (32, 192, 192)
CONTENTS = {"T2w": (), "T2w_and_masks": MASKS}
REMOTE = ("ours", "zarr_oldest", "zarr", "zarr_fused_obstore", "zarrs", "xarray", "tensorstore")
LATE = Line(latency=0.02)


def main() -> None:
    """Measure and write benchmarks/results/patches.json, or of one place patches_<place>.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = Path(__file__).parent / "work"
    parser.add_argument("--dataset", type=Path, default=work / "standard")
    parser.add_argument("--environments", type=Path, default=work / "environments")
    parser.add_argument("--python312", default=shutil.which("python3.12"))
    parser.add_argument("--repeats", type=int, default=24)
    parser.add_argument("--patches", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="+", choices=OF, default=list(OF))
    parser.add_argument("--only", choices=["local", "http", "s3"])
    options = parser.parse_args()
    if options.python312 is None:
        parser.error("no python3.12 found; expected --python312 FILE, which zarr-python 3.3 needs")
    figures: dict[str, Any] = {
        "patch": "×".join(map(str, SIZE)),
        "masks": list(MASKS),
        "load_average_before": [round(load, 1) for load in os.getloadavg()],
    }
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder), figures)
    figures["load_average_after"] = [round(load, 1) for load in os.getloadavg()]
    print(write_results("patches", figures, f"_{options.only}" if options.only else ""))
    print(json.dumps(figures, indent=2))


def measure(options: argparse.Namespace, folder: Path, figures: dict[str, Any]) -> None:
    """All places."""
    cohort = open_cohort(options.dataset)
    place = prepared(cohort, options.patches, folder)
    if any(OF[peer] == "training" for peer in options.peers):
        write_files(cohort, place, folder)
    cores = sorted(os.sched_getaffinity(0))[:2]
    commands = {p: [interpreter(p, *_environments(options))] for p in options.peers}
    settings = Settings(options.repeats, 3, options.rounds, 4)
    if options.only in (None, "local"):
        pinned = ["taskset", "-c", ",".join(map(str, cores))]
        local = {name: [*pinned, *command] for name, command in commands.items()}
        figures["local"] = at(local, place, folder, settings)
    if options.only == "local":
        return
    afar = {name: [*client(), *commands[name]] for name in REMOTE if name in commands}
    settings = replace(settings, tries=1, ahead=16, slow=SLOW_AFAR)
    with network(options.dataset) as net, net.line(LATE) as ports:
        for name, key in (("http", "http"), ("s3", "s3_unsigned")):
            if options.only in (None, name):
                root, keys = places(ports)[key]
                there = replace(place, root=root, keys=keys)
                figures[name] = at(afar, there, folder, settings)


def _environments(options: argparse.Namespace) -> tuple[Path, str]:
    return options.environments.resolve(), options.python312


def prepared(cohort: Cohort, patches: int, folder: Path) -> Place:
    """Where patches of all patients are, from the disk: those of a stream's first epoch."""
    readers = [StoreReader.open(cohort.location, patient_id) for patient_id in cohort.ids]
    sampling = BalancedSampling(MASKS, per_patient=patches // len(cohort))
    plan = Plan(cohort, Content(structures=MASKS), SIZE, sampling=sampling)
    boxes = []
    for item in (plan.item(0, index) for index in range(len(plan))):
        number = cohort.ids.index(item.patient_id)
        start = plan.start(readers[number].metadata, item)
        boxes.append((number, *(int(v) for v in start)))
    indices = tuple(
        tuple(int(r.index(r.array("mri/clinical/mask"), {"structure": m})[0]) for m in MASKS)
        for r in readers
    )
    root = str(Path(cohort.location.path("")).resolve())
    return Place(root, tuple(cohort.ids), MASKS, indices, SIZE, tuple(boxes), {}, str(folder))


def write_files(cohort: Cohort, place: Place, folder: Path) -> None:
    """Write T2w and masks: whole volumes, also as `.nii.gz`, and the patches at all boxes."""
    patches: dict[Any, Any] = {}
    masks: dict[Any, Any] = {}
    for number, patient_id in enumerate(place.patients):
        reader = StoreReader.open(cohort.location, patient_id)
        shape = reader.array("mri/image").volume_shape
        whole = read_patch(reader, Content(structures=MASKS), (0, 0, 0), shape)
        for box in (box for box in place.boxes if box[0] == number):
            patches[box] = whole["image"][0][place.slices(box)]
            masks[box] = whole["mask"][(slice(None), *place.slices(box))]
        write_volumes(whole, folder / str(number))
    np.save(folder / "patches.npy", np.stack([patches[box] for box in place.boxes]))
    np.save(folder / "masks.npy", np.stack([masks[box] for box in place.boxes]))


def write_volumes(whole: dict[str, Any], folder: Path) -> None:
    """Write a patient's volumes, as .npy and as `.nii.gz`."""
    image, masks = whole["image"][0], whole["mask"]
    folder.mkdir()
    np.save(folder / "image.npy", image)
    np.save(folder / "mask.npy", masks)
    nib.openers.Opener.default_compresslevel = 6  # gzip's own; nibabel's is 1
    # T2w is stored as int16 where it holds integers, as published.
    stored = image.astype(np.int16) if np.array_equal(image, image.astype(np.int16)) else image
    volumes = {"image": stored, **{f"mask_{m}": v for m, v in zip(MASKS, masks, strict=True)}}
    for name, volume in volumes.items():
        kept = volume.astype(np.uint8) if volume.dtype == bool else volume
        nib.save(nib.Nifti1Image(kept.T, whole["affine"]), folder / f"{name}.nii.gz")


def at(
    commands: dict[str, Sequence[str]], place: Place, folder: Path, settings: Settings
) -> dict[str, Any]:
    """Figures of all peers at one place, T2w alone and with masks."""
    figures: dict[str, Any] = {}
    for name, masks in CONTENTS.items():
        print(f"{place.root.partition(':')[0] if place.remote else 'local'}: {name}", flush=True)
        chosen = {n: c for n, c in commands.items() if not (masks and n == "miao")}
        indices = place.indices if masks else tuple(() for _ in place.patients)
        content = replace(place, structures=masks, indices=indices)
        found = compared(chosen, content, folder, settings)
        for kind, values in found.items():
            figures.setdefault(kind, {})[name] = values
    figures["versions"] = figures["versions"]["T2w"]
    return figures


if __name__ == "__main__":
    main()
