"""What is said of files and places repeats no free text of them, and no credentials."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lundprobe_zarr as lp
from benchmarks.hostile.changes import NAME
from benchmarks.hostile.material import Material
from lundprobe_zarr.cli import main as run_command
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.errors import DatasetError, LundProbeError, UsageError
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.schema.header import TEXT_FIELDS, parse_header
from lundprobe_zarr.storage.location import Location


def main(arguments: list[str]) -> int:
    """Run a command; its exit status."""
    try:
        run_command(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


SECRET = "hunter2secret"
IMAGE, TEXT = "MR_StorT2/image.nii.gz", "MR_StorT2/MRI_T2_DICOM_coords_fiducials.txt"


def named(file: Path) -> bytes:
    """The uncompressed bytes of a NIfTI file, with a name in all of its header's free text."""
    data = gzip.decompress(file.read_bytes())
    header: Any = parse_header(data[:348])
    for field in (f for f in TEXT_FIELDS if f in header.keys()):  # noqa: SIM118
        header[field] = NAME.encode()[: header[field].dtype.itemsize]
    return bytes(header.binaryblock) + data[348:]


def packed(**fields: tuple[int, str, Any]) -> Any:
    """What spoils a field of a header, and leaves the name in it."""

    def spoil(data: bytes) -> bytes:
        out = bytearray(data)
        for offset, kind, value in fields.values():
            struct.pack_into(f"<{kind}", out, offset, value)
        return bytes(out)

    return spoil


SPOILT = {
    "dimension": packed(dim=(42, "h", -1)),
    "type": packed(datatype=(70, "h", 999)),
    "offset": packed(offset=(108, "f", 1e9)),
    "slope": packed(slope=(112, "f", 2.0), intercept=(116, "f", float("nan"))),
    "codes": packed(q=(252, "h", 0), s=(254, "h", 0)),
    "affine": packed(srow=(280, "f", float("nan"))),
    "magic": packed(magic=(344, "4s", b"xxxx")),
    "cut short": lambda data: data[:2000],
    "behind it": lambda data: data + NAME.encode() * 100_000,
    "nothing": lambda data: data[:100],
}


@pytest.fixture
def source(phantom_source: Path, tmp_path: Path) -> Path:
    """A patient of the phantom whose every NIfTI file has a name in its header."""
    patient = next((phantom_source / "basePart").iterdir())
    copy = Path(shutil.copytree(patient, tmp_path / "source/basePart" / patient.name))
    for file in copy.rglob("*.nii.gz"):
        file.write_bytes(gzip.compress(named(file), 1))
    return tmp_path / "source"


def said_of(source: Path, dataset: Path) -> Iterator[str]:
    """All that an inventory, a conversion and a look at the first bytes say."""
    from lundprobe_zarr.conversion.source.inventory import examine

    inventory = examine(take_inventory(source))
    yield from (*inventory.findings, *inventory.skipped)
    for patient in inventory.patients:
        yield from (*patient.findings, *patient.unknown, patient.problem or "")
    for patient in take_inventory(source).patients:
        result = convert_patient(patient, dataset, "standard")
        yield json.dumps(result.to_json())


@pytest.mark.parametrize("kind", SPOILT)
def test_the_text_of_a_header_is_in_no_message(source, tmp_path, caplog, capfd, kind):
    caplog.set_level(logging.DEBUG)
    (patient,) = (source / "basePart").iterdir()
    file = patient / IMAGE
    data = gzip.decompress(file.read_bytes())
    assert NAME[:10].encode() in data[:348]
    file.write_bytes(gzip.compress(SPOILT[kind](data), 1))
    said = "\n".join(said_of(source, tmp_path / "dataset"))
    assert f"basePart/{patient.name}/{IMAGE}" in said
    assert main(["convert", str(source), str(tmp_path / "other"), "--dry-run"]) in (0, 1)
    out, err = capfd.readouterr()
    for text in (said, caplog.text, out, err):
        assert "Doe^Jane" not in text


