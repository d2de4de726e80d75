"""PyTorch's DataLoader with workers of every kind, over a disk and a server."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import UsageError

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

PATCHES = {"patch_size": (4, 10, 10), "modalities": ["T2w"], "structures": ["CTVT_427", "Rectum"]}
COLUMNS = ["patient_id", "start", "image", "mask", "present"]


def stream(place, options=None):
    return lp.load_dataset(
        place, "patches", split="base+extended", streaming=True, storage_options=options,
        columns=COLUMNS, **PATCHES,
    ).with_format("torch")  # fmt: skip


def sums(batches):
    return sorted(
        (patient, tuple(start.tolist()), float(image.sum()), int(mask.sum()))
        for b in batches
        for patient, start, image, mask in zip(
            b["patient_id"], b["start"], b["image"], b["mask"], strict=True
        )
    )


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_workers_read_everything_once(dataset, context):
    alone = sums(DataLoader(stream(dataset), batch_size=4))
    loader = DataLoader(
        stream(dataset), batch_size=4, num_workers=2, multiprocessing_context=context
    )
    batches = list(loader)
    assert sums(batches) == alone
    assert len(alone) == 4 * 8
    assert batches[0]["image"].shape == (4, 1, 4, 10, 10)
    assert batches[0]["mask"].dtype == torch.bool


def test_workers_read_from_a_bucket_with_its_credentials(bucket):
    url, options, _ = bucket
    alone = sums(DataLoader(stream(url, options), batch_size=4))  # the parent has read, too
    loader = DataLoader(
        stream(url, options), batch_size=4, num_workers=1, multiprocessing_context="spawn"
    )
    assert sums(loader) == alone


def test_forked_workers_of_a_parent_that_has_read_from_a_server(web):
    url, _ = web
    loaded = stream(url)
    alone = sums(DataLoader(loaded, batch_size=4))
    loader = DataLoader(loaded, batch_size=4, num_workers=2, multiprocessing_context="fork")
    assert sums(loader) == alone


def test_persistent_workers_follow_the_epoch(dataset):
    loaded = stream(dataset)
    loader = DataLoader(
        loaded, batch_size=4, num_workers=1, multiprocessing_context="fork",
        persistent_workers=True,
    )  # fmt: skip
    epochs = []
    for epoch in (0, 1):
        loaded.set_epoch(epoch)
        epochs.append(sums(loader))
    assert epochs[0] != epochs[1]
    loaded.set_epoch(1)
    assert sums(DataLoader(loaded, batch_size=4)) == epochs[1]


def test_in_memory_rows_in_workers(dataset):
    loaded = lp.load_dataset(dataset, "slices", split="base", columns=["image", "z_index"])
    loader = DataLoader(
        loaded.with_format("torch"), batch_size=8, num_workers=1, multiprocessing_context="spawn"
    )
    alone = DataLoader(loaded.with_format("torch"), batch_size=8)
    for one, other in zip(loader, alone, strict=True):
        assert torch.equal(one["image"], other["image"])


@pytest.mark.parametrize("config", ["volumes", "slices", "patches"])
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("batch_size", [2, None])
def test_handles_are_not_made_batches_of_and_the_error_says_what_is(
    dataset, config, streaming, batch_size
):
    options = PATCHES if config == "patches" else {}
    loaded = lp.load_dataset(dataset, config, split="base", streaming=streaming, **options)
    with pytest.raises(UsageError, match=r"expected arrays: use `dataset\.with_format"):
        next(iter(DataLoader(loaded.select_columns(["image", "mask"]), batch_size=batch_size)))


def test_a_collate_function_of_one_s_own_gets_handles(dataset):
    def stacked(rows):
        return torch.stack([torch.as_tensor(row["image"]) for row in rows])

    loaded = lp.load_dataset(dataset, "patches", split="base", streaming=True, **PATCHES)
    batch = next(iter(DataLoader(loaded, batch_size=3, collate_fn=stacked)))
    assert batch.shape == (3, 1, 4, 10, 10)


@pytest.mark.parametrize("order", ["import torch, lundprobe_zarr", "import lundprobe_zarr, torch"])
def test_torch_may_be_imported_before_or_after(order):
    code = (
        f"{order}\n"
        "import torch.utils.data\n"
        "from lundprobe_zarr.huggingface.batches import Handle\n"
        "try: torch.utils.data.default_collate([Handle()])\n"
        "except lundprobe_zarr.LundProbeError as error: print('with_format' in str(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_workers_tell_of_what_they_skip(copied):
    patient_id = lp.open_cohort(copied)[1].patient_id
    (copied / f"patients/{patient_id}.zarr/mri/image/c/0/0/0/0").unlink()
    code = (  # in a process of its own: pytest keeps warnings for itself
        "import lundprobe_zarr as lp, torch.utils.data as data\n"
        f"rows = lp.load_dataset({str(copied)!r}, 'volumes', split='base', streaming=True,\n"
        "    on_error='skip', columns=['image']).with_format('torch')\n"
        "loader = data.DataLoader(rows, batch_size=None, num_workers=2)\n"
        "print(sum(1 for _ in loader))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"
    assert f"rows of patient {patient_id} are left out" in done.stderr
    assert f"1 row was left out, of {patient_id} (1)" in done.stderr
