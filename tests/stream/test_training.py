"""docs/training.md as it stands there: its examples run, and its training survives a SIGKILL."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.integrity.copy import copy_dataset
from lundprobe_zarr.storage.location import Location
from tests.anywhere.servers import s3_server

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"
STEPS = 14


def blocks() -> list[str]:
    """The guide's Python blocks; the last is a whole program."""
    found = re.findall(
        r"^```python\n(.*?)^```$", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    assert found[-1].startswith('"""python train.py')
    return found


def test_the_examples_run(dataset: Path, tmp_path, monkeypatch):
    (tmp_path / "my-dataset").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for text in blocks()[:-1]:
        exec(compile(text, str(GUIDE), "exec"), namespace)
    labels = nibabel.load(tmp_path / "labels.nii.gz")
    first = lp.open_cohort(dataset)[0].mri
    assert labels.shape == first.dose.shape[::-1]
    np.testing.assert_array_equal(labels.affine, first.lp.affine)
    assert set(np.unique(np.asarray(labels.dataobj))) == {0, 1}


@pytest.fixture
def bucket(dataset: Path) -> Iterator[list[str]]:
    """The phantom in a bucket of a local S3 server, which no other test uses: its URL, options."""
    pytest.importorskip("moto.moto_server.werkzeug_app")
    s3fs = pytest.importorskip("s3fs")
    with s3_server() as (endpoint, _):
        options = {"key": "a", "secret": "b", "endpoint_url": endpoint}
        s3fs.S3FileSystem(**options, skip_instance_cache=True).mkdir("training")
        assert not copy_dataset(Location(dataset), Location("s3://training/d", options)).failures
        yield ["s3://training/d", json.dumps(options)]


def test_training_that_is_killed_and_resumed_ends_as_if_it_never_was(bucket, tmp_path):
    pytest.importorskip("torch")
    url, options = bucket
    program = tmp_path / "train.py"
    program.write_text(blocks()[-1], encoding="utf-8")

    def train(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(program), url, str(tmp_path / name), str(STEPS), options]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    unbroken, _ = train("unbroken").communicate(timeout=120)
    expected = dict(line.split() for line in unbroken.splitlines())
    assert len(expected) == STEPS > 8, "more steps than the batches of an epoch"

    killed = train("killed")
    assert killed.stdout is not None
    seen = [killed.stdout.readline().split() for _ in range(5)]
    killed.send_signal(signal.SIGKILL)
    seen += [line.split() for line in killed.communicate()[0].splitlines()]
    assert killed.returncode == -signal.SIGKILL
    assert len(seen) < STEPS

    rest, _ = train("killed").communicate(timeout=120)
    resumed = dict(line.split() for line in rest.splitlines())
    assert 5 <= STEPS - len(resumed) <= len(seen) + 1
    assert dict(seen) | resumed == expected
    assert float.fromhex(expected[str(STEPS)]) < float.fromhex(expected["1"])
