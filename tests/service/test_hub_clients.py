"""The Hub's own libraries and other readers, unmodified, against the service.

They run once, in a process of their own: `hub_client.py`, which reads HF_ENDPOINT when it imports
them. `make test-oldest-datasets` runs this with the oldest ones that are allowed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lundprobe_zarr import open_cohort
from lundprobe_zarr.storage.location import Location

CLIENT = Path(__file__).with_name("hub_client.py")
#: Nothing may leave this machine but for requests to the service.
SILENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "NO_COLOR": "1",
    "DO_NOT_TRACK": "1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def said(served, folder):
    """What the clients said of the service."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    hub = {"HF_ENDPOINT": served.url, "HF_TOKEN": served.token, "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, CLIENT, served.name, folder],
        env=kept | SILENT | hub,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def files(dataset):
    """Size of each file that is served, by its path."""
    found = Location(dataset).find("")
    return {path: size for path, size in found.items() if not path.startswith(".conversion/")}


def newest(said):
    return int(said["huggingface_hub"].partition(".")[0]) >= 1


def test_who_and_what(said, served, files):
    assert said["whoami"] == "start-token"
    assert said["listed"] == [served.name]
    assert said["searched"] == []
    assert said["card"] == "LUND-PROBE phantom (synthetic)"
    assert {path: size for path, size, _ in said["siblings"]} == files
    assert sorted(said["files"]) == sorted(files)
    shards = {path for path, _, sha256 in said["siblings"] if sha256}
    assert shards
    assert all("/c/" in path for path in shards)


def test_there_is_one_revision(said):
    sha = said["sha"]
    assert len(sha) == 40
    assert said["commits"] == said["refs"] == said["commit"] == [sha]
    assert said["paths"] == [["README.md", sha], ["patients", sha]]
    assert said["exists"] == [True, False, False, False]


def test_downloads_are_the_files(said, dataset, files):
    assert Path(said["one"]).read_bytes() == (dataset / "README.md").read_bytes()
    whole = Path(said["whole"])
    assert {p.relative_to(whole).as_posix() for p in whole.rglob("*") if p.is_file()} == set(files)
    for path in files:
        assert (whole / path).read_bytes() == (dataset / path).read_bytes()
    tables = {p.name for p in Path(said["tables"]).iterdir()}
    assert tables - {".cache"} == {"metadata"}


def test_checksums_of_shards_and_of_small_files_hold(said, files):
    if not newest(said):
        pytest.skip("huggingface_hub before 1.0 has no verify_repo_checksums")
    assert said["verified"] == [len(files), [], []]


def test_the_file_system(said, served, dataset, files):
    place = f"datasets/{served.name}"
    top = {f"{place}/{path.partition('/')[0]}" for path in files}
    assert set(said["hf_ls"]) == top
    assert said["hf_found"] == len(files)
    assert said["hf_part"] == (dataset / "README.md").read_text()[4:11]
    assert said["hf_size"] == files["README.md"]
    assert f"{place}/metadata/slices/base-00000.parquet" in said["hf_glob"]


def test_load_dataset_and_other_readers(said, dataset):
    cohort = open_cohort(dataset)
    assert said["streamed"] == list(cohort.where("part = 'base'").ids)
    assert said["by manifest"] == said["streamed"]
    assert said["our cohort"] == list(cohort.ids)
    assert set(said["configs"]) == set(cohort.manifest.tables)
    structures = "SELECT 1 FROM structures WHERE part = 'base'"
    assert said["structures"] == len(cohort.sql(structures))
    assert said["pandas"] == said["arrow"] == said["duckdb"] == len(cohort)
    assert said.get("polars", len(cohort)) == len(cohort)
    with_tree = sorted(cohort.ids)[0]
    image = cohort[with_tree].mri.image.sel(modality="T2w")[2, 3:9, 3:9]
    assert said["xarray"] == float(image.sum())


def test_the_command_line(said, served, files):
    if not newest(said):
        pytest.skip("huggingface_hub before 1.0 has no command hf")
    commands = {name: printed for name, printed in said.items() if name.startswith("hf ")}
    assert {status for status, _ in commands.values()} == {0}, commands
    assert "start-token" in commands["hf auth whoami"][1]
    assert said["sha"] in commands["hf datasets info"][1]
    assert "lundprobe.json" in commands["hf datasets ls"][1]
    assert f"{len(files)} file(s)" in commands["hf cache verify"][1]


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        ("no repository", "RepositoryNotFoundError", "no dataset 'someone/else'"),
        ("no revision", "RevisionNotFoundError", "open the dataset again"),
        ("no file", "EntryNotFoundError", "no file 'nothing.txt'"),
        ("no folder", "EntryNotFoundError", "nothing"),
        ("a model", "RepositoryNotFoundError", "repo_type='dataset'"),
        ("wrong token", "HfHubHTTPError", "Invalid credentials in Authorization header"),
        ("no token", "GatedRepoError", "set HF_TOKEN"),
        ("no token, a file", "OSError", "gated repo"),
        ("written to", "HfHubHTTPError", "read-only"),
    ],
)
def test_errors_are_the_clients_own(said, what, kind, text):
    *kinds, message = said["errors"][what]
    assert kind in kinds, message
    assert text.lower() in message.lower() or not newest(said)


def test_no_client_prints_the_token(said, served):
    assert served.token not in json.dumps(said)
