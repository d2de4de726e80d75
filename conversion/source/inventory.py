"""Take inventory of the source tree: known, missing and unknown files, before reading voxels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lundprobe_zarr.conversion.source.fiducials import read_fiducials
from lundprobe_zarr.conversion.source.grids import Grid, require_same
from lundprobe_zarr.conversion.source.nifti import peek_nifti
from lundprobe_zarr.conversion.source.side_files import (
    Geometry,
    SideFiles,
    read_side_files,
    side_file_names,
)
from lundprobe_zarr.errors import SourceError, SourceNotFoundError, UsageError
from lundprobe_zarr.schema.levels import MOST_LEVELS
from lundprobe_zarr.schema.manifest import MANIFEST_NAME
from lundprobe_zarr.vocabulary.files import (
    PART_FOLDERS,
    SourceFile,
    expected_files,
    parse_path,
)
from lundprobe_zarr.vocabulary.names import PARTS, PATIENT_ID_FORM, is_patient_id
from lundprobe_zarr.vocabulary.text import escaped

#: The archive may unpack to lund-probe/ or lund-probe/lund-probe/.
_NESTING = 2
#: Folders below a patient: MR_StorT2/nnUNetOutput/folds is the deepest.
_DEPTH = 4
#: Each folder's image defines its grid.
_REQUIRED = ("MR_StorT2/image.nii.gz", "sCT/image.nii.gz")
#: Patients examined in parallel: opening a file on a network disk is slow.
_EXAMINERS = 8


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """One convertible file: path below the patient's folder, target array, size and time.

    There may be millions of entries, so equal texts share one object.
    """

    path: str
    record: SourceFile
    folder: Path
    bytes: int
    mtime_ns: int

    @property
    def file(self) -> Path:
        """Path of the file."""
        return self.folder / self.path


@dataclass(frozen=True)
class PatientSource:
    """One patient of the source tree.

    `folder` is relative to the source root. `absent` are expected files that do not exist.
    `multi_component` are masks the authors list with several components: see `parse_components`.
    `problem` is the reason if the patient cannot be converted. With `strip_headers`, free text in
    the files' headers is left out. `levels` is the number of coarser levels to write for viewers.
    """

    patient_id: str
    part: str
    folder: str
    entries: tuple[SourceEntry, ...]
    absent: tuple[str, ...]
    unknown: tuple[str, ...]
    findings: tuple[str, ...]
    geometry: Geometry | None
    multi_component: tuple[str, ...] | None
    problem: str | None = None
    strip_headers: bool = False
    levels: int = 0

    @property
    def bytes(self) -> int:
        """Size of the convertible files."""
        return sum(e.bytes for e in self.entries)


@dataclass(frozen=True)
class Inventory:
    """A source tree: its patients in order, skipped folders, and findings of side files.

    After `select`, `unchosen` are patients that were not selected, and `other_shares` are patients
    of the other shares of a job array.
    """

    root: Path
    patients: tuple[PatientSource, ...]
    skipped: tuple[str, ...]
    findings: tuple[str, ...]
    unchosen: tuple[PatientSource, ...] = ()
    other_shares: tuple[PatientSource, ...] = ()

    @property
    def whole(self) -> tuple[PatientSource, ...]:
        """All patients of the source, selected or not, in order of their ids."""
        everyone = (*self.patients, *self.unchosen, *self.other_shares)
        return tuple(sorted(everyone, key=lambda p: p.patient_id))

    @property
    def is_whole(self) -> bool:
        """Whether all patients are selected."""
        return not self.unchosen and not self.other_shares

    @property
    def strips_headers(self) -> bool:
        """Whether free text in the headers of NIfTI files is left out."""
        return any(p.strip_headers for p in self.patients)

    @property
    def levels(self) -> int:
        """Number of coarser levels to write for viewers."""
        return max((p.levels for p in self.patients), default=0)

    @property
    def bytes(self) -> int:
        """Size of all convertible files."""
        return sum(p.bytes for p in self.patients)


def find_root(source: Path) -> Path:
    """Return the folder of `basePart` or `extendedPart`: `source`, or up to two folders below.

    Raises `SourceNotFoundError` if there is none, `UsageError` if there are several.
    """
    if not source.is_dir():
        what = "a file" if source.is_file() else "no such folder"
        raise SourceNotFoundError(str(what), where=source, expected="the LUND-PROBE source tree")
    level = [source]
    for _ in range(_NESTING + 1):
        found = [f for f in level if any((f / p).is_dir() for p in PART_FOLDERS.values())]
        if len(found) > 1:
            raise UsageError(
                f"holds several source trees, {_names(found)}", where=source, remedy="give one"
            )
        if found:
            return found[0].resolve()
        level = [c for f in level for c in _subfolders(f)]
    part = next((p for p in (source, source.parent) if p.name in PART_FOLDERS.values()), None)
    hint = f"; did you mean {part.parent}?" if part else ""
    if (source / MANIFEST_NAME).is_file():
        hint = "; this is a converted dataset: give the source first, then the dataset"
    raise SourceNotFoundError(
        f"neither basePart/ nor extendedPart/ in it or up to {_NESTING} folders below",
        where=source,
        expected=f"the unpacked LUND-PROBE archive{hint}",
    )


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [c for c in sorted(folder.iterdir()) if c.is_dir()]
    except OSError:  # an unreadable folder, such as lost+found
        return []


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(str(p) for p in paths)


def take_inventory(source: Path, follow_links: bool = False) -> Inventory:
    """Take inventory of everything below `source`; read names, sizes and side files."""
    root = find_root(source)
    patients: list[PatientSource] = []
    skipped, findings = _unknown_folders(root), []
    for part in PARTS:
        folder = root / PART_FOLDERS[part]
        if not folder.is_dir():
            continue
        side = read_side_files(root, part)
        findings += side.findings
        for child in sorted(folder.iterdir()):
            if not is_patient_id(child.name):
                where = f"{folder.name}/{_printable(child.name)}"
                skipped.append(f"{where}: not a patient id; expected {PATIENT_ID_FORM}")
            elif child.exists() and not child.is_dir():
                skipped.append(f"{folder.name}/{child.name}: not a folder")
            else:
                patients.append(_patient(root, child, part, side, follow_links))
        findings += _unknown_patients(part, side, [p.patient_id for p in patients])
    return Inventory(root, _refuse_duplicates(patients), tuple(skipped), tuple(findings))


def _unknown_folders(root: Path) -> list[str]:
    known = {*PART_FOLDERS.values(), *side_file_names()}
    parts = " or ".join(PART_FOLDERS.values())
    return [
        f"{_printable(child.name)}: not a folder of a part; expected {parts}"
        for child in sorted(root.iterdir())
        if child.is_dir() and child.name not in known
    ]


def _unknown_patients(part: str, side: SideFiles, patients: Sequence[str]) -> Iterator[str]:
    known = set(patients)
    for name, listed in (
        ("patGeometryInformation", side.geometry),
        ("missingStructures", side.missing or {}),
        ("StructuresMoreThan1ConComp", side.multi_component or {}),
    ):
        for patient in listed:
            if patient not in known:
                yield f"{name}_{part}Part: names {patient!r}, which is not in the part"


def _refuse_duplicates(patients: Sequence[PatientSource]) -> tuple[PatientSource, ...]:
    parts: dict[str, set[str]] = {}
    for patient in patients:
        parts.setdefault(patient.patient_id, set()).add(patient.part)
    problem = "its id is in both basePart and extendedPart; expected one part; remove one folder"
    return tuple(
        replace(p, problem=f"{p.folder}: {problem}") if len(parts[p.patient_id]) > 1 else p
        for p in patients
    )


def _patient(
    root: Path, folder: Path, part: str, side: SideFiles, follow_links: bool
) -> PatientSource:
    expected = expected_files(part)
    entries, unknown, problem = [], [], None
    names = {path: path for path in expected}
    try:
        for path, found, linked in _files(folder, folder.resolve() != folder):
            if path not in expected:
                unknown.append(_printable(path))
                continue
            status = _status(root, found, linked, follow_links)
            size, time = status.st_size, status.st_mtime_ns
            entries.append(SourceEntry(names[path], expected[path], folder, size, time))
    except SourceError as error:
        problem = str(error)
    except OSError as error:
        place = _place(root, Path(error.filename or folder))
        problem = (
            f"{place}: cannot be read ({error.strerror}); expected a readable file or folder; "
            "check its permissions and the disk"
        )
    found_paths = {e.path for e in entries}
    patient_id = folder.name
    listed = None if side.missing is None else side.missing.get(patient_id, ())
    order = {path: n for n, path in enumerate(expected)}
    return PatientSource(
        patient_id=patient_id,
        part=part,
        folder=folder.relative_to(root).as_posix(),
        entries=tuple(sorted(entries, key=lambda e: order[e.path])),
        absent=tuple(p for p in expected if p not in found_paths),
        unknown=tuple(unknown),
        findings=tuple(_findings(expected, found_paths, unknown, listed)),
        geometry=side.geometry.get(patient_id),
        multi_component=_listed_components(side, patient_id),
        problem=problem or _required_problem(folder.relative_to(root), found_paths),
    )


def _listed_components(side: SideFiles, patient_id: str) -> tuple[str, ...] | None:
    if side.multi_component is None:
        return None
    return side.multi_component.get(patient_id, ())


def _printable(name: str) -> str:
    """Return a file name, of any bytes, as printable text."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return escaped(text, keep="")


