"""`PatchStream`: patches of a cohort, read ahead, in an order that can be left and taken up."""

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
from lundprobe_zarr.storage.cores import cores
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stream.place import DUE, GIVEN, Place
from lundprobe_zarr.stream.prefetch import Failure, Loader, ahead
from lundprobe_zarr.stream.state import VERSION, check, identity_of
from lundprobe_zarr.vocabulary.arguments import says_where
from lundprobe_zarr.vocabulary.names import OBSERVERS, TARGETS

_LOG = logging.getLogger("lundprobe_zarr.stream")

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort

#: Threads that read from afar: each waits for a server most of the time. More take more of the
#: processor than they bring: see benchmarks/results/patches.json.
_REMOTE_THREADS = 8
#: Bytes of patches read ahead at most, unless `prefetch` says otherwise, and the most patches.
_AHEAD_BYTES, _AHEAD_MOST = 256 * 1024**2, 64
#: Default size of a cache folder, bytes.
CACHE_BYTES = 50 * 10**9


_OF_BATCHES = "it belongs to lp.torch_dataset(stream, {}=…)"
_OF_LOADER = "it belongs to lp.torch_dataset(stream, batch_size=…).loader({}=…)"
#: Arguments that are not a stream's own, but of what is made of it.
_ELSEWHERE = {n: _OF_BATCHES.format(n) for n in ("batch_size", "drop_last", "transform")} | {
    n: _OF_LOADER.format(n) + "; threads= are the stream's own"
    for n in ("num_workers", "pin_memory", "persistent_workers")
}


class SkippedPatchesWarning(UserWarning):
    """Patches that could not be read were left out of an epoch."""


