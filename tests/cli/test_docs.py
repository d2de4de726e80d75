"""README, docs and help: links lead somewhere, tables are fresh, every example runs."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from lundprobe_zarr.cli.app import COMMANDS
from lundprobe_zarr.cli.audit import audit
from lundprobe_zarr.cli.serve import serve
from lundprobe_zarr.cli.view import view

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import check_links  # noqa: E402
import generate_docs  # noqa: E402
from minimum_versions import constraints  # noqa: E402

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: What a block may hold that is run by hand, in an environment of its own.
_SETTING_UP = re.compile(r"make ([\w-]+)|pip install \.")


def blocks() -> list[tuple[str, str]]:
    """Language and text of the README's code blocks, in order."""
    return _BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def test_every_block_of_the_readme_runs(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for language, text in blocks():
        if language == "python":
            exec(compile(text, "README.md", "exec"), namespace)
        elif language == "bash":
            for line in text.splitlines():
                run_line(cli, line)
        else:
            assert language == "text"
    assert (tmp_path / "picture.png").exists()


def run_line(cli, line: str) -> None:
    if setting_up := _SETTING_UP.fullmatch(line):
        target = setting_up[1]
        assert target is None or f"\n{target}:" in (ROOT / "Makefile").read_text()
        return
    program, *arguments = shlex.split(line)
    assert program == "lundprobe-zarr"
    ran = cli(*arguments)
    assert ran.status == 0, f"{line}: {ran.err}"


def test_examples_of_help_run_in_order(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lundprobe_zarr.cli.demo._SIZE", "tiny")
    for command, example in COMMANDS:
        if command in (serve, view):  # do not end by themselves: tests/service runs it
            continue
        if command is audit:  # of a log that only `serve` writes
            (tmp_path / "audit.jsonl").touch()
        name, *arguments = shlex.split(example)
        assert name == command.__name__.replace("_", "-")
        ran = cli(name, *arguments)
        assert ran.status == 0, f"{example}: {ran.err}"
    assert len(list((tmp_path / "DEMO" / "pictures").glob("*.png"))) == 2
    assert "Quality report" in (tmp_path / "DEMO" / "qc.html").read_text()
    again = cli("demo", "DEMO")
    assert again.status == 0
    assert "There from an earlier run" in again.out
    assert "4 skipped" in again.out
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    refused = cli("demo", "other")
    assert refused.status == 2
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["file"]


def test_no_link_is_dead():
    assert check_links.main() == 0


@pytest.mark.parametrize(
    ("text", "dead"),
    [
        ("[a](there.md)", 0),
        ("[a](there.md#a-heading)", 0),
        ("[a](#here-too)\n\n# Here, *too*", 0),
        ("[a](https://example.org/nowhere) `[a](nowhere)`\n```\n[a](nowhere)\n```\n", 0),
        ("[a](nowhere.md)", 1),
        ("[a](there.md#no-heading)", 1),
        ("[a](#nowhere) [b](nowhere)", 2),
    ],
)
def test_dead_links_are_found(tmp_path, text, dead):
    (tmp_path / "there.md").write_text("# A heading\n")
    (tmp_path / "a.md").write_text(text)
    assert len(list(check_links.dead_links(tmp_path / "a.md", tmp_path))) == dead


def test_generated_sections_are_fresh():
    assert generate_docs.main(["--check"]) == 0


def test_a_stale_section_is_found_and_mended(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("x\n")
    readme = tmp_path / "README.md"
    readme.write_text("Before\n<!-- generated: structures -->\nstale\n<!-- end -->\nafter\n")
    monkeypatch.setattr(generate_docs, "_ROOT", tmp_path)
    assert generate_docs.main(["--check"]) == 1
    assert "stale" in readme.read_text()
    assert generate_docs.main([]) == 0
    assert generate_docs.main(["--check"]) == 0
    assert "| `CTVT_427` |" in readme.read_text()
    assert readme.read_text().startswith("Before\n")
    assert readme.read_text().endswith("<!-- end -->\nafter\n")


def test_every_requirement_has_an_oldest_version_to_be_tested():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = constraints(text)
    assert any(line.startswith("zarr==") for line in found)
    assert any(line.startswith("distributed==") for line in found)
    assert not any(line.startswith("pytest==") for line in found)
    with pytest.raises(ValueError, match=r"'numpy'.*expected NAME>=VERSION"):
        constraints(text.replace('"numpy>=2.2.5"', '"numpy"'))
