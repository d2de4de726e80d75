"""What every results file says of where and how its figures were made."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("lundprobe-zarr", "zarr", "numcodecs", "numpy", "zlib-ng", "nibabel", "dask", "xarray")


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system of this machine."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.system() + " " + platform.machine(),
        "python": platform.python_version(),
    }


def write_results(name: str, figures: dict[str, Any], part: str = "") -> Path:
    """Write figures of `benchmarks.<name>` to `results/<name><part>.json`; returns the file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}{part}.json"
    # Where someone keeps their data is nobody else's business.
    arguments = ["FOLDER" if Path(a).is_absolute() else a for a in sys.argv[1:]]
    contents = {
        "command": " ".join(["python", "-m", f"benchmarks.{name}", *arguments]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": {p: version(p) for p in _PACKAGES},
        "figures": figures,
    }
    path.write_text(json.dumps(contents, indent=2) + "\n")
    return path
