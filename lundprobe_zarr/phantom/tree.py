"""Write a whole source tree: choose its patients and write them in processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.phantom.grids import SIZES, Size
from lundprobe_zarr.phantom.nifti import DESCRIPTION
from lundprobe_zarr.phantom.patient import Case, Record, write_patient
from lundprobe_zarr.phantom.sidefiles import write_notice, write_side_files
from lundprobe_zarr.vocabulary.names import PARTS

__all__ = ["DESCRIPTION", "Size", "plan_cases", "write_phantom"]

#: Probabilities of rare irregularities, about as in the dataset: (base, extended).
_LACKS_BULB = (29 / 432, 1 / 35)
_LACKS_GENITALIA = (24 / 432, 0.0)
_BLADDER_GAP = (0.03, 0.03)
_TWO_FIDUCIALS = (0.03, 0.03)


def write_phantom(
    dest: str | os.PathLike[str],
    *,
    patients: int = 3,
    extended: int = 1,
    size: Size = "tiny",
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write a synthetic LUND-PROBE source tree.

    Grids are parallel to the patient's axes; affines are in RAS, mm. Images are in arbitrary units
    (T2w, int16), HU (sCT, float32 or float64; registered, float64) and Gy (dose, float32). One of
    the first three base patients lacks the penile bulb, one lacks the genitalia, and one has a gap
    in the bladder. One of the first four has only two fiducials.

    Parameters
    ----------
    dest : str or path
        The source root. It must be empty or not exist.
    patients, extended : int
        Number of base patients, and of extended patients (all newAcq).
    size : {'tiny', 'small', 'full'}
        MRI matrix (x × y × z): about 56×48×14, 256×240×32 or 1024×1024×88.
    seed : int
        A patient depends only on `seed`, `size` and its position in its part.
    workers : int
        Number of processes. The tree does not depend on it.
    progress : callable, optional
        Called with a message after each patient.

    Returns
    -------
    Path
        The source root.

    Raises
    ------
    UsageError
        If a number is out of range, `size` is unknown, or `dest` is not empty.
    """
    root = Path(dest)
    _check(root, patients, extended, size, seed, workers)
    root.mkdir(parents=True, exist_ok=True)
    arguments = f"patients={patients}, extended={extended}, size={size!r}, seed={seed}"
    write_notice(root, arguments)
    cases = plan_cases(seed, size, patients, extended)
    records: dict[str, Record] = {}
    for done, record in enumerate(_run(cases, root, workers), start=1):
        records[record.patient_id] = record
        if progress is not None:
            progress(f"{record.patient_id} written ({done} of {len(cases)})")
    for part in PARTS:
        of_part = [records[c.patient_id] for c in cases if c.part == part]
        if of_part:
            write_side_files(root, part, of_part)
    return root


def _check(root: Path, patients: int, extended: int, size: str, seed: int, workers: int) -> None:
    for name, value, least in (
        ("patients", patients, 0), ("extended", extended, 0), ("seed", seed, 0),
        ("workers", workers, 1),
    ):  # fmt: skip
        if value < least:
            raise UsageError(f"{name}={value} is too small", remedy=f"give {least} or more")
    if patients == extended == 0:
        raise UsageError(
            "patients=0 and extended=0 leave nothing to write", remedy="give 1 or more of one"
        )
    if size not in SIZES:
        raise UsageError(f"size={size!r} is unknown", remedy=f"give one of {', '.join(SIZES)}")
    if root.exists() and not root.is_dir():
        raise UsageError(
            f"{root} is a file", remedy="give a folder that is empty or does not exist"
        )
    if root.is_dir() and any(root.iterdir()):
        raise UsageError(
            f"{root} is not empty", remedy="give an empty folder, or remove what is in it"
        )


def plan_cases(seed: int, size: Size, patients: int, extended: int) -> list[Case]:
    """Return the specification of each patient. It does not depend on the number of patients."""
    base = [_base_case(seed, size, i) for i in range(patients)]
    return base + [_case(seed, size, "extended", i) for i in range(extended)]


def _case(seed: int, size: Size, part: str, index: int) -> Case:
    which = PARTS.index(part)
    bulb, genitalia, gap, two = Case(seed, part, index, size).rng("oddities").random(4)
    lacks = [("PenileBulb", bulb < _LACKS_BULB[which])]
    lacks += [("Genitalia", genitalia < _LACKS_GENITALIA[which])]
    return Case(
        seed, part, index, size,
        lacks=tuple(name for name, absent in lacks if absent),
        bladder_gap=bool(gap < _BLADDER_GAP[which]),
        fiducials=2 if two < _TWO_FIDUCIALS[which] else 3,
    )  # fmt: skip


def _base_case(seed: int, size: Size, index: int) -> Case:
    """Return a base patient; the first ones have the irregularities that every tree must have."""
    if index > 3:
        return _case(seed, size, "base", index)
    rng = np.random.default_rng([seed, 20250412])
    bulb, genitalia, gap = (int(i) for i in rng.permutation(3))
    lacks = [n for n, i in (("PenileBulb", bulb), ("Genitalia", genitalia)) if i == index]
    two = int(rng.integers(4))
    return Case(
        seed, "base", index, size,
        lacks=tuple(lacks), bladder_gap=index == gap, fiducials=2 if index == two else 3,
    )  # fmt: skip


def _run(cases: list[Case], root: Path, workers: int) -> Iterator[Record]:
    if workers == 1:
        yield from (write_patient(case, root) for case in cases)
        return
    # "spawn": a forked child inherits the locks of its parent's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(cases)), mp_context=context) as pool:
        for future in as_completed([pool.submit(write_patient, c, root) for c in cases]):
            yield future.result()
