"""How a service may be reached: what is refused at the start, and what it says to do."""

from __future__ import annotations

import datetime
import ssl
import subprocess
import sys
import time

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.service.access.exposure import Exposure
from tests.service.callers import OURS, file_of, get, token_for

HTTPS = "https://data.example.org"


def certificate(folder, encryption=None):
    """Files of a certificate for localhost and its key, made now."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(Encoding.PEM))
    secret = encryption or NoEncryption()
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    files[1].chmod(0o600)
    return files


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_this_machine_alone_needs_nothing(host):
    Exposure(host).check(guarded=False)
    assert not Exposure(host).only_proxies


@pytest.mark.parametrize(
    ("exposure", "guarded", "said"),
    [
        (Exposure("0.0.0.0"), False, "--access FILE"),
        (Exposure("192.0.2.1"), True, "--certificate and --key"),
        (Exposure("example.org"), True, "--trusted-proxy"),
        (Exposure("0.0.0.0", HTTPS), True, "--trusted-proxy"),
        (
            Exposure("0.0.0.0", "http://a.example", trusted_proxies=("10.0.0.1",)),
            True,
            "in the clear",
        ),
        (Exposure("127.0.0.1", "data.example.org"), True, "--public-url"),
        (Exposure("127.0.0.1", "ftp://a"), True, "--public-url"),
        (Exposure("127.0.0.1", "https://a/path"), True, "no path"),
        (Exposure("127.0.0.1", "https://u:p@a"), True, "--public-url"),
        (Exposure("127.0.0.1", "https://a:99999"), True, "--public-url"),
        (Exposure("127.0.0.1", trusted_proxies=("nginx",)), True, "--trusted-proxy nginx"),
        (Exposure("127.0.0.1", trusted_proxies=("10.0.0.1/8",)), True, "--trusted-proxy"),
        (Exposure("127.0.0.1", trusted_proxies=("0.0.0.0/0",)), True, "everybody"),
    ],
)
def test_what_would_give_tokens_away_is_refused(exposure, guarded, said):
    with pytest.raises(UsageError, match=said):
        exposure.check(guarded)


def test_behind_a_named_proxy_with_tls_others_may_come(tmp_path):
    exposure = Exposure("0.0.0.0", HTTPS + "/", trusted_proxies=("10.0.0.1",))
    exposure.check(guarded=True)
    assert exposure.url(8000) == HTTPS
    assert exposure.only_proxies


def test_with_tls_of_its_own_others_may_come(tmp_path):
    files = certificate(tmp_path)
    Exposure("192.0.2.1", None, *files).check(guarded=True)
    assert Exposure("192.0.2.1", None, *files).url(8443) == "https://192.0.2.1:8443"
    with pytest.raises(UsageError, match="--public-url"):
        Exposure("0.0.0.0", None, *files).check(guarded=True)


def test_files_of_tls_that_cannot_be_used(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    chain, key = certificate(tmp_path / "a")
    other, locked = certificate(tmp_path / "b", BestAvailableEncryption(b"secret"))
    for files, said in (
        ((chain, None), "one without the other"),
        ((chain, tmp_path / "none"), "--key: No such file"),
        ((tmp_path / "none", key), "--certificate: No such file"),
        ((other, key), "cannot be used"),
        ((key, key), "cannot be used"),
        ((other, locked), "has a password"),
    ):
        with pytest.raises(UsageError, match=said):
            Exposure("127.0.0.1", None, *files).check(guarded=True)
    key.chmod(0o644)
    with pytest.raises(UsageError, match="chmod o="):
        Exposure("127.0.0.1", None, chain, key).check(guarded=True)


def test_past_the_proxy_nobody_is_answered(start_service, dataset, tmp_path, monkeypatch):
    token = token_for(tmp_path / "access.json", "me")
    settings = {"access": str(tmp_path / "access.json"), "public_url": HTTPS}
    served = start_service(
        {OURS: dataset}, trusted_proxies=("192.0.2.1",), only_proxies=True, **settings
    )
    assert get(served.url, file_of(OURS), token).status_code == 200, "this machine"
    monkeypatch.setattr("lundprobe_zarr.service.gate._peer_of", lambda scope: "198.51.100.7")
    refused = get(served.url, file_of(OURS), token)
    assert refused.status_code == 403
    assert HTTPS in refused.json()["error"]
    assert get(served.url, "/healthz").status_code == 200
    monkeypatch.setattr("lundprobe_zarr.service.gate._peer_of", lambda scope: "192.0.2.1")
    answer = get(served.url, file_of(OURS), token)
    assert answer.status_code == 200
    assert answer.headers["strict-transport-security"]


def test_it_speaks_tls(dataset, tmp_path):
    chain, key = certificate(tmp_path)
    token = token_for(tmp_path / "access.json", "me")
    command = [sys.executable, "-m", "lundprobe_zarr", "serve", str(dataset), "--name", OURS]
    command += ["--port", "0", "--access", str(tmp_path / "access.json"), "--host", "localhost"]
    command += ["--certificate", str(chain), "--key", str(key), "--state", str(tmp_path / "state")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = next(x for x in process.stdout if "HF_ENDPOINT" in x).partition("=")[2].strip()
        assert url.startswith("https://localhost:")
        trusted = ssl.create_default_context(cafile=chain)
        with httpx.Client(verify=trusted, headers={"Authorization": f"Bearer {token}"}) as client:
            for _ in range(100):
                try:
                    answer = client.get(url + file_of(OURS))
                    break
                except httpx.ConnectError:
                    time.sleep(0.1)
        assert answer.content == (dataset / "README.md").read_bytes()
        assert answer.headers["strict-transport-security"]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
