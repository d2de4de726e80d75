"""Patches for PyTorch: batches in one order, whatever workers and ranks, and resumable in it."""

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
from lundprobe_zarr.stream.place import BEGUN, DUE, SOUGHT, Begun, Crew, Place
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
#: Arguments of `torch_dataset` that are somebody else's.
_ELSEWHERE = {n: _OF_STREAM.format(n) for n in ("shuffle", "seed", "sampling", "rank", "ranks")} | {
    n: _OF_LOADER.format(n)
    for n in ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "collate_fn")
}
#: Options of a `DataLoader` that decide which samples make a batch: not a loader's to choose here.
_DECIDED = {
    "batch_size": "torch_dataset(stream, batch_size=…) makes the batches",
    "batch_sampler": "torch_dataset(stream, batch_size=…) makes the batches",
    "drop_last": "it belongs to torch_dataset(stream, batch_size=…, drop_last=…)",
    "shuffle": "it belongs to lp.PatchStream(cohort, shuffle=…, seed=…), which is shuffled unless "
    "told otherwise",
    "sampler": "which patches come follows from lp.PatchStream(cohort, sampling=…, seed=…)",
    "dataset": "a loader is of the dataset that it is a method of",
    "in_order": "batches come in the stream's order, without which no state could be resumed",
}


class Batch(dict[str, Any]):
    """A batch: tensors (patch, …), strings in a list, labels as they are, by name."""


