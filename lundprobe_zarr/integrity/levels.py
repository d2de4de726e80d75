"""Compare the coarser levels of a volume with those computed from level 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.geometry.coarser import coarser
from lundprobe_zarr.schema.document import sha256_of
from lundprobe_zarr.schema.ome import level_step
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import LevelShard


def level_finding(
    location: Location, patient_id: str, shard: LevelShard, volume: npt.NDArray[Any]
) -> str | None:
    """Return what is wrong with a level of `volume` (z, y, x), which is level 0; None if nothing.

    Raises `DatasetError` if it cannot be read.
    """
    data = b""
    if shard.bytes:
        try:
            data = location.read(f"{store_path(patient_id)}/{shard.key}")
        except FileNotFoundError:
            return f"not there; expected {shard.bytes} bytes"
        if sha256_of(data) != shard.sha256:
            return f"{len(data)} bytes that differ from those written at conversion"
    expected = coarser(volume, shard.level, level_step(shard.array.spec))
    codec = shard.array.level_codec(shard.level)
    bits = f"u{codec.dtype.itemsize}"
    try:
        for box, chunk in codec.decode(lambda start, n: data[start : start + n], len(data)):
            wanted = expected[box].view(bits)
            if wanted.any() if chunk is None else not np.array_equal(chunk.view(bits), wanted):
                return f"voxels {box} differ from those computed from level 0"
    except DamagedStoreError as error:
        return error.finding
    return None