def _files(
    folder: Path, linked: bool, depth: int = _DEPTH, prefix: str = ""
) -> Iterator[tuple[str, os.DirEntry[str], bool]]:
    """Yield paths below a patient's folder, in order, and whether they are reached through links.

    Link loops end at the known depth.
    """
    if prefix == "" and not folder.exists():
        raise SourceNotFoundError(_dangling(folder, f"{folder.parent.name}/{folder.name}"))
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        path, is_linked = f"{prefix}{entry.name}", linked or entry.is_symlink()
        # A folder in place of a known file is not searched. A link to itself is no folder.
        if depth > 1 and parse_path(path) is None and Path(entry.path).is_dir():
            yield from _files(Path(entry.path), is_linked, depth - 1, f"{path}/")
        else:
            yield path, entry, is_linked


def _status(
    root: Path, found: os.DirEntry[str], linked: bool, follow_links: bool
) -> os.stat_result:
    """Return a file's status, in one system call if there are no links."""
    if not linked and found.is_file(follow_symlinks=False):
        return found.stat(follow_symlinks=False)
    file = Path(found.path)
    _require_usable(root, file, follow_links)
    return file.stat()


def _place(root: Path, path: Path) -> str:
    return _printable(path.relative_to(root).as_posix())


def _require_usable(root: Path, file: Path, follow_links: bool) -> None:
    place = _place(root, file)
    if not file.exists():
        raise SourceNotFoundError(_dangling(file, place))
    if not file.is_file():
        raise SourceError(
            "not a file",
            where=place,
            expected="a readable file",
            remedy="restore the original file",
        )
    if not follow_links and not file.resolve().is_relative_to(root):
        raise SourceError(
            f"links outside the source tree, to {_printable(str(file.resolve()))}",
            where=place,
            expected=f"a file within {root}",
            remedy="allow it with --follow-links",
        )


