"""What a notebook shows of a dataset, cohort, patient, splits and stream."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.vocabulary.markup import summary_html
from lundprobe_zarr.vocabulary.names import STRUCTURES


@pytest.fixture(scope="module")
def cohort(dataset) -> lp.Cohort:
    return lp.open_cohort(dataset)


def text_of(markup: str) -> str:
    closed = re.sub(r"<img([^>]*)>", r"<img\1/>", markup)  # HTML need not close it, XML must
    return " | ".join(t for t in ET.fromstring(f"<div>{closed}</div>").itertext())


def test_everything_given_is_text():
    shown = summary_html("<b>", {"<i>": "&"}, ("<u>",), [("<script>",)], "<br>")
    assert text_of(shown) == "<b> | <i> | & | <u> | <script> | <br>"


def test_a_cohort_shows_counts_selection_and_first_patients(cohort):
    chosen = cohort.where("part = 'extended'")
    shown = text_of(chosen._repr_html_())
    assert f"{len(chosen)} of {len(cohort)} patients" in shown
    assert "part = 'extended'" in shown
    assert chosen.ids[0] in shown
    assert "… and" not in text_of(cohort[:1]._repr_html_())


def test_a_cohort_says_what_patients_lack(cohort):
    flags = [f"missing_{structure}" for structure in STRUCTURES]
    lacking = cohort.patients[cohort.patients[flags].any(axis=1)].iloc[0]
    missing = next(c.removeprefix("missing_") for c in flags if lacking[c])
    assert missing in text_of(cohort[[lacking.patient_id]]._repr_html_())
    assert f"not delineated | {missing}" in text_of(cohort[lacking.patient_id]._repr_html_())


def test_a_patient_shows_a_slice_and_what_is_there(cohort):
    shown = cohort[0]._repr_html_()
    assert 'src="data:image/jpeg;base64,' in shown
    shape = "×".join(map(str, cohort[0].row["mri_shape"]))
    assert f"{shape} voxels" in text_of(shown)


def test_a_damaged_patient_shows_the_error(cohort, monkeypatch):
    lost = lp.Patient(cohort.dataset, cohort.ids[0])
    monkeypatch.setattr(
        "lundprobe_zarr.figures.planes.open_store",
        lambda *_: (_ for _ in ()).throw(lp.LundProbeError("the store is <gone>")),
    )
    assert "the store is <gone>" in text_of(lost._repr_html_())


def test_a_dataset_shows_what_its_manifest_says(cohort):
    shown = text_of(cohort.dataset._repr_html_())
    assert cohort.manifest.name in shown
    assert cohort.manifest.content.sha256 in shown


def test_splits_show_the_size_of_each_set(cohort):
    splits = cohort.split(test=0.2, folds=2, seed=1)
    shown = text_of(splits._repr_html_())
    assert f"test | {len(splits.test)}" in shown
    assert shown.count("| train |") == 2
    assert splits.sha256 in shown


def test_a_stream_shows_patches_place_and_labels(cohort):
    stream = lp.PatchStream(cohort, (8, 16, 16), structures=("Rectum",), seed=3)
    shown = text_of(stream._repr_html_())
    assert "8×16×16" in shown
    assert "Rectum" in shown
    assert "epoch 0, patch 0" in shown
