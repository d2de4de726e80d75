"""Tables whose bytes Python holds are read by threads of ours alone, gone once they are read.

Arrow's may still hold the bytes when the process ends, and then abort it: see `store/dataset.py`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_READ_ALL = """
import sys
import psutil
from lundprobe_zarr.conversion.tables.fragments import load_fragments
from lundprobe_zarr.dataset.opening import open_manifest, read_table, table_rows
from lundprobe_zarr.stores.opening import open_store
from lundprobe_zarr.storage.location import Location

place = Location(sys.argv[1])
manifest = open_manifest(place)
before = psutil.Process().num_threads()
tables = [read_table(place, manifest, name) for name in manifest.tables]
table_rows(place, manifest.tables["slices"])
patients = read_table(place, manifest, "patients").to_pylist()
load_fragments(place, [open_store(place, p["patient_id"]) for p in patients])
print(psutil.Process().num_threads() - before)
"""


def test_no_thread_is_left_of_reading_tables(dataset: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _READ_ALL, str(dataset)], capture_output=True, text=True, check=False
    )
    assert (ran.stdout.strip(), ran.returncode) == ("0", 0), ran.stderr
