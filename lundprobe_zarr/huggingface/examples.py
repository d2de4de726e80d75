"""Streaming of rows for `datasets`, with seeking and epochs: see `SeekableExamples`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import numpy as np
from datasets import Features
from datasets.iterable_dataset import ArrowExamplesIterable, ExamplesIterable

__all__ = ["EPOCH", "ArrowExamplesIterable", "SeekableExamples"]

#: Name of a generator's argument for the epoch; see `SeekableExamples`.
EPOCH = "epoch"
#: Key of the state for the number of consumed rows.
_HAD = "shard_example_idx"
#: Generator of rows with their number in the stream, which counts rows left out.
Rows = Callable[..., Iterator[tuple[int, dict[str, Any]]]]


def _number(generator: np.random.Generator) -> int:
    """Return a number for an epoch; never 0, which is the first epoch."""
    return int(deepcopy(generator).integers(1, 1 << 62))


class SeekableExamples(ExamplesIterable):  # type: ignore[misc]
    """Examples with known features from a generator that can begin anywhere.

    With known features, datasets need not encode each row for Arrow and decode it again, unless
    rows are formatted or cast. The generator runs once, with `skip`, the number of consumed rows;
    datasets would run it shard by shard from the beginning. If the generator has an argument
    `epoch`, `set_epoch` and `shuffle` change it instead of the order of shards.
    """

    def __init__(
        self, rows: Rows, kwargs: dict[str, Any], features: Features, is_share: bool = False
    ) -> None:
        super().__init__(rows, kwargs)
        self._features = features
        self._is_share = is_share

    @property
    def features(self) -> Features:
        """Features of the examples; datasets casts to others itself."""
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
        """Return the examples in another order, from `generator`."""
        if EPOCH not in self.kwargs:
            return self._with(super().shuffle_data_sources(generator).kwargs)
        return self._with(self.kwargs | {EPOCH: _number(generator)})

    def shift_rngs(self, epoch: int) -> SeekableExamples:
        """Return the examples of the epoch of `set_epoch`, also after `take` and `skip`.

        datasets calls this for every epoch but 0. After `take` and `skip` it does not call
        `shuffle_data_sources`, so all epochs would be the same; otherwise that is called first.
        datasets also calls it with a worker's number for its share of the shards. Which patches
        there are does not depend on workers, so a share is returned unchanged.
        """
        if self._is_share:
            return self
        before = self.kwargs.get(EPOCH)
        number = _number(np.random.default_rng(epoch))
        if before is None or before == number:
            return self
        if before:  # shuffled with a seed: another order per seed
            number = _number(np.random.default_rng([epoch, before]))
        return self._with(self.kwargs | {EPOCH: number})

    def shard_data_sources(
        self, num_shards: int, index: int, contiguous: bool = True
    ) -> SeekableExamples:
        """Return the examples of one share of the shards."""
        shard = super().shard_data_sources(num_shards, index, contiguous=contiguous)
        return self._with(shard.kwargs, is_share=True)

    def reshard_data_sources(self) -> SeekableExamples:
        """Return the same examples: shards are as small as possible."""
        return self._with(self.kwargs)
