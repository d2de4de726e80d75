"""Headers without their free text: nothing of it anywhere, every voxel still there."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from trees import MRI, NEW, SCT, Workplace, uncompressed

from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.notes.state import is_current
from lundprobe_zarr.conversion.run.run import Options, convert
from lundprobe_zarr.conversion.source.inventory import take_inventory, without_header_text
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.exchange.nifti import export_patient
from lundprobe_zarr.integrity.validate import validate
from lundprobe_zarr.schema.header import TEXT_FIELDS, UNUSED_FIELDS, parse_header, without_text
from lundprobe_zarr.storage.location import Location

#: Five bytes: the shortest text field has ten, the extensions and trailer more.
PLANTED = b"DOE^J"


def plant(file: Path) -> None:
    """Write an identifying text wherever a NIfTI file and its gzip header have room for one."""
    data = uncompressed(file)
    header = parse_header(data[:348])
    for name in TEXT_FIELDS:
        if name in header.keys():  # noqa: SIM118
            header[name] = PLANTED
    voxels = data[int(header["vox_offset"]) :]
    extension = (32).to_bytes(4, "little") + (6).to_bytes(4, "little") + PLANTED.ljust(24)
    header["vox_offset"] = 352 + len(extension)
    told = bytes(header.binaryblock) + b"\1\0\0\0" + extension + voxels + PLANTED
    out = io.BytesIO()
    with gzip.GzipFile(PLANTED.decode(), "wb", 1, out, mtime=0) as packed:
        packed.write(told)
    file.write_bytes(out.getvalue())
    assert uncompressed(file).count(PLANTED) == 7


def texts(dataset: Path) -> Iterator[bytes]:
    """Everything a dataset says: its files, what is base64 in them, and its tables' cells."""
    for file in (f for f in dataset.rglob("*") if f.is_file()):
        yield str(file.relative_to(dataset)).encode()
        data = file.read_bytes()
        yield data
        for encoded in re.findall(rb"[A-Za-z0-9+/]{4,}={0,2}", data):
            yield base64.b64decode(encoded[: len(encoded) // 4 * 4])
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            yield json.dumps(table.to_pylist(), default=str).encode()
            yield str(table.schema.metadata).encode()


def convert_stripped(work: Workplace, precision: str = "standard") -> None:
    patients = without_header_text(take_inventory(work.source)).patients
    (patient,) = [p for p in patients if p.patient_id == NEW]
    assert convert_patient(patient, work.dataset, precision).error is None  # type: ignore[arg-type]
    finalise(work.dataset)


@pytest.fixture
def planted(work: Workplace) -> Workplace:
    for file in work.folder.rglob("*.nii.gz"):
        plant(file)
    return work


def test_a_planted_text_is_found_where_headers_are_kept(planted: Workplace) -> None:
    assert planted.convert_one().error is None
    assert any(PLANTED in text for text in texts(planted.dataset))


def test_nothing_of_a_planted_text_is_anywhere(planted: Workplace) -> None:
    convert_stripped(planted)
    assert not any(PLANTED in text for text in texts(planted.dataset))


def test_nothing_stays_in_fields_that_mean_nothing() -> None:
    raw = bytearray(Nifti1Header().binaryblock)
    sound = without_text(bytes(raw))
    raw[32:39], raw[140:148] = b"SECRETr", b"SECRETS!"  # extents to regular, glmax and glmin
    assert without_text(bytes(raw)) == sound
    assert not any(sound[32:39])
    assert not any(sound[140:148])


def test_export_gives_every_voxel_and_its_place_and_says_what_is_lacking(
    planted: Workplace, tmp_path: Path
) -> None:
    convert_stripped(planted, "lossless")
    done = export_patient(Location(planted.dataset), NEW, tmp_path)
    assert len(done.identical) == 1  # the fiducials' text
    assert done.rounded == ()
    for path in done.stripped:
        original, written = nib.load(planted.source / path), nib.load(tmp_path / path)
        assert PLANTED not in uncompressed(tmp_path / path)
        np.testing.assert_array_equal(original.dataobj, written.dataobj)
        np.testing.assert_array_equal(original.affine, written.affine)
        assert original.get_data_dtype() == written.get_data_dtype()
        assert original.header.get_zooms() == written.header.get_zooms()


def test_it_is_recorded_and_proved(planted: Workplace, tmp_path: Path) -> None:
    convert_stripped(planted)
    assert finalise(planted.dataset).manifest.headers_stripped
    root = json.loads((planted.store / "zarr.json").read_text())
    assert root["attributes"]["headers_stripped"] == 1
    assert validate(Location(planted.dataset), deep=True).problems == ()


def test_the_text_does_not_count_once_it_is_left_out(work: Workplace, tmp_path: Path) -> None:
    convert_stripped(work)
    before = finalise(work.dataset).manifest.content
    for file in work.folder.rglob("*.nii.gz"):
        plant(file)
    convert_stripped(work)
    assert finalise(work.dataset).manifest.content == before


def test_a_dataset_has_headers_of_one_kind(work: Workplace) -> None:
    finalise(work.dataset)
    inventory = take_inventory(work.source)
    with pytest.raises(UsageError, match=r"without --strip-headers.*leave out --strip-headers"):
        convert(without_header_text(inventory), work.dataset)
    convert_stripped(work)
    with pytest.raises(UsageError, match=r"with --strip-headers.*give --strip-headers"):
        convert(inventory, work.dataset, Options())


def test_a_conversion_of_the_other_kind_is_not_current(work: Workplace) -> None:
    def current(strip: bool) -> bool:
        inventory = take_inventory(work.source)
        inventory = without_header_text(inventory) if strip else inventory
        return is_current(work.dataset, inventory.patients[0], "standard", note=False)

    assert (current(False), current(True)) == (True, False)
    (work.dataset / f".conversion/{NEW}.json").unlink()  # then hashes of files decide
    assert (current(False), current(True)) == (True, False)


@pytest.mark.parametrize("kind", [Nifti1Header, Nifti2Header])
@pytest.mark.parametrize("order", ["<", ">"])
def test_only_text_and_offset_of_a_header_change(kind: type, order: str) -> None:
    rng = np.random.default_rng(1)
    size = 348 if kind is Nifti1Header else 540
    raw = bytearray(rng.integers(0, 256, size, np.uint8).tobytes())
    raw[:4] = size.to_bytes(4, "little" if order == "<" else "big")
    before, after = parse_header(bytes(raw)), parse_header(without_text(bytes(raw)))
    for name in before.keys():  # noqa: SIM118
        if name in (*TEXT_FIELDS, *UNUSED_FIELDS):
            assert not any(np.asarray(after[name]).tobytes())
        elif name == "vox_offset":
            assert float(after[name]) == size + 4
        else:
            assert np.asarray(after[name]).tobytes() == np.asarray(before[name]).tobytes()


def test_files_are_read_alike_either_way(work: Workplace) -> None:
    whole = work.convert_one()
    for path in (MRI, SCT):
        assert (work.folder / path).is_file()
    patients = without_header_text(take_inventory(work.source)).patients
    stripped = convert_patient(patients[0], work.dataset, "standard")
    assert stripped.findings == whole.findings
