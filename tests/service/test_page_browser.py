"""The page in Chromium: what people see, and that it is what the library says.

Skipped without Playwright (`pip install playwright`) and Chromium.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import lundprobe_zarr as lp
from lundprobe_zarr.cohort.saved import SavedCohort
from lundprobe_zarr.geometry.affine import ras_to_lps
from lundprobe_zarr.service.page import page
from tests.service.conftest import NAME

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
expect = sync_api.expect
expect.set_options(timeout=20_000)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
#: The one error that a console may show: whether somebody is logged in is asked by a request.
_EXPECTED = "api/v1/session"
READY = "canvas[data-ready=full]"


@pytest.fixture(scope="module")
def chromium() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_ARGUMENTS))
        yield browser
        browser.close()


class Visitor:
    """A logged-in browser window that notes what goes wrong and where requests go."""

    def __init__(self, chromium: sync_api.Browser, served) -> None:
        self.url = served.url
        self.context = chromium.new_context(viewport={"width": 1280, "height": 720})
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        self.refused: set[int] = set()
        self.page = self.open()
        self.page.goto(served.url + "/")
        self.page.fill("#token", served.token)
        self.page.click("button.main")
        self.page.wait_for_selector(".grid tbody tr")

    def open(self) -> sync_api.Page:
        page = self.context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._heard)
        page.on("request", self._asked)
        return page

    def _heard(self, message: sync_api.ConsoleMessage) -> None:
        where = message.location.get("url", "")
        if message.type in ("error", "warning") and not where.endswith(_EXPECTED):
            self.problems.append(f"{message.text} {where}")

    def _asked(self, request: sync_api.Request) -> None:
        if not request.url.startswith(("blob:", "data:")):
            self.hosts.add(request.url.split("/", 3)[2])

    def show(self, fragment: str, wait: str) -> None:
        self.page.goto(f"{self.url}/#/{NAME}{fragment}")
        self.page.wait_for_selector(wait)

    def select(self, predicate: str) -> str:
        """Type a predicate; return the count that the page then shows."""
        self.page.fill("#where", predicate)
        with self.page.expect_response(re.compile(r"/(cohort|sql)$")):
            self.page.keyboard.press("Enter")
        self.page.wait_for_selector(".grid:not([aria-busy])")
        return self.page.inner_text(".total")

    def canvas(self, number: int = 0) -> str:
        """Return the pixels of a view."""
        return str(
            self.page.evaluate("n => document.querySelectorAll('canvas')[n].toDataURL()", number)
        )


@pytest.fixture(scope="module")
def visitor(chromium, served):
    found = Visitor(chromium, served)
    yield found
    found.context.close()


@pytest.fixture(autouse=True)
def nothing_goes_wrong(visitor):
    visitor.problems.clear()
    yield
    unexpected = [p for p in visitor.problems if not any(str(s) in p for s in visitor.refused)]
    visitor.refused.clear()
    assert unexpected == []
    assert visitor.hosts == {visitor.url.removeprefix("http://")}


@pytest.fixture(scope="module")
def cohort(dataset):
    return lp.open_cohort(dataset)


@pytest.fixture(scope="module")
def extended(cohort):
    """A patient with everything: networks, folds, observers, uncertainty."""
    return cohort.where("part = 'extended'")[0]


def first_number(text: str) -> int:
    return int(re.match(r"\d+", text)[0])


def test_the_table_has_every_patient(visitor, cohort):
    visitor.show("", ".grid tbody tr")
    assert visitor.page.locator(".grid tbody th a").all_inner_texts() == sorted(cohort.ids)


@pytest.mark.parametrize(
    "predicate",
    [
        "protocol = 'newAcq'",
        "Rectum.volume_cc > 60 AND dose_max_gy BETWEEN 40 AND 44.5",
        "missing_PenileBulb OR n_fiducials < 3",
        "len(findings) = 0 AND PenileBulb IS NOT NULL",
    ],
)
def test_counts_equal_the_librarys_and_those_of_the_sql_that_is_copied(visitor, cohort, predicate):
    visitor.show("", ".grid tbody tr")
    expected = len(cohort.where(predicate))
    assert first_number(visitor.select(predicate)) == expected
    visitor.page.click("text=Copy as")
    sql = visitor.page.locator("dialog section", has_text="SQL").locator("pre").inner_text()
    visitor.page.keyboard.press("Escape")
    assert len(cohort.sql(sql)) == expected


def test_a_facet_changes_the_predicate_and_a_predicate_the_facet(visitor, cohort):
    visitor.show("", ".facets .row")
    page = visitor.page
    page.wait_for_selector("[data-facet='protocol=oldAcq']")
    page.uncheck("[data-facet='protocol=oldAcq']")
    expect(page.locator("#where")).to_have_value("protocol = 'newAcq'")
    visitor.select("protocol = 'oldAcq' AND dose_max_gy >= 40")
    expect(page.locator("[data-facet='protocol=oldAcq']")).to_be_checked()
    expect(page.locator("[data-facet='protocol=newAcq']")).not_to_be_checked()
    expect(page.locator("[data-facet='dose_max_gy low']")).to_have_value("40")
    page.fill("[data-facet='dose_max_gy low']", "")
    page.keyboard.press("Tab")
    expect(page.locator("#where")).to_have_value("protocol = 'oldAcq'")


def test_a_mistake_is_explained_in_the_words_of_the_library(visitor):
    visitor.refused = {422}
    visitor.show("", ".grid tbody tr")
    visitor.select("protocl = 'newAcq'")
    visitor.page.wait_for_selector("#mistake:not([hidden])")
    assert "protocol" in visitor.page.inner_text("#mistake")
    visitor.select("")
    assert visitor.page.is_hidden("#mistake")


def test_a_cohort_is_saved_and_opened_again(visitor, cohort, tmp_path):
    predicate = "protocol = 'newAcq'"
    visitor.show("", ".grid tbody tr")
    visitor.select(predicate)
    with visitor.page.expect_download() as saving:
        visitor.page.click("text=Save")
    file = tmp_path / "cohort.json"
    saving.value.save_as(file)
    assert lp.load_cohort(file, cohort.dataset.location.url).ids == cohort.where(predicate).ids
    visitor.select("")
    visitor.page.set_input_files("input[type=file]", file)
    expect(visitor.page.locator("#where")).to_have_value(predicate)


def test_a_saved_cohort_that_was_changed_is_refused(visitor, cohort, tmp_path):
    visitor.show("", ".grid tbody tr")
    visitor.select("")
    file = tmp_path / "cohort.json"
    cohort.where("protocol = 'newAcq'").save(file)
    file.write_text(file.read_text().replace(cohort.ids[0], "newAcq_0123456789abcdef"))
    visitor.refused.add(422)
    visitor.page.set_input_files("input[type=file]", file)
    expect(visitor.page.locator("dialog")).to_contain_text("was changed or damaged since")
    visitor.page.keyboard.press("Escape")
    assert visitor.page.input_value("#where") == ""


def test_a_saved_cohort_of_another_dataset_says_so(visitor, cohort, tmp_path):
    visitor.show("", ".grid tbody tr")
    visitor.select("")
    file = tmp_path / "cohort.json"
    chosen = cohort.where("protocol = 'newAcq'")
    identity = cohort.dataset.identity.model_copy(update={"precision": "lossless"})
    SavedCohort(dataset=identity, selection=["protocol = 'newAcq'"], patient_ids=chosen.ids).write(
        file
    )
    visitor.page.set_input_files("input[type=file]", file)
    dialog = visitor.page.locator("dialog")
    expect(dialog).to_contain_text("cohort.json belongs to another dataset")
    expect(dialog).to_contain_text("precision 'lossless', not 'standard'")
    dialog.locator(".choices button").click()
    expect(visitor.page.locator(".total")).to_contain_text(str(len(chosen)))


def test_a_large_saved_cohort_is_selected_by_its_condition_alone(visitor, cohort, tmp_path):
    visitor.show("", ".grid tbody tr")
    visitor.select("")
    file = tmp_path / "cohort.json"
    ids = [f"newAcq_{number:016x}" for number in range(2000)]
    identity = cohort.dataset.identity
    SavedCohort(dataset=identity, selection=["n_fiducials = 3"], patient_ids=ids).write(file)
    visitor.page.set_input_files("input[type=file]", file)
    expect(visitor.page.locator("dialog")).to_contain_text("It has 2000 patients")
    visitor.page.keyboard.press("Escape")
    assert visitor.page.input_value("#where") == ""


def test_a_dialog_closes_when_another_view_takes_its_place(visitor, extended):
    visitor.show("", ".grid tbody tr")
    visitor.page.click("text=Columns")
    visitor.page.wait_for_selector("dialog[open]")
    visitor.show(f"/{extended.patient_id}", READY)
    assert visitor.page.locator("dialog").count() == 0


def test_a_patient_is_drawn_in_three_views(visitor, extended):
    visitor.show(f"/{extended.patient_id}", f"section:nth-child(3) {READY}")
    assert visitor.page.locator(READY).count() == 3
    for number in range(3):
        greys = visitor.page.evaluate(
            """n => { const c = document.querySelectorAll('canvas')[n];
            const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            return new Set(d).size; }""",
            number,
        )
        assert greys > 50


def test_no_number_of_the_histograms_is_cut_off(visitor, extended):
    visitor.show(f"/{extended.patient_id}", ".panel.right .dvh")
    over = visitor.page.eval_on_selector(
        ".panel.right",
        """panel => {
        panel.querySelectorAll('.dvh ~ table td.n').forEach(cell => cell.textContent = '0.857');
        return panel.scrollWidth - panel.clientWidth; }""",
    )
    assert over == 0


def test_values_under_the_pointer_equal_the_arrays(visitor, extended):
    visitor.show(f"/{extended.patient_id}", READY)
    page, box = visitor.page, visitor.page.locator("canvas").first.bounding_box()
    for across, down in ((0.5, 0.5), (0.37, 0.44), (0.61, 0.58)):
        with page.expect_response(re.compile(r"/values\?")) as answer:
            page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
        said = answer.value.json()
        page.wait_for_selector("text=Under the pointer")
        page.wait_for_timeout(50)
        z, y, x = said["grids"]["mri"]["voxel"]
        image = extended.mri.image.isel(z=z, y=y, x=x)
        for modality in ("T2w", "sCT"):
            row = f"tr[data-array='mri/image'][data-label='{modality}']"
            shown = float(page.get_attribute(row, "data-value"))
            assert shown == float(image.sel(modality=modality))
        dose = float(page.get_attribute("tr[data-array='mri/dose']", "data-value"))
        assert dose == float(extended.mri.dose.isel(z=z, y=y, x=x))


def test_the_pointer_is_where_the_affine_says(visitor, extended):
    """The place on the screen, by the crosshair that a link sets, comes back as the same mm."""
    grid = np.array(extended.mri.attrs["affine"]).reshape(4, 4)
    centre = ras_to_lps(grid) @ [*(np.array(extended.mri.dose.shape)[::-1] // 2), 1]
    x, y, z = centre[:3]
    at = f"{x:.2f},{y:.2f},{z:.2f}"
    visitor.show(f"/{extended.patient_id}?at={at}&centre={at}&zoom=3", READY)
    page, box = visitor.page, visitor.page.locator("canvas").first.bounding_box()
    with page.expect_response(re.compile(r"/values\?")) as answer:
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    np.testing.assert_allclose(answer.value.json()["point_mm"], [x, y, z], atol=0.6)


def test_an_oblique_grid_is_placed_by_its_affine(visitor):
    """Points to indices and back, and directions on the screen, as numpy has them."""
    turn = np.deg2rad(20)
    step = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = step @ np.diag([-0.47, -0.47, 2.5])
    affine[:3, 3] = [101.5, 88.25, -40]
    lps = ras_to_lps(affine)
    voxel = [7, 30, 51]  # z, y, x
    point = (lps @ [*voxel[::-1], 1])[:3]
    found = visitor.page.evaluate(
        """async ([folder, affine, voxel, point]) => {
        const { Grid, frame, letter } = await import(folder + "geometry.js");
        const grid = new Grid("mri", { shape: [20, 64, 64], affine_ras: affine,
          spacing_mm: [2.5, 0.47, 0.47], body_box: null, is_aligned: false });
        const f = frame(grid, "axial");
        return { point: grid.point(voxel), index: grid.index(point), u: f.u, v: f.v,
          letters: [letter(f.u), letter(f.v)], plane: grid.plane(0, point) }; }""",
        [f"/page/{page().version}/", affine.tolist(), voxel, point.tolist()],
    )
    np.testing.assert_allclose(found["point"], point, atol=1e-9)
    np.testing.assert_allclose(found["index"], voxel, atol=1e-9)
    assert found["letters"] == ["L", "P"]
    np.testing.assert_allclose(found["u"], lps[:3, 0] / 0.47, atol=1e-9)
    np.testing.assert_allclose(found["v"], lps[:3, 1] / 0.47, atol=1e-9)
    assert found["plane"] == voxel[0]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("", []),
        ("protocol = 'newAcq' AND NOT missing_PenileBulb", ["in", "flag"]),
        ("dose_max_gy BETWEEN 43 AND 44 AND n_fiducials >= 3", ["range", "range"]),
        ("(part = 'base' OR part = 'extended') AND sct_warning_text", ["other", "flag"]),
        ("part = 'base' OR part = 'extended'", ["other"]),
        ("patient_id IN ('a''b', 'AND') AND Rectum.volume_cc <= 1e2", ["in", "range"]),
        ("CASE WHEN part = 'base' AND true THEN true ELSE false END", ["other"]),
        ("part = 'base' -- AND a comment", ["other"]),
    ],
)
def test_a_predicate_is_taken_apart_and_put_together(visitor, text, kinds):
    found = visitor.page.evaluate(
        """async ([folder, text]) => {
        const { conditions, predicate } = await import(folder + "predicate.js");
        const found = conditions(text);
        const again = predicate(found);
        return [found.map((c) => c.kind), again, predicate(conditions(again))]; }""",
        [f"/page/{page().version}/", text],
    )
    assert found[0] == kinds
    assert found[1] == found[2]
    for word in re.findall(r"\w+", text.split("--")[0]):
        assert word in found[1] or word == "1e2"


def test_an_oblique_patient_is_placed_by_its_grids(chromium, start_service, oblique_dataset):
    """The mm come from the page, the voxel and its value from the affine and the array."""
    patient = lp.open_cohort(oblique_dataset)[0]
    window = Visitor(chromium, start_service({NAME: oblique_dataset}))
    try:
        page = window.page
        page.goto(f"{window.url}/#/{NAME}/{patient.patient_id}")
        page.wait_for_selector(READY)
        box = page.locator("canvas").first.bounding_box()
        with page.expect_response(re.compile(r"/values\?")) as answer:
            page.mouse.move(box["x"] + 0.46 * box["width"], box["y"] + 0.53 * box["height"])
        said = answer.value.json()
        lps = ras_to_lps(np.array(patient.mri.attrs["affine"]).reshape(4, 4))
        place = np.linalg.solve(lps, [*said["point_mm"], 1])[:3]
        voxel = said["grids"]["mri"]["voxel"]
        assert np.floor(place[::-1] + 0.5).astype(int).tolist() == voxel
        shown = int(
            re.search(r"slice (\d+)", page.locator("canvas").first.get_attribute("aria-label"))[1]
        )
        assert voxel[0] == shown - 1
        assert abs(place[2] - voxel[0]) < 1e-2  # the pointer lies in the plane that is drawn
        z, y, x = voxel
        dose = next(v for v in said["grids"]["mri"]["values"] if v["array"] == "mri/dose")
        assert dose["value"] == float(patient.mri.dose.isel(z=z, y=y, x=x))
    finally:
        window.context.close()


def test_a_link_reproduces_the_view_and_back_goes_back(visitor, extended):
    page = visitor.page
    visitor.show(f"/{extended.patient_id}", READY)
    page.click("text=axial >> nth=0")
    page.wait_for_selector(".lay-axial")
    page.fill("[data-key='iso']", "30,90")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("iso=30,90"))
    page.locator("canvas").focus()
    for key in ("ArrowUp", "+", "+", "ArrowLeft"):
        page.keyboard.press(key)
    page.wait_for_url(re.compile("zoom="))
    page.wait_for_timeout(200)
    page.wait_for_selector(READY)
    link, before = page.url, visitor.canvas()
    assert "iso=30,90" in link
    other = visitor.open()
    other.goto(link)
    other.wait_for_selector(READY)
    other.wait_for_timeout(200)
    assert other.evaluate("document.querySelector('canvas').toDataURL()") == before
    other.close()
    page.go_back()
    page.go_back()
    page.wait_for_selector(".lay-3")


def test_what_is_typed_survives_a_redraw(visitor, extended):
    page = visitor.page
    visitor.show(f"/{extended.patient_id}?lay=axial", READY)
    page.locator("[data-key='iso']").evaluate("field => { field.focus(); field.select(); }")
    page.evaluate("document.querySelector('[data-key=isodoses]').click()")  # redraws the panel
    page.wait_for_url(re.compile("isodoses="))
    page.wait_for_timeout(200)
    page.keyboard.insert_text("30,90")  # in place of what was selected
    page.evaluate("document.querySelector('[data-key=isodoses]').click()")
    page.wait_for_timeout(200)
    assert page.input_value("[data-key='iso']") == "30,90"
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("iso=30,90"))
    page.wait_for_function("document.querySelector('[data-key=isodoses]').checked")


def test_what_is_typed_into_a_filter_survives_an_answer(visitor):
    page = visitor.page
    visitor.show("", "[data-facet$=' low']")
    field = page.locator("[data-facet='dose_max_gy low']")
    field.fill("40")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"where=.*40"))
    page.wait_for_selector(".grid:not([aria-busy])")
    field.evaluate("field => { field.focus(); field.select(); }")
    with page.expect_response(re.compile("/sql$")):
        page.evaluate("document.querySelector('.facets input[type=checkbox]').click()")
    page.wait_for_selector(".grid:not([aria-busy])")
    page.wait_for_timeout(200)
    page.keyboard.press("Delete")
    page.keyboard.press("Tab")
    page.wait_for_function("!document.querySelector('#where').value.includes('dose_max_gy')")


def test_observers_are_side_by_side(visitor, extended):
    with visitor.page.expect_request(re.compile(r"contours.*step=2")):
        visitor.show(f"/{extended.patient_id}?lay=observers&unc=CTVT_427", READY)
    assert visitor.page.locator("canvas").count() == 2
    assert "0.5" in visitor.page.inner_text(".panel.left")


def test_a_missing_structure_is_named_with_the_reason(visitor, cohort):
    some = cohort.where("missing_PenileBulb OR missing_Genitalia")
    visitor.show(f"/{some.ids[0]}", ".structures .absent")
    assert "list" in visitor.page.inner_text(".structures .absent .why")


@pytest.mark.parametrize(
    ("fragment", "words"),
    [
        (f"/{NAME}/newAcq_0000000000000000", "no patient"),
        (f"/{NAME}/<script>", "no patient id"),
        ("/nowhere/nothing", "nowhere/nothing"),
        ("/%E0%A4%A", "names no dataset"),
        ("nonsense", "names no dataset"),
    ],
)
def test_a_link_to_nothing_is_explained(visitor, fragment, words):
    visitor.refused = {404}
    visitor.page.goto(f"{visitor.url}/#{fragment}")
    visitor.page.wait_for_selector(".problem")
    assert words in visitor.page.inner_text(".problem")


def test_malformed_parameters_open_the_patient_all_the_same(visitor, extended):
    odd = "at=1,2&zoom=x&t2w=9,1&grid=ct&iso=a,b&lay=9&blend=-5&src=nobody&unc=Femur&centre=NaN,1,1"
    visitor.show(f"/{extended.patient_id}?{odd}", READY)
    assert visitor.page.locator("canvas").count() == 3


def test_the_banner_says_that_the_service_is_gone_until_it_is_back(visitor, extended):
    page = visitor.page
    visitor.show("", ".grid tbody tr")
    visitor.refused = {"ERR_FAILED"}
    page.route("**/*", lambda route: route.abort())
    page.fill("#where", "n_fiducials = 3")
    page.keyboard.press("Enter")
    page.wait_for_selector("#banner:not([hidden])")
    page.unroute("**/*")
    page.wait_for_selector("#banner", state="hidden")
    expect(page.locator(".total")).to_contain_text("of")


def test_a_dataset_that_is_replaced_is_shown_anew(visitor, extended):
    page = visitor.page
    visitor.refused = {404}
    visitor.show("", ".grid tbody tr")
    gone = {
        "status": 404,
        "headers": {"X-Error-Code": "RevisionNotFound"},
        "json": {"error": "old"},
    }
    page.route("**/contours*", lambda route: route.fulfill(**gone), times=1)
    with page.expect_response("**/api/v1/session"):
        page.goto(f"{visitor.url}/#/{NAME}/{extended.patient_id}")
    page.wait_for_selector(READY)


def test_a_damaged_image_is_named_and_the_rest_is_drawn(chromium, copied, start_service):
    patient = lp.open_cohort(copied).ids[0]
    for shard in _shards(copied / f"patients/{patient}.zarr/mri/dose"):
        content = bytearray(shard.read_bytes())
        content[: len(content) // 2] = bytes(len(content) // 2)
        shard.write_bytes(content)
    window = Visitor(chromium, start_service({NAME: copied}))
    try:
        window.page.goto(f"{window.url}/#/{NAME}/{patient}")
        window.page.wait_for_selector(".damage:not([hidden])")
        assert "mri/dose" in window.page.inner_text(".damage:not([hidden]) >> nth=0")
        window.page.uncheck("[data-key='isodoses']")
        window.page.evaluate("location.hash = location.hash.split('?')[0] + '?wash=0&isodoses=0'")
        window.page.wait_for_selector(READY)
    finally:
        window.context.close()


def _shards(array: Path) -> list[Path]:
    return [p for p in array.rglob("*") if p.is_file() and p.name != "zarr.json"]


def test_log_out_ends_the_session_and_one_may_log_in_again(chromium, served):
    window = Visitor(chromium, served)
    try:
        window.page.click("text=Log out")
        window.page.wait_for_selector("#token")
        assert window.context.cookies() == []
        window.page.goto(f"{served.url}/#/{NAME}")
        window.page.reload()
        window.page.wait_for_selector("#token")
        window.page.fill("#token", served.token)
        window.page.click("button.main")
        window.page.wait_for_selector(".grid tbody tr")
        window.page.click(".grid tbody th a")
        window.page.wait_for_selector(READY)
    finally:
        window.context.close()
