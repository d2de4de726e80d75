"""The builder behind `datasets.load_dataset("lundprobe", …)`, which imports it by its name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, islice
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.arrow_reader import ArrowReader

from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.cohort.core import open_cohort_at
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.huggingface.examples import EPOCH, ArrowExamplesIterable, SeekableExamples
from lundprobe_zarr.huggingface.feature import Voxels
from lundprobe_zarr.huggingface.locations import remember
from lundprobe_zarr.huggingface.options import (
    CONFIGS,
    READ_AHEAD,
    TABLE_CONFIGS,
    modalities_of,
    require_grid,
    require_on_error,
    require_patches_alone,
    require_read_ahead,
    schema_of,
    structures_of,
)
from lundprobe_zarr.huggingface.patches import PLAN_OPTIONS, PatchSource
from lundprobe_zarr.huggingface.read_ahead import readable, with_handles
from lundprobe_zarr.huggingface.references import REFERENCE
from lundprobe_zarr.huggingface.registration import ensure_feature
from lundprobe_zarr.huggingface.rows import RowSource, Wanted
from lundprobe_zarr.patches import Sampling
from lundprobe_zarr.schema.manifest import CITATION, DOI, MANIFEST_NAME
from lundprobe_zarr.storage.failures import public_options, redacted
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.urls import path_of
from lundprobe_zarr.vocabulary.names import PARTS

#: Name of the split that a cohort is.
COHORT_SPLIT = "cohort"
#: Most wrong files to name in a message.
_NAMED = 3


@dataclass
class LundProbeConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """Options of a configuration; see `docs/huggingface.md`.

    `place` is the dataset's location without `data_files`. `endpoint` and `manifest` are set
    internally and distinguish datasets of one URL in the cache.
    """

    place: str | None = None
    endpoint: str | None = None
    manifest: str | None = None
    where: str | None = None
    filters: Any = None
    columns: list[str] | None = None
    grid: str = "mri"
    modalities: list[str] | None = None
    structures: list[str] | None = None
    on_error: str = "raise"
    read_ahead: int | None = None
    # For `patches` only:
    spacing_mm: float | Sequence[float] | None = None
    patch_size: Sequence[int] | None = None
    patch_size_mm: float | Sequence[float] | None = None
    sampling: str | Sampling | None = None
    pad: str | None = None
    complete: bool | None = None
    seed: int | None = None
    shuffle: bool | None = None
    block: int | None = None
    window: int | None = None

    def plan_options(self) -> dict[str, Any]:
        """Return the given options of `Plan`."""
        given = {name: getattr(self, name) for name in PLAN_OPTIONS}
        return {name: value for name, value in given.items() if value is not None}


#: Options of `lundprobe_zarr.load_dataset` beside its named parameters.
OPTIONS = tuple(
    field.name
    for field in fields(LundProbeConfig)
    if field.name in LundProbeConfig.__annotations__
    and field.name not in ("place", "endpoint", "manifest")
)


class LundProbe(datasets.GeneratorBasedBuilder):  # type: ignore[misc]
    """Rows of a converted dataset; voxels are read through handles."""

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
        self._together = ""
        ensure_feature()
        # a copy, because datasets modifies it
        super().__init__(*args, storage_options=dict(given), **options)
        self.location = Location(self.config.place or _place_of(self.config.data_files), given)
        remember(self.location)

    def _info(self) -> datasets.DatasetInfo:
        config = self.config
        require_grid(config.name, config.grid)
        require_on_error(config.on_error)
        require_read_ahead(config.read_ahead)
        require_patches_alone(config.name, config.plan_options(), config.spacing_mm)
        schema = schema_of(config.name, config.grid, config.columns)
        return datasets.DatasetInfo(
            features=_features(schema), citation=CITATION, homepage=f"https://doi.org/{DOI}"
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        streaming = isinstance(dl_manager, datasets.StreamingDownloadManager)
        if self.config.on_error != "raise" and not streaming:
            raise UsageError(
                f"on_error={self.config.on_error!r} without streaming=True",
                expected=(
                    "streaming=True: rows of a dataset in memory are references "
                    "whose voxels are not read yet"
                ),
            )
        cohort = self.cohort or open_cohort_at(self.location)
        self.info.license = cohort.manifest.access
        if self.config.where is not None:
            cohort = cohort.where(self.config.where)
        self._used: set[str] = set()
        self._rows = self._row_source(cohort)
        if self.cohort is not None:
            return [self._split(COHORT_SPLIT, cohort)]
        part_of = cohort.patients.part.to_numpy()
        ids = np.array(cohort.ids, object)
        of_part = {
            p: self._split(p, cohort[ids[part_of == p].tolist()])
            for p in PARTS
            if cohort.manifest.patients.get(p)
        }
        if self._together and set(self._together.split("+")) <= set(of_part):
            inside = np.isin(part_of, self._together.split("+"))
            return [*of_part.values(), self._split(self._together, cohort[ids[inside].tolist()])]
        return list(of_part.values())

    def as_streaming_dataset(self, split: Any = None, base_path: str | None = None) -> Any:
        """Return a stream of a split, a list for a list of splits, a dict of all splits for None.

        Patches of several parts share one order; datasets would concatenate the parts and ignore
        the epoch.
        """
        if isinstance(split, list | tuple):
            return [self.as_streaming_dataset(one, base_path) for one in split]
        text = "+".join(PARTS) if str(split) == "all" else "".join(str(split).split())
        self._together = text if self.config.name == "patches" and "+" in text else ""
        return super().as_streaming_dataset(split=self._together or split, base_path=base_path)

    def _as_dataset(self, split: Any = datasets.Split.TRAIN, in_memory: bool = False) -> Any:
        """Return a split in memory; without rows, an empty dataset, where datasets would raise."""
        reader = ArrowReader(self.cache_dir, self.info)
        infos = self.info.splits.values()
        if reader.get_file_instructions(self.dataset_name, split, infos):
            return super()._as_dataset(split, in_memory)
        nothing = self.info.features.arrow_schema.empty_table()
        return datasets.Dataset(nothing, info=self.info.copy(), split=split)

    def _wanted(self) -> Wanted:
        config = self.config
        return Wanted(
            config.grid,
            modalities_of(config.grid, config.modalities),
            structures_of(config.structures) if config.grid != "dose" else (),
        )

    def _row_source(self, cohort: Cohort) -> RowSource:
        config = self.config
        return RowSource(cohort, config.name, self._wanted(), config.filters, self._names)

    def _split(self, name: str, cohort: Cohort) -> datasets.SplitGenerator:
        """Return a split whose shards are patients, or runs of patches."""
        if self.config.name != "patches":
            return datasets.SplitGenerator(name=name, gen_kwargs={"patients": cohort.ids})
        chosen = self._row_source(cohort).chosen
        source = self._patch_source(chosen) if len(chosen) else None
        runs = [] if source is None else source.runs()
        kwargs = {"patients": runs, EPOCH: 0, "source": source}
        return datasets.SplitGenerator(name=name, gen_kwargs=kwargs)

    def _patch_source(self, cohort: Cohort) -> PatchSource:
        config = self.config
        options = config.plan_options()
        asked = config.structures
        return PatchSource(self._rows, cohort, self._wanted(), asked, config.spacing_mm, options)

    @property
    def _names(self) -> list[str]:
        names: list[str] = self.info.features.arrow_schema.names
        return names

    @property
    def _ahead(self) -> int:
        """Rows to read ahead; 0 for whole volumes by default."""
        given = self.config.read_ahead
        return READ_AHEAD.get(self.config.name, 0) if given is None else int(given)

    def _generate_examples(
        self,
        patients: list[Any],
        skip: int = 0,
        epoch: int = 0,
        source: PatchSource | None = None,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield numbered rows of patients, or of runs of patches, after the first `skip`."""
        config, names, ahead = self.config, self._names, self._ahead
        skips = config.on_error == "skip"
        rows: Iterator[Any]
        if source is None:
            rows = islice(chain.from_iterable(map(self._rows.of_patient, patients)), skip, None)
        else:
            rows = source.rows(patients, epoch, skip, ahead, skips)
        handled = with_handles(rows, skip, ahead, self._used)
        for number, values, _ in readable(handled) if skips else handled:
            yield number, {name: values.get(name) for name in names}

    def _generate_tables(self, patients: list[str]) -> Iterator[tuple[int, pa.Table]]:
        """Yield the rows of patients as Arrow tables, for table configurations."""
        schema = self.info.features.arrow_schema
        for number, patient_id in enumerate(patients):
            yield number, self._rows.table(patient_id).select(schema.names).cast(schema)

    def _get_examples_iterable_for_split(
        self, split: datasets.SplitGenerator
    ) -> SeekableExamples | ArrowExamplesIterable:
        if self.config.name in TABLE_CONFIGS:
            return ArrowExamplesIterable(self._generate_tables, split.gen_kwargs)
        return SeekableExamples(self._generate_examples, split.gen_kwargs, self.info.features)


