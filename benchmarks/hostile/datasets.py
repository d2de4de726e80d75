"""Cases of a converted dataset: manifest, stores, shards, tables, saved files, texts, URLs."""

from __future__ import annotations

import io
import json
import random
import re
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.hostile.changes import (
    NAME,
    NUMBERS,
    TEXTS,
    changed_bytes,
    changed_json,
    odd_value,
)
from benchmarks.hostile.material import Material
from lundprobe_zarr.cohort import load_cohort, load_splits, open_cohort
from lundprobe_zarr.cohort.saved import SavedCohort, SavedSplits
from lundprobe_zarr.dataset.content import patient_content
from lundprobe_zarr.dataset.derive import array_rows, patient_row
from lundprobe_zarr.dataset.objects import store_objects, table_files
from lundprobe_zarr.dataset.opening import table_rows
from lundprobe_zarr.errors import LundProbeError
from lundprobe_zarr.exchange.nifti import export_patient
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.publish.card import dataset_card, dataset_catalog
from lundprobe_zarr.publish.croissant import croissant
from lundprobe_zarr.schema.manifest import Manifest, parse_manifest
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.metadata import parse_store
from lundprobe_zarr.stores.nifti_bytes import nifti_bytes
from lundprobe_zarr.stores.opening import open_store
from lundprobe_zarr.stores.place import StorePlace
from lundprobe_zarr.stores.reader import StoreReader
from lundprobe_zarr.stores.tree import open_tree

_SECRET = "hunter2secret"
_BOX = (slice(0, 2), slice(0, 5), slice(0, 4))
_CODECS: tuple[Any, ...] = (
    {"name": "numcodecs.pickle", "configuration": {}},
    {"name": "gzip", "configuration": {"level": 1}},
    {"name": "zstd"},
    {"id": "pickle"},
    {"name": "bytes", "configuration": {"endian": "big"}},
)
_TYPES = (pa.int64(), pa.float32(), pa.string(), pa.binary(), pa.bool_(), pa.list_(pa.int8()))


