"""Saved cohorts and splits: small JSON files with a checksum that a paper can cite.

They contain patient ids, their selection and the dataset's identity; never a URL, a path or
credentials.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lundprobe_zarr.dataset.identity import DatasetIdentity
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.schema.document import json_sha256, parse_json, reasons
from lundprobe_zarr.vocabulary.version import UPGRADE

#: Newest format that can be read. Each file states the oldest format that can hold its contents,
#: so that older versions of this package can read it. Only a validation share needs format 2.
FORMAT_VERSION = 2


class SavedFile(BaseModel):
    """Contents of every saved file. `sha256` covers all fields except the time of conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    KIND: ClassVar[str]
    kind: str
    format_version: int = 1
    dataset: DatasetIdentity
    sha256: str = ""

    def checksum(self) -> str:
        """Return the SHA-256 (hex) of the contents; it depends on no machine or library version."""
        contents = self.model_dump(
            mode="json", exclude={"sha256": True, "dataset": {"created"}}, exclude_none=True
        )
        return json_sha256(contents)

    def with_checksum(self) -> Self:
        """Return a copy with its checksum."""
        return self.model_copy(update={"sha256": self.checksum()})

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file with its checksum."""
        Path(path).write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """Return the contents of the file, with their checksum."""
        contents = self.with_checksum().model_dump(mode="json", exclude_none=True)
        return json.dumps(contents, indent=2, ensure_ascii=False) + "\n"


class SavedCohort(SavedFile):
    """A cohort: the steps of its selection and the selected patients."""

    KIND: ClassVar[str] = "lundprobe cohort"
    kind: str = KIND
    selection: list[str]
    patient_ids: list[str]


class SavedSplits(SavedFile):
    """Test set and folds, given by each fold's validation patients; the others train.

    With a validation share there is one fold, and `train` lists the training patients.
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
    """Read a saved file.

    Raises `UsageError` if it is missing, of another kind or a newer format, or was changed.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot be read ({error})", where=path, expected=f"a file of {expected.KIND}"
        ) from error
    return parse_saved(text, path, expected)


def parse_saved(text: str, path: object, expected: type[Saved]) -> Saved:
    """Return the contents of a saved file from its text; `path` names it in messages.

    Raises `UsageError` if it is of another kind or a newer format, or was changed.
    """
    saved = _parse(text, path, expected)
    if saved.checksum() != saved.sha256:
        raise UsageError(
            f"the SHA-256 of its contents is {saved.checksum()}",
            where=path,
            expected=f"{saved.sha256!r}, as it states",
            remedy="it was changed or damaged since it was saved; get the original again",
        )
    return saved


def _parse(text: str, path: object, expected: type[Saved]) -> Saved:
    try:
        raw: Any = parse_json(text)
    except ValueError as error:
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
            remedy=f"this version of lundprobe-zarr reads up to {FORMAT_VERSION}; {UPGRADE}",
        )
    try:
        return expected.model_validate(raw)
    except ValidationError as error:
        raise UsageError(
            f"not a valid file of {expected.KIND}: {reasons(error)}",
            where=path,
            remedy="it was changed or damaged since it was saved; get the original again",
        ) from error


def check_dataset(path: object, saved: SavedFile, dataset: DatasetIdentity, where: str) -> None:
    """Raise `UsageError` for a dataset other than the one a file was saved from."""
    differences = saved.dataset.differences(dataset)
    if differences:
        raise UsageError(
            f"saved from another dataset than {where}: it had {'; '.join(differences)}",
            where=path,
            remedy="open the dataset it names, or select the patients again",
        )


def check_patients(path: object, ids: list[str], known: set[str], where: str) -> None:
    """Raise `UsageError` for patients who are not `known`."""
    absent = sorted(set(ids) - known)
    if absent:
        raise UsageError(
            f"{len(absent)} of its {len(ids)} patients are not in {where}, e.g. "
            f"{', '.join(absent[:3])}",
            where=path,
            remedy="open the dataset it was saved from",
        )
