"""What goes wrong on the way to a dataset is said in one sentence, and no secret is in it."""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError
from places import SECRET, Place
from s3fs.errors import translate_boto_error
from servers import free_port

from lundprobe_zarr import open_cohort
from lundprobe_zarr.errors import DatasetError, NotADatasetError, UsageError
from lundprobe_zarr.storage import failures
from lundprobe_zarr.storage.location import Location

OURS = {"lundprobe_zarr", "builtins"}


def said(error: BaseException) -> str:
    """All that a traceback shows of an error, causes included."""
    return "".join(traceback.format_exception(error)) + repr(pickle.loads(pickle.dumps(error)))


def behind(error: BaseException | None) -> Iterator[BaseException]:
    """All that an error leads to, shown or not: between dask's workers the context travels too."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def failing(url: str, **options: object) -> tuple[type[BaseException], str]:
    with pytest.raises(DatasetError) as raised:
        open_cohort(url, options)
    assert {type(e).__module__.split(".")[0] for e in behind(raised.value)} <= OURS
    text = said(raised.value)
    assert SECRET not in text
    assert "pass" not in text.replace("pass them", "").replace("= ***", "")
    return type(raised.value), str(raised.value)


def test_web_address_without_dataset(web):
    kind, message = failing(f"{web.url}/patients?sig={SECRET}")
    assert kind is NotADatasetError
    assert message.startswith(f"{web.url}/patients/lundprobe.json: not there; expected the root")


@pytest.mark.parametrize("status", [401, 403])
def test_web_server_that_denies(web, status):
    url = web.url.replace("://", "://me:pass@")
    with web.traffic.failing(lambda method, path: status):
        kind, message = failing(f"{url}?sig={SECRET}", headers={"X-Token": SECRET})
    assert kind is DatasetError
    assert "access denied" in message
    assert "storage_options" in message


def test_web_server_that_is_not_there():
    kind, message = failing(f"http://127.0.0.1:{free_port()}/d?sig={SECRET}")
    assert kind is DatasetError
    assert "cannot be reached" in message


def test_bucket_without_dataset(s3):
    kind, message = failing(s3.beside("nothing").url, **s3.options)
    assert kind is NotADatasetError
    assert message.startswith("s3://bucket/nothing/lundprobe.json: not there")


def test_bucket_that_is_not_there(s3):
    kind, message = failing("s3://no-such-bucket/x", **s3.options)
    assert kind is NotADatasetError
    assert "no-such-bucket" in message


def test_bucket_that_denies(s3):
    with s3.traffic.failing(lambda method, path: 403):
        kind, message = failing(s3.url, **s3.options)
    assert kind is DatasetError
    assert "access denied" in message


def test_bucket_server_that_is_not_there(s3_options):
    endpoint = f"http://127.0.0.1:{free_port()}"
    quick = {"config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 1}}
    kind, message = failing("s3://bucket/x", **s3_options, **quick, endpoint_url=endpoint)
    assert kind is DatasetError
    assert "cannot be reached" in message


def test_missing_credentials(monkeypatch, tmp_path, empty_s3):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    endpoint = empty_s3.options["endpoint_url"]
    kind, message = failing("s3://bucket/x", endpoint_url=endpoint)
    assert kind is DatasetError
    assert "no usable credentials" in message
    assert "storage_options" in message


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ExpiredToken", 400),  # statuses as S3 answers
        ("InvalidToken", 400),
        ("TokenRefreshRequired", 400),
        ("SignatureDoesNotMatch", 403),
        ("InvalidAccessKeyId", 403),
    ],
)
def test_refused_credentials(code, status):
    answer = {
        "Error": {"Code": code, "Message": f"The token {SECRET} is not good."},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error = translate_boto_error(ClientError(answer, "GetObject"))
    message = str(failures.explain(error, "s3://bucket/x", {SECRET}, local=False))
    found, _, remedy = message.partition("; ")
    assert found.startswith(f"s3://bucket/x: access denied, a problem of credentials: {code} (")
    assert "*** is not good" in found
    assert SECRET not in message
    assert "not expired" in remedy
    for name in ("(key, secret", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        assert name in remedy
    assert not failures.is_transient(error)


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("gs://b/x", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("az://c/x", "AZURE_STORAGE_CONNECTION_STRING"),
        ("https://h/x", "headers"),
        ("oci://b/x", "the provider's own tools"),
    ],
)
def test_what_to_set_is_said_for_each_kind_of_place(url, named):
    message = str(failures.explain(PermissionError("no"), url, (), local=False))
    assert message.startswith(f"{url}: access denied, a problem of credentials (PermissionError")
    assert named in message


@pytest.mark.parametrize("url", ["s3://KEY:pass/word@bucket/x", "gs://a:pass@b/c"])
def test_credentials_in_a_buckets_url_are_refused(url):
    with pytest.raises(UsageError, match="credentials in the URL of a bucket") as raised:
        Location(url)
    assert "pass" not in str(raised.value).replace("pass them", "")


def test_unknown_and_uninstalled_protocols(monkeypatch):
    with pytest.raises(UsageError, match=r"nonsense://x.*expected a path"):
        Location("nonsense://x")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs", raising=False)
    with pytest.raises(UsageError, match=r"pip install '\.\[gcs\]'` in the checkout"):
        Location("gs://bucket/x")


def test_unknown_option(s3):
    with pytest.raises(UsageError, match=r"unexpected keyword argument 'nonsense'.*s3 takes"):
        open_cohort(s3.url, {**s3.options, "nonsense": SECRET})


def test_options_are_in_no_representation(s3):
    location = Location(s3.url, s3.options)
    cohort = open_cohort(s3.url, s3.options)
    tree = cohort[0].tree
    shown = f"{location!r} {location.url} {cohort!r} {cohort[0]!r} {tree!r} {tree._repr_html_()}"
    assert SECRET not in shown
    assert SECRET not in str(tree["mri/image"].data.dask)


def test_a_location_pickles_with_what_it_needs(s3):
    location = pickle.loads(pickle.dumps(s3.location))
    assert location.read("lundprobe.json") == s3.location.read("lundprobe.json")


def test_options_of_the_caller_are_left_alone(web):
    options = {"headers": {"A": "b"}}
    Location(web.url.replace("://", "://me:pass@") + "?q=1", options)
    assert options == {"headers": {"A": "b"}}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:p@h/x?sig=1&b=2", "https://***@h/x?***"),
        ("see s3://K:a/b+c@bucket/x now", "see s3://***@bucket/x now"),
        ("https://token@h/x", "https://***@h/x"),
        ("abfs://container@account/x", "abfs://container@account/x"),
        ("/local/what?/x", "/local/what?/x"),
        ("url='http://h/a?x=1'", "url='http://h/a?***'"),
    ],
)
def test_redaction(text, shown):
    assert failures.redacted(text) == shown


def test_place_is_shown_without_its_options():
    assert SECRET not in repr(Location("memory://x", {"use_listings_cache": False}))
    assert Place("memory://x").location.url == "memory://x"
