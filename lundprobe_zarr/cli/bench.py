"""`bench`: speed of patches from a disk or bucket, and recommended settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lundprobe_zarr.cli.place import Dataset, StorageOptions, parse_options
from lundprobe_zarr.errors import UsageError

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort
    from lundprobe_zarr.stream.benchmark import Benchmark
    from lundprobe_zarr.stream.prices import Prices


def bench(
    dataset: Dataset,
    patch: Annotated[
        str, typer.Option(metavar="Z,Y,X", help="Patch size in voxels.")
    ] = "32,192,192",
    structures: Annotated[
        str, typer.Option(metavar="NAME[,NAME...]", help="Masks to read too.")
    ] = "",
    patches: Annotated[int, typer.Option(min=1, help="Patches to read for each figure.")] = 48,
    per_patient: Annotated[
        int, typer.Option(min=1, help="Patches of a patient in an epoch, for its cost.")
    ] = 32,
    prices: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON file of a bucket's prices.")
    ] = None,
    storage_options: StorageOptions = None,
) -> None:
    """Measure how fast training patches are read from a dataset, and recommend settings.

    Reads T2w patches at random positions, one after another and then ahead with threads. On a local
    disk a second run reads from memory what the first has read. With prices of a bucket it computes
    the cost of an epoch; docs/remote.md has such files.
    """
    from lundprobe_zarr.cohort import open_cohort
    from lundprobe_zarr.stream.benchmark import benchmark
    from lundprobe_zarr.stream.prices import Prices

    paid = None if prices is None else Prices.load(prices)
    names = [s.strip() for s in structures.split(",") if s.strip()]
    cohort = open_cohort(dataset, parse_options(storage_options))
    size = _size(patch)
    _require_shorter(size, cohort)
    _show(benchmark(cohort, size, names, patches, per_patient=per_patient), paid)


def _size(text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) != 3 or not all(p.strip().isdigit() for p in parts):
        raise UsageError(f"--patch {text!r}", expected="voxels z,y,x, e.g. 32,192,192")
    return [int(p) for p in parts]


def _require_shorter(size: list[int], cohort: Cohort) -> None:
    """Raises `UsageError` for patches longer than a volume; here nothing can be put around it."""
    most = [min(axis) for axis in zip(*cohort.patients["mri_shape"], strict=True)]
    if any(s > m for s, m in zip(size, most, strict=True)):
        raise UsageError(
            f"--patch {','.join(map(str, size))}: longer than a patient's volume",
            expected=f"at most {','.join(map(str, most))}",
        )


def _show(found: Benchmark, paid: Prices | None) -> None:
    from lundprobe_zarr.cli.console import facts, heading, say, size

    share = found.fetching / sum(found.latencies)
    rows = [
        ("patch", f"{found.patch}, {size(found.voxel_bytes)}"),
        ("one after another", f"{found.patches / sum(found.latencies):.1f} patches/s"),
        *(
            (f"{percent} % take at most", f"{1000 * found.percentile(percent):.1f} ms")
            for percent in (50, 90, 99)
        ),
        ("reads a patch", f"{found.requests / found.patches:.1f}"),
        ("bytes read a patch", size(found.bytes // found.patches)),
        ("processor time a patch", f"{1000 * found.processor / found.patches:.1f} ms"),
        ("time goes to", f"reading {share:.0%}, decoding and the rest {1 - share:.0%}"),
        ("decoded voxels used", f"{found.used:.0%}"),
        *(
            (f"ahead, {n} thread{'s' if n > 1 else ''}", f"{rate:.1f} patches/s")
            for n, rate in found.rates.items()
        ),
    ]
    rows += _cost(found, paid)
    facts(rows)
    heading("Recommended")
    for line in found.recommendations():
        say(f"  {line}")


def _cost(found: Benchmark, paid: Prices | None) -> list[tuple[str, str]]:
    from lundprobe_zarr.cli.console import size

    if found.epoch is None or (found.local and paid is None):
        return []
    epoch = found.epoch
    asked = f"{epoch.requests:,.0f} requests, {size(int(epoch.bytes))}"
    rows = [(f"an epoch of {epoch.patches:,} patches", asked)]
    if paid is not None:
        price = paid.of(epoch.requests, epoch.bytes)
        shown = "less than 0.01" if 0 < price < 0.01 else f"{price:,.2f}"
        rows.append(("such an epoch costs", f"{shown} {paid.currency} ({paid.name}, {paid.date})"))
    return rows
