"""One patient as a case of nnU-Net: an image per channel and a label map, a few slices at a time.

Images keep every voxel of the dataset, in the type of the source file where the dataset holds its
values exactly. All files of a case have the header of the first channel's source file, so that
their geometry is equal to the last bit, as nnU-Net's reader demands.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from zlib_ng import gzip_ng

from lundprobe_zarr.dataset.label_masks import Tally, read_patterns, slabs
from lundprobe_zarr.exchange.nnunet_settings import FILE_ENDING, Settings
from lundprobe_zarr.measures.label_map import count_patterns
from lundprobe_zarr.schema.header import NO_EXTENSIONS, parse_header, without_text
from lundprobe_zarr.schema.records import SourceRecord
from lundprobe_zarr.storage.local import appearing, named
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.stores.reader import StoreReader

Volume = npt.NDArray[Any]


class StoppedError(Exception):
    """The export was asked to stop."""


@dataclass(frozen=True)
class Examined:
    """What the metadata of a patient's store, and with regions its masks, say before writing.

    Attributes
    ----------
    patient_id : str
        The patient.
    store_sha256 : str
        SHA-256 of the store's metadata, which holds those of all its shards.
    absent : tuple of str
        Labelled structures that the patient lacks.
    reason : str or None
        Why the patient is left out.
    patterns : frozenset of int
        With regions, the combinations of structures that occur.
    """

    patient_id: str
    store_sha256: str
    absent: tuple[str, ...]
    reason: str | None
    patterns: frozenset[int] = frozenset()


def examine(reader: StoreReader, settings: Settings) -> Examined:
    """Look at a patient before anything is written. Raises `DamagedStoreError`."""
    store = reader.metadata
    there = settings.source.present(store)
    absent = tuple(s for s in settings.scheme.structures if s not in there)
    reason = _reason(store, settings, absent)
    patterns: frozenset[int] = frozenset()
    if settings.regions and reason is None:
        counts = sum(_counts(reader, settings), start=np.zeros(1, np.int64))
        patterns = frozenset(np.flatnonzero(counts).tolist()) - {0}
    return Examined(store.patient_id, store.sha256, absent, reason, patterns)


def _reason(store: StoreMetadata, settings: Settings, absent: Sequence[str]) -> str | None:
    array = store.arrays.get(settings.image_path)
    there = [r.labels["modality"] for r in (array.sources if array else ())]
    lacking = [c.modality for c in settings.channels if c.modality not in there]
    if lacking:
        return f"lacks {', '.join(lacking)} on the {settings.source.grid} grid"
    if not absent:
        return None
    if settings.missing == "skip" or len(absent) == len(settings.scheme.structures):
        return f"lacks {', '.join(absent)}"
    if hopeless := settings.with_patterns(set()).scheme.hopeless(absent):
        return f"lacks {', '.join(hopeless)}, which could be anywhere"
    return None


def _counts(reader: StoreReader, settings: Settings) -> Iterator[npt.NDArray[np.int64]]:
    structures = settings.scheme.structures
    for box in slabs(reader, settings.source.path):
        patterns = read_patterns(reader, settings.source, structures, box)
        yield count_patterns(patterns, len(structures))


@dataclass(frozen=True)
class Written:
    """What was written of a patient.

    Attributes
    ----------
    files : dict
        Path in the dataset's folder -> bytes and the last eight of them, as hexadecimal digits:
        CRC-32 and length of what was compressed.
    tally : Tally
        Voxels, overlaps and ignored voxels.
    not_finite : dict
        Modality -> voxels that are NaN or infinite, where there are any.
    """

    files: dict[str, tuple[int, str]]
    tally: Tally
    not_finite: dict[str, int]


def case_files(patient_id: str, subset: str, settings: Settings) -> tuple[list[str], str]:
    """Return the files of a case: the image of each channel, and the labels."""
    images = [
        f"images{subset}/{patient_id}_{number:04d}{FILE_ENDING}"
        for number in range(len(settings.channels))
    ]
    return images, f"labels{subset}/{patient_id}{FILE_ENDING}"


def write_case(
    reader: StoreReader,
    examined: Examined,
    subset: str,
    settings: Settings,
    folder: Path,
    stop: threading.Event,
) -> Written:
    """Write the files of a patient below `folder`, each when it is complete.

    Raises `DamagedStoreError` if the patient cannot be read, `UsageError` for a combination of
    structures without a label, `OSError` if a file cannot be written, `StoppedError` once `stop`
    is set.
    """
    case = _Case(reader, settings, folder, stop)
    images, labels = case_files(examined.patient_id, subset, settings)
    not_finite = {}
    for channel, file in zip(settings.channels, images, strict=True):
        if count := case.image(channel.modality, file):
            not_finite[channel.modality] = count
    tally = case.labels(examined.absent, labels)
    return Written({f: signature(folder / f) for f in (*images, labels)}, tally, not_finite)


def signature(file: Path) -> tuple[int, str]:
    """Return size and last eight bytes of a gzip file: CRC-32 and length of its contents."""
    with file.open("rb") as opened:
        size = opened.seek(0, 2)
        opened.seek(max(0, size - 8))
        return size, opened.read().hex()


class _Case:
    """Writes the files of one patient."""

    def __init__(
        self, reader: StoreReader, settings: Settings, folder: Path, stop: threading.Event
    ) -> None:
        self._reader = reader
        self._settings = settings
        self._folder = folder
        self._stop = stop
        self._records = {
            str(r.labels["modality"]): r for r in reader.array(settings.image_path).sources
        }
        self._header = base64.b64decode(self._records[settings.channels[0].modality].header)

    def image(self, modality: str, file: str) -> int:
        """Write a channel; return its voxels that are not finite."""
        array = self._reader.array(self._settings.image_path)
        dtype = image_type(self._records[modality], array.dtype)
        not_finite = 0
        with self._file(file, dtype) as write:
            for box in slabs(self._reader, self._settings.image_path):
                wanted = [(self._settings.image_path, {"modality": modality})]
                (values,) = self._reader.read(wanted, box)
                if dtype.kind == "f":
                    not_finite += int(values.size - np.count_nonzero(np.isfinite(values)))
                write(values.astype(dtype, copy=False))
        return not_finite

    def labels(self, absent: Sequence[str], file: str) -> Tally:
        """Write the label map."""
        scheme, source = self._settings.scheme, self._settings.source
        table = scheme.table(absent)
        counts = np.zeros(len(table), np.int64)
        with self._file(file, table.dtype) as write:
            for box in slabs(self._reader, source.path):
                patterns = read_patterns(self._reader, source, scheme.structures, box)
                counts += count_patterns(patterns, len(scheme.structures))
                scheme.require(counts)
                write(table[patterns])
        return Tally.of(scheme, counts, absent, scheme.ignore)

    def _file(
        self, file: str, dtype: np.dtype[Any]
    ) -> AbstractContextManager[Callable[[Volume], None]]:
        header = nifti_header(self._header, dtype)
        return _writing(self._folder / file, header, self._settings.level, self._stop)


@contextmanager
def _writing(
    path: Path, header: bytes, level: int, stop: threading.Event
) -> Iterator[Callable[[Volume], None]]:
    """Within, a function that adds voxels to a NIfTI file, which appears once it is complete."""
    with (
        named(path),
        appearing(path) as raw,
        # mtime 0 makes the file reproducible
        gzip_ng.GzipNGFile("", "wb", level, raw, mtime=0) as file,
    ):
        file.write(header)

        def write(values: Volume) -> None:
            if stop.is_set():
                raise StoppedError
            file.write(np.ascontiguousarray(values).data)

        yield write


def image_type(record: SourceRecord, stored: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of an image: that of its source file, if it holds the stored values.

    Whole numbers of a file without scaling are stored exactly, in a type that may be wider. Else
    the stored type.
    """
    source = np.dtype(record.dtype).newbyteorder("=")
    slope, inter = parse_header(base64.b64decode(record.header)).get_slope_inter()
    unscaled = (slope, inter) in ((None, None), (1.0, 0.0))
    return source if record.exact and unscaled and source.kind in "iu" else stored


def nifti_header(source: bytes, dtype: np.dtype[Any]) -> bytes:
    """Return the header of a volume of another type with the geometry of a source file's.

    All that places the voxels stays to the last bit; free text, extensions, scaling and display
    range go.
    """
    header: Any = parse_header(without_text(source)).as_byteswapped("<")
    x, y, z = (int(n) for n in header["dim"][1:4])
    header["dim"] = [3, x, y, z, 1, 1, 1, 1]
    header.set_data_dtype(dtype)
    for name in ("cal_min", "cal_max", "scl_inter", "intent_code"):
        header[name] = 0
    header["scl_slope"] = 1
    return bytes(header.binaryblock) + NO_EXTENSIONS
