"""Make `croissant.json`, a dataset's metadata in MLCommons Croissant 1.1 with RAI 1.0.

Tables are record sets; their fields come from `schema.tables`. Facts about collection, annotation
and sensitivity come from the data descriptor (doi:10.1038/s41597-025-04954-5). Specifications:
https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html and
https://docs.mlcommons.org/croissant/docs/croissant-rai-spec.html.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from lundprobe_zarr.schema.layout import GROUP_TITLES
from lundprobe_zarr.schema.manifest import CITATION, DOI, MANIFEST_NAME, Manifest
from lundprobe_zarr.schema.tables import TABLES, Column, Table
from lundprobe_zarr.vocabulary.names import STRUCTURE_TABLE

CROISSANT_NAME = "croissant.json"
#: Version of LUND-PROBE that the facts below describe.
_SOURCE_VERSION = "1.0.0"
_ZARR = "https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html"
_DOI_URL = f"https://doi.org/{DOI}"

#: Terms of the JSON-LD context, from the specification.
_CR_TERMS = (
    *("arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "excludes"),
    *("extract", "field", "fileProperty", "fileObject", "fileSet", "format", "includes"),
    *("isArray", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet"),
    *("references", "regex", "repeated", "replace", "samplingRate", "separator", "source"),
    *("subField", "transform"),
)
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "name": {"@container": "@language"},
    **{term: f"cr:{term}" for term in _CR_TERMS},
}
_TYPES = {
    pa.string(): "sc:Text",
    pa.int64(): "cr:Int64",
    pa.float64(): "cr:Float64",
    pa.bool_(): "sc:Boolean",
}
_OPTIONAL = " and ".join(s.label for s in STRUCTURE_TABLE if s.optional)
#: Responsible-AI fields of the real data. Only known facts.
_RAI: dict[str, Any] = {
    "rai:dataCollection": (
        "Prostate radiotherapy in Lund, Sweden: T2-weighted MRI of a 3 T scanner in two protocols "
        "(oldAcq, newAcq), synthetic CT and planned dose of each patient, under pseudonyms."
    ),
    "rai:dataCollectionType": ["Secondary data analysis", "Existing datasets"],
    "rai:dataCollectionMissingData": (
        f"Some patients lack {_OPTIONAL}; the columns missing_<Structure> say who. A structure "
        "that a patient lacks has no mask: it is not empty."
    ),
    "rai:dataAnnotationProtocol": [
        "Clinical delineations of nine structures, as used for treatment.",
        "Extended part: segmentations of CTVT_427 and Rectum by an ensemble of ten nnU-Net folds, "
        "with their uncertainty; edited by four oncologists, in step 1 without and in step 2 with "
        "the uncertainty map.",
    ],
    "rai:annotationsPerItem": (
        "One clinical delineation of each structure; in the extended part ten folds, their "
        "ensemble, and up to eight edited segmentations of two structures more."
    ),
    "rai:machineAnnotationTools": ["nnU-Net"],
    "rai:dataLimitations": [
        "One site, one scanner vendor, one fractionation (42.7 Gy in 7 fractions).",
        "The synthetic CT of the oldAcq protocol carries a warning text in its first 50 rows.",
    ],
    "rai:dataUseCases": [
        "Segmentation, dose prediction, uncertainty and observer studies, anomaly detection."
    ],
    "rai:personalSensitiveInformation": [
        "Health data: medical images of patients, under pseudonyms. Under controlled access; not "
        "to be published or passed on."
    ],
}
_RAI_SYNTHETIC: dict[str, Any] = {
    "rai:dataCollection": "Computed by a program; no patient was involved.",
    "rai:dataCollectionType": ["Software Collection"],
    "rai:dataLimitations": ["A phantom: never publish results on it as results on LUND-PROBE."],
    "rai:personalSensitiveInformation": ["None."],
}


def croissant(manifest: Manifest) -> str:
    """Return the text of a dataset's `croissant.json`, with paths relative to the dataset."""
    described = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": [
            "http://mlcommons.org/croissant/1.1",
            "http://mlcommons.org/croissant/RAI/1.0",
        ],
        "name": manifest.name,
        "description": _description(manifest),
        "version": _SOURCE_VERSION,
        "url": _DOI_URL,
        "sameAs": _DOI_URL,
        "citeAs": CITATION,
        "license": manifest.access if manifest.synthetic else _DOI_URL,
        "conditionsOfAccess": manifest.access,
        "isAccessibleForFree": True,
        "datePublished": manifest.created,
        "dateModified": manifest.created,
        "creator": {"@type": "sc:Organization", "name": "Rogowski et al.", "url": _DOI_URL},
        "publisher": {"@type": "sc:Organization", "name": "AIDA Data Hub", "url": _DOI_URL},
        "keywords": ["radiotherapy", "prostate", "MRI", "synthetic CT", "dose", "segmentation"],
        "inLanguage": "en",
        **(_RAI_SYNTHETIC if manifest.synthetic else _RAI),
        "distribution": list(_distribution(manifest)),
        "recordSet": [_record_set(TABLES[name]) for name in _tables(manifest)],
    }
    return json.dumps(described, indent=2, ensure_ascii=False) + "\n"


