"""Faults that were reported of other programs, tried on ours: see docs/tried.md."""

from __future__ import annotations

import gzip
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from datasets.distributed import split_dataset_by_node

import lundprobe_zarr as lp
from lundprobe_zarr.errors import DatasetError, UsageError
from lundprobe_zarr.figures.preview import save_preview
from lundprobe_zarr.patches.sampling import BalancedSampling, UniformSampling
from lundprobe_zarr.schema.tables import COMPARED
from lundprobe_zarr.storage.location import Location


class _Compressing(BaseHTTPRequestHandler):
    """A server of files that compresses whatever it may, and counts ranges of what it sends."""

    protocol_version = "HTTP/1.1"
    root: Path
    always: bool
    ranges: bool

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        file = self.root / self.path.lstrip("/")
        if not file.is_file():
            self._answer(404, b"")
            return
        body, headers = file.read_bytes(), {"Accept-Ranges": "bytes"} if self.ranges else {}
        if self.always or "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, mtime=0)
            headers["Content-Encoding"] = "gzip"
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or not self.ranges:
            self._answer(200, body, **headers)
            return
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(body))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
        self._answer(206, body[start:stop], **headers)

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def serving(root: Path, always: bool, ranges: bool = True) -> Iterator[str]:
    handler = type("Handler", (_Compressing,), {"root": root, "always": always, "ranges": ranges})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_server_that_compresses_if_allowed_gives_every_voxel(dataset: Path) -> None:
    """fsspec/filesystem_spec#1319, #1748: the size of one form, the bytes of another."""
    with serving(dataset, always=False) as url:
        for there, here in zip(lp.open_cohort(url), lp.open_cohort(dataset), strict=True):
            np.testing.assert_array_equal(there.mri.image.values, here.mri.image.values)


def test_a_server_that_always_compresses_is_an_error_that_says_so(dataset: Path) -> None:
    with serving(dataset, always=True) as url:
        cohort = lp.open_cohort(url)  # what is read whole is whole
        with pytest.raises(DatasetError, match=r"is incomplete|not the requested one"):
            cohort[0].mri.image.compute()
        with pytest.raises(DatasetError, match="does not state how many bytes"):
            cohort.location.size("metadata/patients.parquet")


def test_a_server_without_ranges_makes_no_store_look_damaged(dataset: Path, tmp_path: Path) -> None:
    """fsspec/filesystem_spec#1748: whole files where a part was asked for."""
    there, here = tmp_path / "there.png", tmp_path / "here.png"
    with serving(dataset, always=False, ranges=False) as url:
        patient_id = lp.open_cohort(url).ids[-1]
        save_preview(Location(url), patient_id, there)
    save_preview(Location(dataset), patient_id, here)
    assert there.read_bytes() == here.read_bytes()


@pytest.mark.parametrize("folder", ["part=extended", "protocol=x", "patient_id=newAcq"])
def test_a_folder_that_looks_like_a_partition_changes_no_column(
    dataset: Path, tmp_path: Path, folder: str
) -> None:
    """duckdb/duckdb#10431, #16852: `name=value` on the way to a file becomes a column."""
    home = shutil.copytree(dataset, tmp_path / folder / "d")
    cohort, moved = lp.open_cohort(dataset), lp.open_cohort(home)
    for query in ("FROM patients", "FROM structures", "FROM slices"):
        pd.testing.assert_frame_equal(moved.sql(query), cohort.sql(query))
    plain = pd.read_parquet(home / "metadata" / "patients")
    assert sorted(plain["patient_id"].astype(str)) == sorted(cohort.ids)
    assert set(plain["part"].astype(str)) == {"base", "extended"}
    rows = list(lp.load_dataset(str(home), "slices", split="base", streaming=True))
    assert {row["part"] for row in rows} == {"base"}


def test_no_python_variable_answers_for_a_table(dataset: Path) -> None:
    """duckdb/duckdb#11945, #13977: a DataFrame in scope takes a table's name, or a wrong one."""
    cohort = lp.open_cohort(dataset)
    patients = frame = pd.DataFrame({"patient_id": ["nobody"]})
    assert cohort.sql("FROM patients")["patient_id"].tolist() == cohort.ids != list(patients)
    for name in ("frame", "cohort", "self", "connection", "tables"):
        with pytest.raises(lp.LundProbeError, match=f"no table '{name}'"):
            cohort.sql(f"FROM {name}")
    assert len(frame) == 1


