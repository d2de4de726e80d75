"""Do with the Hub's own libraries what users do, and say as JSON what came of it.

Run in a process of its own: these libraries read HF_ENDPOINT when they are imported. Works with
huggingface_hub from 0.25 on and datasets from 5.0 on.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import duckdb
import huggingface_hub
import pandas as pd
import pyarrow.dataset
import xarray as xr
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download

import lundprobe_zarr as lp


def main(name: str, folder: str) -> None:
    """Print what each client says of the dataset `name`; downloads go to `folder`."""
    api = HfApi()
    said: dict[str, Any] = {"huggingface_hub": huggingface_hub.__version__}
    said |= api_answers(api, name)
    said |= downloads(api, name, Path(folder))
    said |= file_system(name)
    said |= loaded(name, folder)
    said |= readers(name)
    said |= commands(name, folder)
    said["errors"] = errors(api, name, Path(folder) / "other")
    print(json.dumps(said))


def api_answers(api: HfApi, name: str) -> dict[str, Any]:
    info = api.dataset_info(name, files_metadata=True)
    tree = list(api.list_repo_tree(name, recursive=True, expand=True, repo_type="dataset"))
    below = api.list_repo_tree(name, "patients", repo_type="dataset", revision="refs/heads/main")
    paths = api.get_paths_info(
        name, ["README.md", "patients", "nothing"], expand=True, repo_type="dataset"
    )
    api_check: Callable[..., None] | None = getattr(api, "auth_check", None)  # from 0.26 on
    if api_check is not None:
        api_check(name, repo_type="dataset")
    return {
        "whoami": api.whoami()["name"],
        "sha": info.sha,
        "gated": info.gated,
        "modified": info.last_modified.isoformat(),
        "card": info.card_data["pretty_name"],
        "siblings": [[s.rfilename, s.size, s.lfs and s.lfs["sha256"]] for s in info.siblings],
        "files": [e.path for e in tree if hasattr(e, "size")],
        "commits": sorted({e.last_commit.oid for e in tree}),
        "stores": [e.path for e in below],
        "paths": [[p.path, p.last_commit.oid] for p in paths],
        "refs": [b.target_commit for b in api.list_repo_refs(name, repo_type="dataset").branches],
        "commit": [c.commit_id for c in api.list_repo_commits(name, repo_type="dataset")],
        "listed": [d.id for d in api.list_datasets(author=name.partition("/")[0])],
        "searched": [d.id for d in api.list_datasets(search="no such thing")],
        "exists": [
            api.file_exists(name, "README.md", repo_type="dataset"),
            api.file_exists(name, "dataset_infos.json", repo_type="dataset"),
            api.revision_exists(name, "0" * 40, repo_type="dataset"),
            api.repo_exists("someone/else", repo_type="dataset"),
        ],
    }


def downloads(api: HfApi, name: str, folder: Path) -> dict[str, Any]:
    one = hf_hub_download(name, "README.md", repo_type="dataset", cache_dir=folder / "cache")
    whole = snapshot_download(name, repo_type="dataset", cache_dir=folder / "cache")
    tables = snapshot_download(
        name, repo_type="dataset", local_dir=folder / "tables", allow_patterns="metadata/*"
    )
    found: dict[str, Any] = {"one": one, "whole": whole, "tables": str(tables)}
    if hasattr(api, "verify_repo_checksums"):  # from 1.0 on
        seen = api.verify_repo_checksums(name, repo_type="dataset", cache_dir=folder / "cache")
        found["verified"] = [seen.checked_count, seen.mismatches, seen.missing_paths]
    return found


def file_system(name: str) -> dict[str, Any]:
    fs = HfFileSystem(block_size=1)
    place = f"datasets/{name}"
    path = f"{place}/README.md"
    with fs.open(path) as file:
        file.seek(4)
        part = file.read(7)
    return {
        "hf_ls": sorted(fs.ls(place, detail=False)),
        "hf_found": len(fs.find(place)),
        "hf_part": part.decode() if isinstance(part, bytes) else part,
        "hf_size": fs.info(path)["size"],
        "hf_glob": sorted(fs.glob(f"{place}/metadata/*/base-*.parquet")),
    }


def loaded(name: str, folder: str) -> dict[str, Any]:
    stream = datasets.load_dataset(name, "patients", split="base", streaming=True)
    whole = datasets.load_dataset(
        name, "structures", split="base", cache_dir=f"{folder}/datasets", revision="main"
    )
    by_manifest = datasets.load_dataset(
        "lundprobe",
        "patients",
        data_files=f"hf://datasets/{name}/lundprobe.json",
        split="base",
        streaming=True,
    )
    return {
        "datasets": datasets.__version__,
        "by manifest": [row["patient_id"] for row in by_manifest],
        "our cohort": list(lp.open_cohort(f"hf://datasets/{name}").ids),
        "streamed": [row["patient_id"] for row in stream],
        "configs": datasets.get_dataset_config_names(name),
        "structures": len(whole),
    }


def readers(name: str) -> dict[str, Any]:
    """Return what other readers find through the Hub's file system."""
    fs = HfFileSystem(block_size=1)
    table = f"datasets/{name}/metadata/patients.parquet"
    rows = pyarrow.dataset.dataset(table, filesystem=fs)
    found: dict[str, Any] = {
        "pandas": len(pd.read_parquet(f"hf://{table}")),
        "arrow": rows.count_rows(),
        "duckdb": duckdb.sql("SELECT count(*) FROM rows").fetchall()[0][0],
    }
    store = fs.ls(f"datasets/{name}/patients", detail=False)[0]
    with xr.open_datatree(
        f"hf://{store}", engine="zarr", storage_options={"block_size": 1}
    ) as tree:
        found["xarray"] = float(tree["mri/image"].sel(modality="T2w")[2, 3:9, 3:9].sum())
    try:
        import polars
    except ImportError:
        return found
    lazy = polars.scan_pyarrow_dataset(rows)
    return found | {"polars": len(lazy.select("patient_id").collect())}


