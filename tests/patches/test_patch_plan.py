"""What an epoch holds: who, how often, around what; and what cannot be had."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
from stored_volumes import stored

from lundprobe_zarr.errors import MissingStructureError, UsageError
from lundprobe_zarr.patches import (
    BalancedSampling,
    CentredSampling,
    Content,
    GridSampling,
    Plan,
    SliceSampling,
    UniformSampling,
    lattice_of,
)
from lundprobe_zarr.stream.patch import read_items
from lundprobe_zarr.vocabulary.names import OBSERVERS

SIZE = (6, 12, 12)


def samples(plan: Plan, readers, epoch: int = 0):
    items = [plan.item(epoch, n) for n in range(len(plan))]
    return [read_items(plan, readers[i.patient_id], [i])[0] for i in items]


def test_an_epoch_takes_patches_of_everybody(cohort, readers):
    plan = Plan(cohort, Content(), SIZE, sampling=UniformSampling(3), seed=5)
    found = samples(plan, readers)
    assert len(plan) == len(found) == 12
    assert Counter(s["patient_id"] for s in found) == dict.fromkeys(cohort.ids, 3)
    assert [s["index"] for s in found] == list(range(12))
    again = samples(pickle.loads(pickle.dumps(plan)), readers)
    other = samples(plan, readers, epoch=1)
    assert [s["start"].tolist() for s in found] == [s["start"].tolist() for s in again]
    assert [s["start"].tolist() for s in found] != [s["start"].tolist() for s in other]


def test_a_patients_patches_do_not_depend_on_the_others(cohort, readers):
    def starts(of):
        found = samples(Plan(of, Content(), SIZE, seed=5), readers)
        mine = [s for s in found if s["patient_id"] == cohort.ids[1]]
        return {s["draw"]: s["start"].tolist() for s in mine}

    assert starts(cohort) == starts(cohort[1:])


@pytest.mark.parametrize(
    "content",
    [
        Content(structures=("Rectum", "Bladder")),
        Content(grid="sct", structures=("Rectum", "Bladder")),
        Content(structures=("Rectum", "Bladder"), spacing_mm=(2.5, 2.0, 2.0)),
    ],
    ids=["mri", "sct", "respaced"],
)
def test_balanced_patches_have_their_structure_in_the_middle(cohort, readers, content):
    """On the stored grid exactly; on others the foreground is that of the MRI grid's mask."""
    sampling = BalancedSampling(("Rectum", "Bladder"), foreground=1, per_patient=20)
    plan = Plan(cohort, content, (1, 3, 3), sampling=sampling)
    found = samples(plan, readers)
    hit = [s["mask"].any() for s in found]
    stored_grid = content.grid == "mri" and content.spacing_mm is None
    assert np.mean(hit) == 1 if stored_grid else np.mean(hit) > 0.9
    both = np.array([s["mask"].any(axis=(1, 2, 3)) for s in found]).mean(axis=0)
    assert (both > 0.25).all()


def test_patches_centred_on_a_structure(cohort, readers):
    """128×256×320 around the PTV at 1.5 mm, as dose prediction has it, in small."""
    content = Content(modalities=("sCT",), structures=("PTVT_427",), dose=True, spacing_mm=3.0)
    plan = Plan(cohort, content, (20, 30, 41), sampling="centred", pad="zero")
    assert len(plan) == len(cohort)
    for sample in samples(plan, readers):
        lattice = lattice_of(readers[sample["patient_id"]].metadata, content)
        masks = stored(cohort, sample["patient_id"], "mri/clinical")["mask"]
        inside = np.argwhere(masks.sel(structure="PTVT_427").values)
        axes = stored(cohort, sample["patient_id"], "mri")
        at = [axes[d].values[inside[:, n]].mean() for n, d in enumerate("zyx")]
        middle = lattice.to_index(np.array(at)) - sample["start"]
        rows = zip(middle, sample["start"], (20, 30, 41), lattice.shape, strict=True)
        for m, a, s, n in rows:
            assert abs(m - (s - 1) / 2) <= 0.5 + 1e-5 or a in (0, n - s) or s > n
            assert 0 <= m < s
        assert sample["mask"].any()


def test_a_grid_takes_every_voxel(cohort, readers):
    plan = Plan(cohort[:1], Content(), (9, 20, 20), sampling=GridSampling((1, 2, 3)), shuffle=False)
    seen = np.zeros(readers[cohort.ids[0]].array("mri/image").volume_shape, bool)
    for sample in samples(plan, readers):
        z, y, x = sample["start"]
        seen[z : z + 9, y : y + 20, x : x + 20] = True
    assert seen.all()
    assert plan.starts(readers[cohort.ids[0]].metadata) == [
        tuple(s["start"].tolist()) for s in samples(plan, readers)
    ]


