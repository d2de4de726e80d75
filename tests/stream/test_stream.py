"""Streams: the plan's patches, in order, whoever reads them; left and taken up exactly."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
from itertools import islice

import numpy as np
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import MissingPackageError, UsageError
from lundprobe_zarr.patches import UniformSampling

SIZE = (6, 12, 12)


def make(cohort, **changes) -> lp.PatchStream:
    arguments = {"structures": ("Rectum", "CTVT_427"), "dose": True, "seed": 4} | changes
    return lp.PatchStream(cohort, arguments.pop("patch_size", SIZE), **arguments)


def where(samples) -> list[tuple]:
    return [(s["epoch"], s["index"], s["patient_id"], *s["start"].tolist()) for s in samples]


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(("threads", "prefetch"), [(0, 1), (1, 1), (3, 2), (4, 64)])
def test_any_number_of_threads_gives_the_same(cohort, threads, prefetch):
    expected = [make(cohort).plan.item(0, n) for n in range(len(make(cohort)))]
    found = list(make(cohort, threads=threads, prefetch=prefetch))
    assert [(s["patient_id"], s["draw"]) for s in found] == [
        (d.patient_id, d.draw) for d in expected
    ]
    assert len(found) == 32
    serial = list(make(cohort, threads=0))
    assert all(same(a, b) for a, b in zip(found, serial, strict=True))


def test_epochs_follow_each_other(cohort):
    stream = make(cohort)
    first, second = where(stream), where(stream)
    assert [w[:2] for w in second] == [(1, n) for n in range(32)]
    assert sorted(w[2] for w in first) == sorted(w[2] for w in second)
    assert [w[2:] for w in first] != [w[2:] for w in second]
    assert stream.epoch == 2
    stream.seek(0)
    assert where(stream) == first


@pytest.mark.parametrize("taken", [0, 1, 5, 31, 32, 40])
def test_a_resumed_stream_goes_on_with_the_next_sample(cohort, taken):
    unbroken = make(cohort)
    expected = where([*unbroken, *unbroken, *unbroken])
    stream, found = make(cohort, threads=2), []
    while len(found) < taken:
        for sample in stream:
            found.append(sample)
            if len(found) == taken:
                break
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = make(cohort, threads=0)
    resumed.load_state_dict(state)
    rest = [sample for _ in range(3) for sample in resumed]
    assert where(found + rest)[:96] == expected


@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1), (4, 3), (2, 2)])
def test_ranks_may_change_when_resuming(cohort, before, after):
    """All ranks after the same number of steps; the rest of the epoch by another number."""
    steps = 32 // before // 2
    states, taken = [], []
    for rank in range(before):
        stream = make(cohort, rank=rank, ranks=before)
        taken += [s for _, s in zip(range(steps), stream, strict=False)]
        states.append(stream.state_dict())
    assert all(state == states[0] for state in states)
    rest = []
    for rank in range(after):
        stream = make(cohort, rank=rank, ranks=after)
        stream.load_state_dict(states[0])
        rest += list(stream)
    assert sorted(where(taken + rest)) == where(make(cohort))


def test_a_rank_knows_its_length(cohort):
    lengths = [len(make(cohort, rank=r, ranks=5)) for r in range(5)]
    assert lengths == [7, 7, 6, 6, 6]
    assert lengths == [sum(1 for _ in make(cohort, rank=r, ranks=5)) for r in range(5)]


def test_streams_pickle(cohort):
    stream = make(cohort)
    found = [next(iter(stream))]
    copy = pickle.loads(pickle.dumps(stream))
    assert where([*found, *copy]) == where(make(cohort))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 5}, "seed 4, not 5"),
        ({"sampling": UniformSampling(9)}, "sampling .*per_patient=8.*, not .*per_patient=9"),
        ({"patch_size": (6, 12, 13)}, r"patch_size \[6, 12, 12\], not \[6, 12, 13\]"),
        ({"block": 2, "window": 3}, "block 4, not 2; window 8, not 3"),
        ({"spacing_mm": 2}, r"spacing_mm None, not \[2.0, 2.0, 2.0\]"),
    ],
)
def test_a_state_of_another_stream_is_refused(cohort, change, said):
    state = make(cohort).state_dict()
    with pytest.raises(UsageError, match=f"of another stream.*{said}"):
        make(cohort, **change).load_state_dict(state)


def test_a_state_of_other_patients_or_data_is_refused(cohort):
    state = make(cohort).state_dict()
    with pytest.raises(UsageError, match="a cohort of 4 patients, not this one of 3"):
        make(cohort[:3]).load_state_dict(state)
    state["dataset"]["precision"] = "compact"
    state["dataset"]["digest"] = "0" * 64
    with pytest.raises(UsageError, match="dataset: precision 'compact', not 'standard'"):
        make(cohort).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 9}, "version 9"),
        ({"position": -1}, "position is -1"),
        ({"position": 33}, "position is 33; expected 0 to 32"),
        ({"epoch": "x"}, "epoch is 'x'"),
    ],
)
def test_a_state_that_is_none_is_refused(cohort, change, said):
    with pytest.raises(UsageError, match=said):
        make(cohort).load_state_dict(make(cohort).state_dict() | change)
    with pytest.raises(UsageError, match="no seed"):
        make(cohort).load_state_dict(
            {k: v for k, v in make(cohort).state_dict().items() if k != "seed"}
        )


def test_more_targets_do_not_change_which_patches(cohort):
    """A state holds what decides the order; one may go on with dose added."""
    state = make(cohort, dose=False).state_dict()
    make(cohort, dose=True).load_state_dict(state)


def test_a_stream_shows_itself(cohort):
    stream = make(cohort)
    assert "32 uniform patches of 6×12×12 voxels" in repr(stream)
    assert stream.labels == {"modality": ("T2w",), "structure": ("Rectum", "CTVT_427")}
    sample = next(iter(stream))
    arrays = sum(sample[k].nbytes for k in ("image", "mask", "dose"))
    assert stream.sample_bytes == arrays


def test_who_counts_samples_gets_every_epoch(cohort):
    stream = make(cohort, seed=3)
    taken = [[s["start"].tolist() for s in islice(stream, len(stream))] for _ in range(2)]
    whole = make(cohort, seed=3)
    assert taken == [[s["start"].tolist() for s in whole] for _ in range(2)]


def test_leaving_an_iteration_ends_its_threads(cohort):
    def ours():
        return {t for t in threading.enumerate() if t.name.startswith("lundprobe-patches")}

    before = ours()
    iterator = iter(make(cohort, threads=4))
    next(iterator)
    assert ours() > before
    iterator.close()
    assert ours() <= before


def test_a_random_observer_is_drawn_anew(cohort):
    extended = cohort.where("part = 'extended'")
    stream = lp.PatchStream(extended, SIZE, observers="random", sampling=UniformSampling(30))
    drawn = {(s["step"], s["observer"]) for s in stream}
    assert len(drawn) > 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"threads": -1}, "threads=-1"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"retries": 1.5}, "retries=1.5"),
        ({"rank": 3, "ranks": 2}, "rank 3 of ranks=2"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(cohort, arguments, said):
    with pytest.raises(UsageError, match=said):
        make(cohort, **arguments)
    with pytest.raises(UsageError, match="epoch 0, position 99"):
        make(cohort).seek(0, 99)


def test_without_torch_the_error_says_what_to_install():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import lundprobe_zarr as lp\n"
        "try: lp.torch_dataset\n"
        "except lp.LundProbeError as error: print(type(error).__name__, error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ran.stdout.decode().startswith("MissingPackageError torch is not installed")
    assert "pip install '.[torch]'" in ran.stdout.decode()
    assert issubclass(MissingPackageError, ImportError)


def test_each_sample_has_a_seed_of_its_own_which_resuming_gives_again(cohort):
    def made(**changes):
        return lp.PatchStream(cohort, (4, 8, 8), seed=3, **changes)

    stream = made()
    epochs = [[s["seed"] for s in stream] for _ in range(2)]
    every = [seed for epoch in epochs for seed in epoch]
    assert len(set(every)) == len(every)
    assert all(0 <= seed < 2**63 for seed in every)
    resumed = made(threads=0)
    resumed.seek(1, 5)
    assert [s["seed"] for s in resumed] == epochs[1][5:]
    ranks = [[s["seed"] for s in made(rank=r, ranks=2)] for r in range(2)]
    assert ranks == [epochs[0][0::2], epochs[0][1::2]]
    assert [s["seed"] for s in lp.PatchStream(cohort, (4, 8, 8), seed=4)] != epochs[0]
