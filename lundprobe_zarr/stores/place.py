"""Where something of a patient's store is, and the error that says it is damaged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lundprobe_zarr.errors import Command, DamagedStoreError
from lundprobe_zarr.schema.tables import store_path


@dataclass(frozen=True)
class StorePlace:
    """A patient's store, or an object in it, for messages.

    `dataset` is the path or URL of the dataset as it may be shown, `name` the object's in the
    store, and `detail` says which array, labels or chunk of it.
    """

    dataset: str
    patient: str
    name: str = ""
    detail: str = ""

    def __str__(self) -> str:
        path = f"{self.dataset.rstrip('/')}/{store_path(self.patient)}"
        return f"{path}/{self.name}" if self.name else path

    def damaged(self, finding: str, expected: str | None = None) -> DamagedStoreError:
        """Return the error for damage found here, with its remedy."""
        remedy, command = self.remedy()
        return DamagedStoreError(
            finding,
            where=self,
            part=self.detail or None,
            patient=self.patient,
            expected=expected,
            remedy=remedy,
            command=command,
        )

    def remedy(self) -> tuple[str, Command | None]:
        """Return how to repair a damaged store, and the command that does so."""
        again = convert_again([self.patient], self.dataset)
        return "convert this patient again ({command}), or copy the store again", again


def convert_again(
    patients: Iterable[str],
    dataset: str,
    precision: str = "standard",
    stripped: bool = False,
    levels: int = 0,
) -> Command:
    """Return the command that converts these patients again, whatever is there of them."""
    kind = kind_options(precision, stripped, levels)
    return Command("convert", ("--patients", ",".join(patients), "--overwrite", *kind), dataset)


def kind_options(precision: str, stripped: bool, levels: int = 0) -> tuple[str, ...]:
    """Return the options of `convert` that keep a dataset's precision, headers and levels."""
    precise = () if precision == "standard" else ("--precision", precision)
    coarser = ("--levels", str(levels)) if levels else ()
    return precise + (("--strip-headers",) if stripped else ()) + coarser
