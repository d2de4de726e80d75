"""The command line, run in this process or in one of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import pytest

from lundprobe_zarr.cli import main


@dataclass(frozen=True)
class Ran:
    """How a command ended and what it wrote."""

    status: int
    out: str
    err: str


Cli = Callable[..., Ran]


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    """The converter is part of the installed package: a bare checkout has it elsewhere."""
    if find_spec("lundprobe_zarr.conversion") is None:
        pytest.fail("lundprobe-zarr is not installed here; run `make test`, or `pip install -e .`")


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process."""

    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        written = capfd.readouterr()
        return Ran(int(ended.value.code or 0), written.out, written.err)

    return run
