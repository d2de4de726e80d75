"""Precision at its limits: the values next to a bound, and in which slab they are."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from lundprobe_zarr.errors import PrecisionError
from lundprobe_zarr.schema import precision
from lundprobe_zarr.schema.precision import (
    COMPACT_BOUND,
    COMPACT_STEP,
    FLOAT_LADDER,
    LADDER,
    PRECISIONS,
    Rounded,
    common_type,
    fits,
    holders,
    ladder_of,
    round_volume,
)

#: Slices worked on at once; volumes here have two slabs and a slice.
SLAB = precision._SLAB
LENGTH = 2 * SLAB + 1


def volume(value: float, dtype: str, at: int = LENGTH - 1, rest: float = 0) -> np.ndarray:
    """A volume of `rest` with one other value in slice `at`."""
    values = np.full((LENGTH, 2, 3), rest, dtype)
    values[at, 1, 2] = value
    return values


def test_ladders_are_the_documented_ones() -> None:
    assert PRECISIONS == ("lossless", "standard", "compact")
    assert ladder_of("image") == LADDER
    assert ladder_of("dose") == ladder_of("uncertainty") == FLOAT_LADDER
    assert LADDER[0] == "int16"
    assert COMPACT_STEP == 1 / 512
    assert COMPACT_BOUND == {"dose": 1e-3, "uncertainty": 1e-3}


@pytest.mark.parametrize("at", range(LENGTH))
def test_every_slab_is_looked_at(at: int) -> None:
    assert not fits(volume(0.5, "f4", at), "int16")
    assert not fits(volume(2.0**24 + 1, "f8", at), "float32")
    assert not fits(volume(2**24 + 1, "i4", at), "float32")
    signalling = volume(0, "f4", at)
    signalling.view(np.uint32)[at, 1, 2] = 0x7F800001
    assert not fits(signalling, "float64")
    with pytest.raises(PrecisionError, match=rf"\(z, y, x\) = \({at}, 1, 2\)"):
        round_volume(volume(np.nan, "f4", at), "compact", "dose", None, "here")
    for value, what in ((2.0**33, ("image", "sCT")), (2.0**40 + 0.1, ("dose", None))):
        with pytest.raises(PrecisionError, match=r"^here: value"):
            round_volume(volume(value, "f8", at), "compact", *what, "here")
    with pytest.raises(PrecisionError, match=r"^here: value 1e"):
        round_volume(volume(1e39, "f8", at), "standard", "dose", None, "here")


@pytest.mark.parametrize("at", range(LENGTH))
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_error_is_found_wherever_it_is(at: int, sign: int) -> None:
    small, large = 0.1 + 1e-10, 1000.1
    values = volume(sign * large, "f8", at, small)
    error = abs(float(np.float32(large)) - large)
    found = round_volume(values.copy(), "standard", "dose", None, "here")
    assert found.max_abs_error == error
    assert found.holders == ("float32", "float64")
    assert round_volume(
        volume(sign * 7.4, "f8", at, 3), "compact", "image", "sCT", "h"
    ).max_abs_error == pytest.approx(0.4)
    dose = round_volume(volume(sign * 1.4 / 512, "f8", at, 3), "compact", "dose", None, "here")
    assert dose.max_abs_error == pytest.approx(0.4 / 512)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "uint32"])
@pytest.mark.parametrize("source", ["i8", "f8"])
def test_limits_of_whole_types_are_inclusive(dtype: str, source: str) -> None:
    info = np.iinfo(dtype)
    for inside in (info.min, info.max):
        assert fits(volume(inside, source), dtype)
    for outside in (info.min - 1, info.max + 1):
        assert not fits(volume(outside, source), dtype)


def test_the_widest_whole_types_end_where_floats_go_on() -> None:
    below = np.nextafter(2.0**63, 0)
    assert fits(volume(below, "f8"), "int64")
    assert not fits(volume(2.0**63, "f8"), "int64")
    assert fits(volume(2.0**63, "f8"), "uint64")
    assert not fits(volume(2.0**64, "f8"), "uint64")
    assert fits(volume(-(2.0**63), "f8"), "int64")
    assert not fits(volume(-1.0, "f8"), "uint64")


def test_floats_hold_whole_numbers_up_to_their_mantissa() -> None:
    for dtype, top in (("float32", 2**24), ("float64", 2**53)):
        for sign in (1, -1):
            assert fits(volume(sign * top, "i8"), dtype)
            assert not fits(volume(sign * (top + 1), "i8"), dtype)
            assert fits(volume(sign * (top + 2), "i8"), dtype)
    assert not fits(volume(np.iinfo("i8").max, "i8"), "float64")
    assert fits(volume(np.iinfo("i8").min, "i8"), "float64")
    assert not fits(volume(np.iinfo("u8").max, "u8"), "float64")


def test_nothing_fits_anywhere() -> None:
    for source in ("i8", "u2", "f4"):
        empty = np.zeros((0, 2, 3), source)
        assert all(fits(empty, t) for t in LADDER)


def test_types_of_both_kinds_keep_bits() -> None:
    assert fits(volume(np.nan, "f4"), "float32")
    assert fits(volume(np.nan, "f4"), "float64"), "a quiet NaN"
    assert not fits(volume(np.nan, "f4"), "int32")
    assert not fits(volume(-0.0, "f4"), "int16")
    assert fits(volume(-0.0, "f4"), "float64")
    assert holders(volume(1, "i2"), ("float32", "uint16")) == ("float32", "uint16")


def rounded(*held: str) -> Rounded:
    return Rounded(np.zeros(1), True, 0.0, held)


def test_a_common_type_is_the_first_that_all_hold() -> None:
    both = [rounded("int16", "int32", "float32"), rounded("float32", "int32")]
    assert common_type(both, LADDER, "here") == np.int32
    assert common_type(both, FLOAT_LADDER, "here") == np.float32
    assert common_type([], LADDER, "here") == np.int16
    with pytest.raises(PrecisionError, match=r"here: .*\(they fit int16, int32 and none\)"):
        common_type([rounded("int32", "int16"), rounded()], LADDER, "here")


# What each precision changes


@pytest.mark.parametrize(
    ("precision_", "variable", "modality", "expected"),
    [
        ("lossless", "image", "sCT", 1.1),
        ("standard", "image", "sCT", np.float32(1.1)),
        ("compact", "image", "sCT", 1),
        ("compact", "image", "T2w", np.float32(1.1)),
        ("lossless", "dose", None, 1.1),
        ("standard", "dose", None, np.float32(1.1)),
        ("compact", "dose", None, 563 / 512),
        ("compact", "uncertainty", None, 563 / 512),
    ],
)
def test_a_precision_says_what_is_rounded(
    precision_: precision.Precision, variable: str, modality: str | None, expected: float
) -> None:
    found = round_volume(np.full((3, 1, 1), 1.1), precision_, variable, modality, "here")
    assert (found.values == expected).all()
    assert found.exact is (precision_ == "lossless")
    assert found.max_abs_error == abs(float(expected) - 1.1)


def test_standard_keeps_what_a_narrower_type_holds() -> None:
    for value in (7.0, 0.5, np.nan, np.inf):
        values = np.full((3, 1, 1), value)
        found = round_volume(values, "standard", "image", "T2w", "here")
        assert found.values is values
        assert found.exact
    assert (
        round_volume(np.full((3, 1, 1), 0.5), "standard", "image", None, "h").holders[0]
        == "float32"
    )


def test_infinities_are_kept_and_differ_by_nothing() -> None:
    values = np.array([[[0.1, np.inf, -np.inf, np.nan]]])
    found = round_volume(values.copy(), "standard", "dose", None, "here")
    np.testing.assert_array_equal(found.values, values.astype(np.float32))
    assert found.max_abs_error == abs(float(np.float32(0.1)) - 0.1)
    values[0, 0, 0] = -0.1
    found = round_volume(values.copy(), "standard", "dose", None, "here")
    assert found.max_abs_error == abs(float(np.float32(0.1)) - 0.1)


@pytest.mark.parametrize("value", [float(np.finfo("f4").max), -float(np.finfo("f4").max)])
def test_float32_ends_at_its_largest_number(value: float) -> None:
    nearly = value * (1 - 1e-9)
    found = round_volume(np.full((1, 1, 1), nearly), "standard", "dose", None, "here")
    assert float(found.values[0, 0, 0]) == value
    with pytest.raises(PrecisionError, match=r"does not fit float32; .* up to 3\.4028"):
        round_volume(np.full((1, 1, 1), value * 1.01), "standard", "dose", None, "here")


def test_hounsfield_units_end_with_int32() -> None:
    for value in (2.0**31 - 1, -(2.0**31)):
        found = round_volume(np.full((1, 1, 1), value), "compact", "image", "sCT", "here")
        assert int(found.values[0, 0, 0]) == value
        assert found.exact
    for value, said in ((2.0**31, "2147483648.0"), (-(2.0**31) - 1, "-2147483649.0")):
        with pytest.raises(PrecisionError, match=f"value {said} does not fit int32; .*2147483647"):
            round_volume(np.full((1, 1, 1), value), "compact", "image", "sCT", "here")


def test_halves_are_rounded_to_even() -> None:
    values = np.array([[[0.5, 1.5, 2.5, -0.5, -1.5]]], np.float32)
    found = round_volume(values, "compact", "image", "sCT", "here")
    assert found.values.ravel().tolist() == [0, 2, 2, 0, -2]
    assert (found.exact, found.max_abs_error) == (False, 0.5)


def test_the_buffer_is_reused_where_the_type_is_no_wider() -> None:
    """Half the memory at full size; a narrower source gets an array of its own."""
    for dtype, shares in (("f8", True), ("f4", True), ("i2", False)):
        values = np.ones((5, 2, 2), dtype)
        for variable, modality in (("image", "sCT"), ("dose", None)):
            values[:] = 1
            found = round_volume(values, "compact", variable, modality, "here")
            assert np.shares_memory(found.values, values) is shares
            assert found.values.shape == values.shape
            assert (found.values == 1).all()
            assert found.values.flags.c_contiguous


def test_compact_dose_is_bounded() -> None:
    """Far beyond 2**14 float32 has no multiples of the step any more: it errs by more."""
    fine = 2.0**14 - 0.3
    found = round_volume(np.full((1, 1, 1), fine), "compact", "dose", None, "here")
    assert found.max_abs_error <= 1e-3
    assert found.holders == FLOAT_LADDER
    with pytest.raises(PrecisionError, match=r"^here: value 65536\.004 .* within 0\.001 .* 16384;"):
        round_volume(np.full((1, 1, 1), 65536.004), "compact", "dose", None, "here")
    exact = round_volume(np.full((1, 1, 1), 0.5), "compact", "dose", None, "here")
    assert (exact.exact, exact.max_abs_error) == (True, 0.0)


def test_whole_types_are_always_finite() -> None:
    found = round_volume(np.full((3, 1, 1), 5, "i2"), "compact", "image", "T2w", "here")
    assert (found.exact, found.holders[0]) == (True, "int16")


def test_a_rounded_volume_does_not_change() -> None:
    rounded = round_volume(volume(1, "f4"), "standard", "image", "sCT", "here")
    with pytest.raises(FrozenInstanceError):
        rounded.exact = False  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["int16", "int32", "uint8"])
def test_floats_fit_integers_up_to_both_ends(kind: str) -> None:
    info = np.iinfo(kind)
    for value in (info.min, info.max):
        assert fits(volume(value, "f8"), kind)
    for value in (info.min - 1, info.max + 1, info.max + 0.5, np.nan, np.inf, -np.inf):
        assert not fits(volume(value, "f8"), kind)
    # In single precision the end of int32 is one too many.
    assert fits(volume(2.0**31, "f4"), "int32") is False
    assert fits(volume(-(2.0**31), "f4"), "int32") is True


def test_the_first_bad_voxel_and_the_value_too_low_are_named() -> None:
    spoilt = volume(np.nan, "f4")
    spoilt[-1, 0, 1] = np.inf
    with pytest.raises(PrecisionError, match=rf"value inf at voxel .* \({LENGTH - 1}, 0, 1\)"):
        round_volume(spoilt, "compact", "dose", None, "here")
    for value in (-(2.0**33), 2.0**33):
        with pytest.raises(PrecisionError, match=rf"value {value!r} does not fit int32"):
            round_volume(volume(value, "f8"), "compact", "image", "sCT", "here")
    over = volume(1e39, "f8", 0)
    over[0, 0, 1] = 2e39
    with pytest.raises(PrecisionError, match=r"value 2e\+39 does not fit float32"):
        round_volume(over, "standard", "dose", None, "here")
