"""Parts of the site that need no generator: its reference, its navigation, what checks it."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import lundprobe_zarr as lp
from lundprobe_zarr import errors

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import check_site  # noqa: E402
import site_reference  # noqa: E402


def test_the_reference_has_every_public_name():
    made = site_reference.python()
    assert [n for n in lp.__all__ if f"::: lundprobe_zarr.{n}\n" not in made] == []
    assert "accessor.DataArrayAccessor" in made
    assert "accessor.DatasetAccessor" in made


def test_the_reference_has_every_command_and_its_help():
    made = site_reference.command_line()
    for command in ("convert", "token add", "token revoke", "serve"):
        assert f"## {command}\n" in made
        assert f"$ lundprobe-zarr {command} --help\n" in made
    assert "Example: lundprobe-zarr convert SOURCE DATASET" in made


def test_the_reference_has_every_error():
    made = site_reference.error_classes()
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, lp.LundProbeError):
            assert f"| `{name}` |" in made


def test_operations_of_the_service_are_written_as_tables():
    operation = {
        "summary": "Run a SELECT.",
        "parameters": [
            {
                "name": "n",
                "in": "query",
                "schema": {"type": "integer", "minimum": 1},
                "description": "a | b",
            }
        ],
        "requestBody": {
            "content": {
                "application/json": {
                    "schema": {"properties": {"sql": {"type": "string"}}, "required": ["sql"]}
                }
            }
        },
        "responses": {"200": {"description": "Rows.", "content": {"text/csv": {}}}, "401": {}},
    }
    made = site_reference._operation("post", "/sql", operation)
    assert "### `POST /sql`" in made
    assert "| `n` (optional) | query | integer, at least 1 | a \\| b |" in made
    assert "| `sql` | string |  |" in made
    assert "| 200 | `text/csv` | Rows. |" in made
    assert "Errors: 401." in made


def test_every_page_of_the_navigation_is_there():
    class Loader(yaml.SafeLoader):
        """Takes the names of Python objects, which MkDocs knows, for nothing."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    made = {"contributing.md", "changelog.md", "vulnerabilities.md"}
    named = set(_pages(config["nav"])) - made
    there = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    there |= {f"tutorials/{p.stem}.md" for p in (ROOT / "docs" / "tutorials").glob("*.py")}
    assert named <= there
    assert {t for t in there if t.startswith("tutorials/")} <= named


def _pages(entry):
    if isinstance(entry, str):
        yield entry
    for inner in entry.values() if isinstance(entry, dict) else entry:
        if not isinstance(entry, str):
            yield from _pages(inner)


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("a.html", '<a href="https://x.org">x</a><script src="a.js"></script>', 0),
        ("a.html", '<link rel="canonical" href="https://x.org/"><img src="a.png" alt="">', 0),
        ("a.html", '<script src="https://x.org/a.js"></script>', 1),
        ("a.html", '<link rel="stylesheet" href="//x.org/a.css">', 1),
        ("a.html", '<p style="background: url(https://x.org/a.png)">', 1),
        ("a.html", '<img src="a.png">', 1),
        ("a.css", "@import 'https://x.org/a.css'; a { background: url(b.png) }", 1),
    ],
)
def test_what_a_page_fetches_from_elsewhere_is_found(tmp_path, name, text, wrong):
    (tmp_path / name).write_text(text)
    assert len(list(check_site.problems(tmp_path))) == wrong


def test_the_citation_has_the_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cited["version"] == project["version"]
    assert cited["license"] == project["license"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=str)
def test_workflows_call_targets_that_exist(path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"] if "run" in step]
    targets = [step["run"].split()[1] for step in steps if step["run"].startswith("make ")]
    for job in jobs.values():
        targets += job.get("strategy", {}).get("matrix", {}).get("target", [])
    assert targets
    for target in targets:
        assert target.startswith("${{") or f"\n{target}:" in makefile
