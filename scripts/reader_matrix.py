"""Try readers of Zarr on a converted dataset behind servers; print the matrix of docs/readers.md.

    python scripts/reader_matrix.py DATASET --python OTHER --node FOLDER --gdal PYTHON

DATASET is a converted phantom on a local disk. zarr-python, xarray and lundprobe-zarr are those of
the interpreter that runs this. OTHER is one with tensorstore, zarrs and fsspec[http]; FOLDER one in
which `npm install zarrita` was run; PYTHON one with GDAL. What is not given, or not installed, is
left out. nginx and moto are tried where they are installed.

Of each pair four things are read and compared with what lundprobe-zarr reads locally: a slice of an
image (float32) and of a mask (bool), both by range from a shard, an axis (float64), and labels.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import lundprobe_zarr as lp

_SECONDS = 120
_SLICE = (0, 8)  # of the second chunk of the first shard
CHECKS = ("image", "mask", "axis", "labels")
#: Programs that print each check's sum, number of letters or error, as JSON; {url} is a store.
_PYTHON = """
import json, sys, warnings
import numpy as np
warnings.simplefilter("ignore")
url = sys.argv[1]
def attempt(read):
    try:
        return read()
    except Exception as error:
        return f"{{type(error).__name__}}: {{error}}"
def total(values):
    return float(np.asarray(values, dtype=np.float64).sum())
def letters(values):
    return sum(len(str(v)) for v in np.asarray(values).tolist())
{setup}
print(json.dumps({{
    "image": attempt(lambda: total(read("mri/image")[0, 8])),
    "mask": attempt(lambda: total(read("mri/clinical/mask")[0, 8])),
    "axis": attempt(lambda: total(read("mri/z")[:])),
    "labels": attempt(lambda: letters(read("mri/clinical/structure")[:])),
}}))
"""
_ZARR = """
import zarr
def read(path):
    return zarr.open_array(f"{url}/{path}", mode="r")
"""
_ZARRS = (
    "import zarrs\n"
    + _ZARR
    + 'zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})'
)
_XARRAY = """
import xarray as xr
def read(path):
    group, _, name = path.rpartition("/")
    return xr.open_zarr(url, group=group, chunks=None)[name]
"""
_TENSORSTORE = """
import tensorstore as ts
class Array:
    def __init__(self, path):
        where = f"{url}/{path}/"
        kind = {"kvstore": where} if "://" in where else {
            "kvstore": {"driver": "file", "path": where}}
        self.array = ts.open({"driver": "zarr3", **kind}, read=True, open=True).result()
    def __getitem__(self, place):
        return self.array[place].read().result()
read = Array
"""
_GDAL = """
from osgeo import gdal
gdal.UseExceptions()
def read(path):
    where = f"/vsicurl/{url}" if "://" in url else url
    opened = gdal.OpenEx(f'ZARR:"{where}"', gdal.OF_MULTIDIM_RASTER)
    group = opened.GetRootGroup()
    *groups, name = path.split("/")
    for one in groups:
        group = group.OpenGroup(one)
    return group.OpenMDArray(name).ReadAsArray()
"""
_LUNDPROBE = """
import lundprobe_zarr as lp
root, _, patient = url.rpartition("/patients/")
found = lp.open_cohort(root)[patient.removesuffix(".zarr")]
def read(path):
    group, _, name = path.rpartition("/")
    return found.tree[group][name].values if name in ("z", "structure") else found.tree[group][name]
