"""`--verbose` logs to standard error, `--quiet` shows no progress, wherever they stand."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.cli.verbosity import set_verbosity

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The package's logger as it was: a command in this process sets it up."""
    log = logging.getLogger("lundprobe_zarr")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.mark.parametrize("words", [("info", "{}", "--verbose"), ("--verbose", "info", "{}")])
def test_verbose_logs_what_is_done(cli: Cli, dataset: Path, words: tuple[str, ...]) -> None:
    ran = cli(*(w.format(dataset) for w in words))
    assert ran.status == 0
    assert "INFO" not in ran.out
    assert "INFO lundprobe_zarr" in cli("query", dataset, "true", "--verbose").err


def test_logs_to_what_is_standard_error_now(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stderr", before)
    set_verbosity(0, False)
    before.close()
    monkeypatch.setattr("sys.stderr", after)
    logging.getLogger("lundprobe_zarr.anything").warning("said late")
    assert after.getvalue().endswith(" WARNING lundprobe_zarr.anything: said late\n")


def test_without_nothing_is_logged(cli: Cli, dataset: Path) -> None:
    assert cli("query", dataset, "true").err == ""


def test_quiet_leaves_out_progress_and_not_results(cli: Cli, dataset: Path) -> None:
    loud, quiet = cli("validate", dataset), cli("validate", dataset, "--quiet")
    assert "looked at" in loud.out
    assert "looked at" not in quiet.out
    assert "Sound: 4 stores" in quiet.out


def test_quiet_conversion(cli: Cli, phantom_source: Path, tmp_path: Path) -> None:
    ran = cli("convert", phantom_source, tmp_path / "d", "--quiet")
    assert ran.status == 0
    assert "[1/4]" not in ran.out
    assert "4 converted" in ran.out


def test_behind_two_dashes_they_are_arguments(cli: Cli, dataset: Path) -> None:
    assert cli("query", dataset, "--", "--verbose").status == 2


def test_twice_logs_every_request_and_no_credentials(
    dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("lundprobe_zarr")
    log.propagate = True
    with caplog.at_level(logging.DEBUG, "lundprobe_zarr"):
        url = f"memory://user:hunter2@host/{dataset.name}"
        with pytest.raises(lp.LundProbeError):
            lp.open_cohort(url, {"secret": "hunter2"})
    assert "cat_file" in caplog.text
    assert "hunter2" not in caplog.text
