"""Predictions of overlapping patches put together into volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.lattice import Box
from lundprobe_zarr.patches.plan import Plan
from lundprobe_zarr.patches.sampling import GridSampling, Space

Array = npt.NDArray[Any]


@dataclass
class _Volume:
    """One patient's volume as far as it is there."""

    space: Space
    owned: list[list[tuple[int, int]]]
    values: Array
    seen: set[tuple[int, int, int]] = field(default_factory=set)


class Aggregator:
    """Puts predictions of `grid` patches together: each voxel from the patch it lies deepest in.

    Two neighbours meet in the middle of their overlap, so an overlap of 2·h voxels leaves out a
    halo of h where a network sees too little; at the volume's edges there is no neighbour, and the
    patch counts up to there. Every voxel is taken from exactly one patch: what is put in unchanged
    comes out unchanged. What lies outside the volume is left out.

        collected = Aggregator(stream.plan)
        for sample in stream:
            collected.add(sample, predict(sample["image"]))
            if collected.complete(sample["patient_id"]):
                volume = collected.pop(sample["patient_id"])
    """

    def __init__(self, plan: Plan) -> None:
        if not isinstance(plan.sampling, GridSampling):
            raise UsageError(
                f"an aggregator of {plan.sampling.name} patches; expected sampling='grid', whose "
                "patches cover the volume"
            )
        self._plan = plan
        self._sampling = plan.sampling
        self._volumes: dict[str, _Volume] = {}

    def add(self, sample: dict[str, Any], prediction: npt.ArrayLike) -> None:
        """Take a prediction (…, z, y, x) for a sample, of the patch's size.

        Raises `UsageError` if its shape is not the patch's, or not as that of the others, or if
        the sample's place is none of the grid's.
        """
        values, patient_id = np.asarray(prediction), str(sample["patient_id"])
        volume = self._volume(patient_id, values)
        start = tuple(int(v) for v in sample["start"])
        z, y, x = start
        inside, target = self._boxes(volume, start)
        volume.values[(..., *target)] = values[(..., *inside)]
        volume.seen.add((z, y, x))

    def _volume(self, patient_id: str, values: Array) -> _Volume:
        space = self._plan.space(patient_id)
        if values.shape[-3:] != space.size:
            raise UsageError(
                f"prediction of shape {values.shape} for a patch of {space.size} voxels (z, y, x); "
                "expected the patch's size at the end"
            )
        if patient_id not in self._volumes:
            shape = (*values.shape[:-3], *space.shape)
            owned = [
                _owned(starts, size, length)
                for starts, size, length in zip(
                    self._sampling.axes(space), space.size, space.shape, strict=True
                )
            ]
            self._volumes[patient_id] = _Volume(space, owned, np.zeros(shape, values.dtype))
        volume = self._volumes[patient_id]
        if volume.values.shape[:-3] != values.shape[:-3] or volume.values.dtype != values.dtype:
            raise UsageError(
                f"prediction of shape {values.shape}, {values.dtype}, after others of "
                f"{volume.values.shape[:-3]} channels, {volume.values.dtype}; expected all alike"
            )
        return volume

    def _boxes(self, volume: _Volume, start: Sequence[int]) -> tuple[Box, Box]:
        """Where a patch's own voxels are in the patch, and in the volume."""
        inside, target = [], []
        axes = self._sampling.axes(volume.space)
        for first, starts, owned in zip(start, axes, volume.owned, strict=True):
            if first not in starts:
                raise UsageError(
                    f"a patch from {tuple(start)} on is none of the grid's; expected samples of "
                    "the stream that the aggregator was made for"
                )
            low, high = owned[starts.index(first)]
            inside.append(slice(low - first, high - first))
            target.append(slice(low, high))
        return (inside[0], inside[1], inside[2]), (target[0], target[1], target[2])

    def complete(self, patient_id: str) -> bool:
        """Whether every patch of a patient was added."""
        volume = self._volumes.get(patient_id)
        return volume is not None and len(volume.seen) == self._sampling.draws(volume.space)

    def pop(self, patient_id: str) -> Array:
        """A patient's volume (…, z, y, x) on its lattice, which is then forgotten here.

        Raises `UsageError` if patches of it are missing.
        """
        if not self.complete(patient_id):
            volume = self._volumes.get(patient_id)
            there, expected = (
                (len(volume.seen), self._sampling.draws(volume.space)) if volume else (0, "all")
            )
            raise UsageError(
                f"patient {patient_id}: {there} patches were added; expected {expected}; add those "
                "of the whole epoch first"
            )
        return self._volumes.pop(patient_id).values


def _owned(starts: Sequence[int], size: int, length: int) -> list[tuple[int, int]]:
    """First and end voxel along an axis that each patch gives: a partition of 0 … length."""
    meet = [(a + size + b) // 2 for a, b in pairwise(starts)]
    return list(zip([0, *meet], [*meet, length], strict=True))
