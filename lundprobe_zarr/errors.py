"""Every error this package raises on purpose, with what it says as fields.

Each class is a `LundProbeError` and the built-in exception that fits, so that callers may catch
either. `str(error)` is one sentence that `sentence` makes of the fields.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command of `lundprobe-zarr` that mends what an error found, as data.

    `dataset` is a path or URL; where it is None, or the command needs the source tree, a name in
    capitals stands for it, as in the command's own help.
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
        Path, URL or option it was found in.
    part : str or None
        Which part of `where`: an array, its labels and chunk, or a line.
    patient : str or None
        Id of the patient it concerns.
    expected : str or None
        What was expected instead.
    remedy : str or None
        What to do. `{command}` in it stands for `command`.
    command : Command or None
        The command that does it.
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


def sentence(error: LundProbeError, *, place: bool = True, advice: bool = True) -> str:
    """Format an error: `WHERE: PART: FINDING; expected EXPECTED; REMEDY`.

    `place=False` leaves out `where`, for lists whose lines name it themselves; `advice=False`
    leaves out the remedy, for lists that give it once for all lines.
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
    """An argument or option that makes no sense; nothing was read or written."""


class MissingPackageError(LundProbeError, ImportError):
    """An optional package that is needed for what was asked and is not installed, or too old."""


class SourceError(LundProbeError, ValueError):
    """A source file or tree that cannot be converted as it stands."""


class SourceNotFoundError(SourceError, FileNotFoundError):
    """A source tree, patient or file that is not there."""


class PrecisionError(SourceError):
    """Values that the chosen precision cannot hold within its promised bound."""


class VerificationError(LundProbeError, OSError):
    """What was read back from a store differs from what was written."""


class DatasetError(LundProbeError, OSError):
    """Something that is not a converted dataset, or a damaged one."""


class NotADatasetError(DatasetError, FileNotFoundError):
    """A path or URL that holds no converted dataset."""


class SchemaVersionError(DatasetError):
    """A dataset written by a schema this version cannot read."""


class DamagedStoreError(DatasetError):
    """A patient's store that is missing, truncated or fails a checksum."""


class ChangedStoreError(DamagedStoreError):
    """A patient's store that is not the one any more that was opened."""


class StreamError(DatasetError):
    """A patch of a stream that could not be read, however often it was tried."""


class UnknownLabelError(LundProbeError, KeyError):
    """A patient, structure, fold, observer or column that does not exist."""


class MissingStructureError(UnknownLabelError):
    """A real structure that this patient lacks."""


class QueryError(LundProbeError, ValueError):
    """An SQL predicate or query that cannot be run, or may not be."""


class QueryLimitError(QueryError):
    """A query that was ended: it took more time or memory than it may, or was cancelled."""
