"""Whole volumes of patients: what counts as lacking."""

from __future__ import annotations

import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import MissingStructureError
from lundprobe_zarr.patches.frame import Frame
from lundprobe_zarr.stream.whole import WholeVolumes, content_of


def _volumes(dataset, *structures, grid="mri", missing="error"):
    content = content_of(None, structures, grid, "clinical", False, False, None, None)
    return WholeVolumes(lp.open_cohort(dataset), content, Frame(), missing)


def test_a_clinical_mask_without_a_voxel_is_lacking_and_never_given(undrawn):
    with pytest.raises(MissingStructureError, match="Bladder"):
        _volumes(undrawn, "Rectum", "Bladder")
    assert _volumes(undrawn, "Rectum").ids == _volumes(undrawn, "Bladder", grid="sct").ids


def test_a_stream_takes_a_mask_without_a_voxel_for_present_and_sql_leaves_it_out(undrawn):
    cohort = lp.open_cohort(undrawn)
    assert not cohort[0].row["missing_Bladder"]
    stream = lp.PatchStream(cohort, (4, 8, 8), structures=("Bladder",), sampling="uniform")
    sample = next(iter(stream))
    assert sample["present"].tolist() == [True]
    assert not sample["mask"].any()
    label_map = lp.label_map(cohort[0], ["BODY", "Bladder"], missing="ignore")
    assert list(label_map.absent) == ["Bladder"]
    assert len(cohort.where("Bladder.volume_cc > 0")) == 0
    assert len(cohort.where("BODY.volume_cc > 0")) == 1
