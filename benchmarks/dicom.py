"""A patient as DICOM: what writing one takes, and what independent readers find in the files.

`export`: each full-size patient of a dataset, in a process of its own: wall and processor seconds,
peak memory, bytes. `read`: of the first patient, the largest differences from the store of images,
places and dose (SimpleITK, pydicom, plastimatch), the voxels that masks of contours lose and gain
(an even-odd fill at voxel centres, dcmrtstruct2nii, plastimatch), errors of dciodvfy on every file.
`holes`: the same for an outline of the body out of which many holes and islands were cut.
`dvh`: what dicompyler-core makes of contours and dose, against `lp.dvh` on the synthetic CT grid.

Readers that want an environment of their own run with `--readers PYTHON`, one that has
dcmrtstruct2nii, dicompyler-core and pydicom<3; plastimatch and dciodvfy are Debian's packages
plastimatch and dicom3tools. Those that are not there are left out, and the results say so.

    python -m benchmarks.dicom --readers ENVIRONMENT/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813

import lundprobe_zarr as lp
from benchmarks.record import write_results
from lundprobe_zarr.exchange.dicom.export import export_dicom
from lundprobe_zarr.exchange.dicom.header import Series, Study, save
from lundprobe_zarr.exchange.dicom.images import IMAGE_KINDS, ImageSeries
from lundprobe_zarr.exchange.dicom.lattice import planes_of
from lundprobe_zarr.exchange.dicom.masks import cut
from lundprobe_zarr.exchange.dicom.structures import contours_of, structure_set
from lundprobe_zarr.geometry.affine import ras_to_lps
from lundprobe_zarr.storage.location import Location
from lundprobe_zarr.stores.reader import StoreReader

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "exchange" / "dicom"))
from dicom_reading import lps_affine, masks, series, stored  # noqa: E402

GRID_OF = {kind.name: kind.grid for kind in IMAGE_KINDS}
METRICS = ("D98%", "D2%", "mean")
Mask = np.ndarray


def main() -> None:
    """Measure and write benchmarks/results/dicom.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, help="converted; else a phantom of full size")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work" / "dicom")
    parser.add_argument("--readers", type=Path, help="Python with dcmrtstruct2nii, dicompyler-core")
    parser.add_argument("--export-one", metavar="PATIENT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.export_one:
        export_dicom(Location(options.dataset), options.export_one, options.work)
        return
    options.dataset = options.dataset or _phantom(options.work.with_name("dicom-full"))
    shutil.rmtree(options.work, ignore_errors=True)
    patients = sorted(p.stem for p in (options.dataset / "patients").iterdir())
    figures: dict[str, Any] = {"load_average_before": [round(n, 1) for n in os.getloadavg()]}
    figures["export"] = [exported(options.dataset, p, options.work) for p in patients]
    reader = StoreReader.open(Location(options.dataset), patients[0])
    home = options.work / patients[0]
    figures["dciodvfy"] = dciodvfy(home)
    figures["read"] = {name: read_back(reader, home, name, options.readers) for name in GRID_OF}
    figures["dose"] = dose(reader, home)
    figures["holes"] = holes(reader, home, options.readers)
    figures["dvh"] = dvh(options.dataset, patients[0], home, options.readers)
    print(json.dumps(figures, indent=2))
    print(write_results("dicom", figures))


def _phantom(home: Path) -> Path:
    """Two base patients of full size, converted, made once."""
    if not (home / "dataset" / "lundprobe.json").exists():
        lp.write_phantom(home / "source", patients=2, extended=0, size="full")
        convert = [sys.executable, "-m", "lundprobe_zarr", "convert"]
        subprocess.run([*convert, home / "source", home / "dataset"], check=True)
    return home / "dataset"


def exported(dataset: Path, patient: str, out: Path) -> dict[str, Any]:
    """Export one patient in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.dicom", "--dataset", dataset, "--work", out]
    start = time.perf_counter()
    process = subprocess.Popen([*map(str, command), "--export-one", patient], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    files = [f for f in (out / patient).rglob("*") if f.is_file()]
    return {
        "protocol": patient.split("_")[0],
        "wall_s": round(time.perf_counter() - start, 1),
        "processor_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
        "files": len(files),
        "mb": round(sum(f.stat().st_size for f in files) / 1e6),
    }


def read_back(reader: StoreReader, home: Path, name: str, python: Path | None) -> dict[str, Any]:
    """What readers find of a series and its structure set."""
    kind = next(k for k in IMAGE_KINDS if k.name == name)
    image = series(home / name)
    values = stored(reader, kind.array, modality=kind.modality)
    grid = reader.metadata.grid(kind.grid)
    places = np.abs(lps_affine(image) - ras_to_lps(grid.affine))
    truth = {s: _mask(reader, kind.grid, s) for s in _structures(reader, kind.grid)}
    structures = home / f"RTSTRUCT_{name}.dcm"
    return {
        "voxels": list(values.shape),
        "simpleitk_max_value_error": float(np.abs(sitk.GetArrayFromImage(image) - values).max()),
        "simpleitk_max_affine_error": float(places.max()),
        "plastimatch_max_value_error": _plastimatch_image(home / name, values),
        "masks": by_readers(structures, home / name, image, truth, python),
    }


def by_readers(
    file: Path, images: Path, image: sitk.Image, truth: dict[str, Mask], python: Path | None
) -> dict[str, Any]:
    """Voxels lost and gained, by reader and structure."""
    found = masks(pydicom.dcmread(file), image)
    answer = {"even_odd_fill": _compared(truth, found)}
    work = file.with_suffix(".masks")
    if python is not None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        _reader(python, "masks", file, images, work)
        named = {s: work / f"mask_{s}.nii" for s in truth}
        answer["dcmrtstruct2nii"] = _compared(truth, {s: _nifti(f) for s, f in named.items()})
    if shutil.which("plastimatch"):
        shutil.rmtree(work, ignore_errors=True)
        _plastimatch("--input", file, "--referenced-ct", images, "--output-prefix", work)
        named = {s: work / f"{s}.mha" for s in truth}
        read = {s: sitk.GetArrayFromImage(sitk.ReadImage(str(f))) != 0 for s, f in named.items()}
        answer["plastimatch"] = _compared(truth, read)
    return answer


def _compared(truth: dict[str, Mask], found: dict[str, Mask]) -> dict[str, Any]:
    return {
        structure: {
            "voxels": int(mask.sum()),
            "lost": int((mask & ~found[structure]).sum()),
            "gained": int((found[structure] & ~mask).sum()),
        }
        for structure, mask in truth.items()
    }


def dose(reader: StoreReader, home: Path) -> dict[str, Any]:
    """Largest differences of the dose, Gy."""
    values = stored(reader, "dose/dose").astype(float)
    file = home / "RTDOSE.dcm"
    data = pydicom.dcmread(file)
    found = data.pixel_array * float(data.DoseGridScaling)
    answer = {
        "dose_grid_scaling": float(data.DoseGridScaling),
        "pydicom_max_error_gy": float(np.abs(found - values).max()),
        "simpleitk_max_affine_error": float(
            np.abs(
                lps_affine(sitk.ReadImage(str(file)))
                - ras_to_lps(reader.metadata.grid("dose").affine)
            ).max()
        ),
    }
    if shutil.which("plastimatch"):
        image = home / "dose.nii"
        _plastimatch("--input", file, "--output-dose-img", image)
        answer["plastimatch_max_error_gy"] = float(np.abs(_nifti(image, float) - values).max())
        image.unlink()
    return answer


def holes(reader: StoreReader, home: Path, python: Path | None) -> dict[str, Any]:
    """A body with many holes, islands in them among these, on the synthetic CT grid."""
    mask = _mask(reader, "sct", "BODY")
    rng = np.random.default_rng(0)
    rows, columns = np.ogrid[: mask.shape[1], : mask.shape[2]]
    for plane in mask:
        for size in rng.integers(1, 25, size=30):
            row, column = rng.integers(0, plane.shape)
            away = np.hypot(rows - row, columns - column)
            plane[(away < size) & (away > size / 2)] = False
    name = "CT_sCT"
    kind = next(k for k in IMAGE_KINDS if k.name == name)
    planes = planes_of(reader.metadata.grid("sct"), "sct")
    headers = [pydicom.dcmread(f, stop_before_pixels=True) for f in sorted((home / name).iterdir())]
    first = headers[0]
    about = Series(int(first.SeriesNumber), first.SeriesInstanceUID, first.SeriesDescription)
    images = ImageSeries(kind, planes, about, 0.0, headers)
    contours = contours_of(cut(mask), planes)
    study = Study(reader.metadata.patient_id, synthetic=True)
    file = home / "holes.dcm"
    data = structure_set(study, images, {"BODY": contours}, np.zeros((0, 3)), tg263=False)
    save(data, file, file, pydicom.uid.ImplicitVRLittleEndian)
    answer = by_readers(file, home / name, series(home / name), {"BODY": mask}, python)
    return {"contours": len(contours.found), "holes": contours.holes} | answer


def dciodvfy(home: Path) -> dict[str, Any]:
    """Errors of dciodvfy on every file; it aborts at 32-bit pixels, so the dose has 16 for it."""
    if not shutil.which("dciodvfy"):
        return {"left_out": "dciodvfy is not installed"}
    errors: list[str] = []
    files = sorted(home.rglob("*.dcm"))
    for file in files:
        checked = file
        if file.stem == "RTDOSE":
            data = pydicom.dcmread(file)
            data.PixelData = (data.pixel_array >> 16).astype("<u2").tobytes()
            data.BitsAllocated = data.BitsStored = 16
            data.HighBit = 15
            checked = home / "RTDOSE_16.dcm_"
            data.save_as(checked)
        ran = subprocess.run(["dciodvfy", checked], capture_output=True, text=True, check=False)
        lines = [line for line in ran.stderr.splitlines() if "Error" in line]
        errors += [f"{file.name}: {line}" for line in lines]
        errors += [f"{file.name}: status {ran.returncode}"] if ran.returncode else []
    (home / "RTDOSE_16.dcm_").unlink()
    return {"files": len(files), "errors": errors}


def dvh(dataset: Path, patient: str, home: Path, python: Path | None) -> Any:
    """Volume (cm3) and dose (Gy) of structures by dicompyler-core and by `lp.dvh`."""
    if python is None:
        return {"left_out": "no --readers"}
    theirs = _reader(python, "dvh", home / "RTSTRUCT_CT_sCT.dcm", home / "RTDOSE.dcm")
    ours = lp.dvh(lp.open_cohort(str(dataset))[patient], metrics=METRICS, grid="sct")
    rows = {row.structure: row for row in ours.itertuples(index=False)}
    names = {m: ours.columns.get_loc(m) for m in ("volume_cc", *METRICS)}
    return {
        structure: {
            metric: {"dicompyler": round(value, 4), "lp": round(float(rows[structure][at]), 4)}
            for (metric, value), at in zip(found.items(), names.values(), strict=True)
        }
        for structure, found in theirs.items()
    }


def _structures(reader: StoreReader, grid: str) -> Iterator[str]:
    yield from reader.metadata.labels(f"{grid}/clinical")["structure"]


def _mask(reader: StoreReader, grid: str, structure: str) -> Mask:
    return stored(reader, f"{grid}/clinical/mask", structure=structure)


def _nifti(file: Path, kind: Any = bool) -> Mask:
    return np.asarray(nib.load(file).dataobj).T.astype(kind)


def _plastimatch(*arguments: object) -> None:
    subprocess.run(
        ["plastimatch", "convert", *map(str, arguments)], capture_output=True, check=True
    )


def _plastimatch_image(folder: Path, values: Mask) -> float | None:
    if not shutil.which("plastimatch"):
        return None
    image = folder.with_suffix(".nii")
    _plastimatch("--input", folder, "--output-img", image, "--output-type", "float")
    error = float(np.abs(_nifti(image, np.float32) - values).max())
    image.unlink()
    return error


#: Runs in the environment of `--readers`, which has nothing of ours.
_READERS = """
import json, sys
what, *arguments = sys.argv[1:]
if what == "masks":
    from dcmrtstruct2nii import dcmrtstruct2nii
    dcmrtstruct2nii(*arguments, gzip=False, mask_foreground_value=1)
else:
    from dicompylercore import dicomparser, dvhcalc
    found = {}
    for number, roi in dicomparser.DicomParser(arguments[0]).GetStructures().items():
        if roi["type"] not in ("EXTERNAL", "MARKER"):
            curve = dvhcalc.get_dvh(*arguments, number)
            doses = (curve.D98.value, curve.D2.value, curve.mean)
            found[roi["name"]] = dict(zip(("volume", "D98", "D2", "mean"), (curve.volume, *doses)))
    json.dump(found, open(arguments[1] + ".json", "w"))
"""


def _reader(python: Path, what: str, *arguments: Path) -> Any:
    command = [python, "-c", _READERS, what, *(f"{a}/" if a.is_dir() else a for a in arguments)]
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    if what == "dvh":
        file = Path(f"{arguments[1]}.json")
        found = json.loads(file.read_text())
        file.unlink()
        return found
    return None


if __name__ == "__main__":
    main()
