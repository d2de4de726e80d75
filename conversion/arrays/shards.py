"""Write shards to disk, read them back and compare them bit for bit."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import VerificationError
from lundprobe_zarr.stores.shard import Box, Compressed, ShardCodec, overlap

Volume = npt.NDArray[Any]


def digest(values: Volume, dtype: np.dtype[Any]) -> bytes:
    """Return the SHA-256 of voxels as `dtype` in C order."""
    return hashlib.sha256(np.ascontiguousarray(values, dtype=dtype).data).digest()


def put_shard(
    path: Path,
    codec: ShardCodec,
    volume: Volume,
    within: Box | None,
    compressed: Compressed | None = None,
) -> tuple[int, str | None]:
    """Write the shard of `volume` (z, y, x) and return its size and SHA-256.

    All voxels outside the box `within` must be zero. `compressed` are chunks for `codec.encode`.
    For an all-zero volume nothing is written and 0 and None are returned.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sha256, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in codec.encode(volume, within, compressed):
            file.write(part)
            sha256.update(part)
            size += len(part)
    if size == 0:
        path.unlink()
        return 0, None
    return size, sha256.hexdigest()


def compare_shard(
    path: Path, codec: ShardCodec, volume: Volume, within: Box | None, key: str
) -> Box | None:
    """Compare a shard on disk with its volume bit for bit; return the box of its first chunk.

    The result is None if all chunks are empty. All voxels of `volume` outside the box `within` are
    zero, so chunks there may be missing. Raises `VerificationError` with `key` for a difference.
    """
    if not path.exists():
        return _compare(codec, volume, within, lambda offset, length: b"", 0, key)
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        return _compare(codec, volume, within, read, os.fstat(file.fileno()).st_size, key)


def _compare(
    codec: ShardCodec,
    volume: Volume,
    within: Box | None,
    read: Callable[[int, int], bytes],
    size: int,
    key: str,
) -> Box | None:
    bits = f"u{codec.dtype.itemsize}"
    is_stored_type = volume.dtype == codec.dtype
    first = None
    for box, chunk in codec.decode(read, size):
        if chunk is None and not overlap(box, within):
            continue
        part = volume[box] if is_stored_type else volume[box].astype(codec.dtype)
        expected = part.view(bits)
        same = not expected.any() if chunk is None else np.array_equal(chunk.view(bits), expected)
        if not same:
            raise VerificationError(
                f"voxels {box} read back differ from what was written",
                where=key,
                expected="the same bits",
                remedy="check the disk, then run the same command again",
            )
        first = box if first is None and chunk is not None else first
    return first