def test_rows_keep_their_order_without_order_by(dataset: Path) -> None:
    """duckdb/duckdb#5118, #24342: rows come as threads have them."""
    cohort = lp.open_cohort(dataset)
    wanted = cohort.table("slices").to_pandas()[["patient_id", "z_index"]]
    for _ in range(5):
        pd.testing.assert_frame_equal(cohort.sql("SELECT patient_id, z_index FROM slices"), wanted)
        assert cohort.where("dose_max_gy > 0").ids == cohort.ids


def test_columns_without_a_value_have_their_type_in_every_file(dataset: Path) -> None:
    """apache/arrow#11967, huggingface/datasets#7222: all null here, a number there."""
    import pyarrow.parquet as pq

    for table in (p for p in (dataset / "metadata").iterdir() if p.is_dir()):
        schemas = [pq.read_schema(file) for file in sorted(table.iterdir())]
        assert len(schemas) == (1 if table.name in COMPARED else 2)
        assert schemas[0].equals(schemas[-1])
        assert "null" not in {str(field.type) for field in schemas[0]}


def test_an_empty_choice_by_position_says_which_way_the_coordinate_runs(dataset: Path) -> None:
    """pydata/xarray#1613: a slice against a coordinate's order is empty, without a word."""
    mri = lp.open_cohort(dataset)[0].mri
    nothing = mri.sel(y=slice(10, -10))
    assert nothing.sizes["y"] == 0
    for use in (lambda d: d.lp.affine, lambda d: d.lp.resample(5), lambda d: d.lp.track()):
        with pytest.raises(UsageError, match=r"no voxels along 'y'.*order of the coordinate"):
            use(nothing)


def test_every_opening_has_its_own_dask_names(dataset: Path) -> None:
    """pydata/xarray#6858: results of a file that was replaced, kept under the same name."""
    one, other = (lp.open_cohort(dataset)[0].mri.image.data.name for _ in range(2))
    assert one != other


@pytest.mark.parametrize("at", [9999.0, -9999.0])
def test_a_slice_outside_is_not_the_nearest_one(dataset: Path, at: float) -> None:
    """pydata/xarray#8335: the nearest slice, however far away."""
    volume = lp.open_cohort(dataset)[0].mri.image.sel(modality="T2w")
    with pytest.raises(UsageError, match="no axial slice"):
        volume.lp.plot(at=at)


def test_a_lost_shard_is_an_error_and_not_zeros(copied: Path) -> None:
    """zarr-developers/zarr-python#486, pydata/xarray#5197."""
    patient = lp.open_cohort(copied)[0]
    store = copied / "patients" / f"{patient.patient_id}.zarr"
    next(p for p in (store / "mri/image/c").rglob("*") if p.is_file()).unlink()
    with pytest.raises(DatasetError, match="not there"):
        patient.mri.image.compute()
    plain = xr.open_zarr(store, group="mri").image.values  # as README says: zeros, by Zarr's rules
    assert (plain == 0).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize("config", ["slices", "structures", "patches"])
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_shuffled_rows_go_to_every_rank_and_each_to_one(
    dataset: Path, config: str, ranks: int
) -> None:
    """huggingface/datasets#8669, #8079: ranks beyond the shards get nothing, or lose rows."""
    size = {"patch_size": (4, 8, 8)} if config == "patches" else {}

    def rows(rank: int | None) -> list[str]:
        stream = lp.load_dataset(str(dataset), config, split="base", streaming=True, **size)
        stream = stream.shuffle(seed=1)
        if rank is not None:
            stream = split_dataset_by_node(stream, rank, ranks)
        kinds = (str, int, float, type(None))
        return [str({k: v for k, v in r.items() if isinstance(v, kinds)}) for r in stream]

    shares = [rows(rank) for rank in range(ranks)]
    assert all(shares)
    assert sum(map(Counter, shares), Counter()) == Counter(rows(None))


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_every_rank_has_as_many_batches(dataset: Path, ranks: int) -> None:
    """huggingface/datasets#6719: one rank waits for ever for another that has no more."""
    cohort = lp.open_cohort(dataset)
    sampling = UniformSampling(per_patient=4)
    batches = []
    for rank in range(ranks):
        stream = lp.PatchStream(cohort, (4, 8, 8), sampling=sampling, rank=rank, ranks=ranks)
        loader = torch.utils.data.DataLoader(
            lp.torch_dataset(stream, batch_size=2), batch_size=None
        )
        batches.append(sum(1 for _ in loader))
    assert len(set(batches)) == 1


