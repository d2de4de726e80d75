"""The page in headless Chromium, over a slow line: when a picture, a table, a slice is there.

Needs Playwright and Chromium, whose own network emulation makes the line. Each repetition has a
service that has decoded nothing and a browser that has kept nothing; nothing is fetched before the
click, though a pointer that rests on a patient has the page do so. Times are taken within the page,
from the event to the frame that is drawn. Medians, and the range.

    python -m benchmarks.viewer --dataset /tmp/bench/full --many /tmp/bench/467
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, CDPSession, Page, Request, sync_playwright

import lundprobe_zarr as lp
from benchmarks.planes import measure_people
from benchmarks.record import write_results
from benchmarks.service import NAME, Running, service
from lundprobe_zarr.service.access.session import cookie_name

#: Each line: Mbit/s and ms from a request to the first byte of its answer; None is as it comes.
LINES: dict[str, tuple[float, float] | None] = {
    "5 Mbit/s, 80 ms": (5, 80),
    "20 Mbit/s, 40 ms": (20, 40),
    "loopback": None,
}
#: What is to be reached, ms, by line.
TARGETS = {
    "5 Mbit/s, 80 ms": {
        "axial_first_ms": 1000,
        "axial_whole_ms": 2500,
        "next_slice_ms": 100,
        "coronal_ms": 500,
        "sagittal_ms": 500,
        "table_and_counts_ms": 1500,
    },
    "loopback": {"next_slice_ms": 60},
}
#: Of 20 people who scroll: 95 of 100 answers, and the server's memory.
MOST_SECONDS, MOST_MB = 1.0, 2000
SIZE = {"width": 1440, "height": 860}
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
#: Slices that somebody looks at, one after another, when all that was fetched ahead is there.
_SLICES = 6
#: Notes what is drawn in which pane: images are opaque, the dose is not. A picture that was not
#: drawn before is one of other voxels.
MARKS = """
window.marks = [];
const seen = new WeakSet();
const draw = CanvasRenderingContext2D.prototype.drawImage;
CanvasRenderingContext2D.prototype.drawImage = function (image, ...rest) {
  draw.call(this, image, ...rest);
  const pane = this.canvas.closest(".pane");
  if (!pane || this.globalAlpha < 1 || seen.has(image)) return;
  seen.add(image);
  marks.push({ what: "image", view: pane.classList[1], width: image.width, at: performance.now() });
};
const look = () => {
  const count = document.querySelector(".total b")?.textContent;
  if (count && document.querySelector(".grid tbody tr") && !marks.some((m) => m.what === "table"))
    marks.push({ what: "table", at: performance.now(), count });
  const counts = document.querySelectorAll(".facets .row").length;
  if (counts && !marks.some((m) => m.what === "facets"))
    marks.push({ what: "facets", at: performance.now() });
};
new MutationObserver((changes) => {
  for (const { target, attributeName } of changes)
    if (attributeName === "data-ready" && target.dataset.ready)
      marks.push({ what: target.dataset.ready, view: target.closest(".pane").classList[1],
                   n: target.parentNode.querySelector("input").value, at: performance.now() });
  look();
}).observe(document, { subtree: true, childList: true, characterData: true, attributes: true,
                       attributeFilter: ["data-ready"] });
addEventListener("keydown", (e) => marks.push({ what: "key", at: e.timeStamp }), true);
"""
CLICK = """id => { marks.length = 0; performance.clearResourceTimings();
  performance.setResourceTimingBufferSize(2000);
  marks.push({ what: "click", at: performance.now() });
  document.querySelector(`.grid a[href$="${id}"]`).click(); }"""
SLIDE = """([view, n]) => { marks.length = 0;
  const slider = document.querySelector(`.pane.${view} input`);
  marks.push({ what: "slide", at: performance.now(), before: slider.value });
  slider.value = n; slider.dispatchEvent(new Event("input")); }"""
BYTES = """() => performance.getEntriesByType("resource")
  .filter((e) => e.responseEnd > 0).map((e) =>
    [new URL(e.name).pathname, e.transferSize, e.responseEnd])"""
FETCH = """async (path) => { const from = performance.now();
  const answer = await fetch(path, { cache: "no-store" });
  const size = (await answer.arrayBuffer()).byteLength;
  const ms = performance.now() - from;
  return [performance.getEntriesByName(answer.url).at(-1).transferSize || size, ms]; }"""
#: Seconds without a request on its way, after which nothing more is fetched ahead.
_QUIET_SECONDS = 0.4


def main() -> None:
    """Measure and write benchmarks/results/viewer.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = Path(__file__).parent / "work"
    parser.add_argument("--dataset", type=Path, default=work / "standard", help="full size")
    parser.add_argument("--many", type=Path, required=True, help="467 patients, of any size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--people", type=int, default=20, help="who scroll at a time")
    parser.add_argument("--slices", type=int, default=30, help="each of them looks at")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        figures["chromium"] = browser.version
        for line in LINES:
            figures[line] = measure_line(browser, line, options)
            figures[line]["load_average"] = round(os.getloadavg()[0], 1)
            print(line, json.dumps(figures[line], indent=1), flush=True)
        browser.close()
    people = measure_people(options.dataset, options.people, options.slices)
    reached = people["p95_s"] <= MOST_SECONDS and people["server_peak_mb"] <= MOST_MB
    figures["people"] = people | {"reached": reached}
    figures["people"]["load_average"] = round(os.getloadavg()[0], 1)
    print(json.dumps(figures["people"], indent=1))
    print(write_results("viewer", figures))


