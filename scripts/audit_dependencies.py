"""Ask pip-audit for known vulnerabilities of what a service runs on, as it is installed here.

The exit status is 1 if a package of the extra `serve` has one, which others can reach over the
network. One in what the library itself needs is printed. Where the service that pip-audit asks
cannot be reached, or does not know a package, this is said, and the exit status is 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_PROJECT = "lundprobe-zarr"
_EXTRA = "serve"
#: Seconds that pip-audit may take.
_TIMEOUT = 300
#: Packages that a line names.
_NAMED = 5


def closure(requirements: Iterable[str]) -> dict[str, str]:
    """Version of each installed package that requirements lead to, by name."""
    found: dict[str, str] = {}
    waiting = [(Requirement(r), "") for r in requirements]
    done = set()
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        for of in ("", *sorted(wanted.extras)):
            if (name, of) in done:
                continue
            done.add((name, of))
            try:
                found[name] = version(name)
                waiting += [(Requirement(r), of) for r in requires(name) or ()]
            except PackageNotFoundError:  # for another platform
                continue
    return found


def ask(packages: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """What pip-audit says of packages, a record each; None if it could not ask."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "requirements.txt"
        listed.write_text("".join(f"{n}=={v}\n" for n, v in sorted(packages.items())))
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(listed), "--no-deps"]
        command += ["--disable-pip", "--format", "json", "--progress-spinner", "off"]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            return None
    try:
        found: list[dict[str, Any]] = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError):
        sys.stderr.write(ran.stderr.splitlines()[-1] + "\n" if ran.stderr else "")
        return None
    return found


def judge(
    records: Sequence[Mapping[str, Any]] | None, serving: Iterable[str]
) -> tuple[int, list[str]]:
    """Exit status and lines to print, for what pip-audit said."""
    if records is None:
        return 0, ["dependency audit: could not ask; nothing is known of vulnerabilities"]
    status, lines = 0, []
    exposed = set(serving)
    for record in records:
        for found in record.get("vulns", ()):
            name = canonicalize_name(record["name"])
            where = f"extra {_EXTRA}" if name in exposed else "library"
            status = 1 if name in exposed else status
            fixed = ", ".join(found.get("fix_versions", ())) or "nothing yet"
            lines.append(f"{where}: {name} {record['version']}: {found['id']}, mended by {fixed}")
    skipped = sorted(r["name"] for r in records if "skip_reason" in r)
    asked = len(records) - len(skipped)
    if skipped:
        more = f" and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
        lines.append(f"dependency audit: could not ask about {', '.join(skipped[:_NAMED])}{more}")
    lines.append(f"dependency audit: asked about {asked} packages of {len(records)}")
    return status, lines


def of_extra() -> list[str]:
    """Requirements of the extra alone, without its marker."""
    found = []
    for requirement in map(Requirement, requires(_PROJECT) or ()):
        marker = requirement.marker
        if marker and marker.evaluate({"extra": _EXTRA}) and not marker.evaluate({"extra": ""}):
            requirement.marker = None
            found.append(str(requirement))
    return found


def main() -> int:
    """Ask, print, and return the exit status."""
    packages = closure([f"{_PROJECT}[{_EXTRA}]"])
    packages.pop(_PROJECT, None)
    status, lines = judge(ask(packages), closure(of_extra()))
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return status


if __name__ == "__main__":
    raise SystemExit(main())