"""
_ZARRITA = """
import * as zarr from "zarrita";
import { FileSystemStore } from "@zarrita/storage";
const url = process.argv[2];
const store = url.includes("://") ? new zarr.FetchStore(url) : new FileSystemStore(url);
const read = async (path, place) => {
  const array = await zarr.open.v3(zarr.root(store).resolve(path), { kind: "array" });
  return Array.from((await zarr.get(array, place)).data);
};
const total = (values) => values.reduce((sum, v) => sum + Number(v), 0);
const letters = (values) => values.reduce((sum, v) => sum + v.length, 0);
const attempt = async (action) => {
  try { return await action(); } catch (e) { return String(e); }
};
console.log(JSON.stringify({
  image: await attempt(async () => total(await read("/mri/image", [0, 8, null, null]))),
  mask: await attempt(async () => total(await read("/mri/clinical/mask", [0, 8, null, null]))),
  axis: await attempt(async () => total(await read("/mri/z", [null]))),
  labels: await attempt(async () => letters(await read("/mri/clinical/structure", [null]))),
}));
"""
_NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/log;
events {{}}
http {{
  access_log off; client_body_temp_path {folder}/t; proxy_temp_path {folder}/t;
  fastcgi_temp_path {folder}/t; uwsgi_temp_path {folder}/t; scgi_temp_path {folder}/t;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


class _NoSuffix(SimpleHTTPRequestHandler):
    """Ranges with a first byte alone; `bytes=-100` is answered with status 416."""

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        file = Path(self.translate_path(self.path))
        if asked is None or not file.is_file():
            super().do_GET()
            return
        size = file.stat().st_size
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        if found is None or int(found[1]) >= size:
            self.send_error(416)
            return
        start, stop = int(found[1]), min(size, int(found[2] or size) + 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        self.wfile.write(file.read_bytes()[start:stop])


@contextmanager
def _threaded(handler: Any) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def _process(command: list[str], port: int) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        try:
            _await(url)
            yield url
        finally:
            process.terminate()


def _await(url: str) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"{url} does not answer; expected the server that was started")


def _free_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        return int(server.server_address[1])


def _servers(root: Path, stack: ExitStack) -> dict[str, str]:
    """URL of `root`, a dataset, by the name of what serves it; a path for the local disk."""
    port = _free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    found = {
        "local disk": str(root),
        "python -m http.server": stack.enter_context(
            _process([*command, "--directory", str(root)], port)
        ),
        "no suffix ranges": stack.enter_context(
            _threaded(functools.partial(_NoSuffix, directory=str(root)))
        ),
    }
    if program := shutil.which("nginx"):
        folder, port = Path(stack.enter_context(tempfile.TemporaryDirectory())), _free_port()
        folder.chmod(0o755)
        config = folder / "nginx.conf"
        config.write_text(_NGINX.format(folder=folder, port=port, root=root))
        found["nginx"] = stack.enter_context(_process([program, "-c", str(config)], port))
    if shutil.which("moto_server"):
        port = _free_port()
        url = stack.enter_context(_process(["moto_server", "-p", str(port)], port))
        _put(f"{url}/bucket")
        for file in (p for p in root.rglob("*") if p.is_file()):
            _put(f"{url}/bucket/{file.relative_to(root)}", file.read_bytes())
        found["S3 (moto)"] = f"{url}/bucket"
    return found


def _put(url: str, data: bytes = b"") -> None:
    headers = {"Content-Type": "application/octet-stream", "x-amz-acl": "public-read"}
    request = urllib.request.Request(url, data, headers, method="PUT")
    urllib.request.urlopen(request, timeout=30).close()


def _readers(given: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Command of each reader, to which a store's URL or path is added."""
    here = sys.executable
    wanted = {
        "lundprobe-zarr": (here, _LUNDPROBE),
        "zarr-python": (here, _ZARR),
        "xarray": (here, _XARRAY),
        "tensorstore": (given.python, _TENSORSTORE),
        "zarrs": (given.python, _ZARRS),
        "GDAL": (given.gdal, _GDAL),
    }
    found = {
        name: [python, "-c", _PYTHON.format(setup=setup)]
        for name, (python, setup) in wanted.items()
        if python is not None
    }
    if given.node is not None:
        program = Path(given.node) / "reader_matrix.mjs"
        program.write_text(_ZARRITA)
        found["zarrita"] = ["node", str(program)]
    return found


def _run(command: list[str], url: str) -> Mapping[str, Any]:
    try:
        ran = subprocess.run([*command, url], capture_output=True, text=True, timeout=_SECONDS)
        return dict(json.loads(ran.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return dict.fromkeys(CHECKS, f"no answer in {_SECONDS} s")
    except (IndexError, ValueError):
        return dict.fromkeys(CHECKS, ran.stderr.strip().splitlines()[-1])


def _verdict(found: Any, expected: Any) -> str:
    if isinstance(found, str):
        return "fails"
    return "right" if abs(found - expected) <= 1e-6 * max(1, abs(expected)) else "WRONG"


def _expected(dataset: Path, patient: str) -> dict[str, float]:
    tree = lp.open_cohort(dataset)[patient].tree
    names = tree["mri/clinical"]["structure"].values.tolist()
    return {
        "image": float(tree["mri"]["image"][_SLICE].astype("float64").sum()),
        "mask": float(tree["mri/clinical"]["mask"][_SLICE].sum()),
        "axis": float(tree["mri"]["z"].sum()),
        "labels": sum(map(len, names)),
    }


def main() -> None:
    """Print a row a pair of reader and server, and what failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--python")
    parser.add_argument("--node")
    parser.add_argument("--gdal")
    given = parser.parse_args()
    root = given.dataset.resolve()
    patient = lp.open_cohort(root).ids[0]
    expected = _expected(root, patient)
    print("| reader | server |", " | ".join(CHECKS), "|")
    print("|---|---|" + "---|" * len(CHECKS))
    said: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        readers = _readers(given, folder)
        for server, url in _servers(root, stack).items():
            for reader, command in readers.items():
                found = _run(command, f"{url}/patients/{patient}.zarr")
                row = [_verdict(found[c], expected[c]) for c in CHECKS]
                print(f"| {reader} | {server} |", " | ".join(row), "|", flush=True)
                texts = {str(v)[:200] for v in found.values() if isinstance(v, str)}
                said += [f"{reader}, {server}: {t}" for t in sorted(texts)]
    print("\n".join(["", *said]))


if __name__ == "__main__":
    main()
