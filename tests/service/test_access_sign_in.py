"""Who may come in by signing in: JWTs of an issuer, and what a trusted proxy states."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.service.access.access_file import Grant, add_sign_in, revoke
from lundprobe_zarr.service.access.oidc import JwtIdentity, JwtRules, read_oidc
from lundprobe_zarr.service.http.answers import HttpError
from tests.service.callers import OURS, THEIRS, file_of, get, token_for

ISSUER, AUDIENCE = "https://login.example.org", "lund-probe"
KEYS = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
_KINDS = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}


def public(algorithm, key=None, **more):
    key = key or KEYS[algorithm]
    found = json.loads(_KINDS[algorithm].to_jwk(key.public_key()))
    return found | {"kid": algorithm, "use": "sig"} | more


def jwks(folder, *keys):
    file = folder / "jwks.json"
    file.write_text(json.dumps({"keys": list(keys)}))
    return file


def signed(algorithm="RS256", key=None, headers=None, **claims):
    given = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 600, "sub": "s-1"} | claims
    given = {k: v for k, v in given.items() if v is not None}
    head = {"kid": algorithm} if headers is None else headers
    return jwt.encode(given, key or KEYS[algorithm], algorithm, head)


@pytest.fixture(scope="module")
def gate(start_for_module, dataset, tmp_path_factory):
    """A service with sign-in by JWT and by the headers of a proxy, which is this machine."""
    folder = tmp_path_factory.mktemp("oidc")
    access = folder / "access.json"
    token_for(access, "token")
    add_sign_in(access, "reader-1@example.org", Grant(datasets=(OURS,)))
    add_sign_in(access, "gone@example.org", Grant())
    add_sign_in(access, "group:theirs", Grant(datasets=(THEIRS,)))
    add_sign_in(access, "group:all", Grant())
    revoke(access, "gone@example.org")
    jwks(folder, *map(public, KEYS))
    rules = {
        "proxy": {},
        "jwt": {"issuer": ISSUER, "audience": AUDIENCE, "jwks": "jwks.json"},
    }
    (folder / "oidc.json").write_text(json.dumps(rules))
    settings = {"access": str(access), "oidc": str(folder / "oidc.json")}
    return start_for_module(
        {OURS: dataset, THEIRS: dataset}, trusted_proxies=("127.0.0.1", "10.1.0.0/16"), **settings
    )


def statuses(gate, *token, **headers):
    return tuple(get(gate.url, file_of(d), *token, **headers).status_code for d in (OURS, THEIRS))


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_jwt_of_each_kind_lets_in(gate, algorithm):
    assert statuses(gate, signed(algorithm, email="reader-1@example.org")) == (200, 403)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"email": "READER-1@example.org"}, (200, 403)),
        ({"email": "reader-1@example.org", "email_verified": True}, (200, 403)),
        ({"email": "reader-1@example.org", "email_verified": False}, (403, 403)),
        ({"email": "reader-1@example.org", "groups": ["all"]}, (200, 403)),
        ({"email": "new@example.org", "groups": ["x", "theirs"]}, (403, 200)),
        ({"groups": ["all", "theirs"]}, (403, 200)),
        ({"groups": "x all"}, (200, 200)),
        ({"email": "new@example.org"}, (403, 403)),
        ({"email": "gone@example.org", "groups": ["all"]}, (403, 403)),
        ({"email": ["reader-1@example.org"], "groups": {"all": 1}}, (403, 403)),
    ],
)
def test_one_entry_decides_what_somebody_may_have(gate, claims, expected):
    assert statuses(gate, signed(**claims)) == expected


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (lambda: signed(aud="other"), "another audience"),
        (lambda: signed(iss="https://evil.example"), "another issuer"),
        (lambda: signed(exp=time.time() - 60), "expired"),
        (lambda: signed(exp=None), "lacks exp"),
        (lambda: signed(aud=None), "lacks exp, iss or aud"),
        (lambda: signed(nbf=time.time() + 600), "not valid yet"),
        (lambda: signed(sub=None), "names nobody"),
        (lambda: signed(headers={"kid": "other"}), "not known"),
        (lambda: signed(headers={}), "not known"),
        (lambda: signed(key=rsa.generate_private_key(65537, 2048)), "signature is wrong"),
        (lambda: jwt.encode({"email": "reader-1@example.org"}, None, "none", {"kid": "RS256"}), ""),
        (lambda: signed("HS256", b"x" * 64, {"kid": "RS256"}), "expected a signature by"),
        (lambda: "a.b.c", "damaged"),
        (lambda: ".".join(["W1tb" * 6000, "x", "y"]), "damaged"),
    ],
)
def test_a_jwt_that_is_not_accepted(gate, token, said):
    answer = get(gate.url, file_of(OURS), token())
    assert answer.status_code == 401
    assert said in answer.json()["error"]


def test_a_public_key_is_no_secret_of_a_symmetric_signature(gate):
    """The known confusion: a token signed by HMAC, with the issuer's public key as the secret."""
    pem = KEYS["RS256"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 600, "sub": "x"}

    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    head = part(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "RS256"}).encode())
    body = head + b"." + part(json.dumps(claims).encode())
    token = body + b"." + part(hmac.new(pem, body, hashlib.sha256).digest())
    assert get(gate.url, file_of(OURS), token.decode()).status_code == 401


