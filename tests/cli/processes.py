"""Commands as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def start(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """Start a command as a process of its own, with pipes for its output."""
    command = [sys.executable, "-m", "lundprobe_zarr", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
