"""Nothing that a manifest, a table or a store says leads out of the dataset, read or written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from altered import forget_hashes

import lundprobe_zarr as lp
from lundprobe_zarr.dataset.opening import open_manifest, read_table
from lundprobe_zarr.errors import DatasetError, UsageError
from lundprobe_zarr.exchange.nifti import export_patient
from lundprobe_zarr.integrity.copy import copy_dataset
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.storage.location import Location, Range
from lundprobe_zarr.stores.metadata import parse_store
from lundprobe_zarr.stores.place import StorePlace

OUT = [
    "/etc/passwd",
    "../other/patients.parquet",
    "metadata/../../x.parquet",
    "s3://bucket/x.parquet",
    "file:///etc/passwd",
    "C:\\x.parquet",
    "..\\x.parquet",
    "metadata\\..\\..\\x.parquet",
    "%2e%2e/x.parquet",
    "metadata/%2e%2e%2f%2e%2e%2fx.parquet",
    "x.parquet?versionId=1",
    "x.parquet#y",
    "x\0.parquet",
    "simplecache::https://h/x",
]


@pytest.mark.parametrize("file", OUT)
@pytest.mark.parametrize("kind", ["table", "cohort"])
def test_a_manifest_that_leads_outside_is_refused(copied, edit, file, kind):
    def change(manifest: dict[str, Any]) -> None:
        if kind == "cohort":
            manifest["cohort"] = file
        else:
            manifest["tables"]["arrays"] = {"base": [file]}

    edit(copied / "lundprobe.json", change)
    for use in (
        lp.open_cohort,
        lambda place: copy_dataset(Location(place), Location("memory://c")),
    ):
        with pytest.raises(DatasetError, match="lies outside the dataset"):
            use(copied)


@pytest.mark.parametrize("name", [*OUT, "a/../b", ".."])
@pytest.mark.parametrize("url", ["memory://bucket/d", "https://h.example.org/d", "{folder}"])
def test_no_object_outside_can_be_asked_for(tmp_path, url, name):
    if ":" in name:  # of these the first part is a folder's name here, on every system
        name = f"../{name}"
    location = Location(url.format(folder=tmp_path))
    for ask in (location.read, location.size, location.zarr_store):
        with pytest.raises(DatasetError, match="a name that leads out of the dataset"):
            ask(name)
    with pytest.raises(DatasetError, match="leads out"):
        location.read_ranges([Range(name, 0, 1)])
    for write in (lambda: location.write(name, b""), lambda: location.delete(name)):
        with pytest.raises((DatasetError, UsageError)):
            write()


@pytest.mark.parametrize(
    "patient",
    [
        "../../x",
        "/etc",
        "..",
        "newAcq_00000000000000a1/../..",
        "%2e%2e",
        "newAcq_00000000000000a1\n",
    ],
)
def test_a_patients_table_that_names_no_patients_is_refused(copied, patient):
    manifest = open_manifest(Location(copied))
    assert manifest.cohort is not None
    for file in (manifest.cohort, *manifest.tables["patients"]["base"]):
        table = pq.read_table(copied / file)
        ids = pa.array([patient, *table.column("patient_id").to_pylist()[1:]], pa.string())
        pq.write_table(table.set_column(0, table.schema.field(0), ids), copied / file)
    forget_hashes(copied)
    uses = (
        lp.open_cohort,
        lambda place: validate(Location(place)),
        lambda place: copy_dataset(Location(place), Location("memory://c")),
        lambda place: lp.load_dataset(place, "slices", streaming=True),
    )
    for use in uses:
        with pytest.raises(
            DatasetError, match=r"the patients table has a patient '.*expected patient ids"
        ):
            use(copied)


@pytest.mark.parametrize("column", ["store"])
def test_where_a_store_is_follows_from_its_patient_alone(copied, column):
    manifest = open_manifest(Location(copied))
    table = pq.read_table(copied / manifest.cohort)
    at = table.column_names.index(column)
    outside = pa.array(["/etc"] * table.num_rows, pa.string())
    pq.write_table(table.set_column(at, table.schema.field(at), outside), copied / manifest.cohort)
    forget_hashes(copied)
    cohort = lp.open_cohort(copied)
    assert cohort[0].tree.attrs["patient_id"] == cohort.ids[0]


@pytest.mark.parametrize(
    "path",
    [
        "/tmp/evil.nii.gz",
        "../evil.nii.gz",
        "basePart/{id}/../../../evil",
        "{part}Part/{id}/MR_StorT2/other.nii.gz",
        "{part}Part/newAcq_00000000000000a1/MR_StorT2/image.nii.gz",
        ".bashrc",
        "",
        "{part}Part\\{id}\\MR_StorT2\\image.nii.gz",
        "{part}Part/{id}/MR_StorT2/image.nii.gz\0",
    ],
)
def test_export_writes_the_source_trees_files_alone(copied, edit, tmp_path, path):
    patient = lp.open_cohort(copied)[0]
    said = path.format(id=patient.patient_id, part=patient.row["part"])

    def change(root: dict[str, Any]) -> None:
        nodes = root["consolidated_metadata"]["metadata"]
        attributes = nodes["mri/image"]["attributes"]
        sources = json.loads(attributes["sources"])
        sources[0]["path"] = said
        attributes["sources"] = json.dumps(sources)

    edit(copied / f"patients/{patient.patient_id}.zarr/zarr.json", change)
    out = tmp_path / "deep" / "out"
    with pytest.raises((DatasetError, UsageError)):
        export_patient(Location(copied), patient.patient_id, out)
    assert not list(tmp_path.rglob("evil*"))
    assert not [p for p in out.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    "path", ["../x", "mri/../../x", "/etc", "mri/..", "a\\..\\b", "x%2e", "q\0"]
)
def test_a_store_names_no_object_outside_itself(copied, edit, tmp_path, path):
    patient_id = lp.open_cohort(copied).ids[0]
    root = copied / f"patients/{patient_id}.zarr/zarr.json"

    def change(whole: dict[str, Any]) -> None:
        nodes = whole["consolidated_metadata"]["metadata"]
        nodes[path] = dict(nodes["mri/z"])

    edit(root, change)
    report = copy_dataset(Location(copied), Location(tmp_path / "out"))
    assert [s.patient_id for s in report.failures] == [patient_id]
    assert not (tmp_path / "out/lundprobe.json").exists()


def test_links_of_a_dataset_that_lead_outside_are_not_copied(copied, tmp_path):
    secret, patient_id = tmp_path / "id_rsa", lp.open_cohort(copied).ids[0]
    secret.write_text("secret")
    for name in ("README.md", f"patients/{patient_id}.zarr/mri/z/c/0"):
        kept = (copied / name).read_bytes()
        (copied / name).unlink()
        (copied / name).symlink_to(secret)
        try:
            report = copy_dataset(Location(copied), Location(tmp_path / "out"))
        except DatasetError as error:
            said = str(error)
        else:
            said = str(report.failures[0].error)
        assert "a link that leads out of the dataset" in said
        assert "secret" not in {p.read_text("latin-1") for p in (tmp_path / "out").rglob("*.md")}
        (copied / name).unlink()
        (copied / name).write_bytes(kept)


def test_a_store_elsewhere_on_the_disk_can_be_read_through_a_link(copied, tmp_path):
    """Whose disk it is may lay out folders as they like."""
    shutil.move(copied / "patients", tmp_path / "elsewhere")
    (copied / "patients").symlink_to(tmp_path / "elsewhere")
    assert lp.open_cohort(copied)[0].tree is not None
    assert not copy_dataset(Location(copied), Location(tmp_path / "out")).failures


def test_a_store_is_of_its_place(copied, edit):
    first, second = lp.open_cohort(copied).ids[:2]
    root = copied / f"patients/{first}.zarr/zarr.json"
    root.write_bytes((copied / f"patients/{second}.zarr/zarr.json").read_bytes())
    with pytest.raises(
        DatasetError, match=f"the store of patient {second}; expected that of {first}"
    ):
        lp.open_cohort(copied)[first].tree  # noqa: B018


@pytest.mark.parametrize("patient_id", ["../../x", "/etc", "x", "", "newAcq_00000000000000a1 "])
def test_a_store_of_nobody_is_refused(material, patient_id):
    import json

    whole = json.loads(json.dumps(material.store))
    whole["attributes"]["patient_id"] = patient_id
    with pytest.raises(DatasetError, match="patient_id is no patient id"):
        parse_store(json.dumps(whole), StorePlace("case", "newAcq_0"))


def test_a_table_is_read_from_where_the_manifest_says(copied):
    location = Location(copied)
    assert read_table(location, open_manifest(location), "patients").num_rows == 4


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("s3:/bucket/x", "s3://bucket/x"),
        ("s3:bucket/x", "s3://bucket/x"),
        ("https:/h/x?sig=hunter2", "https://h/x?***"),
        ("https:/me:hunter2@h/x", "https://***@h/x"),
        ("file:/home/x", "file://home/x"),
        ("GS:/b", "GS://b"),
    ],
)
def test_a_url_that_lacks_a_slash_is_no_folder(url, right):
    with pytest.raises(UsageError, match="without its two slashes") as raised:
        Location(url)
    assert f"expected {right};" in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("name", ["a:b", "x/s3:/y", "./s3:/bucket", "C:/data"])
def test_folders_with_colons_are_folders(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(name).name in str(Location(name).local())


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "gs://", "simplecache::s3://", "https:///x"])
def test_a_url_without_a_bucket_or_server_is_refused(url):
    with pytest.raises(UsageError, match=r"no (bucket|server) in it; expected"):
        Location(url)
