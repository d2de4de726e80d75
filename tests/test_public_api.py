"""The public names and their signatures, held against the list kept in tests/data/api.txt."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import lundprobe_zarr as lp

for needed in ("torch", "monai", "torchio"):
    pytest.importorskip(needed, reason=f"some public names need {needed}")

KEPT = Path(__file__).parent / "data" / "api.txt"


def public_members(owner: type) -> Iterator[tuple[str, object]]:
    """Names of a class that a user may call or read, those inherited from ours too."""
    for name in sorted(dir(owner)):
        if not name.startswith("_"):
            yield name, inspect.getattr_static(owner, name)


def signature(thing: object) -> str:
    if isinstance(thing, property) or not callable(thing):
        return ""
    try:
        return str(inspect.signature(thing))
    except (TypeError, ValueError):
        return "(...)"


def described() -> Iterator[str]:
    """A line for each public name: `name(signature)`, and those of its members."""
    for name in sorted(lp.__all__):
        thing = getattr(lp, name)
        if not inspect.isclass(thing):
            yield f"{name}{signature(thing)}"
            continue
        made = (
            ""
            if issubclass(thing, Exception) and thing is not lp.LundProbeError
            else signature(thing)
        )
        yield f"class {name}{made}"
        if dataclasses.is_dataclass(thing) or not issubclass(thing, Exception):
            for member, value in public_members(thing):
                inner = getattr(value, "__func__", value)
                yield f"    {name}.{member}{signature(inner)}"


def test_public_names_and_signatures_are_those_that_were_kept() -> None:
    """A change here is a change for users: note it in the changelog, then keep it anew.

    `LUNDPROBE_KEEP_API=1 python -m pytest tests/test_public_api.py` writes the list.
    """
    found = "\n".join(described()) + "\n"
    if os.environ.get("LUNDPROBE_KEEP_API"):
        KEPT.write_text(found, encoding="utf-8")
    assert found.splitlines() == KEPT.read_text(encoding="utf-8").splitlines()


def test_public_names_are_listed_and_documented() -> None:
    assert sorted(lp.__all__) == list(lp.__all__)
    undocumented = [n for n in lp.__all__ if not (getattr(lp, n).__doc__ or "").strip()]
    assert undocumented == []
