"""Patches are those of the plan that all views share, read through `datasets`."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.patches import BalancedSampling, Content, GridSampling, Plan
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stream.patch import read_items

CONTENT = {"modalities": ("T2w", "sCT"), "structures": ("CTVT_427", "PenileBulb")}
SAMPLINGS = {
    "uniform": {"sampling": "uniform"},
    "balanced": {"sampling": BalancedSampling(("CTVT_427",), 1.0, 3)},
    "grid": {"sampling": GridSampling(2), "shuffle": False, "pad": "zero"},
    "centred": {"sampling": "centred"},
    "in mm": {"patch_size": None, "patch_size_mm": 60.0},
    "respaced": {"spacing_mm": (12.0, 9.0, 9.0), "seed": 3},
    "on the sCT": {"grid": "sct", "modalities": ("sCT",)},
}


def expected(cohort, options):
    """The samples of the plan itself, in order of the first epoch."""
    content = {k: v for k, v in options.items() if k in ("grid", "spacing_mm", *CONTENT)}
    rest = {k: v for k, v in options.items() if k not in content}
    plan = Plan(cohort, Content(dose=True, **content), **rest)
    items = [plan.item(0, n) for n in range(len(plan))]
    return [
        read_items(plan, StoreReader.open(cohort.location, i.patient_id), [i])[0] for i in items
    ]


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_patches_are_those_of_the_plan(cohort, kind):
    options = {"patch_size": (5, 12, 14)} | CONTENT | SAMPLINGS[kind]
    samples = expected(cohort, options)
    listed = {k: list(v) if k in CONTENT else v for k, v in options.items()}
    rows = list(cohort.to_hf("patches", **listed))
    assert len(rows) == len(samples) > 0
    for row, sample in zip(rows, samples, strict=True):
        assert row["patient_id"] == sample["patient_id"]
        for name in ("image", "mask", "dose"):
            assert row[name].shape == sample[name].shape
            np.testing.assert_array_equal(np.asarray(row[name]), sample[name])
            assert np.asarray(row[name]).dtype == sample[name].dtype
        for name in ("start", "present"):
            np.testing.assert_array_equal(row[name], sample[name])
        np.testing.assert_allclose(row["affine"], sample["affine"])
        np.testing.assert_array_equal(row["image"][0, 1:3], sample["image"][0, 1:3])


def test_balanced_patches_hold_the_structure_and_read_no_mask_to_find_it(cohort, reads):
    sampling = BalancedSampling(("CTVT_427",), 1.0, 2)
    options = {"patch_size": (6, 10, 10), "sampling": sampling, "structures": ["CTVT_427"]}
    rows = list(cohort.to_hf("patches", **options))
    assert not reads.voxels
    assert all(np.asarray(row["mask"]).any() for row in rows)


@pytest.mark.parametrize("split", ["base", "base+extended", "extended + base", "all"])
def test_epochs_draw_other_places(dataset, split):
    options = {"split": split, "streaming": True, "patch_size": (4, 16, 16)}
    stream = lp.load_dataset(dataset, "patches", seed=1, **options)
    epochs = []
    for epoch in (0, 1, 2, 1):
        stream.set_epoch(epoch)
        epochs.append([(r["patient_id"], tuple(r["start"])) for r in stream])
    assert epochs[1] == epochs[3]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert len(epochs[one]) == len(epochs[other]) == (24 if split == "base" else 32)
        assert len(set(epochs[one]) & set(epochs[other])) < 4, "other places, not another order"
    other = lp.load_dataset(dataset, "patches", seed=2, **options)
    assert [(r["patient_id"], tuple(r["start"])) for r in other] not in epochs


def test_parts_together_are_mixed(dataset):
    stream = lp.load_dataset(
        dataset, "patches", split="base+extended", streaming=True, patch_size=(4, 8, 8)
    )
    parts = [row["part"] for row in stream]
    assert parts != sorted(parts)
    assert parts.count("extended") == 8
    with pytest.raises(ValueError, match=r"base\+test"):
        lp.load_dataset(dataset, "patches", split="base+test", streaming=True, patch_size=(4, 8, 8))


def test_in_memory_patches(dataset):
    options = {"patch_size": (4, 8, 8), "where": "protocol = 'newAcq'"}
    stored = lp.load_dataset(dataset, "patches", split="base", **options)
    streamed = lp.load_dataset(dataset, "patches", split="base", streaming=True, **options)
    for one, other in zip(stored, streamed, strict=True):
        assert one == other
        np.testing.assert_array_equal(np.asarray(one["image"]), np.asarray(other["image"]))


def test_filters_choose_patients_and_an_empty_part_has_no_patches(dataset):
    parts = lp.load_dataset(
        dataset, "patches", streaming=True, patch_size=(4, 8, 8), filters=[("part", "==", "base")]
    )
    assert {name: len(list(rows)) for name, rows in parts.items()} == {"base": 24, "extended": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected one of the two"),
        ({"patch_size": (0, 8, 8)}, "three positive integers"),
        (
            {"patch_size": 8},
            r"patch_size=8; expected three positive integers.*e\.g\. \(32, 192, 192\)",
        ),
        ({"patch_size": "8"}, "patch_size='8'; expected three positive integers"),
        ({"patch_size_mm": "8"}, "patch_size_mm is '8'; expected positive millimetres"),
        ({"patch_size": (4, 8, 8), "spacing_mm": "2"}, "spacing_mm is '2'; expected positive"),
        ({"patch_size": (4, 8, 8), "spacing_mm": True}, "spacing_mm is True"),
        ({"patch_size": (4, 8, 8), "spacing_mm": [1, [2]]}, "spacing_mm is"),
        ({"patch_size": (4, 8, 8), "block": "4"}, "block='4'; expected an integer"),
        ({"patch_size": (4, 8, 8), "sampling": 3}, "sampling=3; expected one of uniform"),
        ({"patch_size": (400, 8, 8)}, "longer than the volume"),
        ({"patch_size": (4, 8, 8), "sampling": "clever"}, "expected one of uniform, balanced"),
        ({"patch_size": (4, 8, 8), "pad": "mirror"}, "expected one of error, zero, edge"),
        ({"patch_size": (4, 8, 8), "read_ahead": -1}, "expected a number of rows"),
    ],
)
def test_options_that_make_no_sense(dataset, options, message):
    with pytest.raises(UsageError, match=message):
        lp.load_dataset(dataset, "patches", split="base", streaming=True, **options)


@pytest.mark.skipif(
    version("datasets") < "5.2", reason="an older datasets refuses set_epoch behind take and skip"
)
def test_what_was_taken_or_skipped_is_new_each_epoch(dataset):
    """datasets lets neither be shuffled, so `set_epoch` would not reach the patches."""
    options = {"split": "base", "streaming": True, "patch_size": (4, 16, 16), "seed": 1}
    whole = lp.load_dataset(dataset, "patches", **options)
    ways = {
        "take": (whole.take(5), slice(0, 5)),
        "skip": (whole.skip(5), slice(5, None)),
        "both": (whole.skip(5).take(6), slice(5, 11)),
    }
    for epoch in (0, 1, 2, 1):
        whole.set_epoch(epoch)
        expected = [(r["patient_id"], tuple(r["start"])) for r in whole]
        for stream, part in ways.values():
            stream.set_epoch(epoch)
            assert [(r["patient_id"], tuple(r["start"])) for r in stream] == expected[part]
    shuffled = whole.shuffle(seed=7, buffer_size=1).take(5)
    found = []
    for epoch in (0, 1, 2):
        shuffled.set_epoch(epoch)
        found.append(tuple((r["patient_id"], tuple(r["start"])) for r in shuffled))
    assert len(set(found)) == 3


def test_repeating_gives_the_same_patches_again_as_the_guide_says(dataset):
    options = {"split": "base", "streaming": True, "patch_size": (4, 16, 16), "seed": 1}
    rows = [tuple(r["start"]) for r in lp.load_dataset(dataset, "patches", **options).repeat(2)]
    assert rows[: len(rows) // 2] == rows[len(rows) // 2 :]
