"""Chunks, shards and codecs of a store's volumes.

A shard is one whole volume (one modality, structure, fold …); its inner chunks are near
8×128×128 voxels, about what a 32×192×192 training patch touches a few dozen of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

#: Target of the inner chunk (z, y, x). Measured on 1024×1024×88: see benchmarks/results.
TARGET_CHUNK = (8, 128, 128)


@dataclass(frozen=True)
class BloscSettings:
    """Blosc's parameters; `shuffle` is `noshuffle`, `shuffle` or `bitshuffle`."""

    cname: Literal["zstd", "lz4", "lz4hc", "blosclz", "zlib"] = "zstd"
    clevel: int = 3
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"] = "bitshuffle"


#: Booleans are so repetitive that a fast match finder on plain bytes wins; shuffling one byte
#: does nothing and shuffling bits only slows reading.
MASK_BLOSC = BloscSettings(shuffle="noshuffle")

#: Filters tried on a sample of each array that is no mask, the fastest to decode first. The best
#: depends on the data. Dose in multiples of one scaling repeats as whole floats, which any shuffle
#: breaks up; noisy images compress by their high bytes.
FILTERS: tuple[BloscSettings, ...] = (
    BloscSettings(shuffle="shuffle"),
    BloscSettings(shuffle="noshuffle"),
    BloscSettings(shuffle="bitshuffle"),
)
#: A later filter must be smaller than the first by this factor to be worth its slower reading.
FILTER_GAIN = 0.97
#: Chunks of each volume that the choice is made on, spread evenly over it.
FILTER_SAMPLE = 12


def chunk_length(length: int, target: int) -> int:
    """Return the chunk length near `target` with the least padding of `length`."""
    return ceil(length / max(1, round(length / target)))


def inner_chunk(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the inner chunk (z, y, x) of a volume of `shape` (z, y, x)."""
    z, y, x = (chunk_length(n, t) for n, t in zip(shape, TARGET_CHUNK, strict=True))
    return z, y, x


def shard_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the shard (z, y, x): the volume, rounded up to whole inner chunks."""
    z, y, x = (ceil(n / c) * c for n, c in zip(shape, inner_chunk(shape), strict=True))
    return z, y, x
