"""Assembly of overlapping patch predictions into volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.geometry.lattice import Box, Shape
from lundprobe_zarr.patches.lattice import lattice_of, stored_grid
from lundprobe_zarr.patches.plan import Plan
from lundprobe_zarr.patches.prediction import Prediction
from lundprobe_zarr.patches.sampling import GridSampling, Space
from lundprobe_zarr.stores.opening import open_store
from lundprobe_zarr.vocabulary.suggest import suggestion

Array = npt.NDArray[Any]
Weights = npt.NDArray[np.float32]

#: How overlapping predictions are merged: see `Aggregator`.
Blend = Literal["crop", "average", "hann", "gaussian"]
#: Standard deviation of the Gaussian as a fraction of the patch size, and its smallest weight as a
#: fraction of the largest.
_SIGMA, _LEAST = 0.125, 1e-3


@dataclass
class _Volume:
    """One patient's partial volume; `weights` is the sum of weights where patches are blended."""

    space: Space
    owned: list[list[tuple[int, int]]]
    values: Array
    dtype: np.dtype[Any]
    weights: Weights | None
    seen: set[tuple[int, int, int]] = field(default_factory=set)


class Aggregator:
    """Assemble predictions of `grid` patches into volumes.

    - `crop`: each voxel comes from the patch in which it lies deepest. Neighbours meet in the
      middle of their overlap, so an overlap of 2·h voxels discards a halo of h. Each voxel comes
      from exactly one patch, so values and type stay unchanged.
    - `average`: the mean of all patches that contain the voxel.
    - `hann`: the mean with weights sin²(π (i + 1) / (n + 1)) along each axis, as in TorchIO.
    - `gaussian`: the mean with Gaussian weights about the patch centre, standard deviation ⅛ of
      the patch size, at least 1e-3, as in MONAI's sliding window.

    The last three need floats, e.g. probabilities, not labels. They sum in float32, or in float64
    for float64 predictions. Voxels outside the volume are discarded.

    Parameters
    ----------
    plan
        Plan of a stream with `sampling="grid"`.
    blend
        `crop`, `average`, `hann` or `gaussian`.

    Raises
    ------
    UsageError
        If the plan has another sampling, or `blend` is unknown.

    Examples
    --------
        collected = Aggregator(stream.plan, blend="gaussian")
        for sample in stream:
            collected.add(sample, predict(sample["image"]))
            if collected.complete(sample["patient_id"]):
                predicted = collected.finish(sample["patient_id"])
                predicted.native().save("predicted.nii.gz")
    """

    def __init__(self, plan: Plan, blend: Blend = "crop") -> None:
        if not isinstance(plan, Plan):
            raise UsageError(
                f"an aggregator of a {type(plan).__name__}",
                expected="a stream's plan: lp.Aggregator(stream.plan)",
            )
        if not isinstance(plan.sampling, GridSampling):
            raise UsageError(
                f"an aggregator of {plan.sampling.name} patches",
                expected="sampling='grid', whose patches cover the volume",
            )
        if blend not in get_args(Blend):
            raise UsageError(f"blend={blend!r}", expected=f"one of {', '.join(get_args(Blend))}")
        self._plan = plan
        self._sampling = plan.sampling
        self._blend = blend
        self._volumes: dict[str, _Volume] = {}

    def add(self, sample: Mapping[str, Any], prediction: npt.ArrayLike) -> None:
        """Add the prediction for one sample.

        Parameters
        ----------
        sample
            The sample; `patient_id` and `start` are used.
        prediction
            Array (…, z, y, x) with the patch size as its last axes.

        Raises
        ------
        UsageError
            If shape or type do not match the patch or earlier predictions, or if the sample is
            not part of the grid. With blending also for integers and for a patch added twice.
        """
        values, patient_id = np.asarray(prediction), str(sample["patient_id"])
        volume = self._volume(patient_id, values)
        start = tuple(int(v) for v in sample["start"])
        z, y, x = start
        if (summed := volume.weights) is None:
            inside, target = self._boxes(volume, start)
            volume.values[(..., *target)] = values[(..., *inside)]
        else:
            self._add_weighted(volume, summed, start, values)
        volume.seen.add((z, y, x))

    def add_batch(self, batch: Mapping[str, Any], predictions: Any) -> None:
        """Add the predictions for a batch of `torch_dataset`.

        Parameters
        ----------
        batch
            The batch; `patient_id` and `start` are used.
        predictions
            Array or tensor (batch, …, z, y, x).

        Raises
        ------
        UsageError
            If the number of predictions differs from the batch size, and as `add` does.
        """
        if len(predictions) != len(batch["patient_id"]):
            raise UsageError(
                f"{len(predictions)} predictions for a batch of {len(batch['patient_id'])} samples",
                expected="one for each",
            )
        for patient_id, start, values in zip(
            batch["patient_id"], batch["start"], predictions, strict=True
        ):
            self.add({"patient_id": patient_id, "start": start}, values)

    def _volume(self, patient_id: str, values: Array) -> _Volume:
        space = self._plan.space(patient_id)
        if values.shape[-3:] != space.size:
            raise UsageError(
                f"prediction of shape {values.shape} for a patch of {space.size} voxels (z, y, x)",
                expected="the patch's size at the end",
            )
        if patient_id not in self._volumes:
            self._volumes[patient_id] = self._new(patient_id, space, values)
        volume = self._volumes[patient_id]
        if volume.values.shape[:-3] != values.shape[:-3] or volume.dtype != values.dtype:
            raise UsageError(
                f"prediction of shape {values.shape}, {values.dtype}, after "
                f"others of {volume.values.shape[:-3]} channels, {volume.dtype}",
                expected="the same channels and type for all",
            )
        return volume

    def _new(self, patient_id: str, space: Space, values: Array) -> _Volume:
        axes = zip(self._sampling.axes(space), space.size, space.shape, strict=True)
        owned = [_owned(starts, size, length) for starts, size, length in axes]
        dtype, weights = values.dtype, None
        if self._blend != "crop":
            if dtype.kind != "f":
                raise UsageError(
                    f"blend={self._blend!r} of {dtype} predictions of patient {patient_id}",
                    expected="floats, such as probabilities: labels have no mean",
                    remedy="or blend='crop'",
                )
            dtype = np.result_type(dtype, np.float32)
            weights = np.zeros(space.shape, np.float32)
        empty = np.zeros((*values.shape[:-3], *space.shape), dtype)
        return _Volume(space, owned, empty, values.dtype, weights)

    def _add_weighted(
        self, volume: _Volume, summed: Weights, start: tuple[int, ...], values: Array
    ) -> None:
        if start in volume.seen:
            raise UsageError(
                f"the patch from {start} on was added before",
                expected="each once, or blend='crop', where the last counts",
            )
        self._boxes(volume, start)  # raises for a patch outside the grid
        low = [max(0, a) for a in start]
        ends = zip(start, volume.space.size, volume.space.shape, strict=True)
        high = [min(a + s, n) for a, s, n in ends]
        z, y, x = (slice(a, b) for a, b in zip(low, high, strict=True))
        in_z, in_y, in_x = (slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
        weights = _weights(self._blend, volume.space.size)[in_z, in_y, in_x]
        volume.values[..., z, y, x] += weights * values[..., in_z, in_y, in_x]
        summed[z, y, x] += weights

    def _boxes(self, volume: _Volume, start: Sequence[int]) -> tuple[Box, Box]:
        """Return the box of a patch's own voxels in the patch, and in the volume."""
        inside, target = [], []
        axes = self._sampling.axes(volume.space)
        for first, starts, owned in zip(start, axes, volume.owned, strict=True):
            if first not in starts:
                raise UsageError(
                    f"a patch from {tuple(start)} on is not part of the grid",
                    expected="samples of the stream that the aggregator was made for",
                )
            low, high = owned[starts.index(first)]
            inside.append(slice(low - first, high - first))
            target.append(slice(low, high))
        return (inside[0], inside[1], inside[2]), (target[0], target[1], target[2])

    def complete(self, patient_id: str) -> bool:
        """Return whether every patch of a patient was added."""
        volume = self._volumes.get(patient_id)
        return volume is not None and len(volume.seen) == self._sampling.draws(volume.space)

    def pop(self, patient_id: str) -> Array:
        """Return a patient's volume and remove it from the aggregator.

        Returns
        -------
        numpy.ndarray
            The volume (…, z, y, x) on the patient's lattice.

        Raises
        ------
        UsageError
            For an unknown patient, or if patches of the patient are missing.
        """
        self._require_complete(patient_id)
        volume = self._volumes.pop(patient_id)
        if volume.weights is not None:
            volume.values /= volume.weights
        return volume.values

    def _require_complete(self, patient_id: str) -> None:
        if patient_id not in self._plan.cohort.ids:
            raise UsageError(
                f"no patient {patient_id!r} in the cohort of this stream",
                remedy=suggestion(patient_id, self._plan.cohort.ids),
            )
        if not self.complete(patient_id):
            volume = self._volumes.get(patient_id)
            there, expected = (
                (len(volume.seen), self._sampling.draws(volume.space)) if volume else (0, "all")
            )
            raise UsageError(
                f"patient {patient_id}: {there} patches were added",
                expected=str(expected),
                remedy="add those of the whole epoch first",
            )

    def finish(self, patient_id: str) -> Prediction:
        """Return a patient's volume with its affine and remove it from the aggregator.

        Reads the metadata of the patient's store.

        Returns
        -------
        Prediction
            The volume, which can be resampled to the stored voxels and saved as NIfTI.

        Raises
        ------
        UsageError
            For an unknown patient, or if patches of the patient are missing.
        DamagedStoreError
            If the store's metadata is missing or damaged.
        """
        self._require_complete(patient_id)
        metadata = open_store(self._plan.cohort.location, patient_id)
        stored = stored_grid(metadata, self._plan.content.grid)
        content = self._plan.content
        lattice = stored if content.spacing_mm is None else lattice_of(metadata, content)
        return Prediction(patient_id, self.pop(patient_id), lattice, stored)


@cache
def _weights(blend: str, size: Shape) -> Weights:
    """Return the weights (z, y, x) of a patch's voxels, all positive."""
    axes = [_weights_along(blend, n) for n in size]
    product = reduce(np.multiply.outer, axes)
    if blend == "gaussian":
        product = np.maximum(product, _LEAST)
    return np.asarray(product, np.float32)


def _weights_along(blend: str, n: int) -> npt.NDArray[np.float64]:
    index = np.arange(n, dtype=np.float64)
    if blend == "hann":
        return np.asarray(np.sin(np.pi * (index + 1) / (n + 1)) ** 2)
    if blend == "gaussian":
        return np.asarray(np.exp(-0.5 * ((index - (n - 1) / 2) / (_SIGMA * n)) ** 2))
    return np.ones(n)


def _owned(starts: Sequence[int], size: int, length: int) -> list[tuple[int, int]]:
    """Return the first and end voxel that each patch owns: a partition of 0 … length."""
    meet = [(a + size + b) // 2 for a, b in pairwise(starts)]
    return list(zip([0, *meet], [*meet, length], strict=True))
