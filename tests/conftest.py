"""A phantom and its conversion, made once a run: everything below may read them, only."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import settings

from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.fragments import save_compared
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.dataset.compared import compare_store
from lundprobe_zarr.phantom import write_phantom
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.opening import open_store
from tests.spare import Spare

# Google's metadata server is nowhere near; without credentials, its client asks for it for 14 s.
os.environ["NO_GCE_CHECK"] = "true"
# gcsfs asks over gRPC what kind of bucket it has, for 60 s as no emulator answers; read at import.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
# Workers of torch are forked from a server that has imported what each would import for seconds.
multiprocessing.set_forkserver_preload(["torch", "datasets", "lundprobe_zarr.stream.torch"])
# Waits for the disk, milliseconds a file. It makes a difference where power fails, to no test.
os.fsync = os.fstat  # type: ignore[assignment]  # which too refuses what is not open
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for what a shell starts with `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("busy", deadline=None)  # a machine may have more to do than our tests
settings.load_profile("busy")


def pytest_collection_finish() -> None:
    """Leave all that is imported and collected out of garbage collections: they take a second."""
    gc.collect()
    gc.freeze()


@contextmanager
def made_once(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """Give the folder `name` of this run; it is not there yet for the first who asks, to fill it.

    The processes of pytest-xdist share it: others wait until it is complete.
    """
    home = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        home = home.parent
    with (home / f"{name}.lock").open("w") as lock:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield home / name


@pytest.fixture(scope="session")
def killed_writer() -> str:
    """Name of a writer whose process has ended: what it left is of nobody."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return f"{socket.gethostname()}-{process.pid}-0123abcd"


@pytest.fixture(scope="session")
def phantom_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source tree of a tiny phantom: three base patients and an extended one. Read-only."""
    with made_once(tmp_path_factory, "phantom-source") as home:
        if not home.exists():
            write_phantom(home / "phantom", patients=3, extended=1)
    return home / "phantom"


@pytest.fixture(scope="session")
def dataset(phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom converted with `standard` precision and measured. Read-only."""
    with made_once(tmp_path_factory, "phantom-dataset") as home:
        folder = home / "phantom"
        if not home.exists():
            _convert(phantom_source, folder)
    return folder


@pytest.fixture(scope="session")
def spare(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Spare:
    """A copy of `dataset` that tests change one after another, each finding it as it was."""
    return Spare(dataset, tmp_path_factory.mktemp("spare"))


@pytest.fixture
def copied(spare: Spare, tmp_path: Path) -> Iterator[Path]:
    """The phantom's dataset, to be changed: `copy` in the test's own folder."""
    with spare.lent(tmp_path / "copy") as place:
        yield place


@pytest.fixture(scope="session")
def undrawn(phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of one patient whose clinical Bladder on the MRI grid has no voxel."""
    patient = sorted(p for p in (phantom_source / "basePart").iterdir() if p.is_dir())[0]
    home = tmp_path_factory.mktemp("undrawn")
    shutil.copytree(patient, home / "source/basePart" / patient.name)
    bladder = home / f"source/basePart/{patient.name}/MR_StorT2/mask_Bladder.nii.gz"
    mask = nib.Nifti1Image.from_filename(bladder)
    nothing = np.zeros(mask.shape, np.uint8)
    nib.Nifti1Image(nothing, None, mask.header).to_filename(bladder)
    _convert(home / "source", home / "dataset")
    return home / "dataset"


@pytest.fixture(scope="session")
def one_patient(phantom_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`source` and `dataset` of one base patient, for what takes long with all. Read-only."""
    with made_once(tmp_path_factory, "one-patient") as home:
        if not home.exists():
            folder = take_inventory(phantom_source).patients[0].folder
            shutil.copytree(phantom_source / folder, home / "source" / folder)
            _convert(home / "source", home / "dataset")
    return home


def _convert(source: Path, folder: Path) -> None:
    for patient in take_inventory(source).patients:
        result = convert_patient(patient, folder, "standard")
        assert result.status == "converted", result.error
        store = open_store(Location(folder), patient.patient_id)
        save_compared(Location(folder), store, compare_store(Location(folder), store))
    finalise(folder)
