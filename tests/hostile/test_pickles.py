"""Nothing that is read is ever unpickled or run: not by a codec, an object array or a name."""

from __future__ import annotations

import ast
import json
import pickle
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr

import lundprobe_zarr as lp
from lundprobe_zarr.errors import DamagedStoreError
from lundprobe_zarr.figures.preview import save_preview
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.storage.location import Location

ROOT = Path(__file__).parents[2]
ran: list[str] = []


def note() -> None:
    ran.append("unpickled")


class Evil:
    """Notes that it was made, when it is unpickled."""

    def __reduce__(self) -> Any:
        return note, ()


def old_array(**codecs: Any) -> dict[str, Any]:
    """An array as Zarr v2 has it, in whose codecs Pickle is one; with what ours look at."""
    return {
        "zarr_format": 2,
        "node_type": "array",
        "shape": [1],
        "chunks": [1],
        "dtype": "|O",
        "fill_value": "",
        "order": "C",
        "attributes": {},
        "chunk_grid": {"configuration": {"chunk_shape": [1]}},
        "dimension_names": ["x"],
        "codecs": [{"name": "bytes"}, {"name": "crc32c"}],
        "data_type": "int8",
        **codecs,
    }


PICKLING = {
    "v2 compressor": old_array(compressor={"id": "pickle"}, filters=[{"id": "vlen-utf8"}]),
    "v2 filter": old_array(compressor=None, filters=[{"id": "vlen-utf8"}, {"id": "pickle"}]),
    "v2 object": old_array(compressor=None, filters=[{"id": "pickle"}]),
}


@pytest.mark.parametrize("node", PICKLING.values(), ids=PICKLING)
def test_a_store_with_a_pickle_in_it_is_refused(copied, monkeypatch, tmp_path, node):
    # Older numcodecs unpickle whatever they are given; newer ones want to be told to.
    monkeypatch.setattr("numcodecs.pickles.ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    numcodecs.Pickle().decode(numcodecs.Pickle().encode(np.array([Evil()], object)))
    assert ran == ["unpickled"], "the trap works"
    ran.clear()
    patient_id = lp.open_cohort(copied).ids[0]
    store = copied / f"patients/{patient_id}.zarr"
    whole = json.loads((store / "zarr.json").read_text())
    whole["consolidated_metadata"]["metadata"]["evil"] = node
    (store / "zarr.json").write_text(json.dumps(whole))
    (store / "evil/c").mkdir(parents=True)
    data = numcodecs.Pickle().encode(np.array([Evil()], object))
    for name in ("0", "c/0", "zarr.json"):
        (store / "evil" / name).write_bytes(data)
    if node["filters"] != [{"id": "pickle"}]:
        assert isinstance(zarr.open_group(store, mode="r")["evil"], zarr.Array), "plain zarr has it"
    uses = (
        lambda: lp.open_cohort(copied)[patient_id].tree,
        lambda: save_preview(Location(copied), patient_id, tmp_path / "x.png"),
    )
    for use in uses:
        with pytest.raises(DamagedStoreError, match="not the metadata of a complete store"):
            use()
    (problem,) = [p for p in validate(Location(copied), deep=True).problems if p.patient_id]
    assert "not the metadata of a complete store" in problem.finding
    assert ran == []


@pytest.mark.parametrize(
    "codec",
    [{"name": "numcodecs.pickle"}, {"name": "numcodecs.zlib"}, {"id": "pickle"}, {"name": "gzip"}],
)
@pytest.mark.parametrize("path", ["mri/z", "mri/image"])
def test_codecs_that_are_not_ours_are_refused(copied, edit, codec, path):
    patient_id = lp.open_cohort(copied).ids[0]

    def change(root: dict[str, Any]) -> None:
        codecs = root["consolidated_metadata"]["metadata"][path]["codecs"]
        inner = codecs[0].get("configuration", {}).get("codecs", codecs)
        inner.insert(1, codec)

    edit(copied / f"patients/{patient_id}.zarr/zarr.json", change)
    with pytest.raises(DamagedStoreError, match=r"codecs .* not of this schema"):
        lp.open_cohort(copied)[patient_id].tree  # noqa: B018


def test_a_type_of_objects_is_refused(copied, edit):
    patient_id = lp.open_cohort(copied).ids[0]
    for kind in ("object", "O", "|O", "complex128", "U9", {"name": "struct"}):
        edit(
            copied / f"patients/{patient_id}.zarr/zarr.json",
            lambda root, kind=kind: root["consolidated_metadata"]["metadata"]["mri/image"].update(
                data_type=kind
            ),
        )
        with pytest.raises(DamagedStoreError):
            lp.open_cohort(copied)[patient_id].tree  # noqa: B018


def test_no_module_of_ours_unpickles_or_runs_what_it_reads():
    """Pickles travel between our own processes, which dask and torch see to; none is ever read."""
    forbidden = {"loads", "load", "Unpickler", "literal_eval", "allow_pickle", "eval", "exec"}
    modules = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
    found = []
    for file in [*(ROOT / "lundprobe_zarr").rglob("*.py"), *(ROOT / "conversion").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                found += [(file.name, n) for n in names if n.split(".")[0] in modules]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                found += [(file.name, node.func.id)] if node.func.id in forbidden else []
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                is_yaml = node.value.id == "yaml" and node.attr not in ("safe_load", "YAMLError")
                found += [(file.name, f"yaml.{node.attr}")] if is_yaml else []
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                found.append((file.name, "allow_pickle"))
    assert found == []
    assert pickle.loads(pickle.dumps(Location("memory://x"))).url == "memory://x"
