# %% [markdown]
# # Convert on a cluster
#
# Patients are converted each by itself, so more cores take less time. Two ways: a dask scheduler whose workers take
# patients as they are ready, or shares of a job array, which know nothing of each other. Here both run on this machine;
# [the guide](../cluster.md) has the job scripts for SLURM and Kubernetes.

# %%
# !lundprobe-zarr --quiet phantom lund-probe --patients 10 --extended 2 --workers 2

# %% [markdown]
# ## First, look
#
# A dry run says what is there and which patients cannot be converted. It reads no voxels and writes nothing.

# %%
# !lundprobe-zarr convert lund-probe by-dask --dry-run

# %% [markdown]
# ## A scheduler with workers
#
# On a cluster each of these commands is a job. All of them must see the source under one path, and the dataset under one
# path or URL.

# %%
import socket
import subprocess
import sys

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
address = f"tcp://127.0.0.1:{port}"


def start(*command):
    """Start a dask process in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_" + command[0], *command[1:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


scheduler = start("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
workers = [start("worker", address, "--nthreads", "1", "--no-dashboard") for _ in range(2)]

# %% [markdown]
# The conversion hands out patients and hears of them. Then one worker dies, as nodes do.

# %%
converting = subprocess.Popen(
    ["lundprobe-zarr", "--quiet", "convert", "lund-probe", "by-dask", "--scheduler", address]
)
workers[0].kill()
assert converting.wait() == 0

# %% [markdown]
# The patient whom it had went to the other worker. Every byte is checked here:

# %%
# !lundprobe-zarr validate by-dask --deep

# %%
for process in (*workers, scheduler):
    process.kill()
    process.wait()

# %% [markdown]
# ## Shares of a job array
#
# Each task of the array converts its share, into the same place. `finalise` writes the tables at the end.

# %%
# !lundprobe-zarr convert lund-probe by-shares --part 1/2 --workers 2
# !lundprobe-zarr convert lund-probe by-shares --part 2/2 --workers 2

# %%
# !lundprobe-zarr finalise by-shares

# %% [markdown]
# Both ways give the same data: the content hash is of what the data are, whoever wrote them.

# %%
import lundprobe_zarr as lp

one, other = (lp.open_cohort(name) for name in ("by-dask", "by-shares"))
assert one.manifest.content.sha256 == other.manifest.content.sha256
one.manifest.content.sha256

# %% [markdown]
# ## Killed, and continued
#
# A conversion that is killed at any instant leaves nothing that could be mistaken for a finished patient. The same command
# continues: patients who were finished are skipped.

# %%
import time

killed = subprocess.Popen(
    ["lundprobe-zarr", "--quiet", "convert", "lund-probe", "killed", "--workers", "2"]
)
time.sleep(6)
killed.kill()
killed.wait()

# %%
# !lundprobe-zarr convert lund-probe killed --workers 2

# %% [markdown]
# What a full copy costs is [measured](../cluster.md), and [reliability](../reliability.md) has the tests that kill it
# at random instants.
