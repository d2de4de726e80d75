"""Ranges of buckets' objects by URL: what the client would give; the client where they fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from places import Place

from lundprobe_zarr.storage import ranges as by_url
from lundprobe_zarr.storage.location import Range
from lundprobe_zarr.storage.ranges import BucketRanges, environment_proxy, range_reader


class Client:
    """Stands in for an S3 client over a web server's objects: signs, and reads by itself."""

    protocol = ("s3", "s3a")
    takes_seconds = True

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


def reader_of(client: Client) -> BucketRanges:
    reader = range_reader(client, {"key": "a", "client_kwargs": {}}, 30)
    assert isinstance(reader, BucketRanges)
    return reader


def read(reader: BucketRanges, *names: str, start: int = 0, stop: int = 9) -> list[Any]:
    return reader.cat_ranges(names, [start] * len(names), [stop] * len(names), 60)


def test_one_signature_serves_all_ranges_of_an_object(web: Place, shard: str) -> None:
    client = Client(web)
    reader = reader_of(client)
    expected = web.location.read(shard)
    for start in (0, 100):
        assert read(reader, shard, start=start, stop=start + 50) == [expected[start : start + 50]]
    assert client.signed == [shard]
    assert client.asked == []


def test_a_signature_is_renewed_before_it_ends(
    web: Place, shard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, past = Client(web), [0.0]
    real = by_url.time.monotonic
    monkeypatch.setattr(by_url.time, "monotonic", lambda: real() + past[0])
    reader = reader_of(client)
    read(reader, shard)
    past[0] += 601
    read(reader, shard)
    assert len(client.signed) == 2


def test_what_a_url_does_not_give_the_client_is_asked_for(web: Place, shard: str) -> None:
    client = Client(web)
    expected = web.location.read(shard)[:9]
    assert read(reader_of(client), shard, "none") == [expected, b"client"]
    assert client.asked == ["none"]


def test_where_urls_are_in_vain_no_more_are_signed(web: Place) -> None:
    client = Client(web)
    reader = reader_of(client)
    for _ in range(6):
        assert read(reader, "none") == [b"client"]
    assert len(client.signed) == 3
    assert len(client.asked) == 6


def test_failures_that_pass_do_not_end_the_use_of_urls(web: Place, shard: str) -> None:
    client = Client(web)
    reader = reader_of(client)
    expected = web.location.read(shard)[:9]
    for _ in range(6):
        with web.traffic.failing(lambda method, path: 503):
            assert read(reader, shard) == [b"client"]
        assert read(reader, shard) == [expected]
    assert len(client.asked) == 6


def test_what_was_spoilt_on_its_way_is_not_the_clients_to_ask(
    web: Place, shard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for again by URL: not every client compares the range that came."""
    client = Client(web)
    monkeypatch.setattr(by_url, "fetch", lambda asked, *_: [TimeoutError()] * len(asked))
    (found,) = read(reader_of(client), shard)
    assert isinstance(found, TimeoutError)
    assert client.asked == []


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
    assert range_reader(Client(web), options, 30) is None


@pytest.fixture(params=["s3", "gcs", "azure"])
def bucket(request: pytest.FixtureRequest) -> Place:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Place)
    return found


def test_a_bucket_is_read_by_url(
    bucket: Place, shard: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = bucket.location
    expected = location.read(shard)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the client was asked")

    monkeypatch.setattr(location._fs, "cat_ranges", refuse)
    size = len(expected)
    wanted = [Range(shard, 100, 200), Range(shard, size - 10, size + 10), Range(shard, 5, 5)]
    assert location.read_ranges(wanted) == [expected[100:200], expected[-10:], b""]


def test_a_missing_object_of_a_bucket_is_said_so(bucket: Place) -> None:
    with pytest.raises(FileNotFoundError):
        bucket.location.read_ranges([Range("nothing", 0, 10)])


@pytest.mark.parametrize(("variable", "scheme"), [("http_proxy", "http"), ("https_proxy", "https")])
def test_proxies_of_the_environment_are_used(
    variable: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    proxy = environment_proxy(f"{scheme}://bucket.example/object?Signature=a")
    assert proxy == "http://proxy:3128"
    assert environment_proxy(f"{scheme}://inside.example/object") == ""
