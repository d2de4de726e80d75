"""Whole volumes of patients, or boxes of them, for the datasets of MONAI and TorchIO."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from lundprobe_zarr.errors import (
    DamagedStoreError,
    MissingStructureError,
    UnknownLabelError,
    UsageError,
)
from lundprobe_zarr.patches import Content, RawSample
from lundprobe_zarr.patches.frame import Box, Frame
from lundprobe_zarr.patches.plan import require_cohort
from lundprobe_zarr.patches.request import Block
from lundprobe_zarr.schema.layout import ARRAY_SPECS, SEGMENTATION_SOURCES
from lundprobe_zarr.stores.open_readers import Readers
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stream.forks import reading
from lundprobe_zarr.stream.patch import read_patch
from lundprobe_zarr.vocabulary.names import FOLDS, OBSERVERS, TARGETS
from lundprobe_zarr.vocabulary.suggest import suggestion

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort

#: What becomes of patients who lack something that was asked for.
Missing = Literal["error", "skip"]

_CLINICAL = "clinical"
_SOURCES = tuple(dict.fromkeys(SEGMENTATION_SOURCES.values()))


def content_of(
    images: str | Sequence[str] | None,
    structures: str | Sequence[str],
    grid: str,
    sources: str | Sequence[str],
    dose: bool,
    uncertainty: bool,
    spacing_mm: float | Sequence[float] | None,
    image_dtype: str | None,
) -> Content:
    """Return the content that `monai_dataset` and `torchio_subjects` describe; raise as they do."""
    names = (structures,) if isinstance(structures, str) else tuple(structures)
    makers = (sources,) if isinstance(sources, str) else tuple(sources)
    for source in makers:
        if source not in _SOURCES:
            raise UnknownLabelError(
                f"unknown {source!r}", where="sources", remedy=suggestion(source, _SOURCES)
            )
    targets = tuple(name for name in names if name in TARGETS)
    others = bool(set(makers) - {_CLINICAL}) or uncertainty
    if others and (not targets or (_CLINICAL not in makers and len(targets) < len(names))):
        raise UsageError(
            f"structures={list(names)} of sources {list(makers)}",
            expected=f"some of {', '.join(TARGETS)}, which networks and observers segmented",
        )
    return Content(
        grid=grid,
        modalities=images,
        structures=names if _CLINICAL in makers else (),
        dose=dose,
        nnunet="nnunet" in makers,
        folds=FOLDS if "nnunet_fold" in makers else (),
        uncertainty=uncertainty,
        observers=OBSERVERS if "observer" in makers else (),
        targets=targets or TARGETS,
        spacing_mm=spacing_mm,
        image_dtype=image_dtype,
    )


class WholeVolumes:
    """Reader of the same content of every patient of a cohort, on the voxels of a frame.

    It reads tables when it is made, and voxels on request. It pickles without connections, and a
    forked process opens its own.
    """

    def __init__(self, cohort: Cohort, content: Content, frame: Frame, missing: Missing) -> None:
        require_cohort(cohort)
        if missing not in get_args(Missing):
            raise UsageError(f"missing={missing!r}", expected="'error' or 'skip'")
        self.content, self._frame = content, frame
        self._bounds = frame.bounds(cohort)
        lacking = _lacking(cohort, content)
        if frame.crop is not None:
            for patient_id in cohort.ids:
                if "mri" not in self._bounds.get(patient_id, {}):
                    lacking.setdefault(patient_id, []).append(f"{frame.crop} to crop to")
        self.ids = [i for i in cohort.ids if i not in lacking]
        if lacking and missing == "error":
            raise _missing(lacking, len(cohort))
        if not self.ids:
            raise (
                _missing(lacking, len(cohort))
                if lacking
                else UsageError(f"no patients: {cohort!r}", expected="at least one")
            )
        self._readers = Readers(partial(StoreReader.open, cohort.location))
        self.key = self._key(cohort)

    def __deepcopy__(self, memo: object) -> WholeVolumes:
        """Return itself: it has no state but what it has opened."""
        return self

    def _key(self, cohort: Cohort) -> str:
        """Return a hash of data and settings, by which caches tell items apart."""
        content = cohort.dataset.manifest.content
        known = content.patients if content else cohort.dataset.identity.model_dump_json()
        text = json.dumps([known, repr(self.content), repr(self._frame)])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """Volumes of a patient by name, each with what its channels are."""
        return {block.name: _channels(block) for block in self.content.blocks}

    def box(self, patient_id: str) -> Box:
        """Return the voxels that are read of a patient. Reads the store's metadata."""
        with reading():
            metadata = self._readers.get(patient_id).metadata
        return self._frame.box(metadata, self.content.grid, self._bounds.get(patient_id, {}))

    def read(self, patient_id: str, name: str | None = None) -> RawSample:
        """Read all volumes of a patient, or the one of a name.

        The dict is that of `stream.patch.read_patch`. Raises `MissingStructureError` if the store
        lacks one of them, `DamagedStoreError` if a byte is missing or wrong.
        """
        content = self.content if name is None else _narrowed(self.content, name)
        box = self.box(patient_id)
        try:
            with reading():
                sample = read_patch(self._readers.get(patient_id), content, box.start, box.size)
        except DamagedStoreError:
            self._readers.drop(patient_id)  # it may have been replaced
            raise
        for block in content.blocks:
            if block.present and not sample[block.present].all():
                raise MissingStructureError(
                    f"patient {patient_id} lacks some of {', '.join(_channels(block))}",
                    patient=patient_id,
                )
        return sample


