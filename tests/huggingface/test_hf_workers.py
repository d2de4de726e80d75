"""PyTorch's DataLoader with workers of every kind, over a disk and a server."""

from __future__ import annotations

import pytest

import lundprobe_zarr as lp

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
        stream(url, options), batch_size=4, num_workers=2, multiprocessing_context="spawn"
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
        loaded.with_format("torch"), batch_size=8, num_workers=2, multiprocessing_context="spawn"
    )
    alone = DataLoader(loaded.with_format("torch"), batch_size=8)
    for one, other in zip(loader, alone, strict=True):
        assert torch.equal(one["image"], other["image"])
