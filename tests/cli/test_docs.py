"""README, docs and help: links lead somewhere, tables are fresh, every example runs."""

from __future__ import annotations

import re
import shlex
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from lundprobe_zarr.cli.app import COMMANDS
from lundprobe_zarr.cli.audit import audit
from lundprobe_zarr.cli.demo import demo
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


#: Pages whose blocks run one after another in one folder, in this order.
IN_ONE_FOLDER = ("README.md", "docs/get-started.md", "docs/converting.md")
#: Pages whose blocks run by themselves, on a dataset that is there.
ON_A_DATASET = ("docs/reading.md", "docs/cohorts.md", "docs/errors.md")
_NOT_RUN = re.compile(r"<!-- not run: \S[^>]+ -->\n\n$")
_JOINED = re.compile(r"^(?![-*|>#\s]|\d+\. |<!--)(.+)\n(?=(?:[-*] |\d+\. |\| ))", re.MULTILINE)


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of a page's code blocks, in order."""
    return _BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def run_blocks(cli, page: str, ran: set[str]) -> None:
    """Run a page's blocks; a command of `ran`, which ran in this folder before, is left out."""
    namespace: dict[str, object] = {}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, page, "exec"), namespace)
        elif language == "bash":
            for line in text.splitlines():
                if line not in ran:
                    run_line(cli, line)
                    ran.add(line)
        else:
            assert language == "text"


def test_every_block_of_the_readme_and_first_pages_runs(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran: set[str] = set()
    for page in IN_ONE_FOLDER:
        run_blocks(cli, page, ran)
    assert (tmp_path / "picture.png").exists()
    assert any((tmp_path / "nifti").rglob("*.nii.gz"))


@pytest.mark.parametrize("page", ON_A_DATASET)
def test_every_block_of_a_guide_runs(page, cli, dataset, tmp_path, monkeypatch):
    (tmp_path / "my-dataset").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    run_blocks(cli, page, set())


def pages() -> list[Path]:
    return sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.parametrize("page", [str(p.relative_to(ROOT)) for p in pages()])
def test_every_block_is_run_by_a_test_or_opted_out(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    if Path(page).name in _named_by_tests():
        return
    for block in re.finditer(r"^```(python|bash|sh)\n", text, re.MULTILINE):
        line = text.count("\n", 0, block.start()) + 1
        assert _NOT_RUN.search(text[: block.start()]), (
            f"{page}:{line}: no test names this page; run its blocks in one, or write "
            "`<!-- not run: REASON -->` and an empty line before the block"
        )


@lru_cache
def _named_by_tests() -> frozenset[str]:
    """Pages that a test names, and so runs."""
    texts = [f.read_text(encoding="utf-8") for f in (ROOT / "tests").rglob("test_*.py")]
    return frozenset(re.findall(r"[\"/]([\w-]+\.md)\"", "\n".join(texts)))


@pytest.mark.parametrize("page", [str(p.relative_to(ROOT)) for p in pages()])
def test_lists_and_tables_have_an_empty_line_before_them(page):
    """GitHub does without; Python-Markdown, which the site is made with, does not."""
    prose = re.sub(_BLOCK, "", (ROOT / page).read_text(encoding="utf-8"))
    assert [m[1] for m in _JOINED.finditer(prose)] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


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
    for command, example in COMMANDS:
        if command in (serve, view):  # do not end by themselves: tests/service runs it
            continue
        if command is demo:  # needs nothing of the others, and takes as long as all of them
            continue
        if command is audit:  # of a log that only `serve` writes
            (tmp_path / "audit.jsonl").touch()
        name, *arguments = shlex.split(example)
        assert name == command.__name__.replace("_", "-")
        ran = cli(name, *arguments)
        assert ran.status == 0, f"{example}: {ran.err}"


def test_the_example_of_demo_runs_and_runs_again(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lundprobe_zarr.cli.demo._SIZE", "tiny")
    ran = cli(*shlex.split(dict(COMMANDS)[demo]))
    assert ran.status == 0, ran.err
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