def test_slices_are_whole_and_can_be_chosen_by_what_is_on_them(cohort, readers):
    every = Plan(cohort, Content(structures=("CTVT_427",)), sampling="slices")
    ctv = Plan(cohort, Content(structures=("CTVT_427",)), sampling=SliceSampling("CTVT_427"))
    with_ctv = [s for s in samples(every, readers) if s["mask"].any()]
    chosen = samples(ctv, readers)
    where = {(s["patient_id"], s["start"][0]) for s in with_ctv}
    assert {(s["patient_id"], s["start"][0]) for s in chosen} == where
    assert len(chosen) == len(where) < len(every)
    shape = readers[chosen[0]["patient_id"]].array("mri/image").volume_shape
    assert chosen[0]["image"].shape == (1, 1, *shape[1:])


def test_sizes_in_millimetres(cohort, readers):
    plan = Plan(cohort, Content(), patch_size_mm=(15, 25, 40))
    for patient_id in cohort.ids:
        mm = lattice_of(readers[patient_id].metadata, Content()).spacing_mm
        assert np.abs(plan.size(patient_id) * mm - (15, 25, 40)).max() <= mm.max() / 2
    respaced = Plan(cohort, Content(spacing_mm=2.0), patch_size_mm=(15, 25, 40))
    assert {respaced.size(i) for i in cohort.ids} == {(8, 12, 20)}


def test_a_random_observer_is_one_that_there_is(cohort, readers, extended):
    content = Content(observers=OBSERVERS)
    plan = Plan(
        cohort[[extended]], content, SIZE, random_observer=True, sampling=UniformSampling(40)
    )
    found = samples(plan, readers)
    drawn = Counter((s["step"], s["observer"]) for s in found)
    assert len(drawn) == 8, "in 40 draws each of 8 is met, but once in 300 seeds"
    for sample in found:
        assert sample["observer_mask"].shape == (2, 1, 1, *SIZE)
        assert sample["observer_present"].all()


def test_only_complete_patients_when_asked(cohort, lacking):
    patient_id, structure = lacking
    content = Content(structures=(structure, "Bladder"))
    assert patient_id in Plan(cohort, content, SIZE).cohort
    assert patient_id not in Plan(cohort, content, SIZE, complete=True).cohort
    on_sct = Plan(cohort, Content(grid="sct", structures=(structure,)), SIZE, complete=True)
    assert patient_id not in on_sct.cohort


def test_a_structure_that_nobody_has_is_said(cohort, lacking):
    patient_id, structure = lacking
    alone = cohort[[patient_id]]
    said = f"none of the 1 patients .* has a voxel of {structure}"
    for arguments in (
        {"content": Content(structures=(structure,))},
        {"content": Content(), "sampling": BalancedSampling((structure,))},
        {"content": Content(), "sampling": CentredSampling(structure)},
        {"content": Content(), "sampling": SliceSampling(structure)},
    ):
        with pytest.raises(MissingStructureError, match=said):
            Plan(alone, patch_size=SIZE, **arguments)


def test_who_lacks_the_structure_is_not_centred_on(cohort, lacking):
    patient_id, structure = lacking
    plan = Plan(cohort, Content(), SIZE, sampling=CentredSampling(structure, per_patient=2))
    drawn = {plan.item(0, n).patient_id for n in range(len(plan))}
    assert patient_id not in drawn
    assert len(plan) == 2 * len(drawn) > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"patch_size": (9999, 1, 1)}, "longer than the volume of patient .*pad='zero'"),
        ({"patch_size": (1, 2)}, "patch_size=\\(1, 2\\)"),
        ({"patch_size": (1, 2, 0)}, "positive integer"),
        ({}, "one of the two"),
        ({"patch_size": SIZE, "patch_size_mm": 10}, "one of the two"),
        ({"patch_size": SIZE, "pad": "reflect"}, "pad='reflect'"),
        ({"patch_size": SIZE, "seed": 1.5}, "seed=1.5"),
        ({"patch_size": SIZE, "block": 0}, "block=0"),
    ],
)
def test_what_cannot_be_is_refused_at_once(cohort, arguments, said):
    with pytest.raises(UsageError, match=said):
        Plan(cohort, Content(), **arguments)


def test_nobody_is_nobody(cohort):
    with pytest.raises(UsageError, match="no patients"):
        Plan(cohort.where("false"), Content(), SIZE)
