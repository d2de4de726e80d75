"""What the phantom shows: anatomy the right way round, margins, dose, readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from phantom_reading import Tree
from scipy import ndimage

from lundprobe_zarr.phantom.anatomy import draw_anatomy, draw_habitus
from lundprobe_zarr.phantom.grids import plan_grids
from lundprobe_zarr.phantom.patient import Case
from lundprobe_zarr.phantom.readers import read_target
from lundprobe_zarr.vocabulary.names import AIR_HU, OBSERVERS, PRESCRIPTION_GY, PTV_MARGIN_MM

GRIDS = ("MR_StorT2", "sCT")
IMAGES = (
    "MR_StorT2/image", "MR_StorT2/dose_interpolated", "sCT/image", "sCT/image_reg2MRI",
    "sCT/dose_original", "sCT/dose_interpolated",
)  # fmt: skip


def mask(tree: Tree, folder: Path, name: str, grid: str = "MR_StorT2") -> np.ndarray:
    return tree.volume(folder, f"{grid}/mask_{name}.nii.gz").array.astype(bool)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("grid", GRIDS)
def test_organs_lie_as_in_a_man_on_his_back(tiny: Tree, grid: str):
    for folder in tiny.all_folders:
        centre = {
            p.name[5:-7]: tiny.volume(folder, f"{grid}/{p.name}").centroid
            for p in (folder / grid).glob("mask_*.nii.gz")
        }
        ctv = centre["CTVT_427"]
        assert centre["FemoralHead_L"][0] > ctv[0] + 60
        assert centre["FemoralHead_R"][0] < ctv[0] - 60
        assert centre["FemoralHead_L"][2] > centre["FemoralHead_R"][2] + 3
        assert centre["Rectum"][1] > ctv[1] + 20
        assert centre["Bladder"][2] > ctv[2] + 30
        if "Genitalia" in centre:
            assert (centre["Genitalia"][1:] < ctv[1:] - 30).all()
        if "PenileBulb" in centre:
            assert centre["PenileBulb"][2] < ctv[2] - 20
        assert abs(ctv[0] - centre["BODY"][0]) > 1


def test_left_and_right_femoral_heads_differ_in_size(small: Tree):
    for folder in small.all_folders:
        left, right = (mask(small, folder, f"FemoralHead_{s}").sum() for s in "LR")
        assert left > 1.15 * right


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_no_image_is_its_own_mirror_image(tiny: Tree, image: str, axis: int):
    for folder in tiny.all_folders:
        values = tiny.volume(folder, f"{image}.nii.gz").array.astype(float)
        seen = np.argwhere(values > np.percentile(values, 60))
        window = tuple(
            slice(lo, hi + 1) for lo, hi in zip(seen.min(axis=0), seen.max(axis=0), strict=True)
        )
        body = values[window]
        difference = np.abs(body - np.flip(body, axis)).mean()
        assert difference > 0.06 * body.std()


def test_organs_are_the_same_on_both_grids(small: Tree):
    for folder in small.all_folders:
        for path in (folder / "sCT").glob("mask_*.nii.gz"):
            volumes = [small.volume(folder, f"{g}/{path.name}") for g in GRIDS]
            if any(v.array[[0, -1]].any() for v in volumes):
                continue  # cut off at another height on either grid
            apart = np.abs(volumes[0].centroid - volumes[1].centroid)
            assert (apart < [0.8, 0.8, 2.0]).all(), path.name
            size = [v.array.sum() * np.prod(v.header["pixdim"][1:4]) for v in volumes]
            assert size[0] == pytest.approx(size[1], rel=0.12)


def test_ptv_is_ctv_and_seven_millimetres(small: Tree):
    for folder in small.all_folders:
        spacing = small.volume(folder, "MR_StorT2/image.nii.gz").header["pixdim"][3:0:-1]
        ctv, ptv = mask(small, folder, "CTVT_427"), mask(small, folder, "PTVT_427")
        distance = ndimage.distance_transform_edt(~ctv, sampling=spacing)
        grown = distance <= PTV_MARGIN_MM
        cube = np.ones((3, 3, 3))
        assert not (ptv & ~ndimage.binary_dilation(grown, cube)).any()
        assert not (ndimage.binary_erosion(grown, cube) & ~ptv).any()
        # Within a slice, where voxels are far smaller than the margin, to a fraction of a voxel.
        middle = int(np.median(np.nonzero(ctv)[0]))
        rim = ptv[middle] & ~ndimage.binary_erosion(ptv[middle])
        voxel = float(spacing[2])
        assert PTV_MARGIN_MM - voxel < np.median(distance[middle][rim]) < PTV_MARGIN_MM + voxel / 2


def test_ptv_exceeds_ctv_even_on_coarse_voxels(tiny: Tree):
    for folder in tiny.all_folders:
        ctv, ptv = mask(tiny, folder, "CTVT_427"), mask(tiny, folder, "PTVT_427")
        assert not (ctv & ~ptv).any()
        assert ptv.sum() > 1.5 * ctv.sum()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("tree", ["tiny", "small"])
def test_dose_conforms_to_the_ptv(request: pytest.FixtureRequest, tree: str, grid: str):
    phantom: Tree = request.getfixturevalue(tree)
    for folder in phantom.all_folders:
        dose = phantom.volume(folder, f"{grid}/dose_interpolated.nii.gz").array
        ptv, body = (mask(phantom, folder, n, grid) for n in ("PTVT_427", "BODY"))
        assert np.percentile(dose[ptv], 2) > 0.95 * PRESCRIPTION_GY
        assert np.median(dose[ptv]) == pytest.approx(PRESCRIPTION_GY, rel=0.03)
        assert dose.max() < 1.07 * PRESCRIPTION_GY
        assert (dose > 0.95 * PRESCRIPTION_GY).sum() < 1.6 * ptv.sum()
        assert dose[~body].mean() < 0.1
        assert 1 < np.median(dose[body & ~ptv & (dose > 0.5)]) < 20
        assert dose.min() == 0


def test_interpolated_dose_is_the_planned_dose(tiny: Tree):
    for folder in tiny.all_folders:
        planned = tiny.volume(folder, "sCT/dose_original.nii.gz")
        for path in ("MR_StorT2", "sCT"):
            volume = tiny.volume(folder, f"{path}/dose_interpolated.nii.gz")
            index = [
                (a - b[0]) / (b[1] - b[0]) for a, b in zip(volume.axes, planned.axes, strict=True)
            ]
            expected = ndimage.map_coordinates(
                planned.array.astype(float), np.meshgrid(*index, indexing="ij"), order=1
            )
            np.testing.assert_allclose(volume.array, expected, atol=1e-3)


def test_registered_sct_is_the_spline_of_the_sct(tiny: Tree):
    folder = tiny.folders("extended")[0]  # no warning text there
    source = tiny.volume(folder, "sCT/image.nii.gz")
    target = tiny.volume(folder, "sCT/image_reg2MRI.nii.gz")
    index = [(a - b[0]) / (b[1] - b[0]) for a, b in zip(target.axes, source.axes, strict=True)]
    expected = ndimage.map_coordinates(
        source.array.astype(float), np.meshgrid(*index, indexing="ij"), order=3, mode="mirror"
    )
    inside = np.ix_(
        *((i > 0.01) & (i < n - 1.01) for i, n in zip(index, source.array.shape, strict=True))
    )
    np.testing.assert_allclose(target.array[inside], expected[inside], atol=0.05)
    assert not np.array_equal(target.array.astype(np.float32), target.array)


def test_sct_air_is_exact_and_splines_overshoot_it(small: Tree):
    for folder in small.all_folders:
        sct = small.volume(folder, "sCT/image.nii.gz").array
        assert sct.min() == AIR_HU
        outside = ~mask(small, folder, "BODY", "sCT")
        assert (sct[outside] == AIR_HU).mean() > 0.95
        assert np.array_equal(sct % 1, np.full_like(sct, 0.5))
        assert small.volume(folder, "sCT/image_reg2MRI.nii.gz").array.min() < -1200


def test_tissues_have_their_contrast(small: Tree):
    for folder in small.all_folders:
        t2w = small.volume(folder, "MR_StorT2/image.nii.gz").array
        hu = small.volume(folder, "sCT/image_reg2MRI.nii.gz").array
        names = ("Bladder", "CTVT_427", "FemoralHead_L", "FemoralHead_R", "Rectum")
        inner = {n: ndimage.binary_erosion(mask(small, folder, n)) for n in names}
        signal = {n: np.median(t2w[m]) for n, m in inner.items()}
        number = {n: np.median(hu[m]) for n, m in inner.items()}
        assert signal["Bladder"] > 1.4 * signal["CTVT_427"] > 1.4 * signal["Rectum"]
        assert min(number["FemoralHead_L"], number["FemoralHead_R"]) > 120
        assert -10 < number["Bladder"] < 20 < number["CTVT_427"] < 60
        assert hu[inner["Rectum"]].min() < -900  # gas
        seeds = mask(small, folder, "MRI_T2_coords_fiducials")
        assert t2w[seeds].min() < 0.2 * signal["CTVT_427"]
        air = t2w[~ndimage.binary_dilation(mask(small, folder, "BODY"), iterations=4)]
        assert 20 < air.mean() < 80  # Rician noise has no zero mean
        assert 10 < air.std() < 40


def reading(folder: Path, target: str):
    """Draw the extended patient's readers again, as the generator does."""
    case = Case(0, "extended", 0, "tiny")
    assert folder.name == case.patient_id
    habitus = draw_habitus(case.rng("habitus"))
    anatomy = draw_anatomy(case.rng("anatomy"), habitus, case.size)
    grids = plan_grids(
        case.rng("grids"), case.size, case.protocol, 0, habitus.prostate, habitus.centre
    )
    organ = anatomy.ctv if target == "CTVT_427" else anatomy.rectum
    return read_target(case.rng(f"readers of {target}"), organ, grids.mri)