def _dangling(path: Path, place: str) -> str:
    is_link = path.is_symlink()
    to = f"a dangling link to {_printable(str(path.readlink()))}" if is_link else "not found"
    return f"{place}: {to}; expected a readable file or folder; restore it"


def _required_problem(folder: Path, found: set[str]) -> str | None:
    for path in _REQUIRED:
        if path not in found:
            return (
                f"{folder.as_posix()}: no {path}; expected it, because it defines the grid of its "
                "folder; fetch the patient again"
            )
    return None


def _findings(
    expected: dict[str, SourceFile],
    found: set[str],
    unknown: Sequence[str],
    listed: Sequence[str] | None,
) -> Iterator[str]:
    # Part of `side_digest`: changing these words would convert every patient again.
    for path, record in expected.items():
        structure = record.labels.get("structure") if record.group.endswith("clinical") else None
        is_listed = listed is not None and structure in listed
        if path not in found and not is_listed:
            yield f"absent: {path}" + (" (not listed as missing)" if structure else "")
        if path in found and is_listed:
            yield f"present although listed as missing: {path}"
    yield from (f"unknown file left out: {path}" for path in unknown)


def without_header_text(inventory: Inventory) -> Inventory:
    """Return the inventory for a conversion without the free text of NIfTI headers."""
    return _to_convert(inventory, strip_headers=True)


