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
    """Load a converted dataset as a Hugging Face dataset.

    `datasets.load_dataset("lundprobe", config, data_files="<place>/lundprobe.json", …)` does the
    same. A new epoch set by `set_epoch` changes the patches of a stream, also after `take` and
    `skip`; `repeat` repeats the same patches.

    Parameters
    ----------
    place
        Path or URL of the dataset.
    config
        `patients` or `structures`: rows of that table. `volumes`: one row per patient. `slices`:
        one row per axial slice of the MRI grid. `patches`: one row per box of voxels.
    split
        `base`, `extended`, `base+extended`, a list of these, or None for all parts.
    streaming
        Return iterable datasets.
    storage_options
        Options of fsspec for the URL.
    cache_dir, num_proc, keep_in_memory, download_mode
        As in `datasets.load_dataset`, for datasets that are not streamed.
    **options
        `where` (as in `Cohort.where`), `filters` of rows (as in `pyarrow.parquet`), `columns`,
        `grid`, `modalities`, `structures`, `on_error` (`raise`, or `skip` rows of damaged stores
        with a warning), `read_ahead` (rows of a stream), and the options of `patches`.

    Returns
    -------
    datasets.Dataset or datasets.IterableDataset
        One split; a list for a list of splits, a dict of parts for None. Parts without rows are
        empty.

    Raises
    ------
    UsageError, UnknownLabelError, QueryError
        For invalid arguments.
    MissingPackageError
        If `datasets` is missing or too old.
    DatasetError
        If the dataset cannot be opened, as `open_cohort` does.
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
    """Return a cohort as a stream of rows, in its order.

    Patients are the shards, which workers and nodes share.

    Parameters
    ----------
    cohort
        The patients.
    config, **options
        As in `load_dataset`.

    Returns
    -------
    datasets.IterableDataset
        The stream.

    Raises
    ------
    UsageError, UnknownLabelError, MissingPackageError
        As `load_dataset` does.
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
    """Return the manifest's SHA-256, so that cached rows of an earlier dataset are not used."""
    location = Location(_absolute(os.fspath(place)), storage_options)
    return hashlib.sha256(open_manifest(location).dump().encode()).hexdigest()


def _absolute(place: str) -> str:
    """Return an absolute path, or a URL unchanged; for a manifest, its folder."""
    path = path_of(place)
    whole = place if path is None else str(absolute(path))
    return whole.removesuffix(f"/{MANIFEST_NAME}")


def require_datasets() -> None:
    """Raise `MissingPackageError` if `datasets` is missing or too old."""
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
