"""`make changelog`: fragments come under a new version, after what was noted before."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import changelog  # noqa: E402

TEXT = (
    "# Changelog\n\nIntro.\n\n## [Unreleased]\n\n### Added\n\n- One.\n\n### Earlier\n\n- Two.\n"
    "\n## [0.1.0]\n\n- Old.\n"
)


def test_fragments_come_under_the_version_by_kind():
    entries = [("added", "Three,\nin two lines."), ("fixed", "Four.")]
    made = changelog.released(TEXT, entries, "0.2.0", date(2026, 12, 1))
    assert made == (
        "# Changelog\n\nIntro.\n\n## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n"
        "\n### Added\n\n- One.\n- Three,\n  in two lines.\n"
        "\n### Fixed\n\n- Four.\n"
        "\n### Earlier\n\n- Two.\n\n## [0.1.0]\n\n- Old.\n"
    )
    again = changelog.released(made, [("changed", "Five.")], "0.3.0", date(2027, 1, 1))
    assert again.index("Five.") < again.index("[0.2.0]") < again.index("Three")


@pytest.mark.parametrize("version", ["0.1.0", "0.2", "next"])
def test_a_version_that_is_none_or_there_is_refused(version):
    with pytest.raises(ValueError, match="expected a new version"):
        changelog.released(TEXT, [], version, date(2026, 12, 1))


def test_names_of_fragments_say_their_kind(tmp_path):
    (tmp_path / "README.md").write_text("How.")
    (tmp_path / "dicom-export.added.md").write_text("A thing.\n")
    assert list(changelog.fragments(tmp_path).values()) == [("added", "A thing.")]
    (tmp_path / "dicom.news.md").write_text("x")
    with pytest.raises(ValueError, match=r"dicom\.news\.md: expected"):
        changelog.fragments(tmp_path)


def test_the_fragments_and_the_changelog_of_this_project_can_be_released():
    found = changelog.fragments(ROOT / "changelog.d")
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    made = changelog.released(text, list(found.values()), "99.0.0", date(2099, 1, 1))
    assert len(made) > len(text)
    assert {line for line in text.splitlines() if line.startswith("- ")} <= set(made.splitlines())
