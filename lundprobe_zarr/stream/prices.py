"""What reading costs in money: prices of a bucket, and an epoch's requests and bytes by them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path

from lundprobe_zarr.errors import UsageError

_GIB = 2**30
_EXAMPLE = (
    '{"name": "...", "date": "2026-11-01", "source": "https://...", "currency": "USD", '
    '"per_1000_requests": 0.0004, "per_gib": 0.09}'
)


@dataclass(frozen=True)
class Prices:
    """What a bucket's owner pays for reading.

    Attributes
    ----------
    name, date, source : str
        What the prices are of, from which day (ISO 8601), and who says so.
    currency : str
        As in ISO 4217, e.g. `USD`.
    per_1000_requests : float
        Of 1,000 GET requests.
    per_gib : float
        Of 2^30 bytes that leave the bucket for where they are read.
    """

    name: str
    date: str
    source: str
    currency: str
    per_1000_requests: float
    per_gib: float

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> Prices:
        """Read prices from a JSON file; raises `UsageError` if it has none."""
        try:
            found = json.loads(Path(file).read_text(encoding="utf-8"))
            values = {f.name: found[f.name] for f in fields(cls)}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unsound(file, f"{type(error).__name__}: {error}") from None
        for name in ("per_1000_requests", "per_gib"):
            value = values[name]
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise _unsound(file, f"{name} is {value!r}")
        return cls(**values)

    def of(self, requests: float, size: float) -> float:
        """Return what so many requests and bytes cost, in `currency`."""
        return requests / 1000 * self.per_1000_requests + size / _GIB * self.per_gib


def _unsound(file: str | os.PathLike[str], finding: str) -> UsageError:
    return UsageError(
        f"no prices ({finding})", where=os.fspath(file), expected=f"a JSON file such as {_EXAMPLE}"
    )
