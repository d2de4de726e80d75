"""`lp.label_map`: against the masks themselves, on aligned and oblique grids."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import MissingStructureError, UnknownLabelError, UsageError

NAMES = ["Rectum", "PTVT_427", "CTVT_427", "Bladder", "BODY"]


def painted(masks, names, order):
    """The map, by painting masks from the last in the order to the first."""
    found = np.zeros(masks[0].shape, int)
    for name in reversed(order):
        found[masks[names.index(name)].values] = 1 + names.index(name)
    return found


def test_labels_are_those_of_the_masks(cohort):
    patient = cohort[0]
    found = lp.label_map(patient, NAMES)
    order = ("CTVT_427", "PTVT_427", "Rectum", "Bladder", "BODY")
    masks = [patient.mask(n) for n in NAMES]
    assert found.priority == order
    assert found.array.dtype == np.uint8
    assert found.labels == {"background": 0} | {n: i for i, n in enumerate(NAMES, start=1)}
    np.testing.assert_array_equal(found.array, painted(masks, NAMES, order))
    for dim in "zyx":
        np.testing.assert_array_equal(found.array[dim], patient.mri[dim])
    assert found.array.attrs["flag_meanings"] == " ".join(found.labels)
    assert found.array.attrs["flag_values"].tolist() == list(found.labels.values())
    assert found.voxels == {n: int(m.sum()) for n, m in zip(NAMES, masks, strict=True)}
    pairs = {(o.first, o.second): (o.voxels, o.winner) for o in found.overlaps}
    inside = int((masks[2] & masks[1]).sum())
    assert pairs["CTVT_427", "PTVT_427"] == (inside, "CTVT_427")
    assert pairs["Rectum", "BODY"][1] == "Rectum"
    assert found.frame().columns.tolist() == ["first", "second", "voxels", "winner"]
    assert len(found.frame()) == len(found.overlaps)
    assert not found.absent
    assert not found.hidden
    assert "4 Bladder" in repr(found)


def test_priority_says_who_wins(cohort):
    found = lp.label_map(cohort[0], ["CTVT_427", "PTVT_427"], priority="PTVT_427")
    ptv = cohort[0].mask("PTVT_427").values
    np.testing.assert_array_equal(found.array, 2 * ptv)
    assert found.hidden == ("CTVT_427",)


def test_a_missing_structure_is_no_background(lacking):
    with pytest.raises(MissingStructureError, match="lacks PenileBulb") as raised:
        lp.label_map(lacking, ["Rectum", "PenileBulb", "BODY"])
    assert 'missing="ignore"' in raised.value.remedy
    found = lp.label_map(lacking, ["Rectum", "PenileBulb", "BODY"], missing="ignore")
    rectum = lacking.mask("Rectum").values
    assert found.absent == ("PenileBulb",)
    assert found.labels["ignore"] == 4
    np.testing.assert_array_equal(found.array, np.where(rectum, 1, 4))
    other = lp.label_map(lacking, ["Rectum", "PenileBulb"], missing="ignore", ignore=300)
    np.testing.assert_array_equal(other.array, np.where(rectum, 1, 300))
    assert other.array.dtype == np.uint16
    first = lp.label_map(lacking, ["PenileBulb", "BODY"], priority="BODY", missing="ignore")
    np.testing.assert_array_equal(first.array, np.where(lacking.mask("BODY"), 2, 3))


@pytest.mark.parametrize(
    ("source", "labels", "of"),
    [
        ("nnunet", {}, lambda p: p.nnunet.mask),
        ("nnunet_fold", {"fold": 3}, lambda p: p.nnunet.fold_mask.sel(fold=3)),
        (
            "observer",
            {"step": 2, "observer": "obsC"},
            lambda p: p.observers.mask.sel(step=2, observer="obsC"),
        ),
    ],
)
def test_any_source_has_a_map(extended, source, labels, of):
    found = lp.label_map(extended, ["Rectum", "CTVT_427"], source=source, **labels)
    masks = [of(extended).sel(structure=s) for s in ("Rectum", "CTVT_427")]
    wanted = painted(masks, ["Rectum", "CTVT_427"], ["CTVT_427", "Rectum"])
    np.testing.assert_array_equal(found.array, wanted)


def test_the_sct_grid_has_one_too(cohort):
    found = lp.label_map(cohort[0], "Rectum", grid="sct")
    np.testing.assert_array_equal(found.array, cohort[0].mask("Rectum", "sct"))
    np.testing.assert_array_equal(found.array.z, cohort[0].sct.z)


def test_an_oblique_grid_keeps_its_affine(askew, oblique_source):
    found = lp.label_map(askew, ["Rectum"])
    file = next(oblique_source.glob("*/*/MR_StorT2/mask_Rectum.nii.gz"))
    np.testing.assert_allclose(np.reshape(found.array.affine, (4, 4)), nib.load(file).affine)
    cut = found.array.lp.crop("Rectum", askew)
    assert int(cut.sum()) == found.voxels["Rectum"]
    assert cut.size < found.array.size


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"structures": ["Recum"]}, UnknownLabelError, "nearest: Rectum"),
        ({"ignore": 1}, UsageError, "from 2, the first"),
        ({"ignore": True}, UsageError, "ignore=True"),
        ({"missing": "background"}, UsageError, "missing='background'"),
        ({"source": "nnunet"}, MissingStructureError, "a patient with such masks"),
        ({"source": "nurse"}, UnknownLabelError, "unknown source"),
        ({"grid": "dose"}, UsageError, "has no masks"),
        ({"source": "nnunet", "grid": "sct"}, UsageError, "clinical masks alone"),
        ({"source": "observer"}, UsageError, "step and observer"),
        ({"fold": 1}, UsageError, "neither fold"),
        ({"source": "nnunet_fold", "fold": 10}, UnknownLabelError, "unknown fold"),
    ],
)
def test_wrong_arguments_are_refused(cohort, options, error, says):
    with pytest.raises(error, match=says):
        lp.label_map(cohort[0], **({"structures": ["Rectum"]} | options))
