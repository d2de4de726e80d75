"""A place of predictions: their names, whose they are, and their masks, checked against a dataset.

Predictions are kept beside a dataset, in a folder or bucket of their own: see `stores.prediction`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.dataset.content import patient_content
from lundprobe_zarr.dataset.opening import dataset_around
from lundprobe_zarr.errors import (
    DatasetError,
    NotADatasetError,
    UnknownLabelError,
    UsageError,
)
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.schema.manifest import MANIFEST_NAME
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.stores.prediction import StoredPrediction, Whose, read_prediction
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.vocabulary.names import is_patient_id
from lundprobe_zarr.vocabulary.suggest import suggestion

Mask = npt.NDArray[np.bool_]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
#: Sources of a dataset's own segmentations, which no prediction may be named after.
_TAKEN = (
    *("clinical", "nnunet", "nnunet_fold", "observer", "prediction", "patients"),
    *("consensus_majority", "consensus_staple"),
)
#: The folder of a prediction, or of a dataset, that holds the patients' stores.
_PATIENTS = "patients"
#: Stores whose metadata is read at a time.
_AT_ONCE = 16


def is_name(name: object) -> bool:
    """Return whether a prediction may have this name."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and name.lower() not in _TAKEN


def require_prediction_name(name: str) -> str:
    """Return a prediction's name. Raises `UsageError` if it cannot be one."""
    if not is_name(name):
        raise UsageError(
            f"a prediction named {name!r}",
            expected="up to 64 letters, digits, `.`, `_` and `-`, and no source of the dataset",
            remedy=f"for example 'unet-v1'; taken are {', '.join(_TAKEN)}",
        )
    return name


def require_apart(place: Location) -> None:
    """Require that a place is no dataset and lies in none. Raises `UsageError`."""
    inside = dataset_around(place.local()) if place.is_local else None
    if inside is None and not (place.can_list and place.exists(MANIFEST_NAME)):
        return
    raise UsageError(
        "this is a converted dataset, or lies in one",
        where=place.url,
        expected="a folder or bucket for predictions, beside the dataset",
        remedy="predictions never change a dataset: choose another place",
    )


def require_predictions(place: Location) -> None:
    """Require that a place holds predictions, or is an empty folder or bucket.

    Raises `NotADatasetError` if not, `DatasetError` if it cannot be listed.
    """
    there = [n for n in place.children("") if not n.startswith(".")]
    names = () if MANIFEST_NAME in there else filter(_NAME.fullmatch, there)
    if any(_PATIENTS in place.children(n) for n in names) or (not there and place.is_folder("")):
        return
    finding, remedy = _instead(there)
    raise NotADatasetError(
        finding,
        where=place.url,
        expected="a folder or bucket that lp.write_prediction wrote to, or an empty one",
        remedy=remedy,
    )


def _instead(there: Collection[str]) -> tuple[str, str]:
    """Return finding and remedy for a place without predictions, by the names that it holds."""
    if not there:
        return "not there", "check the path or URL; lp.write_prediction makes it"
    if MANIFEST_NAME in there:
        return "a converted dataset", "give the place of the predictions, which is beside it"
    if _PATIENTS in there:
        return "one prediction", "leave out the last part of the path, which is its name"
    return (
        "no predictions",
        "files of other programs are compared by lp.agreement(patient, predictions=FOLDER)",
    )


class NotCompared(NamedTuple):
    """A prediction, or a structure of it, that was not compared or not there, and why."""

    patient_id: str
    prediction: str
    structure: str | None
    reason: str


class MaskSource(Protocol):
    """Where predicted masks come from: a place of predictions, or files of another program."""

    @property
    def names(self) -> list[str]:
        """Names of the predictions."""

    @property
    def left_out(self) -> list[NotCompared]:
        """What is there and cannot be taken for a patient or a structure."""

    def patients(self, name: str) -> list[str]:
        """Ids of the patients of a prediction, in order."""

    def grid(self, name: str, store: StoreMetadata) -> str | None:
        """Return the grid that a patient's prediction is said to be on; None: nothing says it."""

    def read(
        self, name: str, store: StoreMetadata, grid: str, wanted: Iterable[str] | None
    ) -> Iterator[tuple[str, Mask]]:
        """Yield a patient's structures and masks (z, y, x) on a grid, those `wanted` or all.

        Raises `DatasetError` or `UsageError` for masks that do not fit the patient.
        """


