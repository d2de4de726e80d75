"""docs/quality.md and docs/paper.md: every example runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lundprobe_zarr.cli import main

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("guide", ["quality.md", "paper.md"])
def test_every_block_runs(
    guide: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-dataset").symlink_to(dataset)
    monkeypatch.chdir(tmp_path)
    languages = []
    for language, text in _BLOCK.findall((DOCS / guide).read_text(encoding="utf-8")):
        languages.append(language)
        if language == "python":
            exec(compile(text, guide, "exec"), {})
        elif language == "json":
            Path("rules.json").write_text(text)
        elif language == "bash":
            for line in text.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "lundprobe-zarr"
                with pytest.raises(SystemExit) as ended:
                    main(arguments)
                assert ended.value.code == 0, line
        else:
            assert language == "sql"  # those of test_paper.py
    assert languages.count("python") >= 1
    assert languages.count("bash") >= 2
