"""Does the stream keep an accelerator busy: steps of a U-Net fed by it, against one batch again.

The floor trains on one batch that stays on the device: no reading at all. Both alternate in one
run; the part quoted is floor over stream, 1 where reading costs nothing. The network is a 3-D
U-Net of three levels in bfloat16 on patches of 32×192×192 T2w with three masks.

    python -m benchmarks.training --dataset /tmp/bench/standard --workers 8
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lundprobe_zarr as lp
from benchmarks.record import write_results
from lundprobe_zarr.patches import BalancedSampling

SIZE = (32, 192, 192)
MASKS = ("CTVT_427", "Rectum", "Bladder")


def main() -> None:
    """Measure and write benchmarks/results/training.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = Path(__file__).parent / "work"
    parser.add_argument("--dataset", default=str(work / "standard"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    figures = measure(options, device)
    print(write_results("training", figures))
    print(json.dumps(figures, indent=2))


def measure(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Patches per second of both, in turn."""
    model = UNet(len(MASKS), options.width).to(device, memory_format=torch.channels_last_3d)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = endless(options)
    kept = moved(next(loader), device)
    for batch in repeat(kept, 5):  # kernels are chosen, memory taken
        step(model, optimiser, batch)
    rates: dict[str, list[float]] = {"floor": [], "stream": []}
    for _ in range(options.repeats):
        rates["floor"].append(rate(model, optimiser, repeat(kept), device, options))
        fed = (moved(batch, device) for batch in loader)
        rates["stream"].append(rate(model, optimiser, fed, device, options))
    floor, stream = (statistics.median(rates[n]) for n in ("floor", "stream"))
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "patch": "×".join(map(str, SIZE)),
        "batch": options.batch,
        "workers": options.workers,
        "width": options.width,
        "steps": options.steps,
        "patches_per_second": {n: [round(r, 1) for r in v] for n, v in rates.items()},
        "part_of_floor": round(stream / floor, 3),
    }


def endless(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Batches, epoch after epoch, from workers."""
    cohort = lp.open_cohort(options.dataset)
    stream = lp.PatchStream(
        cohort, SIZE, structures=MASKS, sampling=BalancedSampling(MASKS, per_patient=64), seed=1
    )
    loader = lp.torch_dataset(stream, options.batch, drop_last=True).loader(
        num_workers=options.workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=options.workers > 0,
    )
    while True:
        yield from loader


def moved(batch: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    """What a step needs, on the device; pinned memory is copied while the last step still runs."""
    names = ("image", "mask", "present")
    return {name: batch[name].to(device, non_blocking=True) for name in names}


def rate(
    model: nn.Module, optimiser: torch.optim.Optimizer, batches: Any, device: torch.device,
    options: argparse.Namespace,
) -> float:  # fmt: skip
    """Patches per second over a number of steps."""
    begun = time.perf_counter()
    for batch in islice(batches, options.steps):
        step(model, optimiser, batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return options.steps * options.batch / (time.perf_counter() - begun)


def step(
    model: nn.Module, optimiser: torch.optim.Optimizer, batch: dict[str, torch.Tensor]
) -> None:
    """One step of training."""
    image = batch["image"].float()
    image = (image - image.mean((2, 3, 4), keepdim=True)) / (image.std((2, 3, 4), keepdim=True) + 1)
    with torch.autocast(image.device.type, torch.bfloat16):
        logits = model(image)
    loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), batch["mask"].float())
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two convolutions."""
    layers: list[nn.Module] = []
    for channels in (channels_in, channels_out):
        layers += [
            nn.Conv3d(channels, channels_out, 3, padding=1),
            nn.InstanceNorm3d(channels_out, affine=True),
            nn.LeakyReLU(),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net of three levels."""

    def __init__(self, structures: int, width: int) -> None:
        super().__init__()
        self.top, self.middle = block(1, width), block(width, 2 * width)
        self.bottom = block(2 * width, 4 * width)
        self.rise, self.last = block(6 * width, 2 * width), block(3 * width, width)
        self.out = nn.Conv3d(width, structures, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (batch, structure, z, y, x) of an image (batch, 1, z, y, x)."""
        halved, doubled = nn.functional.max_pool3d, nn.functional.interpolate
        top = self.top(image)
        middle = self.middle(halved(top, 2))
        bottom = self.bottom(halved(middle, 2))
        middle = self.rise(torch.cat([doubled(bottom, scale_factor=2.0), middle], 1))
        return self.out(self.last(torch.cat([doubled(middle, scale_factor=2.0), top], 1)))


if __name__ == "__main__":
    main()
