"""axe-core finds nothing to complain of: in every view, in light and in dark, and on a phone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from browser_steps import painted, settled, until
from browser_support import Served
from playwright.sync_api import Page, expect

from tests.cases import ALL

AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
FEW = "#{view}?table=emoji&where=_row<4"
# what a rule says of each place that breaks it; without `rules` all are asked
JUDGE = """async rules => {
    const only = rules ? { runOnly: { type: 'rule', values: rules } } : {};
    const found = await axe.run({ ...only, resultTypes: ['violations'], elementRef: false });
    return found.violations.flatMap(rule =>
        rule.nodes.map(node => [rule.id, node.target.join(' '), node.failureSummary]));
}"""
# how it is looked at, the scheme, the width, and the rules that may say something else there: None for all
# By hand a view is looked at in one of the two ways.
Look = tuple[str, str, int, list[str] | None]
LOOKS: tuple[Look, ...] = (
    ("light", "light", 1100, None),
    ("dark, on a phone", "dark", 390, ["color-contrast", "target-size", "scrollable-region-focusable"]),
)


def dialog(button: str) -> Callable[[Page], Any]:
    def open_(page: Page) -> None:
        page.get_by_role("button", name=button, exact=True).click()
        expect(page.get_by_role("dialog")).to_be_visible()
        if button == "Facets":
            expect(page.get_by_role("dialog").get_by_role("region", name="category")).to_be_visible()

    return open_


def go(address: str, seen: str) -> Callable[[Page], Any]:
    def to(page: Page) -> None:
        page.evaluate("address => { location.hash = address }", address)
        expect(page.locator(seen).first).to_be_visible()

    return to


def pick(page: Page) -> None:
    page.locator(".tile[data-id] .open").first.focus()
    page.keyboard.press("x")
    expect(page.locator("#tray")).to_be_visible()


def run_sql(page: Page) -> None:
    go("#sql?table=emoji", ".sql-editor")(page)
    page.get_by_label("SQL statement").fill("SELECT _row, caption, letters, image_path FROM emoji LIMIT 3")
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".sql-table")).to_be_visible()
    page.get_by_role("button", name="Chart").click()


def fail_sql(page: Page) -> None:
    page.get_by_label("SQL statement").fill("SELECT nothing FROM emoji")
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".sql-error")).to_be_visible()


def choose_on_map(page: Page) -> None:
    page.get_by_role("button", name="Choose all in view").click()
    expect(page.get_by_label("Chosen on the map")).to_be_visible()


VIEWS: dict[str, Callable[[Page], Any]] = {
    "the grid": go(FEW.format(view="pictures") + "&q=cat&with=-0.5~heart&fold=0.9", ".tile.loaded"),
    "pictures picked": pick,
    "details": go(FEW.format(view="pictures") + "&row=2", ".details-words h2"),
    "filters": dialog("Filters"),
    "facets": dialog("Facets"),
    "the SQL of a search": dialog("Show SQL"),
    "export": dialog("Export"),
    "share": dialog("Share and cite"),
    "saved searches": dialog("Saved searches"),
    "help": dialog("Help and keys"),
    "a search that fails": go("#pictures?table=emoji&where=nothing>1", "#notice"),
    "no results": go("#pictures?table=emoji&where=0", ".empty"),
    "captions without pictures": go("#pictures?table=web&safe=all&where=_row in (4, 10)", ".grid.captions .tile"),
    "the map": go(FEW.format(view="map") + "&colour=category", ".map-values"),
    "chosen on the map": choose_on_map,
    "SQL": run_sql,
    "SQL that fails": fail_sql,
}


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core."""
    if not AXE.is_file():
        pytest.fail("axe-core is not there: npm ci --prefix tests/serve/browser, or make test")
    return AXE.read_text()


def at_rest(page: Page) -> None:
    """Wait until all that was begun is seen as it stays."""
    painted(page)
    if page.evaluate("document.querySelector('#view-pictures').checkVisibility()"):
        settled(page)
    until(page, "document.getAnimations().every(one => one.playState !== 'running')")


def complaints(page: Page, name: str, looks: Sequence[Look]) -> list[tuple[str, ...]]:
    """What axe-core finds in what is shown, each way it is looked at."""
    found = []
    for how, scheme, width, rules in looks:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 720})
        at_rest(page)
        found += [(name, how, *fault) for fault in page.evaluate(JUDGE, rules)]
    page.set_viewport_size({"width": 1100, "height": 720})
    return found


def test_axe_finds_no_fault_in_any_view_in_light_or_in_dark_on_a_phone(page: Page, served: Served, axe: str) -> None:
    page.evaluate(axe)
    faults = []
    for number, (name, show) in enumerate(VIEWS.items()):
        show(page)
        faults += complaints(page, name, LOOKS if ALL else LOOKS[number % 2 :][:1])
        if page.get_by_role("dialog").count():
            page.keyboard.press("Escape")
            expect(page.get_by_role("dialog")).to_have_count(0)
    assert faults == []
