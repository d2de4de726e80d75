"""What docs/readers.md says of zarr-python and xarray behind servers, and of this package."""

from __future__ import annotations

from functools import partial
from http.server import ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import xarray as xr
import zarr
from servers import file_server
from zarr.storage import LocalStore

import lundprobe_zarr as lp
from scripts.reader_matrix import _NoSuffix

pytest.importorskip("aiohttp")
_WARNS = "ignore:.*ignores byte ranges:UserWarning"


@pytest.fixture
def store(dataset, extended) -> str:
    return f"patients/{extended}.zarr"


@pytest.fixture
def expected(dataset, store):
    root = zarr.open_group(LocalStore(dataset / store, read_only=True), mode="r")
    return root["mri/image"][0, 8]


@pytest.fixture
def no_suffix(dataset):
    """URL of the dataset on a server that refuses `bytes=-100`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_NoSuffix, directory=str(dataset)))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def _ours(url, extended):
    return lp.open_cohort(url)[extended].mri.image[0, 8].values


def test_a_server_with_ranges_serves_all(dataset, store, extended, expected):
    with file_server(dataset) as (url, _):
        np.testing.assert_array_equal(_ours(url, extended), expected)
        # This server knows no suffix ranges and sends the whole: only the small arrays by others.
        with xr.open_zarr(f"{url}/{store}", group="mri", chunks=None) as opened:
            assert opened.z.dtype == np.float64


@pytest.mark.filterwarnings(_WARNS)
def test_without_ranges_we_read_right_and_zarr_fails(dataset, store, extended, expected):
    with file_server(dataset, takes_ranges=False) as (url, _):
        np.testing.assert_array_equal(_ours(url, extended), expected)
        image = zarr.open_array(f"{url}/{store}/mri/image", mode="r")
        with pytest.raises(ValueError, match="checksum"):
            image[0, 8]


def test_without_suffix_ranges_we_read_right_and_zarr_fails(no_suffix, store, extended, expected):
    np.testing.assert_array_equal(_ours(no_suffix, extended), expected)
    image = zarr.open_array(f"{no_suffix}/{store}/mri/image", mode="r")
    with pytest.raises(Exception, match="416"):
        image[0, 8]
