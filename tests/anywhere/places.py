"""Where a dataset is in these tests: a URL, the options to reach it, its server's traffic."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from servers import Traffic

from lundprobe_zarr.storage.location import Location

#: Not a secret: what moto and the other emulators take, and what must never be printed.
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@dataclass(frozen=True)
class Place:
    """A dataset somewhere: its URL, the options to reach it, and its server's traffic."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def location(self) -> Location:
        """Where it is; opened anew each time."""
        return Location(self.url, self.options)

    def beside(self, name: str) -> Place:
        """A place on the same server under another name."""
        return Place(f"{self.url.rpartition('/')[0]}/{name}", self.options, self.traffic)
