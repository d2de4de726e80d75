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
