"""`Cohort.split`: by patient, deterministic for ever, stratified, and guarded when loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lundprobe_zarr as lp
from lundprobe_zarr.cohort import Cohort, Splits, load_splits
from lundprobe_zarr.cohort.saved import SavedSplits
from lundprobe_zarr.cohort.splits import deal, order_patients
from lundprobe_zarr.errors import UsageError


def by_stratum(cohort: Cohort, column: str = "protocol") -> dict[str, int]:
    counts: dict[str, int] = cohort.patients[column].value_counts().to_dict()
    return counts


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(20, 467),
    test=st.integers(0, 60).map(lambda p: p / 100),
    folds=st.integers(2, 6),
    seed=st.integers(-5, 10**9),
    stratify=st.sampled_from([(), ("protocol",), ("part",), ("protocol", "missing_PenileBulb")]),
)
def test_sets_partition_the_cohort_evenly(
    many: Cohort, size: int, test: float, folds: int, seed: int, stratify: tuple[str, ...]
) -> None:
    cohort = many[:size]
    splits = cohort.split(test, folds, stratify, seed)
    held_out = int(Fraction(str(test)) * size + Fraction(1, 2))
    assert len(splits.test) == held_out
    validation = [set(f.val.ids) for f in splits.folds]
    assert sorted([*splits.test.ids, *(i for v in validation for i in v)]) == sorted(cohort.ids)
    for fold in splits.folds:
        assert set(fold.train.ids) | set(fold.val.ids) | set(splits.test.ids) == set(cohort.ids)
        assert len(fold.train) + len(fold.val) + len(splits.test) == size
    sizes = [len(v) for v in validation]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("test", [0, 0.1, 0.15, 0.333])
def test_every_stratum_is_spread_evenly(many: Cohort, test: float) -> None:
    splits = many.split(test=test, folds=5)
    for stratum, count in by_stratum(many).items():
        assert abs(by_stratum(splits.test).get(stratum, 0) - test * count) < 1
        in_folds = [by_stratum(f.val)[stratum] for f in splits.folds]
        assert max(in_folds) - min(in_folds) <= 1


def test_a_list_column_can_stratify(phantom: Cohort) -> None:
    assert len(phantom.split(0, 2, "missing_structures").folds) == 2


def test_the_order_of_patients_never_changes() -> None:
    """Golden values: other machines, versions and future releases have to give the same."""
    ids = [f"newAcq_{i:016x}" for i in range(8)]
    assert [int(i[-1]) for i in order_patients(ids, 0)] == [1, 4, 2, 3, 5, 0, 6, 7]
    assert [int(i[-1]) for i in order_patients(ids, 1)] == [1, 4, 7, 2, 5, 3, 6, 0]


def test_splits_of_the_simulated_patients_never_change(many: Cohort) -> None:
    splits = many.split()
    assert (len(splits.test), [len(f.val) for f in splits.folds]) == (70, [80, 80, 79, 79, 79])
    assert splits.test.ids[:3] == [
        "newAcq_6b86b273ff34fce1",
        "oldAcq_7902699be42c8a8e",
        "oldAcq_b17ef6d19c7a5b1e",
    ]
    assert splits.folds[0].val.ids[:3] == [
        "oldAcq_4e07408562bedb8b",
        "oldAcq_4fc82b26aecb47d2",
        "oldAcq_8527a891e2241369",
    ]


def test_splits_do_not_depend_on_the_order_of_the_table(many: Cohort) -> None:
    ids = many.ids
    assert order_patients(ids, 3) == order_patients(reversed(ids), 3)
    assert many.split(seed=1).test.ids != many.split(seed=2).test.ids


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=3), max_size=40), st.integers(1, 7))
def test_dealing_spreads_every_run_evenly(ids: list[str], hands: int) -> None:
    dealt = deal(ids, hands)
    assert sorted(i for hand in dealt for i in hand) == sorted(ids)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test": 1.0}, "test=1.0; expected a share of the patients, from 0 to below 1"),
        ({"test": -0.1}, "test=-0.1"),
        ({"test": float("nan")}, "test=nan"),
        ({"test": "0.1"}, "test='0.1'"),
        ({"test": True}, "test=True"),
        ({"folds": 1}, "folds=1; expected at least 2"),
        ({"folds": 2.5}, "folds=2.5; expected a whole number"),
        ({"folds": 398}, "folds=398: more than the 397 patients"),
        ({"seed": 1.5}, "seed=1.5; expected a whole number"),
        ({"seed": None}, "seed=None"),
        ({"stratify": ("protcol",)}, "no column 'protcol' .*; nearest: protocol"),
        ({"stratify": "protcol"}, "no column 'protcol' .*; nearest: protocol"),
    ],
)
def test_bad_arguments_are_refused(many: Cohort, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        many.split(**arguments)


def test_saved_splits_are_the_same_when_loaded(many: Cohort, tmp_path: Path) -> None:
    cohort = many.where("NOT missing_PenileBulb")
    splits = cohort.split(seed=7)
    splits.save(tmp_path / "splits.json")
    again = lp.load_splits(tmp_path / "splits.json", cohort)
    assert again.sha256 == splits.sha256 == cohort.split(seed=7).sha256
    assert again.seed == 7
    assert again.test.ids == splits.test.ids
    assert [(f.train.ids, f.val.ids) for f in again.folds] == [
        (f.train.ids, f.val.ids) for f in splits.folds
    ]
    assert splits.sha256[:12] in repr(again)
    assert load_splits(tmp_path / "splits.json", many).test.ids == splits.test.ids  # more is fine


def test_nnunet_gets_its_file(many: Cohort, tmp_path: Path) -> None:
    splits = many.split(folds=3)
    splits.save_nnunet(tmp_path / "splits_final.json")
    folds = json.loads((tmp_path / "splits_final.json").read_text())
    assert [set(f) for f in folds] == [{"train", "val"}] * 3
    for fold, expected in zip(folds, splits.folds, strict=True):
        assert fold == {"train": expected.train.ids, "val": expected.val.ids}
        assert not set(fold["train"] + fold["val"]) & set(splits.test.ids)


def with_new_checksum(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a file and make its hash right again, as somebody determined would."""
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(SavedSplits.model_validate(raw).with_checksum().model_dump_json())


