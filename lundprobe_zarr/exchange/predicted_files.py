"""Predicted masks as NIfTI files, beside a patient's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zlib_ng import gzip_ng

from lundprobe_zarr.dataset.predictions import StoredPredictions
from lundprobe_zarr.errors import UnknownLabelError
from lundprobe_zarr.geometry.nifti_image import nifti_image
from lundprobe_zarr.storage.local import named
from lundprobe_zarr.stores.metadata import StoreMetadata
from lundprobe_zarr.stores.prediction import StoredPrediction
from lundprobe_zarr.stores.reader import StoreReader

#: The level of ITK. The files of zlib-ng are about as small, in a fraction of the time.
COMPRESSION_LEVEL = 6
#: The source's folder of files on each grid.
_FOLDERS = {"mri": "MR_StorT2", "sct": "sCT"}


@dataclass(frozen=True)
class PredictedFiles:
    """A patient's predictions, to be written as files.

    They go to `<part>/<patient>/MR_StorT2/predictions/<name>/mask_<Structure>.nii.gz`, or below
    `sCT` if on that grid: uint8 of 0 and 1, with the affine of the grid.
    """

    home: str
    found: Sequence[tuple[StoreReader, StoredPrediction]]

    @classmethod
    def of(cls, predictions: StoredPredictions | None, store: StoreMetadata) -> PredictedFiles:
        """Find those of a patient; none without `predictions`.

        Raises `UnknownLabelError` if there are none, `DatasetError` for one of other contents.
        """
        home = f"{store.attributes['part']}Part/{store.patient_id}"
        if predictions is None:
            return cls(home, ())
        there = [n for n in predictions.names if store.patient_id in predictions.patients(n)]
        if not there:
            raise UnknownLabelError(
                f"no prediction of patient {store.patient_id} in {predictions.place.url}",
                remedy="leave --predictions out",
            )
        return cls(home, [predictions.reader(name, store) for name in there])

    def write(self, out: Path, on_file: Callable[[str], None]) -> tuple[str, ...]:
        """Write all masks below `out`; return the files. Raises `OSError`."""
        written: list[str] = []
        for reader, prediction in self.found:
            about = prediction.about
            [array] = prediction.metadata.arrays.values()
            for record in array.sources:
                name = f"{about.prediction}/mask_{record.labels['structure']}.nii.gz"
                path = f"{self.home}/{_FOLDERS[about.grid]}/predictions/{name}"
                image = nifti_image(reader.volume(array, record), prediction.grid.affine)
                origin = "SYNTHETIC prediction" if about.synthetic else "prediction"
                image.header["descrip"] = f"{origin} {about.prediction}"[:79].encode()
                with named(out.parent / path):
                    (out / path).parent.mkdir(parents=True, exist_ok=True)
                    # mtime 0 makes the file reproducible
                    with (
                        (out / path).open("wb") as raw,
                        gzip_ng.GzipNGFile("", "wb", COMPRESSION_LEVEL, raw, mtime=0) as file,
                    ):
                        file.write(image.to_bytes())
                written.append(path)
                on_file(path)
        return tuple(written)
