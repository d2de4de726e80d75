"""Make a dataset's card (README.md) and its Intake catalog from the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from lundprobe_zarr.schema.layout import GROUP_TITLES
from lundprobe_zarr.schema.manifest import Manifest
from lundprobe_zarr.schema.tables import TABLES

#: Names of column types in `datasets`.
_DTYPES = {pa.string(): "string", pa.int64(): "int64", pa.float64(): "float64", pa.bool_(): "bool"}
#: Table -> part -> (rows, bytes).
Sizes = Mapping[str, Mapping[str, tuple[int, int]]]

#: Class by which Intake opens a cohort.
COHORT_DRIVER = "lundprobe_zarr.publish.intake.CohortSource"
_NOTICE_SYNTHETIC = (
    "> **Synthetic phantom.** Everything in this dataset was computed; no voxel comes from a "
    "patient. It has the form of LUND-PROBE and none of its contents: never publish results on it "
    "as results on LUND-PROBE.\n\n"
)


def dataset_card(manifest: Manifest, sizes: Sizes) -> str:
    """Return the dataset card (Markdown), with the `configs:` for `datasets.load_dataset`."""
    return f"{_front_matter(manifest, sizes)}\n{_body(manifest, sizes)}"


def _front_matter(manifest: Manifest, sizes: Sizes) -> str:
    """Return the YAML header for `datasets` and its Hub: access, tasks, size, files, columns."""
    lines = [
        "---",
        f"pretty_name: {json.dumps(manifest.name)}",
        "license: other",
        f"license_name: {'synthetic' if manifest.synthetic else 'controlled-access'}",
        f"license_link: https://doi.org/{manifest.doi}",
        f"extra_gated_prompt: {json.dumps(manifest.access)}",
        "annotations_creators:\n- expert-generated\n- machine-generated",
        "task_categories:\n- image-segmentation\n- image-to-image",
        f"size_categories:\n- {_size_category(sum(manifest.patients.values()))}",
        "tags:\n- radiotherapy\n- medical\n- mri\n- prostate\n- dose\n- zarr\n- croissant",
        "configs:",
    ]
    for name, parts in manifest.tables.items():
        if not parts:  # a table without rows
            continue
        lines.append(f"- config_name: {name}")
        if name == "patients":
            lines.append("  default: true")
        lines.append("  data_files:")
        for part, files in parts.items():
            lines += [f"  - split: {part}", "    path:", *(f"    - {f}" for f in files)]
    lines.append("dataset_info:")
    for name, by_part in sizes.items():
        if not by_part:
            continue
        lines += [f"- config_name: {name}", "  features:", *_features(name), "  splits:"]
        for part, (rows, size) in by_part.items():
            lines += [f"  - name: {part}", f"    num_examples: {rows}", f"    num_bytes: {size}"]
    return "\n".join([*lines, "---", ""])


def _size_category(patients: int) -> str:
    """Return the Hub's size category for a number of rows of the default table."""
    return "n<1K" if patients < 1000 else "1K<n<10K" if patients < 10_000 else "10K<n<100K"


def _features(table: str) -> list[str]:
    """Return the columns of a table in the form of `datasets`, one per line."""
    return [
        f"  - {json.dumps({'name': field.name} | _feature(field.type))}"
        for field in TABLES[table].schema
    ]


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_fixed_size_list(kind):
        return {"list": _item(kind.value_type), "length": kind.list_size}
    if pa.types.is_list(kind):
        return {"list": _item(kind.value_type)}
    return {"dtype": _DTYPES[kind]}


def _item(kind: pa.DataType) -> Any:
    return _DTYPES[kind] if kind in _DTYPES else _feature(kind)


def _body(manifest: Manifest, sizes: Sizes) -> str:
    counts = ", ".join(f"{n} {part}" for part, n in manifest.patients.items())
    tables = "\n".join(
        f"| `{name}` | {TABLES[name].row} | {sum(rows for rows, _ in parts.values())} |"
        for name, parts in sizes.items()
    )
    return f"""# {manifest.name}

{_NOTICE_SYNTHETIC if manifest.synthetic else ""}\
Patients: {counts}. Precision: `{manifest.precision}`. \
Schema version {manifest.schema_version}, written by {manifest.converter} on {manifest.created}.

**Access.** {manifest.access}

**Cite.** {manifest.citation}

## Tables

| table | a row is | rows |
|---|---|---|
{tables}

```python
from datasets import load_dataset
patients = load_dataset(".", "patients", split="{_first_part(manifest)}", streaming=True)
```

## Images

`patients/<patient_id>.zarr` is one patient: Zarr v3 with consolidated metadata and labels as \
coordinates. `z y x` are voxel centres in mm, DICOM patient frame (LPS); `affine` is the NIfTI \
one (RAS).

```python
import xarray as xr
patient = xr.open_datatree("patients/<patient_id>.zarr", engine="zarr", chunks={{}})
patient["mri"].image.sel(modality="T2w")
patient["mri/clinical"].mask.sel(structure="Rectum")  # KeyError if the patient lacks it
```
"""


def _first_part(manifest: Manifest) -> str:
    return next((part for part, n in manifest.patients.items() if n), "base")


def dataset_catalog(manifest: Manifest, patient_id: str) -> str:
    """Return the Intake catalog (YAML) of a dataset, with paths relative to the catalog.

    `patient_id` is the default patient. Parameters belong to the catalog,
    `catalog(patient_id=…, group=…).patient`: intake-xarray 2.0 silently ignores parameters of
    entries and would open the default patient. Only `catalog(where=…).cohort` needs this package.
    Its `read` returns the patients' rows; its `to_cohort` returns the `Cohort`.
    """
    root = "{{ CATALOG_DIR }}"
    lines = [
        "metadata:",
        "  version: 1",
        f"  title: {json.dumps(manifest.name)}",
        f"  access: {json.dumps(manifest.access)}",
        "  parameters:",
        "    patient_id:",
        "      description: patient identifier, see the patients table",
        "      type: str",
        f"      default: {patient_id}",
        "    group:",
        f"      description: one of {', '.join(GROUP_TITLES)}",
        "      type: str",
        "      default: mri",
        "    where:",
        "      description: which patients are in the cohort, an SQL predicate",
        "      type: str",
        '      default: "true"',
        "sources:",
    ]
    for name, parts in manifest.tables.items():
        if not parts:
            continue
        lines += [
            f"  {name}:",
            f"    description: {json.dumps('A row is ' + TABLES[name].row + '.')}",
            "    driver: parquet",
            "    args:",
            "      urlpath:",
            *(f'      - "{root}/{f}"' for files in parts.values() for f in files),
        ]
    lines += [
        "  patient:",
        "    description: One group of one patient's store, as an xarray Dataset.",
        "    driver: zarr",
        "    args:",
        f'      urlpath: "{root}/patients/{{{{ patient_id }}}}.zarr"',
        '      group: "{{ group }}"',
        "      consolidated: true",
        "  cohort:",
        "    description: The patients for whom `where` holds; needs lundprobe-zarr installed.",
        f"    driver: {COHORT_DRIVER}",
        "    args:",
        f'      urlpath: "{root}"',
        '      where: "{{ where }}"',
    ]
    return "\n".join(lines) + "\n"
