"""Conversions as processes of their own that are killed, and what they leave behind.

Used by the tests here and by `benchmarks/faults.py`. A conversion is killed with all its workers,
at any instant, and started again; after each kill every store that a reader could open is compared,
byte for byte, with those of conversions that nothing disturbed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from lundprobe_zarr.dataset.converter_notes import SOURCE_NOTE
from lundprobe_zarr.dataset.opening import open_manifest
from lundprobe_zarr.errors import DatasetError, NotADatasetError
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.phantom import write_phantom
from lundprobe_zarr.schema.tables import store_path
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.storage.writers import is_alive
from tests.altered import but_for_time
from tests.anywhere.servers import Traffic, s3_server

ROOT = Path(__file__).parents[2]
#: A store's objects by name there, each with its hash.
Objects = Mapping[str, str]


@dataclass(frozen=True)
class Target:
    """Where a dataset is converted to: a folder, or a URL and what it takes to get there.

    `scratch` is where stores are written on their way to a bucket, `traffic` its server's.
    """

    url: str
    scratch: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def location(self) -> Location:
        return Location(self.url, self.options)

    def beside(self, name: str) -> Target:
        """Another place of the same kind, with scratch of its own."""
        url = f"{self.url.rpartition('/')[0]}/{name}"
        return Target(url, self.scratch.with_name(f"scratch-{name}"), self.options, self.traffic)

    def written(self, patient: str) -> object:
        """What changes whenever the patient's store appears anew."""
        root = f"{store_path(patient)}/zarr.json"
        if not self.location.is_local:
            ending = f"{self.url.partition('://')[2]}/{root}"
            asked = list(self.traffic.requests)
            return sum(r.method == "PUT" and r.path.endswith(ending) for r in asked)
        status = self.location.local(root).stat()
        return status.st_ino, status.st_mtime_ns


@contextmanager
def s3_target(scratch: Path) -> Iterator[Target]:
    """A place in a bucket of an S3 server of our own, on loopback."""
    import s3fs

    with s3_server() as (endpoint, traffic):
        options = {"key": "any", "secret": "as good as any", "endpoint_url": endpoint}
        s3fs.S3FileSystem(**options, skip_instance_cache=True).makedirs("kills", exist_ok=True)
        yield Target("s3://kills/nothing", scratch, options, traffic)


