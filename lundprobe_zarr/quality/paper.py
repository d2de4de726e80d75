"""The numbers that the authors published, beside those of a copy; `paper.json` has them.

Source: the data descriptor (Rogowski et al., Sci Data 12, 611 (2025),
doi:10.1038/s41597-025-04954-5) and the dataset's page (doi:10.23698/aida/lund-probe).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from lundprobe_zarr.errors import QueryError
from lundprobe_zarr.quality.check import lacking_table, why_not
from lundprobe_zarr.quality.rules import Sql
from lundprobe_zarr.schema.document import parse_json
from lundprobe_zarr.schema.tables import Column, Table

if TYPE_CHECKING:
    import pandas as pd

    from lundprobe_zarr.cohort import Cohort

SAME, DIFFERS, NOT_EVALUATED = "same", "differs", "not evaluated"

#: The table of published numbers.
PAPER = Table(
    "paper",
    "one published number",
    (
        Column("number", pa.string(), "id of the number"),
        Column("what", pa.string(), "what was counted or measured"),
        Column("published", pa.string(), "what the authors say"),
        Column("here", pa.string(), "what this copy has", nullable=True),
        Column("verdict", pa.string(), "same, differs or not evaluated"),
        Column("detail", pa.string(), "more about this copy", nullable=True),
        Column("why", pa.string(), "why they may differ; null if they do not", nullable=True),
        Column("sql", pa.string(), "how it was asked"),
    ),
)


class Number(BaseModel):
    """One published number: what it is, how to ask a copy for it, why the copy may differ.

    `sql` selects one row with a `value` and perhaps a `detail`, a text. No row means that the
    dataset does not say. Values may differ from `published` by `tolerance`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    what: str
    published: int | float | str
    tolerance: float = 0.0
    sql: Sql
    why: str


@cache
def published_numbers() -> tuple[Number, ...]:
    """Return the published numbers, in their order."""
    text = files(__package__).joinpath("paper.json").read_text(encoding="utf-8")
    return tuple(Number.model_validate(entry) for entry in parse_json(text)["numbers"])


def check_against_paper(cohort: Cohort) -> pd.DataFrame:
    """Compare each number that the authors published with this copy's.

    Parameters
    ----------
    cohort : Cohort
        The copy: usually all patients of a dataset.

    Returns
    -------
    DataFrame
        A row a number: `number, what, published, here, verdict, detail, why, sql`. The verdict is
        `same`, `differs` or `not evaluated`; `why` is why they may differ.

    Raises
    ------
    DatasetError
        If a table of the dataset is damaged.
    """
    frame: pd.DataFrame = compared(cohort).to_pandas()
    return frame


def compared(cohort: Cohort) -> pa.Table:
    """Return `check_against_paper` as an Arrow table."""
    return PAPER.from_rows(_rows(cohort))


def _rows(cohort: Cohort) -> Iterator[dict[str, Any]]:
    for number in published_numbers():
        here, detail, verdict, why = _compared(cohort, number)
        yield {
            "number": number.id,
            "what": number.what,
            "published": shown(number.published),
            "here": None if here is None else shown(here),
            "verdict": verdict,
            "detail": detail,
            "why": why,
            "sql": number.sql,
        }


def _compared(cohort: Cohort, number: Number) -> tuple[Any, str | None, str, str | None]:
    """Return this copy's value, a detail, the verdict, and why it may differ."""
    try:
        lacking = lacking_table(cohort, number.sql)
        if lacking is not None:
            return None, None, NOT_EVALUATED, lacking
        rows = cohort.sql_table(number.sql).to_pylist()
    except QueryError as error:  # such as a column of a later schema, which says how to get it
        return None, None, NOT_EVALUATED, why_not(error, number.sql)
    if not rows or rows[0]["value"] is None:
        return None, None, NOT_EVALUATED, "this copy has nothing to compare"
    value, detail = rows[0]["value"], rows[0].get("detail")
    if is_same(value, number):
        return value, detail, SAME, None
    return value, detail, DIFFERS, number.why


def is_same(value: Any, number: Number) -> bool:
    """Return whether a copy's value is the published one, within its tolerance."""
    if isinstance(number.published, str) or isinstance(value, str):
        return bool(value == number.published)
    return bool(abs(value - number.published) <= number.tolerance + 1e-9)


def shown(value: float | str) -> str:
    """Return a number as text, thousands apart."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