def _channels(block: Block) -> tuple[str, ...]:
    """Return what the channels of a volume are, its labels joined, in order."""
    return tuple(" ".join(map(str, labels)) or block.name for _, labels in block.volumes())


_ALONE: dict[str, Any] = {
    "modalities": (), "structures": (), "dose": False, "nnunet": False, "folds": (),
    "uncertainty": False, "observers": (),
}  # fmt: skip
_FIELDS = {
    "image": "modalities", "mask": "structures", "dose": "dose", "nnunet_mask": "nnunet",
    "fold_mask": "folds", "uncertainty": "uncertainty", "observer_mask": "observers",
}  # fmt: skip


def _narrowed(content: Content, name: str) -> Content:
    """Return the content with one volume alone."""
    field = _FIELDS[name]
    return replace(content, **(_ALONE | {field: getattr(content, field)}))


def _lacking(cohort: Cohort, content: Content) -> dict[str, list[str]]:
    """Return what patients lack of a content, by patient. Reads the table `arrays`.

    A clinical mask without a voxel is lacking: the structure was not delineated.
    """
    columns = ("patient_id", "group", "variable", "labels", "stored_bytes")
    table = cohort.dataset.columns("arrays", columns)
    table = table.filter(pc.is_in(table.column("patient_id"), value_set=pa.array(cohort.ids)))
    there: dict[str, set[tuple[str, str]]] = {i: set() for i in cohort.ids}
    rows = zip(*(table.column(c).to_pylist() for c in columns), strict=True)
    for patient_id, group, variable, labels, stored in rows:
        path = f"{group}/{variable}"
        if stored or SEGMENTATION_SOURCES.get(path) != _CLINICAL:
            there[patient_id].add((path, _same(json.loads(labels))))
    wanted = {
        (block.path, _same(dict(zip(ARRAY_SPECS[block.path].label_dims, labels, strict=True))))
        for block in content.blocks
        for _, labels in block.volumes()
    }
    found = {i: sorted(wanted - of) for i, of in there.items()}
    return {i: [f"{path} {labels}" for path, labels in of] for i, of in found.items() if of}


def _same(labels: dict[str, Any]) -> str:
    return ", ".join(f"{k}={labels[k]}" for k in sorted(labels))


def _missing(lacking: dict[str, list[str]], of: int) -> MissingStructureError:
    first = next(iter(lacking))
    return MissingStructureError(
        f"{len(lacking)} of {of} patients lack something that was asked for, such as {first}: "
        f"{'; '.join(lacking[first][:3])}",
        expected="all of it of every patient",
        remedy="choose patients who have it with cohort.where(…), or leave others out with "
        "missing='skip'",
    )
