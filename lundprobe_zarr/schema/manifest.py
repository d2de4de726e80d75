"""The manifest `lundprobe.json`: identity, tables and access terms of a dataset."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lundprobe_zarr.errors import Command, DatasetError, SchemaVersionError
from lundprobe_zarr.schema.document import (
    CHECKSUM,
    add_checksum,
    fails_checksum,
    parse_json,
    reasons,
)
from lundprobe_zarr.schema.layout import SCHEMA_VERSION
from lundprobe_zarr.schema.precision import Precision
from lundprobe_zarr.vocabulary.version import UPGRADE

MANIFEST_NAME = "lundprobe.json"

DOI = "10.23698/aida/lund-probe"
DESCRIPTOR_DOI = "10.1038/s41597-025-04954-5"
CITATION = (
    "Rogowski et al., Sci Data 12, 611 (2025), https://doi.org/10.1038/s41597-025-04954-5; "
    "LUND-PROBE version 1.0.0, AIDA Data Hub, https://doi.org/10.23698/aida/lund-probe"
)
ACCESS = (
    "Controlled access: apply to the AIDA Data Hub (https://doi.org/10.23698/aida/lund-probe). "
    "A conversion stays under the terms of its source; do not publish or pass it on."
)
ACCESS_SYNTHETIC = "Synthetic phantom, not patient data: no access terms apply."


#: No backslash, colon, percent sign, query or control code: some file systems or servers interpret
#: these.
_PLAIN_NAME = re.compile(r"[\w .,=+@()-][\w .,=+@()/-]*")


class Content(BaseModel):
    """Content hashes of a dataset (SHA-256, hex), which do not depend on how it is stored.

    `patients` is over every patient's `content_sha256`. `tables` has hashes of each table's rows
    by part. `sha256` is over both, without tables of comparisons, which may be made later.
    `lundprobe_zarr.dataset.content` says what the hashes cover.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    sha256: str
    patients: str
    tables: dict[str, dict[str, str]]


class Manifest(BaseModel):
    """Contents of `lundprobe.json`.

    `patients` counts patients by part; `tables` lists, for each table, the Parquet files of each
    part that has patients, relative to the dataset. `cohort` is the patients table of all parts in
    one file, so that opening a cohort takes two requests; None in datasets without.
    `headers_stripped` is whether free text was left out of every NIfTI header. `levels` is the
    number of coarser levels that stores have for viewers. `content` has
    the hashes by which two sites can compare their data; None in datasets without.
    `table_sha256` is the SHA-256 (hex) of every file of the tables, by which readers verify it;
    empty in datasets without.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int
    name: str = "LUND-PROBE"
    precision: Precision
    synthetic: bool
    doi: str = DOI
    descriptor_doi: str = DESCRIPTOR_DOI
    citation: str = CITATION
    access: str
    converter: str
    created: str
    patients: dict[str, int]
    tables: dict[str, dict[str, list[str]]]
    cohort: str | None = None
    headers_stripped: bool = False
    levels: Annotated[int, Field(ge=0)] = 0
    content: Content | None = None
    table_sha256: dict[str, str] = {}

    @field_validator("tables")
    @classmethod
    def _stay_inside(
        cls, tables: dict[str, dict[str, list[str]]]
    ) -> dict[str, dict[str, list[str]]]:
        """Refuse table files outside the dataset: a manifest may come from anywhere."""
        for file in (f for parts in tables.values() for files in parts.values() for f in files):
            _require_inside(file)
        return tables

    @field_validator("cohort")
    @classmethod
    def _stays_inside(cls, file: str | None) -> str | None:
        if file is not None:
            _require_inside(file)
        return file

    def dump(self) -> str:
        """Return the manifest as the text of `lundprobe.json`, with its checksum."""
        document = self.model_dump(mode="json")
        add_checksum(document, document)
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _require_inside(file: str) -> None:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or not _PLAIN_NAME.fullmatch(file):
        raise ValueError(f"table file {file!r} lies outside the dataset")


def parse_manifest(text: str | bytes, where: str) -> Manifest:
    """Parse the text of a `lundprobe.json` found at `where`.

    Raises `SchemaVersionError` if it is of a newer schema, `DatasetError` if it is damaged.
    """
    try:
        raw = parse_json(text)
    except ValueError as error:
        raise DatasetError(
            f"not readable as JSON ({error})",
            where=where,
            expected="the manifest of a converted dataset",
            remedy="write it again with {command}",
            command=Command("finalise"),
        ) from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"schema version {version}",
            where=where,
            remedy=(f"this version of lundprobe-zarr reads up to {SCHEMA_VERSION}; {UPGRADE}"),
        )
    if isinstance(raw, dict) and fails_checksum(raw, raw):
        raise DatasetError(
            f"not as it was written: it fails its own checksum ({CHECKSUM})",
            where=where,
            expected="the manifest of a converted dataset",
            remedy="write it again with {command}",
            command=Command("finalise"),
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        raise DatasetError(
            f"not a valid manifest: {reasons(error)}",
            where=where,
            remedy="write it again with {command}",
            command=Command("finalise"),
        ) from error
