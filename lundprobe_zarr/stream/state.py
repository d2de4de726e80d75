"""The state of a stream, and the identity of the stream it belongs to."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from lundprobe_zarr.dataset.identity import DatasetIdentity
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.patches import Plan

#: Version 2: patches of even size are centred to half a voxel.
VERSION = 2


def identity_of(plan: Plan) -> dict[str, Any]:
    """Return what decides the n-th patch: dataset, patients, seed, settings; JSON-ready."""
    dataset = plan.cohort.dataset.identity.model_dump(mode="json")
    ids = "\n".join(plan.cohort.ids)
    return {
        "dataset": dataset,
        "patients": len(plan.cohort),
        "cohort": hashlib.sha256(ids.encode()).hexdigest(),
        "seed": plan.seed,
        "settings": plan.settings(),
    }


def check(state: Mapping[str, Any], mine: Mapping[str, Any], length: int) -> tuple[int, int]:
    """Return epoch and position of a state of the stream with identity `mine`.

    Raise `UsageError` with every difference for a state of another stream.
    """
    if not isinstance(state, Mapping):
        raise UsageError(
            f"a state that is a {type(state).__name__}", expected="the dict that state_dict gave"
        )
    if state.get("version") != VERSION:
        raise UsageError(
            f"a state of version {state.get('version')!r}",
            expected=(
                f"{VERSION}, as PatchStream.state_dict of this version of lundprobe-zarr gives it"
            ),
        )
    try:
        differences = list(_differences(state, mine))
    except ValidationError as error:
        raise UsageError(
            f"the state's dataset is invalid: {error.errors()[0]['msg']}",
            expected="the dict that state_dict gave, unchanged",
        ) from error
    if differences:
        raise UsageError(
            f"the state is of another stream: it has {'; '.join(differences)}",
            remedy="create the stream with the settings it had when the state was saved",
        )
    return _number(state, "epoch", sys.maxsize), _number(state, "position", length)


def _number(state: Mapping[str, Any], name: str, most: int) -> int:
    value = state.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise UsageError(f"the state's {name} is {value!r}", expected=f"0 to {most}")
    return value


def _differences(state: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    absent = [k for k in mine if k not in state]
    if absent:
        return [f"no {', '.join(absent)}"]
    theirs = DatasetIdentity.model_validate(state["dataset"])
    found = [f"dataset: {d}" for d in theirs.differences(DatasetIdentity(**mine["dataset"]))]
    if state["cohort"] != mine["cohort"]:
        found.append(
            f"a cohort of {state['patients']} patients, not this one of {mine['patients']}"
        )
    if state["seed"] != mine["seed"]:
        found.append(f"seed {state['seed']}, not {mine['seed']}")
    settings = state["settings"]
    if not isinstance(settings, Mapping):
        return [*found, f"settings {settings!r}, which is not a dict"]
    for name, value in mine["settings"].items():
        if settings.get(name) != value:
            found.append(f"{name} {settings.get(name)!r}, not {value!r}")
    return found
