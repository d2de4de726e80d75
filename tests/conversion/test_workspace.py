"""Memory for voxels: what is handed out is one's own until it is released, and is used again."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lundprobe_zarr.conversion.source.workspace import Workspace, aligned

_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 2000)),
        st.tuples(st.just("take"), st.integers(1, 700)),
        st.tuples(st.just("release"), st.integers(0, 5)),
    ),
    max_size=30,
)


@given(_STEPS)
def test_nobody_elses_bytes_are_overwritten(steps: list[tuple[str, int]]) -> None:
    workspace = Workspace()
    held: list[tuple[int, np.ndarray]] = []
    for number, (step, size) in enumerate(steps):
        if step == "reserve":
            workspace.reserve(size)
        elif step == "take":
            buffer = workspace.take(size)
            assert buffer.size == size
            buffer[:] = number
            held.append((number, buffer))
        else:
            held = held[size : size + 1]  # one buffer goes on being used, or none
            workspace.release(but=held[0][1][::2] if held else None)
        assert all((buffer == owner).all() for owner, buffer in held)


def test_what_is_released_is_used_again() -> None:
    workspace = Workspace()
    workspace.reserve(aligned(100) + 300)
    kept, other = workspace.take(100), workspace.take(300)
    workspace.release(but=kept)
    again = workspace.take(300)
    assert np.shares_memory(again, other)
    assert not np.shares_memory(again, kept)


def test_what_was_not_reserved_is_memory_of_its_own() -> None:
    workspace = Workspace()
    workspace.reserve(100)
    inside, beyond = workspace.take(100), workspace.take(50)
    workspace.release()
    assert np.shares_memory(workspace.take(80), inside)
    assert not np.shares_memory(inside, beyond)


def test_memory_grows_to_what_is_needed_and_no_further() -> None:
    workspace = Workspace()
    workspace.reserve(1000)
    first = workspace.take(1000)
    workspace.release()
    workspace.reserve(10)
    assert np.shares_memory(workspace.take(1000), first)