class Datasets:
    """Makes and runs cases of datasets."""

    def __init__(self, material: Material) -> None:
        self._material = material
        self._dataset = Location(material.dataset)
        self._cohort = open_cohort(material.dataset)
        self.manifest_seeds = (json.dumps(material.manifest).encode(),)
        self._saved: list[dict[str, Any]] = []

    def manifest(self, rng: random.Random) -> bytes:
        """A manifest with members changed, or bytes."""
        return _text(rng, changed_json(rng, self._material.manifest))

    def run_manifest(self, text: bytes) -> None:
        """Have a manifest parsed and its tables read; none may lie outside the dataset."""
        manifest = parse_manifest(text, "case")
        root = self._material.dataset.resolve()
        for file in table_files(manifest):
            if not (root / file).resolve().is_relative_to(root):
                raise AssertionError(f"a table outside: {file!r}")
            try:
                table_rows(self._dataset, {"base": [file]})
            except LundProbeError as error:
                if NAME in str(error) and NAME not in file:
                    raise
        manifest.dump().encode()

    def store(self, rng: random.Random) -> bytes:
        """Root metadata of a store changed: shapes, chunks, codecs, affine, sources."""
        whole = json.loads(json.dumps(self._material.store))
        nodes = whole["consolidated_metadata"]["metadata"]
        for _ in range(rng.randint(1, 3)):
            path = rng.choice(sorted(nodes))
            kind = rng.randrange(8)
            if kind == 0 and "codecs" in nodes[path]:
                codecs = nodes[path]["codecs"]
                inner = codecs[0].get("configuration", {}).get("codecs", codecs)
                rng.choice((codecs, inner)).insert(rng.randrange(2), rng.choice(_CODECS))
            elif kind == 1 and "shape" in nodes[path]:
                shape = nodes[path]["shape"]
                shape[rng.randrange(len(shape))] = rng.choice(NUMBERS)
            elif kind == 2 and "affine" in nodes[path]["attributes"]:
                affine = nodes[path]["attributes"]["affine"]
                affine[rng.randrange(16)] = rng.choice(NUMBERS)
            elif kind == 3 and nodes[path]["attributes"].get("sources"):
                sources = json.loads(nodes[path]["attributes"]["sources"])
                source = rng.choice(sources)
                source[rng.choice(sorted(source))] = odd_value(rng)
                nodes[path]["attributes"]["sources"] = json.dumps(sources)
            elif kind == 4:
                whole["attributes"] = changed_json(rng, whole["attributes"], 1)
            elif kind == 5 and path in nodes:
                nodes[path]["zarr_format"] = 2
            else:
                nodes[path] = changed_json(rng, nodes[path], 2)
                if not isinstance(nodes[path], dict):
                    break
                nodes[path].setdefault("attributes", {})
                if not isinstance(nodes[path]["attributes"], dict):
                    break
        return _text(rng, whole if rng.random() < 0.9 else changed_json(rng, whole))

    def run_store(self, text: bytes) -> None:
        """Have a store described, opened, and read a little; now and then all of it."""
        place = self._material.copied("store")
        patient_id = self._material.patient_id
        (place / f"patients/{patient_id}.zarr/zarr.json").write_bytes(text)
        location = Location(place)
        store = open_store(location, patient_id)
        patient_row(store, 1)
        list(array_rows(store))
        patient_content(store)
        objects = store_objects(text, "case")
        root = place.resolve()
        for item in objects[:2000]:
            if not (root / item.name).resolve().is_relative_to(root):
                location.path(item.name)
        tree = open_tree(location, patient_id)
        reader = StoreReader(location, store, decoders=1)
        for path, array in store.arrays.items():
            for record in array.sources[:2]:
                reader.read([(path, record.labels)], _BOX)
        for group in tree.groups[1:3]:
            for variable in tree[group].to_dataset().variables.values():
                if variable.size < 1000:
                    variable.to_numpy()
        if len(text) % 16 == 0:
            validate(location, deep=True, workers=1)
        if len(text) % 16 == 1:
            out = self._material.scratch / "export"
            export_patient(location, patient_id, out)
            _remove(out)

    def shard(self, rng: random.Random) -> tuple[str, int, bytes]:
        """A shard whose index or chunks were changed and their checksums made right again."""
        store = parse_store(json.dumps(self._material.store), StorePlace("case", "newAcq_0"))
        array, _, key = rng.choice(list(store.shards()))
        size = array.codec.index_bytes
        place = f"patients/{self._material.patient_id}.zarr/{key}"
        shard = bytearray((self._material.dataset / place).read_bytes())
        kind = rng.randrange(4)
        if kind == 0:
            return place, size, changed_bytes(rng, bytes(shard))
        if kind == 1:
            for _ in range(rng.randint(1, 3)):
                at = len(shard) - size + 8 * rng.randrange((size - 4) // 8)
                number = rng.choice([n for n in NUMBERS if isinstance(n, int)]) % 2**64
                shard[at : at + 8] = struct.pack("<Q", number)
            seal(shard, len(shard) - size, len(shard))
        else:
            index = np.frombuffer(bytes(shard[len(shard) - size : -4]), "<u8").reshape(-1, 2)
            there = index[index[:, 0] != 2**64 - 1]
            at, length = map(int, there[rng.randrange(len(there))])
            last = min(16, length - 4) if kind == 2 else length - 4
            for _ in range(rng.randint(1, 3)):
                shard[at + rng.randrange(last)] = rng.randrange(256)
            seal(shard, at, at + length)
        return place, size, bytes(shard)

    def run_shard(self, case: tuple[str, int, bytes]) -> None:
        """Have every voxel of a shard read in both ways."""
        place, _, shard = case
        dataset = self._material.copied("shards")
        sound = (dataset / place).read_bytes()
        store = open_store(Location(dataset), self._material.patient_id)
        key = place.partition(".zarr/")[2]
        array, record = next((a, r) for a, r, k in store.shards() if k == key)
        try:
            (dataset / place).write_bytes(shard)
            reader = StoreReader(Location(dataset), store, decoders=1)
            whole = tuple(slice(0, n) for n in array.volume_shape)
            try:
                (first,) = reader.read([(array.spec.path, record.labels)], whole)
            except LundProbeError:
                reader.volume(array, record)
                raise
            second = reader.volume(array, record)
            if first.tobytes() != second.tobytes():
                raise AssertionError("read in two ways, a shard has two contents")
            nifti_bytes(record, second)
        finally:
            (dataset / place).write_bytes(sound)

    def table(self, rng: random.Random) -> tuple[str, bytes]:
        """A table's file: spoilt bytes, or sound Parquet with other columns, types or values."""
        manifest = self._material.manifest
        name = rng.choice((manifest["cohort"], *manifest["tables"]["structures"].values()))
        file = name if isinstance(name, str) else name[0]
        data = (self._material.dataset / file).read_bytes()
        if rng.random() < 0.5:
            return file, changed_bytes(rng, data, 8)
        table = pq.read_table(io.BytesIO(data))
        for _ in range(rng.randint(1, 2)):
            table = _changed_table(rng, table)
        out = io.BytesIO()
        pq.write_table(table, out)
        return file, out.getvalue()

    def run_table(self, case: tuple[str, bytes]) -> None:
        """Open a cohort with that table and ask it what people ask."""
        file, data = case
        dataset = self._material.copied("tables")
        sound = (dataset / file).read_bytes()
        try:
            (dataset / file).write_bytes(data)
            table_rows(Location(dataset), {"base": [file]})
            cohort = open_cohort(dataset)
            repr(cohort)
            cohort.patients  # noqa: B018
            len(cohort.where("Rectum.volume_cc > 0 AND n_fiducials = 3"))
            cohort.sql("SELECT structure, avg(volume_cc) FROM structures GROUP BY ALL")
            for patient in cohort[:1]:
                patient.row  # noqa: B018
                if len(data) % 8 == 0:
                    patient.clinical  # noqa: B018
            cohort.split(test=0, folds=2, stratify=("part",))
        finally:
            (dataset / file).write_bytes(sound)

    def saved(self, rng: random.Random) -> bytes:
        """A saved cohort or splits with members changed, now and then with a new checksum."""
        if not self._saved:
            for thing in (self._cohort, self._cohort.split(test=0, folds=2)):
                file = self._material.scratch / "saved.json"
                thing.save(file)
                self._saved.append(json.loads(file.read_text()))
        changed = changed_json(rng, rng.choice(self._saved))
        if rng.random() < 0.4:
            kind: Any = rng.choice((SavedCohort, SavedSplits))
            with suppress(ValueError):
                changed = kind.model_validate(changed).with_checksum().model_dump(mode="json")
        return _text(rng, changed)

    def run_saved(self, text: bytes) -> None:
        """Have a saved file loaded as either kind."""
        file = self._material.scratch / "saved.json"
        file.write_bytes(text)
        try:
            load_cohort(file, self._material.dataset)
        except LundProbeError:
            load_splits(file, self._cohort)

    def described(self, rng: random.Random) -> dict[str, Any]:
        """A manifest whose texts are odd."""
        known = [t for t in TEXTS if all(c <= "\ud7ff" for c in t)]
        texts = {f: rng.choice(known) for f in ("name", "access", "converter", "created")}
        return self._material.manifest | {n: t for n, t in texts.items() if rng.random() < 0.7}

    def run_described(self, manifest: dict[str, Any]) -> None:
        """Write card, catalog and Croissant file of a manifest: each says what that does."""
        parsed = Manifest.model_validate(manifest)
        catalog = yaml.safe_load(dataset_catalog(parsed, self._material.patient_id))
        if catalog["metadata"]["title"] != parsed.name:
            raise AssertionError(f"title {catalog['metadata']['title']!r}")
        if set(catalog["sources"]) != {*parsed.tables, "patient", "cohort"}:
            raise AssertionError(f"sources {sorted(catalog['sources'])}")
        front = dataset_card(parsed, {}).split("---\n")[1]
        if not isinstance(yaml.safe_load(front)["configs"], list):
            raise AssertionError("a card without configurations")
        json.loads(croissant(parsed))

    def url(self, rng: random.Random) -> tuple[str, dict[str, Any]]:
        """A path or URL with credentials in it, and options."""
        scheme = rng.choice(_SCHEMES)
        bare = f"{_SECRET}@" if scheme.startswith("http") else ""  # else it may be a container
        user = rng.choice(("", "", f"me:{_SECRET}@", bare))
        tail = rng.choice((f"?sig={_SECRET}", "", "#x", f"?a={_SECRET}&b"))
        place = f"{scheme}{user}{rng.choice(('host', 'host:1', '[', 'b', ''))}/{rng.choice(TEXTS)}"
        options = {rng.choice(("key", "token", "x", "anon", "client_kwargs")): odd_value(rng)}
        return place + tail, rng.choice(({}, {"secret": _SECRET}, options))

    def run_url(self, case: tuple[str, dict[str, Any]]) -> None:
        """Name a place; nothing that is shown of it may hold what was secret."""
        url, options = case
        # A file:// or local:// URL is a path, and holds no credentials.
        hidden = re.match(r"(?!file:|local:)[A-Za-z0-9:]*:/", url) is not None
        try:
            location = Location(url, options)
            shown = f"{location!r} {location.url} {location.path('x')} {location.public_options}"
        except LundProbeError as error:
            shown = str(error)
            if not hidden or _SECRET not in shown:
                raise
        if hidden and _SECRET in shown:
            raise AssertionError(f"a secret is shown: {shown}")


_SCHEMES = (
    *(
        "",
        "/",
        "./",
        "s3://",
        "s3:/",
        "s3:",
        "https://",
        "http://",
        "https:/",
        "memory://",
        "abfs://",
    ),
    *(
        "file://",
        "file:/",
        "local://",
        "gs://",
        "nonsense://",
        "simplecache::s3://",
        "S3://",
        "://",
    ),
)


def _text(rng: random.Random, value: Any) -> bytes:
    """A JSON value as text; now and then nested without end, or with bytes changed."""
    kind = rng.random()
    if kind < 0.01:
        return b"[" * 100_000
    text = json.dumps(value).encode()
    return changed_bytes(rng, text) if kind < 0.1 else text


def seal(shard: bytearray, start: int, stop: int) -> None:
    """Make the checksum at the end of a piece of a shard right."""
    crc = int(google_crc32c.value(bytes(shard[start : stop - 4])))
    shard[stop - 4 : stop] = crc.to_bytes(4, "little")


def _changed_table(rng: random.Random, table: pa.Table) -> pa.Table:
    at = rng.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    kind = rng.randrange(6)
    if kind == 0:
        return table.remove_column(at)
    if kind == 1:
        return table.set_column(at, name, pa.nulls(table.num_rows, rng.choice(_TYPES)))
    if kind == 2:
        return table.append_column(name, column)
    if kind == 3 and table.num_rows:
        rows = [rng.randrange(table.num_rows) for _ in range(rng.randrange(6))]
        return table.take(pa.array(rows, pa.int64()))
    if pa.types.is_string(column.type):
        texts = [t.encode("utf-8", "replace").decode() for t in TEXTS]
        values: list[Any] = [rng.choice((*texts, None)) for _ in range(table.num_rows)]
        return table.set_column(at, name, pa.array(values, pa.string()))
    if pa.types.is_floating(column.type) or kind == 4:
        values = [float(rng.choice(NUMBERS)) for _ in range(table.num_rows)]
        return table.set_column(at, name, pa.array(values, pa.float64()))
    return table.rename_columns([rng.choice(("x", "", "a b", n)) for n in table.column_names])


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
