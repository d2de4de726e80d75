"""Small JSON files that a paper can cite: sealed with a hash, and tied to one dataset.

They hold patient ids and what chose them; never a URL, a path or credentials.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lundprobe_zarr.dataset.identity import DatasetIdentity
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.schema.document import parse_json, reasons
from lundprobe_zarr.vocabulary.version import UPGRADE

#: Newest format read. Files say the oldest that has all they hold, so that older versions of
#: this package read what they can: only splits with a validation share are of format 2.
FORMAT_VERSION = 2


class SavedFile(BaseModel):
    """What every such file holds; `sha256` seals all the rest but the time of conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    KIND: ClassVar[str]
    kind: str
    format_version: int = 1
    dataset: DatasetIdentity
    sha256: str = ""

    def seal(self) -> str:
        """Hash of the contents; the same wherever and with whatever versions it is computed."""
        contents = self.model_dump(
            mode="json", exclude={"sha256": True, "dataset": {"created"}}, exclude_none=True
        )
        text = json.dumps(contents, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def sealed(self) -> Self:
        """The same with its hash."""
        return self.model_copy(update={"sha256": self.seal()})

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file, sealed."""
        text = json.dumps(
            self.sealed().model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False
        )
        Path(path).write_text(text + "\n", encoding="utf-8")


class SavedCohort(SavedFile):
    """A cohort: the steps that chose it, and who was chosen."""

    KIND: ClassVar[str] = "lundprobe cohort"
    kind: str = KIND
    selection: list[str]
    patient_ids: list[str]


class SavedSplits(SavedFile):
    """Test set and folds: the patients who validate each, the others training.

    With a validation share there is one fold, and `train` says who trains.
    """

    KIND: ClassVar[str] = "lundprobe splits"
    kind: str = KIND
    selection: list[str]
    seed: int
    test_share: float
    stratify: list[str]
    test: list[str]
    validation: list[list[str]]
    val_share: float | None = None
    train: list[str] | None = None


Saved = TypeVar("Saved", bound=SavedFile)


def read_saved(path: str | os.PathLike[str], expected: type[Saved]) -> Saved:
    """The contents of a saved file.

    Raises `UsageError` if it is not there, not such a file, of a newer format, or was changed
    since it was written.
    """
    saved = _parse(Path(path), expected)
    if saved.seal() != saved.sha256:
        raise UsageError(
            f"its contents have the hash {saved.seal()}, not {saved.sha256!r} as it says",
            where=path,
            remedy=("it was changed or damaged since it was saved; get the original again"),
        )
    return saved


def _parse(path: Path, expected: type[Saved]) -> Saved:
    try:
        raw: Any = parse_json(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot be read ({error})", where=path, expected=f"a file of {expected.KIND}"
        ) from error
    found = raw.get("kind") if isinstance(raw, dict) else None
    if found != expected.KIND:
        raise UsageError(f"kind {found!r}", where=path, expected=repr(expected.KIND))
    version = raw.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UsageError(
            f"format version {version}",
            where=path,
            remedy=(f"this version of lundprobe-zarr reads up to {FORMAT_VERSION}; {UPGRADE}"),
        )
    try:
        return expected.model_validate(raw)
    except ValidationError as error:
        raise UsageError(
            f"not a sound file of {expected.KIND}: {reasons(error)}",
            where=path,
            remedy=("it was changed or damaged since it was saved; get the original again"),
        ) from error


def check_dataset(path: object, saved: SavedFile, dataset: DatasetIdentity, where: str) -> None:
    """Refuse a dataset that is not the one a file was saved from; raises `UsageError`."""
    differences = saved.dataset.differences(dataset)
    if differences:
        raise UsageError(
            f"saved from another dataset than {where}: it had {'; '.join(differences)}",
            where=path,
            remedy="open the dataset it names, or choose the patients anew",
        )


def check_patients(path: object, ids: list[str], known: set[str], where: str) -> None:
    """Refuse patients who are not among those known; raises `UsageError`."""
    absent = sorted(set(ids) - known)
    if absent:
        raise UsageError(
            f"{len(absent)} of its {len(ids)} patients are not in {where}, e.g. "
            f"{', '.join(absent[:3])}",
            where=path,
            remedy="open the dataset it was saved from",
        )