def _features(schema: pa.Schema) -> datasets.Features:
    """Return features of columns, in order; references become handles."""
    features = datasets.Features.from_arrow_schema(schema)
    handles = {field.name: Voxels() for field in schema if field.type == REFERENCE}
    return datasets.Features({name: handles.get(name, f) for name, f in features.items()})


def _place_of(data_files: Mapping[Any, list[str]] | None) -> str:
    """Return the location of the dataset whose manifest is the only data file.

    Raise `UsageError` for any other files.
    """
    files = [str(f) for files in (data_files or {}).values() for f in files]
    file = files[0] if len(files) == 1 else ""
    local = path_of(file)  # of which a ? is part of the name
    path, mark, query = file.partition("?") if local is None else (local, "", "")
    if not path.endswith(f"/{MANIFEST_NAME}"):
        named = redacted(", ".join(files[:_NAMED])) + (" …" if len(files) > _NAMED else "")
        raise UsageError(
            f"{len(files)} data files: {named or 'none'}",
            expected=(
                "the manifest of one converted dataset, e.g. "
                f'data_files="s3://bucket/lund-probe/{MANIFEST_NAME}"'
            ),
            remedy="pass data_files: data_dir finds other files too",
        )
    return path.removesuffix(f"/{MANIFEST_NAME}") + mark + query
