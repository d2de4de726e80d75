"""Workers that cannot do the work are named before a patient is converted, or as they come."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from dask_processes import PATIENCE_S, Cluster, drafts, start, wait_for
from distributed import Client

from lundprobe_zarr.conversion.run.cluster import MisfitError, Needs, require_fit, shortcoming
from lundprobe_zarr.conversion.run.run import Options, convert
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.vocabulary.version import package_version

OTHER_VERSION = "Metadata-Version: 2.1\nName: lundprobe-zarr\nVersion: 99.1\n"


@pytest.fixture
def needs(phantom_source: Path, tmp_path: Path) -> Needs:
    """What this very process fulfils."""
    out = Location(tmp_path / "out")
    out.write(".conversion/runs/mine", b"")
    return Needs(package_version(), phantom_source, out, ".conversion/runs/mine")


def test_what_a_worker_may_lack(needs: Needs, tmp_path: Path) -> None:
    assert shortcoming(needs) is None
    absent = tmp_path / "nowhere"
    (tmp_path / "file").write_text("")
    for other, said in [
        (replace(needs, version="99.1"), f"has lundprobe-zarr {package_version()}, this .* 99.1"),
        (replace(needs, folder=absent), f"sees no folder {absent} of the source"),
        (replace(needs, dataset=Location(absent)), f"does not see what was written to {absent}"),
        (
            replace(needs, lease=".conversion/runs/other"),
            "does not see what was written to .*other",
        ),
        (replace(needs, scratch=tmp_path / "file"), "cannot use the destination: --scratch"),
    ]:
        with pytest.raises(
            MisfitError, match=f"a worker on .* {said}.*; expected the same version"
        ):
            require_fit(other)
    assert not absent.exists(), "a look leaves nothing behind"
    require_fit(needs)


@pytest.fixture
def other_version(tmp_path: Path) -> dict[str, str]:
    """Environment of a process in which another version is installed."""
    info = tmp_path / "other" / "lundprobe_zarr-99.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(OTHER_VERSION)
    return {"PYTHONPATH": os.pathsep.join([str(info.parent), str(Path(__file__).parents[2])])}


def test_a_worker_of_another_version_is_refused_at_once_and_as_it_comes(
    cluster: Cluster, other_version: dict[str, str], phantom_source: Path, tmp_path: Path
) -> None:
    misfit = cluster.worker(env=other_version)
    with Client(cluster.address) as client:
        client.wait_for_workers(1, timeout=PATIENCE_S)
    with pytest.raises(MisfitError, match=r"worker tcp://.* has lundprobe-zarr 99\.1, this"):
        convert(
            take_inventory(phantom_source), tmp_path / "out", Options(scheduler=cluster.address)
        )
    assert not list(tmp_path.glob("out/patients/*")), "before any patient"
    misfit.kill()

    fit = cluster.worker()
    out = tmp_path / "out"
    conversion = start(
        "lundprobe_zarr", "convert", phantom_source, out, "--scheduler", cluster.address,
        cwd=tmp_path,
    )  # fmt: skip
    wait_for(lambda: drafts(out, fit), conversion)
    os.kill(fit.pid, signal.SIGSTOP)  # stopped: all that is left is for the one to come
    cluster.worker(env=other_version)
    _, errors = conversion.communicate(timeout=PATIENCE_S)
    assert conversion.returncode == 2
    assert "has lundprobe-zarr 99.1, this process" in errors
    assert errors.count("\n") == 1, "no traceback"


def may_hide_folders() -> bool:
    command = [*HIDING, "true"]
    return bool(shutil.which("unshare")) and subprocess.run(command, check=False).returncode == 0


HIDING = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.mark.skipif(not may_hide_folders(), reason="needs mount namespaces for users")
@pytest.mark.parametrize("hidden", ["source", "destination"])
def test_a_worker_that_does_not_see_a_folder_is_refused(
    cluster: Cluster, phantom_source: Path, tmp_path: Path, hidden: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    place = shlex.quote(str(phantom_source.parent if hidden == "source" else out))
    script = f'mount -t tmpfs none {place} && exec "$@"'
    cluster.worker(before=[*HIDING, "sh", "-c", script, "sh"])
    cluster.worker()
    with Client(cluster.address) as client:
        client.wait_for_workers(2, timeout=PATIENCE_S)
    said = {"source": "sees no folder .* of the source", "destination": "does not see what was"}
    with pytest.raises(MisfitError, match=rf"^worker tcp://[\d.:]* {said[hidden]}"):
        convert(take_inventory(phantom_source), out, Options(scheduler=cluster.address))
    assert not list(out.glob("patients/*"))
