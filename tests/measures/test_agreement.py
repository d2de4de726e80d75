"""Surfaces and agreement of masks: shapes with analytic answers, brute force, and peers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.measures.agreement import Drawn, agreement, surface_dice_name
from lundprobe_zarr.measures.surfaces import CORNERS, Surface, cell_codes, piece_areas

Spacing = tuple[float, float, float]
SPACING: Spacing = (2.5, 0.47, 0.5)  # z y x, mm
SPACINGS: list[Spacing] = [(1.0, 1.0, 1.0), (2.5, 0.4688, 0.4688), (1.0, 1.3, 2.1)]
DISTANCES = ("hd95_mm", "hd_mm", "assd_mm")
MASKS = arrays(bool, st.tuples(*[st.integers(1, 5)] * 3))


def box(shape: tuple[int, int, int], start: Any, stop: Any) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def ball(radius: float, spacing: Spacing, centre: Any = (0, 0, 0)) -> np.ndarray:
    """A ball in a cube of 60 mm, around the middle moved by `centre`, mm."""
    axes = [np.arange(-30, 30, s) - c for s, c in zip(spacing, centre, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return z**2 + y**2 + x**2 <= radius**2


def blobs(seed: int, number: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    fields = [gaussian_filter(rng.standard_normal((14, 22, 18)), 2) for _ in range(number + 1)]
    return [fields[0] + 0.7 * f > 0.07 for f in fields[1:]]


def area_of_box(voxels: Any, spacing: Spacing) -> float:
    """Area of a box whose edges and corners are cut off, as marching cubes do."""
    lengths = [(n - 1) * s for n, s in zip(voxels, spacing, strict=True)]
    total = 0.0
    for axis in range(3):
        a, b = (i for i in range(3) if i != axis)
        total += 2 * lengths[a] * lengths[b]  # two faces
        total += 4 * lengths[axis] * np.hypot(spacing[a], spacing[b]) / 2  # four edges
    faces = [spacing[a] * spacing[b] for a, b in ((0, 1), (0, 2), (1, 2))]
    return total + 8 * float(np.linalg.norm(faces)) / 8  # eight corners


class TestSurface:
    @pytest.mark.parametrize("spacing", SPACINGS)
    def test_areas_of_the_pieces_are_those_of_the_definition(self, spacing: Spacing) -> None:
        tables = pytest.importorskip("surface_distance.lookup_tables")
        expected = tables.create_table_neighbour_code_to_surface_area(spacing)
        weights = np.array(tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL)
        found = piece_areas(spacing)
        for code in range(256):
            theirs = sum(int(weights[c]) for bit, c in enumerate(CORNERS) if code >> bit & 1)
            assert found[code] == pytest.approx(expected[theirs], abs=1e-12), code

    def test_a_cell_and_its_complement_have_one_area_and_flat_ones_are_the_cells_face(self) -> None:
        areas = piece_areas(SPACING)
        four_apart = 0b01101001  # every corner beside none other: its complement is its mirror
        assert np.allclose(areas, areas[::-1])
        assert areas[0] == areas[255] == 0
        assert areas[0b00001111] == pytest.approx(SPACING[1] * SPACING[2])
        assert areas[four_apart] == pytest.approx(4 * areas[1])

    def test_codes_tell_the_corners(self) -> None:
        codes = cell_codes(np.ones((1, 1, 1), bool))
        assert codes.shape == (2, 2, 2)
        assert sorted(codes.ravel()) == [1, 2, 4, 8, 16, 32, 64, 128]
        assert codes[0, 0, 0] == 1 << CORNERS.index((1, 1, 1))

    @pytest.mark.parametrize("spacing", SPACINGS)
    @pytest.mark.parametrize("voxels", [(1, 1, 1), (2, 3, 4), (9, 2, 5)])
    def test_area_of_a_box(self, spacing: Spacing, voxels: tuple[int, int, int]) -> None:
        surface = Surface.of(np.ones(voxels, bool), spacing)
        assert surface.area_mm2 == pytest.approx(area_of_box(voxels, spacing))

    @pytest.mark.parametrize(
        ("spacing", "excess"), [((1.0, 1.0, 1.0), 0.09), ((2.5, 0.5, 0.5), 0.20)]
    )
    def test_area_of_a_ball_is_too_large(self, spacing: Spacing, excess: float) -> None:
        """By 9 % in cubes, by 20 % in thick slices: the surface is a stair of voxels."""
        area = Surface.of(ball(25, spacing), spacing).area_mm2
        assert area / (4 * np.pi * 25**2) - 1 == pytest.approx(excess, abs=0.02)

    def test_an_empty_mask_has_none(self) -> None:
        surface = Surface.of(np.zeros((2, 3, 4), bool), SPACING)
        assert surface.area_mm2 == 0
        assert np.isinf(surface.distances).all()


class TestShapes:
    def test_equal_masks_agree(self) -> None:
        mask = box((6, 9, 9), (1, 2, 3), (4, 7, 8))
        found = agreement(mask, mask.copy(), SPACING)
        assert [found[n] for n in ("dice", "surface_dice_1mm", "surface_dice_2mm")] == [1, 1, 1]
        assert [found[n] for n in DISTANCES] == [0, 0, 0]
        assert (found["added_path_mm"], found["added_voxels"], found["removed_voxels"]) == (0, 0, 0)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_a_copy_moved_by_some_voxels_is_that_far_away(self, axis: int) -> None:
        start, stop, step = np.array((2, 2, 2)), np.array((8, 10, 9)), 2 * np.eye(3, dtype=int)
        a = box((12, 14, 13), start, stop)
        b = box((12, 14, 13), start + step[axis], stop + step[axis])
        found = agreement(a, b, SPACING)
        length = (stop - start)[axis]
        assert found["dice"] == pytest.approx((length - 2) / length)
        assert found["hd_mm"] == pytest.approx(2 * SPACING[axis])
        assert found["added_voxels"] == found["removed_voxels"] == 2 * a.sum() / length
        assert found["difference_cc"] == 0
        assert found["a_cc"] == pytest.approx(a.sum() * np.prod(SPACING) / 1000)

    def test_single_voxels_apart(self) -> None:
        a, b = box((3, 3, 9), (1, 1, 0), (2, 2, 1)), box((3, 3, 9), (1, 1, 6), (2, 2, 7))
        found = agreement(a, b, SPACING)
        assert found["dice"] == 0
        # Four pieces of a surface are six voxels from the other, four are five.
        assert found["hd_mm"] == found["hd95_mm"] == pytest.approx(6 * SPACING[2])
        assert found["assd_mm"] == pytest.approx(5.5 * SPACING[2])
        assert found["surface_dice_2mm"] == 0
        assert found["added_path_mm"] == pytest.approx(np.sqrt(SPACING[1] * SPACING[2]))

    @pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.5, 0.5)])
    def test_balls_within_each_other(self, spacing: Spacing) -> None:
        found = agreement(ball(15, spacing), ball(20, spacing), spacing)
        assert found["hd_mm"] == pytest.approx(5, abs=max(spacing))
        assert found["assd_mm"] == pytest.approx(5, abs=0.7)
        assert found["dice"] == pytest.approx(2 * 15**3 / (15**3 + 20**3), abs=0.01)
        assert found["difference_cc"] == pytest.approx(4 / 3 * np.pi * (8 - 3.375), rel=0.01)
        assert found["surface_dice_2mm"] == pytest.approx(0, abs=0.02)

    def test_a_wider_box_adds_its_outline(self) -> None:
        a, b = box((3, 8, 8), (0, 2, 2), (3, 6, 6)), box((3, 8, 8), (0, 2, 2), (3, 6, 7))
        found = agreement(a, b, (2.0, 0.5, 0.5))
        # Of b's outline a lacks the new column of 4 voxels; its last column was a's outline too.
        assert found["added_path_mm"] == pytest.approx(3 * 4 * 0.5)
        assert agreement(b, a, (2.0, 0.5, 0.5))["added_path_mm"] == pytest.approx(3 * 2 * 0.5)

    def test_empty_masks(self) -> None:
        some, none = box((3, 4, 5), (0, 1, 1), (2, 3, 4)), np.zeros((3, 4, 5), bool)
        both = agreement(none, none, SPACING)
        overlaps = ("dice", "surface_dice_1mm", "surface_dice_2mm")
        assert [both[n] for n in (*overlaps, *DISTANCES)] == [None] * 6
        assert [both[n] for n in ("a_cc", "b_cc", "added_voxels", "added_path_mm")] == [0] * 4
        for a, b in ((some, none), (none, some)):
            one = agreement(a, b, SPACING)
            assert [one[n] for n in overlaps] == [0, 0, 0]
            assert [one[n] for n in DISTANCES] == [None] * 3
            assert one["added_voxels"] == b.sum()

    def test_a_distance_of_exactly_the_tolerance_counts_although_spacings_are_float32(self) -> None:
        spacing = (1.0, 1.0, float(np.float32(0.4)))  # a little more than 0.4
        a, b = box((4, 4, 30), (0, 0, 0), (4, 4, 12)), box((4, 4, 30), (0, 0, 5), (4, 4, 17))
        assert 5 * spacing[2] > 2
        assert agreement(a, b, spacing)["surface_dice_2mm"] == 1


class TestAgainstOthers:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # it calls SciPy by an old name
    @pytest.mark.parametrize("spacing", SPACINGS)
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_surfaces_as_surface_distance_has_them(self, spacing: Spacing, seed: int) -> None:
        peer = pytest.importorskip("surface_distance")
        a, b = blobs(seed)
        theirs = peer.compute_surface_distances(a, b, spacing)
        found = agreement(a, b, spacing, (1.0, 2.0, 0.5))
        for tolerance in (1.0, 2.0, 0.5):
            expected = peer.compute_surface_dice_at_tolerance(theirs, tolerance)
            assert found[surface_dice_name(tolerance)] == pytest.approx(expected)
        assert found["hd95_mm"] == pytest.approx(peer.compute_robust_hausdorff(theirs, 95))
        assert found["hd_mm"] == pytest.approx(peer.compute_robust_hausdorff(theirs, 100))
        means = peer.compute_average_surface_distance(theirs)
        areas = [Surface.of(m, spacing).area_mm2 for m in (a, b)]
        assert found["assd_mm"] == pytest.approx(np.average(means, weights=areas))
        assert found["dice"] == pytest.approx(peer.compute_dice_coefficient(a, b))

    @pytest.mark.parametrize("seed", [3, 4])
    def test_overlap_and_outline_as_simpleitk_has_them(self, seed: int) -> None:
        a, b = blobs(seed)
        images = [sitk.GetImageFromArray(m.astype(np.uint8)) for m in (a, b)]
        overlap = sitk.LabelOverlapMeasuresImageFilter()
        overlap.Execute(*images)
        found = agreement(a, b, SPACING)
        assert found["dice"] == pytest.approx(overlap.GetDiceCoefficient())
        outlines = []
        for mask in (a, b):
            planes = [sitk.GetImageFromArray(p.astype(np.uint8)) for p in mask]
            outlines.append(
                np.stack(
                    [
                        # A frame: ITK's contour has no edge where the image ends.
                        sitk.GetArrayFromImage(
                            sitk.LabelContour(sitk.ConstantPad(p, [1, 1], [1, 1]), False)
                        )
                        for p in planes
                    ]
                )
                > 0
            )
        added = np.count_nonzero(outlines[1] & ~outlines[0])
        assert found["added_path_mm"] == pytest.approx(added * np.sqrt(SPACING[1] * SPACING[2]))

    @settings(max_examples=40)
    @given(MASKS, st.sampled_from(SPACINGS), st.integers(0, 2**32 - 1))
    def test_distances_as_brute_force_has_them(self, a: Any, spacing: Spacing, seed: int) -> None:
        b = np.random.default_rng(seed).random(a.shape) < 0.4
        surfaces = [Surface.of(m, spacing) for m in (a, b)]
        found = agreement(a, b, spacing)
        if not a.any() or not b.any():
            assert found["hd_mm"] is None
            return
        shape = tuple(n + 1 for n in a.shape)
        places = [np.stack(np.unravel_index(s.cells, shape), 1) * spacing for s in surfaces]
        apart = cdist(*places)
        ways = [(apart.min(1), surfaces[0].areas), (apart.min(0), surfaces[1].areas)]
        total = sum(area.sum() for _, area in ways)
        near = sum(area[d <= 1 + 1e-6].sum() for d, area in ways)
        assert found["hd_mm"] == pytest.approx(max(d.max() for d, _ in ways))
        assert found["assd_mm"] == pytest.approx(sum((d * area).sum() for d, area in ways) / total)
        assert found["surface_dice_1mm"] == pytest.approx(near / total)


class TestProperties:
    @pytest.mark.parametrize("seed", [5, 6])
    def test_the_other_way_round_and_with_more_room_it_is_the_same(self, seed: int) -> None:
        a, b = blobs(seed)
        one, other = agreement(a, b, SPACING), agreement(b, a, SPACING)
        for name in ("dice", "surface_dice_1mm", *DISTANCES):
            assert one[name] == pytest.approx(other[name])
        assert one["difference_cc"] == -other["difference_cc"]
        assert one["added_voxels"] == other["removed_voxels"]
        wide = agreement(np.pad(a, 7), np.pad(b, 7), SPACING)
        assert wide == pytest.approx(one)

    def test_a_mask_has_one_distance_map_for_all_its_pairs(self) -> None:
        drawn = Drawn(blobs(7)[0], SPACING)
        assert drawn.surface is drawn.surface

    @pytest.mark.parametrize(
        ("a", "b", "spacing", "said"),
        [
            (np.ones((2, 2, 2), np.uint8), np.ones((2, 2, 2), bool), SPACING, "mask a is uint8"),
            (np.ones((2, 2), bool), np.ones((2, 2), bool), SPACING, "2 dimensions"),
            (np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool), SPACING, r"\(2, 2, 3\) voxels"),
            (np.ones((2, 2, 2), bool), np.ones((2, 2, 2), bool), (1, 0, 1), "spacing_mm"),
            (np.ones((2, 2, 2), bool), np.ones((2, 2, 2), bool), (1, 1), "spacing_mm"),
        ],
    )
    def test_what_cannot_be_compared_is_refused(self, a, b, spacing, said) -> None:
        with pytest.raises(UsageError, match=said):
            agreement(a, b, spacing)
