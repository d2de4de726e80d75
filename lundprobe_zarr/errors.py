"""Every error this package raises on purpose.

Each class is a `LundProbeError` and the built-in exception that fits, so that callers may catch
either. Messages name the value, the place, what was expected and what to do.
"""

from __future__ import annotations


class LundProbeError(Exception):
    """Base of all errors raised on purpose by this package."""


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

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0])


class MissingStructureError(UnknownLabelError):
    """A real structure that this patient lacks."""


class QueryError(LundProbeError, ValueError):
    """An SQL predicate or query that cannot be run, or may not be."""
