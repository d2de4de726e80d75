"""Natural mistakes with streams and loaders: each error says what to do instead."""

from __future__ import annotations

from pathlib import Path

import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import MissingStructureError, UsageError

SIZE = (6, 12, 12)


def make(cohort, **changes) -> lp.PatchStream:
    return lp.PatchStream(cohort, SIZE, **{"seed": 4} | changes)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda c: c.location.url, r"patches of a str.*lp\.open_cohort\('.*phantom'\)"),
        (lambda c: Path(c.location.url), r"patches of a PosixPath.*lp\.open_cohort\("),
        (lambda c: c[0], r"patches of a Patient.*cohort\[\['(old|new)Acq_\w+'\]\]"),
        (lambda c: c.patients, r"patches of a DataFrame.*lp\.open_cohort\(path_or_url\)"),
        (lambda _: None, r"patches of a NoneType.*expected a cohort"),
    ],
)
def test_a_stream_of_what_is_no_cohort(cohort, given, said):
    with pytest.raises(UsageError, match=f"(?s){said}"):
        make(given(cohort))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("batch_size", r"torch_dataset\(stream, batch_size=…\)"),
        ("transform", r"torch_dataset\(stream, transform=…\)"),
        ("num_workers", r"\.loader\(num_workers=…\)"),
        ("structure", "nearest: structures"),
        ("zzz", "there are cohort, patch_size"),
    ],
)
def test_arguments_that_are_somebody_elses(cohort, name, said):
    with pytest.raises(UsageError, match=f"{name}= is no argument of PatchStream.*{said}"):
        make(cohort, **{name: 2})


def test_a_stream_has_one_iteration_at_a_time(cohort):
    stream = make(cohort)
    one, other = iter(stream), iter(stream)
    found = [next(one)["index"], next(other)["index"]]
    with pytest.raises(
        UsageError, match=r"epoch 0 .*overtaken.*epoch 0, patch 2 now.*one iteration at a time"
    ):
        next(one)
    found += [sample["index"] for sample in other]
    assert found == list(range(32))
    with pytest.raises(UsageError, match="overtaken"):
        list(zip(stream, stream, strict=True))


def test_an_iteration_that_was_left_harms_nobody(cohort):
    stream = make(cohort)
    old = iter(stream)
    found = [next(old)["index"], *(sample["index"] for sample in stream)]
    assert found == list(range(32))
    old.close()
    assert stream.place == (1, 0)


def test_a_stream_that_is_moved_while_it_is_read(cohort):
    stream = make(cohort)
    samples = iter(stream)
    next(samples)
    stream.seek(*stream.place)  # where it is: nothing changes
    next(samples)
    stream.seek(0, 20)
    with pytest.raises(UsageError, match=r"overtaken.*seek.*epoch 0, patch 20 now"):
        next(samples)
    assert [s["index"] for s in stream] == list(range(20, 32))


@pytest.mark.parametrize("epoch", ["1", 1.0, True, None, (0, 8), -1])
def test_seek_takes_whole_numbers(cohort, epoch):
    with pytest.raises(UsageError, match="epoch"):
        make(cohort).seek(epoch)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (lambda _: None, "a state that is a NoneType; expected the dict that state_dict gave"),
        (lambda s: s, "a state that is a PatchStream"),
        (lambda s: s.state_dict() | {"dataset": 3}, "the state's dataset is invalid"),
        (lambda s: s.state_dict() | {"settings": 3}, "settings 3, which is not a dict"),
    ],
)
def test_states_that_are_none(cohort, state, said):
    stream = make(cohort)
    with pytest.raises(UsageError, match=said):
        stream.load_state_dict(state(stream))


