"""The folder of an export to nnU-Net: what is there of it, and what makes it a dataset.

The folder `.lundprobe` says how the files were made, and of each patient, once all its files are
there, what they are. So an interrupted export continues where it stopped. `dataset.json` is
there only while the dataset is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.exchange.nnunet_case import Examined, Written, case_files, signature
from lundprobe_zarr.exchange.nnunet_settings import FILE_ENDING, Settings
from lundprobe_zarr.schema.document import parse_json
from lundprobe_zarr.schema.manifest import Manifest
from lundprobe_zarr.storage.local import WRITING, named, write_local
from lundprobe_zarr.storage.writers import is_alive
from lundprobe_zarr.vocabulary.version import package_version

#: What is trained with, and what is held out: the end of `imagesTr`, `labelsTs` and so on.
TRAINING, TEST = "Tr", "Ts"
REPORT = "lundprobe-export.json"
SPLITS = "splits_final.json"
_DATASET = "dataset.json"
_NOTES = ".lundprobe"
_SETTINGS = f"{_NOTES}/settings.json"
_FOLDERS = tuple(f"{kind}{subset}" for kind in ("images", "labels") for subset in (TRAINING, TEST))


@dataclass(frozen=True)
class Note:
    """What is noted of a patient whose files are all there."""

    patient_id: str
    subset: str
    store_sha256: str
    absent: tuple[str, ...]
    files: dict[str, tuple[int, str]]
    voxels: dict[str, int]
    overlaps: tuple[dict[str, Any], ...]
    hidden: tuple[str, ...]
    ignored: int
    not_finite: dict[str, int]

    @classmethod
    def of(cls, examined: Examined, subset: str, written: Written) -> Note:
        """Return the note of a patient who was just written."""
        tally = written.tally
        return cls(
            examined.patient_id,
            subset,
            examined.store_sha256,
            examined.absent,
            written.files,
            tally.voxels,
            tuple(asdict(o) for o in tally.overlaps),
            tally.hidden,
            tally.ignored,
            written.not_finite,
        )

    @classmethod
    def parse(cls, text: str) -> Note:
        """Return the note of its text. Raises `ValueError`, `TypeError` or `KeyError`."""
        raw = parse_json(text)
        files = {str(f): (int(size), str(end)) for f, (size, end) in raw["files"].items()}
        lists = {name: tuple(raw[name]) for name in ("absent", "overlaps", "hidden")}
        return cls(**{**raw, **lists, "files": files})

    def holds(self, store_sha256: str | None, folder: Path) -> bool:
        """Return whether all files are complete and, if known, of a store with this SHA-256."""
        same = store_sha256 in (None, self.store_sha256)
        return same and all(_has(folder / f, end) for f, end in self.files.items())


def _has(file: Path, expected: tuple[int, str]) -> bool:
    try:
        return signature(file) == expected
    except OSError:
        return False


class NnUNetFolder:
    """The folder `Dataset<id>_<name>` below nnU-Net's raw folder."""

    def __init__(self, out: Path, settings: Settings) -> None:
        self.path = out / settings.folder
        self._out, self._settings = out, settings

    def require_free(self) -> None:
        """Require that the dataset id is free here, or was given to an export of ours.

        Raises `UsageError` for a folder of the same id and another name, which nnU-Net refuses,
        and for one that no export wrote.
        """
        prefix = self._settings.prefix
        there = sorted(self._out.iterdir()) if self._out.is_dir() else []
        for folder in (f for f in there if f.is_dir() and f.name.startswith(prefix)):
            if folder != self.path:
                raise UsageError(
                    f"dataset id {self._settings.dataset_id} is that of {folder.name} already",
                    where=self._out,
                    expected="one name for each id: nnU-Net refuses two",
                    remedy="choose another id, or the same name",
                )
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        if not (self.path / _SETTINGS).is_file():
            raise UsageError(
                f"{self.path.name} is there already, and no export of this command",
                where=self._out,
                expected="a new dataset id and name",
                remedy="choose another id, or move that folder away",
            )

    def clear(self) -> None:
        """Remove what an export wrote, its notes last, so that it stays known as one till then."""
        with named(self.path):
            for file in (_DATASET, SPLITS, REPORT):
                (self.path / file).unlink(missing_ok=True)
            for folder in (*_FOLDERS, _NOTES):
                if (self.path / folder).exists():
                    shutil.rmtree(self.path / folder)

    def begin(self, document: Mapping[str, Any], subsets: Mapping[str, str]) -> dict[str, Note]:
        """Note how files are made; return what is there of an export made in the same way.

        `subsets` are the patients of this export. Raises `UsageError` for an export made in another
        way, or with patients that are now elsewhere.
        """
        settings = self.path / _SETTINGS
        if not settings.exists():
            write_local(settings, _json(document))
            return {}
        before: dict[str, Any] = parse_json(settings.read_bytes())
        for name in sorted({*before, *document}):
            if before.get(name) != document.get(name):
                raise self._differs(f"{name} {before.get(name)}", f"{document.get(name)}")
        self._remove_unfinished()
        notes = self._notes()
        for patient_id, note in notes.items():
            now = subsets.get(patient_id)
            if now != note.subset:
                wanted = f"in images{now}" if now else "left out"
                raise self._differs(f"{patient_id} in images{note.subset}", wanted)
        return notes

    def _differs(self, before: str, now: str) -> UsageError:
        return UsageError(
            f"{self.path.name} was exported with {before}, not {now}",
            where=self._out,
            expected="the same settings and patients; new patients may be added",
            remedy="write --overwrite (overwrite=True) to replace it, or choose another id",
        )

    def _remove_unfinished(self) -> None:
        """Remove what killed exports left half-written."""
        for folder in _FOLDERS:
            for file in (self.path / folder).glob(f".*{WRITING}*"):
                if is_alive(file.name.rpartition(WRITING)[2]) is False:
                    file.unlink(missing_ok=True)

    def _notes(self) -> dict[str, Note]:
        found = {}
        for file in sorted((self.path / _NOTES / "patients").glob("*.json")):
            # A note that cannot be read is none: its patient is written again.
            with suppress(ValueError, TypeError, KeyError):
                note = Note.parse(file.read_text(encoding="utf-8"))
                found[note.patient_id] = note
        return found

    def open(self, subsets: Iterable[str]) -> None:
        """Say that the dataset is not complete, and make its folders."""
        with named(self.path):
            (self.path / _DATASET).unlink(missing_ok=True)
            for subset in subsets:
                for kind in ("images", "labels"):
                    (self.path / f"{kind}{subset}").mkdir(parents=True, exist_ok=True)

    def remove(self, patients: Iterable[str]) -> None:
        """Remove the files of patients, if there are any, and before them their notes."""
        for patient_id in patients:
            self._note_of(patient_id).unlink(missing_ok=True)
            for subset in (TRAINING, TEST):
                images, labels = case_files(patient_id, subset, self._settings)
                for file in (*images, labels):
                    (self.path / file).unlink(missing_ok=True)

    def note(self, note: Note) -> None:
        """Note a patient whose files are all there."""
        path = self._note_of(note.patient_id)
        with named(path):
            write_local(path, _json(asdict(note)))

    def _note_of(self, patient_id: str) -> Path:
        return self.path / _NOTES / "patients" / f"{patient_id}.json"

    def finish(
        self,
        manifest: Manifest,
        notes: Iterable[Note],
        splits: list[dict[str, list[str]]] | None,
        report: str,
    ) -> None:
        """Write report and splits, and `dataset.json` last."""
        listed = list(notes)
        write_local(self.path / REPORT, report.encode())
        if splits is None:
            (self.path / SPLITS).unlink(missing_ok=True)
        else:
            write_local(self.path / SPLITS, _json(splits))
        write_local(self.path / _DATASET, _json(self._dataset(manifest, listed)))

    def _dataset(self, manifest: Manifest, notes: list[Note]) -> dict[str, Any]:
        """Return `dataset.json`. The order of its labels counts."""
        settings = self._settings
        order = settings.scheme.class_order
        return {
            "channel_names": {str(n): c.name for n, c in enumerate(settings.channels)},
            "labels": settings.labels(ignore=any(n.absent for n in notes)),
            **({} if order is None else {"regions_class_order": order}),
            "numTraining": sum(n.subset == TRAINING for n in notes),
            "file_ending": FILE_ENDING,
            "name": settings.name,
            "description": f"{manifest.name}, exported from its labelled Zarr; {REPORT} says how",
            "reference": f"https://doi.org/{manifest.doi}",
            "licence": manifest.access,
            "citation": manifest.citation,
            "converted_by": f"lundprobe-zarr {package_version()}",
        }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
