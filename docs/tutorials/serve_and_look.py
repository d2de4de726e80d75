# %% [markdown]
# # Serve and look
#
# Give a dataset to a group: who holds a token reads tables and voxels with the tools of the Hugging Face Hub, asks by SQL,
# and looks at patients in a browser.

# %%
# !lundprobe-zarr --quiet phantom lund-probe --patients 4 --extended 2 --workers 2
# !lundprobe-zarr --quiet convert lund-probe my-dataset --workers 2 --measure

# %% [markdown]
# ## Who may come in
#
# A token for a group, which may have tables and voxels of one dataset for thirty days. It is shown once; the file keeps a
# hash.

# %%
import json
import subprocess

made = subprocess.run(
    ["lundprobe-zarr", "token", "add", "group-a", "--access", "tokens.json", "--expires", "30d"],
    capture_output=True,
    text=True,
    check=True,
)
token = next(word for word in made.stdout.split() if word.startswith("lp_"))
print(f"{made.stdout}{made.stderr}".replace(token, "lp_…"))

# %% [markdown]
# ## Start it
#
# On a server this is a system service behind nginx with TLS ([running it](../service.md)). Here it is a process beside.

# %%
import os
import socket
import time
import urllib.error
import urllib.request

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
url = f"http://127.0.0.1:{port}"
service = subprocess.Popen(
    ["lundprobe-zarr", "serve", "my-dataset", "--name", "lund-probe/standard"]
    + ["--port", str(port), "--access", "tokens.json", "--audit", "audit.jsonl"],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)
for _ in range(200):
    try:
        urllib.request.urlopen(f"{url}/healthz")
        break
    except OSError:
        time.sleep(0.1)

# %% [markdown]
# ## Clients
#
# Clients need two variables, and nothing else is special. `datasets` reads the tables with no code of ours:

# %%
os.environ |= {"HF_ENDPOINT": url, "HF_TOKEN": token}

from datasets import load_dataset

patients = load_dataset("lund-probe/standard", "patients", split="base", streaming=True)
[(row["patient_id"], row["dose_max_gy"]) for row in patients]

# %% [markdown]
# This package reads voxels, only those asked for:

# %%
import lundprobe_zarr as lp

cohort = lp.open_cohort("hf://datasets/lund-probe/standard")
patient = cohort.where("part = 'extended'")[0]
near = patient.mri.lp.crop("CTVT_427", patient, margin_mm=20)
near.dose.mean().compute()

# %% [markdown]
# Any language can ask by SQL over HTTP:

# %%
request = urllib.request.Request(
    f"{url}/api/datasets/lund-probe/standard/sql?format=csv",
    data=json.dumps(
        {"sql": "SELECT structure, round(avg(volume_cc), 1) AS cc FROM clinical GROUP BY ALL"}
    ).encode(),
    headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
)
print(urllib.request.urlopen(request).read().decode())

# %% [markdown]
# ## Look
#
# The page is at the service's address; it asks for the token once. For yourself alone, `lundprobe-zarr view my-dataset`
# opens it. It shows cohorts by SQL and facets, and patients in three linked views with dose, outlines, observers and
# uncertainty; [the guide](../page.md) is a tour of five minutes.
#
# ![Outlines of four observers in two steps, over the uncertainty](../images/page-observers.webp)
#
# In a notebook, `cohort.view()` and `patient.view()` show the page in the cell.
#
# ## Who read what
#
# The audit log has a line a request, written before the answer ends.

# %%
# !lundprobe-zarr audit audit.jsonl

# %% [markdown]
# A token that is revoked is refused within a second:

# %%
# !lundprobe-zarr token revoke group-a --access tokens.json
time.sleep(1.5)
try:
    urllib.request.urlopen(request)
except urllib.error.HTTPError as error:
    print(error.code, error.reason)

# %%
service.terminate()
_ = service.wait(30)
