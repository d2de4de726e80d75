"""Whoever builds the loader gets each epoch once, in order, and can go on where it was left."""

from __future__ import annotations

import copy
import json
import pickle
from itertools import chain, islice

import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import UsageError

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from lundprobe_zarr.stream.progress import Progress, WorkerGroup  # noqa: E402
from lundprobe_zarr.stream.torch import SharedProgress, collate  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*use of fork:DeprecationWarning",
    "ignore:This DataLoader will create:UserWarning",
    # Of torch, for samples of several workers: each has a last batch that is not full.
    "ignore:Length of IterableDataset:UserWarning",
    "ignore:'set_vital' is deprecated:UserWarning",  # torchdata calls it
)
SIZE = (6, 12, 12)
WORKERS = [
    {},
    {"num_workers": 2, "multiprocessing_context": "fork"},
    {"num_workers": 3, "multiprocessing_context": "fork", "persistent_workers": True},
]
SPAWNED = [
    {"num_workers": 2, "multiprocessing_context": "spawn", "persistent_workers": True},
    {"num_workers": 2, "multiprocessing_context": "forkserver"},
]


def make(cohort, **changes) -> lp.PatchStream:
    return lp.PatchStream(cohort, SIZE, **{"seed": 4} | changes)


def plain(dataset, options, **more) -> DataLoader:
    return DataLoader(dataset, batch_size=None, **options | more)


def numbers(batches) -> list[tuple[int, list[int]]]:
    return [(int(b["epoch"]), b["index"].tolist()) for b in batches]


def epoch_of(number: int, size: int, start: int = 0, stop: int = 32) -> list:
    return [(number, list(range(n, min(n + size, stop)))) for n in range(start, stop, size)]


@pytest.mark.parametrize("options", [*WORKERS, *SPAWNED])
def test_a_plain_loader_gives_epoch_after_epoch(cohort, options):
    loader = plain(lp.torch_dataset(make(cohort), 5), options)
    found = [numbers(loader) for _ in range(2)]
    assert found == [epoch_of(e, 5) for e in range(2)]


@pytest.mark.parametrize("options", WORKERS)
def test_the_voxels_are_those_of_the_epoch(cohort, options):
    loader = plain(lp.torch_dataset(make(cohort), 8), options)
    expected = make(cohort)
    for _ in range(2):
        samples = list(expected)
        for batch in loader:
            for place, index in enumerate(batch["index"].tolist()):
                assert batch["image"][place].numpy().tobytes() == samples[index]["image"].tobytes()


@pytest.mark.parametrize("options", WORKERS)
def test_tails_are_dropped_in_every_epoch(cohort, options):
    loader = plain(lp.torch_dataset(make(cohort), 5, drop_last=True), options)
    assert [numbers(loader) for _ in range(2)] == [epoch_of(e, 5, stop=30) for e in range(2)]
    assert len(loader) == 6


@pytest.mark.parametrize("options", WORKERS)
@pytest.mark.parametrize("taken", [1, 5])
def test_an_epoch_that_is_left_early_is_over(cohort, options, taken):
    """With any number of workers alike: a plain loader cannot say what of it was consumed."""
    loader = plain(lp.torch_dataset(make(cohort), 5), options)
    for epoch in range(3):
        assert numbers(islice(loader, taken)) == epoch_of(epoch, 5)[:taken]
    assert numbers(loader) == epoch_of(3, 5)


@pytest.mark.parametrize("options", [*WORKERS, SPAWNED[1]])
def test_seek_reaches_workers(cohort, options):
    stream = make(cohort)
    loader = plain(lp.torch_dataset(stream, 8), options)
    assert numbers(loader) == epoch_of(0, 8)
    stream.seek(5, 8)
    assert numbers(loader) == epoch_of(5, 8, start=8)
    state = make(cohort).state_dict() | {"epoch": 2, "position": 24}
    stream.load_state_dict(json.loads(json.dumps(state)))
    assert numbers(loader) == epoch_of(2, 8, start=24)
    assert numbers(loader) == epoch_of(3, 8)
    stream.seek(7, 32)
    assert numbers(loader) == epoch_of(8, 8), "nothing is left of epoch 7"


