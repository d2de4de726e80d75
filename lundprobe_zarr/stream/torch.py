"""Patches for PyTorch: batches in one resumable order for any number of workers and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib import import_module
from inspect import signature
from itertools import groupby
from multiprocessing import get_context
from multiprocessing.context import get_spawning_popen
from secrets import randbits
from typing import Any, NamedTuple, NoReturn

import numpy as np

from lundprobe_zarr.errors import MissingPackageError, UsageError
from lundprobe_zarr.patches import RawSample as Sample
from lundprobe_zarr.patches import Share
from lundprobe_zarr.patches.request import VOLUMES
from lundprobe_zarr.stream.progress import BEGUN, DUE, SOUGHT, Begun, Progress, WorkerGroup
from lundprobe_zarr.stream.state import VERSION, check, identity_of
from lundprobe_zarr.stream.stream import PatchStream, numbered
from lundprobe_zarr.vocabulary.arguments import require_arguments, says_where
from lundprobe_zarr.vocabulary.version import with_extra

try:
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info
    from torch.utils.data._utils.collate import default_collate_fn_map
except ImportError as error:
    raise MissingPackageError(
        "torch is not installed", remedy=f"torch datasets need it: {with_extra('torch')}"
    ) from error

Transform = Callable[[Sample], Sample]

_OF_LOADER = "it belongs to the loader, e.g. torch_dataset(stream, batch_size=4).loader({}=…)"
_OF_STREAM = "it belongs to the stream: lp.PatchStream(cohort, …, {}=…)"
#: Arguments that belong to the loader or the stream.
_ELSEWHERE = {n: _OF_STREAM.format(n) for n in ("shuffle", "seed", "sampling", "rank", "ranks")} | {
    n: _OF_LOADER.format(n)
    for n in ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "collate_fn")
}
#: Options of a `DataLoader` that the dataset or the stream decides.
_DECIDED = {
    "batch_size": "torch_dataset(stream, batch_size=…) makes the batches",
    "batch_sampler": "torch_dataset(stream, batch_size=…) makes the batches",
    "drop_last": "it belongs to torch_dataset(stream, batch_size=…, drop_last=…)",
    "shuffle": "it belongs to lp.PatchStream(cohort, shuffle=…, seed=…), which shuffles by default",
    "sampler": "the order follows from lp.PatchStream(cohort, sampling=…, seed=…)",
    "dataset": "the loader reads the dataset whose method this is",
    "in_order": "resuming needs batches in the stream's order",
}


class Batch(dict[str, Any]):
    """A batch: tensors (patch, …), strings in a list, labels as they are, by name."""


def _refuse(batch: Sequence[Sample], **_: Any) -> NoReturn:
    raise UsageError(
        f"a batch of {len(batch)} batches: the dataset makes batches already",
        expected=(
            "dataset.loader(num_workers=…), or DataLoader(dataset, "
            "batch_size=None), or torch_dataset(stream), which yields samples"
        ),
    )


default_collate_fn_map[Batch] = _refuse


@says_where("torch_dataset", _ELSEWHERE)
def torch_dataset(
    stream: PatchStream,
    batch_size: int | None = None,
    *,
    drop_last: bool = False,
    transform: Transform | None = None,
) -> TorchPatches:
    """Make a `torch.utils.data.IterableDataset` of a stream.

    Each iteration of a plain `DataLoader` is a new epoch. It begins where `stream.seek`,
    `stream.load_state_dict` or `set_epoch` said, otherwise with the next epoch, even if the
    previous one was left early. `.loader()` resumes an epoch that was left, and its state counts
    the consumed batches. Ranks are those of the stream, otherwise those of `torch.distributed`, if
    it is initialised when an iteration begins.

    Parameters
    ----------
    stream
        The patches.
    batch_size
        Patches per batch and rank. The dataset yields batches, dicts of tensors, which are the same
        for any number of workers: use `.loader(num_workers=…)` or
        `DataLoader(dataset, batch_size=None, …)`. None yields samples for a loader that makes the
        batches; which samples form a batch then depends on the workers.
    drop_last
        Leave out patches at the end of an epoch that do not fill a batch on every rank, so that all
        ranks take the same number of steps, as DistributedDataParallel needs.
    transform
        Function applied to each sample before batching; it returns a dict.

    Returns
    -------
    TorchPatches
        The dataset.

    Raises
    ------
    UsageError
        For an invalid argument.
    MissingPackageError
        If torch is not installed.
    """
    return TorchPatches(stream, batch_size, drop_last, transform)


class _Decided(NamedTuple):
    """Where an iteration begins, and the seed of its group of workers."""

    seed: int
    epoch: int
    start: int


class TorchPatches(IterableDataset[Any]):
    """A stream as a torch dataset; made by `torch_dataset`."""

    def __init__(
        self,
        stream: PatchStream,
        batch_size: int | None,
        drop_last: bool,
        transform: Transform | None,
    ) -> None:
        if not isinstance(stream, PatchStream):
            raise UsageError(
                f"a torch dataset of a {type(stream).__name__}",
                expected=(
                    "a PatchStream: "
                    "lp.torch_dataset(lp.PatchStream(lp.open_cohort(path_or_url), "
                    "patch_size), …)"
                ),
            )
        whole = isinstance(batch_size, int) and not isinstance(batch_size, bool)
        if batch_size is not None and not (whole and batch_size >= 1):
            raise UsageError(
                f"batch_size={batch_size!r}",
                expected="a positive integer, or None for samples",
            )
        if transform is not None and not callable(transform):
            raise UsageError(f"transform={transform!r}", expected="a function of a sample, or None")
        self.stream = stream
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.transform = transform
        # Shared, so that persistent workers too learn which epoch they read.
        stream._progress = SharedProgress.of(stream._progress)
        self._distributed: tuple[int, int] | None = None
        self._iterations = 0
        #: Where the iteration that a `PatchLoader` is about to begin starts.
        self._decided: _Decided | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Spawned workers do not know their parent's process group.
        return self.__dict__ | {"_distributed": _distributed() or self._distributed}

    @property
    def _run(self) -> int:
        return self.batch_size or 1

    def _share(self, worker: int, workers: int) -> Share:
        share = self.stream.share
        rank, ranks = share.rank, share.ranks
        if ranks == 1:
            rank, ranks = _distributed() or self._distributed or (0, 1)
        return Share(rank, ranks, worker, workers, self._run, self.drop_last)

    def changed(self, sample: Sample) -> Sample:
        """Return the transformed sample; raise `UsageError` if it is not a dict."""
        found = self.transform(sample) if self.transform else sample
        if not isinstance(found, dict):
            raise UsageError(
                f"the transform made a {type(found).__name__} of a sample",
                expected="a dict: does it return the sample?",
            )
        return found

    def __len__(self) -> int:
        """Return the number of batches (or samples) of an epoch on this rank."""
        mine = len(self._share(0, 1).positions(0, len(self.stream.plan)))
        return -(-mine // self._run)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, as loaders of Accelerate and others do.

        If the stream will begin in that epoch anyway, its position is kept. Raise `UsageError` if
        this would undo a `seek` or `load_state_dict` before any iteration has begun there.
        """
        place = self.stream._progress
        at, position = place.at
        if place.state in (DUE, SOUGHT) and at == epoch:
            return
        if place.state == SOUGHT:
            raise UsageError(
                f"set_epoch({epoch}) would undo seek or load_state_dict, to "
                f"epoch {at}, patch {position}, before anything was read there",
                expected=(
                    f"set_epoch({at}). A loader of Accelerate counts epochs itself: "
                    f"loader.set_epoch({at}) once, before the first"
                ),
            )
        self.stream.seek(epoch)
        place.seek(epoch, 0, DUE)

    def __getitem__(self, key: object) -> NoReturn:
        """Raise `UsageError`: batches are iterated, not indexed."""
        raise numbered(key)

    def __iter__(self) -> Epoch:
        """Yield batches (or samples) to the end of this iteration's epoch.

        Each has `epoch`, and the `position` after it: `stream.seek(epoch, position)` resumes there.
        Samples of several workers have no position, as workers do not know each other's progress.
        """
        info, decided = get_worker_info(), self._decided
        if info is None:
            begun = Begun(decided.epoch, decided.start, None) if decided else None
            return Epoch(self, self._share(0, 1), None, begun)
        self._iterations += 1
        seed = decided.seed if decided else info.seed - info.id
        group = WorkerGroup(seed, self._iterations, info.num_workers)
        return Epoch(self, self._share(info.id, info.num_workers), group)

    def loader(self, **options: Any) -> PatchLoader:
        """Return a resumable `DataLoader` of these batches.

        Parameters
        ----------
        **options
            Options of `torch.utils.data.DataLoader`, e.g. `num_workers`.

        Returns
        -------
        PatchLoader
            The loader.

        Raises
        ------
        UsageError
            For an unknown option, one that the dataset or stream decides, or a dataset without a
            batch size.
        """
        known = signature(DataLoader.__init__).parameters
        require_arguments(".loader()", options, [n for n in known if n != "self"], _DECIDED)
        return PatchLoader(self, **options)


