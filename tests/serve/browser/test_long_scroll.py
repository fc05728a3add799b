"""Thousands of rows: what the browser has to hold, how they are reached, and the way back to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from browser_steps import hover_action, ids, meanwhile, painted, restyled, search, settled, until
from browser_support import Served, serve
from playwright.sync_api import Page, expect

import clipql

ROWS, MOST_NODES = 1500, 9_000
MOST_RESTYLED = 700  # of them, by what is done to one picture


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A table of many captions."""
    folder = tmp_path_factory.mktemp("many")
    vector = "arrayMap(i -> toFloat32(sipHash64(number, i) % 1000) / 500 - 1, range(8))"
    with clipql.connect(folder / "many.db") as db:
        db.sql("CREATE TABLE many (id UInt32, caption String, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        db.sql(f"INSERT INTO many SELECT number, concat('row ', toString(number)), {vector} FROM numbers({ROWS})")
    with serve(folder / "many.db", folder / "log") as running:
        yield running


def to_the_end(page: Page) -> None:
    """Scroll until all rows are there."""

    def at_the_end() -> bool:
        page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")  # a wheel's turn may come later
        below = "scrollY + innerHeight < document.documentElement.scrollHeight - 1"  # filled rows grow
        return page.get_by_text("That is all of them.").is_visible() and not page.evaluate(below)

    meanwhile(page, at_the_end, "the last row is shown")
    painted(page)
    meanwhile(page, at_the_end, "the last row is shown when all is drawn")


def test_rows_far_from_the_view_are_empty_places(open_page: Callable[..., Page], many: Served) -> None:
    page = open_page(f"{many.address}#pictures?table=many")
    settled(page)
    to_the_end(page)
    painted(page)
    assert sorted(map(int, ids(page))) == list(range(ROWS))
    assert page.evaluate("document.querySelectorAll('*').length") < MOST_NODES
    height = page.evaluate("document.documentElement.scrollHeight")
    last = page.locator(f".tile[data-id='{ROWS - 1}']")
    expect(last).to_be_in_viewport()
    expect(last.locator(".caption")).to_have_text(f"row {ROWS - 1}")
    expect(page.locator(".tile[data-id='200'] .caption")).to_have_count(0)

    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight / 2)")
    until(page, "document.elementFromPoint(500, 400).closest('.tile')?.innerText.trim().startsWith('row')")
    assert page.evaluate("document.documentElement.scrollHeight") == height
    page.evaluate("window.scrollTo(0, 0)")
    expect(page.locator(".tile[data-id='0'] .caption")).to_have_text("row 0")
    expect(page.locator(f".tile[data-id='{ROWS - 1}'] .caption")).to_have_count(0)
    assert page.evaluate("document.querySelectorAll('*').length") < MOST_NODES


def test_keys_reach_rows_that_are_far_from_the_view(open_page: Callable[..., Page], many: Served) -> None:
    page = open_page(f"{many.address}#pictures?table=many")
    settled(page)
    page.locator(".tile[data-id='3'] .open").focus()
    to_the_end(page)
    painted(page)
    page.keyboard.press("ArrowRight")
    here = "document.activeElement.closest('.tile')?.dataset.id"
    assert page.evaluate(here) == "4"
    expect(page.locator(".tile[data-id='4']")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("heading")).to_have_text("row 4")


def test_what_is_done_to_one_picture_takes_no_more_where_thousands_are_shown(
    open_page: Callable[..., Page], many: Served
) -> None:
    page = open_page(f"{many.address}#pictures?table=many", alone=True)
    settled(page)
    to_the_end(page)
    page.evaluate("window.scrollTo(0, 0)")
    until(page, "document.querySelector('.tile[data-id=\"1\"] .caption')")
    heading = page.get_by_role("dialog").get_by_role("heading")

    def opened() -> None:
        page.locator(".tile[data-id='1'] .open").click()
        expect(heading).to_have_text("row 1")

    def stepped() -> None:
        page.keyboard.press("ArrowRight")
        expect(heading).to_have_text("row 2")

    def closed() -> None:
        page.keyboard.press("Escape")
        expect(heading).to_have_count(0)

    def picked() -> None:
        page.keyboard.press("x")
        expect(page.locator(".tile.picked")).to_have_count(1)

    taken = {act.__name__: restyled(page, act) for act in (opened, stepped, closed, picked)}
    assert max(taken.values()) <= MOST_RESTYLED, taken


def test_back_restores_the_place(page: Page) -> None:
    search(page, "face")
    to_the_end(page)
    before, top = ids(page), page.evaluate("window.scrollY")
    number = len(before) - 4
    page.locator(f".tile[data-id='{before[number]}']").scroll_into_view_if_needed()
    top = page.evaluate("window.scrollY")
    hover_action(page, number, "More like this")
    until(page, "id => document.querySelector('.tile[data-id]')?.dataset.id === id", before[number])
    until(page, "window.scrollY < 50")
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.url) if sent.url.endswith("/api/search") else None)
    page.go_back()
    until(page, "top => Math.abs(window.scrollY - top) < 5", top)
    expect(page.get_by_label("Describe a picture")).to_have_value("face")
    assert ids(page) == before
    assert asked == []
