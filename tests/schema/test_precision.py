"""Which type holds which values, against an oracle that tries each value by itself."""

from __future__ import annotations

import struct
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lundprobe_zarr.errors import PrecisionError
from lundprobe_zarr.schema.precision import (
    FLOAT_LADDER,
    LADDER,
    Rounded,
    common_type,
    fits,
    holders,
    round_volume,
)

SETTINGS = settings(derandomize=True, database=None, deadline=None, max_examples=150)
FEWER = settings(SETTINGS, max_examples=60)
DTYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
FLOATS = {"f4": "f", "f8": "d"}
SHAPE = (9, 2, 2)


def edges() -> list[int]:
    """Whole numbers next to every limit a type has."""
    return [
        s * (1 << n) + d
        for n in (7, 8, 15, 16, 24, 31, 32, 53, 63, 64)
        for s in (1, -1)
        for d in (-1, 0, 1)
    ]


def elements(dtype: str) -> st.SearchStrategy[object]:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        width = kind.itemsize * 8
        whole = [float(np.array(e, dtype)) for e in edges()]
        return st.one_of(
            st.floats(width=width),  # type: ignore[arg-type]
            st.sampled_from(whole),
            st.integers(-(2**15), 2**15).map(float),
        )
    info = np.iinfo(kind)
    low, high = int(info.min), int(info.max)
    inside = [e for e in edges() if low <= e <= high] or [0]
    return st.one_of(st.integers(low, high), st.sampled_from(inside))


@st.composite
def volumes(draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES) -> np.ndarray:
    """Two or fewer values all over a volume, so that holding them is not hopeless."""
    dtype = draw(st.sampled_from(dtypes))
    few = draw(st.lists(elements(dtype), min_size=1, max_size=2))
    return draw(hnp.arrays(dtype, SHAPE, elements=st.sampled_from(few)))


def held(value: object, source: np.dtype, target: np.dtype) -> bool:
    """Whether one number survives in another type: exactly, in Python's own arithmetic."""
    if source.kind in "iu":
        number = int(value)  # type: ignore[call-overload]
        if target.kind in "iu":
            return bool(np.iinfo(target).min <= number <= np.iinfo(target).max)
        return int(float(target.type(number))) == number
    number = float(value)  # type: ignore[arg-type]
    if np.isnan(number):
        return target == source or (target.kind == "f" and nan_held(value, source, target))
    if target.kind == "f":
        return bool(np.isinf(number)) or single(number, target) == Fraction(number)
    if np.isinf(number) or (number == 0 and np.signbit(number)):
        return False
    whole = number == int(number)
    return whole and bool(np.iinfo(target).min <= int(number) <= np.iinfo(target).max)


def single(number: float, target: np.dtype) -> Fraction | None:
    try:
        return Fraction(
            struct.unpack(FLOATS[target.str[1:]], struct.pack(FLOATS[target.str[1:]], number))[0]
        )
    except OverflowError:
        return None


def nan_held(value: object, source: np.dtype, target: np.dtype) -> bool:
    """A NaN survives if it is quiet and its payload fits."""
    bits = int(np.array(value, source).view(f"u{source.itemsize}"))
    payload = 23 if source.itemsize == 4 else 52
    quiet = bool(bits >> (payload - 1) & 1)
    return quiet and (source.itemsize == 4 or bits & ((1 << 29) - 1) == 0)


