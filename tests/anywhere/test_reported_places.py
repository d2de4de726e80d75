"""Faults that were reported of file systems, tried on ours: see docs/tried.md."""

from __future__ import annotations

import pytest
from places import Place

from lundprobe_zarr.storage.location import Location


def test_what_another_process_wrote_or_deleted_is_seen_at_once(empty_s3: Place) -> None:
    """fsspec/gcsfs#562, fsspec/gdrive-fsspec#62: listings that were kept tell of what was."""
    s3fs = pytest.importorskip("s3fs")
    other = s3fs.S3FileSystem(**empty_s3.options, skip_instance_cache=True)
    location = Location("s3://bucket/seen", empty_s3.options)
    location.write("a/one", b"1")
    assert location.find("a") == {"one": 1}
    assert location.children("") == ["a"]
    other.pipe_file("bucket/seen/a/two", b"22")
    other.pipe_file("bucket/seen/b/three", b"333")
    assert location.find("a") == {"one": 1, "two": 2}
    assert location.children("") == ["a", "b"]
    assert location.size("b/three") == 3
    other.rm_file("bucket/seen/a/one")
    assert not location.exists("a/one")
    assert location.find("a") == {"two": 2}
