"""Draw the pictures of the page for the documentation, of a phantom, in headless Chromium.

Needs Chromium and Playwright. Writes docs/images/page-*.webp, each of at most 150 kB.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import lundprobe_zarr as lp
from lundprobe_zarr.service.access.callers import new_token, token_sha256
from lundprobe_zarr.service.app import make_app
from lundprobe_zarr.service.run import config, listen
from lundprobe_zarr.service.settings import Settings

IMAGES = Path(__file__).parents[1] / "docs" / "images"
MOST_BYTES = 150_000
SIZE = {"width": 1440, "height": 860}
DRAWN = "canvas[data-ready=full]"
BUT_TARGET = "PTVT_427,Rectum,Bladder,PenileBulb,Genitalia,FemoralHead_L,FemoralHead_R,BODY"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def make_dataset(folder: Path, name: str, *options: str) -> Path:
    """Write and convert a phantom with the command line."""
    source, dataset = folder / f"{name}-source", folder / name
    for command in (["phantom", str(source), *options], ["convert", str(source), str(dataset)]):
        subprocess.run([sys.executable, "-m", "lundprobe_zarr", *command], check=True)
    return dataset


@contextmanager
def served(datasets: dict[str, Path], state: Path) -> Iterator[tuple[str, str]]:
    """Serve datasets on a free port; yield the URL and a token."""
    token, listening = new_token(), listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    settings = Settings(
        datasets={name: str(path) for name, path in datasets.items()},
        state=str(state),
        public_url=url,
        token_sha256=token_sha256(token),
    )
    server = uvicorn.Server(config(make_app(settings)))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield url, token
    server.should_exit = True
    thread.join(30)


def save(page: Page, name: str) -> None:
    """Save what a page shows as WebP, in the best quality that is small enough."""
    picture = Image.open(io.BytesIO(page.screenshot()))
    for quality in (88, 80, 70, 60, 50):
        made = io.BytesIO()
        picture.save(made, "webp", quality=quality, method=6)
        if made.tell() <= MOST_BYTES:
            break
    (IMAGES / f"{name}.webp").write_bytes(made.getvalue())
    print(f"{name}.webp: {made.tell()} bytes")


def draw(page: Page, url: str, token: str, patient: str) -> None:
    """Draw all pictures."""

    def show(fragment: str, wait: str, name: str) -> None:
        page.goto(f"{url}/#{fragment}")
        page.wait_for_selector(wait)
        page.wait_for_timeout(1500)
        save(page, name)

    page.goto(url)
    page.fill("#token", token)
    page.click("button.main")
    page.wait_for_selector(".datasets")
    where = "where=protocol+%3D+'newAcq'+AND+NOT+missing_PenileBulb&sort=-dose_max_gy"
    show(f"/phantom/cohort?{where}", ".bars .part", "page-cohort")
    one = f"/phantom/patient/{patient}"
    show(one, f".sagittal {DRAWN}", "page-patient")
    page.locator("svg.dvh").hover(position={"x": 180, "y": 60})
    beside = f"?lay=observers&wash=0&isodoses=0&unc=CTVT_427&zoom=4&hide={BUT_TARGET}"
    show(one + beside, DRAWN, "page-observers")
    show(f"{one}?grid=sct&lay=axial", DRAWN, "page-ct")


def main() -> None:
    """Draw the pictures, of the datasets given or of new phantoms."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        given = [Path(path) for path in sys.argv[1:3]] or [
            make_dataset(place, "cohort", "--patients", "90", "--extended", "10"),
            make_dataset(place, "patient", "--size", "small", "--patients", "1"),
        ]
        datasets = {"phantom/cohort": given[0], "phantom/patient": given[1]}
        patient = lp.open_cohort(given[1]).where(
            "part = 'extended' AND len(missing_structures) = 0"
        )
        IMAGES.mkdir(exist_ok=True)
        with served(datasets, place / "state") as (url, token), sync_playwright() as playwright:
            chromium = shutil.which("chromium") or shutil.which("chromium-browser")
            browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            context = browser.new_context(viewport=SIZE, color_scheme="dark")
            draw(context.new_page(), url, token, patient.ids[0])
            browser.close()


if __name__ == "__main__":
    main()