def start(
    source: Path, target: Target, *more: object, by: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Begin a conversion, in a process group of its own; what it prints goes to `stdout`.

    `by` is a command that runs others.
    """
    command = [*by, sys.executable, "-m", "lundprobe_zarr", "convert", str(source), target.url]
    if "://" in target.url:
        command += ["--scratch", str(target.scratch)]
    told = {"LUNDPROBE_STORAGE_OPTIONS": json.dumps(target.options), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, *map(str, more)],
        env=os.environ | told,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> str:
    """Kill a conversion and all of its workers, wait until none of them runs; what was printed."""
    group = [process.pid]
    try:
        group += [p.pid for p in psutil.Process(process.pid).children(recursive=True)]
        os.killpg(process.pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        pass  # it has just ended
    printed, _ = process.communicate()
    wait_until_gone(group)
    return printed


def wait_until_gone(processes: Collection[int]) -> None:
    """Until none of these processes of this machine runs."""
    until = time.monotonic() + 20
    while any(is_alive(f"{socket.gethostname()}-{p}-") for p in processes):
        assert time.monotonic() < until, "killed, and still there"
        time.sleep(0.01)


def objects(location: Location, patient: str) -> Objects:
    """A store's objects with their MD5s, the root's without the time it was made at, and the
    hash which covers that."""
    place = store_path(patient)
    found = {}
    for name, entry in location.listing(place).items():
        if name == "zarr.json":
            root = json.loads(location.read(f"{place}/{name}"))
            root = but_for_time(root)
            found[name] = hashlib.md5(json.dumps(root, sort_keys=True).encode()).hexdigest()
        else:
            known = entry.md5 or hashlib.md5(location.read(f"{place}/{name}")).digest()
            found[name] = known.hex()
    return found


@dataclass(frozen=True)
class Reference:
    """A conversion that nothing disturbed: its stores, its content hash, names of all objects."""

    stores: Mapping[str, Objects]
    content: str
    names: frozenset[str]

    @classmethod
    def of(cls, location: Location) -> Reference:
        assert validate(location, deep=True).problems == ()
        names = frozenset(location.find("")) | {SOURCE_NOTE}
        ids = sorted({n.split("/")[1].removesuffix(".zarr") for n in names if "/zarr.json" in n})
        content = open_manifest(location).content
        assert content is not None
        return cls({i: objects(location, i) for i in ids}, content.sha256, names)


@dataclass(frozen=True)
class Converted:
    """A source tree and its conversion, which nothing disturbed. Read-only."""

    source: Path
    dataset: Path
    reference: Reference


@dataclass(frozen=True)
class Seen:
    """What is there after a kill: patients who are done, stores compared, how far the run was."""

    stores: tuple[str, ...]
    compared: int
    phase: str
    reader: str


def look(target: Target, wanted: Reference, before: Sequence[Reference] = ()) -> Seen:
    """Require that each store with a root is one of `wanted` or `before`, whole; say what is there.

    Those in `before` have not been replaced yet.
    """
    location = target.location
    done, compared, begun = [], 0, False
    for patient, expected in wanted.stores.items():
        there = objects(location, patient)
        if "zarr.json" not in there:
            begun |= bool(there)
            continue
        known = [expected, *(r.stores[patient] for r in before)]
        assert there in known, f"{patient}: a store that can be opened and is neither old nor new"
        compared += 1
        if there == expected:
            done.append(patient)
    phase = _phase(target, wanted, done, begun)
    return Seen(tuple(done), compared, phase, what_a_reader_sees(location, wanted, before))


def _phase(target: Target, wanted: Reference, done: Sequence[str], sending: bool) -> str:
    if len(done) == len(wanted.stores):
        told = _content(target.location)
        return "at its end" if told == wanted.content else "writing tables"
    if sending:
        return "sending a store"
    hidden = target.location.local("patients") if target.location.is_local else target.scratch
    return (
        "writing a store"
        if list(hidden.glob("*")) and _hidden(hidden)
        else "starting, or between stores"
    )


def _hidden(folder: Path) -> bool:
    return any(
        ".partial-" in p.name or p.name.startswith("lundprobe-zarr-") for p in folder.glob("*")
    )


def _content(location: Location) -> str | None:
    try:
        content = open_manifest(location).content
    except NotADatasetError:
        return None
    return None if content is None else content.sha256


def what_a_reader_sees(
    location: Location, wanted: Reference, before: Sequence[Reference] = ()
) -> str:
    """No dataset, a sound one, or one of which `validate` says that it is being replaced."""
    try:
        problems = validate(location).problems
    except NotADatasetError:
        return "no dataset yet"
    except DatasetError:
        return "one that cannot be read, as it says"
    if problems:
        return "one that is being replaced, as `validate` says"
    assert _content(location) in {wanted.content, *(r.content for r in before)}
    return "a sound dataset"


@dataclass(frozen=True)
class Kill:
    """One kill: when, in which phase, what a reader then finds, how many patients were finished."""

    after_s: float
    phase: str
    reader: str
    finished: int
    compared: int


def killed_until_done(
    source: Path,
    target: Target,
    wanted: Reference,
    delays: Iterator[float],
    *more: object,
    before: Sequence[Reference] = (),
) -> tuple[list[Kill], float]:
    """Convert, killed after each of `delays` until a run ends before it is.

    Gives what each kill left, and how many seconds the last run took. Requires that no run converts
    a finished patient again, and that in the end all is as if nothing had happened.
    """
    kills: list[Kill] = []
    finished: dict[str, object] = {}
    while True:
        after = next(delays, None)
        begun = time.perf_counter()
        process = start(source, target, *more)
        ended = _ended(process, after)
        took = time.perf_counter() - begun
        printed = kill(process)
        again = [p for p, was in finished.items() if target.written(p) != was]
        assert again == [], "finished before, and converted again"
        if ended is not None:
            assert ended == 0, printed
            break
        seen = look(target, wanted, before)
        finished = {p: target.written(p) for p in seen.stores}
        kills.append(Kill(after or 0.0, seen.phase, seen.reader, len(seen.stores), seen.compared))
    require_undisturbed(target, wanted)
    return kills, took


def _ended(process: subprocess.Popen[str], after: float | None) -> int | None:
    """Exit status of a run that ends within so many seconds; None if it does not."""
    try:
        return process.wait(after)
    except subprocess.TimeoutExpired:
        return None


def require_undisturbed(target: Target, wanted: Reference) -> None:
    """Require the contents of `wanted`, sound to every byte, and nothing beside."""
    location = target.location
    assert _content(location) == wanted.content
    # In a bucket MD5s tell as much as reading all of it, which takes a test server long.
    assert validate(location, deep=location.is_local).problems == ()
    for patient, expected in wanted.stores.items():
        assert objects(location, patient) == expected
    differing = sorted(set(location.find("")) ^ wanted.names)
    assert differing == [], "left lying about, or missing"
    assert not target.scratch.exists() or list(target.scratch.iterdir()) == []


def delays(seed: object, seconds: float, most: int | None = None) -> Iterator[float]:
    """Random instants within so many seconds; at most so many of them."""
    rng = random.Random(str(seed))
    while most is None or most > 0:
        yield rng.uniform(0, seconds)
        most = None if most is None else most - 1


def write_changed(source: Path, seed: int, patients: int, extended: int, beside: Path) -> Path:
    """A source tree of the patients of `source` whose every voxel is another phantom's."""
    other = write_phantom(beside, patients=patients, extended=extended, seed=seed)
    for part in ("basePart", "extendedPart"):
        ids = [sorted(p.name for p in (tree / part).iterdir()) for tree in (source, other)]
        for wanted, drawn in zip(*ids, strict=True):
            (other / part / drawn).rename(other / part / wanted)
    for file in other.iterdir():  # which tell of patients by their ids
        if file.is_file():
            shutil.copy(source / file.name, file)
    return other
