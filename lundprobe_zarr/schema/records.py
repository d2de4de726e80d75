"""Records of source files in a store: enough to write the NIfTI files back."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from lundprobe_zarr.vocabulary.files import Label

#: Attribute of an array that lists the records of its source files.
SOURCES = "sources"


class SourceRecord(BaseModel):
    """Record of one source file, in the array's attribute `sources`.

    Attributes:
        labels: the slice it fills, label dimension -> label.
        path: relative to the source root, `/`-separated.
        bytes, sha256: of the file as it is on disk.
        nifti_sha256: of its uncompressed bytes (None for text files).
        header: the NIfTI header, base64.
        extensions: everything between header and voxels, base64.
        trailer: bytes after the last voxel, base64; usually none.
        text: the contents of a text file, a byte order mark included.
        encoding: encoding of `text` in that file.
        stripped: whether free text was left out of the header, with extensions and trailer; then
            `header`, `extensions` and `nifti_sha256` are those of the file without.
        dtype: NumPy name of the file's voxel type, with byte order.
        exact: whether the stored values are the file's physical values bit for bit.
        max_abs_error: largest difference where they are not, in the array's units.
        restores: whether the file's uncompressed bytes can be rebuilt from the store.
        foreground: the file's non-zero value, for masks that have any.
        voxels: voxels of the foreground, for masks.
        range: smallest and largest finite stored value, for anything but masks.
        voxels_sha256: of the stored voxels, little-endian in C order, where `nifti_sha256` does not
            fix them: values that were rounded, or that a scaling in the header made.
        stored_bytes, stored_sha256: of the shard it fills; 0 and None if all its chunks are empty.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    labels: dict[str, Label]
    path: str
    bytes: int
    sha256: str
    nifti_sha256: str | None = None
    header: str = ""
    extensions: str = ""
    trailer: str = ""
    text: str | None = None
    encoding: Literal["utf-8", "utf-16-le", "utf-16-be"] = "utf-8"
    stripped: bool = False
    dtype: str = ""
    exact: bool = True
    max_abs_error: float = 0.0
    restores: bool = True
    foreground: int | float | None = None
    voxels: int | None = None
    range: tuple[float, float] | None = None
    voxels_sha256: str | None = None
    stored_bytes: int = 0
    stored_sha256: str | None = None

    def to_attribute(self) -> dict[str, Any]:
        """Return a JSON-ready form, without empty fields."""
        return self.model_dump(mode="json", exclude_defaults=True) | {
            "labels": self.labels,
            "exact": self.exact,
            "max_abs_error": self.max_abs_error,
        }
