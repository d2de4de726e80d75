"""The builder behind `datasets.load_dataset("lundprobe", …)`, which imports it by its name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import datasets
import pyarrow as pa

from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.cohort.core import open_cohort_at
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.schema.manifest import CITATION, DOI, MANIFEST_NAME
from lundprobe_zarr.store.failures import public_options
from lundprobe_zarr.store.location import Location
from lundprobe_zarr.views.huggingface.examples import TypedExamples
from lundprobe_zarr.views.huggingface.feature import Voxels
from lundprobe_zarr.views.huggingface.options import (
    CONFIGS,
    modalities_of,
    require_grid,
    require_on_error,
    schema_of,
    structures_of,
)
from lundprobe_zarr.views.huggingface.reading import REFERENCE
from lundprobe_zarr.views.huggingface.rows import RowSource, Wanted
from lundprobe_zarr.views.huggingface.sources import remember
from lundprobe_zarr.views.huggingface.stream import readable, with_handles
from lundprobe_zarr.vocabulary.names import PARTS

#: Name of the split that a cohort is.
COHORT_SPLIT = "cohort"


@dataclass
class LundProbeConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """What may be asked for; `docs/huggingface.md` explains each.

    `place` says where the dataset is where no `data_files` do; `endpoint` tells two datasets of
    one URL apart in the cache, and is filled in.
    """

    place: str | None = None
    endpoint: str | None = None
    where: str | None = None
    filters: Any = None
    columns: list[str] | None = None
    grid: str = "mri"
    modalities: list[str] | None = None
    structures: list[str] | None = None
    on_error: str = "raise"
    read_ahead: int = 8


class LundProbe(datasets.GeneratorBasedBuilder):  # type: ignore[misc]
    """Rows of a converted dataset; its voxels stay where they are until a handle is asked."""

    BUILDER_CONFIG_CLASS = LundProbeConfig
    BUILDER_CONFIGS = [LundProbeConfig(name=name) for name in CONFIGS]  # noqa: RUF012
    DEFAULT_CONFIG_NAME = "patients"

    def __init__(
        self, *args: Any, storage_options: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        given = dict(storage_options or {})
        if where := public_options(given):
            options["endpoint"] = json.dumps(where, sort_keys=True)
        self.cohort: Cohort | None = None
        # datasets writes into what it is given
        super().__init__(*args, storage_options=dict(given), **options)
        self.location = Location(self.config.place or _place_of(self.config.data_files), given)
        remember(self.location)

    def _info(self) -> datasets.DatasetInfo:
        config = self.config
        require_grid(config.name, config.grid)
        require_on_error(config.on_error)
        schema = schema_of(config.name, config.grid, config.columns)
        return datasets.DatasetInfo(
            features=_features(schema), citation=CITATION, homepage=f"https://doi.org/{DOI}"
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        streaming = isinstance(dl_manager, datasets.StreamingDownloadManager)
        if self.config.on_error != "raise" and not streaming:
            raise UsageError(
                f"on_error={self.config.on_error!r} without streaming=True; expected both: rows of "
                "a dataset in memory are references, whose voxels nobody has read yet"
            )
        chosen = self._cohort()
        if self.cohort is not None:
            return [self._split(COHORT_SPLIT, chosen.ids)]
        self.info.license = chosen.manifest.access
        part_of = dict(zip(chosen.patients.patient_id, chosen.patients.part, strict=True))
        parts = [p for p in PARTS if chosen.manifest.patients.get(p)]
        return [self._split(p, [i for i in chosen.ids if part_of[i] == p]) for p in parts]

    def _split(self, name: str, ids: list[str]) -> datasets.SplitGenerator:
        return datasets.SplitGenerator(name=name, gen_kwargs={"patients": ids})

    def _cohort(self) -> Cohort:
        """Who is streamed; what their rows come from is made ready."""
        config = self.config
        cohort = self.cohort or open_cohort_at(self.location)
        if config.where is not None:
            cohort = cohort.where(config.where)
        structures = structures_of(config.structures)
        wanted = Wanted(config.grid, modalities_of(config.grid, config.modalities), structures)
        self._rows = RowSource(cohort, config.name, wanted, config.filters, self._names)
        return cohort

    @property
    def _names(self) -> list[str]:
        names: list[str] = self.info.features.arrow_schema.names
        return names

    def _generate_examples(self, patients: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        config, names = self.config, self._names
        rows = chain.from_iterable(self._rows.of_patient(i) for i in patients)
        streamed = with_handles(rows, config.read_ahead)
        chosen = readable(streamed) if config.on_error == "skip" else streamed
        for number, (values, _) in enumerate(chosen):
            yield f"{values['patient_id']}/{number}", {name: values.get(name) for name in names}

    def _get_examples_iterable_for_split(self, split: datasets.SplitGenerator) -> TypedExamples:
        return TypedExamples(self._generate_examples, split.gen_kwargs, self.info.features)


def _features(schema: pa.Schema) -> datasets.Features:
    """Features of columns, in order; references become handles."""
    features = datasets.Features.from_arrow_schema(schema)
    handles = {field.name: Voxels() for field in schema if field.type == REFERENCE}
    return datasets.Features({name: handles.get(name, f) for name, f in features.items()})


def _place_of(data_files: Mapping[Any, list[str]] | None) -> str:
    """Where the dataset is whose manifest is the only one of `data_files`.

    Raises `UsageError` for any other files.
    """
    files = [str(f) for files in (data_files or {}).values() for f in files]
    path, mark, query = files[0].partition("?") if len(files) == 1 else ("", "", "")
    if not path.endswith(f"/{MANIFEST_NAME}"):
        raise UsageError(
            f"data_files={files}; expected the manifest of one converted dataset, e.g. "
            f'data_files="s3://bucket/lund-probe/{MANIFEST_NAME}"'
        )
    return path.removesuffix(f"/{MANIFEST_NAME}") + mark + query
