"""Who may come in by token: grants, expiry, revocation, and an access file that changes."""

from __future__ import annotations

import base64
import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from lundprobe_zarr.errors import UsageError
from lundprobe_zarr.service.access.access_file import read_access, revoke
from lundprobe_zarr.service.access.callers import new_token, token_id, without_tokens
from tests.service.callers import OURS, THEIRS, file_of, get, token_for

BAD = "Invalid credentials in Authorization header"


@pytest.fixture(scope="module")
def gate(start_for_module, dataset, tmp_path_factory):
    """A service of one phantom under two names: `served`, its access file, and tokens by name."""
    access = tmp_path_factory.mktemp("access") / "access.json"
    now = datetime.now(UTC)
    tokens = {
        "ours": token_for(access, "ours", datasets=[OURS]),
        "theirs": token_for(access, "theirs", datasets=[THEIRS]),
        "all": token_for(access, "all"),
        "tables": token_for(access, "tables", kinds=["tables"]),
        "expired": token_for(access, "expired", expires=now - timedelta(seconds=1)),
        "ends": token_for(access, "ends", expires=now + timedelta(hours=1)),
        "operator": token_for(access, "operator", operator=True, datasets=[]),
    }
    served = start_for_module({OURS: dataset, THEIRS: dataset}, access=str(access))
    return served, access, tokens


def shard_of(dataset):
    return next(p for p in sorted((dataset / "patients").rglob("c/*")) if p.is_file())


@pytest.mark.parametrize(
    ("who", "mine", "other"), [("ours", OURS, THEIRS), ("theirs", THEIRS, OURS)]
)
def test_callers_with_different_grants_never_see_each_others(gate, dataset, who, mine, other):
    served, _, tokens = gate
    for path in ("README.md", "lundprobe.json", "metadata/patients.parquet"):
        assert get(served.url, file_of(mine, path), tokens[who]).content == (
            (dataset / path).read_bytes()
        )
        refused = get(served.url, file_of(other, path), tokens[who])
        assert (refused.status_code, refused.headers["x-error-code"]) == (403, "GatedRepo")
        assert "no access terms apply" in refused.json()["error"]
    hidden = f"/datasets/{other}/resolve"
    for path in (f"/api/datasets/{other}", f"/api/datasets/{other}/tree/main"):
        answer = get(served.url, path, tokens[who])
        assert answer.status_code in (403, 404)
        assert hidden not in answer.text
    assert other not in get(served.url, "/api/datasets", tokens[who]).text.replace(
        "/api/datasets", ""
    )


def test_a_token_for_tables_gets_no_voxel(gate, dataset):
    served, _, tokens = gate
    assert get(served.url, file_of(OURS), tokens["tables"]).status_code == 200
    stores = [p for p in (dataset / "patients").rglob("*") if p.is_file()]
    assert any(p.name == "zarr.json" for p in stores)
    for file in stores:
        path = file.relative_to(dataset).as_posix()
        refused = get(served.url, file_of(OURS, path), tokens["tables"])
        assert (refused.status_code, refused.headers["x-error-code"]) == (403, "GatedRepo")
        assert len(refused.content) < 500


@pytest.mark.parametrize(
    ("who", "said"),
    [("expired", "expired on"), ("nonsense", "no such token"), ("secret", "no such token")],
)
def test_a_token_that_is_no_good(gate, who, said):
    served, _, tokens = gate
    known = tokens["all"]
    made_up = {"nonsense": new_token(), "secret": known[:-1] + ("A" if known[-1] != "A" else "B")}
    answer = get(served.url, file_of(OURS), tokens.get(who) or made_up[who])
    assert answer.status_code == 401
    assert answer.headers["x-error-message"] == BAD, "with any other text, clients report a 404"
    assert said in answer.json()["error"]
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_token_that_ends_later_is_good(gate):
    served, _, tokens = gate
    assert get(served.url, file_of(OURS), tokens["ends"]).status_code == 200


def test_without_a_token_the_answer_says_how_to_apply(gate):
    served, _, _ = gate
    answer = get(served.url, file_of(OURS))
    assert (answer.status_code, answer.headers["x-error-code"]) == (401, "GatedRepo")
    assert "HF_TOKEN" in answer.json()["error"]
    assert "no access terms apply" in answer.json()["error"]


def test_a_token_may_be_the_password_of_basic_authentication(gate):
    served, _, tokens = gate
    pair = base64.b64encode(f"me:{tokens['all']}".encode()).decode()
    answer = get(served.url, file_of(OURS), authorization=f"Basic {pair}")
    assert answer.status_code == 200


