"""Patches for PyTorch: batches in one order, whatever workers and ranks, and resumable in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lundprobe_zarr.errors import MissingPackageError, UsageError
from lundprobe_zarr.patches import Sample, Share
from lundprobe_zarr.patches.request import VOLUMES
from lundprobe_zarr.stream.stream import PatchStream
from lundprobe_zarr.vocabulary.version import with_extra

try:
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info
except ImportError as error:
    raise MissingPackageError(
        f"torch is not installed; torch datasets need it: {with_extra('torch')}"
    ) from error

Batch = dict[str, Any]
Transform = Callable[[Sample], Sample]


def torch_dataset(
    stream: PatchStream,
    batch_size: int | None = None,
    *,
    drop_last: bool = False,
    transform: Transform | None = None,
) -> TorchPatches:
    """A stream as a `torch.utils.data.IterableDataset`.

    With `batch_size` it gives whole batches, dicts of tensors: use `.loader(num_workers=…)`, or
    `DataLoader(dataset, batch_size=None, …)`. Batches are the same, in the same order, with any
    number of workers, and any number of ranks shares the same global batches of
    ranks × `batch_size` patches. Without, it gives samples for a loader that batches by itself:
    nothing is lost or repeated, but which samples make a batch depends on the workers.

    `drop_last` leaves out the patches of an epoch that do not fill a batch on every rank, so that
    ranks take the same number of steps, as DistributedDataParallel needs. `transform` is called
    with every sample before it is batched. Ranks are those of the stream, or, where it has none,
    of `torch.distributed` if that is initialised by now.

    Raises `UsageError` for a batch size that makes no sense, `MissingPackageError` without torch.
    """
    return TorchPatches(stream, batch_size, drop_last, transform)


class TorchPatches(IterableDataset[Any]):
    """A stream as a torch dataset; made by `torch_dataset`."""

    def __init__(
        self,
        stream: PatchStream,
        batch_size: int | None,
        drop_last: bool,
        transform: Transform | None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size={batch_size}; expected at least 1, or None for samples")
        self.stream = stream
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.transform = transform
        self._rank, self._ranks = _ranks(stream)
        # Shared with workers, persistent ones too, who learn from it where an epoch begins.
        self._at: torch.Tensor = torch.tensor(stream.place)
        self._at.share_memory_()  # type: ignore[no-untyped-call,unused-ignore]

    @property
    def _run(self) -> int:
        return self.batch_size or 1

    def _share(self, worker: int, workers: int) -> Share:
        return Share(self._rank, self._ranks, worker, workers, self._run, self.drop_last)

    def __len__(self) -> int:
        """Batches, or samples without a batch size, of an epoch on this rank."""
        mine = len(self._share(0, 1).positions(0, len(self.stream.plan)))
        return -(-mine // self._run)

    def publish(self) -> None:
        """Tell workers where the stream stands: the next iteration begins there."""
        self._at[:] = torch.tensor(self.stream.place)

    def __iter__(self) -> Iterator[Any]:
        """Batches, or samples, from where the stream stands to the end of the epoch.

        Each has `position`: that after it, where `stream.seek(epoch, position)` goes on.
        """
        info = get_worker_info()
        if info is None:
            self.publish()
        epoch, start = (int(v) for v in self._at)
        share = self._share(info.id, info.num_workers) if info else self._share(0, 1)
        together = self._ranks * self._run
        for number, samples in self._runs(share, epoch, start):
            position = min(start + (number + 1) * together, len(self.stream.plan))
            about = {"epoch": epoch, "position": position}
            if self.batch_size is None:
                yield from (sample | about for sample in samples)
            elif samples:
                yield collate(samples) | about

    def _runs(self, share: Share, epoch: int, start: int) -> Iterator[tuple[int, list[Sample]]]:
        """Samples of each run (batch) that is this worker's, with the run's number."""
        together, number, run = self._ranks * self._run, None, []
        for position, sample in self.stream.read(share, epoch, start):
            this = (position - start) // together
            if number is not None and this != number:
                yield number, run
                run = []
            number = this
            if sample is not None:
                run.append(self.transform(sample) if self.transform else sample)
        if number is not None:
            yield number, run

    def loader(self, **options: Any) -> PatchLoader:
        """A `DataLoader` of these batches that can be left and taken up; options are its own."""
        return PatchLoader(self, **options)


class PatchLoader(DataLoader[Any]):
    """A `DataLoader` that moves its stream on: epoch after epoch, with a state to resume from."""

    def __init__(self, dataset: TorchPatches, **options: Any) -> None:
        if dataset.batch_size is None:
            raise UsageError(
                "a loader of single samples; expected a batch size, e.g. "
                "torch_dataset(stream, batch_size=4).loader(num_workers=2)"
            )
        # Batches are made; torch's own conversion would turn tuples of labels into lists.
        super().__init__(dataset, batch_size=None, **{"collate_fn": _unchanged} | options)
        self._patches = dataset

    def __iter__(self) -> Any:
        """The batches that are left of this epoch; then, or if there are none, the next begins."""
        self._patches.stream.roll_over(self._patches._share(0, 1))
        self._patches.publish()
        return self._count(super().__iter__())

    def _count(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        stream = self._patches.stream
        epoch = stream.epoch
        for batch in batches:
            stream.seek(epoch, int(batch["position"]))
            yield batch
        stream.seek(epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the batches that were taken out end; see `PatchStream.state_dict`."""
        return self._patches.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the batch that `state` was taken after; raises as the stream's does."""
        self._patches.stream.load_state_dict(state)


