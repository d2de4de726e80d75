"""Findings of one cause are one line; all that differs otherwise stays apart."""

from __future__ import annotations

from lundprobe_zarr.vocabulary.grouping import grouped

A, B = "newAcq_00000000000000a1", "oldAcq_00000000000000b2"


def test_files_of_a_folder_with_one_cause_are_one_line_and_hide_nothing_else() -> None:
    names = [f"MR_StorT2/mask_{n}.nii.gz" for n in ("BODY", "Bladder", "CTVT_427")]
    lines = [f"{name}: sform and qform disagree by 0.{n} mm" for n, name in enumerate(names, 1)]
    other = "sCT/image.nii.gz: sform and qform disagree by 0.5 mm"
    assert grouped([*lines, other, f"{names[1]}: all-zero mask"]) == [
        "MR_StorT2/mask_BODY.nii.gz and 2 more: sform and qform disagree by 0.1 to 0.3 mm "
        "(3 findings)",
        other,
        "MR_StorT2/mask_Bladder.nii.gz: all-zero mask",
    ]


def test_patients_with_one_cause_are_one_line() -> None:
    said = "Bladder: {} connected components, not on the authors' list"
    assert grouped([f"{A}: {said.format(10)}", f"{B}: {said.format(2)}"]) == [
        f"{A} and 1 more: {said.format('2 to 10')} (2 findings)"
    ]


def test_structures_and_numbers_within_names_are_part_of_the_cause() -> None:
    lines = ["CTVT_427: 2 parts", "PTVT_427: 2 parts", "CTVT_428: 2 parts", "4-D", "no number"]
    assert grouped(lines) == lines
