"""Peers in processes of their own, asked in turn: what disturbs the machine disturbs all alike."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.reader import Box, Place

#: Decompress whole volumes, or take seconds a patch from afar: two boxes are enough.
SLOW = ("nibabel", "torchio", "monai")
SLOW_AFAR = ("zarrs",)
#: Read in order: each box once.
IN_ORDER = ("webdataset", "litdata")
#: Reads no patch.
LIMIT = "decode_alone"
_PROGRAM = Path(__file__).with_name("reader.py")


class Process:
    """A peer that runs: questions and answers, see `reader`."""

    def __init__(self, peer: str, command: Sequence[str], place: Place, said: Path) -> None:
        self.peer, self.said = peer, said
        with said.open("w") as errors:
            self.process = subprocess.Popen(
                [*command, str(_PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, text=True,
            )  # fmt: skip
        self.versions = self.ask({"peer": peer, "place": asdict(place)})["versions"]

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question."""
        asked, answered = self.process.stdin, self.process.stdout
        assert asked is not None
        assert answered is not None
        asked.write(json.dumps(question) + "\n")
        asked.flush()
        line = answered.readline()
        if not line:
            self.close()
            raise SystemExit(f"{self.peer} ended:\n{self.said.read_text()[-2000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.communicate()


@dataclass(frozen=True)
class Settings:
    """How often things are done.

    Of each box the fastest of `tries` counts, in each of which all peers take their turn. `ahead`
    patches are read at a time in a stream, of which there are `rounds`. Peers in `slow` read two
    boxes, once.
    """

    repeats: int
    tries: int
    rounds: int
    ahead: int
    slow: tuple[str, ...] = SLOW


def rotated(names: Sequence[str], number: int) -> list[str]:
    """Names in turn, each round beginning with another one."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


@contextmanager
def running(
    commands: dict[str, Sequence[str]], place: Place, folder: Path
) -> Iterator[dict[str, Process]]:
    """All peers, opened, and checked to read the same voxels."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(dir=folder) as said:
        peers = {}
        for name, command in commands.items():
            print(f"  {name}", file=sys.stderr, flush=True)
            peers[name] = Process(name, command, place, Path(said) / name)
            stack.callback(peers[name].close)
        check({n: p for n, p in peers.items() if n != LIMIT}, place.boxes[:4])
        yield peers


def check(peers: dict[str, Process], boxes: Sequence[Box]) -> None:
    """End if a peer reads other voxels than we do."""
    for box in boxes:
        expected = peers["ours"].ask({"check": box})
        for name, peer in peers.items():
            found = peer.ask({"check": box})
            if any(expected.get(key) != value for key, value in found.items()):
                raise SystemExit(f"{name} reads other voxels than ours at {box}")


def latency(peers: dict[str, Process], boxes: Sequence[Box], settings: Settings) -> Any:
    """Milliseconds of a patch by each peer, the same boxes, one after another in turn."""
    readers = [name for name in peers if name != LIMIT]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in readers}
    for number, box in enumerate(boxes[: settings.repeats]):
        tries: dict[str, list[dict[str, float]]] = {name: [] for name in found}
        for attempt in range(settings.tries):
            for name in rotated(list(found), number + attempt):
                slow = name in settings.slow
                if (slow and (attempt or number > 1)) or (name in IN_ORDER and attempt):
                    continue
                tries[name].append(peers[name].ask({"read": box}))
        for name, answers in tries.items():
            if answers:
                found[name].append(min(answers, key=lambda answer: answer["ms"]))
    ours = statistics.median(one["ms"] for one in found["ours"])
    return {name: summary(answers, ours) for name, answers in found.items()}


def summary(answers: Sequence[dict[str, float]], ours: float) -> dict[str, Any]:
    """Median, smallest and largest of what one peer took, and what ours took of it."""
    took = [answer["ms"] for answer in answers]
    return {
        "median_ms": round(statistics.median(took), 2),
        "min_ms": round(min(took), 2),
        "max_ms": round(max(took), 2),
        "cpu_ms": round(statistics.median(answer["cpu_ms"] for answer in answers), 2),
        "reads": len(took),
        "ours_takes": round(ours / statistics.median(took), 4),
    }


def sustained(peers: dict[str, Process], boxes: Sequence[Box], settings: Settings) -> Any:
    """Patches a second of each peer that reads ahead, in rounds; ratios are those of a round."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in peers}
    for number in range(settings.rounds):
        for name in rotated(list(peers), number):
            if name in settings.slow and number:
                continue
            asked = boxes[:2] if name in settings.slow else boxes
            rounds[name].append(peers[name].ask({"stream": asked, "ahead": settings.ahead}))
    rates = {n: [r["patches"] / r["seconds"] for r in found] for n, found in rounds.items()}
    figures = {}
    for name, found in rounds.items():
        ratios = [ours / rate for ours, rate in zip(rates["ours"], rates[name], strict=False)]
        figures[name] = {
            "per_second": round(statistics.median(rates[name]), 1),
            "cpu_ms": round(
                statistics.median(1000 * r["cpu_seconds"] / r["patches"] for r in found), 2
            ),
            "ours_gives": round(statistics.median(ratios), 3),
        }
    return figures


def memory(peers: dict[str, Process]) -> dict[str, int]:
    """Megabytes that each peer had at most, over those it began with."""
    said = {name: peer.ask({"memory": True}) for name, peer in peers.items()}
    return {
        name: round((one["peak"] - one["start"]) / 1e6)
        for name, one in said.items()
        if name != LIMIT  # it keeps what it decodes
    }


def compared(
    commands: dict[str, Sequence[str]], place: Place, folder: Path, settings: Settings
) -> dict[str, Any]:
    """Latency, rate and memory of all peers at one place, and their versions."""
    with running(commands, place, folder) as peers:
        return {
            "latency": latency(peers, place.boxes, settings),
            "sustained": sustained(peers, place.boxes, settings),
            "memory_mb": memory(peers),
            "versions": {name: peer.versions for name, peer in peers.items()},
        }
