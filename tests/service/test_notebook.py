"""`view` of cohorts and patients: the service of a notebook, who may frame it, its end."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.errors import MissingPackageError, UsageError
from lundprobe_zarr.service import notebook
from lundprobe_zarr.service.access.session import cookie_name
from lundprobe_zarr.storage.location import Location

SHOWN = "phantom/standard"


@pytest.fixture(scope="module")
def cohort(dataset):
    return lp.open_cohort(dataset)


@pytest.fixture(scope="module", autouse=True)
def services(tmp_path_factory):
    """The services end with the tests of this file, and keep their files elsewhere."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield
        notebook.end_services()


@pytest.fixture
def anew():
    """No service runs before the test, and none of its own after it."""
    notebook.end_services()
    yield
    notebook.end_services()


def parts(link: str) -> tuple[str, str, str]:
    """Return the service's URL, the link without fragment, and the fragment."""
    where = urlsplit(link)
    return f"{where.scheme}://{where.netloc}", link.partition("#")[0], where.fragment


def framed(shown) -> str:
    """Return what a frame shows."""
    found = re.search(r'<iframe src="([^"]+)"', shown._repr_html_())
    return html.unescape(found[1])


def test_a_frame_shows_the_patient_on_loopback(cohort):
    patient = cohort[0]
    url, _, fragment = parts(framed(patient.view()))
    assert url.startswith("http://127.0.0.1:")
    assert fragment == f"/{SHOWN}/{patient.patient_id}"
    assert 'height="800"' in patient.view()._repr_html_()
    assert 'height="300"' in patient.view(height=300)._repr_html_()


def test_there_is_one_service_a_dataset(cohort, dataset, tmp_path):
    first, second = parts(cohort.view().link())[0], parts(cohort[0].view().link())[0]
    again = parts(lp.open_cohort(dataset).view().link())[0]
    assert first == second == again
    other = shutil.copytree(dataset, tmp_path / "copy")
    assert parts(lp.open_cohort(other).view().link())[0] != first


@pytest.mark.parametrize(
    "select",
    [
        lambda c: c.where("protocol = 'newAcq' AND Rectum.volume_cc > 1.5"),
        lambda c: c[[c.ids[0], c.ids[2]]],
        lambda c: c[[]],
        lambda c: c[:1] | c.where("part = 'extended'"),
    ],
)
def test_the_page_of_a_cohort_selects_its_patients(cohort, select):
    chosen = select(cohort)
    _, _, fragment = parts(chosen.view().link())
    path, _, query = fragment.partition("?")
    assert path == f"/{SHOWN}"
    (where,) = parse_qs(query, strict_parsing=True)["where"]
    assert cohort.where(where).ids == chosen.ids
    assert unquote(query.removeprefix("where=")) == where  # as the page has it, without `+`


def test_the_page_of_all_patients_has_no_condition(cohort):
    assert parts(cohort.view().link())[2] == f"/{SHOWN}"


def test_a_selection_that_the_service_would_refuse_is_said_at_once(cohort):
    long = " OR ".join(["patient_id = 'newAcq_0000000000000000'"] * 500)
    with pytest.raises(UsageError, match="characters"):
        cohort.where(long).view()


def test_a_link_is_good_for_one_browser(cohort):
    url, link, _ = parts(cohort.view().link())
    with httpx.Client() as browser:
        assert httpx.get(f"{url}/api/v1/session").status_code == 401
        assert browser.get(link).headers["location"] == "./"
        assert browser.get(f"{url}/api/v1/session").json()["datasets"][0]["name"] == SHOWN
        assert browser.get(link).status_code == 303  # shown again: the notebook was scrolled
    refused = httpx.get(link)
    assert refused.status_code == 403
    assert "cell" in refused.json()["error"]
    number, _, proof = link.partition("code=")[2].partition(".")
    forged = [f"{number}.{proof[:-1]}", f"0{number}.{proof}", number, "", ".", "é.é"]
    for code in forged:
        assert httpx.get(f"{url}/enter", params={"code": code}).status_code == 403


@pytest.mark.parametrize(
    ("site", "dest", "same_site"),
    [
        ("cross-site", "iframe", "None; Secure; Partitioned"),
        ("same-site", "iframe", "Strict"),
        ("same-origin", "iframe", "Strict"),
        ("cross-site", "document", "Strict"),
    ],
)
def test_the_cookie_is_partitioned_in_a_frame_of_another_site_alone(cohort, site, dest, same_site):
    _, link, _ = parts(cohort.view().link())
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Dest": dest}
    cookie = httpx.get(link, headers=headers).headers["set-cookie"]
    assert "; HttpOnly; " in cookie
    assert cookie.partition("; SameSite=")[2] == same_site