class StoredPredictions:
    """The predictions at a place: a `MaskSource`."""

    def __init__(self, place: Location) -> None:
        self.place = place

    @cached_property
    def names(self) -> list[str]:
        """Names of the predictions, in order. Raises `DatasetError` if they cannot be listed."""
        return [n for n in self.place.children("") if _NAME.fullmatch(n) and self.patients(n)]

    @property
    def left_out(self) -> list[NotCompared]:
        """None: only patients and structures can be written."""
        return []

    def require(self, name: str) -> str:
        """Return a name that is there. Raises `UnknownLabelError`."""
        if name not in self.names:
            raise UnknownLabelError(
                f"no prediction {name!r} in {self.place.url}",
                remedy=suggestion(str(name), self.names),
            )
        return name

    def at(self, name: str) -> Location:
        """Return the place of one prediction."""
        url, options = self.place.arguments
        return Location(f"{url.rstrip('/')}/{name}", options)

    def patients(self, name: str) -> list[str]:
        """Ids of the patients of a prediction, in order."""
        found = (n.removesuffix(".zarr") for n in self.place.children(f"{name}/{_PATIENTS}"))
        return [i for i in found if is_patient_id(i)]

    def all(self) -> list[StoredPrediction]:
        """Return every patient's prediction of every name, by metadata."""
        wanted = [(name, i) for name in self.names for i in self.patients(name)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = pool.map(lambda w: self._read(*w), wanted)
        return [p for p in found if p is not None]

    def stored(self, name: str, store: StoreMetadata) -> StoredPrediction | None:
        """Return a patient's prediction, which has to be of this very patient; None without one.

        Raises `DatasetError` if it was made of other contents or lies on another grid.
        """
        found = self._read(name, store.patient_id)
        if found is not None:
            _require_same(found, store)
        return found

    def _read(self, name: str, patient_id: str) -> StoredPrediction | None:
        """Read a patient's prediction by metadata; None if there is none, or no such name.

        Its name is that of its folder, which may have been another when it was written.
        """
        found = read_prediction(self.at(name), patient_id) if _NAME.fullmatch(name) else None
        if found is None or found.about.prediction == name:
            return found
        return replace(found, about=found.about.model_copy(update={"prediction": name}))

    def reader(self, name: str, store: StoreMetadata) -> tuple[StoreReader, StoredPrediction]:
        """Return a reader of a patient's prediction. Raises `UnknownLabelError` without one."""
        found = self.stored(self.require(name), store)
        if found is None:
            raise UnknownLabelError(
                f"no prediction {name!r} of patient {store.patient_id} in {self.place.url}",
                patient=store.patient_id,
                remedy=f"it has {len(self.patients(name))} other patients",
            )
        return StoreReader(self.at(name), found.metadata), found

    def grid(self, name: str, store: StoreMetadata) -> str | None:
        """Return the grid of a patient's prediction: see `MaskSource`. Raises like `reader`."""
        return self.reader(name, store)[1].about.grid

    def read(
        self, name: str, store: StoreMetadata, grid: str, wanted: Iterable[str] | None
    ) -> Iterator[tuple[str, Mask]]:
        """Yield masks: see `MaskSource`."""
        reader, found = self.reader(name, store)
        if found.about.grid != grid:
            raise UsageError(
                f"prediction {name!r} is on the {found.about.grid} grid",
                where=found.metadata.where,
                expected=f"one on the {grid} grid",
                remedy=f"give grid={found.about.grid!r}",
            )
        [array] = found.metadata.arrays.values()
        names = None if wanted is None else set(wanted)
        for record in array.sources:
            structure = str(record.labels["structure"])
            if names is None or structure in names:
                yield structure, reader.volume(array, record)


def whose(store: StoreMetadata, grid_name: str) -> Whose:
    """Return what ties a prediction to a patient. Raises `UnknownLabelError` without the grid."""
    return Whose(
        store.patient_id,
        patient_content(store),
        bool(store.attributes["synthetic"]),
        grid_name,
        grid_named(store, grid_name),
    )


def grid_named(store: StoreMetadata, name: str) -> Grid:
    """Return a patient's grid of masks. Raises `UsageError` or `UnknownLabelError`."""
    if name not in ("mri", "sct"):
        raise UsageError(f"grid={name!r}", expected="'mri' or 'sct'")
    found = store.grid(name)
    if found is None:
        raise UnknownLabelError(f"patient {store.patient_id} has no {name} grid")
    return found


def _require_same(found: StoredPrediction, store: StoreMetadata) -> None:
    about = found.about
    expected = whose(store, about.grid)
    same_lattice = found.grid.shape == expected.grid.shape and np.array_equal(
        found.grid.affine, expected.grid.affine
    )
    if about.content_sha256 == expected.content_sha256 and same_lattice:
        return
    finding = (
        f"prediction {about.prediction!r} of patient {about.patient_id} was made of contents "
        f"{about.content_sha256[:12]}"
        if same_lattice
        else f"prediction {about.prediction!r} of patient {about.patient_id} has other voxels"
    )
    raise DatasetError(
        finding,
        where=found.metadata.where,
        patient=about.patient_id,
        expected=f"those of the dataset, {expected.content_sha256[:12]}",
        remedy="the patient was converted again from other files, or in another way: predict and "
        "write it again",
    )


def provenance_table(predictions: Iterable[StoredPrediction]) -> list[dict[str, Any]]:
    """Return a row a prediction and structure: what it is of, its volume, and who made it."""
    return [
        {
            "prediction": p.about.prediction,
            "patient_id": p.about.patient_id,
            "grid": p.about.grid,
            "structure": mask.structure,
            "voxels": mask.voxels,
            "volume_cc": mask.volume_cc,
            "created": p.about.created,
            "provenance": p.about.provenance,
        }
        for p in predictions
        for mask in p.about.masks
    ]
