"""Dose-volume histograms: shapes with analytic answers, and the table's bins against voxels."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lundprobe_zarr.measures.dose_volume import ascending, counts_at_or_above
from lundprobe_zarr.measures.histogram import (
    BinnedDoses,
    Bounds,
    VoxelDoses,
    bin_edges,
    binned,
    with_uncovered,
)
from lundprobe_zarr.measures.metrics import measure, parse_metric

SPACING = (2.5, 0.8, 0.5)  # z y x, mm
VOXEL_CC = float(np.prod(SPACING)) / 1000
METRICS = (
    *("D98%", "D50%", "D2%", "D1cc", "D0.03cc", "D98%[%]", "mean", "min", "max", "mean[%]"),
    *("V95%", "V38.43Gy[cc]", "V20Gy", "V0Gy", "V107%[cc]"),
)


def voxels(values: np.ndarray, voxel_cc: float = VOXEL_CC) -> VoxelDoses:
    known = ascending(np.array(values).ravel())
    assert known is not None
    return VoxelDoses(known, voxel_cc)


def tabled(doses: VoxelDoses) -> BinnedDoses:
    """The same doses, through the column of the table."""
    column = binned(doses.values, doses.voxel_cc)
    assert column is not None
    return BinnedDoses.of_volumes(column, doses.voxel_cc, doses.voxels * doses.voxel_cc)


def value(metric: str, doses: VoxelDoses | BinnedDoses, body: VoxelDoses | None = None) -> float:
    return measure(parse_metric(metric), doses, body).value


def places(shape: tuple[int, int, int]) -> np.ndarray:
    """Voxel centres (3, z, y, x), mm, from the middle of the volume."""
    along = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, SPACING, strict=True)]
    return np.stack(np.meshgrid(*along, indexing="ij"))


# Shapes with analytic answers


@pytest.fixture(scope="module")
def ball() -> VoxelDoses:
    """A ball of 20 mm whose dose falls from 40 Gy in the middle to 0 at its surface."""
    radius = np.sqrt((places((18, 54, 84)) ** 2).sum(axis=0))
    return voxels((40 * (1 - radius / 20))[radius <= 20].astype(np.float32))


@pytest.mark.parametrize("method", [lambda d: d, tabled])
def test_a_ball_with_a_radial_dose(ball: VoxelDoses, method) -> None:
    """At least d is received within 20 (1 - d / 40) mm: the volume is that of a smaller ball."""
    doses, whole = method(ball), 4 / 3 * np.pi * 2**3
    assert ball.voxels * VOXEL_CC == pytest.approx(whole, rel=0.01)
    for gy in (10, 20, 30):
        inside = (1 - gy / 40) ** 3
        assert value(f"V{gy}Gy", doses) == pytest.approx(100 * inside, abs=0.2)
        assert value(f"V{gy}Gy[cc]", doses) == pytest.approx(whole * inside, abs=0.06)
    for percent in (2, 50, 98):
        assert value(f"D{percent}%", doses) == pytest.approx(
            40 * (1 - (percent / 100) ** (1 / 3)), abs=0.15
        )
    cc = 4 / 3 * np.pi * 0.5**3  # a ball of 5 mm, whose surface has 30 Gy
    assert value(f"D{cc:.4f}cc", doses) == pytest.approx(30, abs=0.3)
    assert value("mean", doses) == pytest.approx(10, rel=0.01)  # a cone's mean height in 3-D


@pytest.mark.parametrize("method", [lambda d: d, tabled])
def test_a_box_with_a_dose_that_rises_along_it(method) -> None:
    """100 layers of equal volume, of 0.5, 1 … 50 Gy."""
    doses = method(voxels(np.broadcast_to(np.arange(1, 101) / 2, (4, 5, 100))))
    assert value("V25Gy", doses) == 51
    assert value("V25.5Gy[cc]", doses) == pytest.approx(50 * 20 * VOXEL_CC)
    expected = {"D98%": 1.5, "D50%": 25.5, "D2%": 49.5, "D100%": 0.5, "min": 0.5, "max": 50}
    for metric, gy in expected.items():
        assert value(metric, doses) == pytest.approx(gy, abs=0.05001)
    assert value("mean", doses) == pytest.approx(25.25, abs=0.05001)
    assert value("HI", doses) == pytest.approx((49.5 - 1.5) / 25.5, abs=0.01)


def test_the_homogeneity_of_a_uniform_dose_is_perfect() -> None:
    assert value("HI", voxels(np.full(50, 42.7, np.float32))) == 0
    assert np.isnan(value("HI", voxels(np.zeros(50))))


def test_conformity_of_boxes() -> None:
    """Paddick: the covered share of the target, times the share of the isodose in the target."""
    target, outside = np.full(1000, 45.0), np.zeros(9000)
    outside[:1000] = 45  # the isodose is twice the target
    body = voxels(np.concatenate([target, outside]))
    assert value("CI", voxels(target), body) == pytest.approx(0.5)
    target[:500] = 10  # half of the target is missed, and two thirds of the isodose lie outside
    body = voxels(np.concatenate([target, outside]))
    assert value("CI", voxels(target), body) == pytest.approx(0.5 * (500 / 1500))
    assert value("CI[10Gy]", voxels(target), body) == pytest.approx(0.5)
    assert np.isnan(value("CI[50Gy]", voxels(target), body))
    assert np.isnan(value("CI", voxels(target)))
    assert value("CI", voxels(np.zeros(10)), body) == 0


# Counting


def test_a_dose_at_an_edge_counts_whatever_its_type() -> None:
    for kind in (np.float32, np.float64):
        edges = bin_edges(600)
        at = edges.astype(kind)
        at = np.where(at < edges, np.nextafter(at, kind(np.inf)), at)
        below = np.nextafter(at, kind(-np.inf))
        column = binned(np.sort(at), 1.0)
        assert column.tolist() == list(range(600, 0, -1))
        column = binned(np.sort(below[1:]), 1.0)
        assert column.tolist() == list(range(599, 0, -1))


def test_counts_at_thresholds_are_those_of_comparing_each() -> None:
    rng = np.random.default_rng(0)
    values = np.sort(np.round(rng.uniform(0, 50, 4000), 1)).astype(np.float32)
    thresholds = np.round(rng.uniform(0, 51, 300), 1)
    expected = [sum(float(v) >= t for v in values) for t in thresholds]
    assert counts_at_or_above(values, thresholds).tolist() == expected


def test_the_column_ends_with_the_last_volume() -> None:
    assert binned(np.array([0.05, 0.31]), 0.5).tolist() == [1.0, 0.5, 0.5, 0.5]
    assert binned(np.array([0.0]), 0.5).tolist() == [0.5]
    assert binned(np.array([]), 0.5).tolist() == []
    assert binned(None, 0.5) is None
    assert binned(np.array([1.0, 4270.0]), 0.5) is None  # in cGy
    assert ascending(np.array([1.0, np.nan])) is None


DOSES = st.one_of(
    st.floats(0, 60, width=32),
    st.integers(0, 600).map(lambda n: n / 10),
    st.sampled_from([0.0, 40.565, 42.7, 38.43]),
)


@given(
    values=st.lists(DOSES, min_size=1, max_size=60),
    kind=st.sampled_from([np.float32, np.float64]),
    voxel_cc=st.floats(1e-4, 0.9),
)
def test_the_table_bounds_what_voxels_say(values: list[float], kind, voxel_cc: float) -> None:
    exact = voxels(np.array(values, kind), voxel_cc)
    table = tabled(exact)
    for text in (*METRICS, "HI", "CI[95%]"):
        metric = parse_metric(text)
        true, found = measure(metric, exact, exact), measure(metric, table, table)
        if text in ("HI", "CI[95%]") and np.isnan([true.value, found.value]).any():
            continue  # a bin may reach from a dose of 0, or of nothing, to more
        assert np.isnan(true.value) == np.isnan(found.value)
        if np.isnan(found.value):
            continue
        slack = 1e-9 * (1 + abs(true.value))
        assert found.low - slack <= true.value <= found.high + slack
        if metric.unit == "Gy":
            assert abs(found.value - true.value) <= 0.05 + slack
        elif metric.kind == "V":  # exact at a dose within 0.05 Gy
            around = [exact.count_at(metric.dose_gy + d).value for d in (0.05001, -0.05001)]
            per = voxel_cc if metric.unit == "cc" else 100 / exact.voxels
            assert around[0] * per - slack <= found.value <= around[1] * per + slack


@given(values=st.lists(DOSES, min_size=1, max_size=40), more=st.integers(0, 9))
def test_zero_outside_adds_voxels_of_no_dose(values: list[float], more: int) -> None:
    exact = voxels(np.array(values))
    longer = voxels(np.array([*values, *[0.0] * more]))
    for doses in (with_uncovered(exact, more), with_uncovered(tabled(exact), more)):
        assert doses.voxels == longer.voxels
        edges = bin_edges(700)
        assert doses.counts(edges).tolist() == longer.counts(edges).tolist()
    assert with_uncovered(exact, more).values.tolist() == longer.values.tolist()


def test_nothing_covered_has_no_metric_but_zero_where_asked() -> None:
    for none in (voxels(np.array([])), tabled(voxels(np.array([])))):
        assert all(np.isnan(value(m, none)) for m in (*METRICS, "HI"))
        assert none.counts(bin_edges(3)).tolist() == [0, 0, 0]
        assert value("D98%", with_uncovered(none, 7)) == pytest.approx(0, abs=0.05)
        assert value("V0Gy", with_uncovered(none, 7)) == 100


def test_a_negative_dose_is_not_in_the_table_and_never_counts_as_zero() -> None:
    exact = voxels(np.array([-1.0, 2.0, 3.0]))
    table = tabled(exact)
    assert value("min", exact) == -1
    assert np.isnan(value("min", table))
    assert np.isnan(value("mean", table))
    assert value("V0Gy", table) == pytest.approx(200 / 3)
    assert value("D50%", table) == pytest.approx(2.05)


# Metrics as texts


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("D98%", "Gy", 98),
        ("D0.03cc", "Gy", Fraction(3, 100)),
        ("D99.9%[%]", "%", Fraction(999, 10)),
        ("V38.43Gy", "%", Fraction(3843, 100)),
        ("V38.43Gy[cc]", "cc", Fraction(3843, 100)),
        ("V95%[cc]", "cc", 95),
        ("mean", "Gy", 100),
        ("max[%]", "%", 100),
        ("HI", "1", 100),
        ("CI[95%]", "1", 95),
    ],
)
def test_metrics_parse(text: str, unit: str, amount: Fraction) -> None:
    metric = parse_metric(text)
    assert (metric.unit, metric.amount) == (unit, amount)


def test_percents_of_a_metric_are_decimal_numbers() -> None:
    """99.9 % of 1,000 voxels are 999, though the float 99.9 is a little more than 99.9."""
    assert Fraction(99.9) > Fraction(999, 10)
    assert value("D99.9%", voxels(np.arange(1000.0))) == 1.0


def test_bounds_of_what_is_exact_are_the_value() -> None:
    found = measure(parse_metric("D98%"), voxels(np.array([1.0, 2.0])))
    assert found == Bounds(1.0, 1.0, 1.0)
