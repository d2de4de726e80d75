"""The order of an epoch as a pure function: item n of epoch e depends on (seed, e, n) alone.

There is no generator state, so a few numbers suffice to resume, and all ranks and workers share
one order. Two functions provide the randomness; they are independent of library versions and
platforms. A *key* is the first 8 bytes, big-endian, of the SHA-256 of some words
joined by `:`. The *words* of a key are the SplitMix64 sequence that starts there: word i is
mix(key + (i + 1) · 0x9E3779B97F4A7C15), everything modulo 2⁶⁴, with

    mix(x): x = (x ⊕ x ≫ 30) · 0xBF58476D1CE4E5B9
            x = (x ⊕ x ≫ 27) · 0x94D049BB133111EB
            x ⊕ x ≫ 31

(Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014). A shuffle of n
items sorts them by the n words of its key, ties by their number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import UsageError

Words64 = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1
#: Epoch orders cached per process; its ranks and workers use one or two.
_KEPT = 8


def key_of(*words: object) -> int:
    """Return the key, 0 ≤ key < 2⁶⁴, of some words; see the module's docstring."""
    text = ":".join(map(str, words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def words_of(key: int, count: int) -> Words64:
    """Return the first `count` words (count,) of a key, uint64."""
    steps = np.arange(1, count + 1, dtype=np.uint64)
    x = np.uint64(key) + steps * np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return np.asarray(x ^ (x >> np.uint64(31)))


class Words:
    """Iterator over the words of a key."""

    def __init__(self, key: int) -> None:
        self._state = key

    def next(self) -> int:
        """Return the next word, 0 ≤ word < 2⁶⁴."""
        self._state = (self._state + _GOLDEN) & _MASK
        x = self._state
        x = ((x ^ (x >> 30)) * _FIRST) & _MASK
        x = ((x ^ (x >> 27)) * _SECOND) & _MASK
        return x ^ (x >> 31)

    def below(self, limit: int) -> int:
        """Return an integer, 0 ≤ integer < limit: the high word of word × limit."""
        return (self.next() * limit) >> 64

    def unit(self) -> float:
        """Return a float in [0, 1): the upper 53 bits of the next word."""
        return float((self.next() >> 11) / (1 << 53))


def shuffled(count: int, key: int) -> Indices:
    """Return the integers 0 … count − 1 (count,), int64, in the order of a key."""
    return np.argsort(words_of(key, count), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Order:
    """The order of an epoch, which contains every patch of every patient once.

    `counts` holds the number of patches per patient. With `shuffle`, a patient's patches are
    shuffled and split into blocks of `block`. The blocks of all patients are shuffled, then the
    patches within each `window` of successive blocks. A larger block opens patients less often but
    makes neighbouring patches more alike. A larger window makes them less alike but keeps more
    patients open. `block=1` shuffles all patches at once. Without `shuffle` the order is patient
    by patient, patch by patch, the same in every epoch.
    """

    counts: tuple[int, ...]
    seed: int = 0
    shuffle: bool = True
    block: int = 4
    window: int = 8

    def __post_init__(self) -> None:
        for name in ("block", "window"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"{name}={value!r}", expected="an integer of at least 1")

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return sum(self.counts)

    def item(self, epoch: int, n: int) -> tuple[int, int]:
        """Return patient number and patch number of the n-th item (from 0) of an epoch."""
        if not 0 <= n < len(self):
            raise UsageError(f"item {n} of an epoch", expected=f"0 to {len(self) - 1}")
        patient, draw = self.epoch(epoch)[n]
        return int(patient), int(draw)

    def epoch(self, epoch: int) -> Indices:
        """Return all items of an epoch (len, 2), int64: patient number, patch number."""
        return _epoch(self, epoch if self.shuffle else 0)


@lru_cache(maxsize=_KEPT)
def _epoch(order: Order, epoch: int) -> Indices:
    counts = np.asarray(order.counts, np.int64)
    total, first = int(counts.sum()), np.cumsum(counts) - counts
    patient = np.repeat(np.arange(len(counts)), counts)
    draw = np.arange(total) - first[patient]
    if not order.shuffle:
        return np.stack([patient, draw], axis=1)
    key = [key_of(what, order.seed, epoch) for what in ("draws", "blocks", "window")]
    # Still patient by patient, with each patient's patches shuffled; then number the blocks.
    within = np.lexsort((words_of(key[0], total), patient))
    blocks = -(-counts // order.block)
    number = (np.cumsum(blocks) - blocks)[patient] + draw // order.block
    place = np.argsort(shuffled(int(blocks.sum()), key[1]), kind="stable")
    window = place[number] // order.window
    final = np.lexsort((words_of(key[2], total), window))
    items: Indices = np.stack([patient, draw[within]], axis=1)[final]
    items.flags.writeable = False  # shared through the cache
    return items


@dataclass(frozen=True)
class Share:
    """The part of the order that one worker of one rank reads.

    Rank r of R takes every R-th of the remaining positions. The workers of a rank take turns with
    runs of `run` positions (a batch). After k runs all ranks together have read the first k·R·run
    positions, whatever the number of workers. So one position is enough to resume with any number
    of ranks and workers. Without `drop_last` all positions are read, and ranks may get unequal
    numbers at the end of an epoch. With it, all ranks get the same number of complete runs.
    """

    rank: int = 0
    ranks: int = 1
    worker: int = 0
    workers: int = 1
    run: int = 1
    drop_last: bool = False

    def __post_init__(self) -> None:
        for one, many in (("rank", "ranks"), ("worker", "workers")):
            number, total = getattr(self, one), getattr(self, many)
            if total < 1 or not 0 <= number < total:
                raise UsageError(
                    f"{one} {number} of {many}={total}",
                    expected=f"0 ≤ {one} < {many}, e.g. {one}=0, {many}=1",
                )
        if self.run < 1:
            raise UsageError(f"runs of {self.run}", expected="at least 1")

    def positions(self, start: int, stop: int) -> Indices:
        """Return the positions of this share among start … stop − 1, ascending, int64."""
        if self.drop_last:
            together = self.ranks * self.run
            stop = start + max(0, stop - start) // together * together
        mine: Indices = np.arange(start + self.rank, max(start, stop), self.ranks, dtype=np.int64)
        turn = np.arange(len(mine)) // self.run
        return np.asarray(mine[turn % self.workers == self.worker])


def order_of(counts: Sequence[int], seed: int, shuffle: bool, block: int, window: int) -> Order:
    """Return an `Order`; raise `UsageError` if the seed is not an integer."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UsageError(f"seed={seed!r}", expected="an integer")
    return Order(tuple(int(c) for c in counts), seed, shuffle, block, window)
