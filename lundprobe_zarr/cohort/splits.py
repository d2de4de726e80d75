"""Test set and cross-validation folds by patient, the same on every machine, for good.

Patients are put in order by a hash of seed and id, which no library's generator can change. All
here works on ids and strata; who makes cohorts of ids gives the function `pick` that does.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from lundprobe_zarr.cohort.saved import SavedSplits, read_saved
from lundprobe_zarr.errors import UsageError

#: Stratum -> its patients' ids; a stratum is the JSON text of its values.
#: So many classes are never too many, whoever is in them: small cohorts have a few of one.
_FEW_CLASSES = 8
#: Folds unless it is said how many, or which share validates.
_FOLDS = 5
Strata = Mapping[str, Sequence[str]]


class Patients(Protocol):
    """Several patients, such as a cohort."""

    @property
    def ids(self) -> list[str]:
        """Their ids."""

    def __len__(self) -> int: ...


C = TypeVar("C", bound=Patients)
#: Makes a cohort of ids; the second argument says in words how they were chosen.
Pick = Callable[[Iterable[str], tuple[str, ...]], C]


@dataclass(frozen=True)
class Fold(Generic[C]):
    """One fold: who trains and who validates; nobody of the test set."""

    train: C
    val: C


class Splits(Generic[C]):
    """A test set, and folds of the patients who are not in it. Made by `Cohort.split`.

    Equal are those of one dataset with the same hash.
    """

    def __init__(self, saved: SavedSplits, pick: Pick[C]) -> None:
        self._saved = saved.sealed()
        name = f"seed {saved.seed}"
        validation = [set(ids) for ids in saved.validation]
        everyone = set(saved.train or ()).union(*validation)
        self.test: C = pick(saved.test, (*saved.selection, f"[test set, {name}]"))
        self.folds: tuple[Fold[C], ...] = tuple(
            Fold(
                pick(everyone - ids, (*saved.selection, f"[train {n}, {name}]")),
                pick(ids, (*saved.selection, f"[val {n}, {name}]")),
            )
            for n, ids in enumerate(validation)
        )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(f.train)} + {len(f.val)}" for f in self.folds)
        return f"<Splits: test {len(self.test)}, folds (train + val) {sizes}, {self.sha256[:12]}>"

    def __eq__(self, other: object) -> bool:
        return self.sha256 == other.sha256 if isinstance(other, Splits) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.sha256)

    @property
    def train(self) -> C:
        """Who trains, of splits made with `val=`. Raises `UsageError` for folds."""
        return self._only().train

    @property
    def val(self) -> C:
        """Who validates, of splits made with `val=`. Raises `UsageError` for folds."""
        return self._only().val

    def _only(self) -> Fold[C]:
        if len(self.folds) != 1:
            raise UsageError(
                f"train and val of {len(self.folds)} folds",
                expected=(
                    "splits made with val=, or splits.folds[0].train and splits.folds[0].val"
                ),
            )
        return self.folds[0]

    @property
    def seed(self) -> int:
        """The seed they were made with."""
        return self._saved.seed

    @property
    def sha256(self) -> str:
        """Hash of dataset, arguments and every patient's place; as in the saved file."""
        return self._saved.sha256

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them to a local JSON file with their hash, for `load_splits` and for citing."""
        self._saved.write(path)

    def save_nnunet(self, path: str | os.PathLike[str]) -> None:
        """Write the folds as nnU-Net's `splits_final.json`; the test set is in none of them."""
        folds = [{"train": fold.train.ids, "val": fold.val.ids} for fold in self.folds]
        Path(path).write_text(json.dumps(folds, indent=4) + "\n", encoding="utf-8")


def read_splits(path: str | os.PathLike[str]) -> tuple[SavedSplits, list[str]]:
    """Read splits from a local file, and the ids of all their patients in order.

    Raises `UsageError` if the file was changed or is none, or if its sets overlap.
    """
    saved = read_saved(path, SavedSplits)
    seen: set[str] = set()
    for patient_id in chain(saved.test, saved.train or (), *saved.validation):
        if patient_id in seen:
            raise UsageError(
                f"patient {patient_id} is in two of its sets",
                where=path,
                expected="test set and folds without a common patient",
                remedy="make the splits anew with Cohort.split",
            )
        seen.add(patient_id)
    return saved, sorted(seen)


