"""The order of training as a function: item n of epoch e follows from (seed, e, n) alone.

No generator has a state here, so nothing has to be saved but a few numbers, and any number of
ranks and workers share one order. Randomness comes from two functions that no library's version
and no platform can change. A *key* is the first 8 bytes, big-endian, of the SHA-256 of some words
joined by `:`. The *words* of a key are the SplitMix64 sequence that starts there: word i is
mix(key + (i + 1) · 0x9E3779B97F4A7C15), everything modulo 2⁶⁴, with

    mix(x): x = (x ⊕ x ≫ 30) · 0xBF58476D1CE4E5B9
            x = (x ⊕ x ≫ 27) · 0x94D049BB133111EB
            x ⊕ x ≫ 31

(Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014). A shuffle of n
things sorts them by the n words of its key, equal ones by their number.
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
#: Orders kept, of one epoch each: ranks and workers of a process stand in one or two.
_KEPT = 8


def key_of(*words: object) -> int:
    """The key, 0 ≤ key < 2⁶⁴, that some words make; see above."""
    text = ":".join(map(str, words))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def words_of(key: int, count: int) -> Words64:
    """The first `count` words (count,) of a key."""
    steps = np.arange(1, count + 1, dtype=np.uint64)
    x = np.uint64(key) + steps * np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return np.asarray(x ^ (x >> np.uint64(31)))


class Words:
    """The words of a key, one after another."""

    def __init__(self, key: int) -> None:
        self._state = key

    def next(self) -> int:
        """The next word, 0 ≤ word < 2⁶⁴."""
        self._state = (self._state + _GOLDEN) & _MASK
        x = self._state
        x = ((x ^ (x >> 30)) * _FIRST) & _MASK
        x = ((x ^ (x >> 27)) * _SECOND) & _MASK
        return x ^ (x >> 31)

    def below(self, limit: int) -> int:
        """A whole number, 0 ≤ number < limit: the high word of word × limit."""
        return (self.next() * limit) >> 64

    def unit(self) -> float:
        """A number in [0, 1): the upper 53 bits of the next word."""
        return float((self.next() >> 11) / (1 << 53))


def shuffled(count: int, key: int) -> Indices:
    """The numbers 0 … count − 1 (count,) in the order that a key gives them."""
    return np.argsort(words_of(key, count), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Order:
    """Who comes when: an epoch takes every draw of every patient once.

    `counts` are the patients' numbers of draws. Shuffled, a patient's draws are dealt into blocks
    of `block`; the blocks of all patients are shuffled, and then the draws within each `window` of
    successive blocks. So a patient that was opened serves `block` draws before long: a larger
    block saves requests and makes neighbours in the order more alike, a larger window makes them
    less alike and keeps more patients open. With `block=1` it is one shuffle of everything.
    Without `shuffle`, patient after patient, draw after draw, the same in every epoch.
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
                raise UsageError(f"{name}={value!r}", expected="a whole number, at least 1")

    def __len__(self) -> int:
        """Items of an epoch."""
        return sum(self.counts)

    def item(self, epoch: int, n: int) -> tuple[int, int]:
        """Number of the patient and of its draw that come n-th (from 0) in an epoch."""
        if not 0 <= n < len(self):
            raise UsageError(f"item {n} of an epoch", expected=f"0 to {len(self) - 1}")
        patient, draw = self.epoch(epoch)[n]
        return int(patient), int(draw)

    def epoch(self, epoch: int) -> Indices:
        """All of an epoch, (len, 2): number of the patient, number of its draw."""
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
    # Patient after patient still, but each one's draws shuffled; then its blocks numbered.
    within = np.lexsort((words_of(key[0], total), patient))
    blocks = -(-counts // order.block)
    number = (np.cumsum(blocks) - blocks)[patient] + draw // order.block
    place = np.argsort(shuffled(int(blocks.sum()), key[1]), kind="stable")
    window = place[number] // order.window
    final = np.lexsort((words_of(key[2], total), window))
    items: Indices = np.stack([patient, draw[within]], axis=1)[final]
    items.flags.writeable = False  # of the cache
    return items


@dataclass(frozen=True)
class Share:
    """The part of the order that one worker of one rank reads.

    Of the positions left in an epoch, rank r of R takes every R-th; of those, a rank's workers
    take runs of `run` (a batch) in turn. So the first k·R·run positions are those that all ranks
    have had after k runs, however many workers they have: a position is all that a resumed run,
    of any number of ranks and workers, needs. Without `drop_last` nothing is left out, and ranks
    may get unequal numbers at an epoch's end; with it they get the same number of whole runs.
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
        """Those of the positions start … stop − 1 that are this share's, ascending."""
        if self.drop_last:
            together = self.ranks * self.run
            stop = start + max(0, stop - start) // together * together
        mine: Indices = np.arange(start + self.rank, max(start, stop), self.ranks, dtype=np.int64)
        turn = np.arange(len(mine)) // self.run
        return np.asarray(mine[turn % self.workers == self.worker])


def order_of(counts: Sequence[int], seed: int, shuffle: bool, block: int, window: int) -> Order:
    """An order of whole numbers; raises `UsageError` for a seed that is none."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UsageError(f"seed={seed!r}", expected="a whole number")
    return Order(tuple(int(c) for c in counts), seed, shuffle, block, window)