def test_a_patch_as_large_as_the_volume_is_the_volume(dataset: Path) -> None:
    """TorchIO-project/torchio#50: off by one where patch and volume are as long."""
    cohort = lp.open_cohort(dataset)
    patient = cohort[0]
    size = tuple(patient.mri.sizes[d] for d in "zyx")
    (whole,) = lp.PatchStream(cohort[[patient.patient_id]], size, sampling=UniformSampling(1))
    wanted = patient.mri.image.sel(modality=["T2w"]).values
    np.testing.assert_array_equal(whole["image"], wanted)
    one_less = (size[0] - 1, *size[1:])
    drawn = lp.PatchStream(cohort[[patient.patient_id]], one_less, sampling=UniformSampling(40))
    assert {int(sample["start"][0]) for sample in drawn} == {0, 1}


def test_large_patches_find_a_small_structure_at_the_edge(dataset: Path) -> None:
    """TorchIO-project/torchio#392, #787: no centre is far enough from the border."""
    cohort = lp.open_cohort(dataset)[:1]
    size = tuple(cohort[0].mri.sizes[d] - 2 for d in "zyx")
    sampling = BalancedSampling(("PTVT_427",), foreground=1.0, per_patient=10)
    stream = lp.PatchStream(cohort, size, structures=("PTVT_427",), sampling=sampling)
    assert [bool(sample["mask"].any()) for sample in stream] == [True] * 10


def test_an_epoch_has_as_many_patches_of_each_patient(dataset: Path) -> None:
    """TorchIO-project/torchio#979."""
    stream = lp.PatchStream(lp.open_cohort(dataset), (4, 8, 8), sampling=UniformSampling(5))
    assert set(Counter(sample["patient_id"] for sample in stream).values()) == {5}


def test_samples_and_rows_can_be_written_to(dataset: Path) -> None:
    """pytorch/pytorch#175395: tensors over memory that must not be written."""
    options = {"patch_size": (4, 8, 8), "structures": ("CTVT_427",)}
    sample = next(iter(lp.PatchStream(lp.open_cohort(dataset), dose=True, **options)))
    row = next(
        iter(lp.load_dataset(str(dataset), "patches", streaming=True, split="base", **options))
    )
    found = [v for v in sample.values() if isinstance(v, np.ndarray)]
    found += [np.asarray(row[name]) for name in ("image", "mask", "dose")]
    assert len(found) == 9
    for values in found:
        assert values.flags.writeable
        torch.as_tensor(values)  # warns otherwise, which is an error here


def test_epochs_leave_no_file_open(dataset: Path) -> None:
    """pytorch/pytorch#973, #11201: too many open files after some epochs."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("this system does not list open files")
    cohort = lp.open_cohort(dataset)
    stream = lp.PatchStream(cohort, (4, 8, 8), sampling=UniformSampling(2))

    def epoch() -> int:
        for _ in stream:
            pass
        for patient in lp.open_cohort(dataset):
            patient.mri.image.isel(z=0).compute()
        return len(list(descriptors.iterdir()))

    before = epoch()
    assert max(epoch() for _ in range(5)) <= before


def test_a_mean_of_whole_numbers_is_not_cut_off(dataset: Path) -> None:
    """nilearn/nilearn#2135: what is computed of integers is given as an integer."""
    whole = lp.open_cohort(dataset)[0].mri.image.sel(modality="T2w").round().astype("int16")
    coarse = whole.lp.resample(7.0)
    assert coarse.dtype == np.float32
    assert (coarse.values != np.rint(coarse.values)).any()
