"""The page over HTTP: what is open, how files are kept, log-in, requests of other sites."""

from __future__ import annotations

import re

import httpx
import pytest

from lundprobe_zarr.service.access.callers import token_sha256
from lundprobe_zarr.service.access.session import cookie_name, token_cookie, with_credentials
from lundprobe_zarr.service.page import page
from tests.service.conftest import NAME

SQL = f"/api/datasets/{NAME}/sql"
QUESTION = {"sql": "SELECT count(*) AS n FROM patients"}


@pytest.fixture
def browser(served):
    """A client like a browser's: it keeps cookies, and says whose page its requests are from."""
    with httpx.Client(base_url=served.url, headers={"Origin": served.url}, timeout=30) as client:
        yield client


@pytest.fixture
def logged_in(browser, served):
    assert browser.post("/login", json={"token": served.token}).status_code == 200
    return browser


def test_the_page_is_open_and_says_nothing_of_a_dataset(served):
    answer = httpx.get(served.url + "/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert NAME not in answer.text


def test_the_page_runs_nothing_but_its_own_files(served):
    answer = httpx.get(served.url + "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", answer.text)
    assert not re.search(r"(src|href)=\"(https?:)?//", answer.text)


def test_no_file_of_the_page_names_another_host():
    for name, file in page().files.items():
        hosts = set(re.findall(r"https?://[\w.]+", file.content.decode()))
        assert hosts <= {"http://www.w3.org"}, name  # the name of SVG's elements


def test_files_are_kept_for_ever_and_the_page_is_asked_for_anew(served):
    index = httpx.get(served.url + "/")
    assert index.headers["cache-control"] == "no-cache"
    again = httpx.get(served.url + "/", headers={"If-None-Match": index.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for path in re.findall(r'(?:src|href)="(page/[^"]+)"', index.text):
        file = httpx.get(f"{served.url}/{path}")
        assert file.status_code == 200, path
        assert file.headers["cache-control"] == "public, max-age=31536000, immutable"


def test_every_module_that_a_module_imports_is_there(served):
    files = page().files
    for name, file in files.items():
        if name.endswith(".js"):
            wanted = re.findall(r'(?:from|import\()\s*"\./([^"]+)"', file.content.decode())
            assert set(wanted) <= set(files), name


def test_the_first_paint_takes_less_than_100_kilobytes(served):
    index = httpx.get(served.url + "/")
    paths = re.findall(r'(?:src|href)="(page/[^"]+)"', index.text)
    sent = [httpx.get(f"{served.url}/{path}") for path in dict.fromkeys(paths)]
    assert sum(int(a.headers["content-length"]) for a in [index, *sent]) < 100_000


@pytest.mark.parametrize(
    "path", ["page/0123456789abcdef/app.js", "page/{0}/nothing.js", "page/{0}"]
)
def test_another_version_or_file_is_not_found(served, path):
    answer = httpx.get(f"{served.url}/{path.format(page().version)}")
    assert answer.status_code == 404


def test_log_in_sets_a_cookie_that_no_script_reads(browser, served):
    answer = browser.post("/login", json={"token": served.token})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(cookie_name(served.url))
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Secure" not in cookie  # plain http on loopback
    assert browser.get("/api/v1/session").json()["name"] == "start-token"
    assert browser.post(SQL, json=QUESTION).status_code == 200


def test_behind_tls_the_cookie_is_secure_and_of_this_host_alone():
    cookie = token_cookie("https://data.example.org", "lp_x")
    assert cookie.startswith("__Host-")
    assert "; Secure" in cookie
    assert "Path=/" in cookie
    assert "Domain" not in cookie


def test_two_services_on_one_machine_have_two_cookies():
    assert cookie_name("http://127.0.0.1:8000") != cookie_name("http://127.0.0.1:8001")


@pytest.mark.parametrize("token", ["lp_wrong", "lp_a;Path=/x", "lp_a\r\nSet-Cookie: b=c", "é"])
def test_a_wrong_token_sets_no_cookie(browser, token):
    answer = browser.post("/login", json={"token": token})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert token not in answer.text


def test_log_out_removes_the_cookie_and_what_the_browser_has_kept(logged_in):
    assert logged_in.get("/api/v1/session").status_code == 200
    answer = logged_in.post("/logout")
    assert answer.status_code == 200
    assert answer.headers["clear-site-data"] == '"cache"'
    assert logged_in.get("/api/v1/session").status_code == 401


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", None])
def test_a_request_of_another_site_is_refused_with_the_cookie(logged_in, origin):
    del logged_in.headers["origin"]
    headers = {} if origin is None else {"Origin": origin}
    assert logged_in.post(SQL, json=QUESTION, headers=headers).status_code == 403
    assert logged_in.post("/logout", headers=headers).status_code == 403
    assert logged_in.get("/api/v1/session", headers=headers).status_code == 200


def test_another_site_cannot_log_somebody_in(served):
    foreign = {"Origin": "https://evil.example"}
    answer = httpx.post(served.url + "/login", json={"token": served.token}, headers=foreign)
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_a_password_that_the_browser_keeps_is_no_proof_for_another_site(served):
    def post(**headers):
        url = served.url + SQL
        return httpx.post(url, json=QUESTION, headers=headers, auth=("any", served.token))

    assert post(Origin="https://evil.example").status_code == 403
    assert post(Origin="null").status_code == 403
    assert post(Origin=served.url).status_code == 200
    assert post().status_code == 200, "a program"


def test_a_program_needs_no_origin(served):
    assert httpx.post(served.url + SQL, json=QUESTION, headers=served.headers).status_code == 200


def test_a_request_through_a_forwarded_port_is_of_the_same_page():
    url = "http://127.0.0.1:8000"
    cookie = f"{cookie_name(url)}=lp_x".encode()
    headers = {b"cookie": cookie, b"host": b"localhost:9", b"origin": b"http://localhost:9"}
    assert with_credentials("POST", headers, url)[b"authorization"] == b"Bearer lp_x"


def test_a_token_in_a_header_goes_before_the_cookie():
    url = "http://127.0.0.1:8000"
    headers = {b"cookie": f"{cookie_name(url)}=lp_x".encode(), b"authorization": b"Bearer lp_y"}
    assert with_credentials("GET", headers, url) is headers


def test_a_token_in_the_url_opens_nothing(served):
    for name in ("token", "access_token", "authorization"):
        answer = httpx.get(f"{served.url}/api/v1/session", params={name: served.token})
        assert answer.status_code == 401


def test_the_session_lists_what_the_caller_may_have(logged_in, dataset):
    said = logged_in.get("/api/v1/session").json()
    (about,) = said["datasets"]
    assert about["name"] == NAME
    assert about["kinds"] == ["tables", "voxels"]
    assert about["synthetic"] is True
    names = {c["name"] for c in said["columns"]["patients"]}
    assert {"patient_id", "dose_max_gy"} <= names
    units = {c["name"]: c["unit"] for c in said["columns"]["structure"]}
    assert units["volume_cc"] == "cm3"


def test_sql_of_a_cohort_sees_its_patients_alone(served):
    body = QUESTION | {"where": "protocol = 'newAcq'"}
    with served.client as client:
        some = client.post(SQL, json=body).json()["rows"][0][0]
        cohort = client.post(
            f"/api/datasets/{NAME}/cohort", json={"where": "protocol = 'newAcq'"}
        ).json()
        every = client.post(SQL, json=QUESTION).json()["rows"][0][0]
        wrong = client.post(SQL, json=QUESTION | {"where": "protocl = 'newAcq'"})
    assert some == cohort["num_patients"]
    assert 0 < some < every
    assert wrong.status_code == 422
    assert "protocol" in wrong.json()["error"]


def test_a_caller_without_a_grant_is_told_of_no_dataset(start_service, dataset, tmp_path):
    hidden = start_service({NAME: dataset})
    service = hidden.app._service
    service.access = _Nothing()
    said = httpx.get(f"{hidden.url}/api/v1/session", headers=hidden.headers).json()
    assert said["datasets"] == []


class _Nothing:
    def caller(self, headers, *_more):
        from lundprobe_zarr.service.access.callers import Caller

        assert token_sha256(headers[b"authorization"].decode().removeprefix("Bearer "))
        return Caller("somebody", frozenset())
