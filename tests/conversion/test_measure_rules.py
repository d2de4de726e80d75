"""Measured columns by hand: what each counts, to the voxel and to the dose level itself."""

from __future__ import annotations

import hashlib
import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from lundprobe_zarr.conversion.tables.measure import (
    Body,
    Measurements,
    component_findings,
    coverage_findings,
    dose_measures,
    foreground_sample,
    is_listed,
    shape_columns,
    slice_counts,
)
from lundprobe_zarr.geometry.affine import index_to_lps
from lundprobe_zarr.geometry.lattice import Grid
from lundprobe_zarr.measures.masks import bounding_box
from lundprobe_zarr.schema.tables import FOREGROUND_SAMPLE
from lundprobe_zarr.vocabulary.files import SourceFile
from lundprobe_zarr.vocabulary.names import STRUCTURES

AFFINE = np.array([[-2.0, 0, 0, 10], [0, -3, 0, 20], [0, 0, 5, 30], [0, 0, 0, 1]])
SHAPE = (4, 5, 6)
MASKS = arrays(bool, st.tuples(*[st.integers(1, 6)] * 3))
FEW = settings(max_examples=60, deadline=None)


def mask_of(*voxels: tuple[int, int, int], shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


# Shape


@FEW
@given(MASKS)
def test_slices_are_counted_one_by_one(mask: np.ndarray) -> None:
    assert slice_counts(mask).tolist() == mask.sum(axis=(1, 2)).tolist()


@FEW
@given(MASKS)
def test_size_and_place_are_those_of_the_voxels(mask: np.ndarray) -> None:
    row = shape_columns(mask, bounding_box(mask), AFFINE)
    places = np.argwhere(mask)
    assert row["voxels"] == len(places)
    assert row["volume_cc"] == pytest.approx(len(places) * 0.03)  # 2 · 3 · 5 mm
    assert row["components"] == ndimage.label(mask, np.ones((3, 3, 3)))[1]
    if not len(places):
        assert [row[c] for c in ("bbox_start", "bbox_stop", "centroid_mm")] == [None] * 3
        assert row["empty_slices"] == 0
        return
    assert row["bbox_start"] == places.min(axis=0).tolist()
    assert row["bbox_stop"] == (places.max(axis=0) + 1).tolist()
    expected = index_to_lps(AFFINE, places).mean(axis=0)
    assert row["centroid_mm"] == pytest.approx(expected.tolist())
    slices = {int(z) for z in places[:, 0]}
    assert row["empty_slices"] == max(slices) - min(slices) + 1 - len(slices)


def test_a_volume_is_positive_whatever_the_orientation() -> None:
    mask = mask_of((1, 1, 1), (1, 1, 2))
    flipped = AFFINE @ np.diag([-1.0, 1, 1, 1])
    for affine in (AFFINE, flipped):
        assert shape_columns(mask, bounding_box(mask), affine)["volume_cc"] == pytest.approx(0.06)


@pytest.mark.parametrize(
    "voxels",
    [
        [(1, 1, 1), (2, 2, 2)],  # a shared corner connects
        [(0, 1, 1), (1, 2, 1)],  # a shared edge
        [(0, 0, 0), (0, 0, 1), (0, 0, 2)],  # a row
        [(0, 0, 0), (1, 0, 0), (2, 0, 0)],
    ],
)
def test_neighbours_are_one_component(voxels: list[tuple[int, int, int]]) -> None:
    mask = mask_of(*voxels)
    assert shape_columns(mask, bounding_box(mask), AFFINE)["components"] == 1


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("length", [1, 3])
def test_a_row_of_voxels_has_its_components(axis: int, length: int) -> None:
    """Two voxels with a gap between them, and a single one."""
    first, last = [1, 1, 1], [1, 1, 1]
    last[axis] += length - 1
    mask = mask_of((first[0], first[1], first[2]), (last[0], last[1], last[2]))
    assert shape_columns(mask, bounding_box(mask), AFFINE)["components"] == (2 if length > 1 else 1)


def test_a_centroid_is_exact_for_many_voxels() -> None:
    mask = np.ones((3, 300, 7), bool)
    row = shape_columns(mask, bounding_box(mask), np.eye(4))
    assert row["centroid_mm"] == [1, -149.5, -3]


# Dose


@FEW
@given(MASKS)
def test_a_small_structure_is_listed_whole_and_in_order(mask: np.ndarray) -> None:
    total, places = foreground_sample(mask, bounding_box(mask), "any")
    assert total == mask.sum()
    assert places == np.argwhere(mask).tolist()


def test_a_large_structure_is_sampled_by_its_seed() -> None:
    """The sample is NumPy's choice of ranks, of a generator that the seed's SHA-256 starts."""
    mask = np.random.default_rng(0).random((7, 30, 40)) < 0.4
    mask[3] = False
    places = np.argwhere(mask)
    total, found = foreground_sample(mask, bounding_box(mask), "newAcq_0/Rectum")
    number = int.from_bytes(hashlib.sha256(b"newAcq_0/Rectum").digest()[:8], "little")
    generator = np.random.Generator(np.random.PCG64(number))
    ranks = generator.choice(len(places), FOREGROUND_SAMPLE, replace=False, shuffle=False)
    assert total == len(places) > FOREGROUND_SAMPLE
    assert found == places[np.sort(ranks)].tolist()


@pytest.mark.parametrize("more", [0, 1])
def test_up_to_a_thousand_voxels_are_all_listed(more: int) -> None:
    mask = np.zeros((2, 30, 40), bool)
    mask.reshape(-1)[100 : 100 + FOREGROUND_SAMPLE + more] = True
    total, found = foreground_sample(mask, bounding_box(mask), "seed")
    assert (total, len(found)) == (FOREGROUND_SAMPLE + more, FOREGROUND_SAMPLE)
    assert FOREGROUND_SAMPLE == 1000


# Findings


@pytest.mark.parametrize(
    ("components", "listed", "said"),
    [
        ({"Bladder": 2}, None, []),
        ({"Bladder": 1, "Rectum": 1}, (), []),
        ({"Bladder": 2}, ("Bladder",), []),
        ({"Bladder": 2}, (), ["Bladder: 2 connected components, not on the authors' list"]),
        ({"Bladder": 1}, ("Bladder",), ["Bladder: on the authors' list .* has 1"]),
        ({"Bladder": 0}, ("Bladder",), ["Bladder: on the authors' list .* has 0"]),
        ({}, ("Bladder",), ["Bladder: on the authors' list .* has 0"]),
        ({"Bladder": 3, "Rectum": 2}, ("BODY",), ["Bladder: 3", "Rectum: 2", "BODY: .* has 0"]),
    ],
)
def test_a_list_of_components_is_compared_both_ways(
    components: dict[str, int], listed: tuple[str, ...] | None, said: list[str]
) -> None:
    found = component_findings(components, listed)
    assert len(found) == len(said)
    assert all(re.match(pattern, one) for pattern, one in zip(said, found, strict=True))


@pytest.mark.parametrize(
    ("source", "structure", "share", "inside"),
    [
        ("clinical", "CTVT_427", 62.5, 5),
        ("clinical", "PTVT_427", 99.5, 8),
        ("clinical", "CTVT_427", 0.0, 0),
        ("clinical", "CTVT_427", 100.0, None),
        ("clinical", "CTVT_427", None, None),
        ("clinical", "Rectum", 62.5, None),
        ("nnunet", "CTVT_427", 62.5, None),
    ],
)
def test_a_clinical_target_partly_outside_the_dose_grid_is_a_finding(
    source: str, structure: str, share: float | None, inside: int | None
) -> None:
    row = {"source": source, "structure": structure, "grid": "mri", "voxels": 8}
    found = list(coverage_findings([row | {"dose_covered_pct": share}]))
    expected = [] if inside is None else [f"{structure} (mri grid): {inside} of 8 voxels"]
    assert [one.partition(" lie in")[0] for one in found] == expected


def test_the_covered_part_is_in_percent() -> None:
    """The dose grid has two of the eight slices, and a quarter of the mask."""
    mask = np.ones((8, 5, 6), bool)
    planned = Grid(AFFINE, (2, 5, 6))
    dose = np.full(mask.shape, 40, np.float32)
    statistics, histogram = dose_measures(mask, bounding_box(mask), AFFINE, dose, planned)
    assert statistics["dose_covered_pct"] == histogram["covered_pct"] == 25.0


# A patient


def clinical(structure: str, grid: str = "mri") -> SourceFile:
    return SourceFile(f"{grid}/clinical", "mask", {"structure": structure})


@pytest.fixture
def measured() -> Measurements:
    """Two clinical masks on the MRI grid, one on the planning grid, and a fold of nnU-Net."""
    measurements = Measurements("newAcq_00000000000000a1", "extended")
    fold = SourceFile("mri/nnunet", "fold_mask", {"structure": "Rectum", "fold": 3})
    fiducials = SourceFile("mri/clinical", "fiducial_mask", {})
    for record, mask in (
        (clinical("Rectum"), mask_of((1, 1, 1), (3, 3, 3))),
        (clinical("Bladder"), mask_of((0, 0, 0))),
        (clinical("Bladder", "sct"), mask_of((0, 0, 0), (0, 0, 2), (3, 0, 0))),
        (fold, mask_of((0, 0, 0), (0, 0, 2), (0, 2, 0), (3, 4, 5))),
        (fiducials, mask_of((2, 2, 2))),
    ):
        dose = np.full(SHAPE, 40, np.float32)
        measurements.add(record, mask, bounding_box(mask), AFFINE, dose, None)
    return measurements


def test_components_are_the_most_of_a_clinical_mask_on_either_grid(measured: Measurements) -> None:
    assert measured.components() == {"Rectum": 2, "Bladder": 3}
    measured.add(clinical("BODY"), np.zeros(SHAPE, bool), None, AFFINE, None, None)
    assert measured.components()["BODY"] == 0


def test_every_mask_has_a_row_and_the_fiducials_none(measured: Measurements) -> None:
    rows = measured.rows(SHAPE, AFFINE)["structures"]
    keys = ("grid", "source", "structure", "fold", "step", "observer", "voxels")
    assert [tuple(row[k] for k in keys) for row in rows] == [
        ("mri", "clinical", "Rectum", None, None, None, 2),
        ("mri", "clinical", "Bladder", None, None, None, 1),
        ("sct", "clinical", "Bladder", None, None, None, 3),
        ("mri", "nnunet_fold", "Rectum", 3, None, None, 4),
    ]
    for row in rows:
        assert row["patient_id"] == "newAcq_00000000000000a1"
        assert (row["part"], row["protocol"]) == ("extended", "newAcq")
        assert row["dose_mean_gy"] == 40


def test_slices_count_clinical_masks_of_the_mri_grid(measured: Measurements) -> None:
    rows = measured.rows(SHAPE, AFFINE)["slices"]
    assert [row["z_index"] for row in rows] == [0, 1, 2, 3]
    assert [row["z_mm"] for row in rows] == [30, 35, 40, 45]
    assert [row["voxels_Rectum"] for row in rows] == [0, 1, 0, 1]
    assert [row["voxels_Bladder"] for row in rows] == [1, 0, 0, 0]
    for row in rows:
        others = {f"voxels_{s}" for s in STRUCTURES} - {"voxels_Rectum", "voxels_Bladder"}
        assert all(row[name] is None for name in others)
        assert (row["protocol"], row["part"]) == ("newAcq", "extended")


def test_an_oblique_grid_has_no_place_along_z(measured: Measurements) -> None:
    tilted = AFFINE.copy()
    tilted[2, 1] = 1
    assert [r["z_mm"] for r in measured.rows(SHAPE, tilted)["slices"]] == [None] * 4


def test_foreground_is_of_clinical_masks_of_the_mri_grid(measured: Measurements) -> None:
    rows = measured.rows(SHAPE, AFFINE)["foreground"]
    assert [(r["structure"], r["total"], r["indices"]) for r in rows] == [
        ("Rectum", 2, [[1, 1, 1], [3, 3, 3]]),
        ("Bladder", 1, [[0, 0, 0]]),
    ]
    assert all(r["part"] == "extended" for r in rows)


def test_a_patients_sample_is_by_id_and_structure() -> None:
    """The seed is `<patient_id>/<structure>`, so a table can be made again."""
    mask = np.random.default_rng(0).random((4, 30, 40)) < 0.5
    measurements = Measurements("oldAcq_00000000000000b2", "base")
    measurements.add(clinical("BODY"), mask, bounding_box(mask), AFFINE, None, None)
    [row] = measurements.rows(mask.shape, AFFINE)["foreground"]
    expected = foreground_sample(mask, bounding_box(mask), "oldAcq_00000000000000b2/BODY")
    assert (row["total"], row["indices"]) == expected


def test_what_is_held_is_counted_when_its_holder_comes() -> None:
    measurements = Measurements("oldAcq_00000000000000b2", "base", ["sCT/mask_BODY.nii.gz"])
    measurements.fiducials = np.array([[-10.0, -20, 30], [-8.0, -20, 30]])  # at x = 0, 1
    masks = {
        "CTVT_427": mask_of((0, 0, 0), (1, 1, 1)),
        "PTVT_427": mask_of((0, 0, 0), (1, 1, 2)),
        "BODY": mask_of((1, 1, 2), (1, 1, 3)),
    }
    for grid in ("mri", "sct"):
        for structure, mask in masks.items():
            if (grid, structure) != ("sct", "PTVT_427"):
                box = bounding_box(mask)
                measurements.add(clinical(structure, grid), mask, box, AFFINE, None, None)
    rows = measurements.rows(SHAPE, AFFINE)["structures"]
    found = {(r["grid"], r["structure"]): r["outside_voxels"] for r in rows}
    assert found == {
        ("mri", "CTVT_427"): 1,
        ("mri", "PTVT_427"): 1,
        ("mri", "BODY"): None,
        ("sct", "CTVT_427"): None,  # there is no PTV
        ("sct", "BODY"): None,
    }
    assert [r["fiducials_inside"] for r in rows] == [1, None, None, None, None]
    assert [r["listed_by_authors"] for r in rows] == [False] * 4 + [True]


def test_an_empty_holder_holds_nothing_and_an_empty_target_is_not_asked_about() -> None:
    measurements = Measurements("oldAcq_00000000000000b2", "base")
    measurements.add(clinical("CTVT_427"), mask_of((1, 1, 1)), ONE, AFFINE, None, None)
    measurements.add(clinical("PTVT_427"), mask_of(), None, AFFINE, None, None)
    measurements.add(clinical("BODY"), mask_of((1, 1, 1)), ONE, AFFINE, None, None)
    rows = measurements.rows(SHAPE, AFFINE)["structures"]
    assert [r["outside_voxels"] for r in rows] == [1, None, None]


ONE = (slice(1, 2), slice(1, 2), slice(1, 2))


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        (None, [None, None, None]),
        ((), [False, False, False]),
        (("MR_StorT2/mask_Rectum.nii.gz",), [True, False, False]),
        (("mask_Rectum.nii.gz",), [None, None, False]),
        (("mask_Rectum.nii.gz", "sCT/mask_Rectum.nii.gz"), [None, True, False]),
        (("MR_StorT2/nnUNetOutput/mask_Rectum_nnUNet.nii.gz",), [False, False, True]),
    ],
)
def test_a_mask_is_listed_by_its_grid(
    listed: tuple[str, ...] | None, found: list[bool | None]
) -> None:
    network = SourceFile("mri/nnunet", "mask", {"structure": "Rectum"})
    records = (clinical("Rectum"), clinical("Rectum", "sct"), network)
    assert [is_listed(record, listed) for record in records] == found


