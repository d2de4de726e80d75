"""The authors' side files: read where they can be, and a finding, never an error, where not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from trees import NEW, OLD, Workplace

from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.source.side_files import (
    parse_components,
    parse_geometry,
    parse_missing,
)
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.dataset.dataset import Dataset
from lundprobe_zarr.storage.location import Location

CSV = "patGeometryInformation_basePart.csv"
JSON = "missingStructures_basePart.json"
TEXT = "StructuresMoreThan1ConComp_basePart.txt"
HEADER = (
    "patient;sCTMatrixSizeOrig;sCTVoxelSizeOrig (mm);mriMatrixSize;mriVoxelSize (mm);"
    "doseMatrixSizeOrig;doseVoxelSizeOrig;doseMin (Gy);doseMax (Gy) "
)
PLAIN = (
    f"{NEW};(6, 7, 4);(0.75, 0.75, 3.0);(8, 9, 5);(0.5, 0.5, 2.5);(4, 5, 3);(1.25, 1.25, 5);0;44"
)
SHAPES = {"sct": (4, 6, 7), "mri": (5, 8, 9), "dose": (3, 4, 5)}
MASK = "mask_Bladder.nii.gz"

BROKEN_CSV = {
    "empty": b"",
    "binary": b"\xff\xfe\x00\x01" * 50,
    "a NUL": f"{HEADER}\n{NEW};\0\n".encode(),
    "commas": f"{HEADER}\n{PLAIN}\n".replace(";", ",").encode(),
    "another header": b"a;b;c\n1;2;3\n",
    "no voxel column": f"{HEADER}\n{PLAIN}\n".replace("mriVoxelSize (mm)", "size").encode(),
    "words in a cell": f"{HEADER}\n{PLAIN}\n".replace("(8, 9, 5)", "unknown").encode(),
    "two numbers in a cell": f"{HEADER}\n{PLAIN}\n".replace("(8, 9, 5)", "(8, 9)").encode(),
    "a short row": f"{HEADER}\n{NEW};(6, 7, 4)\n".encode(),
    "a number beyond float64": f"{HEADER}\n{PLAIN}\n".replace("(8, 9", "(1e999, 9").encode(),
    "decimal commas": f"{HEADER}\n{PLAIN}\n".replace("(0.5, 0.5, 2.5)", "(0,5, 0,5, 2,5)").encode(),
    "another script's digits": f"{HEADER}\n{PLAIN}\n".replace("(8,", "(\u0668,").encode(),
    "half a voxel": f"{HEADER}\n{PLAIN}\n".replace("(8, 9, 5)", "(8.5, 9, 5)").encode(),
    "an unclosed quote": f'{HEADER}\n"{PLAIN}{"x" * 200_000}\n'.encode(),
}
BROKEN_JSON = {
    "empty": b"",
    "binary": b"\xff\xfe\x00\x01" * 50,
    "cut off": b'{"newAcq_00000000',
    "a list": b"[]",
    "a string": b'"none"',
    "null": b"null",
    "nested deeply": b"[" * 100_000,
    "a long number": b"1" * 10_000,
    "names of nothing": f'{{"{NEW}": ["mask_Sigmoid.nii.gz", 3, null, {{}}]}}'.encode(),
    "no list": f'{{"{NEW}": {{"mask": 1}}}}'.encode(),
    "a half of a character": f'{{"{NEW}": ["\\ud800"], "\\ud800": []}}'.encode(),
}
BROKEN_TEXT = {
    "binary": b"\xff\xfe\x00\x01" * 50,
    "no names": b"Number of connected components: 2\n",
    "another patient": f"{MASK}: 2 for patient newAcq_ffffffffffffffff".encode(),
}


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        pytest.param(name, contents, id=f"{name[-4:]} {case}".replace(" ", "-"))
        for name, cases in ((CSV, BROKEN_CSV), (JSON, BROKEN_JSON), (TEXT, BROKEN_TEXT))
        for case, contents in cases.items()
    ],
)
def test_a_broken_side_file_is_a_finding_and_patients_are_there_all_the_same(
    work: Workplace, name: str, contents: bytes
) -> None:
    (work.source / name).write_bytes(contents)
    inventory = take_inventory(work.source)
    assert any(f.startswith((name, name.replace("_basePart", ""))) for f in inventory.findings) or (
        any(f.startswith(name.split(".")[0]) for f in inventory.findings)
    ), inventory.findings
    assert [p.patient_id for p in inventory.patients] == [NEW, OLD]
    assert all(p.problem is None for p in inventory.patients)


@pytest.mark.parametrize("name", [CSV, JSON, TEXT])
def test_an_absent_or_unreadable_side_file_is_a_finding(work: Workplace, name: str) -> None:
    (work.source / name).unlink()
    assert f"{name}: not found" in take_inventory(work.source).findings
    (work.source / name).mkdir()
    findings = take_inventory(work.source).findings
    assert any(f.startswith(f"{name}: not a file") for f in findings)


def test_a_patient_converts_beside_side_files_that_are_all_broken(work: Workplace) -> None:
    for name in (CSV, JSON, TEXT):
        (work.source / name).write_bytes(b"\xff\xfe\x00")
    assert work.convert_one().status == "converted"


@pytest.mark.parametrize(
    "row",
    [
        PLAIN,
        PLAIN.replace("(0.5, 0.5, 2.5)", "(np.float64(0.5), np.float64(0.5), np.float64(2.5))"),
        PLAIN.replace("(8, 9, 5)", "[8 9 5]"),
        PLAIN.replace("; ", ";").replace("(0.75,", "( 7.5e-1 ,"),
    ],
)
@pytest.mark.parametrize("header", [HEADER, HEADER.strip(), "\ufeff" + HEADER, HEADER + "\r"])
def test_the_geometry_table_is_read_in_every_form_numpy_prints(
    work: Workplace, row: str, header: str
) -> None:
    (work.source / CSV).write_text(f"{header}\n{row}\n", encoding="utf-8")
    inventory = take_inventory(work.source)
    geometry = next(p for p in inventory.patients if p.patient_id == NEW).geometry
    assert inventory.findings == ()
    assert geometry is not None
    assert {g: shape for g, (shape, _) in geometry.items()} == SHAPES
    assert geometry["mri"][1] == (2.5, 0.5, 0.5)


def test_an_unreadable_row_is_named_by_its_line_and_the_others_are_read() -> None:
    findings: list[str] = []
    text = f"{HEADER}\n{OLD};?;;;;;;;\n{PLAIN}\n"
    rows = parse_geometry(text, CSV, findings)
    assert list(rows) == [NEW]
    assert len(findings) == 1
    assert findings[0].startswith(f"{CSV}: line 2 ({OLD}): sCTMatrixSizeOrig holds no number")


@pytest.mark.parametrize(
    ("change", "matches"),
    [
        (("(8, 9, 5)", "(8, 9, 5)"), True),
        (("(0.5, 0.5, 2.5)", "(0.5003, 0.5, 2.5)"), True),  # rounded as printed
        (("(0.5, 0.5, 2.5)", "(0.51, 0.5, 2.5)"), False),
        (("(8, 9, 5)", "(9, 8, 5)"), False),
        ((PLAIN, f"{NEW};nothing"), None),
        ((PLAIN, ""), None),
    ],
)
def test_the_geometry_table_is_compared_with_the_files(
    work: Workplace, change: tuple[str, str], matches: bool | None
) -> None:
    import zarr

    (work.source / CSV).write_text(f"{HEADER}\n{PLAIN.replace(*change)}\n")
    assert work.convert_one().status == "converted"
    attributes = zarr.open_group(work.store, mode="r").attrs
    assert attributes.get("geometry_matches_csv") == matches


def test_missing_structures_are_read_from_file_names_and_bare_names() -> None:
    findings: list[str] = []
    text = f'{{"{NEW}": ["mask_PenileBulb.nii.gz", "Genitalia"], "{OLD}": "mask_Bladder"}}'
    missing = parse_missing(text, JSON, findings)
    assert missing == {NEW: ("PenileBulb", "Genitalia"), OLD: ("Bladder",)}
    assert findings == []


def test_components_are_read_from_sentences_and_bare_paths_each_once() -> None:
    findings: list[str] = []
    lines = [
        f"Number of connected components in {MASK}: 2 for patient /data/basePart/{NEW}/MR_StorT2",
        f"Number of connected components in {MASK}: 2 for patient /data/basePart/{NEW}/sCT",
        f"/data/basePart/{NEW}/MR_StorT2/mask_CTVT_427.nii.gz",
        f"/data/{OLD}/MR_StorT2/nnUNetOutput/folds/mask_Rectum_nnUNet_fold_3.nii.gz",
        f"/data/{OLD}/MR_StorT2/observerData/mask_CTVT_427_step1_obsB.nii.gz",
        f"/data/{OLD}/mask_Genitalia.nii.gz",
        f"mask_CTVT_427_nnUNet.nii.gz of {OLD}",
        f"{OLD}/sCT_old/mask_Sigmoid.nii.gz",
        "",
        "21 in all",
    ]
    found = parse_components("\n".join(lines), TEXT, findings)
    nnunet = "MR_StorT2/nnUNetOutput"
    assert found == {
        NEW: (f"MR_StorT2/{MASK}", f"sCT/{MASK}", "MR_StorT2/mask_CTVT_427.nii.gz"),
        OLD: (
            f"{nnunet}/folds/mask_Rectum_nnUNet_fold_3.nii.gz",
            "MR_StorT2/observerData/mask_CTVT_427_step1_obsB.nii.gz",
            "mask_Genitalia.nii.gz",  # in which folder is not said
            f"{nnunet}/mask_CTVT_427_nnUNet.nii.gz",
        ),
    }
    assert findings == []


def test_components_reach_the_store_in_canonical_order(work: Workplace) -> None:
    import zarr

    text = f"{NEW}/MR_StorT2/{MASK}\n{NEW}/MR_StorT2/mask_CTVT_427.nii.gz\n"
    (work.source / TEXT).write_text(text)
    work.convert_one()
    attributes = zarr.open_group(work.store, mode="r").attrs
    assert json.loads(attributes["multi_component_structures"]) == ["CTVT_427", "Bladder"]
    files = [f"MR_StorT2/{MASK}", "MR_StorT2/mask_CTVT_427.nii.gz"]
    assert json.loads(attributes["multi_component_files"]) == files


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{NEW}/MR_StorT2/mask_PenileBulb.nii.gz", {"mri": True, "sct": False}),
        (f"{NEW}/mask_PenileBulb.nii.gz", {"mri": None, "sct": None}),
        ("", {"mri": False, "sct": False}),
        (None, {"mri": None, "sct": None}),
    ],
)
def test_what_the_authors_list_is_a_column_by_grid(
    work: Workplace, text: str | None, said: dict[str, bool | None]
) -> None:
    (work.source / TEXT).unlink(missing_ok=True)
    if text is not None:
        (work.source / TEXT).write_text(text)
    work.convert_one()
    finalise(work.dataset)
    for rebuild in (False, True):  # from the source, then from the stores alone
        finalise(work.dataset, rebuild)
        table = Dataset.open(Location(work.dataset)).table("structures").to_pylist()
        rows = [r for r in table if r["source"] == "clinical" and r["structure"] == "PenileBulb"]
        assert {r["grid"]: r["listed_by_authors"] for r in rows} == said
        others = {r["listed_by_authors"] for r in table if r["structure"] == "BODY"}
        assert others == {None if text is None else False}


def test_side_files_that_name_strangers_are_findings(work: Workplace) -> None:
    stranger = "newAcq_ffffffffffffffff"
    (work.source / CSV).write_text(f"{HEADER}\n{PLAIN.replace(NEW, stranger)}\n")
    (work.source / JSON).write_text(f'{{"{stranger}": []}}')
    (work.source / TEXT).write_text(f"{stranger}/MR_StorT2/{MASK}")
    findings = take_inventory(work.source).findings
    assert len(findings) == 3
    assert all(repr(stranger) in f and "not in the part" in f for f in findings)


def test_a_link_as_side_file_is_followed_only_if_it_is_there(
    work: Workplace, tmp_path: Path
) -> None:
    (work.source / CSV).unlink()
    (work.source / CSV).symlink_to(tmp_path / "gone.csv")
    assert f"{CSV}: not found" in take_inventory(work.source).findings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_side_files_as_editors_save_them_are_read(work: Workplace, encoding: str) -> None:
    (work.source / CSV).write_bytes(f"{HEADER}\r\n{PLAIN}\r\n".encode(encoding))
    (work.source / JSON).write_bytes(f'{{"{NEW}": ["Bladder"]}}'.encode(encoding))
    inventory = take_inventory(work.source)
    assert inventory.findings == ()
    assert next(p for p in inventory.patients if p.patient_id == NEW).geometry is not None
