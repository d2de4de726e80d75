"""The page in a frame, as a notebook holds it: a page of another origin, in Chromium."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_page_browser import CHROMIUM, READY, chromium, sync_api

import lundprobe_zarr as lp
from lundprobe_zarr.service import notebook

__all__ = ["chromium"]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


class Notebook:
    """A page that holds an output of a cell, under several names of this machine."""

    def __init__(self) -> None:
        self.output = ""
        notebook_page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(f"<!doctype html><p>Cell</p>{notebook_page.output}".encode())

            def log_message(self, *_args: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def url(self, host: str) -> str:
        return f"http://{host}:{self.server.server_port}/"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture(scope="module")
def cell() -> Iterator[Notebook]:
    found = Notebook()
    yield found
    found.close()


@pytest.fixture(scope="module")
def patient(dataset, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield lp.open_cohort(dataset)[0]
        notebook.end_services()


@pytest.fixture
def window(chromium):
    context = chromium.new_context(viewport={"width": 1100, "height": 900})
    page = context.new_page()
    page.set_default_timeout(20_000)
    yield page
    context.close()


def expect_patient(page: sync_api.Page, patient_id: str) -> sync_api.FrameLocator:
    frame = page.frame_locator("iframe")
    frame.locator(READY).first.wait_for()
    assert patient_id in frame.locator("#crumb").inner_text()
    return frame


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_frame_shows_the_patient_and_does_so_again(cell, window, patient, host):
    """`localhost` is another site than 127.0.0.1: cookies there are those of a third party."""
    cell.output = patient.view()._repr_html_()
    window.goto(cell.url(host))
    frame = expect_patient(window, patient.patient_id)
    kept = window.context.cookies()
    assert [c["sameSite"] for c in kept] == ["None" if host == "localhost" else "Strict"]
    assert kept[0]["httpOnly"]
    window.reload()  # the code is used, and the cookie is there
    frame = expect_patient(window, patient.patient_id)
    # A POST, and so the check of its origin.
    frame.locator("text=Patients").first.click()
    frame.locator(".grid tbody tr").first.wait_for()
    with window.expect_response(re.compile(r"/(cohort|sql)$")) as answer:
        frame.locator("#where").fill("protocol = 'newAcq'")
        frame.locator("#where").press("Enter")
    assert answer.value.ok


def test_the_link_below_opens_a_window_of_its_own(cell, window, patient):
    cell.output = patient.view()._repr_html_()
    window.goto(cell.url("localhost"))
    with window.context.expect_page() as opened:
        window.click("text=in a window of its own")
    opened.value.locator(READY).first.wait_for()
    assert opened.value.evaluate("window.opener") is None


def test_an_output_that_somebody_else_opens_shows_nothing(cell, window, patient):
    cell.output = patient.view()._repr_html_()
    window.goto(cell.url("localhost"))
    expect_patient(window, patient.patient_id)
    other = window.context.browser.new_context()
    page = other.new_page()
    page.goto(cell.url("localhost"))
    page.frame_locator("iframe").locator("text=once").wait_for()
    assert other.cookies() == []
    other.close()


def test_a_page_of_another_origin_may_not_frame_it(cell, window, patient):
    """127.0.0.2 is this machine too, but no address that notebooks are at."""
    cell.output = patient.view()._repr_html_()
    refusals = []
    window.on("console", lambda message: refusals.append(message.text))
    window.goto(cell.url("127.0.0.2"))
    window.wait_for_timeout(500)
    assert any("frame-ancestors" in text for text in refusals)
    assert window.frames[1].locator("main").count() == 0


def test_no_page_may_frame_a_shared_service(cell, window, served):
    cell.output = f'<iframe src="{html.escape(served.url)}/"></iframe>'
    refusals = []
    window.on("console", lambda message: refusals.append(message.text))
    window.goto(cell.url("127.0.0.1"))
    window.wait_for_timeout(500)
    assert any("frame-ancestors" in text or "X-Frame-Options" in text for text in refusals)
    assert window.frames[1].locator("main").count() == 0