@pytest.mark.parametrize("target", ["CTVT_427", "Rectum"])
def test_uncertainty_is_the_standard_deviation_of_the_folds(tiny: Tree, target: str):
    (folder,) = tiny.folders("extended")
    read = reading(folder, target)
    stem = f"MR_StorT2/nnUNetOutput/mask_{target}_nnUNet"
    uncertainty = tiny.volume(folder, f"{stem}_uncertaintyMap.nii.gz").array
    expected = np.zeros_like(uncertainty)
    expected[read.window] = np.sqrt(np.var(read.probabilities.astype(float), axis=0))
    np.testing.assert_allclose(uncertainty, expected, atol=1e-6)
    ensemble = tiny.volume(folder, f"{stem}.nii.gz").array[read.window]
    assert np.array_equal(ensemble, read.probabilities.astype(float).mean(axis=0) > 0.5)
    for n in range(10):
        name = f"MR_StorT2/nnUNetOutput/folds/mask_{target}_nnUNet_fold_{n}.nii.gz"
        assert np.array_equal(
            tiny.volume(folder, name).array[read.window], read.probabilities[n] > 0.5
        )


@pytest.mark.parametrize("target", ["CTVT_427", "Rectum"])
def test_folds_disagree_at_the_border_and_there_alone(small: Tree, target: str):
    (folder,) = small.folders("extended")
    names = [f"nnUNetOutput/folds/mask_{target}_nnUNet_fold_{n}.nii.gz" for n in range(10)]
    folds = np.stack([small.volume(folder, f"MR_StorT2/{n}").array for n in names])
    votes = folds.sum(axis=0)
    contested = (votes > 0) & (votes < 10)
    uncertainty = small.volume(
        folder, f"MR_StorT2/nnUNetOutput/mask_{target}_nnUNet_uncertaintyMap.nii.gz"
    ).array
    assert len({f.tobytes() for f in folds}) == 10
    assert uncertainty[contested].mean() > 5 * uncertainty[~contested & (uncertainty > 0)].mean()
    assert 0.1 < uncertainty.max() <= 0.5
    clinical = mask(small, folder, target)
    assert all(0.75 < dice(f.astype(bool), clinical) < 0.999 for f in folds)


@pytest.mark.parametrize("target", ["CTVT_427", "Rectum"])
def test_observers_differ_and_agree_better_in_step_two(small: Tree, target: str):
    (folder,) = small.folders("extended")
    clinical = mask(small, folder, target)
    scores = {}
    for step in (1, 2):
        masks = [
            small.volume(
                folder, f"MR_StorT2/observerData/mask_{target}_step{step}_{o}.nii.gz"
            ).array.astype(bool)
            for o in OBSERVERS
        ]
        assert len({m.tobytes() for m in masks}) == len(OBSERVERS)
        scores[step] = np.mean([dice(m, clinical) for m in masks])
    assert 0.75 < scores[1] < scores[2] < 0.995