def _refuse(batch: Sequence[Sample], **_: Any) -> NoReturn:
    raise UsageError(
        f"{len(batch)} batches to be made a batch of: the dataset makes batches already",
        expected=(
            "dataset.loader(num_workers=…), or DataLoader(dataset, "
            "batch_size=None), or samples, of torch_dataset(stream) without a "
            "batch size"
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
    """A stream as a `torch.utils.data.IterableDataset`.

    With `batch_size` it gives whole batches, dicts of tensors: use `.loader(num_workers=…)`, or
    `DataLoader(dataset, batch_size=None, …)`. Batches are the same, in the same order, with any
    number of workers, and any number of ranks shares the same global batches of
    ranks × `batch_size` patches. Without, it gives samples for a loader that batches by itself:
    nothing is lost or repeated, but which samples make a batch depends on the workers.

    Every iteration of a `DataLoader` is an epoch of its own, with any number and kind of workers:
    it begins where `stream.seek`, `stream.load_state_dict` or `set_epoch` said, or else with the
    epoch after the one before, even if that was left early. `.loader()` gives the rest of an
    epoch that was left, and has a state that counts the batches that were taken.

    `drop_last` leaves out the patches of an epoch that do not fill a batch on every rank, so that
    ranks take the same number of steps, as DistributedDataParallel needs. `transform` is called
    with every sample before it is batched. Ranks are those of the stream, or, where it has none,
    of `torch.distributed`, if that is initialised when an iteration begins.

    Raises `UsageError` for a stream that is none and a batch size that makes no sense,
    `MissingPackageError` without torch.
    """
    return TorchPatches(stream, batch_size, drop_last, transform)


class _Decided(NamedTuple):
    """Where an iteration is to begin, and the seed of the crew that does it."""

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
                expected="a whole number from 1 on, or None for samples",
            )
        if transform is not None and not callable(transform):
            raise UsageError(f"transform={transform!r}", expected="a function of a sample, or None")
        self.stream = stream
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.transform = transform
        # Workers, persistent ones too, learn from it which epoch they have.
        stream._place = SharedPlace.of(stream._place)
        self._distributed: tuple[int, int] | None = None
        self._iterations = 0
        #: What a `PatchLoader` decided for the iteration that it is about to begin.
        self._decided: _Decided | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned knows nothing of its parent's process group.
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
        """A sample as `transform` makes it; raises `UsageError` if that is no dict."""
        found = self.transform(sample) if self.transform else sample
        if not isinstance(found, dict):
            raise UsageError(
                f"the transform made a {type(found).__name__} of a sample",
                expected="a dict: does it return the sample?",
            )
        return found

    def __len__(self) -> int:
        """Batches, or samples without a batch size, of a whole epoch on this rank."""
        mine = len(self._share(0, 1).positions(0, len(self.stream.plan)))
        return -(-mine // self._run)

    def set_epoch(self, epoch: int) -> None:
        """Have the next iteration give an epoch, as loaders of Accelerate and others say it.

        Where the stream is to begin in that epoch already, it stays where it is. Raises
        `UsageError` if it was moved to another by `seek` or `load_state_dict` and no iteration
        has begun there, which would be undone.
        """
        place = self.stream._place
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
        """Raise `UsageError`: batches have an order, and are iterated."""
        raise numbered(key)

    def __iter__(self) -> Epoch:
        """Batches, or samples, to the end of the epoch that this iteration has.

        Each has `epoch`, and `position`: that after it, where `stream.seek(epoch, position)` goes
        on. Samples of several workers have none, as one of them knows nothing of the others'.
        """
        info, decided = get_worker_info(), self._decided
        if info is None:
            begun = Begun(decided.epoch, decided.start, None) if decided else None
            return Epoch(self, self._share(0, 1), None, begun)
        self._iterations += 1
        seed = decided.seed if decided else info.seed - info.id
        crew = Crew(seed, self._iterations, info.num_workers)
        return Epoch(self, self._share(info.id, info.num_workers), crew)

    def loader(self, **options: Any) -> PatchLoader:
        """A `DataLoader` of these batches that can be left and taken up; options are its own.

        Raises `UsageError` for an option that it has not got, or that is decided elsewhere, and
        for a dataset without a batch size.
        """
        known = signature(DataLoader.__init__).parameters
        require_arguments(".loader()", options, [n for n in known if n != "self"], _DECIDED)
        return PatchLoader(self, **options)


class Epoch(Iterator[Any]):
    """One iteration over a dataset, in the process or worker that reads it.

    It has a state, which torchdata's `StatefulDataLoader` keeps for each worker.
    """

    def __init__(
        self, patches: TorchPatches, share: Share, crew: Crew | None, begun: Begun | None = None
    ) -> None:
        self._patches, self._share, self._crew = patches, share, crew
        stream = patches.stream
        self._epoch, self._start, self._turn = begun or stream._place.begin(
            crew, lambda position: stream.is_over(share, position)
        )
        self._passed = 0
        self._given: Iterator[Any] | None = None

    def __next__(self) -> Any:
        if self._given is None:
            self._given = self._give()
        return next(self._given)

    def _give(self) -> Iterator[Any]:
        """Batches or samples behind those passed; the stream moves along if it is in this process.

        A newer iteration has the stream's place, and this one goes on without.
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
            self._patches.stream._place.move(self._turn, epoch, position, state)

    def _runs(self, skip: int) -> Iterator[tuple[int, int, list[Sample]]]:
        """Samples of each run (batch) of this share, with the run's number and its patches."""
        stream, changed = self._patches.stream, self._patches.changed
        together = self._share.ranks * self._patches._run
        read = stream.read(self._share, self._epoch, self._start, skip)
        for number, run in groupby(read, lambda found: (found[0] - self._start) // together):
            found = [sample for _, sample in run]
            there = [sample for sample in found if sample is not None]
            yield number, len(found), [changed(s) for s in there]

    def state_dict(self) -> dict[str, Any]:
        """How far this iteration is, in this worker; JSON-ready."""
        place = {"version": VERSION, "epoch": self._epoch, "position": self._start}
        return place | self._identity | {"share": asdict(self._share), "passed": self._passed}

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return identity_of(self._patches.stream.plan)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where an iteration was, in the same of as many workers and ranks.

        Raises `UsageError` for a state of another stream or share, or once this one has begun.
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
        self._turn = stream._place.correct(self._crew, epoch, start)


class PatchLoader(DataLoader[Any]):
    """A `DataLoader` that moves its stream on: epoch after epoch, with a state to resume from."""

    def __init__(self, dataset: TorchPatches, *, batch_size: None = None, **options: Any) -> None:
        # Lightning makes a loader anew from its attributes, `batch_size` among them.
        if dataset.batch_size is None:
            raise UsageError(
                "a loader of single samples",
                expected=(
                    "a batch size, e.g. torch_dataset(stream, batch_size=4).loader(num_workers=2)"
                ),
            )
        # Batches are made; torch's own conversion would turn tuples of labels into lists.
        super().__init__(dataset, batch_size=batch_size, **{"collate_fn": _unchanged} | options)
        self._patches = dataset
        self._seed, self._iterations = randbits(62), 0

    def __iter__(self) -> Any:
        """The batches that are left of this epoch; then, or if there are none, the next begins.

        One iteration at a time: a newer one, or `seek` or `load_state_dict` of the stream, makes
        the one before raise `UsageError`.
        """
        patches, stream = self._patches, self._patches.stream
        stream.roll_over(patches._share(0, 1))
        turn, (epoch, start) = stream._place.take(), stream.place
        if not self.persistent_workers:
            self._seed, self._iterations = randbits(62), 0
        self._iterations += 1
        stream._place.expect(Crew(self._seed, self._iterations, self.num_workers), epoch, start)
        # Workers that are started now take it with them.
        patches._decided = _Decided(self._seed, epoch, start)
        try:
            return self._count(super().__iter__(), epoch, turn)
        finally:
            patches._decided = None

    def _count(self, batches: Iterator[Batch], epoch: int, turn: int) -> Iterator[Batch]:
        stream = self._patches.stream
        while True:
            if not stream._place.has(turn):
                raise stream.overtaken(epoch)
            batch = next(batches, None)
            if batch is None:
                break
            stream._place.move(turn, epoch, int(batch["position"]))
            yield batch
        stream._place.move(turn, epoch + 1, 0)

    def set_epoch(self, epoch: int) -> None:
        """As `TorchPatches.set_epoch`."""
        self._patches.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the batches that were taken out end; see `PatchStream.state_dict`."""
        return self._patches.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the batch that `state` was taken after; raises as the stream's does."""
        self._patches.stream.load_state_dict(state)


class SharedPlace(Place):
    """A `Place` in memory that a process shares with workers of every kind.

    Pickled to a worker that is spawned it is the same one; pickled or copied otherwise, a copy.
    """

    def __init__(self, values: Sequence[int]) -> None:
        shared = torch.tensor(values, dtype=torch.int64)
        shared.share_memory_()  # type: ignore[no-untyped-call,unused-ignore]
        # Of the context that works for processes of all others too.
        super().__init__(shared, get_context("spawn").Lock())  # type: ignore[arg-type,unused-ignore]

    @classmethod
    def of(cls, place: Place) -> SharedPlace:
        """The place itself, if it is shared already, or a shared copy."""
        return place if isinstance(place, cls) else cls(place.values())

    def __reduce__(self) -> Any:
        if get_spawning_popen() is None:  # type: ignore[no-untyped-call,unused-ignore]
            return SharedPlace, (self.values(),)
        return object.__new__, (SharedPlace,), self.__dict__


def _distributed() -> tuple[int, int] | None:
    """Rank and ranks of torch's process group, if there is one."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return None


def _unchanged(batch: Batch) -> Batch:
    return batch


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples as one batch: arrays stacked into tensors of the same type, strings in a list.

    Labels, the same for all, stay as they are. Raises `UsageError` for arrays that differ in shape
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
                    "arrays alike: give the stream a patch_size in voxels, or "
                    "spacing_mm, and image_dtype='float32'"
                ),
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
    """A sample as a TorchIO `Subject`: `image` as `ScalarImage`, masks as `LabelMap`.

    Dose and uncertainty are plain `torchio.Image`s of the types `dose` and `uncertainty`: their
    values mean something, so transforms of intensity (normalisation, noise, gamma …) leave them
    alone. Spatial ones move them as they move label maps, by default to the nearest
    voxel: resample with the stream's `spacing_mm` instead, which is linear. Axes are (channel, x,
    y, z), the affine is voxel -> mm, RAS. Needs TorchIO.
    """
    torchio: Any = import_module("torchio")
    affine = np.asarray(sample["affine"])
    arrays = _channels_first(sample)
    images: dict[str, Any] = {}
    for name, tensor in arrays.items():
        if name.endswith("mask"):
            images[name] = torchio.LabelMap(tensor=tensor.to(torch.uint8), affine=affine)
        elif name == "image":
            images[name] = torchio.ScalarImage(tensor=tensor, affine=affine)
        else:
            images[name] = torchio.Image(tensor=tensor, affine=affine, type=name)
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
