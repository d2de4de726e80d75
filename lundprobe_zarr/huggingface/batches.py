"""Handles in torch's default batches: refused, with what to do, instead of taken for mappings.

torch would make a batch of the references' texts. This module is imported with the package, so
that it can be put in place when torch is, and imports nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from lundprobe_zarr.errors import UsageError

NO_BATCH = (
    "a handle to voxels is no mapping to make batches of; expected arrays: "
    '`dataset.with_format("torch")` has the voxels read by whoever makes the batch; or give the '
    "DataLoader a `collate_fn` of your own that reads them, e.g. with `torch.as_tensor(handle)`"
)


class Handle:
    """Base of the handles in rows, for torch to know them by."""


def refuse(batch: Sequence[Any], **_: Any) -> NoReturn:
    """What torch's default collate does with handles: raises `UsageError`."""
    raise UsageError(f"{batch[0]!r}: {NO_BATCH}")
