"""Measures on arrays, against analytic answers and brute force."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.measures.coverage import Covered, covered
from lundprobe_zarr.measures.dose_volume import (
    ascending,
    count_at_or_above,
    dose_columns,
    doses,
    voxels_for_percent,
    voxels_for_volume,
)
from lundprobe_zarr.measures.masks import Outline, margin_mm, mask_sha256, points_inside
from lundprobe_zarr.schema.tables import D_LEVELS, DOSE_COLUMNS, V_LEVELS
from lundprobe_zarr.vocabulary.names import PRESCRIPTION_GY

SPACING = (2.5, 0.5, 0.5)  # z y x, mm
AFFINE = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])


def box_of(mask: np.ndarray) -> tuple[slice, slice, slice]:
    axes = [np.flatnonzero(mask.any(axis=a)) for a in ((1, 2), (0, 2), (0, 1))]
    return tuple(slice(int(a[0]), int(a[-1]) + 1) for a in axes)  # type: ignore[return-value]


def grid(shape: tuple[int, int, int], spacing: float, origin: tuple[float, float, float]) -> Grid:
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = origin
    return Grid(affine, shape)


class TestCoverage:
    def test_edges_count_and_the_half_voxel_beyond_does_not(self) -> None:
        mask = np.ones((1, 1, 9), bool)
        fine = grid((1, 1, 9), 0.5, (0, 0, 0))  # x from 0 to 4 mm
        planned = grid((3, 3, 3), 1.0, (1, -1, -1))  # x from 1 to 3 mm
        found = covered(mask, box_of(mask), fine, planned)
        assert found.voxels == 5  # 1, 1.5, 2, 2.5 and 3 mm

    @pytest.mark.parametrize("turned", [0.0, 0.3])
    def test_agrees_with_the_place_of_every_voxel(self, turned: float) -> None:
        rng = np.random.default_rng(3)
        mask = rng.random((7, 8, 9)) < 0.5
        affine = np.diag([0.9, 0.8, 2.0, 1.0])
        affine[:3, 3] = (-4, -3, -6)
        turn = np.eye(4)
        turn[:2, :2] = [[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]]
        fine, planned = Grid(turn @ affine, mask.shape), grid((5, 5, 5), 1.1, (-2.0, -2.2, -2.4))
        k, j, i = np.indices(mask.shape)
        mm = np.einsum("ab,b...->a...", fine.affine, np.stack([i, j, k, np.ones_like(i)]))
        place = np.einsum("ab,b...->a...", np.linalg.inv(planned.affine), mm)[:3]
        inside = ((place >= -1e-9) & (place <= 4 + 1e-9)).all(axis=0)
        found = covered(mask, box_of(mask), fine, planned)
        assert found.voxels == np.count_nonzero(mask & inside)
        assert 0 < found.voxels < np.count_nonzero(mask)

    def test_nothing_is_covered_beside_the_planning_grid(self) -> None:
        mask = np.ones((2, 2, 2), bool)
        far = grid((3, 3, 3), 1.0, (100, 100, 100))
        assert covered(mask, box_of(mask), grid((2, 2, 2), 1.0, (0, 0, 0)), far).voxels == 0

    def test_zero_outside_only_when_asked_for(self) -> None:
        dose = np.array([[[0.0, 40.0, 42.0]]])
        inside = Covered((slice(0, 1), slice(0, 1), slice(1, 3)), np.ones((1, 1, 2), bool))
        assert doses(dose, inside).tolist() == [40.0, 42.0]
        assert sorted(doses(dose, inside, "zero", 3).tolist()) == [0.0, 40.0, 42.0]


class TestDoseVolume:
    @given(
        values=arrays(np.float32, st.integers(1, 60), elements=st.floats(0, 50, width=32)),
        voxel_cc=st.floats(1e-4, 0.1),
    )
    def test_dx_is_the_largest_dose_that_enough_of_the_volume_receives(
        self, values: np.ndarray, voxel_cc: float
    ) -> None:
        columns = dose_columns(ascending(values.copy()), voxel_cc)
        for x in D_LEVELS:
            dose = columns[f"d{x}_gy"]
            assert dose is not None
            share = Fraction(100 * int(np.count_nonzero(values >= np.float32(dose))), len(values))
            assert share >= Fraction(x)
            more = values[values > np.float32(dose)]
            assert Fraction(100 * len(more), len(values)) < Fraction(x)

    def test_interpolation_would_promise_more_than_there_is(self) -> None:
        values = np.array([10.0, 20.0])
        assert dose_columns(ascending(values.copy()), 1.0)["d95_gy"] == 10.0
        assert np.percentile(values, 5) == 10.5  # which half of the volume does not receive

    def test_at_or_above_is_exact_for_float32(self) -> None:
        above = np.float32(42.7)  # a little more than 42.7
        below = np.nextafter(above, np.float32(0))
        columns = dose_columns(ascending(np.array([above, below])), 0.5)
        assert columns["v100_pct"] == 50.0
        assert columns["v100_cc"] == 0.5

    def test_a_dose_at_the_level_counts(self) -> None:
        assert count_at_or_above(np.array([1.0, 2.0, 3.0]), 2.0) == 2

    def test_volumes(self) -> None:
        values = np.arange(1.0, 101.0)
        columns = dose_columns(ascending(values.copy()), 0.01)  # 1 cm3 in all
        assert columns["d0_03cc_gy"] == 98.0  # the third largest
        assert columns["d1cc_gy"] == 1.0
        assert dose_columns(ascending(values[:50].copy()), 0.01)["d1cc_gy"] is None
        for x in V_LEVELS:
            share = 100 * np.mean(values >= 42.7 * x / 100)
            assert columns[f"v{x}_pct"] == pytest.approx(share)
            assert columns[f"v{x}_cc"] == pytest.approx(share / 100)

    @pytest.mark.parametrize("values", [None, np.array([]), np.array([1.0, np.nan])])
    def test_without_doses_all_are_null(self, values: np.ndarray | None) -> None:
        assert dose_columns(ascending(values), 1.0) == dict.fromkeys(DOSE_COLUMNS)

    def test_voxels_needed(self) -> None:
        assert [voxels_for_percent(x, 100) for x in (0, 1, 95, 98, 100)] == [1, 1, 95, 98, 100]
        assert voxels_for_percent(95, 10) == 10  # nine are 90 %
        assert [voxels_for_volume(cc, 0.01) for cc in (0.001, 0.03, 0.031)] == [1, 3, 4]


class TestMasks:
    def test_hash_tells_masks_apart(self) -> None:
        mask = np.zeros((4, 5, 6), bool)
        mask[1:3, 2:4, 2:5] = True
        moved = np.roll(mask, 1, axis=2)
        assert mask_sha256(mask, box_of(mask)) == mask_sha256(mask.copy(), box_of(mask))
        assert mask_sha256(mask, box_of(mask)) != mask_sha256(moved, box_of(moved))
        empty = np.zeros((4, 5, 6), bool)
        assert mask_sha256(empty, None) != mask_sha256(np.zeros((4, 5, 7), bool), None)

    def test_margin_of_a_box_about_a_box(self) -> None:
        target, expanded = np.zeros((9, 40, 40), bool), np.zeros((9, 40, 40), bool)
        target[4, 18:22, 18:22] = True
        expanded[2:7, 8:32, 8:32] = True  # 2 slices and 10 voxels on each side: 5 mm everywhere
        low, high = margin_mm(
            Outline.of(target, box_of(target)), Outline.of(expanded, box_of(expanded)), AFFINE
        )
        assert low == pytest.approx(5.0)
        assert high == pytest.approx(np.sqrt(3) * 5.0)

    def test_margin_agrees_with_a_distance_map(self) -> None:
        rng = np.random.default_rng(1)
        target = ndimage.binary_dilation(rng.random((8, 24, 24)) > 0.998, iterations=2)
        expanded = ndimage.binary_dilation(target, iterations=3)
        distance = ndimage.distance_transform_edt(~target, sampling=SPACING)
        border = expanded & ~ndimage.binary_erosion(expanded)
        low, high = margin_mm(
            Outline.of(target, box_of(target)), Outline.of(expanded, box_of(expanded)), AFFINE
        )
        assert (low, high) == pytest.approx((distance[border].min(), distance[border].max()))

    def test_no_margin_where_the_target_is_not_inside(self) -> None:
        target, expanded = np.zeros((3, 9, 9), bool), np.zeros((3, 9, 9), bool)
        target[1, 1:5, 1:5] = True
        expanded[1, 3:8, 3:8] = True
        low, _ = margin_mm(
            Outline.of(target, box_of(target)), Outline.of(expanded, box_of(expanded)), AFFINE
        )
        assert low == 0.0


def dosed(values: Any, dtype: str = "f4") -> dict[str, Any]:
    """Columns of voxels with these doses."""
    return dose_columns(ascending(np.array(values, dtype)), 0.01)


@pytest.mark.parametrize("level", V_LEVELS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_a_volume_is_at_or_above_its_dose(level: int, dtype: str) -> None:
    """The least number of the type that is not below the level counts, the one before not."""
    exact = PRESCRIPTION_GY * level / 100
    kind = np.dtype(dtype).type
    least = kind(exact)
    while float(least) < exact:
        least = np.nextafter(least, kind(np.inf))
    while float(np.nextafter(least, kind(0))) >= exact:
        least = np.nextafter(least, kind(0))
    below = np.nextafter(least, kind(0))
    assert dosed([least], dtype)[f"v{level}_pct"] == 100
    assert dosed([below], dtype)[f"v{level}_pct"] == 0
    assert dosed([least, below, below, below], dtype)[f"v{level}_pct"] == 25
    assert dosed([99, 0, least], dtype)[f"v{level}_pct"] == pytest.approx(200 / 3)


@pytest.mark.parametrize("factor", [1 + 2**-22, 1 - 2**-22])
def test_a_dose_that_float32_rounds_up_or_down_counts_as_it_is(factor: float) -> None:
    """Of whole multiples of 5 % of the prescription, some are rounded up and some down."""
    for level in V_LEVELS:
        exact = PRESCRIPTION_GY * level / 100
        near = float(np.float32(exact * factor))
        assert dosed([near])[f"v{level}_pct"] == 100 * (near >= exact)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_dose_that_is_not_finite_leaves_no_figure(value: float) -> None:
    columns = dosed([1, 2, value])
    assert columns["dose_mean_gy"] is columns["d50_gy"] is columns["v95_pct"] is None
    assert columns.keys() == dosed([1]).keys()


class TestContainment:
    def test_voxels_beyond_a_holder_are_counted_in_the_whole_grid(self) -> None:
        inner, holder = np.zeros((2, 5, 6, 7), bool)
        inner[1:4, 2:4, 2:5] = True
        holder[1:4, 2:4, 2:4] = True
        assert Outline.of(inner, box_of(inner)).beyond(holder) == 6
        assert Outline.of(holder, box_of(holder)).beyond(inner) == 0
        assert Outline.of(inner, box_of(inner)).beyond(np.zeros_like(inner)) == 18

    def test_a_point_is_in_the_voxel_with_the_nearest_centre(self) -> None:
        mask = np.zeros((3, 4, 5), bool)
        mask[1, 2, 3] = True
        affine = AFFINE.copy()  # x and y of RAS run against the indices, as in LPS
        affine[:3, 3] = (10.0, -20.0, 30.0)
        centre = np.array([-10 + 3 * 0.5, 20 + 2 * 0.5, 30 + 2.5])  # x y z, LPS
        half = np.array([0.25, 0.25, 1.25])
        points = np.array([centre, centre + 0.9 * half, centre - 0.9 * half])
        assert points_inside(mask, affine, points) == 3
        assert points_inside(mask, affine, centre + np.diag(1.1 * half)) == 0
        assert points_inside(mask, affine, np.array([[1e6, 0, 0], [-1e6, 0, 0]])) == 0
        assert points_inside(mask, affine, np.empty((0, 3))) == 0