@pytest.mark.parametrize(
    "text", [NAME, f"1.0,2.0,{NAME}", f"# {NAME}\n1,2,3", f"1,2,3\n\n{NAME},1,2", f"1,2\n{NAME}"]
)
def test_the_text_of_a_fiducial_file_is_in_no_message(source, tmp_path, text):
    (patient,) = (source / "basePart").iterdir()
    (patient / TEXT).write_text(text)
    said = "\n".join(said_of(source, tmp_path / "dataset"))
    assert f"{TEXT}: line" in said
    assert "Doe^Jane" not in said


def test_the_text_of_a_side_file_is_in_no_finding(source, tmp_path):
    (patient,) = (source / "basePart").iterdir()
    header = (
        "patient;sCTMatrixSizeOrig;sCTVoxelSizeOrig (mm);mriMatrixSize;mriVoxelSize (mm);"
        "doseMatrixSizeOrig;doseVoxelSizeOrig;doseMin (Gy);doseMax (Gy) "
    )
    rows = [f"{NAME};;;;;;;;", f"{patient.name};{NAME};;;;;;;", f"{patient.name};{NAME}"]
    names = {patient.name: [NAME], NAME: [NAME, "Bladder"], f"{patient.name} ({NAME})": []}
    lines = [f"Number of components in mask_Bladder.nii.gz: 2 for {NAME}", f"{NAME} mask_x"]
    (source / "patGeometryInformation_basePart.csv").write_text("\n".join([header, *rows]))
    (source / "missingStructures_basePart.json").write_text(json.dumps(names))
    (source / "StructuresMoreThan1ConComp_basePart.txt").write_text("\n".join(lines))
    said = "\n".join(said_of(source, tmp_path / "dataset"))
    assert "line 2: names no patient id" in said
    assert f"line 3 ({patient.name}): sCTMatrixSizeOrig holds no number" in said
    assert "2 of its keys are no patient id" in said
    assert f"{patient.name}: 1 of its names are no structure's" in said
    assert "Doe^Jane" not in said
    finalise(tmp_path / "dataset")
    findings = lp.open_cohort(tmp_path / "dataset").patients.findings.tolist()
    assert "Doe^Jane" not in str(findings)


def change_record(node: dict[str, Any], **fields: object) -> None:
    """Change what a node's attributes say of its first source file."""
    sources = json.loads(node["attributes"]["sources"])
    sources[0] |= fields
    node["attributes"]["sources"] = json.dumps(sources)


def test_what_a_damaged_store_holds_is_in_no_message(copied, edit):
    patient_id = lp.open_cohort(copied).ids[0]

    def change(root: dict[str, Any]) -> None:
        nodes = root["consolidated_metadata"]["metadata"]
        change_record(nodes["mri/clinical/fiducial_position"], text=f"{NAME}\n", bytes=NAME, path=3)
        change_record(nodes["mri/image"], header=NAME, exact=NAME)

    edit(copied / f"patients/{patient_id}.zarr/zarr.json", change)
    with pytest.raises(DatasetError) as caught:
        lp.open_cohort(copied)[patient_id].tree  # noqa: B018
    said = str(caught.value) + "".join(map(str, validate(Location(copied), deep=True).problems))
    assert "Input should be a valid" in said
    assert "Doe^Jane" not in said
    assert "pydantic" not in said
    assert "\n" not in str(caught.value)


def test_a_header_in_a_store_that_cannot_be_is_a_problem(copied, edit):
    patient_id = lp.open_cohort(copied).ids[0]

    def change(root: dict[str, Any]) -> None:
        nodes = root["consolidated_metadata"]["metadata"]
        change_record(nodes["mri/image"], header="Doe^Jane")

    edit(copied / f"patients/{patient_id}.zarr/zarr.json", change)
    problems = validate(Location(copied), deep=True).problems
    assert {problem.patient_id for problem in problems} == {patient_id}
    said = "cannot be rebuilt from what its store records of it"
    assert any(said in problem.finding for problem in problems)


URLS = [
    f"https://me:{SECRET}@h.invalid/d",
    f"https://{SECRET}@h.invalid/d",
    f"https://h.invalid/d?sig={SECRET}&se=1",
    f"https://h.invalid/a b/d?sig={SECRET}",
    f"https://h.invalid/d?a=\n{SECRET}",
    f"s3://KEY:{SECRET}@bucket/d",
    f"s3:/KEY:{SECRET}@bucket/d",
    f"https:/me:{SECRET}@h/d?sig={SECRET}",
    f"nonsense://me:{SECRET}@h/d?x={SECRET}",
    f"simplecache::s3://KEY:{SECRET}@bucket/d?x={SECRET}",
    f"https://me:{SECRET}@[h/d?x={SECRET}",
]


