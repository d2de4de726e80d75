"""`load_dataset` of a converted dataset, and a cohort as a stream."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.dataset.opening import open_manifest
from lundprobe_zarr.errors import MissingPackageError
from lundprobe_zarr.huggingface.locations import remember
from lundprobe_zarr.huggingface.names import BUILDER
from lundprobe_zarr.huggingface.options import (
    require_config,
    require_one_process,
    require_options,
)
from lundprobe_zarr.schema.manifest import MANIFEST_NAME
from lundprobe_zarr.storage.local import absolute
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.urls import path_of

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

#: Oldest `datasets` that works; pyproject.toml says why.
OLDEST = (5, 0)


def load_dataset(
    place: str | os.PathLike[str],
    config: str = "patients",
    *,
    split: str | Sequence[str] | None = None,
    streaming: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    num_proc: int | None = None,
    keep_in_memory: bool | None = None,
    download_mode: str | None = None,
    **options: Any,
) -> Dataset | DatasetDict | IterableDataset | IterableDatasetDict | list[Any]:
    """The converted dataset at `place`, a path or URL, as Hugging Face `datasets` has it.

    `config` is `patients` or `structures`, the rows of those tables; `volumes`, a row a patient;
    `slices`, a row an axial slice of the MRI grid; or `patches`. Splits are the parts, `base` and
    `extended`, or `base+extended`: a `Dataset`, or an `IterableDataset` with `streaming`. A list of
    splits gives a list of these, None a dict of all parts; a part without rows is empty.
    `datasets.load_dataset("lundprobe", config, data_files="<place>/lundprobe.json", …)` does the
    same.

    Of a stream of patches `set_epoch` gives others, also behind `take` and `skip`; `repeat` gives
    the same ones again.

    `options` are `where` (as of `Cohort.where`), `filters` (as of `pyarrow.parquet`, of the rows),
    `columns`, and of voxels `grid`, `modalities`, `structures`, `on_error` (`raise`, or `skip`
    rows of damaged stores and warn of them), `read_ahead` (rows of a stream) and what `patches`
    takes. `num_proc` processes prepare what is not streamed; `keep_in_memory` and `download_mode`
    are those of `datasets` for it, and change nothing of a stream. Raises `UsageError`,
    `UnknownLabelError` or `QueryError` for what makes no sense, `MissingPackageError` without a
    `datasets` that is new enough, and as `open_cohort` does.
    """
    require_datasets()
    if streaming:
        require_one_process(num_proc)
        builder = _builder(place, config, storage_options, cache_dir, options)
        return builder.as_streaming_dataset(split=split)
    digest = _manifest_digest(place, storage_options)
    builder = _builder(place, config, storage_options, cache_dir, options, digest)
    builder.download_and_prepare(download_mode=download_mode, num_proc=num_proc)
    return builder.as_dataset(split=split, in_memory=bool(keep_in_memory))


def to_hf(cohort: Cohort, config: str = "patients", **options: Any) -> IterableDataset:
    """A cohort as a stream of rows, in its order; `config` and `options` as of `load_dataset`.

    Its patients are the shards, to be shared among workers and nodes. Raises as `load_dataset`.
    """
    builder = _builder(cohort.location.url, config, cohort.location.public_options, None, options)
    builder.cohort = cohort
    remember(cohort.location)  # with its credentials
    return builder.as_streaming_dataset(split="cohort")


def _builder(
    place: str | os.PathLike[str],
    config: str,
    storage_options: Mapping[str, Any] | None,
    cache_dir: str | os.PathLike[str] | None,
    options: Mapping[str, Any],
    manifest: str | None = None,
) -> Any:
    require_datasets()
    require_config(config)
    from lundprobe_zarr.huggingface.builder import OPTIONS, LundProbe

    require_options(options, OPTIONS)
    return LundProbe(
        cache_dir=None if cache_dir is None else os.fspath(cache_dir),
        dataset_name=BUILDER,
        config_name=config,
        storage_options=storage_options,
        place=_absolute(os.fspath(place)),
        manifest=manifest,
        **options,
    )


def _manifest_digest(
    place: str | os.PathLike[str], storage_options: Mapping[str, Any] | None
) -> str:
    """SHA-256 of the manifest: rows cached of what was there before must not be taken for these."""
    location = Location(_absolute(os.fspath(place)), storage_options)
    return hashlib.sha256(open_manifest(location).dump().encode()).hexdigest()


def _absolute(place: str) -> str:
    """A path that workers find from wherever they are; a URL as it is. A manifest's place is its
    folder."""
    path = path_of(place)
    whole = place if path is None else str(absolute(path))
    return whole.removesuffix(f"/{MANIFEST_NAME}")


def require_datasets() -> None:
    """Raises `MissingPackageError` unless a `datasets` that is new enough is installed."""
    wanted = ".".join(map(str, OLDEST))
    remedy = f"pip install 'datasets>={wanted}'"
    if importlib.util.find_spec("datasets") is None:
        raise MissingPackageError(
            "this needs Hugging Face datasets, which is not installed",
            remedy=f"install it: {remedy}",
        )
    found = version("datasets")
    if tuple(int(n) for n in found.split(".")[:2]) < OLDEST:
        raise MissingPackageError(
            f"datasets {found} is installed",
            expected=f"{wanted} or later",
            remedy=f"upgrade: {remedy}",
        )
