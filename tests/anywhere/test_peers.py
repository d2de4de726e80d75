"""What the benchmarks compare us with: peers read the same voxels, and a slow line is slow."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.lines.spaces import Line, compiled
from benchmarks.peers.reader import MASKS, Place
from benchmarks.peers.rounds import Settings, latency, memory, rotated, running, sustained
from lundprobe_zarr import open_cohort
from lundprobe_zarr.patches import BalancedSampling, Content, Plan
from lundprobe_zarr.stores.reader import StoreReader

SIZE = (4, 16, 16)
#: Peers that this environment has.
HERE = ("ours", "decode_alone", "zarr", "xarray")


@pytest.fixture
def place(dataset: Path, tmp_path: Path) -> Place:
    """Patches of the first two patients, as a stream draws them."""
    cohort = open_cohort(dataset)
    cohort = cohort[list(cohort.ids[:2])]
    readers = [StoreReader.open(cohort.location, patient_id) for patient_id in cohort.ids]
    plan = Plan(
        cohort,
        Content(structures=MASKS),
        SIZE,
        sampling=BalancedSampling(MASKS, per_patient=3),
    )
    boxes = []
    for item in (plan.item(0, index) for index in range(len(plan))):
        number = cohort.ids.index(item.patient_id)
        boxes.append((number, *map(int, plan.start(readers[number].metadata, item))))
    indices = tuple(
        tuple(int(r.index(r.array("mri/clinical/mask"), {"structure": m})[0]) for m in MASKS)
        for r in readers
    )
    folder = str(dataset.resolve())
    return Place(folder, tuple(cohort.ids), MASKS, indices, SIZE, tuple(boxes), {}, str(tmp_path))


def test_peers_read_what_we_read_and_say_what_it_took(place: Place, tmp_path: Path) -> None:
    settings = Settings(repeats=2, tries=1, rounds=1, ahead=2)
    with running({name: [sys.executable] for name in HERE}, place, tmp_path) as peers:
        took = latency(peers, place.boxes, settings)
        rates = sustained(peers, place.boxes, settings)
        used = memory(peers)
        assert all(peer.versions["numpy"] for peer in peers.values())
    assert set(took) == set(used) == set(HERE) - {"decode_alone"}
    assert set(rates) == set(HERE)
    assert all(one["reads"] == 2 and one["median_ms"] > 0 for one in took.values())
    assert all(one["per_second"] > 0 for one in rates.values())


def test_a_peer_that_reads_other_voxels_ends_the_benchmark(place: Place, tmp_path: Path) -> None:
    wrong = tuple(indices[::-1] for indices in place.indices)
    commands = {"ours": [sys.executable], "zarr": [sys.executable]}
    changed = replace(place, indices=wrong)
    with (
        pytest.raises(SystemExit, match="zarr reads other voxels than ours"),
        running(commands, changed, tmp_path),
    ):
        pass


def test_a_peer_that_fails_says_why(place: Place, tmp_path: Path) -> None:
    lost = replace(place, patients=("nobody",))
    with (
        pytest.raises(SystemExit, match=r"(?s)zarr ended:.*nobody"),
        running({"zarr": [sys.executable]}, lost, tmp_path),
    ):
        pass


def test_each_round_begins_with_another_one() -> None:
    assert [rotated("abc", number)[0] for number in range(4)] == ["a", "b", "c", "a"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The line, compiled."""
    try:
        return compiled(tmp_path_factory.mktemp("line"))
    except SystemExit as error:
        pytest.skip(str(error))


ANSWER = b"x" * 400_000


@contextmanager
def line(program: Path, given: Line) -> Iterator[int]:
    """The port of a line to a server that answers each request with `ANSWER`."""

    def answer(connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):  # a line that resets hangs up here too
            while connection.recv(1000):
                connection.sendall(ANSWER)

    def serve(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    with (
        closing(socket.create_server(("127.0.0.1", 0))) as server,
        closing(socket.create_server(("127.0.0.1", 0))) as free,
    ):
        port = free.getsockname()[1]
        free.close()
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        ports = [str(port), str(server.getsockname()[1])]
        with subprocess.Popen([program, "127.0.0.1", *ports, *map(str, given)]) as process:
            try:
                _await(port)
                yield port
            finally:
                process.terminate()
                server.shutdown(socket.SHUT_RDWR)


def _await(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionError:
            time.sleep(0.05)
        else:
            return


def ask(connection: socket.socket) -> float:
    """Seconds until a request is answered in full."""
    begun = time.perf_counter()
    connection.sendall(b"request")
    left = len(ANSWER)
    while left:
        data = connection.recv(1 << 16)
        if not data:
            raise ConnectionResetError("ended")
        assert set(data) == {ord("x")}
        left -= len(data)
    return time.perf_counter() - begun


def test_a_line_delays_requests_and_the_first_twice_as_long(program: Path) -> None:
    with (
        line(program, Line(latency=0.1)) as port,
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        assert ask(connection) >= 0.2
        assert 0.1 <= min(ask(connection) for _ in range(3)) < 0.2


def test_a_line_carries_so_many_bytes_a_second_in_all(program: Path) -> None:
    with (
        line(program, Line(rate=4e6)) as port,
        socket.create_connection(("127.0.0.1", port)) as one,
        socket.create_connection(("127.0.0.1", port)) as other,
    ):
        assert 0.09 <= ask(one) < 0.5
        threads = [threading.Thread(target=ask, args=(connection,)) for connection in (one, other)]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.perf_counter() - begun >= 0.19


def test_a_line_resets_connections(program: Path) -> None:
    with line(program, Line(resets=1.0)) as port:
        for _ in range(4):
            with (
                socket.create_connection(("127.0.0.1", port)) as connection,
                pytest.raises(ConnectionResetError),
            ):
                ask(connection)
