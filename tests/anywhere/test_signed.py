"""Ranges of S3 objects by signed URL: what the client would give; the client where they fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from places import Place

from lundprobe_zarr.storage import s3 as s3_client
from lundprobe_zarr.storage.clients import range_reader
from lundprobe_zarr.storage.location import Range
from lundprobe_zarr.storage.s3 import SignedReads


class Client:
    """Stands in for an S3 client over a web server's objects: signs, and reads by itself."""

    protocol = ("s3", "s3a")

    def __init__(self, place: Place, query: str = "") -> None:
        self._place = place
        self._query = query
        self.signed: list[str] = []
        self.asked: list[str] = []

    def url(self, name: str, expires: int) -> str:
        self.signed.append(name)
        return f"{self._place.url}/{name}{self._query}"

    def cat_ranges(
        self, names: Sequence[str], starts: Sequence[int], stops: Sequence[int], **how: Any
    ) -> list[Any]:
        self.asked += names
        return [b"client"] * len(names)


def test_one_signature_serves_all_ranges_of_an_object(web: Place, shard: str) -> None:
    client = Client(web)
    reader = SignedReads(client)
    expected = web.location.read(shard)
    for start in (0, 100):
        (data,) = reader.cat_ranges([shard], [start], [start + 50], on_error="return", seconds=60)
        assert data == expected[start : start + 50]
    assert client.signed == [shard]
    assert client.asked == []


def test_a_signature_is_renewed_before_it_ends(
    web: Place, shard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, now = Client(web), [1000.0]
    monkeypatch.setattr(s3_client.time, "monotonic", lambda: now[0])
    reader = SignedReads(client)
    reader.cat_ranges([shard], [0], [9], on_error="return", seconds=60)
    now[0] += 899
    reader.cat_ranges([shard], [0], [9], on_error="return", seconds=60)
    assert len(client.signed) == 2


def test_what_a_url_does_not_give_the_client_is_asked_for(web: Place, shard: str) -> None:
    client = Client(web)
    reader = SignedReads(client)
    expected = web.location.read(shard)[:9]
    assert reader.cat_ranges([shard, "none"], [0, 0], [9, 9], "return", seconds=60) == [
        expected,
        b"client",
    ]
    assert client.asked == ["none"]


def test_where_urls_are_in_vain_no_more_are_signed(web: Place) -> None:
    client = Client(web)
    reader = SignedReads(client)
    for _ in range(6):
        assert reader.cat_ranges(["none"], [0], [9], on_error="return", seconds=60) == [b"client"]
    assert len(client.signed) == 3
    assert len(client.asked) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"requester_pays": True},
        {"s3_additional_kwargs": {"SSECustomerAlgorithm": "AES256"}},
        {"client_kwargs": {"verify": False}},
        {"config_kwargs": {"proxies": {"https": "http://proxy"}}},
    ],
)
def test_options_that_a_url_would_not_respect_leave_it_to_the_client(
    web: Place, options: dict[str, Any]
) -> None:
    client = Client(web)
    assert range_reader(client, options) is client
    assert isinstance(range_reader(client, {"key": "a", "client_kwargs": {}}), SignedReads)


def test_a_bucket_is_read_by_signed_url(
    s3: Place, shard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = s3.location
    expected = location.read(shard)[100:200]

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the client was asked")

    monkeypatch.setattr(location._fs, "cat_ranges", refuse)
    assert location.read_ranges([Range(shard, 100, 200)]) == [expected]


@pytest.mark.parametrize(("variable", "scheme"), [("http_proxy", "http"), ("https_proxy", "https")])
def test_proxies_of_the_environment_are_used(
    variable: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert s3_client._proxy(f"{scheme}://bucket.example/object?Signature=a") == "http://proxy:3128"
    assert s3_client._proxy(f"{scheme}://inside.example/object") is None