def _description(manifest: Manifest) -> str:
    counts = ", ".join(f"{n} {part}" for part, n in manifest.patients.items())
    what = (
        "A synthetic phantom in the form of LUND-PROBE; no voxel comes from a patient."
        if manifest.synthetic
        else "Prostate radiotherapy: MRI, synthetic CT, dose, delineations, and for some patients "
        "the segmentations of networks and observers."
    )
    return (
        f"{what} Patients: {counts}. Converted to Zarr with {manifest.precision} precision by "
        f"{manifest.converter}; tables in Parquet."
    )


def _tables(manifest: Manifest) -> list[str]:
    """Return the tables that have any file."""
    return [name for name, parts in manifest.tables.items() if any(parts.values())]


def _distribution(manifest: Manifest) -> Iterator[dict[str, Any]]:
    yield {
        "@type": "cr:FileObject",
        "@id": "manifest",
        "name": MANIFEST_NAME,
        "description": "What the dataset is, and the files of its tables by part.",
        "contentUrl": MANIFEST_NAME,
        "encodingFormat": "application/json",
        "sha256": hashlib.sha256(manifest.dump().encode()).hexdigest(),
    }
    for name in _tables(manifest):
        files = [file for parts in manifest.tables[name].values() for file in parts]
        yield _file_set(name, f"Table: a row is {TABLES[name].row}.", _PARQUET, files)
    groups = "; ".join(f"{group}: {title}" for group, title in GROUP_TITLES.items())
    text = f"A Zarr v3 store a patient, consolidated metadata in its zarr.json. {groups}."
    yield _file_set("stores", text, _ZARR, ["patients/*.zarr/*"])


_PARQUET = "application/x-parquet"


def _file_set(name: str, text: str, encoding: str, includes: list[str]) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": f"{name}-files",
        "name": name,
        "description": text,
        "encodingFormat": encoding,
        "includes": includes,
    }


def _record_set(table: Table) -> dict[str, Any]:
    key = {"key": {"@id": f"{table.name}/patient_id"}} if table.name == "patients" else {}
    return {
        "@type": "cr:RecordSet",
        "@id": table.name,
        "name": table.name,
        "description": f"A row is {table.row}.",
        **key,
        "field": [_field(table, column) for column in table.columns],
    }


def _field(table: Table, column: Column) -> dict[str, Any]:
    unit = f", in {column.unit}" if column.unit not in ("", "1") else ""
    kind, shape = _value_type(column.type)
    array = {"isArray": True, "arrayShape": ",".join(map(str, shape))} if shape else {}
    return {
        "@type": "cr:Field",
        "@id": f"{table.name}/{column.name}",
        "name": column.name,
        "description": f"{column.description}{unit}",
        "dataType": _TYPES[kind],
        **array,
        "source": {
            "fileSet": {"@id": f"{table.name}-files"},
            "extract": {"column": column.name},
        },
    }


def _value_type(kind: pa.DataType) -> tuple[pa.DataType, tuple[int, ...]]:
    """Return the type of a column's values and the shape of its lists; -1 is any length."""
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        length = kind.list_size if pa.types.is_fixed_size_list(kind) else -1
        inner, shape = _value_type(kind.value_type)
        return inner, (length, *shape)
    return kind, ()
