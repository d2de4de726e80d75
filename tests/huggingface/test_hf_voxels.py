"""Handles read what is asked of them and no more, keep types, travel, and show themselves."""

from __future__ import annotations

import base64
import copy
import io
import pickle
import re
import shutil
import warnings

import datasets
import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lundprobe_zarr as lp
from lundprobe_zarr.conversion.arrays.patient import convert_patient
from lundprobe_zarr.conversion.source.inventory import take_inventory
from lundprobe_zarr.conversion.tables.publish import finalise
from lundprobe_zarr.errors import DamagedStoreError, UnknownLabelError, UsageError
from lundprobe_zarr.huggingface.feature import Voxels
from lundprobe_zarr.huggingface.references import FIELDS


@pytest.fixture
def rows(dataset) -> list[dict]:
    return list(lp.load_dataset(dataset, "volumes", split="base", streaming=True))


def test_rows_and_what_is_known_of_handles_read_nothing_but_tables(dataset, reads):
    rows = list(lp.load_dataset(dataset, "volumes", split="base+extended", streaming=True))
    rows += list(lp.load_dataset(dataset, "slices", split="base+extended", streaming=True))
    for row in rows:
        for name in ("image", "mask", "dose"):
            handle = row[name]
            assert handle.patient_id in repr(handle)
            assert len(handle.shape) == handle.ndim
            assert (handle.labels is None) == (name == "dose")
            assert set(handle) == set(FIELDS) == set(dict(handle))
    assert not [name for name in reads if ".zarr/" in name]


def test_dtype_reads_metadata_alone(rows, reads):
    assert rows[0]["image"].dtype == np.float32
    assert [name.partition(".zarr/")[2] for name in reads] == ["zarr.json"]


def test_only_the_column_and_volume_asked_for_is_read(rows, reads):
    rows[0]["mask"][2, 3:5]
    assert set(reads.voxels) == {"mri/clinical/mask/c/2/0/0/0"}
    reads.clear()
    np.asarray(rows[1]["dose"])
    assert set(reads.voxels) == {"mri/dose/c/0/0/0"}


_INDEX = st.one_of(
    st.integers(-30, 29), st.builds(slice, *[st.one_of(st.none(), st.integers(-20, 20))] * 2)
)


@settings(deadline=None, max_examples=60)
@given(st.lists(_INDEX, max_size=5), st.integers(0, 5), st.booleans(), st.booleans())
def test_indexing_is_that_of_the_array(dataset_handles, keys, at, dots, is_slice):
    handle, whole = dataset_handles[is_slice]
    key = (*keys[:at], ..., *keys[at:]) if dots else tuple(keys)
    try:
        expected = whole[key]
    except IndexError:
        with pytest.raises(IndexError):
            handle[key]
        return
    np.testing.assert_array_equal(handle[key], expected)
    assert handle[key].dtype == whole.dtype


@pytest.fixture(scope="session")
def dataset_handles(dataset):
    handles = [
        next(iter(lp.load_dataset(dataset, config, split="base", streaming=True)))["image"]
        for config in ("volumes", "slices")
    ]
    return [(handle, np.asarray(handle)) for handle in handles]


@pytest.mark.parametrize("key", [[0, 1], (0, [1]), None, 1.5, True, (0, False), np.array([True])])
def test_other_keys_are_refused(rows, key):
    with pytest.raises(UsageError, match="expected integers, slices"):
        rows[0]["image"][key]


def test_a_label_is_no_field_and_the_error_says_what_is(rows):
    handle = rows[0]["image"]
    with pytest.raises(
        UnknownLabelError, match=r"\['T2w'\]: no such field.*\[0\] for T2w"
    ) as raised:
        handle["T2w"]
    assert repr(handle) in str(raised.value)
    assert isinstance(raised.value, KeyError)
    assert handle.get("T2w") is None
    assert "T2w" not in handle
    assert len(handle) == len(list(handle)) == len(FIELDS)


@pytest.mark.parametrize("precision", ["standard", "compact"])
@pytest.mark.parametrize("spacing_mm", [None, 9.0])
def test_a_handle_s_type_is_that_of_its_voxels(phantom_source, tmp_path, precision, spacing_mm):
    for patient in take_inventory(phantom_source).patients[:1]:
        convert_patient(patient, tmp_path, precision)
    finalise(tmp_path)
    patches = lp.load_dataset(
        tmp_path, "patches", split="base", streaming=True, patch_size=(3, 5, 5),
        spacing_mm=spacing_mm,
    )  # fmt: skip
    row = next(iter(patches))
    whole = {name: np.asarray(row[name]) for name in ("image", "mask", "dose")}
    assert {n: row[n].dtype for n in whole} == {n: v.dtype for n, v in whole.items()}
    assert (whole["image"].dtype == np.int16) == (precision == "compact" and spacing_mm is None)
    assert row["image"][0:0].dtype == row["image"].dtype


def test_steps_and_negative_steps(rows):
    handle = rows[0]["image"]
    whole = np.asarray(handle)
    np.testing.assert_array_equal(handle[0, ::-2, 3::5], whole[0, ::-2, 3::5])


