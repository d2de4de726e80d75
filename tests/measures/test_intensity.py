"""Statistics of image values inside a mask, against NumPy on all values at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lundprobe_zarr.measures.intensity import Inside, intensity
from lundprobe_zarr.schema.tables import PERMILLE, percentile_name

_TYPES = ("u1", "i1", "u2", "i2", "i4", "u4", "i8", "f4", "f8")


def _values(dtype):
    return arrays(
        dtype,
        st.tuples(*[st.integers(1, 6)] * 3),
        elements={"allow_nan": False, "allow_infinity": False} if dtype[0] == "f" else None,
    )


@pytest.mark.parametrize("dtype", _TYPES)
@settings(max_examples=30)
@given(st.data())
def test_statistics_are_those_of_numpy_for_any_values_of_any_type(dtype, data):
    image = data.draw(_values(dtype))
    mask = data.draw(arrays(bool, image.shape))
    inside = Inside.of(mask)
    if not mask.any():
        assert inside is None
        return
    found = intensity(image, inside)
    values = image[mask]
    assert found["voxels"] == values.size
    assert (found["min"], found["max"]) == (float(values.min()), float(values.max()))
    for p in PERMILLE:
        # NumPy's own rank is rounded: 0.995 n may be off by an ulp; ours is of whole numbers
        rank = max(1, -(-values.size * p // 1000))
        assert found[percentile_name(p)] == float(np.sort(values)[rank - 1])
    wide = values.astype(np.float64)
    scale = float(np.abs(wide).max())
    if scale == 0 or 1e-100 < scale < 1e100:  # squares of others are 0 or inf
        assert found["mean"] == pytest.approx(wide.mean(), rel=1e-12, abs=1e-12 * scale)
        assert found["sd"] == pytest.approx(wide.std(), rel=1e-9, abs=1e-9 * scale)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_many_values_have_the_percentiles_of_numpys_inverted_cdf(dtype):
    rng = np.random.default_rng(7)
    image = rng.normal(20, 300, (9, 70, 83)).astype(dtype)
    mask = rng.random(image.shape) < 0.4
    found = intensity(image, Inside.of(mask))
    for p in PERMILLE:
        expected = np.percentile(image[mask], p / 10, method="inverted_cdf")
        assert found[percentile_name(p)] == expected


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_have_no_statistics_inside_alone(wrong):
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    mask = np.ones(image.shape, bool)
    image[0, 0, 0] = wrong
    assert intensity(image, Inside.of(mask)) is None
    mask[0, 0, 0] = False
    assert intensity(image, Inside.of(mask))["min"] == 1


def test_values_near_the_largest_of_a_type_and_both_zeros_are_in_order():
    image = np.array([[[-0.0, 0.0, -3e38, 3e38, 1e-45, -1e-45]]], np.float32)
    found = intensity(image, Inside.of(np.ones(image.shape, bool)))
    assert (found["min"], found["p50"], found["max"]) == (image.min(), 0.0, image.max())
