"""One patient's predicted masks: a Zarr store of its own, beside the dataset and never in it.

A place of predictions holds a folder for each name, and in that the patients' stores, as in a
dataset: `NAME/patients/<patient_id>.zarr`. A store has the grid's group and below it `prediction`,
with `mask (structure, z, y, x)`, bool. Its root says whose prediction it is: the patient, the grid,
and the hash of the patient's contents. So it cannot be taken for one of another patient, or of a
patient who was converted again from other files.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lundprobe_zarr.errors import (
    Command,
    SchemaVersionError,
    VerificationError,
)
from lundprobe_zarr.geometry.affine import voxel_volume_cc
from lundprobe_zarr.geometry.lattice import Box, Grid
from lundprobe_zarr.measures.masks import bounding_box
from lundprobe_zarr.schema.attributes import AFFINE, SHAPE, plain, structured
from lundprobe_zarr.schema.document import (
    CHECKSUM,
    add_checksum,
    fails_checksum,
    parse_json,
    reasons,
    sha256_of,
)
from lundprobe_zarr.schema.encoding import MASK_BLOSC, inner_chunk, shard_shape
from lundprobe_zarr.schema.layout import AFFINE_FRAME, CONVENTIONS, ArraySpec
from lundprobe_zarr.schema.nodes import GroupAttributes
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.failures import explained
from lundprobe_zarr.storage.folders import remove, replace_folder
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.reread import read_verified, write_verified
from lundprobe_zarr.storage.writers import is_alive, writer
from lundprobe_zarr.stores.metadata import UNSOUND, StoreMetadata, VolumeArray
from lundprobe_zarr.stores.place import StorePlace
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stores.shard import ShardCodec
from lundprobe_zarr.vocabulary.names import SPATIAL_DIMS, STRUCTURES
from lundprobe_zarr.vocabulary.version import UPGRADE, package_version

Mask = npt.NDArray[np.bool_]
#: Version of the layout of predictions; readers refuse a newer one.
PREDICTION_VERSION = 1
GRIDS_OF_MASKS = ("mri", "sct")
_ROOT, _PARTIAL = "zarr.json", ".partial-"
#: Voxels of an inner chunk: a thousand times what the largest ones have.
_LARGEST_CHUNK = 1 << 27


def prediction_spec(grid: str) -> ArraySpec:
    """Return the one array of volumes of a prediction on a grid."""
    return ArraySpec(f"{grid}/prediction", "mask", ("structure",), "1", "predicted segmentation")


class PredictedMask(BaseModel):
    """One structure's mask: its voxels, and the shard that holds them."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    structure: Literal[STRUCTURES]  # type: ignore[valid-type]
    voxels: int
    volume_cc: float
    bbox_start: tuple[int, int, int] | None
    bbox_stop: tuple[int, int, int] | None
    stored_bytes: Annotated[int, Field(ge=0)]
    stored_sha256: str | None

    @property
    def box(self) -> Box | None:
        """The smallest box that holds the mask (z, y, x); None if it has no voxel."""
        if self.bbox_start is None or self.bbox_stop is None:
            return None
        z, y, x = (slice(a, b) for a, b in zip(self.bbox_start, self.bbox_stop, strict=True))
        return z, y, x


class About(BaseModel):
    """What the root of a prediction's store says.

    `content_sha256` is the hash of the converted patient's contents (`patients` table).
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    prediction_version: int
    patient_id: str
    prediction: str
    grid: Literal["mri", "sct"]
    content_sha256: str
    synthetic: bool
    created: str
    writer: str
    provenance: dict[str, Any]
    masks: tuple[PredictedMask, ...]


@dataclass(frozen=True)
class StoredPrediction:
    """A prediction's store: what it says of itself, and its metadata for `StoreReader`."""

    about: About
    metadata: StoreMetadata

    @property
    def grid(self) -> Grid:
        """The lattice of its voxels."""
        found = self.metadata.grid(self.about.grid)
        assert found is not None  # `parse_prediction` required it
        return found


@dataclass(frozen=True)
class PredictionPlace(StorePlace):
    """A prediction's store, or an object in it, for messages."""

    def remedy(self) -> tuple[str, Command | None]:
        """Return how to repair a damaged prediction; no command does so."""
        return "write this prediction again, with overwrite=True, or copy it again", None


def read_prediction(place: Location, patient_id: str) -> StoredPrediction | None:
    """Read the metadata of a patient's prediction at `NAME/`, one request; None without one.

    Raises `DamagedStoreError` for one that is not sound, `SchemaVersionError` for a newer one.
    """
    name = f"{store_path(patient_id)}/{_ROOT}"
    where = PredictionPlace(place.url, patient_id)
    try:
        return read_verified(
            place, name, lambda: place.read(name), lambda text: parse_prediction(text, where)
        )
    except (FileNotFoundError, NotADirectoryError):
        return None


