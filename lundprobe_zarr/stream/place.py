"""Where a stream stands, and which iteration moves it on; in a form that processes can share.

A stream has one `Place`. Iterations in its own process move it as they give patches. Workers of a
`torch.utils.data.DataLoader` cannot: they read ahead, so what they gave is not what was consumed.
They only ask it which epoch their iteration has, and all workers of one iteration get one answer.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, NamedTuple

# What the place is: where the next iteration begins, because one ended there (DUE) or somebody
# said so (SOUGHT); or how far an iteration in this process is (BEGUN); or the epoch that workers
# were given, of which nobody here knows how much is consumed (GIVEN).
DUE: Final = 0
SOUGHT: Final = 1
BEGUN: Final = 2
GIVEN: Final = 3

_EPOCH, _POSITION, _STATE, _TURN, _HEAD, _FIRST = range(6)
#: Iterations of workers that are remembered: a slow worker may ask when a later one has begun.
#: Of each, the three numbers of its `Crew`, the workers that have joined, epoch and start.
_RECORDS, _WIDTH = 16, 6
_SIZE = _FIRST + _RECORDS * _WIDTH


@dataclass(frozen=True)
class Crew:
    """The workers of one iteration of a loader: what they alone have in common.

    `seed` is of one set of worker processes, `number` counts the iterations (from 1) of those
    that persist, `workers` is how many there are.
    """

    seed: int
    number: int
    workers: int


class Begun(NamedTuple):
    """An iteration: its epoch and first position, and its turn, if it is to move the place."""

    epoch: int
    start: int
    turn: int | None


class Place:
    """Epoch and position of a stream; `values` and `lock` may be shared between processes."""

    def __init__(
        self,
        values: MutableSequence[int] | None = None,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self._values = [0] * _SIZE if values is None else values
        self._lock = nullcontext() if lock is None else lock

    def values(self) -> list[int]:
        """All of it, as numbers: a copy."""
        with self._lock:
            return [int(v) for v in self._values]

    @property
    def at(self) -> tuple[int, int]:
        """Epoch and position."""
        with self._lock:
            return int(self._values[_EPOCH]), int(self._values[_POSITION])

    @property
    def state(self) -> int:
        """What the place is: DUE, SOUGHT, BEGUN or GIVEN."""
        return int(self._values[_STATE])

    def seek(self, epoch: int, position: int, state: int = SOUGHT) -> None:
        """Have the next iteration begin there; one that runs elsewhere is overtaken."""
        with self._lock:
            self._values[_TURN] += (epoch, position) != self._here()
            self._set(epoch, position, state)

    def take(self) -> int:
        """The turn of a new iteration in this process; the one before is overtaken."""
        with self._lock:
            self._values[_TURN] += 1
            return int(self._values[_TURN])

    def expect(self, crew: Crew, epoch: int, start: int) -> None:
        """Have a crew begin there when it comes, which moves nothing."""
        with self._lock:
            self._record(crew, 0, epoch, start)

    def has(self, turn: int) -> bool:
        """Whether an iteration has not been overtaken by another, or by `seek`."""
        return int(self._values[_TURN]) == turn

    def move(self, turn: int, epoch: int, position: int, state: int = DUE) -> bool:
        """Say how far an iteration is; False, and nothing happens, if it was overtaken."""
        with self._lock:
            if int(self._values[_TURN]) != turn:
                return False
            self._set(epoch, position, state)
            return True

    def begin(self, crew: Crew | None, is_over: Callable[[int], bool]) -> Begun:
        """Begin an iteration of a loader, in this process or by a crew: an epoch of its own.

        The first of a crew's workers begins it and the others join. It starts where the next
        iteration is due; behind what another began, or where `is_over` says that nothing is left
        behind a position, with the next epoch.
        """
        with self._lock:
            if crew is not None and (joined := self._join(crew)) is not None:
                return joined
            epoch, start = self._here()
            if self.state in (BEGUN, GIVEN) or is_over(start):
                epoch, start = epoch + 1, 0
            self._values[_TURN] += 1
            turn = self._begun(crew, epoch, start)
            if crew is not None:
                self._record(crew, 1, epoch, start)
            return Begun(epoch, start, turn)

    def correct(self, crew: Crew | None, epoch: int, start: int) -> int | None:
        """Say that an iteration just begun is of another epoch; its turn, if it moves the place."""
        with self._lock:
            return self._begun(crew, epoch, start)

    def _begun(self, crew: Crew | None, epoch: int, start: int) -> int | None:
        self._set(epoch, start, BEGUN if crew is None else GIVEN)
        return int(self._values[_TURN]) if crew is None else None

    def _here(self) -> tuple[int, int]:
        return int(self._values[_EPOCH]), int(self._values[_POSITION])

    def _set(self, epoch: int, position: int, state: int) -> None:
        self._values[_EPOCH], self._values[_POSITION], self._values[_STATE] = epoch, position, state

    def _join(self, crew: Crew) -> Begun | None:
        """The crew's iteration, if one of it began it; a crew that is complete begins another."""
        for row in range(_RECORDS):
            at = _FIRST + row * _WIDTH
            seed, number, workers, joined, epoch, start = (
                int(self._values[at + i]) for i in range(_WIDTH)
            )
            if Crew(seed, number, workers) == crew and joined < workers:
                self._values[at + 3] += 1
                return Begun(epoch, start, None)
        return None

    def _record(self, crew: Crew, joined: int, epoch: int, start: int) -> None:
        at = _FIRST + int(self._values[_HEAD]) % _RECORDS * _WIDTH
        self._values[_HEAD] += 1
        row = (crew.seed, crew.number, crew.workers, joined, epoch, start)
        for i, value in enumerate(row):
            self._values[at + i] = value
