"""Batches for PyTorch: the same with any number of workers, shared by ranks, resumable."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.patches import UniformSampling

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from lundprobe_zarr.stream.torch import collate, to_monai, to_torchio  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*use of fork:DeprecationWarning", "ignore:This DataLoader will create:UserWarning"
)
SIZE = (6, 12, 12)


def make(cohort, **changes) -> lp.PatchStream:
    arguments = {"structures": ("Rectum", "CTVT_427"), "dose": True, "seed": 4} | changes
    return lp.PatchStream(cohort, SIZE, **arguments)


def indices(batches: Iterable[dict]) -> list[list[int]]:
    return [b["index"].tolist() for b in batches]


def flat(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k]
        for k, v in one.items()
    )


def batches_of(cohort, size: int, **options) -> list[dict]:
    return list(lp.torch_dataset(make(cohort), size).loader(**options))


@pytest.mark.parametrize(
    ("workers", "context"), [(1, "fork"), (3, "fork"), (2, "spawn"), (2, "forkserver")]
)
def test_workers_give_the_same_batches(cohort, workers, context):
    expected = batches_of(cohort, 5)
    options = {"num_workers": workers, "multiprocessing_context": context}
    found = batches_of(cohort, 5, **options)
    assert indices(found) == [list(range(n, min(n + 5, 32))) for n in range(0, 32, 5)]
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_workers_forked_from_a_process_that_streams(cohort):
    """The parent is in the middle of an iteration with threads when the workers are forked."""
    stream = make(cohort, threads=3)
    iterator = iter(stream)
    next(iterator)
    found = batches_of(cohort, 4, num_workers=2, multiprocessing_context="fork")
    assert flat(indices(found)) == list(range(32))
    assert sum(1 for _ in iterator) == 31


def test_types_are_kept_and_labels_stay(cohort):
    batch = batches_of(cohort, 4)[0]
    sample = next(iter(make(cohort)))
    for name, value in sample.items():
        if isinstance(value, np.ndarray):
            assert batch[name].numpy().dtype == value.dtype
            assert batch[name].shape == (4, *value.shape)
            np.testing.assert_array_equal(batch[name][0].numpy(), value)
    assert batch["structure"] == ("Rectum", "CTVT_427")
    assert len(batch["patient_id"]) == 4
    assert batch["mask"].dtype == torch.bool


@pytest.mark.parametrize("workers", [0, 2])
def test_plain_loaders_batch_samples_themselves(cohort, workers):
    dataset = lp.torch_dataset(make(cohort))
    loader = DataLoader(
        dataset, batch_size=4, num_workers=workers, collate_fn=collate,
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip
    assert sorted(flat(indices(loader))) == list(range(32))
    assert len(dataset) == 32


@pytest.mark.parametrize("persistent", [False, True])
def test_epochs_follow_each_other_in_workers_too(cohort, persistent):
    expected = lp.torch_dataset(make(cohort), 8).loader()
    loader = lp.torch_dataset(make(cohort), 8).loader(
        num_workers=2, multiprocessing_context="fork", persistent_workers=persistent
    )
    for epoch in range(3):
        found = list(loader)
        assert {b["epoch"] for b in found} == {epoch}
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("taken", [0, 3, 4, 6])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_resumed_loader_goes_on_with_the_next_batch(cohort, taken, persistent):
    options = {"num_workers": 2, "multiprocessing_context": "fork"}
    unbroken = lp.torch_dataset(make(cohort), 8).loader()
    expected = [batch for _ in range(3) for batch in unbroken]
    loader = lp.torch_dataset(make(cohort), 8).loader(**options, persistent_workers=persistent)
    found: list[dict] = []
    while len(found) < taken:
        for batch in loader:
            found.append(batch)
            if len(found) == taken:
                break
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    resumed = lp.torch_dataset(make(cohort), 8).loader(**options, persistent_workers=persistent)
    resumed.load_state_dict(state)
    while len(found) < 12:
        found += list(resumed)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_global_batches(cohort, ranks):
    by_rank = [
        indices(lp.torch_dataset(make(cohort, rank=r, ranks=ranks), 4, drop_last=True))
        for r in range(ranks)
    ]
    assert len({len(b) for b in by_rank}) == 1
    for step, together in enumerate(zip(*by_rank, strict=True)):
        first = step * 4 * ranks
        assert sorted(flat(together)) == list(range(first, first + 4 * ranks))
    everything = [
        flat(indices(lp.torch_dataset(make(cohort, rank=r, ranks=ranks), 4))) for r in range(ranks)
    ]
    assert sorted(flat(everything)) == list(range(32))


def test_ranks_of_torch_distributed(dataset: Path, tmp_path):
    """Two processes of a gloo group: nobody is told its rank but by torch."""
    program = """