def parse_prediction(text: bytes, where: StorePlace) -> StoredPrediction:
    """Return what the text of a prediction's root `zarr.json` says. Raises as above."""
    try:
        raw = parse_json(text)
        attributes = raw["attributes"]
        if attributes["prediction_version"] > PREDICTION_VERSION:
            raise SchemaVersionError(
                f"prediction version {attributes['prediction_version']}",
                where=where,
                expected=f"at most {PREDICTION_VERSION}",
                remedy=UPGRADE,
            )
        if CHECKSUM not in attributes or fails_checksum(raw, attributes):
            raise ValueError(f"it fails its own checksum, {CHECKSUM}")
        fields = attributes | {n: json.loads(attributes[n]) for n in ("provenance", "masks")}
        about = About.model_validate(fields)
        if about.patient_id != where.patient:
            raise ValueError(f"it is of patient {about.patient_id}")
        return StoredPrediction(about, _metadata(raw, about, where, sha256_of(text)))
    except UNSOUND as error:
        detail = reasons(error) if isinstance(error, ValidationError) else str(error)
        raise where.damaged(f"not the metadata of a prediction ({detail})") from error


def _metadata(raw: dict[str, Any], about: About, where: StorePlace, sha256: str) -> StoreMetadata:
    nodes = raw["consolidated_metadata"]["metadata"]
    spec = prediction_spec(about.grid)
    groups = {p: structured(nodes[p]["attributes"]) for p in (about.grid, spec.group)}
    for attributes in groups.values():
        GroupAttributes.model_validate(attributes)
    z, y, x = groups[about.grid][SHAPE]
    labels = groups[spec.group]["labels"]["structure"]
    if labels != [m.structure for m in about.masks]:
        raise ValueError(f"masks of {labels}, and records of others")
    if nodes[spec.path]["shape"] != [len(labels), z, y, x]:
        raise ValueError(f"{spec.path}: not of the shape of its grid")
    one, *chunk = nodes[spec.path]["codecs"][0]["configuration"]["chunk_shape"]
    if one != 1 or len(chunk) != 3 or not all(isinstance(n, int) and n > 0 for n in chunk):
        raise ValueError(f"{spec.path}: inner chunks {[one, *chunk]}; expected a part of a volume")
    if prod(chunk) > _LARGEST_CHUNK:
        raise ValueError(f"{spec.path}: inner chunks of {prod(chunk)} voxels")
    codec = ShardCodec((z, y, x), (chunk[0], chunk[1], chunk[2]), np.dtype(np.bool_), MASK_BLOSC)
    array = VolumeArray(
        spec, (len(labels), z, y, x), codec.dtype, codec.chunk, codec.blosc, _records(about)
    )
    return StoreMetadata(where, raw["attributes"], groups, {spec.path: array}, sha256=sha256)


def _records(about: About) -> tuple[SourceRecord, ...]:
    """Return what the reader needs of each shard; there is no source file."""
    return tuple(
        SourceRecord(
            labels={"structure": m.structure},
            path="",
            bytes=0,
            sha256="",
            voxels=m.voxels,
            stored_bytes=m.stored_bytes,
            stored_sha256=m.stored_sha256,
        )
        for m in about.masks
    )


def _codec(shape: tuple[int, int, int]) -> ShardCodec:
    return ShardCodec(shape, inner_chunk(shape), np.dtype(np.bool_), MASK_BLOSC)


@dataclass(frozen=True)
class Whose:
    """Whose a prediction is: patient, content hash of the patient, name and lattice of the grid."""

    patient_id: str
    content_sha256: str
    synthetic: bool
    grid_name: str
    grid: Grid


def write_prediction_store(
    place: Location,
    whose: Whose,
    name: str,
    masks: Mapping[str, Mask],
    provenance: Mapping[str, Any],
) -> None:
    """Write masks (z, y, x) by structure as a patient's prediction at `NAME/`, and verify them.

    The store appears whole: on a disk by a temporary name and a rename, in a bucket with its root
    last. One that is there is replaced. Raises `DatasetError` if it cannot be written,
    `VerificationError` if other voxels are read back.
    """
    store = store_path(whose.patient_id)
    with explained(place.path(store)), _draft(place, store) as folder:
        _write_store(folder / store, whose, name, masks, provenance)
        _verify(Location(folder), whose.patient_id, masks)
        if place.is_local:
            replace_folder(folder / store, place.local(store))
        else:
            _send(folder / store, place, store)


@contextmanager
def _draft(place: Location, store: str) -> Iterator[Path]:
    """Make a folder to write in: on the disk of the place, or a temporary one for a bucket."""
    if not place.is_local:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    parent = place.local(store).parent
    draft = parent / f"{_PARTIAL}{writer()}"
    try:
        draft.mkdir(parents=True)
        for left in parent.glob(f"{_PARTIAL}*"):  # of a process that was killed
            if is_alive(left.name.removeprefix(_PARTIAL)) is False:
                remove(left)
        yield draft
    finally:
        remove(draft)


