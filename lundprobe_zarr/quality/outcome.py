"""What became of rules: the patients who break each, and what could not be checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lundprobe_zarr.quality.rules import SEVERITIES, Rule

if TYPE_CHECKING:
    from lundprobe_zarr.cohort import Cohort

#: Outcome of a rule. `nothing to check`: no patient has what it is about. `not evaluated`: the
#: dataset lacks a table or column. `wrong`: its SQL or message.
Status = Literal["passed", "flagged", "nothing to check", "not evaluated", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One row that breaks a rule: whose, what is said of it, and the numbers compared."""

    patient_id: str
    message: str
    value: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of one rule.

    `checked` and `flagged` count patients. `values` are the numbers of all rows that were checked,
    with whether each was flagged; `limits` what they were compared with. `why` says what is wrong,
    or what has to be run.
    """

    rule: Rule
    status: Status
    checked: int = 0
    flagged: int = 0
    findings: tuple[Finding, ...] = ()
    values: tuple[tuple[float, bool], ...] = field(default=(), repr=False)
    limits: tuple[float, ...] = ()
    why: str | None = None

    @property
    def is_lacking(self) -> bool:
        """Whether it cannot be said if the rule is kept."""
        return self.status in ("not evaluated", "wrong")


@dataclass(frozen=True)
class Outcomes:
    """The outcome of every rule, in the rules' order, for the patients of a cohort."""

    cohort: Cohort
    outcomes: tuple[Outcome, ...]

    def gravest_first(self) -> list[Outcome]:
        """Return the outcomes by severity, then in the rules' order."""
        return sorted(self.outcomes, key=lambda o: SEVERITIES.index(o.rule.severity))

    @property
    def wrong(self) -> tuple[Outcome, ...]:
        """The rules that could not be run, because their SQL or message is wrong."""
        return tuple(o for o in self.outcomes if o.status == "wrong")
