"""Rows of `patches`: those of a `Plan`, each with references to its box."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lundprobe_zarr.cohort import Cohort
from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.huggingface.locations import key_of, reader_of
from lundprobe_zarr.huggingface.read_ahead import FailedRow, prepared
from lundprobe_zarr.huggingface.rows import RawRow, RowSource, Wanted
from lundprobe_zarr.patches import Content, Draw, Plan, lattice_of

#: Of everything, shards are at least so many, where there are so many patches: enough to share.
_SHARDS = 64
#: Patients that are opened before it is their turn, by as many threads.
_OPENED_AHEAD = 4

#: First and last position, exclusive, in the order of an epoch.
Run = tuple[int, int]


class PatchSource:
    """The patches of a cohort in the order of a plan; `options` are those of `Plan`.

    `structures`, where they are asked for, must be somebody's. Raises as `Plan` does.
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
        """All positions of an epoch in runs: of whole windows, or shorter where they are few."""
        order, total = self._plan.order, len(self._plan)
        length = max(1, min(order.block * order.window, total // _SHARDS))
        return [(first, min(first + length, total)) for first in range(0, total, length)]

    def rows(
        self, runs: Sequence[Run], epoch: int, skip: int, ahead: int, keep_failed: bool
    ) -> Iterator[RawRow | FailedRow]:
        """Rows of an epoch at the positions of `runs`, the first `skip` left out.

        With `keep_failed`, a row whose patient's store is damaged is one; else it raises.
        """
        positions = [p for first, last in runs for p in range(first, last)][skip:]
        draws = (self._plan.draw(epoch, p) for p in positions)
        opened = prepared(draws, self._open, min(_OPENED_AHEAD, ahead))
        for draw in opened:
            try:
                row: RawRow | FailedRow = self._row(draw)
            except DamagedStoreError as error:
                if not keep_failed:
                    raise
                row = {"patient_id": draw.patient_id}, error
            yield row

    def _open(self, draw: Draw) -> Any:
        return reader_of(self._key, draw.patient_id)

    def _row(self, draw: Draw) -> RawRow:
        plan, content = self._plan, self._plan.content
        reader = self._open(draw)
        start, size = plan.start(reader, draw), plan.size(draw.patient_id)
        lattice = lattice_of(reader.metadata, content)
        place = lattice.stepped(np.array(start, np.float64), np.ones(3), size)
        values = self._rows.about(draw.patient_id) | {
            "start": list(start),
            "affine": place.affine.tolist(),
            "spacing_mm": place.spacing_mm.tolist(),
        }
        z, y, x = (a + n for a, n in zip(start, size, strict=True))
        how: dict[str, Any] = {"spacing_mm": content.spacing_mm, "pad": plan.pad}
        return values, self._rows.in_box(draw.patient_id, start, (z, y, x), **how)


#: What `Plan` may be told beside its cohort and content.
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