def measure_line(browser: Browser, line: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures over one line, and whether each is what it is to be."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.repeats):
        for name, value in {
            **open_cohort(browser, line, options.many),
            **open_patient(browser, line, options.dataset),
        }.items():
            found[name].append(value)
    figures: dict[str, Any] = {name: spread(values) for name, values in found.items()}
    figures["reached"] = {
        name: figures[name]["median"] <= most
        for name, most in {**TARGETS.get(line, {}), "first_paint_kb": 100}.items()
    }
    return figures


def spread(values: list[float]) -> dict[str, float]:
    """Return the median and the range."""
    return {
        "median": round(statistics.median(values), 1),
        "least": round(min(values), 1),
        "most": round(max(values), 1),
    }


@dataclass(frozen=True)
class Visit:
    """A browser that has seen nothing, logged in at a service that has decoded nothing."""

    page: Page
    devtools: CDPSession
    running: Running
    flying: set[Request] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.flying.add(request))
        self.page.on("requestfinished", lambda request: self.flying.discard(request))
        self.page.on("requestfailed", lambda request: self.flying.discard(request))

    def rest(self) -> None:
        """Wait until nothing is on its way any more."""
        since = time.perf_counter()
        while time.perf_counter() - since < _QUIET_SECONDS:
            self.page.wait_for_timeout(50)  # events come in meanwhile
            if self.flying:
                since = time.perf_counter()

    def emulate(self, line: str) -> None:
        """Make all further requests go over a line."""
        rate, latency = LINES[line] or (0, 0)
        self.devtools.send("Network.enable")
        self.devtools.send(
            "Network.emulateNetworkConditions",
            {
                "offline": False,
                "latency": latency,
                "downloadThroughput": rate * 1e6 / 8 or -1,
                "uploadThroughput": rate * 1e6 / 8 or -1,
            },
        )

    def marks(self, what: str, view: str | None = None) -> list[dict[str, Any]]:
        """Return what the page noted, of one kind and pane."""
        noted: list[dict[str, Any]] = self.page.evaluate("() => marks")
        return [m for m in noted if m["what"] == what and view in (None, m.get("view"))]

    def at(self, what: str, view: str | None = None) -> float:
        """Return when the first of them was, ms."""
        return float(self.marks(what, view)[0]["at"])

    def bytes_of(self, start: str, until: float = float("inf")) -> int:
        """Return the bytes of answers whose path starts so, which were there until a time, ms."""
        answers = self.page.evaluate(BYTES)
        return sum(size for path, size, end in answers if path.startswith(start) and end <= until)

    def wait(self, test: str, given: Any = None) -> None:
        """Wait until a function of the page returns true."""
        self.page.wait_for_function(test, arg=given, timeout=180_000)


