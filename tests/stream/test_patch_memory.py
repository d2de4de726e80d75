"""Memory of patches that nobody holds any more is used again, and of no other."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from lundprobe_zarr.stream import buffers as memory
from lundprobe_zarr.stream.buffers import empty, zeros

_SHAPE = (4, 128, 256)


@pytest.fixture(autouse=True)
def nothing_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_IDLE", type(memory._IDLE)(maxlen=16))


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


@pytest.mark.parametrize("dtype", ["bool", "int16", "float32", "float64"])
def test_zeros_are_zeros_each_time(dtype: str) -> None:
    addresses = set()
    for _ in range(3):
        array = zeros(_SHAPE, np.dtype(dtype))
        assert array.shape == _SHAPE
        assert array.dtype == dtype
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not array.any()
        array[...] = 1
        addresses.add(_address(array))
        del array
    assert len(addresses) == 1


def test_memory_that_anyone_still_looks_at_is_not_lent_again() -> None:
    array = zeros(_SHAPE, np.dtype("float32"))
    array[...] = 7
    view = array[1:, ::2, 3:5].T
    del array
    other = zeros(_SHAPE, np.dtype("float32"))
    other[...] = 9
    assert (view == 7).all()


def test_small_arrays_and_large_ones_are_numpys_own() -> None:
    assert zeros((3,), np.dtype("float32")).base is None
    assert zeros((17, 1024, 1024), np.dtype("float32")).base is None
    assert zeros((0, 4), np.dtype("bool")).shape == (0, 4)


def test_sizes_that_are_asked_for_no_more_are_let_go() -> None:
    for _ in range(20):
        zeros((1024, 1024), np.dtype("uint8"))  # given back at once
    assert len(memory._IDLE) == 1
    for _ in range(3):
        zeros((512, 1024), np.dtype("uint8"))
    assert {array.size for array in memory._IDLE} == {512 * 1024}


def test_empty_memory_is_used_again_as_it_is() -> None:
    array = empty(_SHAPE, np.dtype("float32"))
    array[...] = 7
    address = _address(array)
    del array
    again = empty(_SHAPE, np.dtype("int32"))
    assert _address(again) == address
    assert empty((3,), np.dtype("float32")).base is None


def test_says_that_there_is_no_memory_as_numpy_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(memory.mmap, "mmap", refused)
    with pytest.raises(MemoryError, match=f"{2 * 1024**2} bytes for a patch: Cannot allocate"):
        empty((2, 1024, 1024), np.dtype(np.uint8))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_child_does_not_share_memory_with_its_parent() -> None:
    array = zeros((2, 1024, 1024), np.dtype(np.uint8))
    child = os.fork()
    if not child:
        array.fill(1)
        os._exit(0)
    os.waitpid(child, 0)
    assert not array.any()
