"""The command line, run in this process or in one of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points

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
    """The command line finds the converter through the installed package's entry point."""
    if not entry_points(group="lundprobe_zarr.converter"):
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