@contextmanager
def visit(browser: Browser, dataset: Path) -> Iterator[Visit]:
    """Serve a dataset anew, and open an empty window for it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        service(dataset, Path(folder), core=None) as running,
    ):
        context = browser.new_context(viewport=SIZE)
        context.add_init_script(MARKS)
        cookie = {"name": cookie_name(running.url), "value": running.token, "url": running.url}
        context.add_cookies([cookie])
        page = context.new_page()
        yield Visit(page, context.new_cdp_session(page), running)
        context.close()


def open_cohort(browser: Browser, line: str, dataset: Path) -> dict[str, float]:
    """Open the page at a dataset, of a service whose SQL processes run, and of a new one."""
    new = open_table(browser, line, dataset, is_new=True)["table_and_counts_ms"]
    found = open_table(browser, line, dataset, is_new=False)
    return found | {"table_and_counts_of_new_service_ms": new}


def open_table(browser: Browser, line: str, dataset: Path, is_new: bool) -> dict[str, float]:
    """First paint, table and count of patients, counts of the facets; bytes of the page."""
    with visit(browser, dataset) as one:
        if not is_new:
            question = {"sql": "SELECT count(*) FROM patients"}
            url = f"{one.running.url}/api/datasets/{NAME}/sql"
            httpx.post(url, json=question, headers=one.running.headers).raise_for_status()
        one.emulate(line)
        one.page.goto(f"{one.running.url}/#/{NAME}", wait_until="commit")
        one.wait("() => ['table', 'facets'].every((w) => marks.some((m) => m.what === w))")
        one.wait("() => performance.getEntriesByName('first-contentful-paint').length")
        paint = one.page.evaluate(
            "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"
        )
        index = one.page.evaluate(
            "() => performance.getEntriesByType('navigation')[0].transferSize"
        )
        table, facets = one.at("table"), one.at("facets")
        answers = one.bytes_of("/api/", max(table, facets))
        one.rest()
        return {
            "first_paint_ms": paint,
            "first_paint_kb": (index + one.bytes_of("/page/", paint)) / 1000,
            "table_ms": table,
            "table_and_counts_ms": max(table, facets),
            "page_kb": (index + one.bytes_of("/page/")) / 1000,
            "answers_kb": answers / 1000,
        }


def open_patient(browser: Browser, line: str, dataset: Path) -> dict[str, float]:
    """Click on a patient; then go to the next slices, and to other coronal and sagittal ones."""
    patient = lp.open_cohort(dataset).ids[0]
    with visit(browser, dataset) as one:
        one.page.goto(f"{one.running.url}/#/{NAME}")
        one.page.wait_for_selector(f".grid a[href$='{patient}']")
        one.rest()  # the code of the patient's view too: it is fetched while somebody reads
        one.emulate(line)
        one.page.evaluate(CLICK, patient)
        one.wait("() => ['axial', 'coronal', 'sagittal'].every((v) => "
                 "marks.some((m) => m.what === 'full' && m.view === v))")  # fmt: skip
        click = one.at("click")
        images = {view: one.marks("image", view) for view in ("axial", "coronal", "sagittal")}
        width = max(m["width"] for m in images["axial"])
        whole = next(m["at"] for m in images["axial"] if m["width"] == width)
        found = {
            "axial_first_ms": images["axial"][0]["at"] - click,
            "axial_whole_ms": whole - click,
            "axial_complete_ms": one.at("full", "axial") - click,
            "coronal_from_click_ms": images["coronal"][0]["at"] - click,
            "sagittal_from_click_ms": images["sagittal"][0]["at"] - click,
            "kb_until_axial_first": one.bytes_of("/api/", images["axial"][0]["at"]) / 1000,
            "kb_until_axial_whole": one.bytes_of("/api/", whole) / 1000,
        }
        return found | next_slices(one) | other_slices(one) | speed(one, patient)


def next_slices(one: Visit) -> dict[str, float]:
    """Turn axial slices with the keyboard, each when what was fetched ahead is there."""
    took = []
    for _ in range(_SLICES):
        one.rest()
        one.page.evaluate("() => { marks.length = 0; }")
        one.page.keyboard.press("ArrowUp")
        one.wait("() => marks.some((m) => m.what === 'full' && m.view === 'axial')")
        took.append(one.at("full", "axial") - one.at("key"))
    return {"next_slice_ms": statistics.median(took), "next_slice_worst_ms": max(took)}


def other_slices(one: Visit) -> dict[str, float]:
    """Go to a coronal and a sagittal slice that were not fetched: to the first picture of each."""
    found = {}
    for view in ("coronal", "sagittal"):
        one.rest()
        slider = one.page.locator(f".pane.{view} input")
        n = int(slider.input_value()) + int(slider.get_attribute("max") or 0) // 12
        one.page.evaluate(SLIDE, [view, n])
        one.wait("v => marks.some((m) => m.what === 'full' && m.view === v)", view)
        moved = one.at("slide")
        found[f"{view}_ms"] = one.at("image", view) - moved
        found[f"{view}_complete_ms"] = one.at("full", view) - moved
    return found


def speed(one: Visit, patient: str) -> dict[str, float]:
    """How fast the line is: a whole plane of T2w that was not fetched, in Mbit/s."""
    one.rest()
    path = (
        f"/api/v1/datasets/{NAME}/patients/{patient}/plane?array=mri/image&modality=T2w&axis=z&n=3"
    )
    size, took = one.page.evaluate(FETCH, path)
    return {"line_mbit_s": size * 8 / took / 1000}


if __name__ == "__main__":
    main()