class Epoch(Iterator[Any]):
    """One iteration over a dataset, in the process or worker that reads it.

    Its state is kept per worker by torchdata's `StatefulDataLoader`.
    """

    def __init__(
        self,
        patches: TorchPatches,
        share: Share,
        group: WorkerGroup | None,
        begun: Begun | None = None,
    ) -> None:
        self._patches, self._share, self._group = patches, share, group
        stream = patches.stream
        self._epoch, self._start, self._turn = begun or stream._progress.begin(
            group, lambda position: stream.is_over(share, position)
        )
        self._passed = 0
        self._given: Iterator[Any] | None = None

    def __next__(self) -> Any:
        if self._given is None:
            self._given = self._give()
        return next(self._given)

    def _give(self) -> Iterator[Any]:
        """Yield batches or samples after those passed; update the stream's position if local.

        If a newer iteration has begun, this one continues without updating the position.
        """
        stream, run = self._patches.stream, self._patches._run
        together = self._share.ranks * run
        for number, length, samples in self._runs(self._passed):
            self._passed += length
            position = min(self._start + (number + 1) * together, len(stream.plan))
            self._move(self._epoch, position, BEGUN)
            about = {"epoch": self._epoch}
            if self._patches.batch_size is not None or self._share.workers == 1:
                about["position"] = position
            if self._patches.batch_size is None:
                yield from (sample | about for sample in samples)
            elif samples:
                batch = collate(samples)
                batch.update(about)
                yield batch
        self._move(self._epoch + 1, 0, DUE)

    def _move(self, epoch: int, position: int, state: int) -> None:
        if self._turn is not None:
            self._patches.stream._progress.move(self._turn, epoch, position, state)

    def _runs(self, skip: int) -> Iterator[tuple[int, int, list[Sample]]]:
        """Yield number, length and samples of each run (batch) of this share."""
        stream, changed = self._patches.stream, self._patches.changed
        together = self._share.ranks * self._patches._run
        read = stream.read(self._share, self._epoch, self._start, skip)
        for number, run in groupby(read, lambda found: (found[0] - self._start) // together):
            found = [sample for _, sample in run]
            there = [sample for sample in found if sample is not None]
            yield number, len(found), [changed(s) for s in there]

    def state_dict(self) -> dict[str, Any]:
        """Return the progress of this iteration in this worker; JSON-ready."""
        place = {"version": VERSION, "epoch": self._epoch, "position": self._start}
        return place | self._identity | {"share": asdict(self._share), "passed": self._passed}

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return identity_of(self._patches.stream.plan)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume an iteration with the same number of workers and ranks.

        Raise `UsageError` for a state of another stream or share, or if this iteration has begun.
        """
        stream = self._patches.stream
        epoch, start = check(state, self._identity, len(stream.plan))
        mine = asdict(self._share)
        if self._given is not None or state.get("share") != mine:
            raise UsageError(
                f"a state of the share {state.get('share')}",
                expected=(
                    f"one of {mine}, before the first batch: as many ranks and "
                    "workers as when it was taken"
                ),
            )
        self._epoch, self._start, self._passed = epoch, start, int(state["passed"])
        self._turn = stream._progress.correct(self._group, epoch, start)


class PatchLoader(DataLoader[Any]):
    """A `DataLoader` that updates its stream's position and has a state to resume from."""

    def __init__(self, dataset: TorchPatches, *, batch_size: None = None, **options: Any) -> None:
        # Lightning recreates a loader from its attributes, including `batch_size`.
        if dataset.batch_size is None:
            raise UsageError(
                "a loader of single samples",
                expected=(
                    "a batch size, e.g. torch_dataset(stream, batch_size=4).loader(num_workers=2)"
                ),
            )
        # Batches are complete; torch's conversion would turn tuples of labels into lists.
        super().__init__(dataset, batch_size=batch_size, **{"collate_fn": _unchanged} | options)
        self._patches = dataset
        self._seed, self._iterations = randbits(62), 0

    def __iter__(self) -> Any:
        """Yield the remaining batches of this epoch, or of the next epoch if none remain.

        When a newer iteration begins, or `seek` or `load_state_dict` of the stream is called, the
        earlier iteration raises `UsageError`.
        """
        patches, stream = self._patches, self._patches.stream
        stream.roll_over(patches._share(0, 1))
        turn, (epoch, start) = stream._progress.take(), stream.place
        if not self.persistent_workers:
            self._seed, self._iterations = randbits(62), 0
        self._iterations += 1
        stream._progress.expect(
            WorkerGroup(self._seed, self._iterations, self.num_workers), epoch, start
        )
        # Workers started below receive a copy.
        patches._decided = _Decided(self._seed, epoch, start)
        try:
            return self._count(super().__iter__(), epoch, turn)
        finally:
            patches._decided = None

    def _count(self, batches: Iterator[Batch], epoch: int, turn: int) -> Iterator[Batch]:
        stream = self._patches.stream
        while True:
            if not stream._progress.has(turn):
                raise stream.overtaken(epoch)
            batch = next(batches, None)
            if batch is None:
                break
            stream._progress.move(turn, epoch, int(batch["position"]))
            yield batch
        stream._progress.move(turn, epoch + 1, 0)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; see `TorchPatches.set_epoch`."""
        self._patches.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the consumed batches; see `PatchStream.state_dict`."""
        return self._patches.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume after the batch at which `state` was saved; see `PatchStream.load_state_dict`."""
        self._patches.stream.load_state_dict(state)


class SharedProgress(Progress):
    """A `Progress` in memory shared with forked and spawned workers.

    Pickling to a spawned worker shares it; any other pickling or copying makes a copy.
    """

    def __init__(self, values: Sequence[int]) -> None:
        shared = torch.tensor(values, dtype=torch.int64)
        shared.share_memory_()  # type: ignore[no-untyped-call,unused-ignore]
        # A lock of the spawn context works in processes of the other contexts too.
        super().__init__(shared, get_context("spawn").Lock())  # type: ignore[arg-type,unused-ignore]

    @classmethod
    def of(cls, place: Progress) -> SharedProgress:
        """Return the progress itself if it is shared, otherwise a shared copy."""
        return place if isinstance(place, cls) else cls(place.values())

    def __reduce__(self) -> Any:
        if get_spawning_popen() is None:  # type: ignore[no-untyped-call,unused-ignore]
            return SharedProgress, (self.values(),)
        return object.__new__, (SharedProgress,), self.__dict__


def _distributed() -> tuple[int, int] | None:
    """Return rank and number of ranks of torch's process group, if there is one."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return None


def _unchanged(batch: Batch) -> Batch:
    return batch


def collate(samples: Sequence[Sample]) -> Batch:
    """Make one batch of samples: arrays become stacked tensors of their type, strings a list.

    Labels, which are the same for all, are kept. Raise `UsageError` for arrays that differ in shape
    or type, and for batches.
    """
    if isinstance(samples[0], Batch):
        _refuse(samples)
    return Batch({name: _stacked(name, [s[name] for s in samples]) for name in samples[0]})


def _stacked(name: str, values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.stack(list(values))
    if isinstance(first, np.ndarray):
        kinds = {(v.shape, v.dtype) for v in values}
        if len(kinds) > 1:
            found = ", ".join(sorted(f"{shape} {dtype}" for shape, dtype in kinds))
            raise UsageError(
                f"{name!r} differs within a batch: {found}",
                expected=(
                    "the same shape and type: give the stream a patch_size in voxels, or "
                    "spacing_mm, and image_dtype='float32'"
                ),
            )
        return torch.from_numpy(np.stack(values))
    if isinstance(first, (bool, int, float)):
        return torch.tensor(values)
    alike = isinstance(first, tuple) and all(v == first for v in values)
    return first if alike else list(values)


def to_monai(sample: Sample) -> Sample:
    """Convert a sample for MONAI's dictionary transforms. Needs MONAI.

    Parameters
    ----------
    sample
        A sample of a stream.

    Returns
    -------
    dict
        The sample with volumes as `MetaTensor` (channel, x, y, z), all label axes as one channel
        axis, and the affine (4, 4), voxel -> mm, RAS.
    """
    from monai.data.meta_tensor import MetaTensor

    affine = torch.as_tensor(np.asarray(sample["affine"]))
    arrays = {k: MetaTensor(t, affine=affine) for k, t in channels_first(sample).items()}
    return sample | arrays


def to_torchio(sample: Sample) -> Any:
    """Convert a sample to a TorchIO `Subject`. Needs TorchIO.

    Dose and uncertainty are plain `torchio.Image`s of the types `dose` and `uncertainty`, so
    intensity transforms (normalisation, noise, gamma …) do not change their physical values.
    Spatial transforms treat them as label maps, nearest voxel by default: resample with the
    stream's `spacing_mm` instead, which is linear.

    Parameters
    ----------
    sample
        A sample of a stream.

    Returns
    -------
    torchio.Subject
        `image` as `ScalarImage`, masks as `LabelMap` (uint8), axes (channel, x, y, z), affine
        voxel -> mm, RAS.
    """
    torchio: Any = import_module("torchio")
    affine = np.asarray(sample["affine"])
    arrays = channels_first(sample)
    images: dict[str, Any] = {}
    for name, tensor in arrays.items():
        if name.endswith("mask"):
            images[name] = torchio.LabelMap(tensor=tensor.to(torch.uint8), affine=affine)
        elif name == "image":
            images[name] = torchio.ScalarImage(tensor=tensor, affine=affine)
        else:
            images[name] = torchio.Image(tensor=tensor, affine=affine, type=name)
    return torchio.Subject(**{k: v for k, v in sample.items() if k not in images}, **images)


def channels_first(sample: Sample) -> dict[str, Any]:
    """Return the volumes of a sample as tensors (channel, x, y, z), label axes merged."""
    return {
        name: torch.from_numpy(
            np.ascontiguousarray(
                sample[name].reshape(-1, *sample[name].shape[-3:]).transpose(0, 3, 2, 1)
            )
        )
        for name in VOLUMES
        if name in sample
    }