@pytest.mark.parametrize("url", URLS)
def test_what_a_url_holds_is_in_nothing_that_is_shown(url, caplog, capfd, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(
        Location,
        "read",
        lambda self, name: (_ for _ in ()).throw(
            DatasetError(f"{self.path(name)}: cannot be reached")
        ),
    )
    options = {"headers": {"Authorization": SECRET}} if url.startswith("https://") else {}
    with pytest.raises(LundProbeError) as caught:
        lp.open_cohort(url, options)
    assert main(["info", url]) in (2, 3)
    out, err = capfd.readouterr()
    for text in (str(caught.value), repr(caught.value), caplog.text, out, err):
        assert SECRET not in text


def test_storage_options_are_in_no_message(tmp_path, capfd, monkeypatch):
    for text in (f"{{key: {SECRET}}}", f'["{SECRET}"]', f'{{"key": "{SECRET}"', f'"{SECRET}"'):
        assert main(["info", str(tmp_path), "--storage-options", text]) == 2
    monkeypatch.setenv("LUNDPROBE_STORAGE_OPTIONS", f"{{{SECRET}")
    assert main(["info", str(tmp_path)]) == 2
    assert SECRET not in "".join(capfd.readouterr())


CODES = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\r"
WRITTEN = r"\x1b[2J\x1b]0;owned\x07\u202egnp.exe\r"


def test_codes_in_names_are_written_out(source, tmp_path, capfd):
    (patient,) = (source / "basePart").iterdir()
    (source / "basePart" / f"strange{CODES}").mkdir()
    (patient / f"MR_StorT2/{CODES}\nfake: line.nii.gz").write_text("")
    (patient / IMAGE).unlink()
    (patient / IMAGE).symlink_to(f"/nowhere/{CODES}")
    assert main(["convert", str(source), str(tmp_path / "dataset"), "--dry-run"]) in (0, 1)
    main(["convert", str(source), str(tmp_path / "dataset")])
    main(["info", str(tmp_path / f"none{CODES}")])
    main(["export", str(tmp_path / CODES), CODES, str(tmp_path)])
    out, err = capfd.readouterr()
    assert WRITTEN in out
    assert WRITTEN in err
    shown = out + err
    assert not {c for c in shown if (c < " " and c != "\n") or c in "\x7f\x9b\u202e"}
    assert "\nfake: line" not in shown


def test_codes_in_what_a_dataset_says_are_written_out(copied, edit, capfd):
    edit(copied / "lundprobe.json", lambda m: m.update(name=CODES, access=CODES, citation=CODES))
    assert main(["info", str(copied)]) == 0
    assert main(["query", str(copied), f"SELECT '{CODES}' AS \"{CODES}\""]) == 0
    out, _ = capfd.readouterr()
    assert out.count(WRITTEN) >= 4
    assert "\x1b" not in out


def test_pipes_and_devices_in_place_of_side_files_are_not_read(source: Path) -> None:
    names = [f"patGeometryInformation_{p}.csv" for p in ("basePart", "extendedPart")]
    os.mkfifo(source / names[0])
    (source / "missingStructures_basePart.json").symlink_to("/dev/zero")
    with (source / "StructuresMoreThan1ConComp_basePart.txt").open("wb") as file:
        file.truncate(1 << 33)
    findings = take_inventory(source).findings
    assert f"{names[0]}: not a file; expected text" in findings
    assert "missingStructures_basePart.json: not a file; expected text" in findings
    assert any("8589934592 bytes; expected text of some kB" in f for f in findings)


def test_an_error_of_usage_is_one_of_ours() -> None:
    with pytest.raises(UsageError, match="holds a control code"):
        Location("/data/\x1b[2J")


def test_nothing_was_planted_in_vain(material: Material) -> None:
    assert all(NAME[:10].encode() in data[:348] for data in material.niftis)