class TestTorch:
    """Where torch is installed."""

    @pytest.fixture(autouse=True)
    def _torch(self):
        pytest.importorskip("torch")

    @pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
    @pytest.mark.parametrize(
        "options", [{}, {"batch_size": 4, "shuffle": True}, {"num_workers": 1}]
    )
    def test_a_stream_given_to_a_loader(self, cohort, options):
        from torch.utils.data import DataLoader

        with pytest.raises(UsageError, match=r"torch_dataset\(stream, batch_size=4\)\.loader"):
            next(iter(DataLoader(make(cohort), **options)))

    @pytest.mark.parametrize("given", [lambda c: c, lambda c: c.location.url, lambda c: c[0]])
    def test_a_dataset_of_what_is_no_stream(self, cohort, given):
        with pytest.raises(UsageError, match=r"expected a PatchStream: lp\.torch_dataset\(lp\.P"):
            lp.torch_dataset(given(cohort), 4)

    @pytest.mark.parametrize("size", [0, -1, "4", 4.0, True])
    def test_batch_sizes_that_are_none(self, cohort, size):
        with pytest.raises(UsageError, match=r"batch_size=.*positive integer"):
            lp.torch_dataset(make(cohort), size)

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("num_workers", r"\.loader\(num_workers=…\)"),
            ("shuffle", r"PatchStream\(cohort, …, shuffle=…\)"),
            ("batchsize", "nearest: batch_size"),
        ],
    )
    def test_arguments_of_a_dataset(self, cohort, name, said):
        with pytest.raises(UsageError, match=f"{name}= is no argument of torch_dataset.*{said}"):
            lp.torch_dataset(make(cohort), **{name: 2})

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("batch_size", r"torch_dataset\(stream, batch_size=…\)"),
            ("batch_sampler", r"torch_dataset\(stream, batch_size=…\)"),
            ("drop_last", r"torch_dataset\(stream, batch_size=…, drop_last=…\)"),
            ("shuffle", r"lp\.PatchStream\(cohort, shuffle="),
            ("sampler", r"lp\.PatchStream\(cohort, sampling="),
            ("dataset", "the dataset whose method this is"),
            ("in_order", "in the stream's order"),
            ("num_worker", "nearest: num_workers"),
        ],
    )
    def test_options_of_a_loader(self, cohort, name, said):
        with pytest.raises(UsageError, match=rf"{name}= is no argument of \.loader\(\).*{said}"):
            lp.torch_dataset(make(cohort), 4).loader(**{name: 3})

    def test_batches_of_batches(self, cohort):
        """A DataLoader that is not told `batch_size=None` would add an axis, silently."""
        from torch.utils.data import DataLoader

        from lundprobe_zarr.stream.torch import collate

        dataset = lp.torch_dataset(make(cohort), 4)
        for options in ({}, {"batch_size": 2}, {"batch_size": 2, "collate_fn": collate}):
            with pytest.raises(UsageError, match=r"makes batches already.*batch_size=None"):
                next(iter(DataLoader(dataset, **options)))

    def test_batches_by_number(self, cohort):
        with pytest.raises(UsageError, match="number 0 of a stream"):
            lp.torch_dataset(make(cohort), 4)[0]

    def test_transforms_that_are_none(self, cohort):
        with pytest.raises(UsageError, match="transform='norm'; expected a function"):
            lp.torch_dataset(make(cohort), 4, transform="norm")
        dataset = lp.torch_dataset(make(cohort), 4, transform=lambda _: None)
        with pytest.raises(UsageError, match=r"made a NoneType.*does it return the sample"):
            next(iter(dataset))


@pytest.mark.parametrize(
    "options",
    [{"observers": ("obsB",)}, {"nnunet": True}, {"folds": (0,)}, {"uncertainty": True}],
)
def test_data_that_no_patient_has_is_refused(cohort, options):
    """Base patients have no such masks: all samples would be zero."""
    base = cohort.where("part = 'base'")
    with pytest.raises(MissingStructureError, match="networks' or observers' masks"):
        lp.PatchStream(base, patch_size=(4, 16, 16), **options)
    assert len(lp.PatchStream(cohort, patch_size=(4, 16, 16), **options))


@pytest.mark.parametrize("name", ["dose", "nnunet", "uncertainty"])
def test_a_flag_is_true_or_false(cohort, name):
    with pytest.raises(UsageError, match=f"{name}='no'; expected True or False"):
        lp.PatchStream(cohort, patch_size=(4, 16, 16), **{name: "no"})


def test_an_aggregator_takes_the_plan(cohort):
    stream = lp.PatchStream(cohort, patch_size=(4, 16, 16), sampling="grid")
    with pytest.raises(UsageError, match=r"of a PatchStream; expected .*stream\.plan"):
        lp.Aggregator(stream)
