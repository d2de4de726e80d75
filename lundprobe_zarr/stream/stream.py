"""`PatchStream`: patches of a cohort with read-ahead, in a resumable order."""

from __future__ import annotations

import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

import numpy as np

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.patches import Content, Pad, Plan, RawSample, Sample, Sampling, Share
from lundprobe_zarr.patches.request import Labels
from lundprobe_zarr.storage.cache import CachedLocation
from lundprobe_zarr.storage.decode_pool import cores
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stream.prefetch import Failure, Loader, ahead
from lundprobe_zarr.stream.progress import DUE, GIVEN, Progress
from lundprobe_zarr.stream.state import VERSION, check, identity_of
from lundprobe_zarr.vocabulary.arguments import says_where
from lundprobe_zarr.vocabulary.markup import summary_html
from lundprobe_zarr.vocabulary.names import OBSERVERS, TARGETS

_LOG = logging.getLogger("lundprobe_zarr.stream")

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort

#: Threads for remote data, which mostly wait for a server. More cost more processor time than they
#: gain: see benchmarks/results/patches.json.
_REMOTE_THREADS = 8
#: Default limits of read-ahead: bytes, and number of patches.
_AHEAD_BYTES, _AHEAD_MOST = 96 * 1024**2, 64
#: Default size of a cache folder, bytes.
CACHE_BYTES = 50 * 10**9


_OF_BATCHES = "it belongs to lp.torch_dataset(stream, {}=…)"
_OF_LOADER = "it belongs to lp.torch_dataset(stream, batch_size=…).loader({}=…)"
#: Arguments that belong to datasets and loaders made from a stream.
_ELSEWHERE = {n: _OF_BATCHES.format(n) for n in ("batch_size", "drop_last", "transform")} | {
    n: _OF_LOADER.format(n) + "; threads= are the stream's own"
    for n in ("num_workers", "pin_memory", "persistent_workers")
}


class SkippedPatchesWarning(UserWarning):
    """Warning that unreadable patches were left out of an epoch."""


