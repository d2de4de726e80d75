"""Test set and cross-validation folds by patient, reproducible on every machine.

Patients are ordered by a hash of seed and id, so the order depends on no random generator. This
module works on ids and strata. The caller's function `pick` makes cohorts from ids.
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
from lundprobe_zarr.vocabulary.markup import summary_html

#: Up to this many strata are always accepted: small cohorts have strata of one patient.
_FEW_CLASSES = 8
#: Default number of folds.
_FOLDS = 5
#: Stratum -> its patients' ids. A stratum is the JSON text of its values.
Strata = Mapping[str, Sequence[str]]


class Patients(Protocol):
    """Several patients, such as a cohort."""

    @property
    def ids(self) -> list[str]:
        """Ids of the patients."""

    def __len__(self) -> int: ...


C = TypeVar("C", bound=Patients)
#: Makes a cohort from ids; the second argument describes their selection.
Pick = Callable[[Iterable[str], tuple[str, ...]], C]


@dataclass(frozen=True)
class Fold(Generic[C]):
    """The training and validation patients of one fold; none is in the test set."""

    train: C
    val: C


class Splits(Generic[C]):
    """A test set and folds of the other patients, made by `Cohort.split`.

    Splits with the same `sha256` are equal.

    Attributes
    ----------
    test : Cohort
        The test set.
    folds : tuple of Fold
        The folds, each with cohorts `train` and `val`.
    """

    def __init__(self, saved: SavedSplits, pick: Pick[C]) -> None:
        self._saved = saved.with_checksum()
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

    def _repr_html_(self) -> str:
        """Return the sets with their numbers of patients, for notebooks."""
        rows: list[tuple[str, int, str]] = [("test", len(self.test), "")]
        for number, fold in enumerate(self.folds):
            rows += [("train", len(fold.train), str(number)), ("val", len(fold.val), str(number))]
        facts = {"seed": str(self.seed), "sha256": self.sha256}
        return summary_html("Splits", facts, ("set", "patients", "fold"), rows)

    def __eq__(self, other: object) -> bool:
        return self.sha256 == other.sha256 if isinstance(other, Splits) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.sha256)

    @property
    def train(self) -> C:
        """Training patients of splits made with `val=`. Raises `UsageError` for folds."""
        return self._only().train

    @property
    def val(self) -> C:
        """Validation patients of splits made with `val=`. Raises `UsageError` for folds."""
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
        """Seed of the splits."""
        return self._saved.seed

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of dataset, arguments and every patient's set, as in the saved file."""
        return self._saved.sha256

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the splits to a local JSON file with their checksum, for `load_splits`."""
        self._saved.write(path)

    def save_nnunet(self, path: str | os.PathLike[str]) -> None:
        """Write the folds as nnU-Net's `splits_final.json`. The test set is not included."""
        folds = [{"train": fold.train.ids, "val": fold.val.ids} for fold in self.folds]
        Path(path).write_text(json.dumps(folds, indent=4) + "\n", encoding="utf-8")


def read_splits(path: str | os.PathLike[str]) -> tuple[SavedSplits, list[str]]:
    """Read splits from a local file; return them and the sorted ids of all their patients.

    Raises `UsageError` if the file is invalid or was changed, or if its sets overlap.
    """
    saved = read_saved(path, SavedSplits)
    seen: set[str] = set()
    for patient_id in chain(saved.test, saved.train or (), *saved.validation):
        if patient_id in seen:
            raise UsageError(
                f"patient {patient_id} is in two of its sets",
                where=path,
                expected="test set and folds without a common patient",
                remedy="make the splits again with Cohort.split",
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
    """Divide patients, by stratum in `columns`; return fields of `SavedSplits`.

    Arguments and errors are those of `Cohort.split`.
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
    """Return the fields of `SavedSplits` for patients divided into folds."""
    validation = deal(chain(*remaining.values()), folds)
    if not all(validation):
        raise UsageError(
            f"folds={folds}: more than the {sum(map(len, remaining.values()))} "
            "patients that are not in the test set",
            remedy="ask for fewer folds or a smaller test set",
        )
    return {"validation": [sorted(ids) for ids in validation]}


def _in_two(remaining: Strata, val: float, everyone: int) -> dict[str, Any]:
    """Return the fields of `SavedSplits` for a validation share of `everyone`."""
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
    """Raise `UsageError` if most patients are alone in their stratum, as with measured numbers."""
    patients = sum(map(len, classes.values()))
    alone = sum(len(ids) == 1 for ids in classes.values())
    if len(classes) > _FEW_CLASSES and 2 * alone > patients:
        raise UsageError(
            f"stratify={columns}: {len(classes)} classes, {alone} of the "
            f"{patients} patients alone in theirs, which no split spreads evenly",
            expected="columns of a few values, such as protocol or missing_PenileBulb",
            remedy=(
                'for a measured number, split cohort.where("dose_max_gy > 44") and the others '
                "separately"
            ),
        )


def order_patients(ids: Iterable[str], seed: int) -> list[str]:
    """Return patient ids in the order of a seed: sorted by SHA-256 of `<seed>:<id>`."""
    return sorted(ids, key=lambda i: (hashlib.sha256(f"{seed}:{i}".encode()).digest(), i))


def _rounded(number: Fraction) -> int:
    return int(number + Fraction(1, 2))


def _held_out(strata: Strata, share: float | Fraction) -> dict[str, int]:
    """Return the number of patients to hold out of every stratum; in all, the share, half up.

    The method is largest remainder, with exact fractions of the decimal number: 0.15 of 20 is 3.
    """
    exact = Fraction(str(share))
    total = _rounded(exact * sum(map(len, strata.values())))
    whole = {key: int(exact * len(ids)) for key, ids in strata.items()}
    rest = {key: exact * len(ids) - whole[key] for key, ids in strata.items()}
    for key in sorted(rest, key=lambda k: (-rest[k], k))[: total - sum(whole.values())]:
        whole[key] += 1
    return whole


def deal(ids: Iterable[str], folds: int) -> list[list[str]]:
    """Assign ids to folds in turn, so that a run of ids, such as a stratum, is spread evenly."""
    dealt: list[list[str]] = [[] for _ in range(folds)]
    for number, patient_id in enumerate(ids):
        dealt[number % folds].append(patient_id)
    return dealt