def _test_patient_validates(raw: dict[str, Any]) -> None:
    raw["validation"][0].append(raw["test"][0])


def _validates_twice(raw: dict[str, Any]) -> None:
    raw["validation"][1].append(raw["validation"][0][0])


def _twice_in_test(raw: dict[str, Any]) -> None:
    raw["test"].append(raw["test"][0])


def _stranger(raw: dict[str, Any]) -> None:
    raw["test"].append("newAcq_ffffffffffffffff")


def _other_dataset(raw: dict[str, Any]) -> None:
    raw["dataset"]["digest"] = "0" * 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_test_patient_validates, "in two of its sets"),
        (_validates_twice, "in two of its sets"),
        (_twice_in_test, "in two of its sets"),
        (_stranger, "1 of its 468 patients are not in the cohort .*newAcq_ffffffffffffffff"),
        (_other_dataset, "saved from another dataset"),
    ],
)
def test_what_does_not_fit_is_refused_even_with_a_right_hash(
    many: Cohort, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = tmp_path / "splits.json"
    many.split().save(path)
    with_new_checksum(path, change)
    with pytest.raises(UsageError, match=message):
        load_splits(path, many)


def test_a_path_in_place_of_a_cohort_is_refused(simulated: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"for a cohort; expected .*open_cohort\("):
        load_splits(tmp_path / "splits.json", simulated)  # type: ignore[arg-type]


def test_a_wrong_hash_is_refused(many: Cohort, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    many.split().save(path)
    raw = json.loads(path.read_text())
    raw["test"].pop()
    path.write_text(json.dumps(raw))
    with pytest.raises(UsageError, match="changed or damaged since it was saved"):
        load_splits(path, many)


def test_patients_outside_the_cohort_are_refused(many: Cohort, tmp_path: Path) -> None:
    many.split().save(tmp_path / "splits.json")
    with pytest.raises(UsageError, match="are not in the cohort of"):
        load_splits(tmp_path / "splits.json", many[:400])


def test_another_dataset_is_refused(many: Cohort, phantom: Cohort, tmp_path: Path) -> None:
    phantom.split(0, 2).save(tmp_path / "splits.json")
    with pytest.raises(UsageError, match="saved from another dataset"):
        load_splits(tmp_path / "splits.json", many)


def test_a_small_cohort_splits(phantom: Cohort) -> None:
    splits: Splits[Cohort] = phantom.split(test=0.25, folds=3)
    assert len(splits.test) == 1
    assert [len(f.val) for f in splits.folds] == [1, 1, 1]
    with pytest.raises(UsageError, match="more than the 0 patients"):
        phantom[:0].split()


def test_a_measured_number_makes_no_strata(many: Cohort) -> None:
    with pytest.raises(UsageError, match=r"\['dose_max_gy'\]: \d+ classes, \d+ of the 467"):
        many.split(stratify="dose_max_gy")


def test_a_cohort_is_no_place_to_load_one_from(many: Cohort, tmp_path: Path) -> None:
    many.save(tmp_path / "cohort.json")
    with pytest.raises(UsageError, match="was given a cohort for the dataset's path or URL"):
        lp.load_cohort(tmp_path / "cohort.json", many)  # type: ignore[arg-type]


@pytest.mark.parametrize(("test", "val"), [(0.15, 0.15), (0, 0.2), (0.5, 0.45), (0.333, 0.1)])
def test_a_validation_share_instead_of_folds(many: Cohort, test: float, val: float) -> None:
    splits = many.split(test=test, val=val, seed=3)
    assert len(splits.val) == int(Fraction(str(val)) * len(many) + Fraction(1, 2))
    assert splits.test == many.split(test=test, seed=3).test, "the same as with folds"
    sets = (splits.test, splits.train, splits.val)
    assert sorted(i for s in sets for i in s.ids) == sorted(many.ids)
    assert len(splits.folds) == 1
    for stratum, count in by_stratum(many).items():
        assert abs(by_stratum(splits.val).get(stratum, 0) - val * count) < 2
    assert splits == many.split(test=test, val=val, seed=3)
    assert splits != many.split(test=test, val=val, seed=4)


def test_a_validation_share_is_saved_and_goes_to_nnunet(many: Cohort, tmp_path: Path) -> None:
    splits = many.split(val=0.1)
    splits.save(tmp_path / "splits.json")
    again = lp.load_splits(tmp_path / "splits.json", many)
    assert (again.sha256, again.train, again.val) == (splits.sha256, splits.train, splits.val)
    assert again.test == splits.test
    splits.save_nnunet(tmp_path / "final.json")
    (fold,) = json.loads((tmp_path / "final.json").read_text())
    assert fold == {"train": splits.train.ids, "val": splits.val.ids}
    raw = json.loads((tmp_path / "splits.json").read_text())
    assert (raw["format_version"], raw["val_share"]) == (2, 0.1), "older versions say: upgrade"
    with_new_checksum(tmp_path / "splits.json", lambda r: r["train"].append(r["test"][0]))
    with pytest.raises(UsageError, match="in two of its sets"):
        lp.load_splits(tmp_path / "splits.json", many)


def test_folds_are_saved_as_before(many: Cohort, tmp_path: Path) -> None:
    many.split().save(tmp_path / "splits.json")
    raw = json.loads((tmp_path / "splits.json").read_text())
    assert raw["format_version"] == 1
    assert not {"val_share", "train"} & set(raw)
    body = {k: v for k, v in raw.items() if k != "sha256"}
    del body["dataset"]["created"]
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == raw["sha256"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val": 1.0}, "val=1.0; expected a share"),
        ({"val": True}, "val=True"),
        ({"val": 0}, "val=0: 0 of the 397 patients"),
        ({"test": 0.5, "val": 0.5}, "val=0.5: 234 of the 233 patients"),
        ({"folds": 5, "val": 0.1}, "val=0.1 and folds=5; expected one of the two"),
    ],
)
def test_bad_validation_shares_are_refused(
    many: Cohort, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        many.split(**arguments)


def test_folds_have_no_single_train_and_val(many: Cohort) -> None:
    with pytest.raises(UsageError, match="train and val of 5 folds"):
        _ = many.split().train
