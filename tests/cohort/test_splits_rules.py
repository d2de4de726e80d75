"""Splits as arithmetic: who is held out of which stratum, and how the rest is dealt."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lundprobe_zarr.cohort import Cohort, splits
from lundprobe_zarr.cohort.splits import deal, order_patients
from lundprobe_zarr.errors import UsageError

FEW = settings(max_examples=60, deadline=None)


def strata(*sizes: int) -> dict[str, list[str]]:
    """Strata a, b, c … of some sizes."""
    return {chr(97 + n): [f"{n}-{i}" for i in range(size)] for n, size in enumerate(sizes)}


def test_patients_are_in_the_order_of_a_hash() -> None:
    ids = [f"p{n}" for n in range(20)]
    expected = sorted(ids, key=lambda i: hashlib.sha256(f"-3:{i}".encode()).hexdigest())
    assert order_patients(reversed(ids), -3) == expected
    assert order_patients(ids, 4) != expected


def test_ids_are_dealt_in_turn() -> None:
    assert deal("abcdefg", 3) == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    assert deal("a", 2) == [["a"], []]


@pytest.mark.parametrize(
    ("sizes", "share", "held_out"),
    [
        ((10,), 0.15, [2]),  # 1.5 in all: a half is rounded up
        ((10,), 0.14, [1]),
        ((20,), 0.15, [3]),  # although 20 · 0.15 is above 3 in floats
        ((10, 10), 0.15, [2, 1]),  # 3 in all: of equal rests the first stratum's
        ((10, 12), 0.15, [1, 2]),  # 3.3 in all: rests of 0.5 and 0.8
        ((4, 4, 2), 0.5, [2, 2, 1]),
        ((3, 3, 3), 0.5, [2, 2, 1]),  # 4.5 in all: 5, and the rests are alike
        ((1, 1, 1, 1), 0.25, [1, 0, 0, 0]),
        ((7, 3), 0, [0, 0]),
        ((1,), 0.5, [1]),
        ((1,), 0.49, [0]),
        ((), 0.5, []),
    ],
)
def test_the_largest_rests_are_held_out(
    sizes: tuple[int, ...], share: float, held_out: list[int]
) -> None:
    assert list(splits._held_out(strata(*sizes), share).values()) == held_out


@FEW
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 99))
def test_no_stratum_is_a_patient_off_its_share(sizes: list[int], percent: int) -> None:
    share = percent / 100
    found = splits._held_out(strata(*sizes), share)
    exact = Fraction(percent, 100)
    assert sum(found.values()) == int(exact * sum(sizes) + Fraction(1, 2))
    for size, held in zip(sizes, found.values(), strict=True):
        assert abs(held - exact * size) < 1
        assert held <= size


@pytest.mark.parametrize(
    ("sizes", "refused"),
    [
        ((1,) * 8, False),  # eight classes are few
        ((1,) * 9, True),
        ((1,) * 8 + (2,), True),
        ((1,) * 8 + (8,), False),  # exactly half of the patients alone
        ((1,) * 9 + (8,), True),
        ((2,) * 20, False),
    ],
)
def test_classes_of_one_patient_each_are_refused(sizes: tuple[int, ...], refused: bool) -> None:
    classes = {str(n): [str(i) for i in range(size)] for n, size in enumerate(sizes)}
    if not refused:
        splits._require_classes(["column"], classes)
        return
    said = f"{len(sizes)} classes, {sizes.count(1)} of the {sum(sizes)} patients alone"
    with pytest.raises(UsageError, match=said):
        splits._require_classes(["column"], classes)


@pytest.mark.parametrize("share", [0, 0.0, 0.5, 0.79])
@pytest.mark.parametrize(("folds", "seed"), [(2, 0), (10, -5), (5, 10**20)])
def test_sound_arguments_pass(many: Cohort, share: float, folds: int, seed: int) -> None:
    found = many.split(share, folds, (), seed)
    assert (len(found.folds), found.seed) == (folds, seed)
    assert len(found.test) == int(Fraction(str(share)) * 467 + Fraction(1, 2))


@pytest.mark.parametrize(
    "arguments",
    [
        {name: value}
        for name in ("test", "val")
        for value in (1, 1.5, -0.01, False, True, "0.1", float("nan"))
    ]
    + [{"test": None}]
    + [{"folds": value} for value in (1, 0, True, 2.0, "2")]
    + [{"seed": value} for value in (False, True, "1", 1.0, None)],
)
def test_other_arguments_are_refused(many: Cohort, arguments: dict[str, Any]) -> None:
    [(name, value)] = arguments.items()
    with pytest.raises(UsageError) as caught:
        many.split(**arguments)
    assert str(caught.value).startswith(f"{name}={value!r}; expected ")


def ids(cohort: Cohort) -> set[str]:
    return set(cohort.ids)


@pytest.mark.parametrize(
    ("test", "val", "validates"), [(0.15, 0.15, 70), (0, 0.5, 234), (0.5, 0.4, 187)]
)
def test_a_share_that_validates_is_of_all_patients(
    many: Cohort, test: float, val: float, validates: int
) -> None:
    found = many.split(test, val=val)
    assert len(found.val) == validates
    assert len(found.folds) == 1
    assert ids(found.train) | ids(found.val) | ids(found.test) == ids(many)
    assert len(found.train) + len(found.val) + len(found.test) == len(many)
    again = many.split(test, val=val, seed=1)
    assert ids(again.val) != ids(found.val)


def test_somebody_validates_and_somebody_trains(many: Cohort) -> None:
    ten = many[:10]
    found = ten.split(0, val=0.1)
    assert (len(found.train), len(found.val)) == (9, 1)
    assert len(ten.split(0, val=0.94, stratify=()).train) == 1
    for test, val in ((0, 0.04), (0, 0.95), (0.5, 0.5), (0.9, 0.1)):
        with pytest.raises(UsageError, match="of the"):
            ten.split(test, val=val, stratify=())


def test_folds_have_no_single_training_set(many: Cohort) -> None:
    found = many.split()
    assert len(found.folds) == 5
    for name in ("train", "val"):
        with pytest.raises(UsageError, match="of 5 folds"):
            getattr(found, name)
    with pytest.raises(UsageError, match=r"^val=0\.2 and folds=3; expected "):
        many.split(folds=3, val=0.2)


def test_as_many_folds_as_patients_are_left(many: Cohort) -> None:
    ten = many[:10]
    assert [len(f.val) for f in ten.split(0.2, 8, ()).folds] == [1] * 8
    with pytest.raises(UsageError, match="folds=9: more than the 8 patients"):
        ten.split(0.2, 9, ())


def test_equal_splits_are_those_with_the_same_hash(many: Cohort) -> None:
    one, same, other = many.split(), many.split(), many.split(seed=1)
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != one.sha256


def test_a_fold_is_a_value(many: Cohort) -> None:
    with pytest.raises(AttributeError):
        many.split().folds[0].train = many  # type: ignore[misc]


def test_what_chose_a_set_is_part_of_its_selection(many: Cohort) -> None:
    found = many.split(seed=3)
    assert found.test.selection[-1] == "[test set, seed 3]"
    assert found.folds[2].train.selection[-1] == "[train 2, seed 3]"
    assert found.folds[4].val.selection[-1] == "[val 4, seed 3]"
    sizes = ", ".join(f"{len(f.train)} + {len(f.val)}" for f in found.folds)
    assert sizes in repr(found)
    assert found.sha256[:12] in repr(found)
    assert found.sha256[:13] not in repr(found)


def test_a_file_for_nnunet_is_indented(many: Cohort, tmp_path: Path) -> None:
    """As nnU-Net writes its own: by four spaces, with a line's end."""
    many[:10].split(0, 2, ()).save_nnunet(tmp_path / "splits_final.json")
    text = (tmp_path / "splits_final.json").read_text()
    assert text == json.dumps(json.loads(text), indent=4) + "\n"