@pytest.mark.parametrize("options", WORKERS)
def test_seek_behind_each_batch_makes_a_plain_loader_resumable(cohort, options):
    stream = make(cohort)
    loader = plain(lp.torch_dataset(stream, 4), options)
    found = []
    for batch in loader:
        stream.seek(batch["epoch"], batch["position"])
        found += numbers([batch])
        if len(found) == 3:
            break
    resumed = make(cohort)
    dataset = lp.torch_dataset(resumed, 4)
    resumed.load_state_dict(stream.state_dict())
    assert found + numbers(plain(dataset, options)) == epoch_of(0, 4)
    for batch in loader:
        stream.seek(batch["epoch"], batch["position"])
        found += numbers([batch])
    assert found == epoch_of(0, 4), "the rest, as that was said"
    assert numbers(loader) == epoch_of(1, 4)


@pytest.mark.parametrize("options", WORKERS)
def test_samples_come_once_an_epoch_and_move_on(cohort, options):
    stream = make(cohort)
    loader = DataLoader(lp.torch_dataset(stream), batch_size=4, collate_fn=collate, **options)
    for epoch in (0, 1):
        batches = list(loader)
        assert {int(e) for b in batches for e in b["epoch"]} == {epoch}
        assert sorted(chain(*(b["index"].tolist() for b in batches))) == list(range(32))
        assert ("position" in batches[0]) == (not options), "of several workers there is none"
    stream.seek(6, 20)
    batches = list(loader)
    assert sorted(chain(*(b["index"].tolist() for b in batches))) == list(range(20, 32))


@pytest.mark.parametrize("options", WORKERS)
def test_iterations_with_the_same_seed_of_torch_are_different_epochs(cohort, options):
    """Workers of one iteration know each other by a random number, which may come again."""
    loader = plain(lp.torch_dataset(make(cohort), 8), options)
    for epoch in range(3):
        torch.manual_seed(0)
        assert numbers(loader) == epoch_of(epoch, 8)


@pytest.mark.parametrize("options", WORKERS[:2])
def test_iterations_of_a_plain_loader_side_by_side_are_epochs_of_their_own(cohort, options):
    dataset = lp.torch_dataset(make(cohort), 8)
    one = iter(plain(dataset, options))
    first = next(one)
    other = iter(plain(dataset, options))
    found = numbers([first, next(other), next(one), next(other), *one, *other])
    assert sorted(found) == [*epoch_of(0, 8), *epoch_of(1, 8)]


@pytest.mark.parametrize("options", WORKERS)
def test_set_epoch_is_the_next_epoch(cohort, options):
    dataset = lp.torch_dataset(make(cohort), 8)
    loader = plain(dataset, options)
    for epoch in (3, 3, 1, 2):
        dataset.set_epoch(epoch)
        assert numbers(loader) == epoch_of(epoch, 8)
    assert numbers(loader) == epoch_of(3, 8)


@pytest.mark.parametrize("options", WORKERS)
def test_set_epoch_does_not_undo_a_resumption(cohort, options):
    stream = make(cohort)
    dataset = lp.torch_dataset(stream, 8)
    stream.seek(2, 16)
    with pytest.raises(UsageError, match=r"set_epoch\(0\) would undo seek .*epoch 2, patch 16"):
        dataset.set_epoch(0)
    dataset.set_epoch(2)
    assert numbers(plain(dataset, options)) == epoch_of(2, 8, start=16)


def test_a_state_moves_with_what_is_taken_in_the_same_process(cohort):
    stream = make(cohort)
    loader = plain(lp.torch_dataset(stream, 8), {})
    batches = iter(loader)
    for position in (8, 16):
        next(batches)
        state = stream.state_dict()
        assert (state["epoch"], state["position"]) == (0, position)
    list(batches)
    assert stream.place == (1, 0)


@pytest.mark.parametrize("options", WORKERS[1:])
def test_where_workers_read_there_is_no_state_but_of_what_was_said(cohort, options):
    stream = make(cohort)
    batch = next(iter(plain(lp.torch_dataset(stream, 8), options)))
    assert "workers of a DataLoader" in repr(stream)
    with pytest.raises(UsageError, match=r"read ahead in epoch 0.*\.loader.*stream\.seek"):
        stream.state_dict()
    stream.seek(batch["epoch"], batch["position"])
    assert stream.state_dict()["position"] == 8


@pytest.mark.parametrize("options", WORKERS)
@pytest.mark.parametrize("taken", [0, 1, 3, 7])
def test_stateful_loaders_resume(cohort, options, taken):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def loader():
        return stateful(lp.torch_dataset(make(cohort), 5), batch_size=None, **options)

    one = loader()
    first = numbers(one)
    batches = iter(one)
    found = first + numbers(islice(batches, taken))
    state = pickle.loads(pickle.dumps(one.state_dict()))
    other = loader()
    other.load_state_dict(state)
    found += numbers(other)
    if taken == 7:
        assert found == epoch_of(0, 5) + epoch_of(1, 5), "whether it is over was not seen yet"
    found += numbers(other)
    assert found == [n for e in range(3) for n in epoch_of(e, 5)]


