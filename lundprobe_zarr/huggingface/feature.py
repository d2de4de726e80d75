"""The feature of a column of voxels: references in Arrow, handles in Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import pyarrow as pa

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.huggingface.handles import LazyVoxels, handle_of
from lundprobe_zarr.huggingface.locations import known, learn
from lundprobe_zarr.huggingface.names import FEATURE
from lundprobe_zarr.huggingface.references import FIELDS, REFERENCE, Reference


@dataclass
class Voxels:
    """Type of a column whose rows are `LazyVoxels`, and `REFERENCE` structs in Arrow.

    With `decode=False` rows are references. Pickles include the locations of this process with
    credentials, so that workers can read; files never include credentials.
    """

    decode: bool = True
    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "lundprobe_zarr.LazyVoxels"
    pa_type: ClassVar[Any] = REFERENCE
    _type: str = field(default=FEATURE, init=False, repr=False)

    def __call__(self) -> pa.DataType:
        """Return the Arrow type."""
        return self.pa_type

    def encode_example(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reference of a handle or record as a record; raise `UsageError`."""
        if not isinstance(value, Mapping) or any(name not in value for name in FIELDS):
            raise UsageError(
                f"{type(value).__name__} in a column of references to voxels",
                expected="a handle or a reference",
                remedy="store computed voxels in a column of another name",
            )
        return Reference.of(value).record()

    def decode_example(self, value: Mapping[str, Any], token_per_repo_id: Any = None) -> LazyVoxels:
        """Return the handle of a reference record, without reading.

        For a row of a stream this is the row's own handle, which keeps what was read ahead.
        """
        return value if isinstance(value, LazyVoxels) else handle_of(Reference.of(value))

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        """Return references as Arrow structs; nulls may have come without types."""
        return storage.cast(self.pa_type)

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"known": known()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        learn(state.pop("known"))
        self.__dict__.update(state)
