"""`convert --dry-run`: what is in a source tree and what a conversion would do with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from lundprobe_zarr.cli.console import count, facts, heading, listing, say, size
from lundprobe_zarr.cli.outcome import not_in_source
from lundprobe_zarr.cli.place import shown
from lundprobe_zarr.vocabulary.files import KNOWN_FILES
from lundprobe_zarr.vocabulary.grouping import grouped
from lundprobe_zarr.vocabulary.names import PARTS, PROTOCOLS, STRUCTURES, protocol_of

if TYPE_CHECKING:
    from lundprobe_zarr.conversion.run.run import Options
    from lundprobe_zarr.conversion.source.inventory import Inventory, PatientSource
    from lundprobe_zarr.storage.location import Location


def show_plan(inventory: Inventory, destination: Location, how: Options) -> None:
    """Print the inventory and what would be done; nothing is written."""
    from lundprobe_zarr.conversion.notes.draft import require_vacant
    from lundprobe_zarr.conversion.run.compatibility import require_compatible
    from lundprobe_zarr.conversion.source.inventory import examine

    require_vacant(inventory.root, destination)
    require_compatible(inventory, destination, how.precision, how.overwrite)
    inventory = examine(inventory)
    say(f"Source: {inventory.root}", "bold")
    facts(_overview(inventory))
    _section("Organs without a clinical mask", _missing(inventory.patients), by_cause=False)
    _section("Absent files", _absent(inventory.patients), by_cause=False)
    _section("Unknown files, left out", _unknown(inventory.patients))
    _section("Skipped, not converted", inventory.skipped)
    _section("Findings in the side files", inventory.findings)
    bad = [p for p in inventory.patients if p.problem is not None]
    _section("Would fail", (f"{p.patient_id}: {p.problem}" for p in bad))
    _show_intent(inventory, destination, how, len(bad))


def _overview(inventory: Inventory) -> Iterator[tuple[str, str]]:
    patients = inventory.patients
    found = Counter((p.part, protocol_of(p.patient_id)) for p in patients)
    yield "patients", str(len(patients))
    for part in PARTS:
        by = ", ".join(f"{found[part, p]} {p}" for p in PROTOCOLS)
        yield part, f"{sum(found[part, p] for p in PROTOCOLS)} ({by})"
    yield "files", f"{sum(len(p.entries) for p in patients)}, {size(inventory.bytes)}"


def _section(title: str, lines: Iterable[str], by_cause: bool = True) -> None:
    shown = list(lines)
    if shown:
        heading(f"{title}: {len(shown)}")
        listing(grouped(shown) if by_cause else shown)


def _lacking(patient: PatientSource) -> list[str]:
    there = {e.record for e in patient.entries}
    masks = {r.labels["structure"] for r in there if (r.group, r.variable) == _CLINICAL}
    return [s for s in STRUCTURES if s not in masks]


_CLINICAL = ("mri/clinical", "mask")


def _missing(patients: Iterable[PatientSource]) -> Iterator[str]:
    found = Counter(s for p in patients for s in _lacking(p))
    yield from (f"{s}: {count(found[s], 'patient')}" for s in STRUCTURES if found[s])


def _absent(patients: Iterable[PatientSource]) -> Iterator[str]:
    found = Counter(path for p in patients for path in p.absent)
    yield from (f"{path}: {count(found[path], 'patient')}" for path in KNOWN_FILES if found[path])


def _unknown(patients: Iterable[PatientSource]) -> Iterator[str]:
    yield from (f"{p.folder}/{path}" for p in patients for path in p.unknown)


def _show_intent(inventory: Inventory, destination: Location, how: Options, bad: int) -> None:
    from lundprobe_zarr.conversion.run.compatibility import absent_from_source
    from lundprobe_zarr.conversion.run.run import current_patients

    current = [] if how.overwrite else current_patients(destination, inventory, how)
    todo = len(inventory.patients) - len(current) - bad
    spared = {p.patient_id for p in current}
    left = sum(
        p.bytes for p in inventory.patients if p.patient_id not in spared and p.problem is None
    )
    absent = absent_from_source(inventory, destination) if inventory.is_whole else ()
    if absent:
        heading(not_in_source(absent))
        listing(absent)
    heading(f"Would convert to {shown(destination)}, precision {how.precision}:")
    listing(
        (
            f"{count(todo, 'patient')} converted, of {size(left)} to read",
            f"{count(len(current), 'patient')} skipped: converted before and unchanged",
            f"{count(bad, 'patient')} failed",
        )
    )
    say()
    say("Nothing was written: this was a dry run.")