def with_coarser_levels(inventory: Inventory, levels: int) -> Inventory:
    """Return the inventory for a conversion with `levels` coarser levels for viewers.

    Raises `UsageError` for a number below 0, or for more levels than a slice can be halved.
    """
    if not 0 <= levels <= MOST_LEVELS:
        raise UsageError(
            f"--levels {levels}", expected=f"a number from 0 to {MOST_LEVELS}; 2 suit most viewers"
        )
    return _to_convert(inventory, levels=levels)


def _to_convert(inventory: Inventory, **settings: Any) -> Inventory:
    """Return the inventory with these conversion settings for every patient."""

    def changed(patients: tuple[PatientSource, ...]) -> tuple[PatientSource, ...]:
        return tuple(replace(p, **settings) for p in patients)

    return replace(
        inventory,
        patients=changed(inventory.patients),
        unchosen=changed(inventory.unchosen),
        other_shares=changed(inventory.other_shares),
    )


def examine(inventory: Inventory) -> Inventory:
    """Return the inventory with the `problem` of every patient whose files have invalid headers.

    Reads the first bytes of every file. They show files that are empty, no gzip, no NIfTI, or not
    on the grid of their folder's image.
    """
    with ThreadPoolExecutor(_EXAMINERS) as pool:
        return replace(inventory, patients=tuple(pool.map(_examined, inventory.patients)))


def _examined(patient: PatientSource) -> PatientSource:
    found = [] if patient.problem is not None else list(_header_problems(patient))
    if not found:
        return patient
    others = f" (and {len(found) - 1} more of its files)" if len(found) > 1 else ""
    return replace(patient, problem=f"{found[0]}{others}")


def _header_problems(patient: PatientSource) -> Iterator[str]:
    grids: dict[str, Grid] = {}  # an image precedes the masks that must be on its grid
    for entry in patient.entries:
        where = f"{patient.folder}/{entry.path}"
        try:
            if entry.record.kind == "text":
                read_fiducials(entry.file, where)
                continue
            layout = peek_nifti(entry.file, where)
            x, y, z = layout.shape
            here = Grid((z, y, x), layout.affine, entry.path, layout.unit)
            require_same(grids.setdefault(entry.record.grid, here), here, where)
        except SourceError as error:
            yield str(error)


def select(
    inventory: Inventory, patients: Sequence[str] = (), part: tuple[int, int] | None = None
) -> Inventory:
    """Restrict an inventory to some patients, or to share i of N (1-based) for job arrays.

    Raises `UsageError` for an unknown patient or an invalid share.
    """
    chosen, unchosen = inventory.patients, inventory.unchosen
    if patients:
        absent = sorted(set(patients) - {p.patient_id for p in chosen})
        if absent:
            spaced = "; ids are separated by commas" if any(" " in i for i in absent) else ""
            raise UsageError(
                f"no patient {', '.join(absent)} in {inventory.root}{spaced}",
                remedy=(
                    f"it holds {len(chosen)}, such as "
                    f"{', '.join(p.patient_id for p in chosen[:3]) or 'none'}"
                ),
            )
        unchosen = tuple(p for p in chosen if p.patient_id not in patients)
        chosen = tuple(p for p in chosen if p.patient_id in patients)
    others = inventory.other_shares
    if part is not None:
        share, shares = part
        if not 1 <= share <= shares:
            raise UsageError(f"part {share}/{shares}", expected="i/N with 1 <= i <= N, e.g. 3/16")
        others = tuple(p for n, p in enumerate(chosen) if n % shares != share - 1)
        chosen = chosen[share - 1 :: shares]
    return replace(inventory, patients=chosen, unchosen=unchosen, other_shares=others)