class PatchStream:
    """Patches of a cohort's volumes with their labels, for training and inference.

    An iteration is an epoch, from where the stream stands to its end; each sample is a dict of
    NumPy arrays and labels. Which patch comes n-th follows from seed, epoch and n alone.

        stream = lp.PatchStream(train, (32, 192, 192), structures=("CTVT_427", "Rectum"), seed=1)
        for sample in stream:
            sample["image"]     # (modality, z, y, x)
            sample["mask"]      # (structure, z, y, x) bool; sample["present"] (structure) bool
            sample["affine"]    # (4, 4), voxel (i, j, k) of the patch -> mm, RAS
            sample["seed"]      # of seed, epoch and n, for random transforms: the same if resumed

    What a sample holds: `grid`, `modalities`, `structures`, `dose`, `nnunet`, `folds`,
    `uncertainty`, `observers`, `steps`, `targets`, `spacing_mm`, `image_dtype`, as in `Content`,
    and `read_patch` says what its arrays are. `observers="random"` draws one observer and step of
    the patient's for each patch. Which patches: `patch_size` voxels (z, y, x) or `patch_size_mm`,
    `sampling`, `pad`, `complete`, `seed`, `shuffle`, `block` and `window`, as in `Plan` and
    `Order`.

    - `threads` read and decode ahead: the cores for local data and 8 for remote ones; 0 reads
      only when asked. `prefetch` is how many patches wait at most, by default as many as 256 MiB
      hold, from `threads` on up to 64.
    - A patch that cannot be read is tried `retries` times more, with pauses of 0.2, 0.6, 1.8 … s;
      then `on_error="raise"` raises `StreamError`, and `"skip"` leaves it out, counts it by
      patient in `skipped`, and warns at the end of the epoch.
    - `cache` is a folder to keep remote data in, `cache_bytes` its limit; processes may share it.
    - `rank` of `ranks` takes every `ranks`-th patch of the one order; see `Share`.

    Raises `UsageError`, `UnknownLabelError` or `MissingStructureError` at once for what cannot be
    had; reads tables, and no store, until it is iterated.
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
        self._place = Place()
        #: Patches that were left out, by patient.
        self.skipped: Counter[str] = Counter()

    def __repr__(self) -> str:
        """What it draws of whom, and where it stands."""
        sizes = {self.plan.size(i) for i in self.plan.cohort.ids}
        size = "×".join(map(str, next(iter(sizes)))) if len(sizes) == 1 else "varying"
        return (
            f"<PatchStream: {len(self.plan)} {self.plan.sampling.name} patches of {size} voxels an "
            f"epoch of {len(self.plan.cohort)} patients, seed {self.plan.seed}, at epoch "
            f"{self.epoch}, {self._standing()}>"
        )

    def _standing(self) -> str:
        if self._place.state == GIVEN:
            return "which workers of a DataLoader read"
        return f"patch {self.place[1]}"

    def __len__(self) -> int:
        """Patches of an epoch that are this rank's."""
        return len(self.share.positions(0, len(self.plan)))

    def __getitem__(self, key: object) -> NoReturn:
        """Raise `UsageError`: a stream has an order, and is iterated.

        `torch.utils.data.DataLoader(stream)` arrives here.
        """
        raise numbered(key)

    @property
    def labels(self) -> Labels:
        """Labels along every label axis of the samples' arrays: axis -> labels."""
        return self.plan.content.labels

    @property
    def epoch(self) -> int:
        """The epoch that the next patch is of."""
        return self.place[0]

    @property
    def place(self) -> tuple[int, int]:
        """Epoch and position of the next patch: what `seek` takes.

        While workers of a plain DataLoader read an epoch, where that began.
        """
        return self._place.at

    @property
    def sample_bytes(self) -> int:
        """About what a sample takes, bytes: the largest of any patient."""
        voxels = max(int(np.prod(self.plan.size(i))) for i in self.plan.cohort.ids)
        return max(1, voxels * self.plan.content.voxel_bytes)

    def __iter__(self) -> Iterator[Sample]:
        """The patches that are left of this epoch; then the next epoch begins.

        A stream stands in one place, so it has one iteration at a time: when another begins, or
        `seek` or `load_state_dict` move the stream, the one before raises `UsageError`.
        """
        self.roll_over(self.share)
        turn, (epoch, start) = self._place.take(), self.place
        for given, (_, sample) in enumerate(self.read(self.share, epoch, start), 1):
            position = min(start + given * self.share.ranks, len(self.plan))
            if not self._place.move(turn, epoch, position):
                raise self.overtaken(epoch)
            if sample is not None:
                yield cast(Sample, sample)
        self._place.move(turn, epoch + 1, 0)

    def overtaken(self, epoch: int) -> UsageError:
        """The error for an iteration of an epoch that may not go on."""
        at, position = self.place
        return UsageError(
            f"this iteration over epoch {epoch} of the stream was overtaken: "
            "another one began, or seek, set_epoch or load_state_dict moved "
            f"the stream, which is at epoch {at}, patch {position} now",
            expected=(
                "one iteration at a time. Go on with the newer one, or make a "
                "stream for each, with seeds of their own if they shall not give "
                "the same patches"
            ),
        )

    def read(
        self, share: Share, epoch: int, start: int, skip: int = 0
    ) -> Iterator[tuple[int, RawSample | None]]:
        """A share's patches of an epoch from position `start` on, each with its position.

        This is what iterating does, without moving the stream. The first `skip` of the share are
        passed over unread. A patch that was left out is None. Raises `StreamError` for one that
        cannot be read, unless `on_error="skip"`.
        """
        positions = share.positions(start, len(self.plan)).tolist()[skip:]
        _LOG.info("epoch %d from position %d: %d patches", epoch, start, len(positions))
        before = self.skipped.total()
        # Workers share what the machine and the memory have to give.
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
                self.skipped[found.draw.patient_id] += 1
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
        """Stand before the next epoch if no rank's share has anything left of this one.

        Who counts batches stops at the last one, and so never sees the iteration end.
        """
        epoch, position = self.place
        if self._place.state == GIVEN or self.is_over(share, position):
            self._place.seek(epoch + 1, 0, DUE)

    def is_over(self, share: Share, position: int) -> bool:
        """Whether an epoch was begun and no rank's share has anything left behind `position`."""
        everybody = replace(share, rank=0, worker=0, workers=1)
        return position > 0 and not len(everybody.positions(position, len(self.plan)))

    def seek(self, epoch: int, position: int = 0) -> None:
        """Stand before a position of an epoch: the next iteration begins there, in workers too.

        Raises `UsageError` for one there is none of.
        """
        most = len(self.plan)
        epoch, position = _index("epoch", epoch), _index("position", position)
        if epoch < 0 or not 0 <= position <= most:
            raise UsageError(
                f"epoch {epoch}, position {position}", expected=f"0 on, and 0 to {most}"
            )
        self._place.seek(epoch, position)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands and which stream it is; JSON-ready.

        Taken after the same number of steps on every rank, it is the same on all of them, and
        resumes with any number of ranks and workers: nothing is lost or repeated.

        Raises `UsageError` when workers of a plain DataLoader read: they read ahead, and nobody
        here knows which of their batches were taken.
        """
        epoch, position = self.place
        if self._place.state == GIVEN:
            raise UsageError(
                f"no state: workers of a DataLoader read ahead in epoch {epoch}, "
                "and which of their batches were taken is not known here",
                expected=(
                    "torch_dataset(stream, batch_size=…).loader(…), whose "
                    "state_dict counts them, or stream.seek(batch['epoch'], "
                    "batch['position']) of the last batch before this"
                ),
            )
        return {"version": VERSION, "epoch": epoch, "position": position} | identity_of(self.plan)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises `UsageError`, naming each difference, for a state of another dataset, cohort, seed
        or setting.
        """
        self._place.seek(*check(state, identity_of(self.plan), len(self.plan)))


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
        raise UsageError(f"{name}={value!r}", expected=f"a whole number from {least} on")
    return value


def numbered(key: object) -> UsageError:
    """The error for a patch or batch that is asked for by its number."""
    return UsageError(
        f"number {key!r} of a stream of patches",
        expected=(
            "an iteration: for sample in stream, or stream.seek(epoch, position) "
            "before it. For a DataLoader expected batches: "
            "lp.torch_dataset(stream, batch_size=4).loader(num_workers=2), or "
            "DataLoader(lp.torch_dataset(stream, batch_size=4), batch_size=None)"
        ),
    )


def _index(name: str, value: object) -> int:
    """A whole number, of NumPy's or a tensor's too; raises `UsageError` for anything else."""
    try:
        if not isinstance(value, (bool, str)):
            return index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise UsageError(f"{name}={value!r}", expected="a whole number")