def test_only_the_page_of_a_notebook_may_be_framed_and_by_this_machine_alone(cohort, served):
    url, _, _ = parts(cohort.view().link())
    policy = httpx.get(url).headers["content-security-policy"]
    frames = policy.partition("frame-ancestors ")[2].split()
    assert frames[:3] == ["'self'", "http://127.0.0.1:*", "http://localhost:*"]
    assert "*" not in frames
    assert "x-frame-options" not in httpx.get(url).headers
    data = httpx.get(f"{url}/api/v1/session").headers
    assert "frame-ancestors 'none'" in data["content-security-policy"]
    for path in ("/", "/api/v1/session", "/enter"):
        shared = httpx.get(served.url + path).headers
        assert shared["x-frame-options"] == "DENY"
        assert shared["content-security-policy"].count("frame-ancestors 'none'") == 1


def test_log_out_removes_either_cookie(cohort):
    url, link, _ = parts(cohort.view().link())
    with httpx.Client(headers={"Origin": url}) as browser:
        browser.get(link)
        removed = browser.post(f"{url}/logout").headers.get_list("set-cookie")
    assert [c.startswith(f"{cookie_name(url)}=; Max-Age=0") for c in removed] == [True, True]
    assert ["Partitioned" in c for c in removed] == [False, True]


def test_the_picture_is_the_preview(cohort, dataset, tmp_path):
    picture = cohort[0].view()._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    assert cohort.view()._repr_png_() is None
    damaged = lp.open_cohort(shutil.copytree(dataset, tmp_path / "copy"))[0]
    store = tmp_path / "copy" / "patients" / f"{damaged.patient_id}.zarr"
    (store / "zarr.json").write_text("{")
    assert damaged.view()._repr_png_() is None
    assert "iframe" in damaged.view()._repr_html_()


def test_browsers_elsewhere_reach_it_by_the_url_of_the_environment(anew, cohort, monkeypatch):
    monkeypatch.setenv(notebook.URL_VARIABLE, "/user/me/proxy/{port}/")
    monkeypatch.setenv(notebook.ORIGINS_VARIABLE, "https://hub.example.org http://lab:8888")
    link = framed(cohort.view())
    port = re.fullmatch(r"/user/me/proxy/(\d+)/enter\?code=\S+", link.partition("#")[0])[1]
    policy = httpx.get(f"http://127.0.0.1:{port}").headers["content-security-policy"]
    assert policy.endswith(" https://hub.example.org http://lab:8888")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (notebook.URL_VARIABLE, "javascript:alert(1)"),
        (notebook.URL_VARIABLE, "https://hub/{port}?x"),
        (notebook.ORIGINS_VARIABLE, "https://hub.example.org/lab"),
        (notebook.ORIGINS_VARIABLE, "*"),
        (notebook.ORIGINS_VARIABLE, "'unsafe';"),
    ],
)
def test_what_the_environment_says_wrong_is_refused(anew, cohort, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=name):
        cohort.view()
    monkeypatch.delenv(name)
    assert "iframe" in cohort.view()._repr_html_()


def test_a_height_must_be_positive(cohort):
    with pytest.raises(UsageError, match="height"):
        cohort.view(height=0)


def test_without_the_packages_of_the_service_it_says_how_to_get_them(cohort, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingPackageError, match="serve"):
        cohort.view()


def test_the_arguments_of_a_location_open_it_again(dataset, monkeypatch):
    monkeypatch.chdir(dataset.parent)
    given = Location(dataset.name, {"timeout": 7}).arguments
    monkeypatch.chdir(dataset)
    again = Location(*given)
    assert again.exists("lundprobe.json")
    assert again.arguments == given
    assert given[1]["timeout"] == 7


PROGRAM = """
import os, sys, time
from urllib.request import urlopen
import lundprobe_zarr as lp

def answers(url):
    try:
        return urlopen(url + "/healthz", timeout=20).status
    except OSError as error:
        return type(getattr(error, "reason", error)).__name__

cohort = lp.open_cohort(sys.argv[1])
sys.modules["starlette"] = None  # nothing of the service may be imported without its packages
try:
    cohort.view()
except lp.LundProbeError as error:
    assert "serve" in str(error)
del sys.modules["starlette"]
url = cohort.view().link().partition("/enter")[0]
assert answers(url) == 200
ready, go = os.pipe(), os.pipe()
child = os.fork()
if not child:
    own = cohort.view().link().partition("/enter")[0]
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    assert own != url, own
    assert (answers(own), answers(url)) == (200, "ConnectionRefusedError")
    sys.exit(0)
os.read(ready[0], 1)
from lundprobe_zarr.service.notebook import end_services
assert answers(url) == 200
end_services()
os.write(go[1], b"x")
assert os.waitpid(child, 0)[1] == 0
assert answers(url) == "ConnectionRefusedError"
print(cohort.view().link().partition("/enter")[0])
"""


def test_a_fork_does_not_inherit_it_and_it_ends_with_the_process(dataset, tmp_path):
    warned = "ignore:This process:DeprecationWarning"  # Python from 3.12 on: threads and a fork
    ran = subprocess.run(
        [sys.executable, "-W", warned, "-c", PROGRAM, str(dataset)],
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    with pytest.raises(httpx.ConnectError):
        httpx.get(ran.stdout.strip())
