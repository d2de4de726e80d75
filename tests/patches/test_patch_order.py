"""The order of training: everybody once, the same for everybody, pinned for good."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.patches.order import Order, Share, Words, key_of, shuffled, words_of

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum)


def test_words_are_splitmix64():
    """The generator's published first outputs for seed 0, and another way to compute them."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert words_of(0, 3).tolist() == published
    one_by_one = Words(0)
    assert [one_by_one.next() for _ in range(3)] == published


def test_keys_are_sha256():
    # printf 'draws:0:0' | sha256sum
    assert key_of("draws", 0, 0) == 0xB9F8A2BFD60C453A


def test_an_order_is_pinned():
    """Whatever version or platform: a resumed run must find the order it left."""
    assert Order((3, 2, 4), seed=7, block=2, window=2).epoch(1).tolist() == [
        [2, 0], [1, 1], [1, 0], [2, 3], [0, 0], [2, 2], [2, 1], [0, 1], [0, 2],
    ]  # fmt: skip


@given(st.integers(0, 3000), st.integers(0, 2**64 - 1))
def test_shuffling_loses_nothing(count, key):
    assert sorted(shuffled(count, key).tolist()) == list(range(count))


@given(COUNTS, st.integers(0, 99), st.integers(0, 3), st.integers(1, 5), st.integers(1, 5))
def test_an_epoch_takes_every_draw_once(counts, seed, epoch, block, window):
    order = Order(tuple(counts), seed, True, block, window)
    items = [order.item(epoch, n) for n in range(len(order))]
    assert sorted(items) == [(p, d) for p, c in enumerate(counts) for d in range(c)]
    assert [tuple(row) for row in order.epoch(epoch).tolist()] == items


def test_epochs_and_seeds_differ_and_repeat():
    counts = (8,) * 20
    first = Order(counts, 1).epoch(0)
    assert np.array_equal(first, Order(counts, 1).epoch(0))
    assert not np.array_equal(first, Order(counts, 1).epoch(1))
    assert not np.array_equal(first, Order(counts, 2).epoch(0))


def test_one_block_is_a_shuffle_of_everything():
    """Every item is as likely at the beginning as at the end: 5 sigma of a binomial."""
    halves = np.zeros((40, 4))
    epochs = 400
    for epoch in range(epochs):
        for patient, draw in Order((4,) * 40, 3, block=1, window=1).epoch(epoch)[:80]:
            halves[patient, draw] += 1
    assert np.abs(halves / epochs - 0.5).max() < 5 * 0.5 / np.sqrt(epochs)


def test_patients_come_in_blocks_within_windows():
    """32 successive draws of 8 patients: each patient that is opened serves four of them."""
    order = Order((16,) * 50, 0, block=4, window=8)
    patients = order.epoch(0)[:, 0]
    for window in patients.reshape(-1, 32):
        assert set(np.unique(window, return_counts=True)[1]) <= {4, 8, 12, 16}
    neighbours = np.mean(patients[1:] == patients[:-1])
    assert neighbours < 0.3, "but mixed with the others"


def test_in_turn_is_the_same_in_every_epoch():
    order = Order((2, 0, 3), shuffle=False)
    assert order.epoch(0).tolist() == [[0, 0], [0, 1], [2, 0], [2, 1], [2, 2]]
    assert order.epoch(5).tolist() == order.epoch(0).tolist()


@pytest.mark.parametrize("n", [-1, 5])
def test_there_is_no_item_beyond_the_epoch(n):
    with pytest.raises(UsageError, match=f"item {n} .* 0 to 4"):
        Order((2, 3)).item(0, n)


@given(
    st.integers(0, 200),
    st.integers(0, 40),
    st.integers(1, 8),
    st.integers(0, 16),
    st.integers(1, 6),
)
@settings(max_examples=200)
def test_ranks_and_workers_share_one_order(total, start, ranks, workers, run):
    """Put together as a loader does, shares are the order itself; nothing lost or repeated."""
    workers = max(1, workers)
    by_rank = []
    for rank in range(ranks):
        turns = [
            Share(rank, ranks, w, workers, run).positions(start, total).tolist()
            for w in range(workers)
        ]
        runs: list[list[int]] = []
        while any(turns):  # a loader takes a batch of each worker in turn
            for turn in turns:
                runs.append(turn[:run])
                del turn[:run]
        by_rank.append([n for one in runs for n in one])
    assert by_rank == [Share(r, ranks).positions(start, total).tolist() for r in range(ranks)]
    together = [n for step in range(total) for mine in by_rank for n in mine[step : step + 1]]
    assert together == list(range(start, total))


@given(st.integers(0, 100), st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))
def test_dropping_the_rest_gives_ranks_the_same_number_of_runs(total, ranks, workers, run):
    shares = [
        [
            Share(r, ranks, w, workers, run, True).positions(0, total).tolist()
            for w in range(workers)
        ]
        for r in range(ranks)
    ]
    lengths = {sum(map(len, of)) for of in shares}
    assert lengths == {total // (ranks * run) * run}
    taken = sorted(n for of in shares for one in of for n in one)
    assert taken == list(range(total // (ranks * run) * ranks * run))


@pytest.mark.parametrize(
    ("share", "said"),
    [
        ({"rank": 2, "ranks": 2}, "rank 2 of ranks=2"),
        ({"worker": -1}, "worker -1 of workers=1"),
        ({"run": 0}, "runs of 0"),
    ],
)
def test_a_share_that_makes_no_sense_is_refused(share, said):
    with pytest.raises(UsageError, match=said):
        Share(**share)
