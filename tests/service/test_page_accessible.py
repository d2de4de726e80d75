"""The page for everyone: axe-core finds nothing serious in any of its views, dark and light.

Skipped without Playwright, Chromium, or axe-core (`pip install axe-playwright-python`, whose wheel
has it). axe-core is no part of this package.
"""

from __future__ import annotations

import pytest

from tests.service.conftest import NAME
from tests.service.test_page_browser import (
    READY,
    Visitor,
    chromium,
    cohort,
    extended,
    pytestmark,
    visitor,
)

__all__ = ["chromium", "cohort", "extended", "pytestmark", "visitor"]

base = pytest.importorskip("axe_playwright_python.base", reason="axe-core is not installed")
_RUN = """async () => (await axe.run(document, {resultTypes: ["violations"]})).violations.map(v => (
  {rule: v.id, impact: v.impact, nodes: v.nodes.map(n => `${n.target} ${n.failureSummary}`)}))"""
_SERIOUS = ("serious", "critical")

#: A view -> where it is, what shows that it is there, and what is clicked then.
VIEWS = {
    "patients": ("", ".grid tbody tr", None),
    "columns": ("", ".grid tbody tr", "text=Columns"),
    "copy as": ("", ".grid tbody tr", "text=Copy as"),
    "what can be written": ("", ".grid tbody tr", "[aria-label='What can be written']"),
    "nobody": ("?where=false", ".total:has-text('0')", None),
    "a mistake": ("?where=protocl", "#mistake:not([hidden])", None),
    "a patient": ("/{extended}", f"section:nth-child(3) {READY}", None),
    "all overlays": (
        "/{extended}?dose=1&iso=20,40&unc=CTVT_427&src=nnunet",
        f"section:nth-child(3) {READY}",
        None,
    ),
    "observers": ("/{extended}?lay=observers&unc=CTVT_427", READY, None),
    "the synthetic CT": ("/{extended}?grid=sct", READY, None),
    "mouse and keys": ("/{extended}", READY, "text=Help"),
    "a patient who lacks a structure": ("/{lacking}", ".structures .absent", None),
    "no such patient": ("/newAcq_0000000000000000", ".problem", None),
}


def serious(page: object) -> list[dict[str, object]]:
    """Return what axe-core finds that keeps some people from using the page."""
    page.evaluate(base.AXE_SCRIPT)
    return [v for v in page.evaluate(_RUN) if v["impact"] in _SERIOUS]


def shown(visitor: Visitor, view: str, extended, cohort) -> None:
    fragment, wait, click = VIEWS[view]
    visitor.page.goto("about:blank")  # nothing is left of the view before
    lacking = cohort.where("missing_PenileBulb OR missing_Genitalia").ids[0]
    visitor.show(fragment.format(extended=extended.patient_id, lacking=lacking), wait)
    if click:
        visitor.page.click(click)
        visitor.page.wait_for_selector("dialog[open]")


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_serious(visitor, extended, cohort, view):
    visitor.refused = {404, 422}
    shown(visitor, view, extended, cohort)
    for scheme in ("light", "dark"):
        visitor.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        assert serious(visitor.page) == [], scheme


def test_nothing_serious_where_one_logs_in(chromium, served):
    context = chromium.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.goto(f"{served.url}/#/{NAME}")
    page.wait_for_selector("#token")
    page.fill("#token", "lp_wrong")
    page.click("button.main")
    page.wait_for_selector(".wrong:not(:empty)")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert serious(page) == [], scheme
    context.close()


def test_what_is_serious_is_found(visitor):
    visitor.page.goto("about:blank")
    visitor.show("", ".grid tbody tr")
    visitor.page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert [v["rule"] for v in serious(visitor.page)] == ["button-name"]