def divide(
    classes: Strata,
    columns: list[str],
    test: float,
    folds: int | None,
    seed: int,
    val: float | None,
) -> dict[str, Any]:
    """Divide patients, by class of the values of `columns`, as the saved file has it.

    Arguments and errors are those of `Cohort.split`, which documents them.
    """
    _check_arguments(test, folds, seed, val)
    _require_classes(columns, classes)
    strata = {key: order_patients(ids, seed) for key, ids in sorted(classes.items())}
    held_out = _held_out(strata, test)
    remaining = {key: ids[held_out[key] :] for key, ids in strata.items()}
    if val is None:
        divided = _in_folds(remaining, _FOLDS if folds is None else folds)
    else:
        divided = _in_two(remaining, val, sum(map(len, strata.values())))
    return divided | {
        "seed": seed,
        "test_share": float(test),
        "stratify": columns,
        "test": sorted(chain(*(ids[: held_out[key]] for key, ids in strata.items()))),
    }


def _in_folds(remaining: Strata, folds: int) -> dict[str, Any]:
    """What the saved file says of patients dealt into folds."""
    validation = deal(chain(*remaining.values()), folds)
    if not all(validation):
        raise UsageError(
            f"folds={folds}: more than the {sum(map(len, remaining.values()))} "
            "patients that are not in the test set",
            remedy="ask for fewer folds or a smaller test set",
        )
    return {"validation": [sorted(ids) for ids in validation]}


def _in_two(remaining: Strata, val: float, everyone: int) -> dict[str, Any]:
    """What the saved file says of patients of whom a share of `everyone` validates."""
    left = sum(map(len, remaining.values()))
    wanted = _rounded(Fraction(str(val)) * everyone)
    if not 0 < wanted < left:
        raise UsageError(
            f"val={val!r}: {wanted} of the {left} patients that are not in the test set",
            expected=(
                "at least one to validate and one to train: choose other shares, or more patients"
            ),
        )
    counts = _held_out(remaining, Fraction(wanted, left))
    return {
        "validation": [sorted(chain(*(ids[: counts[key]] for key, ids in remaining.items())))],
        "train": sorted(chain(*(ids[counts[key] :] for key, ids in remaining.items()))),
        "val_share": float(val),
        "format_version": 2,
    }


def _check_arguments(test: float, folds: int | None, seed: int, val: float | None) -> None:
    for name, share in (("test", test), *([("val", val)] if val is not None else [])):
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise UsageError(
                f"{name}={share!r}", expected="a share of the patients, from 0 to below 1"
            )
    if val is not None and folds is not None:
        raise UsageError(
            f"val={val!r} and folds={folds!r}",
            expected="one of the two: every fold has its own validation patients",
        )
    folds = _FOLDS if folds is None else folds
    for name, value, least in (("folds", folds, 2), ("seed", seed, None)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise UsageError(f"{name}={value!r}", expected="a whole number")
        if least is not None and value < least:
            raise UsageError(f"{name}={value}", expected=f"at least {least}")


def _require_classes(columns: list[str], classes: Strata) -> None:
    """Raise `UsageError` for strata that spread nobody evenly, as a measured number makes them."""
    patients = sum(map(len, classes.values()))
    alone = sum(len(ids) == 1 for ids in classes.values())
    if len(classes) > _FEW_CLASSES and 2 * alone > patients:
        raise UsageError(
            f"stratify={columns}: {len(classes)} classes, {alone} of the "
            f"{patients} patients alone in theirs, which no split spreads evenly",
            expected="columns of a few values, such as protocol or missing_PenileBulb",
            remedy=(
                'by a measured number, split cohort.where("dose_max_gy > 44") and the rest apart'
            ),
        )


def order_patients(ids: Iterable[str], seed: int) -> list[str]:
    """Patient ids in the order that a seed gives them: by SHA-256 of `<seed>:<id>`."""
    return sorted(ids, key=lambda i: (hashlib.sha256(f"{seed}:{i}".encode()).digest(), i))


def _rounded(number: Fraction) -> int:
    return int(number + Fraction(1, 2))


def _held_out(strata: Strata, share: float | Fraction) -> dict[str, int]:
    """Patients to hold out of every stratum; in all, the share rounded half up.

    Largest remainder, in fractions of the decimal number that was written: 0.15 of 20 is 3.
    """
    exact = Fraction(str(share))
    total = _rounded(exact * sum(map(len, strata.values())))
    whole = {key: int(exact * len(ids)) for key, ids in strata.items()}
    rest = {key: exact * len(ids) - whole[key] for key, ids in strata.items()}
    for key in sorted(rest, key=lambda k: (-rest[k], k))[: total - sum(whole.values())]:
        whole[key] += 1
    return whole


def deal(ids: Iterable[str], hands: int) -> list[list[str]]:
    """Ids dealt in turn: every run of them, such as a stratum, is spread evenly over the hands."""
    dealt: list[list[str]] = [[] for _ in range(hands)]
    for number, patient_id in enumerate(ids):
        dealt[number % hands].append(patient_id)
    return dealt
