"""Source file names and labels: every known name has one record, and the other way round."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lundprobe_zarr.errors import UnknownLabelError
from lundprobe_zarr.schema.layout import ARRAY_SPECS
from lundprobe_zarr.vocabulary.files import (
    FIDUCIAL_TEXT,
    KNOWN_FILES,
    expected_files,
    format_path,
    parse_path,
    structure_of_name,
)
from lundprobe_zarr.vocabulary.names import (
    FOLDS,
    OBSERVERS,
    STEPS,
    STRUCTURES,
    TARGETS,
    is_patient_id,
    protocol_of,
    structure_order,
)

SETTINGS = settings(derandomize=True, database=None, deadline=None, max_examples=100)
HEX = st.text("0123456789abcdef", min_size=16, max_size=16)


@pytest.mark.parametrize("path", KNOWN_FILES)
def test_every_known_file_name_parses_to_a_record_that_formats_back(path: str) -> None:
    record = parse_path(path)
    assert record is not None
    assert format_path(record) == path
    assert record.kind == "text" or f"{record.group}/{record.variable}" in ARRAY_SPECS


def test_a_complete_patient_has_as_many_files_as_the_descriptor_says() -> None:
    base, extended = expected_files("base"), expected_files("extended")
    assert len(base) == 8 + 2 * len(STRUCTURES)
    more = len(TARGETS) * (2 + len(FOLDS) + len(STEPS) * len(OBSERVERS))
    assert len(extended) == len(base) + more
    assert list(extended)[: len(base)] == list(base)
    assert len({(r.group, r.variable, *r.labels.items()) for r in extended.values()}) == len(
        extended
    )


def test_file_names_are_as_the_dataset_writes_them() -> None:
    for path, group, labels in (
        ("MR_StorT2/image.nii.gz", "mri", {"modality": "T2w"}),
        ("sCT/image_reg2MRI.nii.gz", "mri", {"modality": "sCT"}),
        ("sCT/mask_FemoralHead_L.nii.gz", "sct/clinical", {"structure": "FemoralHead_L"}),
        (
            "MR_StorT2/nnUNetOutput/folds/mask_CTVT_427_nnUNet_fold_9.nii.gz",
            "mri/nnunet",
            {"structure": "CTVT_427", "fold": 9},
        ),
        (
            "MR_StorT2/observerData/mask_Rectum_step2_obsE.nii.gz",
            "mri/observers",
            {"structure": "Rectum", "step": 2, "observer": "obsE"},
        ),
    ):
        record = parse_path(path)
        assert record is not None
        assert (record.group, record.labels) == (group, labels)
    assert parse_path(FIDUCIAL_TEXT) is not None


@SETTINGS
@given(st.sampled_from(sorted(KNOWN_FILES)), st.data())
def test_a_name_that_differs_in_one_character_is_unknown(path: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(path) - 1))
    other = data.draw(st.characters(codec="ascii", exclude_characters=path[place]))
    changed = path[:place] + other + path[place + 1 :]
    assert changed in KNOWN_FILES or parse_path(changed) is None


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_structure_is_found_in_file_names_and_bare_names(structure: str) -> None:
    for name in (structure, f"mask_{structure}", f"mask_{structure}.nii.gz", f" {structure}.nii "):
        assert structure_of_name(name) == structure
    assert STRUCTURES[structure_order(structure)] == structure


@pytest.mark.parametrize(
    "name",
    ["", "mask_", "mask_Sigmoid.nii.gz", "mask_Rectum_nnUNet.nii.gz", "rectum", "Rectum\n\nRectum"],
)
def test_other_names_name_no_structure(name: str) -> None:
    assert structure_of_name(name) is None


def test_an_unknown_structure_is_refused_by_name() -> None:
    with pytest.raises(UnknownLabelError, match=r"unknown structure 'Sigmoid'; expected one of"):
        structure_order("Sigmoid")


@SETTINGS
@given(st.sampled_from(["oldAcq", "newAcq"]), HEX)
def test_patient_ids_begin_with_their_protocol(protocol: str, digits: str) -> None:
    patient_id = f"{protocol}_{digits}"
    assert is_patient_id(patient_id)
    assert protocol_of(patient_id) == protocol


@pytest.mark.parametrize(
    "name",
    [
        "",
        "newAcq_",
        "newAcq_3fa9c0d211b7e84",
        "newAcq_3fa9c0d211b7e8455",
        "newAcq_3FA9C0D211B7E845",
        "newAcq_3fa9c0d211b7e845\n",
        " newAcq_3fa9c0d211b7e845",
        "midAcq_3fa9c0d211b7e845",
        "newAcq_3fa9c0d211b7e84٣",
        "../newAcq_3fa9c0d211b7e845",
    ],
)
def test_anything_else_is_no_patient_id(name: str) -> None:
    assert not is_patient_id(name)
    with pytest.raises(UnknownLabelError, match="is no patient id; expected oldAcq_ or newAcq_"):
        protocol_of(name)