@SETTINGS
@given(volumes())
@example(np.full(SHAPE, 2.0**63))
@example(np.full(SHAPE, 2.0**64, np.float32))
@example(np.full(SHAPE, 2.0**32, np.float32))
@example(np.full(SHAPE, 2.0**31, np.float32))
@example(np.full(SHAPE, -0.0))
@example(np.full(SHAPE, np.iinfo(np.int64).max))
@example(np.full(SHAPE, np.iinfo(np.uint64).max))
@example(np.full(SHAPE, np.iinfo(np.int64).min))
@example(np.full(SHAPE, 0x7FC00001, np.uint32).view(np.float32))
@example(np.full(SHAPE, 0x7F800001, np.uint32).view(np.float32))
@example(np.full(SHAPE, 0x7FF8000000000001, np.uint64).view(np.float64))
def test_a_type_fits_just_if_every_value_survives_in_it(volume: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {t for t in LADDER if fits(volume, t)}
        assert holders(volume) == tuple(t for t in LADDER if t in found)
    # Not .tolist(): Python floats have no signalling NaN.
    values = list(np.unique(volume.reshape(-1).view(f"u{volume.itemsize}")).view(volume.dtype))
    for name in LADDER:
        expected = all(held(v, volume.dtype, np.dtype(name)) for v in values)
        assert (name in found) == expected, name


@SETTINGS
@given(volumes(), volumes())
def test_the_common_type_is_the_narrowest_that_holds_both(a: np.ndarray, b: np.ndarray) -> None:
    rounded = [Rounded(v, True, 0.0, holders(v)) for v in (a, b)]
    both = [t for t in LADDER if fits(a, t) and fits(b, t)]
    if both:
        assert common_type(rounded, LADDER, "here") == np.dtype(both[0])
    else:
        with pytest.raises(PrecisionError, match=r"^here: no type holds all .*check the source"):
            common_type(rounded, LADDER, "here")


@FEWER
@given(volumes(), st.sampled_from(["image", "dose"]))
def test_lossless_changes_no_bit(volume: np.ndarray, variable: str) -> None:
    before = volume.copy()
    rounded = round_volume(volume, "lossless", variable, None, "here")
    assert rounded.exact
    assert rounded.max_abs_error == 0
    assert rounded.values.tobytes() == before.tobytes()


@FEWER
@given(hnp.arrays("f8", SHAPE, elements=st.floats(-3e38, 3e38)))
@example(np.full(SHAPE, 0.1))
@example(np.full(SHAPE, 1e-320))
def test_standard_rounds_float64_alone_and_says_by_how_much(volume: np.ndarray) -> None:
    before = volume.copy()
    rounded = round_volume(volume, "standard", "dose", None, "here")
    assert rounded.holders[0] == "float32"
    np.testing.assert_array_equal(rounded.values, before.astype(np.float32))
    error = float(np.abs(rounded.values.astype(np.float64) - before).max())
    assert rounded.max_abs_error == error
    assert rounded.exact == (rounded.values.astype(np.float64).tobytes() == before.tobytes())


@FEWER
@given(volumes(tuple(d for d in DTYPES if d != "f8")))
def test_standard_changes_no_bit_of_any_other_type(volume: np.ndarray) -> None:
    before = volume.copy()
    rounded = round_volume(volume, "standard", "image", None, "here")
    assert rounded.exact
    assert rounded.values.tobytes() == before.tobytes()


@FEWER
@given(
    hnp.arrays(st.sampled_from(["f4", "f8"]), SHAPE, elements=st.floats(-16000, 16000, width=32)),
    st.sampled_from(["dose", "uncertainty"]),
)
def test_compact_keeps_dose_and_uncertainty_within_a_thousandth(
    volume: np.ndarray, variable: str
) -> None:
    before = volume.copy()
    rounded = round_volume(volume, "compact", variable, None, "here")
    error = float(np.abs(rounded.values.astype(np.float64) - before.astype(np.float64)).max())
    assert rounded.values.dtype == np.float32
    assert error <= 1e-3
    assert rounded.max_abs_error == error
    if rounded.exact:
        assert rounded.values.astype(before.dtype).tobytes() == before.tobytes()


@FEWER
@given(
    hnp.arrays(
        st.sampled_from(["f4", "f8", "i4", "i8"]),
        SHAPE,
        elements=st.one_of(
            st.integers(-(2**31) + 128, 2**31 - 128)
            .map(lambda n: float(np.float32(n)))
            .filter(lambda f: -(2.0**31) <= f < 2.0**31)
            .map(int),
            st.integers(-1200, 3000),
        ),
    )
)
@example(np.full(SHAPE, 40000.0))
@example(np.full(SHAPE, -999.5))
@example(np.full(SHAPE, 0.5, np.float32))
@example(np.full(SHAPE, -0.0))
@example(np.full(SHAPE, 2.0**31 - 1))
@example(np.full(SHAPE, -(2.0**31)))
def test_compact_keeps_whole_hounsfield_units_in_the_narrowest_integer(volume: np.ndarray) -> None:
    before = volume.astype(np.float64)
    exact = volume.copy()
    rounded = round_volume(volume, "compact", "image", "sCT", "here")
    np.testing.assert_array_equal(rounded.values.astype(np.float64), np.rint(before))
    narrowest = next(t for t in LADDER if fits(np.rint(before) + 0.0, t))
    assert rounded.holders[0] == narrowest
    assert rounded.max_abs_error == float(np.abs(np.rint(before) - before).max())
    assert rounded.max_abs_error <= 0.5
    if rounded.exact:
        assert rounded.values.astype(exact.dtype).tobytes() == exact.tobytes()


@pytest.mark.parametrize("value", [2.0**31, -(2.0**31) - 1, 1e12, -1e300])
def test_hounsfield_units_beyond_int32_are_refused(value: float) -> None:
    volume = np.zeros(SHAPE)
    volume[5, 1, 0] = value
    with pytest.raises(PrecisionError, match=r"^here: value .* does not fit int32; expected"):
        round_volume(volume, "compact", "image", "sCT", "here")


@FEWER
@given(volumes(("f4", "f8")), st.sampled_from([("image", "sCT"), ("image", "T2w"), ("dose", None)]))
def test_compact_refuses_what_is_not_finite_and_names_the_voxel(
    volume: np.ndarray, what: tuple[str, str | None]
) -> None:
    volume = np.where(np.isfinite(volume) & (np.abs(volume) < 1e4), volume, 1)
    volume[7, 1, 0] = np.inf
    with pytest.raises(
        PrecisionError, match=r"^here: value inf at voxel \(z, y, x\) = \(7, 1, 0\)"
    ):
        round_volume(volume, "compact", *what, "here")


@pytest.mark.parametrize("value", [1e39, -1e300])
def test_float64_beyond_float32_is_refused_by_standard_and_kept_by_lossless(value: float) -> None:
    with pytest.raises(PrecisionError, match=r"does not fit float32.*--precision lossless"):
        round_volume(np.full(SHAPE, value), "standard", "dose", None, "here")
    kept = round_volume(np.full(SHAPE, value), "lossless", "dose", None, "here")
    assert kept.holders == ("float64",)


def test_dose_is_float_even_where_all_of_it_is_whole() -> None:
    rounded = round_volume(np.zeros(SHAPE, np.int16), "standard", "dose", None, "here")
    assert rounded.holders == FLOAT_LADDER