@pytest.mark.parametrize("options", WORKERS[:2])
def test_stateful_loaders_of_samples_resume(cohort, options):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def loader(**changes):
        dataset = lp.torch_dataset(make(cohort, **changes))
        return stateful(dataset, batch_size=4, collate_fn=collate, **options)

    one = loader()
    found = list(islice(one, 3))
    state = one.state_dict()
    other = loader()
    other.load_state_dict(state)
    found += list(other)
    assert sorted(chain(*(b["index"].tolist() for b in found))) == list(range(32))
    assert {int(e) for b in other for e in b["epoch"]} == {1}
    changed = loader(seed=5)
    changed.load_state_dict(state)
    with pytest.raises(UsageError, match="seed 4, not 5"):
        next(iter(changed))


@pytest.mark.parametrize("options", WORKERS[:2])
def test_accelerate_gives_every_epoch_and_resumes(cohort, options):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    loader = accelerator.prepare(plain(lp.torch_dataset(make(cohort), 8), options))
    assert [numbers(loader) for _ in range(2)] == [epoch_of(e, 8) for e in range(2)]
    stream = make(cohort)
    resumed = accelerator.prepare(plain(lp.torch_dataset(stream, 8), options))
    stream.seek(2, 16)
    with pytest.raises(UsageError, match=r"loader\.set_epoch\(2\) once"):
        next(iter(resumed))
    resumed.set_epoch(2)
    assert numbers(resumed) == epoch_of(2, 8, start=16)
    assert numbers(resumed) == epoch_of(3, 8)


@pytest.mark.parametrize("options", WORKERS)
def test_a_loader_of_the_dataset_gives_the_rest_of_an_epoch(cohort, options):
    stream = make(cohort)
    dataset = lp.torch_dataset(stream, 8)
    loader = dataset.loader(**options)
    assert numbers(islice(loader, 2)) == epoch_of(0, 8)[:2]
    assert numbers(loader) == epoch_of(0, 8, start=16)
    assert numbers(islice(loader, 1)) == epoch_of(1, 8)[:1]
    iter(loader), iter(loader)  # begun and left before their workers have
    assert numbers(loader) == epoch_of(1, 8, start=8)
    loader.set_epoch(4)
    assert numbers(loader) == epoch_of(4, 8)
    assert numbers(plain(dataset, options)) == epoch_of(5, 8), "one place for all loaders"
    assert numbers(loader) == epoch_of(6, 8)


def test_an_overtaken_loader_says_so(cohort):
    for options in WORKERS:
        loader = lp.torch_dataset(make(cohort), 8).loader(**options)
        old, new = iter(loader), iter(loader)
        found = numbers([next(new)])
        with pytest.raises(UsageError, match=r"epoch 0 .*overtaken.*one iteration at a time"):
            next(old)
        assert found + numbers(new) == epoch_of(0, 8)


def test_copies_have_places_of_their_own(cohort):
    stream = make(cohort)
    dataset = lp.torch_dataset(stream, 8)
    for other in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
        other.stream.seek(9)
        assert stream.place == (0, 0)
        assert numbers(plain(other, WORKERS[1])) == epoch_of(9, 8)


def test_a_process_group_that_is_there_later_counts(cohort, tmp_path):
    """Lightning and others begin it when the loaders are long made."""
    dataset = lp.torch_dataset(make(cohort), 4)
    assert len(dataset) == 8
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        assert dataset._share(0, 1).ranks == 1
        worker = pickle.loads(pickle.dumps(dataset))
    finally:
        torch.distributed.destroy_process_group()
    assert worker._distributed == (0, 1)
    worker._distributed = (1, 2)
    assert numbers(worker)[0] == (0, [1, 3, 5, 7])


@pytest.mark.parametrize("place", [Progress(), SharedProgress(Progress().values())])
def test_slow_workers_join_their_own_iteration(place):
    """Workers that persist may be asked for a second iteration while one begins the first."""
    first, second = WorkerGroup(11, 1, 2), WorkerGroup(11, 2, 2)
    begun = [place.begin(group, lambda _: False)[:2] for group in (first, second, first, second)]
    assert begun == [(0, 0), (1, 0), (0, 0), (1, 0)]
    assert place.begin(first, lambda _: False)[:2] == (2, 0), "as many as there are have joined"
