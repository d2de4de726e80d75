"""How integers, keyholes and UIDs are made: pure functions."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_reading import filled
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.exchange.dicom.keyhole import joined
from lundprobe_zarr.exchange.dicom.lattice import planes_of
from lundprobe_zarr.exchange.dicom.masks import cut, ordered
from lundprobe_zarr.exchange.dicom.names import ROIS, roi_name
from lundprobe_zarr.exchange.dicom.structures import Contours, _add, contours_of
from lundprobe_zarr.exchange.dicom.uids import digest_of, uid
from lundprobe_zarr.exchange.dicom.values import dose_counts, hounsfield, whole_numbers
from lundprobe_zarr.figures.contours import Polygon, mask_polygons
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.vocabulary.names import STRUCTURES

GRID = Grid(np.diag([-0.4375, -0.4375, 2.5, 1.0]), (2, 9, 9))


def volume(*values: float, dtype: str = "float32") -> np.ndarray:
    return np.array(values, dtype).reshape(1, 1, -1)


def values_of(stored):
    return stored.integers * float(stored.slope) + stored.intercept


@pytest.mark.parametrize(
    ("values", "slope", "intercept"),
    [
        ((-1000, 3071), "1", 0),
        ((-999.5, 0.5, 3062.5), "1", -0.5),
        ((-999.5, 0, 12), "0.5", 0),
    ],
)
def test_hounsfield_units_are_exact_where_a_scaling_is(values, slope, intercept):
    stored = hounsfield(volume(*values), "sCT")
    assert (stored.slope, stored.intercept, stored.max_abs_error) == (slope, intercept, 0)
    assert stored.integers.dtype == np.int16
    assert np.array_equal(values_of(stored), volume(*values))


def test_other_hounsfield_units_are_rounded_to_whole_ones():
    stored = hounsfield(volume(-1786.593, 10.25, 11.5), "sCT")
    assert (stored.slope, stored.intercept) == ("1", 0)
    assert stored.integers.ravel().tolist() == [-1787, 10, 12]
    assert stored.max_abs_error == 0.5


@pytest.mark.parametrize("values", [(0, 32768), (-32769, 0), (0, np.nan), (0, np.inf), (0.1, 4e4)])
def test_hounsfield_units_beyond_16_bits_are_refused(values):
    with pytest.raises(UsageError, match=r"sCT has values .* which DICOM cannot hold"):
        hounsfield(volume(*values), "sCT")


@pytest.mark.parametrize(
    ("values", "kind"),
    [((0, 2133), "uint16"), ((0, 65535), "uint16"), ((-1, 32767), "int16")],
)
def test_mr_values_are_signed_only_where_one_is_negative(values, kind):
    stored = whole_numbers(volume(*values), "T2w")
    assert stored.integers.dtype == kind
    assert stored.integers.ravel().tolist() == list(values)


@pytest.mark.parametrize("values", [(0, 0.5), (0, 65536), (-1, 32768), (-32769, 0), (0, np.nan)])
def test_other_mr_values_are_refused(values):
    with pytest.raises(UsageError, match=r"T2w has .* which DICOM cannot hold"):
        whole_numbers(volume(*values), "T2w")


@given(
    hnp.arrays(np.float32, (3, 4, 5), elements=st.floats(0, 120, width=32)),
    st.floats(2**-20, 2**10, width=32),
)
def test_doses_are_within_half_of_their_scaling(dose, factor):
    dose = dose * np.float32(factor)
    stored = dose_counts(dose, "dose")
    assert len(stored.slope) <= 16
    assert stored.integers.max() <= 2**31 - 1
    error = np.abs(values_of(stored) - dose.astype(float)).max()
    assert error == stored.max_abs_error
    assert error <= float(stored.slope) / 2 * (1 + 1e-6)
    if dose.max() > 0:
        assert float(stored.slope) <= 1.11 * dose.max() / (2**31 - 1)


@pytest.mark.parametrize("values", [(-0.001, 40), (0, np.nan), (np.inf, 0)])
def test_doses_that_are_negative_or_unknown_are_refused(values):
    with pytest.raises(UsageError, match=r"dose has .* which DICOM cannot hold"):
        dose_counts(volume(*values), "dose")


def test_a_dose_of_nothing_is_nothing():
    assert not dose_counts(volume(0, 0), "dose").integers.any()


def united(mask):
    found = np.zeros(mask.shape, bool)
    for polygon in mask_polygons(mask):
        line = joined(polygon)
        assert len(line) >= 4
        assert np.any(np.diff(np.concatenate([line, line[:1]]), axis=0) != 0, axis=1).all()
        found |= filled(line, mask.shape)
    return found


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_a_keyhole_holds_the_voxels_whatever_the_mask(mask):
    assert np.array_equal(united(mask), mask)


def test_keyholes_of_many_holes_and_islands_in_holes():
    rng = np.random.default_rng(3)
    mask = np.ones((80, 90), bool)
    rows, columns = np.indices(mask.shape)
    for size in (9, 7, 5, 4, 3, 2, 1):
        for _ in range(4):
            r, c = rng.integers(3, 77), rng.integers(3, 87)
            ring = np.hypot(rows - r, columns - c)
            mask[(ring < size) & (ring > size / 2)] = False
    polygons = mask_polygons(mask)
    assert sum(len(p.rings) - 1 for p in polygons) > 8
    assert len(polygons) > 4
    assert np.array_equal(united(mask), mask)


def test_a_way_to_a_hole_passes_through_no_voxel_centre():
    mask = np.ones((7, 7), bool)
    mask[3, 2:5] = False
    (polygon,) = mask_polygons(mask)
    line = joined(polygon)
    level = line[:-1][np.diff(line[:, 0]) == 0, 0]
    assert len(level)
    assert (level % 1 == 0.5).all()


def test_contours_of_fewer_than_three_points_are_dropped_and_counted():
    found = Contours()
    _add(found, 0, Polygon((np.array([[0, 0], [1, 1], [0, 0]], float),)), planes_of(GRID, "mri"))
    assert (found.found, found.dropped) == ([], 1)


def test_a_voxel_is_a_contour_of_four_points():
    mask = np.zeros(GRID.shape, bool)
    mask[1, 8, 0] = True  # in a corner
    contours = contours_of(cut(mask), planes_of(GRID, "mri"))
    (contour,) = contours.found
    assert (contour.plane, contour.points, contours.dropped, contours.holes) == (1, 4, 0, 0)
    assert all(len(number) <= 16 for number in contour.data.split("\\"))


@given(hnp.arrays(bool, (3, 4, 5)))
def test_cuts_hold_the_whole_mask_in_either_order_of_planes(mask):
    for order in (False, True):
        found = ordered(cut(mask), len(mask), order)
        whole = np.zeros(mask.shape, bool)
        whole[found.box] = found.voxels
        assert np.array_equal(whole, mask[::-1] if order else mask)


def test_uids_follow_from_their_parts():
    assert uid("a", "b") == uid("a", "b")
    assert len({uid("a", "b"), uid("ab"), uid("b", "a"), uid("a", b"b ")}) == 4
    assert all(len(uid("n", n)) <= 64 and uid("n", n).startswith("2.25.") for n in range(100))
    number = int(uid("a").removeprefix("2.25."))
    assert number >> 76 & 0xF == 8
    assert number >> 62 & 0x3 == 2
    array = np.arange(6.0).reshape(2, 3)
    assert digest_of(array[:, ::2]) == digest_of(array[:, ::2].copy())


def test_every_structure_has_names():
    assert list(ROIS) == list(STRUCTURES)
    names = [roi_name(s, tg263=True) for s in STRUCTURES]
    assert names[:2] == ["CTV_4270", "PTV_4270"]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 16  # what TG-263 allows
