"""Keep a tiny dataset of the present schema version, which every later version has to read.

Writes `tests/data/schema-<version>.tar.xz`: a whole base patient that lacks a structure and a whole
extended one, of a few voxels each, without the converter's notes. One that is there is left as it
is: what was released is not rewritten. `--replace` writes it anew, for a version not yet released.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import tempfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_ROOT), str(_ROOT / "tests" / "conversion")]

from trees import NEW, OLD, convert_tree, edit, write_patient, write_side_files  # noqa: E402

from lundprobe_zarr.conversion.tables.publish import finalise  # noqa: E402
from lundprobe_zarr.schema.layout import SCHEMA_VERSION  # noqa: E402

#: Where a header's description begins, and what says there that no voxel is a patient's.
_DESCRIP, _SYNTHETIC = 148, b"SYNTHETIC test data"


def _describe(data: bytes) -> bytes:
    return data[:_DESCRIP] + _SYNTHETIC + data[_DESCRIP + len(_SYNTHETIC) :]


def write_dataset(folder: Path) -> Path:
    """Write the source tree and its conversion below `folder`; returns the dataset."""
    source, dataset = folder / "source", folder / "dataset"
    write_patient(source, OLD)
    write_patient(source, NEW, part="extended")
    (source / "basePart" / OLD / "MR_StorT2" / "mask_PenileBulb.nii.gz").unlink()
    for part, patient in (("base", OLD), ("extended", NEW)):
        write_side_files(source, part, (patient,))
    for file in source.rglob("*.nii.gz"):
        edit(file, _describe)
    failed = [r.error for r in convert_tree(source, dataset).values() if r.error is not None]
    if failed:
        raise RuntimeError("\n".join(failed))
    finalise(dataset)
    return dataset


def main() -> int:
    """Write the archive, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replace", action="store_true", help="of a version not yet released")
    replace = parser.parse_args().replace
    archive = _ROOT / "tests" / "data" / f"schema-{SCHEMA_VERSION}.tar.xz"
    if archive.exists() and not replace:
        print(f"{archive} is there already; it is what a released version wrote: left as it is")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(Path(folder))
        with tarfile.open(archive, "w:xz", preset=9) as tar:
            for file in sorted(dataset.rglob("*")):
                name = file.relative_to(dataset).as_posix()
                if file.is_file() and not name.startswith("."):
                    tar.add(file, name, filter=_anonymous)
    print(f"{archive.stat().st_size} bytes in {archive}")
    return 0


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """An entry without owner and time, which are the machine's."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    sys.exit(main())
