"""The phantom's tree: names, headers, types, side files, determinism, refusals."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from phantom_reading import Tree
from scipy import ndimage

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.phantom import DESCRIPTION, write_phantom
from lundprobe_zarr.phantom.tree import plan_cases
from lundprobe_zarr.vocabulary.files import KNOWN_FILES, expected_files
from lundprobe_zarr.vocabulary.names import AIR_HU, is_patient_id, protocol_of


def files_of(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def missing_of(tree: Tree, part: str) -> dict[str, list[str]]:
    return json.loads((tree.root / f"missingStructures_{part}Part.json").read_text())


@pytest.mark.parametrize("part", ["base", "extended"])
def test_each_patient_has_the_expected_files_but_for_listed_structures(tiny: Tree, part: str):
    missing = missing_of(tiny, part)
    for folder in tiny.folders(part):
        assert is_patient_id(folder.name)
        absent = {
            f"{grid}/{name}"
            for name in missing.get(folder.name, [])
            for grid in ("MR_StorT2", "sCT")
        }
        assert files_of(folder) == set(expected_files(part)) - absent


def test_oddities_are_there_among_the_first_patients(tiny: Tree):
    listed = sorted(name for names in missing_of(tiny, "base").values() for name in names)
    assert listed == ["mask_Genitalia.nii.gz", "mask_PenileBulb.nii.gz"]
    assert "mask_Bladder" in (tiny.root / "StructuresMoreThan1ConComp_basePart.txt").read_text()
    texts = [f / "MR_StorT2/MRI_T2_DICOM_coords_fiducials.txt" for f in tiny.folders("base")]
    assert sorted(len(t.read_text().splitlines()) for t in texts) == [2, 3, 3, 3]


def test_oddities_are_promised_for_every_seed_and_move_with_it():
    plans = [plan_cases(seed, "tiny", 40, 10) for seed in range(12)]
    for cases in plans:
        first = cases[:3]
        assert sorted(s for c in first for s in c.lacks) == ["Genitalia", "PenileBulb"]
        assert sum(c.bladder_gap for c in first) == 1
        assert sorted(c.fiducials for c in cases[:4]) == [2, 3, 3, 3]
        assert len({c.patient_id for c in cases}) == 50
        assert plan_cases(cases[0].seed, "tiny", 3, 0) == first
    assert len({tuple(c.lacks for c in cases[:3]) for cases in plans}) > 1


def test_both_protocols_from_two_patients_on_and_three_to_one(tiny: Tree):
    protocols = [protocol_of(f.name) for f in tiny.folders("base")]
    assert sorted(protocols) == ["newAcq", "oldAcq", "oldAcq", "oldAcq"]
    assert {protocol_of(f.name) for f in tiny.folders("extended")} == {"newAcq"}


def test_notice_and_descrip_say_synthetic(tiny: Tree):
    assert "not patient data" in (tiny.root / "SYNTHETIC.md").read_text()
    for folder in tiny.all_folders:
        for path in files_of(folder):
            if path.endswith(".nii.gz"):
                header = tiny.volume(folder, path).header
                assert bytes(header["descrip"]).rstrip(b"\0").decode() == DESCRIPTION


WRITERS = {"uncertainty": (0, 2, 0), "fiducial_mask": (1, 1, 2)}


def test_headers_are_those_of_their_writers(tiny: Tree):
    for folder in tiny.all_folders:
        for path in files_of(folder) - {"MR_StorT2/MRI_T2_DICOM_coords_fiducials.txt"}:
            header = tiny.volume(folder, path).header
            expected = WRITERS.get(KNOWN_FILES[path].variable, (1, 1, 10))
            codes = (header["qform_code"], header["sform_code"], header["xyzt_units"])
            assert tuple(map(int, codes)) == expected, path
            spacing = header["pixdim"][1:4]
            assert np.array_equal(
                header.get_sform()[:3, :3], np.diag(spacing.astype(float) * [-1, -1, 1])
            )
            np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-4)


def test_raw_header_fields_and_gzip_header(tiny: Tree):
    path = tiny.folders("base")[0] / "MR_StorT2/image.nii.gz"
    packed = path.read_bytes()
    assert packed[:4] == b"\x1f\x8b\x08\x00"  # deflate, no file name
    assert packed[4:8] == bytes(4)  # no time
    raw = gzip.decompress(packed)
    assert raw[344:348] == b"n+1\0"
    assert np.frombuffer(raw[108:120], "<f4").tolist() == [352.0, 1.0, 0.0]
    dim = np.frombuffer(raw[40:56], "<i2")
    assert len(raw) == 352 + 2 * int(np.prod(dim[1:4]))


def test_dtypes(tiny: Tree):
    sct = set()
    for folder in tiny.all_folders:
        for path in files_of(folder) - {"MR_StorT2/MRI_T2_DICOM_coords_fiducials.txt"}:
            dtype = tiny.volume(folder, path).array.dtype.name
            kind = KNOWN_FILES[path].variable
            if path == "sCT/image.nii.gz":
                sct.add(dtype)
            elif path == "sCT/image_reg2MRI.nii.gz":
                assert dtype == "float64"
            elif path == "MR_StorT2/image.nii.gz":
                assert dtype == "int16"
            else:
                float32 = kind in ("dose", "uncertainty", "fiducial_mask")
                assert dtype == ("float32" if float32 else "uint8"), path
    assert sct == {"float32", "float64"}


def test_one_geometry_a_grid_and_three_grids_a_patient(tiny: Tree):
    shapes = set()
    for folder in tiny.all_folders:
        seen: dict[str, set[bytes]] = {}
        for path in files_of(folder) - {"MR_StorT2/MRI_T2_DICOM_coords_fiducials.txt"}:
            header = tiny.volume(folder, path).header
            geometry = b"".join(header[k].tobytes() for k in ("srow_x", "srow_y", "srow_z"))
            seen.setdefault(KNOWN_FILES[path].grid, set()).add(geometry + header["dim"].tobytes())
            if path == "MR_StorT2/image.nii.gz":
                dim = tuple(int(n) for n in header["dim"][1:4])
                shapes.add(dim)
                assert len(set(dim)) == 3
        assert {grid: len(g) for grid, g in seen.items()} == {"mri": 1, "sct": 1, "dose": 1}
        assert len(set.union(*seen.values())) == 3
    assert len(shapes) == len(tiny.all_folders)


def test_masks_hold_zero_and_one_both(tiny: Tree):
    for folder in tiny.all_folders:
        for path in files_of(folder):
            if KNOWN_FILES[path].kind == "mask":
                assert np.unique(tiny.volume(folder, path).array).tolist() == [0, 1], path


def test_doses_are_multiples_of_one_scaling(tiny: Tree):
    for folder in tiny.all_folders:
        values = [
            np.unique(tiny.volume(folder, p).array).astype(float)
            for p in sorted(f for f in files_of(folder) if "dose" in f)
        ]
        assert len(values) == 3
        every = np.concatenate(values)
        scaling = every[every > 0].min()  # one count, somewhere at the edge of an interpolated dose
        assert 1e-4 < scaling < 1e-3
        counts = every / scaling
        np.testing.assert_allclose(counts, np.rint(counts), atol=0.03)


def test_geometry_table_matches_headers_in_both_print_styles(tiny: Tree):
    text = (tiny.root / "patGeometryInformation_basePart.csv").read_text()
    header, *rows = text.splitlines()
    assert header == (
        "patient;sCTMatrixSizeOrig;sCTVoxelSizeOrig (mm);mriMatrixSize;mriVoxelSize (mm);"
        "doseMatrixSizeOrig;doseVoxelSizeOrig;doseMin (Gy);doseMax (Gy) "
    )
    styles = {"np.float64(" in row for row in rows}
    assert styles == {True, False}
    assert len(rows) == 4
    for row in rows:
        cells = re.sub(r"np\.float64\(([^)]*)\)", r"\1", row).split(";")
        folder = tiny.root / "basePart" / cells[0]
        images = ("sCT/image", "MR_StorT2/image", "sCT/dose_original")
        for image, matrix, voxel in zip(images, cells[1:7:2], cells[2:7:2], strict=True):
            volume = tiny.volume(folder, f"{image}.nii.gz")
            nz, ny, nx = volume.array.shape
            assert ast.literal_eval(matrix) == (ny, nx, nz)
            np.testing.assert_allclose(ast.literal_eval(voxel), volume.header["pixdim"][1:4])
        assert float(cells[7]) == volume.array.min()
        assert float(cells[8]) == volume.array.max()


def test_component_text_lists_just_the_masks_that_have_several(tiny: Tree):
    for part in ("base", "extended"):
        lines = (tiny.root / f"StructuresMoreThan1ConComp_{part}Part.txt").read_text().splitlines()
        listed = set()
        for line in lines:
            words = re.fullmatch(
                r"Number of connected components in (\S+): (\d+) for patient (\S+)", line
            )
            path = f"{words[3]}/{words[1]}" if words else line
            listed.add("/".join(path.split(f"{part}Part/")[1].split("/")))
        found = set()
        for folder in tiny.folders(part):
            for path in files_of(folder):
                if KNOWN_FILES[path].kind == "mask" and "fiducial" not in path:
                    _, count = ndimage.label(tiny.volume(folder, path).array, np.ones((3, 3, 3)))
                    if count > 1:
                        found.add(f"{folder.name}/{path}")
        assert listed == found
        if part == "base":
            assert {bool(re.match("Number", line)) for line in lines} == {True, False}


def test_bladder_gap_is_an_empty_slice(tiny: Tree):
    text = (tiny.root / "StructuresMoreThan1ConComp_basePart.txt").read_text()
    (patient,) = set(re.findall(r"\w{6}_[0-9a-f]{16}", text))
    filled = tiny.volume(
        tiny.root / "basePart" / patient, "MR_StorT2/mask_Bladder.nii.gz"
    ).array.any(axis=(1, 2))
    extent = filled[filled.argmax() : len(filled) - filled[::-1].argmax()]
    assert (~extent).sum() == 1


def test_fiducial_text_and_mask_agree(tiny: Tree):
    for folder in tiny.all_folders:
        lines = (folder / "MR_StorT2/MRI_T2_DICOM_coords_fiducials.txt").read_text().splitlines()
        volume = tiny.volume(folder, "MR_StorT2/mask_MRI_T2_coords_fiducials.nii.gz")
        for line in lines:
            point = [float(c) for c in line.split(",")][::-1]
            nearest = tuple(
                int(np.abs(a - c).argmin()) for a, c in zip(volume.axes, point, strict=True)
            )
            assert volume.array[nearest] == 1


def test_warning_text_only_in_old_acquisitions_and_wiped_before_registration(tiny: Tree):
    for folder in tiny.all_folders:
        sct = tiny.volume(folder, "sCT/image.nii.gz")
        rows = round(50 * sct.array.shape[1] / 560)
        old = protocol_of(folder.name) == "oldAcq"
        assert (sct.array[:, :rows].max(axis=(1, 2)) == (1000.5 if old else AIR_HU)).all()
        registered = tiny.volume(folder, "sCT/image_reg2MRI.nii.gz")
        text = registered.axes[1] < sct.axes[1][rows]
        assert text.any()
        assert registered.array[:, text].max() < -900


def digests(root: Path) -> dict[str, str]:
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in root.rglob("*")
        if p.is_file()
    }


def test_same_bytes_whatever_the_workers_and_the_number_of_patients(tiny: Tree, tmp_path: Path):
    again = write_phantom(tmp_path / "p", patients=2, extended=1, workers=2)
    ours, theirs = digests(tiny.root), digests(again)
    patients = {k: v for k, v in theirs.items() if "/" in k}
    assert len(patients) > 100
    assert patients.items() <= ours.items()
    name = "patGeometryInformation_basePart.csv"
    assert (tiny.root / name).read_text().startswith((again / name).read_text())
    for extended in [k for k in theirs if k.endswith(("dPart.csv", "dPart.json", "dPart.txt"))]:
        assert ours[extended] == theirs[extended]


def test_another_seed_is_another_patient_and_progress_names_it(tiny: Tree, tmp_path: Path):
    said: list[str] = []
    root = write_phantom(tmp_path / "p", patients=0, extended=1, seed=1, progress=said.append)
    other = Tree(root)
    assert [m.split()[0] for m in said] == [f.name for f in other.all_folders]
    assert other.folders("extended")[0].name != tiny.folders("extended")[0].name
    ours, theirs = (
        t.volume(t.folders("extended")[0], "sCT/dose_original.nii.gz").array for t in (tiny, other)
    )
    assert ours.shape != theirs.shape or not np.array_equal(ours, theirs)
    assert not (root / "basePart").exists()
    assert not (root / "missingStructures_basePart.json").exists()


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ({"patients": -1}, "patients=-1"),
        ({"extended": -2}, "extended=-2"),
        ({"patients": 0, "extended": 0}, "nothing to write"),
        ({"size": "huge"}, "huge"),
        ({"seed": -1}, "seed=-1"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_refuses_numbers_that_make_no_tree(tmp_path: Path, arguments: dict, value: str):
    with pytest.raises(UsageError, match=value):
        write_phantom(tmp_path / "p", **arguments)
    assert not (tmp_path / "p").exists()


def test_refuses_a_folder_that_is_not_empty(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty; give an empty folder") as caught:
        write_phantom(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UsageError, match="is a file"):
        write_phantom(tmp_path / "mine.txt")


@pytest.mark.slow
def test_full_size_is_as_large_as_the_real_data_and_not_slow(tmp_path: Path):
    start = time.perf_counter()
    tree = Tree(write_phantom(tmp_path / "p", patients=1, extended=0, size="full"))
    assert time.perf_counter() - start < 90
    (folder,) = tree.folders("base")
    megabytes = {p: (folder / p).stat().st_size / 1e6 for p in files_of(folder)}
    assert 85 < megabytes["MR_StorT2/image.nii.gz"] < 110
    assert 45 < megabytes["MR_StorT2/dose_interpolated.nii.gz"] < 80
    assert 290 < sum(megabytes.values()) < 390
    assert tree.volume(folder, "MR_StorT2/image.nii.gz").array.shape == (88, 1024, 1024)
