"""Print the oldest versions that pyproject.toml allows, as constraints for pip.

`NAME==VERSION` for every requirement of the package and of its extras but for developers' own,
whose tools may be the newest. Extras in brackets count for the package they belong to, and
`distributed` has the version of `dask`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)(?:; sys_platform .*)?")
#: Extras of those who work on the package: their tools are taken as new as they come.
_TOOLS = ("dev", "docs", "clouds", "frameworks")
#: Packages that are released together with one that is named.
_TOGETHER = {"dask": "distributed"}


def constraints(pyproject: str) -> list[str]:
    """Constraints of the text of a pyproject.toml; raises `ValueError` for one without a bound."""
    project = tomllib.loads(pyproject)["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(r for n in extras if n not in _TOOLS for r in extras[n])]
    lines = []
    for requirement in wanted:
        found = _REQUIREMENT.fullmatch(requirement)
        if found is None:
            raise ValueError(f"{requirement!r} in pyproject.toml; expected NAME>=VERSION")
        name, version = found.groups()
        lines += [f"{n}=={version}" for n in (name, _TOGETHER.get(name)) if n is not None]
    return list(dict.fromkeys(lines))


if __name__ == "__main__":
    sys.stdout.write("\n".join(constraints(_PYPROJECT.read_text(encoding="utf-8"))) + "\n")