def test_an_array_outlives_its_handle(rows):
    expected = np.array(rows[0]["dose"].read())
    array = np.asarray(rows.pop(0)["dose"])
    for _ in range(5):
        np.zeros(array.shape) + 1  # whatever was freed is used again
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("config", ["volumes", "slices"])
def test_numpy_format_keeps_types(dataset, config):
    for streaming in (True, False):
        loaded = lp.load_dataset(dataset, config, split="base", streaming=streaming)
        raw = next(iter(loaded))
        row = next(iter(loaded.with_format("numpy")))
        for name in ("image", "mask", "dose"):
            assert type(row[name]) is np.ndarray
            assert row[name].dtype == raw[name].dtype
            np.testing.assert_array_equal(row[name], np.asarray(raw[name]))
        assert row["present"].dtype == bool


@pytest.mark.parametrize("kind", ["int16", "uint8", "bool", "float64", "float32"])
def test_no_stored_type_is_widened_or_narrowed(rows, monkeypatch, kind):
    from lundprobe_zarr.huggingface import handles as voxels

    values = np.arange(12).reshape(1, 3, 4).astype(kind)
    monkeypatch.setattr(voxels.LazyVoxels, "read", lambda self: values)
    features = datasets.Features({"dose": Voxels()})
    formatter = datasets.formatting.get_formatter("numpy", features=features)
    assert formatter.recursive_tensorize({"dose": rows[0]["dose"]})["dose"].dtype == kind
    torch = pytest.importorskip("torch")
    formatter = datasets.formatting.get_formatter("torch", features=features)
    tensor = formatter.recursive_tensorize({"dose": rows[0]["dose"]})["dose"]
    assert str(tensor.dtype) == f"torch.{kind}"
    np.testing.assert_array_equal(tensor.numpy(), values)
    assert torch.as_tensor(rows[0]["dose"]).shape == (1, 3, 4)


def test_pickled_handles_read_with_the_same_credentials(bucket):
    url, options, _ = bucket
    stream = lp.load_dataset(url, "volumes", split="base", streaming=True, storage_options=options)
    handle = next(iter(stream))["dose"]
    text = pickle.dumps(handle)
    again = pickle.loads(text)
    assert again == handle
    np.testing.assert_array_equal(np.asarray(again), np.asarray(handle))
    assert copy.deepcopy(handle) == handle


def test_references_hold_no_credentials(bucket):
    url, options, _ = bucket
    stream = lp.load_dataset(url, "volumes", split="base", streaming=True, storage_options=options)
    row = next(iter(stream))
    text = repr([dict(row[name]) for name in ("image", "mask", "dose")]) + repr(stream.features)
    assert options["endpoint_url"] in text
    assert options["secret"] not in text
    assert options["key"] not in text
    assert "secret" not in str(stream.features.to_dict())


def test_html_has_a_picture_of_one_slice(rows, reads):
    for name, objects in (("image", 1), ("mask", 9), ("dose", 1)):
        reads.clear()
        html = rows[0][name]._repr_html_()
        assert len(set(reads.voxels)) == objects
        (data,) = re.findall(r"base64,([^\"]+)", html)
        picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(data)))
        assert picture.shape[:2] == tuple(rows[0]["shape"][1:])
        assert picture[..., :3].std() > 0.01, "something is to be seen"
        assert rows[0]["patient_id"] in html


def test_html_of_a_slice(dataset):
    stream = lp.load_dataset(
        dataset, "slices", split="base", streaming=True, filters=[("voxels_CTVT_427", ">", 0)]
    )
    row = next(iter(stream))
    assert "base64," in row["image"]._repr_html_()
    assert "base64," in row["mask"]._repr_html_()


def test_html_says_why_there_is_no_picture(rows, monkeypatch):
    def fail(*args, **kwargs):
        raise DamagedStoreError("<shard> is not there")

    monkeypatch.setattr("lundprobe_zarr.huggingface.references.read_patch", fail)
    html = rows[0]["image"]._repr_html_()
    assert "&lt;shard&gt; is not there" in html
    assert "base64" not in html


def test_a_modality_that_the_patient_lacks_is_an_error(phantom_source, tmp_path):
    """Zeros for an image would pass for one."""
    source = tmp_path / "source"
    patient = min(p for p in (phantom_source / "basePart").iterdir() if p.is_dir())
    shutil.copytree(patient, source / "basePart" / patient.name)
    (source / "basePart" / patient.name / "sCT/image_reg2MRI.nii.gz").unlink()
    (found,) = take_inventory(source).patients
    assert convert_patient(found, tmp_path / "out", "standard").status == "converted"
    finalise(tmp_path / "out")
    row = next(iter(lp.load_dataset(tmp_path / "out", "volumes", split="base", streaming=True)))
    with pytest.raises(UnknownLabelError, match=rf"sCT.*{patient.name}"):
        np.asarray(row["image"])
    assert row["image"][0].any()


def test_the_feature_takes_handles_and_references_and_nothing_else(rows):
    feature, handle = Voxels(), rows[0]["image"]
    record = feature.encode_example(handle)
    assert record == dict(handle)
    assert feature.encode_example(record) == record
    assert feature.decode_example(record) == handle
    assert feature.decode_example(handle) is handle
    for other in (np.zeros(3), "text", {"array": "mri/image"}):
        with pytest.raises(UsageError, match="expected a handle"):
            feature.encode_example(other)


def test_a_dataset_written_anew_is_read_anew(dataset, rows, reads):
    np.asarray(rows[0]["dose"])
    reads.clear()
    fresh = next(iter(lp.load_dataset(dataset, "volumes", split="base", streaming=True)))
    np.asarray(fresh["dose"])
    assert [n for n in reads if n.endswith("zarr.json")]


def test_nothing_warns(dataset):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(iter(lp.load_dataset(dataset, "volumes", split="base", streaming=True)))