def test_a_jwt_ends_while_it_is_kept(tmp_path):
    rules = JwtRules(issuer=ISSUER, audience=AUDIENCE, jwks=str(jwks(tmp_path, public("RS256"))))
    identities = JwtIdentity(rules)
    token = signed(email="a@example.org", exp=int(time.time()) - 29)  # clocks may differ by 30 s
    assert identities.identity(token).email == "a@example.org"
    time.sleep(1.1)
    with pytest.raises(HttpError, match="expired") as error:
        identities.identity(token)
    assert error.value.status == 401


def test_a_key_that_is_withdrawn_lets_nobody_in(tmp_path):
    file = jwks(tmp_path, public("RS256"))
    identities = JwtIdentity(JwtRules(issuer=ISSUER, audience=AUDIENCE, jwks=str(file)))
    token = signed()
    assert identities.identity(token).name == "s-1"
    jwks(tmp_path, public("ES256"))
    time.sleep(0.35)
    with pytest.raises(HttpError, match="not known here"):
        identities.identity(token)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([], "no key that can be used"),
        ([{"kty": "oct", "k": "c2VjcmV0"}], "no key that can be used"),
        ([public("RS256", use="enc")], "no key that can be used"),
        ([public("RS256", rsa.generate_private_key(65537, 1024))], "no key that can be used"),
        ([public("ES256", ec.generate_private_key(ec.SECP384R1()))], "no key that can be used"),
        ([json.loads(RSAAlgorithm.to_jwk(KEYS["RS256"]))], "private key"),
        ([{"kty": "RSA"}], "damaged"),
        (["x"], "damaged"),
    ],
)
def test_keys_that_cannot_be_used(tmp_path, keys, said):
    rules = JwtRules(issuer=ISSUER, audience=AUDIENCE, jwks=str(jwks(tmp_path, *keys)))
    with pytest.raises(UsageError, match=said):
        JwtIdentity(rules)


def test_a_trusted_proxy_says_who_it_is(gate):
    assert statuses(gate, x_forwarded_email="reader-1@example.org") == (200, 403)
    assert statuses(gate, x_forwarded_email="new@x.org", x_forwarded_groups="a,all") == (200, 200)
    assert statuses(gate) == (401, 401)
    line = json.loads(gate.audit.read_text().splitlines()[0])
    assert line["caller"] in ("reader-1@example.org", "READER-1@example.org")


def test_two_identities_in_one_request_are_none(gate):
    twice = [("X-Forwarded-Email", e) for e in ("reader-1@example.org", "new@example.org")]
    assert httpx.get(gate.url + file_of(OURS), headers=twice).status_code == 403


def test_anybody_elses_identity_header_is_ignored(start_service, dataset, gate, tmp_path):
    settings = gate.app._service.settings
    served = start_service(
        {OURS: dataset},
        access=settings.access,
        oidc=settings.oidc,
        trusted_proxies=("10.1.0.0/16",),
    )
    answer = get(
        served.url,
        file_of(OURS),
        x_forwarded_email="reader-1@example.org",
        x_forwarded_for="203.0.113.9",
    )
    assert answer.status_code == 401
    line = json.loads(served.audit.read_text().splitlines()[-1])
    assert line["address"] == "127.0.0.1", "nor is the address it states believed"


@pytest.mark.parametrize(
    ("stated", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, 10.1.2.3", "203.0.113.9"),
        ("evil\x01, 10.1.2.3", "127.0.0.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("10.1.0.1", "127.0.0.1"),
    ],
)
def test_the_address_is_the_last_that_is_no_proxy_of_ours(gate, stated, address):
    get(gate.url, file_of(OURS), x_forwarded_for=stated.replace("\x01", "x"))
    assert json.loads(gate.audit.read_text().splitlines()[-1])["address"] == address


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "nothing is set"),
        ("[", "no JSON"),
        ('{"jwt": {"issuer": "x"}}', "audience"),
        ('{"proxy": {"secret": 1}}', "secret"),
    ],
)
def test_a_configuration_that_cannot_be_used(tmp_path, text, said):
    file = tmp_path / "oidc.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_oidc(file)
