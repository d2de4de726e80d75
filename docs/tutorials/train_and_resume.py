# %% [markdown]
# # Train and resume from a bucket
#
# A small 3-D U-Net that learns to draw the target, the rectum and the bladder. The data are in an S3 bucket and stay there;
# the training is killed, and resumes at the very next patch.
#
# The bucket is a local server here. Yours takes another URL, and mostly no options: credentials are found where the
# provider's own tools look for them.

# %%
import json
import os
import socket
import subprocess
import sys
import time

import s3fs

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
server = subprocess.Popen(
    [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)
for _ in range(300):
    with socket.socket() as there:
        if there.connect_ex(("127.0.0.1", port)) == 0:
            break
    time.sleep(0.1)
options = {"key": "a", "secret": "b", "endpoint_url": f"http://127.0.0.1:{port}"}
os.environ["LUNDPROBE_STORAGE_OPTIONS"] = json.dumps(options)  # for the command line
s3fs.S3FileSystem(**options).mkdir("training")

# %% [markdown]
# ## Straight into the bucket
#
# Each patient is written and verified in a scratch folder, then sent. It resumes as on a disk.

# %%
# !lundprobe-zarr --quiet phantom lund-probe --patients 10 --extended 2 --workers 2
# !lundprobe-zarr --quiet convert lund-probe s3://training/lund-probe --workers 2
# !lundprobe-zarr info s3://training/lund-probe

# %% [markdown]
# ## Patches
#
# Patients are chosen with SQL and split; a stream reads patches of the training set, two thirds of them around a voxel of a
# structure. Nothing is downloaded but the chunks that these patches touch.

# %%
import torch
from torch import nn

import lundprobe_zarr as lp

STRUCTURES = ("CTVT_427", "Rectum", "Bladder")
cohort = lp.open_cohort("s3://training/lund-probe", options)
splits = cohort.split(test=0.2, val=0.2, stratify=("protocol",), seed=1)


def make_loader():
    """A loader over the training set, from its beginning."""
    stream = lp.PatchStream(
        splits.train,
        patch_size=(8, 32, 32),  # voxels z, y, x
        structures=STRUCTURES,
        sampling=lp.BalancedSampling(STRUCTURES, foreground=0.67, per_patient=8),
        cache="cache",  # a second epoch reads from the disk
        seed=1,
    )
    return lp.torch_dataset(stream, batch_size=4, drop_last=True).loader()


batch = next(iter(make_loader()))
{name: tuple(value.shape) for name, value in batch.items() if hasattr(value, "shape")}

# %% [markdown]
# ## A network
#
# `present` says which structures a patient has; an organ that is lacking teaches nothing.


# %%
def block(channels_in, channels_out):
    """A convolution that keeps the size."""
    return nn.Sequential(
        nn.Conv3d(channels_in, channels_out, 3, padding=1),
        nn.InstanceNorm3d(channels_out, affine=True),
        nn.LeakyReLU(),
    )


class UNet(nn.Module):
    """Two levels: enough for a phantom."""

    def __init__(self, width=8):
        super().__init__()
        self.down, self.bottom = block(1, width), block(width, 2 * width)
        self.up = nn.Upsample(scale_factor=2)
        self.out = nn.Sequential(block(3 * width, width), nn.Conv3d(width, len(STRUCTURES), 1))

    def forward(self, image):
        fine = self.down(image)
        coarse = self.up(self.bottom(nn.functional.max_pool3d(fine, 2)))
        return self.out(torch.cat([fine, coarse], dim=1))


def normalised(image):
    """Zero mean and unit spread, a patch at a time."""
    image = image.float()
    spread = image.std((2, 3, 4), keepdim=True)
    return (image - image.mean((2, 3, 4), keepdim=True)) / (spread + 1)


def loss_of(model, batch):
    """Soft Dice and cross-entropy of the structures that are present."""
    scores, truth = model(normalised(batch["image"])), batch["mask"].float()
    present = batch["present"].float()
    entropy = nn.functional.binary_cross_entropy_with_logits(scores, truth, reduction="none")
    found = torch.sigmoid(scores)
    both, total = (found * truth).sum((2, 3, 4)), (found + truth).sum((2, 3, 4))
    dice = (2 * both + 1) / (total + 1)
    return ((entropy.mean((2, 3, 4)) + 1 - dice) * present).sum() / present.sum().clamp(min=1)


# %% [markdown]
# ## Train, be killed, resume
#
# `loader.state_dict()` counts the batches that were used, however many were read ahead. It goes into the checkpoint with
# the model and the optimiser.


# %%
def train(steps, checkpoint):
    """Train to a number of steps, from the checkpoint if it is there; return the losses."""
    torch.manual_seed(0)
    loader, model, step, losses = make_loader(), UNet(), 0, []
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if os.path.exists(checkpoint):
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        loader.load_state_dict(saved["loader"])
        step = saved["step"]
    while step < steps:
        for batch in loader:
            loss = loss_of(model, batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            step += 1
            if step == steps:
                break
    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
    torch.save(state | {"loader": loader.state_dict(), "step": step}, checkpoint)
    return model, losses


model, unbroken = train(120, "unbroken.pt")
first_half = train(60, "killed.pt")[1]
resumed = train(120, "killed.pt")[1]  # all from the checkpoint, with a new loader and model
assert first_half + resumed == unbroken, "the same patches in the same order, to the last bit"
unbroken[0], unbroken[-1]

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.plot(unbroken, label="never stopped", linewidth=4, alpha=0.35)
axes.plot(range(60), first_half, label="until it was killed")
axes.plot(range(60, 120), resumed, label="resumed")
axes.set(xlabel="step", ylabel="loss")
_ = axes.legend()

# %% [markdown]
# ## Predict a patient
#
# A grid of overlapping patches covers the volume, and the aggregator blends the predictions, as a stream of them arrives.

# %%
import numpy as np

held_out = splits.test[:1]
grid = lp.PatchStream(
    held_out, (8, 32, 32), pad="edge", sampling=lp.GridSampling(overlap=(2, 8, 8)), shuffle=False
)
collected = lp.Aggregator(grid.plan, blend="gaussian")
model.eval()
with torch.no_grad():
    for sample in grid:
        image = torch.from_numpy(sample["image"][None])
        collected.add(sample, torch.sigmoid(model(normalised(image)))[0].numpy())
patient = held_out[0]
predicted = collected.finish(patient.patient_id)

# %% [markdown]
# The prediction knows where its voxels are, so it is compared with the clinical mask, and saved as NIfTI.

# %%
for number, structure in enumerate(STRUCTURES):
    drawn = patient.clinical.mask.sel(structure=structure).values
    found = predicted.values[number] > 0.5
    dice = 2 * np.logical_and(drawn, found).sum() / (drawn.sum() + found.sum())
    print(f"{structure:10} Dice {dice:.2f}")
predicted.map(lambda v: v.argmax(axis=0).astype("uint8")).save("labels.nii.gz")

# %%
server.terminate()
_ = server.wait(30)

# %% [markdown]
# [The guide](../training.md) has resampling, augmentation that resumes, ranks and workers, and what it was measured to cost.
