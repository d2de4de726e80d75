"""Errors that this package raises on purpose, with their contents as fields.

Each class is a `LundProbeError` and the built-in exception that fits, so that callers may catch
either. `str(error)` is one sentence, made from the fields by `sentence`.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command of `lundprobe-zarr` that repairs what an error found, as data.

    `dataset` is a path or URL. If it is None, `DATASET` stands for it, as in the command's help;
    `SOURCE` stands for the source tree.
    """

    name: str
    options: tuple[str, ...] = ()
    dataset: str | None = None

    def __str__(self) -> str:
        """Format the command for a POSIX shell."""
        source = ("SOURCE",) if self.name in _NEED_SOURCE else ()
        words = (*source, self.dataset or "DATASET", *self.options)
        return shlex.join(("lundprobe-zarr", self.name, *words))


_NEED_SOURCE = ("convert", "repair")


class LundProbeError(Exception):
    """Base of all errors raised on purpose by this package.

    Attributes
    ----------
    finding : str
        What was found, with the value.
    where : str or None
        Path, URL or option of the finding.
    part : str or None
        Place within `where`: an array, its labels and chunk, or a line.
    patient : str or None
        Id of the patient it concerns.
    expected : str or None
        What was expected instead.
    remedy : str or None
        What to do. `{command}` in it stands for `command`.
    command : Command or None
        The command to run.
    """

    def __init__(
        self,
        finding: str,
        *,
        where: object = None,
        part: str | None = None,
        patient: str | None = None,
        expected: str | None = None,
        remedy: str | None = None,
        command: Command | None = None,
    ) -> None:
        super().__init__(finding)
        self.finding = finding
        self.where = None if where is None else str(where)
        self.part = part
        self.patient = patient
        self.expected = expected
        self.remedy = remedy
        self.command = command

    def __str__(self) -> str:
        return sentence(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # Not as the built-in does: tools that pickle errors with their traceback, as dask's
        # workers, would make one that is a ValueError and an OSError without calling `__init__`.
        return _restored, (type(self), self.__dict__)


def _restored(kind: type[LundProbeError], state: dict[str, Any]) -> LundProbeError:
    """Make an error again in another process."""
    error = kind(state["finding"])
    error.__dict__.update(state)
    return error


def sentence(error: LundProbeError, *, place: bool = True, advice: bool = True) -> str:
    """Format an error: `WHERE: PART: FINDING; expected EXPECTED; REMEDY`.

    `place=False` leaves out `where`, for lists that name it themselves. `advice=False` leaves out
    the remedy, for lists that give it once.
    """
    expected = f"expected {error.expected}" if error.expected else ""
    remedy = _remedy(error.remedy, error.command) if advice else ""
    text = "; ".join(part for part in (error.finding, expected, remedy) if part)
    return ": ".join(t for t in (error.where if place else None, error.part, text) if t)


def _remedy(remedy: str | None, command: Command | None) -> str:
    if command is None:
        return remedy or ""
    quoted = f"`{command}`"
    if remedy is None:
        return f"run {quoted}"
    return remedy.replace("{command}", quoted) if "{command}" in remedy else f"{remedy}: {quoted}"


class UsageError(LundProbeError, ValueError):
    """An invalid argument or option. Nothing was read or written."""


class MissingPackageError(LundProbeError, ImportError):
    """An optional package that is required here and is not installed, or is too old."""


class SourceError(LundProbeError, ValueError):
    """A source file or tree that cannot be converted."""


class SourceNotFoundError(SourceError, FileNotFoundError):
    """A source tree, patient or file that does not exist."""


class PrecisionError(SourceError):
    """Values that the chosen precision cannot hold within its error bound."""


class VerificationError(LundProbeError, OSError):
    """A difference between a store as read back and as written."""


class DatasetError(LundProbeError, OSError):
    """A location without a converted dataset, or with a damaged one."""


class NotADatasetError(DatasetError, FileNotFoundError):
    """A path or URL without a converted dataset."""


class SchemaVersionError(DatasetError):
    """A dataset of a schema version that this version cannot read."""


class DamagedStoreError(DatasetError):
    """A patient's store that is missing or truncated, or that fails a checksum."""


class ChangedStoreError(DamagedStoreError):
    """A patient's store that was replaced after it was opened."""


class StreamError(DatasetError):
    """A patch of a stream that could not be read after all retries."""


class UnknownLabelError(LundProbeError, KeyError):
    """A patient, structure, fold, observer or column that does not exist."""


class MissingStructureError(UnknownLabelError):
    """A known structure that this patient lacks."""


class QueryError(LundProbeError, ValueError):
    """An SQL predicate or query that is invalid or not allowed.

    Attributes
    ----------
    position : int or None
        Where in its text the mistake is, in characters from 0; None if that is not known.
    """

    position: int | None = None


class QueryLimitError(QueryError):
    """A query that exceeded a limit, or that was cancelled.

    Attributes
    ----------
    limit : str
        Which limit: `time`, `memory` or `result` (its size); "" for a query that was cancelled.
    """

    limit: str = ""


class QueryProcessError(QueryError):
    """The process for SQL could not be started. The query itself may be valid."""
