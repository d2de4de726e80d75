"""NIfTI to store and back: every bit under lossless, and no more than promised otherwise."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from trees import MRI, NEW, SCT, convert_tree, nifti, write_patient

from lundprobe_zarr.conversion.arrays.values import read_quantity
from lundprobe_zarr.conversion.source.nifti import read_nifti
from lundprobe_zarr.errors import PrecisionError
from lundprobe_zarr.exchange.nifti import export_patient
from lundprobe_zarr.schema.precision import PRECISIONS, Precision
from lundprobe_zarr.storage.location import Location

SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
DTYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
#: (z, y, x): of one voxel, prime, and prime sizes larger than an inner chunk along each axis.
SHAPES = ((1, 1, 1), (5, 7, 11), (17, 3, 5), (2, 131, 3), (3, 2, 257), (9, 1, 149))
ORIENTATIONS = list(product(permutations(range(3)), product((-1, 1), repeat=3)))


def oriented(order: tuple[int, ...], signs: tuple[int, ...], angle: float = 0.0) -> np.ndarray:
    affine = np.eye(4)
    turn = np.eye(3)[:, list(order)] * signs
    if angle:
        turn = Rotation.from_euler("xyz", [angle, angle / 2, -angle]).as_matrix() @ turn
    affine[:3, :3] = turn * [0.4688, 0.75, 2.5]
    affine[:3, 3] = [-112.5, 86.25, -40]
    return affine


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """An uncompressed NIfTI file of any kind that has to be converted."""
    shape, dtype = draw(st.sampled_from(SHAPES)), np.dtype(draw(st.sampled_from(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["bits", "small", "zero", "constant"]))
    raw = rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]
    if kind == "small" or (kind == "bits" and dtype.kind == "f"):
        raw = rng.integers(0, 100, shape).astype(dtype)
    if kind in ("zero", "constant"):
        raw = np.full(shape, 0 if kind == "zero" else raw.reshape(-1)[0], dtype)
    if kind == "bits" and dtype.kind == "f":
        raw = raw + rng.random(shape).astype(dtype)
        odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], dtype)
        raw.reshape(-1)[:5] = odd[: raw.size]
    scaling: dict[str, Any] = draw(
        st.sampled_from(
            [
                {},
                {"slope": 0.0, "inter": 5.0},
                {"slope": np.nan, "inter": np.nan},
                {"slope": 1.0, "inter": 0.0},
                {"slope": 0.5, "inter": -3.0},
                {"slope": 2.0, "inter": 0.0},
                {"slope": 0.1, "inter": 0.0},
            ]
        )
    )
    place, order = draw(st.sampled_from(ORIENTATIONS)), draw(st.sampled_from("<>"))
    comment = struct.pack(f"{order}ii", 16, 6) + b"comment!"
    event(f"{dtype.str} {kind} {scaling}")
    return nifti(
        raw,
        oriented(*place, angle=draw(st.sampled_from([0, 0, 0.3]))),
        order=order,
        version=draw(st.sampled_from([1, 2])),
        extension=draw(st.sampled_from([b"", comment])),
        trailer=draw(st.sampled_from([b"", b"\0", b"behind"])),
        extra_dims=draw(st.integers(0, 2)),
        codes=draw(st.sampled_from([(1, 1), (0, 2), (1, 0), (3, 4)])),
        **scaling,
    )


def write(source: Path, mri: bytes, sct: bytes) -> None:
    folder = source / "basePart" / NEW
    for path, data in ((MRI, mri), (SCT, sct)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(gzip.compress(data, 1, mtime=0))


def nibabel_values(data: bytes) -> np.ndarray:
    """Physical values (z, y, x) as nibabel reads them."""
    first = data[:4] in (struct.pack("<i", 348), struct.pack(">i", 348))
    kind = nib.Nifti1Header if first else nib.Nifti2Header
    header = kind.from_fileobj(io.BytesIO(data), check=False)
    values = np.asanyarray(nib.arrayproxy.ArrayProxy(io.BytesIO(data), header, mmap=False))
    return values.reshape(values.shape[:3]).T


@SETTINGS
@given(files(), files())
def test_lossless_gives_every_byte_back_and_holds_what_nibabel_reads(
    tmp_path_factory: pytest.TempPathFactory, mri: bytes, sct: bytes
) -> None:
    home = tmp_path_factory.mktemp("lossless")
    write(home / "source", mri, sct)
    result = convert_tree(home / "source", home / "dataset", "lossless")[NEW]
    if result.error is not None:  # a slope may lose integers of 64 bits, and then has to say so
        assert "cannot be recovered" in result.error
        event("refused")
        return
    done = export_patient(Location(home / "dataset"), NEW, home / "out")
    assert done.rounded == ()
    for path, group, data in ((MRI, "mri", mri), (SCT, "sct", sct)):
        back = gzip.decompress((home / "out" / "basePart" / NEW / path).read_bytes())
        assert back == data
        stored = zarr.open_array(
            home / "dataset" / "patients" / f"{NEW}.zarr" / group / "image", mode="r"
        )
        np.testing.assert_array_equal(stored[0], nibabel_values(data))
    shutil.rmtree(home)


@SETTINGS
@given(files(), st.sampled_from(["standard", "compact"]))
def test_the_other_precisions_say_honestly_what_they_changed(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, precision: Precision
) -> None:
    path = tmp_path_factory.mktemp("values") / "image.nii.gz"
    path.write_bytes(gzip.compress(data, 1, mtime=0))
    expected = nibabel_values(data)
    for variable, modality in (("image", "T2w"), ("image", "sCT"), ("dose", None)):
        try:
            quantity = read_quantity(read_nifti(path, "f"), precision, variable, modality, "f")
        except PrecisionError:
            event(f"refused by {precision}")
            assert not np.isfinite(expected).all() or np.abs(expected).max() > 1e4
            continue
        stored = quantity.rounded.values
        finite = np.isfinite(expected)
        error = np.abs(stored.astype(np.float64) - expected.astype(np.float64))[finite].max(
            initial=0
        )
        assert quantity.rounded.max_abs_error == pytest.approx(error, rel=1e-12, abs=0)
        np.testing.assert_array_equal(stored[~finite], expected[~finite].astype(stored.dtype))
        if quantity.rounded.exact:
            assert error == 0
        if precision == "compact" and (modality == "sCT" or variable == "dose"):
            assert error <= (0.5 if modality == "sCT" else 1e-3)
        elif expected.dtype.newbyteorder("=") != np.float64:
            assert quantity.rounded.exact


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_patient_of_the_dataset_s_own_types_keeps_its_promises(
    tmp_path: Path, precision: Precision
) -> None:
    """T2w int16, sCT float64 with decimals, dose float32: the common case, whole."""
    source = tmp_path / "source"
    write_patient(source, part="extended")
    assert convert_tree(source, tmp_path / "dataset", precision)[NEW].error is None
    done = export_patient(Location(tmp_path / "dataset"), NEW, tmp_path / "out")
    rounded = {p.removeprefix(f"extendedPart/{NEW}/") for p in done.rounded}
    doses = {f"{g}/dose_interpolated.nii.gz" for g in ("MR_StorT2", "sCT")}
    maps = {
        f"MR_StorT2/nnUNetOutput/mask_{t}_nnUNet_uncertaintyMap.nii.gz"
        for t in ("CTVT_427", "Rectum")
    }
    assert (
        rounded
        == {
            "lossless": set(),
            "standard": {"sCT/image_reg2MRI.nii.gz"},
            "compact": {"sCT/image_reg2MRI.nii.gz", SCT, "sCT/dose_original.nii.gz", *doses, *maps},
        }[precision]
    )
    for path in (*done.identical, *done.rounded):
        original, back = source / path, tmp_path / "out" / path
        if path.endswith(".txt"):
            assert back.read_bytes() == original.read_bytes()
            continue
        a, b = (gzip.decompress(f.read_bytes()) for f in (original, back))
        assert (a == b) == (path in done.identical), path
        bound = 0.5 if "image" in path and precision == "compact" else 1e-3
        near = np.abs(nibabel_values(a).astype(float) - nibabel_values(b).astype(float))
        assert near.max() <= bound


@pytest.mark.parametrize("precision", PRECISIONS)
def test_types_are_those_the_layout_promises(tmp_path: Path, precision: Precision) -> None:
    source = tmp_path / "source"
    write_patient(source)
    convert_tree(source, tmp_path / "dataset", precision)
    with xr.open_datatree(tmp_path / "dataset" / "patients" / f"{NEW}.zarr", engine="zarr") as tree:
        mri = {"lossless": "float64", "standard": "float32", "compact": "int16"}[precision]
        sct = {"lossless": "float32", "standard": "float32", "compact": "int16"}[precision]
        assert tree["mri"].image.dtype == mri
        assert tree["sct"].image.dtype == sct
        for grid in ("mri", "sct", "dose"):
            assert tree[grid].dose.dtype == "float32"
        assert tree["mri/clinical"].mask.dtype == bool
