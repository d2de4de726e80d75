"""Rows as `datasets` streams them, but for two things: see `SeekableExamples`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
from datasets import Features
from datasets.iterable_dataset import ArrowExamplesIterable, ExamplesIterable

__all__ = ["EPOCH", "ArrowExamplesIterable", "SeekableExamples"]

#: Name of the argument of a generator that says which epoch it is; see `SeekableExamples`.
EPOCH = "epoch"
#: Where the state says how many rows were had.
_HAD = "shard_example_idx"
#: Rows, each with its number in the stream, those left out counted.
Rows = Callable[..., Iterator[tuple[int, dict[str, Any]]]]


def _number(generator: np.random.Generator) -> int:
    """The number that stands for an epoch; never 0, that of the first."""
    return int(deepcopy(generator).integers(1, 1 << 62))


class SeekableExamples(ExamplesIterable):  # type: ignore[misc]
    """Examples of known features, of a generator that can begin anywhere.

    That features are known spares datasets encoding each row for Arrow and decoding it again,
    unless rows are formatted or cast. And datasets would run the generator shard by shard, each
    from its beginning; this runs it once, with the argument `skip`: the rows of it that were had.
    Where the generator has an argument `epoch`, `set_epoch` and `shuffle` change that instead of
    the order of the shards: it then gives another order, of everything and not of shards.
    """

    def __init__(
        self, rows: Rows, kwargs: dict[str, Any], features: Features, is_share: bool = False
    ) -> None:
        super().__init__(rows, kwargs)
        self._features = features
        self._is_share = is_share

    @property
    def features(self) -> Features:
        """What the examples are of; datasets makes them of others, if they are cast, by itself."""
        return self._features

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        state = self._state_dict
        had = state[_HAD] if state else 0
        for number, example in self.generate_examples_fn(**self.kwargs, skip=had):
            if state:
                state[_HAD] = number + 1
            yield number, example

    def _with(self, kwargs: dict[str, Any], is_share: bool = False) -> SeekableExamples:
        is_share = is_share or self._is_share
        return SeekableExamples(self.generate_examples_fn, kwargs, self._features, is_share)

    def shuffle_data_sources(self, generator: np.random.Generator) -> SeekableExamples:
        """In another order, that `generator` decides."""
        if EPOCH not in self.kwargs:
            return self._with(super().shuffle_data_sources(generator).kwargs)
        return self._with(self.kwargs | {EPOCH: _number(generator)})

    def shift_rngs(self, epoch: int) -> SeekableExamples:
        """Return those of an epoch that `set_epoch` set, also behind `take` and `skip`.

        datasets calls this for every epoch but 0. Behind those two it does not call
        `shuffle_data_sources`, and all epochs would be the same; else that came first. datasets
        also calls it with the number of a worker, for its share of the shards: which patches there
        are does not depend on workers, so a share stays as it is.
        """
        if self._is_share:
            return self
        before = self.kwargs.get(EPOCH)
        number = _number(np.random.default_rng(epoch))
        if before is None or before == number:
            return self
        if before:  # shuffled with a seed: another order for each of these
            number = _number(np.random.default_rng([epoch, before]))
        return self._with(self.kwargs | {EPOCH: number})

    def shard_data_sources(
        self, num_shards: int, index: int, contiguous: bool = True
    ) -> SeekableExamples:
        """Those of one share of the shards."""
        shard = super().shard_data_sources(num_shards, index, contiguous=contiguous)
        return self._with(shard.kwargs, is_share=True)

    def reshard_data_sources(self) -> SeekableExamples:
        """The same: shards are as small as they can be."""
        return self._with(self.kwargs)