class PatchStream:
    """Patches of a cohort's volumes with their labels, for training and inference.

    An iteration yields the rest of the current epoch. Each sample is an `lp.Sample`, a dict of
    NumPy arrays and labels. The n-th patch depends on seed, epoch and n alone. Tables are read at
    once, stores only during iteration.

    Parameters
    ----------
    cohort
        The patients.
    patch_size, patch_size_mm
        Patch size (z, y, x) in voxels or in mm; see `lundprobe_zarr.patches.Plan`.
    grid, modalities, structures, dose, nnunet, folds, uncertainty, observers, steps, targets
        Content of a sample; see `lundprobe_zarr.patches.Content`. `observers="random"` samples one
        observer and step of the patient for each patch.
    spacing_mm, image_dtype
        Voxel size to resample to, mm, and type of images; see `Content`.
    sampling, pad, complete, seed, shuffle, block, window
        Choice and order of patches; see `lundprobe_zarr.patches.Plan` and `Order`.
    threads
        Threads that read ahead and decode. Default: one per core for local data, 8 for remote
        data, of which as many decode at a time as there are cores. 0 reads each patch on request.
    prefetch
        Most patches read ahead. Default: as many as fit in 96 MiB, from `threads` to 64. Up to
        four of them of one patient are read together, and what they share once; fewer where
        cores would wait for work, each alone with `spacing_mm`.
    retries
        Retries of a failed patch, after pauses of 0.2, 0.6, 1.8 … s.
    on_error
        `raise` raises `StreamError` after the last retry. `skip` leaves the patch out, counts it in
        `skipped` by patient, and warns at the end of the epoch.
    cache, cache_bytes
        Folder for a cache of remote data, which processes may share, and its limit in bytes.
    rank, ranks
        This rank reads every `ranks`-th patch of the common order.

    Raises
    ------
    UsageError
        For invalid arguments.
    UnknownLabelError
        For an unknown structure or other label.
    MissingStructureError
        If no patient has a requested structure.

    Examples
    --------
        stream = lp.PatchStream(train, (32, 192, 192), structures=("CTVT_427", "Rectum"), seed=1)
        for sample in stream:
            sample["image"]     # (modality, z, y, x)
            sample["mask"]      # (structure, z, y, x) bool; sample["present"] (structure) bool
            sample["affine"]    # (4, 4), voxel (i, j, k) of the patch -> mm, RAS
            sample["seed"]      # for random transforms: depends on seed, epoch and n alone
    """

    @says_where("PatchStream", _ELSEWHERE)
    def __init__(
        self,
        cohort: Cohort,
        patch_size: Sequence[int] | None = None,
        *,
        patch_size_mm: Sequence[float] | float | None = None,
        grid: str = "mri",
        modalities: Sequence[str] | None = None,
        structures: Sequence[str] = (),
        dose: bool = False,
        nnunet: bool = False,
        folds: Sequence[int] = (),
        uncertainty: bool = False,
        observers: Sequence[str] | Literal["random"] = (),
        steps: Sequence[int] = (1, 2),
        targets: Sequence[str] = TARGETS,
        spacing_mm: float | Sequence[float] | None = None,
        image_dtype: str | None = None,
        sampling: str | Sampling = "uniform",
        pad: Pad = "error",
        complete: bool = False,
        seed: int = 0,
        shuffle: bool = True,
        block: int = 4,
        window: int = 8,
        threads: int | None = None,
        prefetch: int | None = None,
        retries: int = 3,
        on_error: Literal["raise", "skip"] = "raise",
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise UsageError(f"on_error={on_error!r}", expected="'raise' or 'skip'")
        content = Content(
            grid, modalities, structures, dose, nnunet, folds, uncertainty,
            OBSERVERS if observers == "random" else observers,
            steps, targets, spacing_mm, image_dtype,
        )  # fmt: skip
        self.plan = Plan(
            cohort, content, patch_size, patch_size_mm=patch_size_mm, sampling=sampling, pad=pad,
            complete=complete, random_observer=observers == "random", seed=seed, shuffle=shuffle,
            block=block, window=window,
        )  # fmt: skip
        self.share = Share(rank, ranks)
        location = _location(cohort, cache, cache_bytes)
        self._threads = _whole("threads", _threads(location) if threads is None else threads, 0)
        self._loader = Loader(self.plan, location, _whole("retries", retries, 0), self._threads)
        if prefetch is None:
            prefetch = max(self._threads, min(_AHEAD_MOST, _AHEAD_BYTES // self.sample_bytes))
        self._prefetch = _whole("prefetch", prefetch, 1)
        self._on_error = on_error
        self._progress = Progress()
        #: Patches that were left out, by patient.
        self.skipped: Counter[str] = Counter()

    def __repr__(self) -> str:
        """Return a summary of patches, patients, seed and progress."""
        return (
            f"<PatchStream: {len(self.plan)} {self.plan.sampling.name} patches of {self._size()} "
            f"voxels an "
            f"epoch of {len(self.plan.cohort)} patients, seed {self.plan.seed}, at epoch "
            f"{self.epoch}, {self._standing()}>"
        )

    def _repr_html_(self) -> str:
        """Return patches, place and the labels of a sample, for notebooks."""
        facts = {
            "patches": f"{len(self.plan)} an epoch, {self.plan.sampling.name}",
            "voxels (z, y, x)": self._size(),
            "patients": str(len(self.plan.cohort)),
            "seed": str(self.plan.seed),
            "place": f"epoch {self.epoch}, {self._standing()}",
            "rank": f"{self.share.rank} of {self.share.ranks}",
            "sample": f"about {self.sample_bytes / 1e6:.1f} MB",
        }
        rows = [(axis, ", ".join(map(str, labels))) for axis, labels in self.labels.items()]
        return summary_html("PatchStream", facts, ("axis", "labels"), rows)

    def _size(self) -> str:
        sizes = {self.plan.size(i) for i in self.plan.cohort.ids}
        return "×".join(map(str, sizes.pop())) if len(sizes) == 1 else "varying"

    def _standing(self) -> str:
        if self._progress.state == GIVEN:
            return "which workers of a DataLoader read"
        return f"patch {self.place[1]}"

    def __len__(self) -> int:
        """Return the number of patches of an epoch on this rank."""
        return len(self.share.positions(0, len(self.plan)))

    def __getitem__(self, key: object) -> NoReturn:
        """Raise `UsageError`: streams are iterated, not indexed.

        `torch.utils.data.DataLoader(stream)` calls this.
        """
        raise numbered(key)

    @property
    def labels(self) -> Labels:
        """Labels along every label axis of the samples' arrays: axis -> labels."""
        return self.plan.content.labels

    @property
    def epoch(self) -> int:
        """The epoch of the next patch."""
        return self.place[0]

    @property
    def place(self) -> tuple[int, int]:
        """Epoch and position of the next patch, as `seek` takes them.

        While workers of a plain DataLoader read an epoch, its start.
        """
        return self._progress.at

    @property
    def sample_bytes(self) -> int:
        """Approximate size of the largest sample, bytes."""
        voxels = max(int(np.prod(self.plan.size(i))) for i in self.plan.cohort.ids)
        return max(1, voxels * self.plan.content.voxel_bytes)

    def __iter__(self) -> Iterator[Sample]:
        """Yield the remaining samples of this epoch; the next iteration yields the next epoch.

        A stream has one iteration at a time. When another one begins, or `seek` or
        `load_state_dict` change the position, the earlier iteration raises `UsageError`.
        """
        self.roll_over(self.share)
        turn, (epoch, start) = self._progress.take(), self.place
        for given, (_, sample) in enumerate(self.read(self.share, epoch, start), 1):
            position = min(start + given * self.share.ranks, len(self.plan))
            if not self._progress.move(turn, epoch, position):
                raise self.overtaken(epoch)
            if sample is not None:
                yield cast(Sample, sample)
        self._progress.move(turn, epoch + 1, 0)

    def overtaken(self, epoch: int) -> UsageError:
        """Return the error for an iteration that was superseded."""
        at, position = self.place
        return UsageError(
            f"this iteration over epoch {epoch} of the stream was overtaken: "
            "another one began, or seek, set_epoch or load_state_dict moved "
            f"the stream, which is at epoch {at}, patch {position} now",
            expected=(
                "one iteration at a time. Use the newer one, or create one stream "
                "per iteration, with different seeds for different patches"
            ),
        )

    def read(
        self, share: Share, epoch: int, start: int, skip: int = 0
    ) -> Iterator[tuple[int, RawSample | None]]:
        """Yield the patches of a share without changing the stream's position.

        Parameters
        ----------
        share
            Part of the order to read.
        epoch, start
            Epoch and first position.
        skip
            Patches of the share to skip without reading.

        Yields
        ------
        tuple of int and sample
            Position and sample; None instead of a patch that was left out.

        Raises
        ------
        StreamError
            If a patch cannot be read, unless `on_error="skip"`.
        """
        positions = share.positions(start, len(self.plan)).tolist()[skip:]
        _LOG.info("epoch %d from position %d: %d patches", epoch, start, len(positions))
        before = self.skipped.total()
        # Workers share the cores and the memory limit.
        prefetch = max(1, self._prefetch // share.workers)
        threads = -(-self._threads // share.workers)
        loaded = ahead(self._loader, epoch, positions, threads, prefetch)
        try:
            for index, found in loaded:
                if not isinstance(found, Failure):
                    yield index, found
                    continue
                if self._on_error == "raise":
                    raise found.error
                self.skipped[found.item.patient_id] += 1
                yield index, None
        finally:
            loaded.close()
        self._report(epoch, self.skipped.total() - before, len(positions))

    def _report(self, epoch: int, skipped: int, of: int) -> None:
        if skipped:
            who = ", ".join(f"{i} ({n})" for i, n in self.skipped.most_common(3))
            warnings.warn(
                f"epoch {epoch}: {skipped} of {of} patches could not be read and were left out; "
                f"by patient since the stream was made: {who}",
                SkippedPatchesWarning,
                stacklevel=3,
            )

    def roll_over(self, share: Share) -> None:
        """Move to the next epoch if no rank has patches left in this one.

        Callers that stop after `len(loader)` batches never exhaust the iterator.
        """
        epoch, position = self.place
        if self._progress.state == GIVEN or self.is_over(share, position):
            self._progress.seek(epoch + 1, 0, DUE)

    def is_over(self, share: Share, position: int) -> bool:
        """Return whether an epoch has begun and no rank has patches left after `position`."""
        everybody = replace(share, rank=0, worker=0, workers=1)
        return position > 0 and not len(everybody.positions(position, len(self.plan)))

    def seek(self, epoch: int, position: int = 0) -> None:
        """Set where the next iteration begins, also in workers.

        Parameters
        ----------
        epoch, position
            Epoch from 0, and position from 0 to `len(stream.plan)`.

        Raises
        ------
        UsageError
            For an epoch or position out of range.
        """
        most = len(self.plan)
        epoch, position = _index("epoch", epoch), _index("position", position)
        if epoch < 0 or not 0 <= position <= most:
            raise UsageError(
                f"epoch {epoch}, position {position}",
                expected=f"epoch 0 or more, position 0 to {most}",
            )
        self._progress.seek(epoch, position)

    def state_dict(self) -> dict[str, Any]:
        """Return position and identity of the stream.

        After the same number of steps the state is the same on every rank. It resumes with any
        number of ranks and workers, without losing or repeating patches.

        Returns
        -------
        dict
            The state, JSON-ready.

        Raises
        ------
        UsageError
            While workers of a plain DataLoader read ahead: the number of consumed batches is
            unknown.
        """
        epoch, position = self.place
        if self._progress.state == GIVEN:
            raise UsageError(
                f"no state: workers of a DataLoader read ahead in epoch {epoch}, "
                "and which of their batches were consumed is unknown",
                expected=(
                    "torch_dataset(stream, batch_size=…).loader(…), whose "
                    "state_dict counts them, or stream.seek(batch['epoch'], "
                    "batch['position']) of the last batch before this"
                ),
            )
        return {"version": VERSION, "epoch": epoch, "position": position} | identity_of(self.plan)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state.

        Parameters
        ----------
        state
            The dict that `state_dict` returned.

        Raises
        ------
        UsageError
            For a state of another dataset, cohort, seed or setting, with every difference.
        """
        self._progress.seek(*check(state, identity_of(self.plan), len(self.plan)))


def _location(cohort: Cohort, cache: str | os.PathLike[str] | None, cache_bytes: int) -> Location:
    if cache is None or cohort.location.is_local:
        return cohort.location
    dataset = cohort.dataset.identity
    return CachedLocation(
        cohort.location, Path(cache), cache_bytes, f"{dataset.digest} {dataset.created}"
    )


def _threads(location: Location) -> int:
    return cores() if location.is_local else _REMOTE_THREADS


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name}={value!r}", expected=f"an integer of at least {least}")
    return value


def numbered(key: object) -> UsageError:
    """Return the error for indexing a stream of patches or batches."""
    return UsageError(
        f"number {key!r} of a stream of patches",
        expected=(
            "iteration: for sample in stream, after stream.seek(epoch, position) if "
            "needed. For a DataLoader: "
            "lp.torch_dataset(stream, batch_size=4).loader(num_workers=2), or "
            "DataLoader(lp.torch_dataset(stream, batch_size=4), batch_size=None)"
        ),
    )


def _index(name: str, value: object) -> int:
    """Return an integer, also from NumPy or a tensor; raise `UsageError` for anything else."""
    try:
        if not isinstance(value, (bool, str)):
            return index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise UsageError(f"{name}={value!r}", expected="an integer")
