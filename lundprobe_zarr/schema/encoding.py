"""Chunks, shards and codecs of a store's volumes.

A shard is one whole volume (one modality, structure, fold …); its inner chunks are near
8×128×128 voxels, about what a 32×192×192 training patch touches a few dozen of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

#: Inner chunk (z, y, x) aimed at. Measured on 1024×1024×88: see benchmarks/results.
TARGET_CHUNK = (8, 128, 128)


@dataclass(frozen=True)
class BloscSettings:
    """Blosc's parameters; `shuffle` is `noshuffle`, `shuffle` or `bitshuffle`."""

    cname: Literal["zstd", "lz4", "lz4hc", "blosclz", "zlib"] = "zstd"
    clevel: int = 3
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"] = "bitshuffle"


#: Dose holds float32 multiples of one scaling: their bytes repeat as wholes, and any shuffle
#: tears that apart (51-57 MB against 91 MB with bitshuffle at full size). Booleans are so
#: repetitive that a fast match finder on plain bytes wins.
_NO_SHUFFLE = frozenset({"dose", "mask", "fold_mask", "fiducial_mask"})


def blosc_settings(variable: str) -> BloscSettings:
    """Compressor settings of a variable (`image`, `dose`, `mask` …)."""
    return BloscSettings(shuffle="noshuffle" if variable in _NO_SHUFFLE else "bitshuffle")


def chunk_length(length: int, target: int) -> int:
    """Chunk length near `target` that divides `length` as evenly as can be: least padding."""
    return ceil(length / max(1, round(length / target)))


def inner_chunk(shape: Sequence[int]) -> tuple[int, int, int]:
    """Inner chunk (z, y, x) of a volume of `shape` (z, y, x)."""
    z, y, x = (chunk_length(n, t) for n, t in zip(shape, TARGET_CHUNK, strict=True))
    return z, y, x


def shard_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Shard (z, y, x): the volume, rounded up to whole inner chunks."""
    z, y, x = (ceil(n / c) * c for n, c in zip(shape, inner_chunk(shape), strict=True))
    return z, y, x
