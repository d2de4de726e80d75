"""A patch read with plain xarray, and what that took: chunks and bytes counted at the store."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

_IMAGE, _LABEL = "image", "T2w"


@dataclass(frozen=True)
class PatchRead:
    """What was read: box (z, y, x) in voxels, shapes, chunks and bytes against the volume's."""

    store: Path
    box: tuple[slice, ...]
    shape: tuple[int, ...]
    volume_shape: tuple[int, ...]
    chunks: int
    volume_chunks: int
    bytes: int
    volume_bytes: int
    seconds: float


class _CountingStore(LocalStore):
    """A store on disk that counts the voxels' bytes that are read from it, and how often."""

    requests = 0
    count = 0

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Read an object or a range of it."""
        value = await super().get(key, prototype, byte_range)
        if value is not None and f"{_IMAGE}/c/" in key:
            self.requests += 1
            self.count += len(value)
        return value


def read_patch(store: Path, size: Sequence[int]) -> PatchRead:
    """Read a patch of the T2w image around the target, of `size` (z, y, x) voxels at most.

    It is clipped to a third of the volume a side, so that small volumes show something too.
    """
    counting = _CountingStore(store, read_only=True)
    image = xr.open_zarr(counting, group="mri", chunks=None)[_IMAGE].sel(modality=_LABEL)
    box = _box(
        _centre(store), [min(s, max(1, n // 3)) for s, n in zip(size, image.shape, strict=True)]
    )
    counting.requests = counting.count = 0
    started = time.perf_counter()
    values = image.isel(dict(zip("zyx", box, strict=True))).values
    seconds = time.perf_counter() - started
    chunk = image.encoding["chunks"][-3:]
    shard = _shard(store, image)
    return PatchRead(
        store=store,
        box=box,
        shape=values.shape,
        volume_shape=image.shape,
        chunks=_touched(box, chunk),
        volume_chunks=math.prod(math.ceil(n / c) for n, c in zip(image.shape, chunk, strict=True)),
        bytes=counting.count,
        volume_bytes=shard.stat().st_size,
        seconds=seconds,
    )


def _shard(store: Path, image: Any) -> Path:
    """The object of the volume: the array's first label is the T2w image."""
    return store / "mri" / _IMAGE / "c" / "0" / "0" / "0" / "0"


def _centre(store: Path) -> list[float]:
    """Centroid (z, y, x) of the planning target, voxels."""
    masks = xr.open_zarr(store, group="mri/clinical", chunks=None)["mask"]
    inside = np.argwhere(masks.sel(structure="PTVT_427").values)
    return [float(v) for v in inside.mean(axis=0)]


def _box(centre: Sequence[float], size: Sequence[int]) -> tuple[slice, ...]:
    starts = [max(0, round(c - (s - 1) / 2)) for c, s in zip(centre, size, strict=True)]
    return tuple(slice(a, a + s) for a, s in zip(starts, size, strict=True))


def _touched(box: Sequence[slice], chunk: Sequence[int]) -> int:
    return math.prod((s.stop - 1) // c - s.start // c + 1 for s, c in zip(box, chunk, strict=True))