def test_two_tokens_in_one_request_are_none(gate):
    served, _, tokens = gate
    twice = [("Authorization", f"Bearer {tokens[w]}") for w in ("ours", "all")]
    assert httpx.get(served.url + file_of(THEIRS), headers=twice).status_code == 401


def test_an_operator_without_datasets_gets_no_data(gate):
    served, _, tokens = gate
    assert get(served.url, file_of(OURS), tokens["operator"]).status_code == 403


def within_a_second(condition):
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_token_is_taken_and_refused_within_a_second_of_its_change(gate):
    served, access, _ = gate
    token = token_for(access, "guest")

    def status():
        return get(served.url, file_of(OURS), token).status_code

    assert within_a_second(lambda: status() == 200)
    revoke(access, "guest")
    assert within_a_second(lambda: status() == 401)
    assert "revoked" in get(served.url, file_of(OURS), token).json()["error"]


def test_a_damaged_file_leaves_the_one_before_in_force(gate, caplog, monkeypatch):
    served, access, tokens = gate
    monkeypatch.setattr(logging.getLogger("lundprobe_zarr"), "propagate", True)
    kept = access.read_bytes()
    access.write_bytes(kept[: len(kept) // 2])
    try:
        time.sleep(0.4)
        assert get(served.url, file_of(OURS), tokens["ours"]).status_code == 200
        assert "the access file is damaged" in caplog.text
        assert "stays in force" in caplog.text
        access.unlink()
        time.sleep(0.4)
        assert get(served.url, file_of(OURS), tokens["ours"]).status_code == 200
    finally:
        access.write_bytes(kept)
        access.chmod(0o600)
    assert within_a_second(
        lambda: get(served.url, file_of(OURS), tokens["ours"]).status_code == 200
    )


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_file_that_others_may_read_is_refused(tmp_path, mode):
    access = tmp_path / "access.json"
    token_for(access, "me")
    assert access.stat().st_mode & 0o777 == 0o600
    access.chmod(mode)
    with pytest.raises(UsageError, match=f"chmod 600 {access}"):
        read_access(access)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version"),
        ({"format": "other"}, "format"),
        ({"more": 1}, "more"),
        ({"tokens": [{"name": "x"}]}, "tokens.0"),
        ({"sign_ins": [{"email": "a@b", "group": "g"}]}, "an e-mail or a group"),
        ({"sign_ins": [{}]}, "an e-mail or a group"),
        ({"sign_ins": [{"email": "a@b"}, {"email": "A@b"}]}, "two entries"),
    ],
)
def test_a_damaged_file_is_refused_and_says_why(tmp_path, change, said):
    access = tmp_path / "access.json"
    token_for(access, "me")
    document = json.loads(access.read_text()) | change
    access.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=said) as error:
        read_access(access)
    assert str(access) in str(error.value)


def test_a_file_holds_no_token(tmp_path):
    access = tmp_path / "access.json"
    token = token_for(access, "me", email="me@example.org")
    text = access.read_text()
    assert token_id(token) in text
    assert token.rpartition("_")[2] not in text
    assert len(token.partition("_")[2].partition("_")[2]) >= 43, "256 bits"


def test_no_log_shows_a_token():
    token = new_token()
    for text in (f"GET /{token}/x", f"a {token}", f"{token}{token}"):
        shown = without_tokens(text)
        assert token[14:] not in shown
        assert token_id(token) in shown, "its public id helps to find whose it is"


def test_a_public_service_names_who_has_a_token_of_its_own(start_service, dataset, tmp_path):
    access = tmp_path / "access.json"
    token = token_for(access, "me", datasets=[], operator=True)
    served = start_service({OURS: dataset}, access=str(access), public=True)
    for given in (None, "hf_of_another_hub", token):
        assert get(served.url, file_of(OURS), given).status_code == 200
    assert get(served.url, file_of(OURS), new_token()).status_code == 401
    assert get(served.url, "/metrics").status_code == 401
    assert get(served.url, "/metrics", token).status_code == 200
    callers = [json.loads(line).get("caller") for line in served.audit.read_text().splitlines()]
    assert callers[:3] == ["anyone", "anyone", "me"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_stays_its_owners(tmp_path):
    access = tmp_path / "access.json"
    token_for(access, "one")
    os.chown(access, 12345, 12345)
    token_for(access, "two")
    found = access.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (12345, 12345, 0o600)


def test_commands_at_a_time_lose_nothing(tmp_path):
    access = tmp_path / "access.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: token_for(access, f"token-{n}"), range(24)))
    assert len(read_access(access).tokens) == 24
