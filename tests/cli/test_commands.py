"""Every command that reads a dataset: what it prints, how it ends, what it says of nonsense."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lundprobe_zarr.cli.app import COMMANDS
from lundprobe_zarr.cohort import open_cohort
from lundprobe_zarr.schema.tables import TABLES
from lundprobe_zarr.vocabulary.version import package_version
from tests.altered import forget_hashes


@pytest.fixture(scope="session")
def extended(dataset: Path) -> str:
    return open_cohort(dataset).where("part = 'extended'")[0].patient_id


def test_version(cli):
    assert cli("--version").out == f"lundprobe-zarr {package_version()}\n"


def test_without_a_command_help_is_printed_and_usage_is_wrong(cli):
    ran = cli()
    assert ran.status == 2
    assert "Commands:" in ran.out


@pytest.mark.parametrize(
    "command", {command.__name__.replace("_", "-"): None for command, _ in COMMANDS}
)
def test_help_has_an_example(cli, command):
    ran = cli(command, "--help")
    assert ran.status == 0
    assert f"Example: lundprobe-zarr {command} " in ran.out


def test_unknown_option_is_wrong_usage(cli):
    ran = cli("info", "--nonsense")
    assert ran.status == 2
    assert "--nonsense" in ran.err


def test_phantom_writes_a_tree(cli, tmp_path):
    ran = cli("phantom", tmp_path / "new", "--patients", 1, "--extended", 0, "--seed", 3)
    assert ran.status == 0
    assert "(1 of 1)" in ran.out
    assert len(list((tmp_path / "new" / "basePart").iterdir())) == 1


def test_phantom_refuses_a_folder_that_is_not_empty(cli, phantom_source):
    ran = cli("phantom", phantom_source)
    assert ran.status == 2
    assert ran.err.startswith("error: ")
    assert "is not empty" in ran.err


def test_info_of_a_dataset(cli, dataset):
    ran = cli("info", dataset)
    assert ran.status == 0
    for said in ("Synthetic phantom", "standard", "Rogowski", "of the source's", "no access terms"):
        assert said in ran.out
    assert "base      3 (" in ran.out
    assert "extended  1 (1 newAcq)" in ran.out
    rows = dict(line.split()[:2] for line in ran.out.splitlines() if len(line.split()) > 1)
    assert rows["patients"] == "4"
    assert rows["arrays"] == str(sum(1 for _ in _arrays(dataset)))


def test_info_quotes_the_commands_it_names(cli, dataset, tmp_path):
    place = tmp_path / "two words"
    place.symlink_to(dataset)
    assert f"info '{place}' --columns" in cli("info", place).out


def test_a_stray_file_beside_the_stores_is_no_store(cli, copied):
    (copied / "patients" / "notes.txt").write_text("mine")
    assert cli("validate", copied).status == 0
    shutil.copytree(copied / "metadata", copied / "patients" / "oldAcq_0123456789abcdef.zarr")
    ran = cli("validate", copied)
    assert ran.status == 3
    assert "oldAcq_0123456789abcdef.zarr: no store of patient oldAcq_0123456789abcdef" in ran.out


def _arrays(dataset):
    import pyarrow.parquet as pq

    for file in (dataset / "metadata" / "arrays").glob("*.parquet"):
        yield from pq.read_table(file).column("patient_id")


def test_info_of_a_patient(cli, dataset, extended):
    ran = cli("info", dataset, extended)
    assert ran.status == 0
    for said in ("extended, newAcq", "/mri/observers", "obsB, obsC, obsD, obsE", "float32", " mm"):
        assert said in ran.out


def test_info_names_missing_structures_and_findings(cli, dataset):
    lacking = open_cohort(dataset).where("missing_PenileBulb")[0].patient_id
    odd = open_cohort(dataset).where("len(findings) > 0")[0].patient_id
    assert "missing structures  PenileBulb" in cli("info", dataset, lacking).out
    assert "Findings: 1" in cli("info", dataset, odd).out


def test_info_columns_names_every_column(cli, dataset):
    ran = cli("info", dataset, "--columns")
    assert ran.status == 0
    for table in TABLES.values():
        for column in table.columns:
            assert column.name in ran.out
            assert column.description in ran.out


def test_query_prints_a_table(cli, dataset, extended):
    ran = cli("query", dataset, "part = 'extended'")
    assert ran.status == 0
    assert extended in ran.out
    assert "1 of 4 patients" in ran.out


def test_query_as_csv_has_every_column(cli, dataset):
    rows = list(csv.DictReader(cli("query", dataset, "true", "--format", "csv").out.splitlines()))
    assert len(rows) == 4
    assert list(rows[0]) == [c.name for c in TABLES["patients"].columns]
    assert len(json.loads(rows[0]["mri_shape"])) == 3


def test_query_as_json_with_chosen_columns(cli, dataset):
    ran = cli("query", dataset, "true", "--format", "json", "--columns", "patient_id,mri_shape")
    cohort = open_cohort(dataset)
    assert json.loads(ran.out) == [
        {"patient_id": row.patient_id, "mri_shape": list(row.mri_shape)}
        for row in cohort.patients.itertuples()
    ]


SELECT = "SELECT patient_id, structure, fold, volume_cc FROM structures WHERE source <> 'clinical'"


@pytest.mark.parametrize(
    "sql", [SELECT, f"\n  -- every fold\n/* SELECT */ {SELECT.lower()}", f"FROM ({SELECT})",
            f"WITH chosen AS ({SELECT}) SELECT * FROM chosen"]
)  # fmt: skip
def test_query_takes_a_select(cli, dataset, sql):
    rows = json.loads(cli("query", dataset, sql, "--format", "json").out)
    expected = open_cohort(dataset).sql_table(SELECT)
    key = json.dumps
    assert sorted(rows, key=key) == sorted(expected.to_pylist(), key=key)
    assert {row["fold"] for row in rows} == {None, *range(10)}


@pytest.mark.parametrize("sql", ["true", SELECT, "SELECT findings, mri_shape FROM patients"])
def test_query_writes_parquet_with_the_types_it_found(cli, dataset, tmp_path, sql):
    file = tmp_path / "out.parquet"
    ran = cli("query", dataset, sql, "--output", file)
    assert ran.status == 0
    assert str(file) in ran.out
    cohort = open_cohort(dataset)
    expected = cohort.table("patients") if sql == "true" else cohort.sql_table(sql)
    assert pq.read_table(file).equals(expected)
    piped = tmp_path / "piped.parquet"
    with piped.open("wb") as out:
        command = [sys.executable, "-m", "lundprobe_zarr", "query", dataset, sql]
        subprocess.run([*command, "--format", "parquet"], stdout=out, check=True)
    assert piped.read_bytes() == file.read_bytes()


def test_a_patients_parquet_says_what_its_columns_mean(cli, dataset, tmp_path):
    file = tmp_path / "out.parquet"
    cli("query", dataset, "true", "--output", file, "--columns", "dose_max_gy")
    (field,) = pq.read_schema(file)
    assert field.metadata[b"unit"] == b"Gy"


def test_query_gives_no_binary_to_a_terminal(cli, dataset, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    ran = cli("query", dataset, "true", "--format", "parquet")
    assert (ran.status, ran.out) == (2, "")
    assert "--output" in ran.err


def test_values_that_json_lacks_are_text_or_null(cli, dataset):
    sql = (
        "SELECT DATE '2025-04-01' AS day, 'nan'::DOUBLE AS none, 'inf'::DOUBLE AS much, "
        "[1.5, NULL] AS pair, {'a': 1} AS named, 9007199254740993::BIGINT AS large"
    )
    ran = cli("query", dataset, f"{sql} FROM patients LIMIT 1", "--format", "json")
    assert json.loads(ran.out) == [
        {"day": "2025-04-01", "none": None, "much": "inf", "pair": [1.5, None], "named": {"a": 1},
         "large": 2**53 + 1}
    ]  # fmt: skip
    (row,) = csv.DictReader(
        cli("query", dataset, f"{sql} FROM patients LIMIT 1", "--format", "csv").out.splitlines()
    )
    assert row == {"day": "2025-04-01", "none": "", "much": "inf", "pair": "[1.5, null]",
                   "named": '{"a": 1}', "large": str(2**53 + 1)}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("DROP TABLE patients",), "nothing can be written"),
        (("ATTACH 'other.db'",), "nothing can be written"),
        (("COPY patients TO 'copy.csv'",), "nothing can be written"),
        (("INSERT INTO patients VALUES (1)",), "nothing can be written"),
        (("SELECT * FROM 'file.csv'",), "no table 'file.csv'"),
        (("SELECT * FROM read_csv('file.csv')",), "'read_csv' is not available"),
        (("SELECT 1; SELECT 2",), "2 statements"),
        (("SELECT part, part FROM patients",), "two columns of the result are named part"),
        (("SELECT nonsense FROM structures",), "nonsense"),
        (("SELECT 1", "--columns", "part"), "after SELECT"),
        (("true", "--output", "out.txt"), "expected a name that ends in .csv, .json, .parquet"),
        (("true", "--output", "out.csv", "--format", "table"), "for people to read"),
    ],
)
def test_query_refuses_what_it_cannot_do(cli, dataset, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.csv").write_text("a\n1\n")
    ran = cli("query", dataset, *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err
    assert [p.name for p in tmp_path.iterdir()] == ["file.csv"]


def test_query_that_chooses_nobody(cli, dataset):
    assert "0 of 4 patients" in cli("query", dataset, "false").out


def test_query_says_which_column_does_not_exist(cli, dataset):
    ran = cli("query", dataset, "nonsense > 1")
    assert ran.status == 2
    assert "nonsense" in ran.err
    ran = cli("query", dataset, "true", "--columns", "patient_id,nonsense")
    assert ran.status == 2
    assert "no column nonsense" in ran.err


def test_validate_a_sound_dataset(cli, dataset, tmp_path):
    report = tmp_path / "report.json"
    ran = cli("validate", dataset, "--deep", "--report", report)
    assert ran.status == 0
    assert "Sound: 4 stores" in ran.out
    assert json.loads(report.read_text())["sound"] is True


def test_validate_reports_what_cannot_be_read_at_all_too(cli, copied, tmp_path):
    report, copy = tmp_path / "report.json", copied
    (copy / "metadata/arrays/base-00000.parquet").write_bytes(b"PAR1 no more")
    ran = cli("validate", copy, "--report", report)
    assert ran.status == 3
    (problem,) = json.loads(report.read_text())["problems"]
    assert problem["where"].endswith("arrays/base-00000.parquet")
    assert problem["patient_id"] is None


@pytest.mark.parametrize(
    "table",
    [
        "metadata/patients.parquet",
        "metadata/patients/base-00000.parquet",
        "metadata/structures/base-00000.parquet",
        "metadata/slices/extended-00000.parquet",
    ],
)
def test_validate_goes_on_past_a_lost_table(cli, copied, dataset, extended, tmp_path, table):
    report, copy = tmp_path / "report.json", copied
    (copy / table).unlink()
    shard = f"patients/{extended}.zarr/mri/image/c/0/0/0/0"
    (copy / shard).unlink()
    assert cli("validate", copy, "--report", report).status == 3
    found = {p["where"]: p for p in json.loads(report.read_text())["problems"]}
    assert set(found) == {str(copy / table), shard}
    remedy = "write it again with `lundprobe-zarr finalise`, or copy the dataset again"
    assert found[str(copy / table)]["finding"] == (
        f"not there; expected a table of the dataset; {remedy}"
    )
    (copy / shard).write_bytes((dataset / shard).read_bytes())
    assert cli("finalise", copy).status == 0
    assert cli("validate", copy, "--deep").status == 0


def test_validate_says_of_whom_a_problem_is_and_what_helps(cli, copied, extended, tmp_path):
    report, damaged = tmp_path / "report.json", copied
    (damaged / "patients" / f"{extended}.zarr" / "mri/image/c/0/0/0/0").unlink()
    assert cli("validate", damaged, "--report", report, "--workers", "3").status == 3
    said = json.loads(report.read_text())
    assert said["sound"] is False
    assert {p["patient_id"] for p in said["problems"]} == {extended}


def _alter(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.read_table(file)
    pq.write_table(change(table).cast(table.schema), file)


def _set_first(column: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = [value, *table[column].to_pylist()[1:]]
        place = table.schema.get_field_index(column)
        kind = table.schema.field(column).type
        return table.set_column(place, table.schema.field(column), pa.array(values, kind))

    return change


@pytest.mark.parametrize(
    ("table", "change", "deep", "said"),
    [
        ("structures", lambda t: t.slice(1), False, "no row of mri clinical CTVT_427"),
        ("structures", lambda t: pa.concat_tables([t, t.slice(3, 1)]), False, "1 rows too many"),
        ("structures", _set_first("fold", 3), False, "a row of mri clinical CTVT_427 3, which"),
        ("structures", _set_first("bbox_start", [0, 0, 0]), True, "says {'voxels'"),
        ("structures", _set_first("patient_id", "newAcq_0000000000000000"), False, "newAcq_0000"),
        ("dvh", lambda t: t.slice(1), False, "other segmentations or volumes than structures"),
        ("dvh", _set_first("volume_cc", 1.0), False, "other segmentations or volumes than"),
        ("slices", lambda t: t.slice(1), False, "expected one for each of"),
        ("slices", _set_first("voxels_Rectum", 9999), False, "voxels of Rectum; structures has"),
        ("foreground", _set_first("total", 1), False, "totals {'CTVT_427': 1,"),
        ("arrays", _set_first("stored_bytes", 1), False, "differs from its store"),
        ("patients", _set_first("n_fiducials", 9), False, "n_fiducials is 9; its store says"),
    ],
)
def test_validate_names_a_table_that_does_not_match_its_stores(
    copied, cli, table, change, deep, said
):
    _alter(copied / "metadata" / table / "base-00000.parquet", change)
    if table == "patients":
        _alter(copied / "metadata" / "patients.parquet", change)
    found = cli("validate", copied)
    assert "another SHA-256 than in the manifest" in found.out + found.err
    forget_hashes(copied)
    ran = cli("validate", copied, *(["--deep"] if deep else []))
    assert ran.status == 3
    assert said in ran.out + ran.err
    if deep:
        quick = cli("validate", copied).out  # which reads no voxel, but knows the tables' hashes
        assert "structures table, base: content" in quick
        assert said not in quick


def test_validate_names_what_is_damaged(cli, copied, extended):
    shard = copied / "patients" / f"{extended}.zarr" / "mri/image/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    assert cli("validate", copied).status == 0  # a quick look reads no voxel
    ran = cli("validate", copied, "--deep")
    assert ran.status == 3
    where = f"  patients/{extended}.zarr/mri/image/c/0/0/0/0"
    assert f"Damaged: 1 problem in 4 stores, 136 volumes:\n{where}: array mri/image" in ran.out
    assert ": an inner chunk fails" in ran.out
    assert ran.out.count(f"{extended}.zarr") == 1, "its place is said once"
    shard.unlink()
    command = f"lundprobe-zarr convert SOURCE {copied} --patients {extended} --overwrite"
    for options in ((), ("--deep",)):
        ran = cli("validate", copied, *options)
        assert ran.status == 3
        lost = ran.out.partition("Damaged: ")[2]
        assert lost.startswith(f"1 problem in 4 stores, 136 volumes:\n{where}: not there; expected")
        assert f"copy their stores again:\n  {command}\n" in lost
        mending = " ".join(("lundprobe-zarr repair SOURCE", str(copied), *options))
        assert lost.endswith(f"\n  {mending}\n")


def test_validate_a_lost_object_that_is_no_shard_is_one_problem(cli, copied, extended):
    (copied / "patients" / f"{extended}.zarr" / "mri/observers/present/c/0/0/0").unlink()
    ran = cli("validate", copied)
    assert "Damaged: 1 problem" in ran.out
    assert "mri/observers/present/c/0/0/0: not there" in ran.out
    assert "Damaged: 1 problem" in cli("validate", copied, "--deep").out


def test_a_missing_store_names_the_command_that_mends_it(cli, copied, extended, tmp_path):
    shutil.rmtree(copied / "patients" / f"{extended}.zarr")
    command = f"lundprobe-zarr convert SOURCE {copied} --patients {extended} --overwrite"
    ran = cli("validate", copied)
    assert f"  patients/{extended}.zarr: no store of patient {extended} there; expected one\n" in (
        ran.out
    )
    assert f"\n  {command}\n" in ran.out
    assert f"(`{command}`)" in cli("export", copied, extended, tmp_path / "out").err


def test_finalise_rebuilds_lost_tables(cli, copied):
    shutil.rmtree(copied / "metadata")
    (copied / "lundprobe.json").unlink()
    assert cli("info", copied).status == 3
    ran = cli("finalise", copied)
    assert ran.status == 0
    assert "3 base and 1 extended patients" in ran.out
    assert cli("validate", copied, "--deep").status == 0


def test_finalise_names_a_store_that_cannot_be_read(cli, copied, extended):
    (copied / "patients" / f"{extended}.zarr" / "zarr.json").write_text("{")
    ran = cli("finalise", copied)
    assert ran.status == 3
    assert f"{extended}.zarr" in ran.out
    command = f"lundprobe-zarr convert SOURCE {copied} --patients {extended} --overwrite"
    assert f"Convert these again: {command}\n" in ran.out


def test_outputs_and_reports_get_their_folders(cli, dataset, tmp_path):
    assert cli("query", dataset, "true", "--output", tmp_path / "a" / "b" / "q.csv").status == 0
    assert cli("validate", dataset, "--report", tmp_path / "c" / "d" / "v.json").status == 0
    report = tmp_path / "e" / "f" / "c.json"
    assert cli("copy", dataset, tmp_path / "copy", "--report", report).status == 0
    for file in ("a/b/q.csv", "c/d/v.json", "e/f/c.json"):
        assert (tmp_path / file).stat().st_size > 0


def test_an_export_that_was_broken_off_is_not_in_the_way(
    cli, dataset, extended, tmp_path, killed_writer
):
    from lundprobe_zarr.exchange.nifti import export_patient
    from lundprobe_zarr.storage.location import Location

    out = tmp_path / "out"

    def stop(path: str) -> None:
        assert not list(out.glob("[!.]*")), "nothing is seen before all is written"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_patient(Location(dataset), extended, out, stop)
    assert list(out.iterdir()) == []
    killed = out / f".{extended}.partial-{killed_writer}" / "extendedPart" / extended
    killed.mkdir(parents=True)
    (killed / "left.nii.gz").write_bytes(b"of one that was killed")
    other = out / "extendedPart" / "newAcq_00000000000000a1"
    other.mkdir(parents=True)
    assert cli("export", dataset, extended, out).status == 0
    assert [p.name for p in out.iterdir()] == ["extendedPart"]
    assert other.is_dir(), "another patient's folder is left alone"
    assert not list(out.rglob("left.nii.gz"))
    ran = cli("export", dataset, extended, out)
    assert ran.status == 2
    assert f"{out}/extendedPart/{extended} exists already" in ran.err


def test_export_into_a_pipe_that_breaks_can_be_run_again(dataset, extended, tmp_path):
    command = f"{sys.executable} -m lundprobe_zarr export {dataset} {extended} {tmp_path}/out"
    subprocess.run(f"PYTHONUNBUFFERED=1 {command} | true", shell=True, check=False, timeout=60)
    again = subprocess.run(command.split(), capture_output=True, check=False, timeout=60)
    assert again.returncode == 0 or b"exists already" in again.stderr
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 65


def test_export_says_what_is_the_originals_and_what_was_rounded(
    cli, dataset, extended, phantom_source, tmp_path
):
    ran = cli("export", dataset, extended, tmp_path / "out")
    assert ran.status == 0
    assert "Wrote 66 files" in ran.out
    assert "65 byte for byte" in ran.out
    assert f"{extended}/sCT/image_reg2MRI.nii.gz" in ran.out.partition("rounded:")[2]
    written = {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.*")}
    assert written == {
        p.relative_to(phantom_source)
        for p in (phantom_source / "extendedPart" / extended).rglob("*.*")
    }
    again = cli("export", dataset, extended, tmp_path / "out")
    assert again.status == 2
    assert "exists already" in again.err


def test_preview_draws(cli, dataset, extended, tmp_path):
    ran = cli("preview", dataset, extended, tmp_path / "p.png")
    assert ran.status == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert cli("preview", dataset, extended, tmp_path / "p.gif").status == 2


def test_info_of_a_column_misspelt_names_the_nearest(cli, dataset):
    ran = cli("info", dataset, "d95")
    assert ran.status == 2
    assert "no patient and no column 'd95'" in ran.err
    assert "nearest columns: d95_gy" in ran.err


@pytest.mark.parametrize("command", ["info", "export", "preview"])
def test_an_unknown_patient_is_wrong_usage(cli, dataset, tmp_path, command):
    out = [] if command == "info" else [tmp_path / "out.png"]
    ran = cli(command, dataset, "newAcq_ffffffffffffffff", *out)
    assert ran.status == 2
    assert "no patient 'newAcq_ffffffffffffffff'" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("info",),
        ("validate",),
        ("finalise",),
        ("query", "true"),
        ("export", "newAcq_0000000000000000", "out"),
        ("preview", "newAcq_0000000000000000", "out.png"),
    ],
)
def test_what_is_no_dataset_says_so(cli, tmp_path, arguments):
    command, *others = arguments
    ran = cli(command, tmp_path / "nowhere", *others)
    assert ran.status == 3
    assert ran.err.startswith("error: ")
    assert str(tmp_path / "nowhere") in ran.err
    assert "expected" in ran.err
    assert "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_table_is_named(cli, copied):
    (copied / "metadata" / "arrays" / "base-00000.parquet").write_bytes(b"nonsense")
    ran = cli("info", copied)
    assert ran.status == 3
    assert "arrays/base-00000.parquet" in ran.err


def test_a_place_that_cannot_be_written_is_named(cli, dataset, extended, tmp_path):
    (tmp_path / "file").write_text("")
    ran = cli("export", dataset, extended, tmp_path / "file" / "out")
    assert ran.status == 2
    assert str(tmp_path / "file") in ran.err


@pytest.mark.parametrize(
    ("command", "others"), [("export", ["newAcq_cba26d19714d0247"]), ("copy", []), ("demo", None)]
)
def test_a_file_where_a_folder_goes_is_named(cli, dataset, tmp_path, command, others):
    file = tmp_path / "file"
    file.write_text("kept")
    ran = cli(command, *([] if others is None else [dataset, *others]), file)
    assert ran.status == 2
    assert f"{file} is a file; expected a folder or nothing" in ran.err
    assert file.read_text() == "kept"


def test_nothing_is_written_into_a_source_tree_or_a_dataset(
    copied, cli, dataset, extended, phantom_source, tmp_path
):
    ran = cli("copy", dataset, phantom_source)
    assert ran.status == 2
    assert "is a LUND-PROBE source tree" in ran.err
    assert not (phantom_source / "patients").exists()
    ran = cli("export", copied, extended, copied / "nifti")
    assert ran.status == 2
    assert f"is within the dataset {copied}" in ran.err
    assert not (copied / "nifti").exists()


def test_what_stands_in_place_of_a_dataset_is_said(cli, dataset, extended, phantom_source):
    for place, said in (
        (phantom_source, "this is a source tree; convert it"),
        (dataset / "metadata", f"this lies within the dataset {dataset}"),
        (f"no/{extended}", "a patient's id; give the dataset first"),
    ):
        ran = cli("validate", place)
        assert ran.status == 3
        assert said in ran.err


def test_info_of_a_column(cli, dataset):
    ran = cli("info", dataset, "volume_cc")
    assert ran.status == 0
    assert "voxels times the volume of one" in ran.out
    assert "source_bytes" not in ran.out


def test_ids_that_are_not_separated_by_commas(cli, phantom_source, extended, tmp_path):
    both = f"{extended} {extended}"
    ran = cli("convert", phantom_source, tmp_path / "d", "--patients", both)
    assert ran.status == 2
    assert "ids are separated by commas" in ran.err


def test_storage_options_of_a_file_without_its_at_sign(cli, dataset, tmp_path):
    file = tmp_path / "minio.json"
    file.write_text("{}")
    ran = cli("info", dataset, "--storage-options", file)
    assert ran.status == 2
    assert f"{file}: a file without @ before it; expected --storage-options @{file}" in ran.err
    assert cli("info", dataset, "--storage-options", f"@{file}").status == 0
    ran = cli("info", dataset, "--storage-options", "x" * 5000)
    assert "not a JSON object; expected one" in ran.err


def test_bench_of_volumes_shorter_than_its_patch(cli, dataset):
    ran = cli("bench", dataset)
    assert ran.status == 2
    found = re.search(r"--patch 32,192,192: longer .*expected at most (\S+)", ran.err)
    assert found is not None
    assert "pad=" not in ran.err
    assert cli("bench", dataset, "--patch", found[1], "--patches", 1).status == 0