def _ranks(stream: PatchStream) -> tuple[int, int]:
    if stream.share.ranks > 1:
        return stream.share.rank, stream.share.ranks
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _unchanged(batch: Batch) -> Batch:
    return batch


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples as one batch: arrays stacked into tensors of the same type, strings in a list.

    Labels, the same for all, stay as they are. Raises `UsageError` for arrays that differ in shape
    or type.
    """
    return {name: _stacked(name, [s[name] for s in samples]) for name in samples[0]}


def _stacked(name: str, values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.stack(list(values))
    if isinstance(first, np.ndarray):
        kinds = {(v.shape, v.dtype) for v in values}
        if len(kinds) > 1:
            found = ", ".join(sorted(f"{shape} {dtype}" for shape, dtype in kinds))
            raise UsageError(
                f"{name!r} differs within a batch: {found}; expected arrays alike: give the stream "
                "a patch_size in voxels, or spacing_mm, and image_dtype='float32'"
            )
        return torch.from_numpy(np.stack(values))
    if isinstance(first, (bool, int, float)):
        return torch.tensor(values)
    alike = isinstance(first, tuple) and all(v == first for v in values)
    return first if alike else list(values)


def to_monai(sample: Sample) -> Sample:
    """A sample as MONAI's dictionary transforms take it: axes (channel, x, y, z), `MetaTensor`.

    The affine (voxel -> mm, RAS) goes with each array. Needs MONAI.
    """
    from monai.data.meta_tensor import MetaTensor

    affine = torch.as_tensor(np.asarray(sample["affine"]))
    arrays = {k: MetaTensor(t, affine=affine) for k, t in _channels_first(sample).items()}
    return sample | arrays


def to_torchio(sample: Sample) -> Any:
    """A sample as a TorchIO `Subject`: images and dose as `ScalarImage`, masks as `LabelMap`.

    Axes are (channel, x, y, z), the affine is voxel -> mm, RAS. Needs TorchIO.
    """
    import torchio

    affine = np.asarray(sample["affine"])
    arrays = _channels_first(sample)
    images = {
        name: (torchio.LabelMap if name.endswith("mask") else torchio.ScalarImage)(
            tensor=tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor, affine=affine
        )
        for name, tensor in arrays.items()
    }
    return torchio.Subject(**{k: v for k, v in sample.items() if k not in images}, **images)


def _channels_first(sample: Sample) -> dict[str, Any]:
    """The volumes of a sample as tensors (channel, x, y, z): all label axes made one."""
    return {
        name: torch.from_numpy(
            np.ascontiguousarray(
                sample[name].reshape(-1, *sample[name].shape[-3:]).transpose(0, 3, 2, 1)
            )
        )
        for name in VOLUMES
        if name in sample
    }
