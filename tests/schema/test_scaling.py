"""Slope and intercept as nibabel applies them, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nibabel.volumeutils import apply_read_scaling

from lundprobe_zarr.schema.scaling import recovers, scale, unscale

SETTINGS = settings(derandomize=True, database=None, deadline=None, max_examples=100)
DTYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8")
SLOPES = st.one_of(
    st.sampled_from([1.0, -1.0, 0.5, 1e-3]),
    st.floats(2.0**-13, 2.0**13, width=32).map(float),
)
INTERS = st.one_of(
    st.sampled_from([0.0, -1024.0]), st.floats(-(2.0**13), 2.0**13, width=32).map(float)
)


def elements(dtype: str) -> st.SearchStrategy[object] | None:
    if np.dtype(dtype).kind != "f":
        return None
    return st.floats(-1e6, 1e6, width=32)


volumes = st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, (2, 3, 4), elements=elements(d)))


@SETTINGS
@given(volumes, SLOPES, INTERS)
def test_physical_values_are_nibabels(raw: np.ndarray, slope: float, inter: float) -> None:
    np.testing.assert_array_equal(scale(raw, slope, inter), apply_read_scaling(raw, slope, inter))


@SETTINGS
@given(volumes.filter(lambda v: v.dtype.kind in "iu"), SLOPES, INTERS)
def test_raw_integers_of_up_to_32_bits_come_back(
    raw: np.ndarray, slope: float, inter: float
) -> None:
    physical = scale(raw, slope, inter)
    back = unscale(physical, slope, inter, raw.dtype)
    assert recovers(physical, raw, slope, inter) == bool((back == raw).all())
    if abs(inter / slope) < 2**20:  # else the intercept swallows digits
        np.testing.assert_array_equal(back, raw)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_scaled_is_not_touched(dtype: str) -> None:
    raw = np.arange(24).astype(dtype).reshape(2, 3, 4)
    assert scale(raw, 1.0, 0.0) is raw
    assert recovers(raw, raw, 1.0, 0.0)


def test_a_scaling_that_loses_integers_is_noticed() -> None:
    raw = np.array([[[2**62, 2**62 + 1]]])
    assert not recovers(scale(raw, 0.1, 3.0), raw, 0.1, 3.0)
