"""The order of training, word by word, and what an order or a share may be."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.patches.order import Order, Share, Words, key_of, order_of, shuffled, words_of


@given(st.integers(0, 2**64 - 1), st.integers(1, 10**6))
def test_a_number_below_a_limit_is_the_high_word_of_a_product(key: int, limit: int) -> None:
    word = int(words_of(key, 1)[0])
    assert Words(key).below(limit) == word * limit // 2**64
    assert Words(key).unit() == (word // 2**11) / 2**53


def test_numbers_are_spread_over_all_below_the_limit() -> None:
    words = Words(key_of("spread"))
    assert {words.below(3) for _ in range(50)} == {0, 1, 2}
    shares = np.array([words.unit() for _ in range(400)])
    assert ((shares >= 0) & (shares < 1)).all()
    assert np.histogram(shares, 4, (0, 1))[0].min() > 60


def test_a_shuffle_sorts_by_the_words_of_its_key() -> None:
    key = key_of("a", 1, None)
    order = shuffled(50, key)
    assert np.array_equal(np.sort(words_of(key, 50)), words_of(key, 50)[order])
    assert order.dtype == np.int64


def test_defaults_are_the_documented_ones() -> None:
    order = Order((3,))
    assert (order.seed, order.shuffle, order.block, order.window) == (0, True, 4, 8)
    share = Share()
    assert (share.rank, share.ranks, share.worker, share.workers) == (0, 1, 0, 1)
    assert (share.run, share.drop_last) == (1, False)


def test_orders_and_shares_are_values() -> None:
    with pytest.raises(FrozenInstanceError):
        Order((3,)).seed = 1  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Share().rank = 1  # type: ignore[misc]
    assert not Order((3, 4)).epoch(0).flags.writeable, "epochs are shared"


@pytest.mark.parametrize("name", ["block", "window"])
def test_blocks_and_windows_are_whole_and_positive(name: str) -> None:
    assert len(Order((3, 4), **{name: 1})) == 7
    for wrong in (0, -1, True, 1.0, "2", None):
        with pytest.raises(UsageError, match=rf"^{name}=.*at least 1"):
            Order((3, 4), **{name: wrong})


@pytest.mark.parametrize("shuffle", [True, False])
def test_items_are_those_of_an_epoch(shuffle: bool) -> None:
    order = Order((2, 3), seed=5, shuffle=shuffle)
    items = [order.item(1, n) for n in range(5)]
    assert items == [tuple(row) for row in order.epoch(1).tolist()]
    for n in (-1, 5):
        with pytest.raises(UsageError, match=f"item {n} of an epoch; expected 0 to 4"):
            order.item(1, n)


def test_epochs_that_are_alike_are_computed_once() -> None:
    order = Order((2, 3), shuffle=False)
    assert order.epoch(7) is order.epoch(0)
    assert order.epoch(0) is Order((2, 3), shuffle=False).epoch(3)
    assert Order((5, 9), 1).epoch(2) is Order((5, 9), 1).epoch(2)


def test_patients_without_draws_take_no_place() -> None:
    order = Order((0, 2, 0, 1), seed=3, block=2, window=1)
    assert sorted(map(tuple, order.epoch(0).tolist())) == [(1, 0), (1, 1), (3, 0)]
    assert len(Order(())) == 0
    assert Order(()).epoch(0).shape == (0, 2)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 9),
)
def test_an_order_is_the_one_its_docstring_describes(
    counts: list[int], block: int, window: int, seed: int
) -> None:
    """Deal draws into blocks, shuffle the blocks, shuffle within windows; by plain sorting."""
    total = sum(counts)
    dealt, placed, last = (
        words_of(key_of(what, seed, 2), total).tolist() for what in ("draws", "blocks", "window")
    )
    draws, blocks = [], []
    first = 0
    for patient, count in enumerate(counts):
        mine = sorted(range(count), key=lambda n, first=first: dealt[first + n])
        draws += [(patient, n) for n in mine]
        blocks += [len(set(blocks)) + n // block for n in range(count)]
        first += count
    place = sorted(range(len(set(blocks))), key=lambda n: placed[n])
    window_of = [place.index(b) // window for b in blocks]
    final = sorted(range(total), key=lambda n: (window_of[n], last[n]))
    order = Order(tuple(counts), seed, True, block, window)
    assert [tuple(row) for row in order.epoch(2).tolist()] == [draws[n] for n in final]


# Shares


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 1},
        {"rank": -1},
        {"ranks": 0, "rank": -1},
        {"ranks": 0},
        {"worker": 2, "workers": 2},
        {"worker": -1},
        {"workers": 0},
    ],
)
def test_a_rank_or_worker_is_one_of_as_many(wrong: dict[str, int]) -> None:
    assert Share(1, 2, 2, 3).positions(0, 0).tolist() == []
    with pytest.raises(UsageError, match=r"expected 0 ≤ (rank < ranks|worker < workers)"):
        Share(**wrong)


def test_a_run_is_positive() -> None:
    assert Share(run=1).run == 1
    for wrong in (0, -1):
        with pytest.raises(UsageError, match=f"runs of {wrong}; expected at least 1"):
            Share(run=wrong)


@pytest.mark.parametrize(
    ("share", "positions"),
    [
        (Share(), [5, 6, 7, 8, 9, 10, 11]),
        (Share(1, 3), [6, 9]),
        (Share(0, 3), [5, 8, 11]),
        (Share(0, 1, 0, 2, run=2), [5, 6, 9, 10]),
        (Share(0, 1, 1, 2, run=2), [7, 8, 11]),
        (Share(0, 1, 1, 2, run=2, drop_last=True), [7, 8]),
        (Share(0, 2, run=2, drop_last=True), [5, 7]),
        (Share(1, 2, run=2, drop_last=True), [6, 8]),
        (Share(0, 2, run=4, drop_last=True), []),
        (Share(0, 1, run=7, drop_last=True), [5, 6, 7, 8, 9, 10, 11]),
    ],
)
def test_a_share_is_of_the_positions_from_5_to_11(share: Share, positions: list[int]) -> None:
    found = share.positions(5, 12)
    assert found.tolist() == positions
    assert found.dtype == np.int64


@pytest.mark.parametrize("drop_last", [False, True])
def test_nothing_is_left_beyond_the_end(drop_last: bool) -> None:
    for stop in (0, 4, 5):
        assert Share(0, 2, run=2, drop_last=drop_last).positions(5, stop).tolist() == []


@pytest.mark.parametrize("seed", [True, 1.0, "1", None])
def test_a_seed_is_whole(seed: Any) -> None:
    with pytest.raises(UsageError, match=r"^seed=.*expected an integer"):
        order_of([1], seed, True, 4, 8)
    assert order_of([np.int64(2), 3], -7, False, 2, 3) == Order((2, 3), -7, False, 2, 3)
