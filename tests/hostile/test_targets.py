"""Whatever comes in, only documented errors come out, in bounded time and memory.

`python -m benchmarks.fuzzing` tries the same targets some hundred thousand times.
"""

from __future__ import annotations

import gzip
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.hostile.judge import judge, strangers
from benchmarks.hostile.material import Material
from benchmarks.hostile.targets import Target, targets
from lundprobe_zarr.schema.header import parse_header

#: Examples of each target, by how long one takes.
EXAMPLES = {
    "header": 200,
    "nifti": 60,
    "gzip": 60,
    "side files": 150,
    "fiducials": 150,
    "inventory": 30,
    "manifest": 120,
    "store metadata": 30,
    "shards": 30,
    "tables": 15,
    "saved files": 80,
    "catalog and card": 15,
    "locations": 100,
    "predicates": 100,
    "queries": 60,
}


@pytest.fixture(scope="session")
def known(material: Material) -> dict[str, Target]:
    return targets(material)


@pytest.mark.parametrize("name", EXAMPLES)
def test_only_documented_errors(
    known: dict[str, Target], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = known[name]
    monkeypatch.chdir(tmp_path)

    @settings(
        max_examples=EXAMPLES[name],
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def attack(rng: random.Random) -> None:
        case = target.make(rng)
        assert judge(target, case) is None, repr(case)[:2000]

    attack()
    assert strangers(tmp_path) == []


def test_every_target_is_tried(known: dict[str, Target]) -> None:
    assert set(EXAMPLES) == set(known)
    assert sum(target.cases for target in known.values()) >= 100_000


READ = """
import resource, sys
from pathlib import Path
from lundprobe_zarr.conversion.source.nifti import read_nifti
from lundprobe_zarr.errors import SourceError
read_nifti(Path(sys.argv[2]), "sound")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_nifti(Path(sys.argv[1]), "case")
except SourceError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10, error)
"""


def claiming(data: bytes, shape: tuple[int, int, int]) -> bytes:
    """A header that says its file holds uint8 voxels of another shape (i, j, k)."""
    header = parse_header(data[:348])
    header["datatype"], header["bitpix"] = 2, 8
    header["dim"] = (3, *shape, 1, 1, 1, 1)
    return bytes(header.binaryblock) + data[348:352]


@pytest.mark.parametrize("kind", ["a false claim", "a true claim cut short", "a bomb", "behind it"])
def test_a_file_costs_no_more_than_it_holds(material: Material, tmp_path: Path, kind: str) -> None:
    data, zeros = material.niftis[0], bytes(200 << 20)
    shapes = {"a false claim": (32767, 32767, 32767), "a true claim cut short": (1024, 1024, 900)}
    header = claiming(data, shapes.get(kind, (16, 16, 16)))
    if kind == "a true claim cut short":  # as much as 700 kB can hold, and they hold less
        whole = gzip.compress(header, 1) + np.random.default_rng(0).bytes(1 << 20)
    elif kind == "behind it":
        whole = gzip.compress(header + bytes(16**3), 1) + gzip.compress(zeros, 9)
    else:
        whole = gzip.compress(header + (zeros if kind == "a bomb" else b""), 9)
    (tmp_path / "case.nii.gz").write_bytes(whole)
    (tmp_path / "sound.nii.gz").write_bytes(gzip.compress(data))
    command = [sys.executable, "-c", READ, "case.nii.gz", "sound.nii.gz"]
    root = Path(__file__).parents[2]
    ran = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    grown, _, message = ran.stdout.partition(" ")
    assert message.startswith("case: "), ran.stderr
    assert int(grown) < 64


@pytest.mark.parametrize("index", [(2**64 - 2, 64), (0, 2**62), (2**63, 2**63), (10, 2**40)])
def test_a_shards_index_that_points_anywhere_is_refused(
    material: Material, known: dict[str, Target], index: tuple[int, int]
) -> None:
    target = known["shards"]
    place, size, shard = target.make(random.Random(3))
    spoilt = bytearray(shard)
    spoilt[-size : 16 - size or None] = struct.pack("<QQ", *index)
    from benchmarks.hostile.datasets import seal

    seal(spoilt, len(spoilt) - size, len(spoilt))
    with pytest.raises(target.allowed, match="names a chunk outside its"):
        target.run((place, size, bytes(spoilt)))
