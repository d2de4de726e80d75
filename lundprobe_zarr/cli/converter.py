"""The converter, found through its entry point: nothing here imports it by name.

It is `conversion` in a checkout and `lundprobe_zarr.conversion` once installed; the types below
are for the type checker alone.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lundprobe_zarr.errors import LundProbeError

if TYPE_CHECKING:
    from lundprobe_zarr.conversion.source.inventory import Inventory, PatientSource
    from lundprobe_zarr.conversion.tables.publish import Published
    from lundprobe_zarr.conversion.repair import Damage, Repair
    from lundprobe_zarr.conversion.run.run import Options, Report, Reporter
    from lundprobe_zarr.storage.location import Location

GROUP = "lundprobe_zarr.converter"


def _module(name: str) -> Any:
    """A module of the converter; raises `LundProbeError` if no converter is installed."""
    for entry in entry_points(group=GROUP):
        try:
            return import_module(f"{entry.value}.{name}")
        except ModuleNotFoundError as error:
            if error.name is None or not f"{entry.value}.{name}".startswith(error.name):
                raise  # the converter is there, one of its own imports is not
    raise LundProbeError(
        f"the converter is not installed: nothing usable in the entry point group {GROUP!r}; "
        "expected lundprobe-zarr to be installed whole; run `pip install .` in its checkout"
    )


def take_inventory(source: Path, follow_links: bool) -> Inventory:
    """What is in the source tree."""
    inventory: Inventory = _module("inventory").take_inventory(source, follow_links)
    return inventory


def select(inventory: Inventory, patients: list[str], part: tuple[int, int] | None) -> Inventory:
    """Some patients of the inventory, or a share."""
    selected: Inventory = _module("inventory").select(inventory, patients, part)
    return selected


def without_header_text(inventory: Inventory) -> Inventory:
    """The inventory, to be converted without the free text in NIfTI headers."""
    stripped: Inventory = _module("inventory").without_header_text(inventory)
    return stripped


def examine(inventory: Inventory) -> Inventory:
    """The inventory with the problems that the first bytes of its files show."""
    examined: Inventory = _module("inventory").examine(inventory)
    return examined


def require_vacant(inventory: Inventory, destination: Location) -> None:
    """Require that a dataset may be at the destination; writes nothing."""
    _module("place").require_vacant(inventory.root, destination)


def require_unmixed(inventory: Inventory, destination: Location, how: Options) -> None:
    """Require that what stays in the dataset fits what would be converted."""
    _module("mixing").require_unmixed(inventory, destination, how.precision, how.overwrite)


def strangers(inventory: Inventory, destination: Location) -> tuple[str, ...]:
    """Patients in the dataset whom the source does not have."""
    found: tuple[str, ...] = _module("mixing").strangers(inventory, destination)
    return found


def current(destination: Location, inventory: Inventory, how: Options) -> list[PatientSource]:
    """Patients that need not be converted again; writes nothing."""
    patients = inventory.patients
    found = _module("state").are_current(
        destination, patients, how.precision, note=False, checksum=how.checksum
    )
    return [p for p, is_current in zip(patients, found, strict=True) if is_current]


def options(**chosen: Any) -> Options:
    """Options of a conversion."""
    made: Options = _module("run").Options(**chosen)
    return made


def convert(
    inventory: Inventory, destination: Location, how: Options, reporter: Reporter
) -> Report:
    """Convert the patients of the inventory."""
    report: Report = _module("run").convert(inventory, destination, how, reporter)
    return report


def finalise(dataset: Location, rebuild: bool) -> Published:
    """Write tables, manifest and card of the stores there are."""
    published: Published = _module("publish").finalise(dataset, rebuild)
    return published


def stores(dataset: Location) -> int:
    """Number of what claims to be a store in a dataset."""
    return len(_module("publish").store_names(dataset))


def find_damage(
    dataset: Location, deep: bool, workers: int, on_store: Callable[[str], None]
) -> Damage:
    """What is wrong with a dataset."""
    found: Damage = _module("repair").find_damage(dataset, deep, workers, on_store)
    return found


def repair(
    inventory: Inventory, dataset: Location, damage: Damage, how: Options, reporter: Reporter
) -> Repair:
    """Convert again what is damaged, and write the tables anew."""
    done: Repair = _module("repair").repair(inventory, dataset, damage, how, reporter)
    return done