def commands(name: str, folder: str) -> dict[str, Any]:
    """Return what the command `hf` prints, where there is one: from 1.0 on."""
    try:
        from huggingface_hub.cli.hf import main as hf
    except ImportError:
        return {}
    tried = {
        "hf auth whoami": [],
        "hf datasets info": [name],
        "hf datasets ls": [name],
        "hf download": [
            name,
            "README.md",
            "--repo-type",
            "dataset",
            "--local-dir",
            f"{folder}/one",
        ],
        "hf cache verify": [name, "--repo-type", "dataset", "--cache-dir", f"{folder}/cache"],
    }
    return {command: run(hf, [*command.split(), *rest]) for command, rest in tried.items()}


def run(program: Callable[[], object], arguments: list[str]) -> list[Any]:
    """Return the exit status of a command and what it printed."""
    sys.argv, status, printed = arguments, 0, io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            program()
    except SystemExit as error:
        status = error.code
    return [status, printed.getvalue()]


def errors(api: HfApi, name: str, folder: Path) -> dict[str, list[str]]:
    """Return the class and the text of each error as a client raises it."""
    get = {"repo_type": "dataset"}
    tried: dict[str, Callable[[], object]] = {
        "no repository": lambda: api.dataset_info("someone/else"),
        "no revision": lambda: api.dataset_info(name, revision="0" * 40),
        "no file": lambda: hf_hub_download(name, "nothing.txt", **get),
        "no folder": lambda: list(api.list_repo_tree(name, "nothing", **get)),
        "a model": lambda: api.model_info(name),
        "wrong token": lambda: HfApi(token="lp_wrong").dataset_info(name),
        "no token": lambda: HfApi(token=False).dataset_info(name),
        "no token, a file": lambda: hf_hub_download(
            name, "README.md", token=False, cache_dir=folder, **get
        ),
        "no token, who": lambda: HfApi(token="lp_wrong").whoami(),
        "written to": lambda: api.upload_file(
            path_or_fileobj=b"x", path_in_repo="x", repo_id=name, **get
        ),
    }
    return {what: raised(action) for what, action in tried.items()}


def raised(action: Callable[[], object]) -> list[str]:
    try:
        action()
    except Exception as error:  # noqa: BLE001 what it is, is the question
        return [*(kind.__name__ for kind in type(error).__mro__), str(error)]
    return []


if __name__ == "__main__":
    main(*sys.argv[1:])
