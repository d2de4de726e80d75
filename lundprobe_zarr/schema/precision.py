"""Types of stored values, and what each precision may change.

`lossless` changes nothing, `standard` rounds only float64 that float32 cannot hold, `compact`
rounds for training within stated bounds. Values that are not rounded are kept bit for bit, so types
are compared by bits: int16 does not hold -0.0, and float32 holds a NaN only with its payload.
Arrays here are (z, y, x) volumes, processed in slabs of slices to bound memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lundprobe_zarr.errors import PrecisionError

Precision = Literal["lossless", "standard", "compact"]
PRECISIONS: tuple[Precision, ...] = ("lossless", "standard", "compact")
Volume = npt.NDArray[Any]

#: Types of an array of physical values, narrowest first. The first has 16 bits, as MR and CT have,
#: so that the patients of a cohort agree in type; a smaller one saves no space after compression.
LADDER: tuple[str, ...] = (
    "int16",
    "uint16",
    "int32",
    "uint32",
    "float32",
    "float64",
    "int64",
    "uint64",
)
#: Dose and uncertainty are fractions: float even where all values of a patient are whole numbers.
FLOAT_LADDER: tuple[str, ...] = ("float32", "float64")

#: Bounds that `compact` keeps: 1 mGy of dose, 1e-3 of a standard deviation.
COMPACT_BOUND: dict[str, float] = {"dose": 1e-3, "uncertainty": 1e-3}
#: Rounding to multiples of 2**-9 has an error of at most 2**-10 = 0.98e-3, within both bounds. A
#: power of two leaves trailing zero bits in the mantissa, which compress.
COMPACT_STEP = 2.0**-9

#: Slices per slab: 16 MiB of 1024×1024 float64, which malloc serves from memory it holds. From
#: 32 MiB every temporary has new pages, zeroed by the system.
_SLAB = 2


@dataclass(frozen=True)
class Rounded:
    """A volume to store, before the common type of its array is chosen.

    `exact` is whether the values are the source's physical values bit for bit, `max_abs_error`
    the largest difference (in the values' unit) where they are not, `holders` the types of the
    ladder that hold them exactly, narrowest first.
    """

    values: Volume
    exact: bool
    max_abs_error: float
    holders: tuple[str, ...]


def ladder_of(variable: str) -> tuple[str, ...]:
    """Return the types for `variable` (`image`, `dose`, `uncertainty`), narrowest first."""
    return LADDER if variable == "image" else FLOAT_LADDER


def _slabs(volume: Volume) -> Iterator[Volume]:
    for start in range(0, len(volume), _SLAB):
        yield volume[start : start + _SLAB]


def _bits(values: Volume) -> Volume:
    return values.view(f"u{values.dtype.itemsize}")


def _slab_fits(slab: Volume, target: np.dtype[Any]) -> bool:
    """Return whether a slab is unchanged, bit for bit, by a round trip through `target`."""
    if slab.dtype.kind == "f" and target.kind in "iu":
        # Values beyond the limits wrap on one processor and saturate on another: never cast them.
        # Both limits are powers of two or 0, which a float holds exactly; NaN is outside.
        info = np.iinfo(target)
        low, beyond = (
            slab.dtype.type(info.min),
            slab.dtype.type(2.0 ** (info.bits - (info.min < 0))),
        )
        if not bool(((slab >= low) & (slab < beyond)).all()):
            return False
    with np.errstate(invalid="ignore", over="ignore"):
        back = slab.astype(target).astype(slab.dtype)
    return bool(np.array_equal(_bits(back), _bits(slab)))


def fits(volume: Volume, dtype: str) -> bool:
    """Return whether `dtype` holds every value of `volume` exactly, bit for bit.

    `volume` is contiguous, of any integer or float type. NaN keeps its payload, -0.0 its sign.
    """
    source, target = volume.dtype, np.dtype(dtype)
    if source == target:
        return True
    if source.kind in "iu" and target.kind in "iu":
        low, high = np.iinfo(target).min, np.iinfo(target).max
        return volume.size == 0 or (int(volume.min()) >= low and int(volume.max()) <= high)
    if source.kind in "iu" and target.kind == "f":
        return _integers_fit_float(volume, target)
    if np.can_cast(source, target):
        return not _has_nan(volume) or all(_slab_fits(s, target) for s in _slabs(volume))
    return all(_slab_fits(s, target) for s in _slabs(volume))


def _integers_fit_float(volume: Volume, target: np.dtype[Any]) -> bool:
    if volume.size == 0:
        return True
    exact_up_to = 2 ** (np.finfo(target).nmant + 1)
    if max(-int(volume.min()), int(volume.max())) <= exact_up_to:
        return True
    # Compared as exact integers of Python: int64 -> float64 -> int64 overflows near the maximum.
    top = float(np.iinfo(volume.dtype).max)
    return all(
        bool(np.all(s.astype(target) < top)) and _slab_fits(s, target) for s in _slabs(volume)
    )


def _has_nan(volume: Volume) -> bool:
    return volume.dtype.kind == "f" and any(bool(np.isnan(s).any()) for s in _slabs(volume))


def holders(volume: Volume, ladder: Iterable[str] = LADDER) -> tuple[str, ...]:
    """Return the types of `ladder` that hold `volume` exactly, in the ladder's order."""
    return tuple(dtype for dtype in ladder if fits(volume, dtype))


def common_type(candidates: Iterable[Rounded], ladder: Iterable[str], where: str) -> np.dtype[Any]:
    """Return the narrowest type that holds all of an array's volumes exactly.

    Raises `PrecisionError`, naming `where`, if there is none.
    """
    each = [set(c.holders) for c in candidates]
    for dtype in ladder:
        if all(dtype in held for held in each):
            return np.dtype(dtype)
    types = " and ".join(", ".join(sorted(held)) or "none" for held in each)
    raise PrecisionError(
        f"no type holds all of its volumes exactly (they fit {types})",
        where=where,
        expected=f"values that share one of the types {', '.join(ladder)}",
        remedy="check the source files' data types",
    )


def round_volume(
    volume: Volume, precision: Precision, variable: str, modality: str | None, where: str
) -> Rounded:
    """Apply a precision to physical values; the buffer of `volume` may be reused.

    `volume` is contiguous (z, y, x) in native byte order, `where` names the file in errors.
    Raises `PrecisionError` for inf or NaN under `compact`, and for values that the rounded type
    cannot hold.
    """
    if precision == "compact":
        _require_finite(volume, where)
        if modality == "sCT":
            return _whole_hounsfield(volume, where)
        if variable in COMPACT_BOUND:
            return _quantised(volume, COMPACT_BOUND[variable], where)
    ladder = ladder_of(variable)
    held = holders(volume, ladder)
    if precision != "lossless" and volume.dtype == np.float64 and held[0] == "float64":
        return _single(volume, ladder, where)
    return Rounded(volume, True, 0.0, held)


def _require_finite(volume: Volume, where: str) -> None:
    if volume.dtype.kind != "f":
        return
    for start, slab in enumerate(_slabs(volume)):
        bad = ~np.isfinite(slab)
        if bad.any():
            z, y, x = (int(i) for i in np.argwhere(bad)[0])
            raise PrecisionError(
                f"value {slab[z, y, x]} at voxel (z, y, x) = ({start * _SLAB + z}, {y}, {x})",
                where=where,
                remedy=(
                    "`compact` expects finite values; convert with --precision "
                    "standard or lossless, which keep it bit for bit"
                ),
            )


def _overflow(where: str, value: float, dtype: str) -> PrecisionError:
    return PrecisionError(
        f"value {value!r} does not fit {dtype}",
        where=where,
        expected=f"finite values of magnitude up to {_largest(dtype)}",
        remedy="convert with --precision lossless",
    )


def _largest(dtype: str) -> float:
    kind = np.dtype(dtype)
    return float(np.finfo(kind).max) if kind.kind == "f" else float(np.iinfo(kind).max)


def _over(volume: Volume, dtype: Any) -> Volume:
    """Return an array of `dtype` in the buffer of `volume`: half the memory at full size.

    Written slab by slab from the start, it overwrites only what was read before.
    """
    if np.dtype(dtype).itemsize > volume.dtype.itemsize:
        return np.empty(volume.shape, dtype)
    over: Volume = volume.reshape(-1).view(dtype)[: volume.size].reshape(volume.shape)
    return over


def _single(volume: Volume, ladder: Iterable[str], where: str) -> Rounded:
    """Round float64 to float32."""
    narrow = _over(volume, np.float32)
    worst = 0.0
    for start in range(0, len(volume), _SLAB):
        wide = volume[start : start + _SLAB].copy()
        with np.errstate(over="ignore"):
            rounded = wide.astype(np.float32)
        overflow = np.isinf(rounded) & ~np.isinf(wide)
        if overflow.any():
            raise _overflow(where, float(wide[overflow][0]), "float32")
        worst = max(worst, _worst(rounded, wide))
        narrow[start : start + _SLAB] = rounded
    return Rounded(narrow, False, worst, tuple(t for t in ladder if t in ("float32", "float64")))


def _worst(rounded: Volume, original: Volume) -> float:
    """Return the largest finite difference; inf and NaN are unchanged and do not differ."""
    with np.errstate(invalid="ignore"):
        difference = np.subtract(original, rounded, dtype=np.float64)
    worst = max(float(difference.max(initial=0.0)), -float(difference.min(initial=0.0)))
    if np.isfinite(worst):
        return worst
    np.abs(difference, out=difference)
    return float(np.max(difference, initial=0.0, where=np.isfinite(difference)))


def _whole_hounsfield(volume: Volume, where: str) -> Rounded:
    """Round to whole HU, halves to even, into the narrowest integer type."""
    info = np.iinfo(np.int32)
    low, high = float(volume.min()), float(volume.max())
    if low < info.min or high > info.max:
        raise _overflow(where, low if low < info.min else high, "int32")
    exact = fits(volume, "int32")
    whole = _over(volume, np.int32)
    worst = 0.0
    for start in range(0, len(volume), _SLAB):
        original = volume[start : start + _SLAB].copy()
        whole[start : start + _SLAB] = np.rint(original)
        worst = max(worst, _worst(whole[start : start + _SLAB], original))
    return Rounded(whole, exact, worst, holders(whole))


def _quantised(volume: Volume, bound: float, where: str) -> Rounded:
    """Round to multiples of `COMPACT_STEP` in float32; raises if `bound` would be exceeded."""
    out = _over(volume, np.float32)
    worst = 0.0
    for start in range(0, len(volume), _SLAB):
        original = volume[start : start + _SLAB].astype(np.float64)  # always a copy
        with np.errstate(over="ignore"):
            out[start : start + _SLAB] = np.rint(original / COMPACT_STEP) * COMPACT_STEP
        worst = max(worst, _worst_bounded(out[start : start + _SLAB], original, bound, where))
    return Rounded(out, worst == 0.0, worst, holders(out, FLOAT_LADDER))


def _worst_bounded(rounded: Volume, original: Volume, bound: float, where: str) -> float:
    difference = np.abs(rounded.astype(np.float64) - original)
    worst = float(difference.max(initial=0.0))
    if not worst <= bound:
        value = float(original.reshape(-1)[int(np.nanargmax(difference))])
        raise PrecisionError(
            f"value {value!r} cannot be kept within {bound} in float32",
            where=where,
            expected=f"magnitudes below {2.0**14:g}",
            remedy="convert with --precision standard or lossless",
        )
    return worst
