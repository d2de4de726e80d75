"""`lundprobe-zarr agreement`: what it says of wrong usage."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ("1=Rectum,1=Bladder", "1 twice; expected each number once"),
        ("Rectum", "expected numbers and names"),
        ("0=Rectum,1=Bladder", "0 for Rectum"),
    ],
)
def test_wrong_labels_are_refused(cli, dataset, tmp_path, labels, says):
    (tmp_path / "newAcq_0000000000000000.nii.gz").touch()
    ran = cli("agreement", dataset, "--predictions", tmp_path, "--labels", labels)
    assert ran.status == 2
    assert says in ran.err
