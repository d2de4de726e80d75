"""Rows of `patches`: the items of a `Plan` with references to their boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.huggingface.locations import key_of, reader_of
from lundprobe_zarr.huggingface.read_ahead import FailedRow, prepared
from lundprobe_zarr.huggingface.rows import RawRow, RowSource, Wanted
from lundprobe_zarr.patches import Content, Item, Plan, lattice_of

#: Smallest number of shards, if there are enough patches, so that workers can share them.
_SHARDS = 64
#: Patients opened ahead, by as many threads.
_OPENED_AHEAD = 4

#: First and last position, exclusive, in the order of an epoch.
Run = tuple[int, int]


class PatchSource:
    """The patches of a cohort in the order of a plan; `options` are those of `Plan`.

    At least one patient must have each of `structures`. Raises as `Plan` does.
    """

    def __init__(
        self,
        rows: RowSource,
        cohort: Cohort,
        wanted: Wanted,
        structures: Sequence[str] | None,
        spacing_mm: float | Sequence[float] | None,
        options: Mapping[str, Any],
    ) -> None:
        self._rows = rows
        content = Content(
            grid=wanted.grid,
            modalities=wanted.modalities,
            structures=tuple(structures or ()),
            dose=True,
            spacing_mm=spacing_mm,
        )
        self._plan = Plan(cohort, content, **options)
        self._key = key_of(cohort.location)

    def runs(self) -> list[Run]:
        """Return all positions of an epoch in runs of whole windows, or shorter if few."""
        order, total = self._plan.order, len(self._plan)
        length = max(1, min(order.block * order.window, total // _SHARDS))
        return [(first, min(first + length, total)) for first in range(0, total, length)]

    def rows(
        self, runs: Sequence[Run], epoch: int, skip: int, ahead: int, keep_failed: bool
    ) -> Iterator[RawRow | FailedRow]:
        """Yield rows of an epoch at the positions of `runs`, after the first `skip`.

        With `keep_failed`, yield a row of a damaged store with its error; otherwise raise.
        """
        positions = [p for first, last in runs for p in range(first, last)][skip:]
        items = (self._plan.item(epoch, p) for p in positions)
        opened = prepared(items, self._open, min(_OPENED_AHEAD, ahead))
        for item in opened:
            try:
                row: RawRow | FailedRow = self._row(item)
            except DamagedStoreError as error:
                if not keep_failed:
                    raise
                row = {"patient_id": item.patient_id}, error
            yield row

    def _open(self, item: Item) -> Any:
        return reader_of(self._key, item.patient_id)

    def _row(self, item: Item) -> RawRow:
        plan, content = self._plan, self._plan.content
        reader = self._open(item)
        start, size = plan.start(reader.metadata, item), plan.size(item.patient_id)
        lattice = lattice_of(reader.metadata, content)
        place = lattice.stepped(np.array(start, np.float64), np.ones(3), size)
        values = self._rows.about(item.patient_id) | {
            "start": list(start),
            "affine": place.affine.tolist(),
            "spacing_mm": place.spacing_mm.tolist(),
        }
        z, y, x = (a + n for a, n in zip(start, size, strict=True))
        how: dict[str, Any] = {"spacing_mm": content.spacing_mm, "pad": plan.pad}
        return values, self._rows.in_box(item.patient_id, start, (z, y, x), **how)


#: Options of `Plan` beside cohort and content.
PLAN_OPTIONS: tuple[str, ...] = (
    "patch_size",
    "patch_size_mm",
    "sampling",
    "pad",
    "complete",
    "seed",
    "shuffle",
    "block",
    "window",
)