def _write_store(
    folder: Path,
    whose: Whose,
    name: str,
    masks: Mapping[str, Mask],
    provenance: Mapping[str, Any],
) -> None:
    codec, spec = _codec(whose.grid.shape), prediction_spec(whose.grid_name)
    written = [
        _write_mask(folder / spec.path / "c" / str(number) / "0/0/0", codec, structure, mask, whose)
        for number, (structure, mask) in enumerate(masks.items())
    ]
    about = About(
        prediction_version=PREDICTION_VERSION,
        patient_id=whose.patient_id,
        prediction=name,
        grid=whose.grid_name,  # type: ignore[arg-type]
        content_sha256=whose.content_sha256,
        synthetic=whose.synthetic,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        writer=f"lundprobe-zarr {package_version()}",
        provenance=dict(provenance),
        masks=tuple(written),
    )
    _write_metadata(folder, whose, codec, about)


def _write_mask(
    file: Path, codec: ShardCodec, structure: str, mask: Mask, whose: Whose
) -> PredictedMask:
    box = bounding_box(mask)
    shard = b"".join(codec.encode(mask, box)) if box is not None else b""
    if shard:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(shard)
    voxels = int(np.count_nonzero(mask))
    return PredictedMask(
        structure=structure,
        voxels=voxels,
        volume_cc=voxels * voxel_volume_cc(whose.grid.affine),
        bbox_start=None if box is None else (box[0].start, box[1].start, box[2].start),
        bbox_stop=None if box is None else (box[0].stop, box[1].stop, box[2].stop),
        stored_bytes=len(shard),
        stored_sha256=sha256_of(shard) if shard else None,
    )


def _write_metadata(folder: Path, whose: Whose, codec: ShardCodec, about: About) -> None:
    import zarr
    from zarr.codecs import Crc32cCodec
    from zarr.storage import LocalStore

    from lundprobe_zarr.stores.nodes import blosc_codec, write_axes, write_small

    spec, structures = prediction_spec(about.grid), [m.structure for m in about.masks]
    fields = about.model_dump(mode="json")
    root = zarr.create_group(
        LocalStore(folder), attributes={"Conventions": CONVENTIONS} | plain(_texts(fields))
    )
    lattice = {AFFINE: whose.grid.affine.tolist(), SHAPE: [int(n) for n in whose.grid.shape]}
    title = {"Conventions": CONVENTIONS, "title": f"voxels of the {about.grid} grid"}
    grid = root.create_group(
        about.grid, attributes=plain(title | lattice | {"affine_frame": AFFINE_FRAME})
    )
    write_axes(grid, whose.grid.affine, whose.grid.shape)
    title = {"Conventions": CONVENTIONS, "title": f"prediction {about.prediction}"}
    labels = {"labels": {"structure": structures}}
    group = root.create_group(spec.group, attributes=plain(title | labels))
    write_small(group, "structure", ("structure",), structures, {"long_name": "structure"})
    group.create_array(
        spec.variable,
        shape=(len(structures), *codec.shape),
        dtype=codec.dtype,
        chunks=(1, *codec.chunk),
        shards=(1, *shard_shape(codec.shape)),
        compressors=[blosc_codec(codec), Crc32cCodec()],
        fill_value=False,
        dimension_names=[*spec.label_dims, *SPATIAL_DIMS],
        attributes={"units": "1", "long_name": spec.long_name},
    )
    for path in (spec.group, about.grid, ""):
        with warnings.catch_warnings():
            # Not part of the Zarr v3 specification yet, but known to all supported readers.
            warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
            zarr.consolidate_metadata(root.store, path=path)
    document = json.loads((folder / _ROOT).read_text())
    add_checksum(document, document["attributes"])
    (folder / _ROOT).write_text(json.dumps(document, indent=2))


def _texts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes with lists and objects as JSON text, an empty list too."""
    lists = {n: json.dumps(v) for n, v in fields.items() if isinstance(v, list | dict)}
    return dict(fields) | lists


def _verify(draft: Location, patient_id: str, masks: Mapping[str, Mask]) -> None:
    """Read every voxel back as a user would, and compare."""
    stored = read_prediction(draft, patient_id)
    assert stored is not None  # it was just written
    reader = StoreReader(draft, stored.metadata)
    [array] = stored.metadata.arrays.values()
    for record, (structure, mask) in zip(array.sources, masks.items(), strict=True):
        if not np.array_equal(reader.volume(array, record, verify=True), mask):
            raise VerificationError(
                f"voxels of {structure} read back differ from what was written",
                where=stored.metadata.where,
                patient=patient_id,
                remedy="check the disk, then write it again",
            )


def _send(folder: Path, place: Location, store: str) -> None:
    """Upload a store: its root last, so that readers never find half of it."""
    with suppress(FileNotFoundError):
        place.delete(f"{store}/{_ROOT}")
    old = set(place.find(store))
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / _ROOT)
    for file in (*files, folder / _ROOT):
        name = file.relative_to(folder).as_posix()
        write_verified(place, f"{store}/{name}", file.read_bytes())
        old.discard(name)
    for name in sorted(old):
        place.delete(f"{store}/{name}")