def test_a_network_of_a_structure_that_it_does_not_segment_is_not_listed() -> None:
    foreign = SourceFile("mri/nnunet", "mask", {"structure": "Bladder"})
    assert is_listed(foreign, ("mask_Bladder.nii.gz",)) is False


def test_images_are_measured_inside_body_or_the_reason_is_said() -> None:
    measurements = Measurements("oldAcq_00000000000000b2", "base")
    t2w = SourceFile("mri", "image", {"modality": "T2w"})
    image = np.arange(120, dtype=np.float32).reshape(SHAPE)
    mask = mask_of((1, 1, 1), (1, 1, 3))
    for body in (Body.of(mask, "mri"), Body.of(np.zeros(SHAPE, bool), "mri"), Body.of(None, "mri")):
        measurements.add_image(t2w, image, body)
    spoilt = image.copy()
    spoilt[1, 1, 1] = np.nan
    measurements.add_image(t2w, spoilt, Body.of(mask, "mri"))
    rows = measurements.rows(SHAPE, AFFINE)["intensity"]
    assert [row["reason"] for row in rows] == [
        None,
        "BODY has no voxel",
        "no clinical BODY on the mri grid",
        "values inside BODY are inf or NaN",
    ]
    assert [row["mean"] for row in rows] == [image[mask].mean(), None, None, None]
    for row in rows:
        assert (row["patient_id"], row["protocol"]) == ("oldAcq_00000000000000b2", "oldAcq")
        assert (row["part"], row["grid"], row["modality"]) == ("base", "mri", "T2w")


def test_a_body_does_not_change() -> None:
    body = Body(None, "why")
    with pytest.raises(FrozenInstanceError):
        body.reason = "because"  # type: ignore[misc]


def test_a_margin_is_of_the_expanded_target_alone() -> None:
    measurements = Measurements("oldAcq_00000000000000b2", "base")
    target, expanded = mask_of((1, 2, 2)), mask_of((1, 2, 1), (1, 2, 2), (1, 2, 3))
    for structure, mask in (("CTVT_427", target), ("Rectum", expanded), ("PTVT_427", expanded)):
        measurements.add(clinical(structure), mask, bounding_box(mask), AFFINE, None, None)
    rows = measurements.rows(SHAPE, AFFINE)["structures"]
    assert [row["margin_max_mm"] for row in rows] == [None, None, 2.0]
