"""Start the service for a moment, and read through it as a client does: the end of `demo`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from lundprobe_zarr.cli.console import duration, say
from lundprobe_zarr.errors import DatasetError

NAME = "phantom/standard"
#: What a client does. It knows nothing of this package, only where the service is. It takes every
#: row: pyarrow's threads, if they still read ahead when Python ends, may abort it.
_CLIENT = f"""
from datasets import load_dataset
row, *others = load_dataset("{NAME}", "patients", split="base", streaming=True)
print(row["patient_id"], row["protocol"], row["mri_shape"])
"""
#: The client asks the service, also where a user works offline otherwise, and nobody else: no
#: counter of downloads, no telemetry.
_SILENT = {
    "HF_HUB_OFFLINE": "0",
    "HF_DATASETS_OFFLINE": "0",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
_SECONDS = 120


def try_service(dataset: Path, folder: Path) -> None:
    """Serve a dataset on a free port, stream its first row with `datasets`, and end the service.

    `folder` gets the service's and the client's own files.
    """
    from lundprobe_zarr.service.access.callers import new_token, token_sha256
    from lundprobe_zarr.service.run import in_background, listen
    from lundprobe_zarr.service.settings import Settings

    token, listening = new_token(), listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    settings = Settings(
        datasets={NAME: str(dataset)},
        state=str(folder / "service"),
        public_url=url,
        token_sha256=token_sha256(token),
        audit=str(folder / "audit.jsonl"),
    )
    folder.mkdir(exist_ok=True)
    with in_background(settings, listening):
        began = time.perf_counter()
        answer = _client(url, token, folder / "client")
    say(f"   {answer}")
    say(f"   read by datasets in another process, in {duration(time.perf_counter() - began)}.")
    say(f"   {folder / 'audit.jsonl'} has a line for each request.")


def _client(url: str, token: str, home: Path) -> str:
    ours = {"HF_ENDPOINT": url, "HF_TOKEN": token, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", _CLIENT],
        env=os.environ | _SILENT | ours,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode:
        message = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise DatasetError(f"the client ended with {done.returncode}: {message}", where=url)
    return done.stdout.strip()
