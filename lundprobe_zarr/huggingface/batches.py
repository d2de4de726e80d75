"""Refusal of handles in torch's default collate function.

torch would treat handles as mappings and batch the text of references. This module is imported
with the package and registered when torch is imported, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from lundprobe_zarr.errors import UsageError

NO_BATCH = (
    "handles to voxels cannot be batched; expected arrays: use "
    '`dataset.with_format("torch")`, or give the DataLoader a `collate_fn` that reads them, e.g. '
    "with `torch.as_tensor(handle)`"
)


class Handle:
    """Base class of handles, by which torch recognises them."""


def refuse(batch: Sequence[Any], **_: Any) -> NoReturn:
    """Raise `UsageError` for handles in torch's default collate."""
    raise UsageError(f"{batch[0]!r}: {NO_BATCH}")