import sys, torch.distributed as dist, lundprobe_zarr as lp
url, store, rank = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
stream = lp.PatchStream(lp.open_cohort(url), (6, 12, 12), seed=4)
loader = lp.torch_dataset(stream, 4, drop_last=True).loader()
print([i for batch in loader for i in batch["index"].tolist()], len(loader))
dist.barrier()
dist.destroy_process_group()
"""
    command = [sys.executable, "-W", "ignore", "-c", program, str(dataset), str(tmp_path / "s")]
    running = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert [out.decode() for out, _ in said] == [
        f"{list(range(rank, 32, 2))} 4\n" for rank in range(2)
    ]


def test_a_transform_sees_every_sample(cohort):
    def norm(sample):
        return {"image": sample["image"] / 2, "index": sample["index"]}

    batches = list(lp.torch_dataset(make(cohort), 8, transform=norm))
    assert set(batches[0]) == {"image", "index", "epoch", "position"}
    plain = next(iter(lp.torch_dataset(make(cohort), 8)))
    torch.testing.assert_close(batches[0]["image"], plain["image"] / 2)


def test_random_observers_keep_their_names_in_a_batch(cohort):
    extended = cohort.where("part = 'extended'")
    stream = make(extended, observers="random", sampling=UniformSampling(16))
    batch = next(iter(lp.torch_dataset(stream, 16)))
    assert len(batch["observer"]) == 16
    assert {type(o) for o in batch["observer"]} == {tuple}


def test_batches_of_unlike_arrays_are_refused(cohort):
    stream = lp.PatchStream(cohort, patch_size_mm=(20, 30, 30))
    with pytest.raises(UsageError, match=r"'image' differs within a batch.*spacing_mm"):
        list(lp.torch_dataset(stream, 32))
    with pytest.raises(UsageError, match="batch_size=0"):
        lp.torch_dataset(make(cohort), 0)
    with pytest.raises(UsageError, match="single samples"):
        lp.torch_dataset(make(cohort)).loader()


def test_pinned_batches(cohort):
    if not torch.cuda.is_available():
        pytest.skip("there is no device to pin memory for")
    batch = batches_of(cohort, 4, pin_memory=True)[0]
    assert batch["image"].is_pinned()


def test_monai_takes_samples(cohort):
    transforms = pytest.importorskip("monai.transforms")
    sample = next(iter(make(cohort)))
    found = to_monai(sample)
    assert found["image"].shape == (1, 12, 12, 6)
    np.testing.assert_array_equal(found["image"][0, 3, 5, 2], sample["image"][0, 2, 5, 3])
    np.testing.assert_allclose(found["image"].affine.numpy(), sample["affine"])
    turned = transforms.Orientationd(("image", "mask"), "RAS", labels=None)(found)
    assert turned["mask"].shape == (2, 12, 12, 6)
    assert (np.diag(turned["image"].affine.numpy())[:3] > 0).all()


def test_torchio_takes_samples(cohort):
    torchio = pytest.importorskip("torchio")
    sample = next(iter(make(cohort)))
    subject = to_torchio(sample)
    assert isinstance(subject["mask"], torchio.LabelMap)
    assert subject["dose"].shape == (1, 12, 12, 6)
    np.testing.assert_allclose(subject["image"].affine, sample["affine"])
    assert subject["patient_id"] == sample["patient_id"]


@pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning",  # of torch, which it uses
    "ignore:Your `IterableDataset` has `__len__` defined:UserWarning",
    "ignore:.*does not have many workers:UserWarning",
)
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("plain", [False, True])
def test_lightning_trains_on_a_loader(cohort, tmp_path, plain, workers):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv3d(1, 2, 1)
            self.seen = []

        def predict_step(self, batch, _):
            self.seen.append((batch["epoch"], batch["position"]))
            return batch["position"]

        def training_step(self, batch, _):
            self.seen.append((batch["epoch"], batch["position"]))
            logits = self.layer(batch["image"].float())
            return torch.nn.functional.mse_loss(logits, batch["mask"].float())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-9)

    module = Module()
    dataset = lp.torch_dataset(make(cohort), 4, drop_last=True)
    options = {"num_workers": workers}
    loader = DataLoader(dataset, batch_size=None, **options) if plain else dataset.loader(**options)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, loader)
    trainer.predict(module, loader)
    assert module.seen == [(e, n) for e in range(3) for n in range(4, 33, 4)]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_who_counts_batches_gets_every_epoch(cohort, drop_last, workers):
    dataset = lp.torch_dataset(make(cohort), 5, drop_last=drop_last)
    loader = dataset.loader(num_workers=workers)
    for epoch in range(3):
        found = [batch["epoch"] for batch in islice(loader, len(loader))]
        assert found == [epoch] * len(loader)


def test_torchio_normalises_images_and_leaves_the_dose_alone(cohort):
    torchio = pytest.importorskip("torchio")
    stream = lp.PatchStream(
        cohort.where("part = 'extended'"), (4, 8, 8), structures=("Rectum",), dose=True,
        uncertainty=True,
    )  # fmt: skip
    sample = next(iter(stream))
    subject = lp.to_torchio(sample)
    assert isinstance(subject["image"], torchio.ScalarImage)
    assert isinstance(subject["mask"], torchio.LabelMap)
    for transform in (torchio.ZNormalization(), torchio.RescaleIntensity((0, 1))):
        after = transform(subject)
        assert not torch.equal(after["image"].data, subject["image"].data)
        for name in ("dose", "uncertainty", "mask"):
            assert torch.equal(after[name].data, subject[name].data), name
    flipped = torchio.Flip(axes=(0,))(subject)
    assert torch.equal(flipped["dose"].data, subject["dose"].data.flip(1))


def test_a_batch_has_the_seeds_of_its_samples(cohort):
    stream = lp.PatchStream(cohort, (4, 8, 8), seed=3)
    seeds = [s["seed"] for s in stream]
    stream.seek(0)
    batches = list(lp.torch_dataset(stream, batch_size=4))
    assert torch.cat([b["seed"] for b in batches]).tolist() == seeds
