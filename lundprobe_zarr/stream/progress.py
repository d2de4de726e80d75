"""The progress of a stream, and which iteration updates it, in a form that processes can share.

A stream has one `Progress`. Iterations in its own process update it as they yield patches. Workers
of a `torch.utils.data.DataLoader` cannot: they read ahead, so what they yielded may not have been
consumed. They only ask which epoch their iteration has. All workers of an iteration get the same.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, NamedTuple

# What epoch and position are: the start of the next iteration, because one ended there (DUE) or the
# caller set it (SOUGHT); the progress of an iteration in this process (BEGUN); or the epoch that
# workers read, whose consumed part is unknown here (GIVEN).
DUE: Final = 0
SOUGHT: Final = 1
BEGUN: Final = 2
GIVEN: Final = 3

_EPOCH, _POSITION, _STATE, _TURN, _HEAD, _FIRST = range(6)
#: Iterations of workers to remember: a slow worker may ask after a later one has begun.
#: Each has the three numbers of its `WorkerGroup`, the workers that joined, epoch and start.
_RECORDS, _WIDTH = 16, 6
_SIZE = _FIRST + _RECORDS * _WIDTH


@dataclass(frozen=True)
class WorkerGroup:
    """Identity of the workers of one iteration of a loader.

    `seed` identifies a set of worker processes, `number` counts the iterations (from 1) of
    persistent workers, `workers` is their number.
    """

    seed: int
    number: int
    workers: int


class Begun(NamedTuple):
    """An iteration: its epoch, first position, and its turn if it updates the progress."""

    epoch: int
    start: int
    turn: int | None


class Progress:
    """Epoch and position of a stream; `values` and `lock` may be shared between processes."""

    def __init__(
        self,
        values: MutableSequence[int] | None = None,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        self._values = [0] * _SIZE if values is None else values
        self._lock = nullcontext() if lock is None else lock

    def values(self) -> list[int]:
        """Return a copy of all numbers."""
        with self._lock:
            return [int(v) for v in self._values]

    @property
    def at(self) -> tuple[int, int]:
        """Epoch and position."""
        with self._lock:
            return int(self._values[_EPOCH]), int(self._values[_POSITION])

    @property
    def state(self) -> int:
        """DUE, SOUGHT, BEGUN or GIVEN."""
        return int(self._values[_STATE])

    def seek(self, epoch: int, position: int, state: int = SOUGHT) -> None:
        """Set the start of the next iteration; a running iteration elsewhere is superseded."""
        with self._lock:
            self._values[_TURN] += (epoch, position) != self._here()
            self._set(epoch, position, state)

    def take(self) -> int:
        """Return the turn of a new iteration in this process, which supersedes the previous one."""
        with self._lock:
            self._values[_TURN] += 1
            return int(self._values[_TURN])

    def expect(self, group: WorkerGroup, epoch: int, start: int) -> None:
        """Set where a group of workers begins, without changing the progress."""
        with self._lock:
            self._record(group, 0, epoch, start)

    def has(self, turn: int) -> bool:
        """Return whether an iteration is current, not superseded by another or by `seek`."""
        return int(self._values[_TURN]) == turn

    def move(self, turn: int, epoch: int, position: int, state: int = DUE) -> bool:
        """Update the progress of an iteration; return False, without change, if superseded."""
        with self._lock:
            if int(self._values[_TURN]) != turn:
                return False
            self._set(epoch, position, state)
            return True

    def begin(self, group: WorkerGroup | None, is_over: Callable[[int], bool]) -> Begun:
        """Begin an iteration of a loader, in this process or by a group of workers.

        The first worker of a group begins the iteration, the others join it. It starts where the
        next iteration is due. If an iteration has begun this epoch, or `is_over` says that nothing
        is left after the position, it starts with the next epoch.
        """
        with self._lock:
            if group is not None and (joined := self._join(group)) is not None:
                return joined
            epoch, start = self._here()
            if self.state in (BEGUN, GIVEN) or is_over(start):
                epoch, start = epoch + 1, 0
            self._values[_TURN] += 1
            turn = self._begun(group, epoch, start)
            if group is not None:
                self._record(group, 1, epoch, start)
            return Begun(epoch, start, turn)

    def correct(self, group: WorkerGroup | None, epoch: int, start: int) -> int | None:
        """Change the epoch of an iteration just begun; return its turn, if any."""
        with self._lock:
            return self._begun(group, epoch, start)

    def _begun(self, group: WorkerGroup | None, epoch: int, start: int) -> int | None:
        self._set(epoch, start, BEGUN if group is None else GIVEN)
        return int(self._values[_TURN]) if group is None else None

    def _here(self) -> tuple[int, int]:
        return int(self._values[_EPOCH]), int(self._values[_POSITION])

    def _set(self, epoch: int, position: int, state: int) -> None:
        self._values[_EPOCH], self._values[_POSITION], self._values[_STATE] = epoch, position, state

    def _join(self, group: WorkerGroup) -> Begun | None:
        """Return the group's iteration if a worker began it and not all have joined."""
        for row in range(_RECORDS):
            at = _FIRST + row * _WIDTH
            seed, number, workers, joined, epoch, start = (
                int(self._values[at + i]) for i in range(_WIDTH)
            )
            if WorkerGroup(seed, number, workers) == group and joined < workers:
                self._values[at + 3] += 1
                return Begun(epoch, start, None)
        return None

    def _record(self, group: WorkerGroup, joined: int, epoch: int, start: int) -> None:
        at = _FIRST + int(self._values[_HEAD]) % _RECORDS * _WIDTH
        self._values[_HEAD] += 1
        row = (group.seed, group.number, group.workers, joined, epoch, start)
        for i, value in enumerate(row):
            self._values[at + i] = value
