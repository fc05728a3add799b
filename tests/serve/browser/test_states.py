"""Where something is wrong or meant to harm: captions, addresses, pictures that are gone, servers that are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from browser_data import HOSTILE, SCRIPT_ADDRESS, WEB
from browser_steps import answer, captions, ids, painted, search, settled, shows, until
from browser_support import Served, Web, serve
from playwright.sync_api import Page, Route, expect

import clipql

GONE = [i for i in range(WEB) if i % 6 == 4]
UNSAFE = [i for i in range(WEB) if i % 7 == 6]


@pytest.fixture
def web_page(open_page: Callable[..., Page], served: Served) -> Page:
    """The table of pictures at web addresses."""
    opened = open_page(f"{served.address}#pictures?table=web")
    opened.wait_for_selector(".tile.loaded")
    return opened


def load_all(page: Page) -> None:
    """Bring every picture into view once, so that each has loaded or failed; a row held back comes with more."""
    until(
        page,
        """() => {
            const shown = [...document.querySelectorAll('.tile:not(.wordy, .held)')];
            const images = shown.flatMap(tile => [...tile.querySelectorAll('img')]);
            const waits = images.find(image => !image.complete);
            (waits ?? images.at(-1))?.scrollIntoView();
            return waits === undefined && document.querySelector('.end') !== null;
        }""",
    )
    painted(page)


def test_captions_and_addresses_never_become_markup(web_page: Page) -> None:
    assert captions(web_page)[:2] == [HOSTILE, "an address that is a script"]
    web_page.locator(".tile .open").nth(0).click()
    expect(web_page.get_by_role("dialog").get_by_role("heading")).to_have_text(HOSTILE)
    web_page.keyboard.press("ArrowRight")
    dialog = web_page.get_by_role("dialog")
    expect(dialog.get_by_role("heading")).to_have_text("an address that is a script")
    expect(dialog.locator("dd").filter(has_text="javascript:")).to_have_text(SCRIPT_ADDRESS)
    assert web_page.locator("a[href^='javascript'], .tile script, dialog script").count() == 0
    assert "hacked" not in web_page.title()


def test_pictures_that_are_gone_leave_no_hole_and_none_is_told_where_it_was_shown(web_page: Page, web: Web) -> None:
    load_all(web_page)
    safe = [i for i in range(WEB) if i not in UNSAFE]
    assert ids(web_page) == [str(i) for i in safe if i not in GONE]
    gone = len([i for i in safe if i in GONE])
    expect(web_page.locator("#gone")).to_contain_text(f"{gone} pictures that no longer load")
    web_page.get_by_role("button", name="Only those that load").click()
    expect(web_page.locator(".tile.dead:visible")).to_have_count(0)
    web_page.evaluate("window.scrollTo(0, 0)")
    painted(web_page)
    rows = web_page.evaluate(
        """() => { // the frames of one row are equally high, and fill it
            const rows = new Map();
            for (const tile of document.querySelectorAll('.tile:not(.dead, .hollow)')) {
                const box = tile.querySelector('.frame').getBoundingClientRect();
                const key = Math.round(box.top);
                rows.set(key, [...(rows.get(key) ?? []), [box.height, box.right]]);
            }
            return [...rows.values()];
        }"""
    )
    assert all(max(h for h, _ in row) - min(h for h, _ in row) < 1.5 for row in rows)
    rights = [max(right for _, right in row) for row in rows[:-1]]
    assert max(rights) - min(rights) < 1.5
    web_page.get_by_role("button", name="Show their captions").click()
    expect(web_page.locator(".tile.dead:visible")).to_have_count(gone)
    assert set(web.referrers) == {None}


def test_where_no_picture_loads_the_captions_are_shown_and_no_page_after_page(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}#pictures?table=web&safe=all&where=position(url,'/gone/')>0")
    expect(page.locator("#gone")).to_have_text("None of these pictures loads: only their captions are shown.")
    expect(page.locator(".tile.dead")).to_have_count(len(GONE))
    assert all(tile.is_visible() for tile in page.locator(".tile.dead").all())
    page.get_by_role("button", name="Remove the WHERE").click()
    expect(page.locator(".tile.loaded").first).to_be_visible()
    expect(page.locator("#gone")).to_contain_text("no longer load")


def test_a_search_that_fails_says_why_and_offers_nothing_of_it(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(f"{served.address}#pictures?table=web&where=no_such_column>1")
    expect(page.locator("#notice")).to_contain_text("`no_such_column`")
    expect(page.locator("#notice")).not_to_contain_text("In scope")
    for name in ("Show SQL", "Export"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()


def test_a_search_that_fails_takes_the_figures_of_the_one_before_away(page: Page) -> None:
    expect(page.locator("#status")).to_contain_text("pictures")
    page.evaluate("location.hash = '#pictures?table=emoji&where=no_such_column>1'")
    expect(page.locator("#notice")).to_contain_text("`no_such_column`")
    expect(page.locator("#status")).to_have_text("")
    for name in ("Show SQL", "Export"):
        expect(page.get_by_role("button", name=name)).to_be_disabled()
    page.go_back()
    expect(page.locator("#status")).to_contain_text("pictures")
    expect(page.get_by_role("button", name="Export")).to_be_enabled()


def test_what_is_not_safe_is_hidden_then_blurred_then_shown(web_page: Page) -> None:
    web_page.get_by_label("Pictures that are not safe").select_option("blur")
    settled(web_page)
    expect(web_page.locator(f".tile.veiled.loaded[data-id='{UNSAFE[0]}']")).to_be_visible()
    veiled = web_page.locator(".tile.veiled")
    web_page.locator(f".tile[data-id='{UNSAFE[0]}'] .open").click()
    expect(web_page.locator(f".tile.veiled[data-id='{UNSAFE[0]}']")).to_have_count(0)
    expect(web_page.locator(f".tile[data-id='{UNSAFE[0]}']")).to_be_visible()
    expect(web_page.get_by_role("dialog")).to_have_count(0)
    expect(web_page).to_have_url(re.compile("safe=blur"))
    web_page.get_by_label("Pictures that are not safe").select_option("all")
    expect(veiled).to_have_count(0)
    web_page.get_by_label("Pictures that are not safe").select_option("safe")
    expect(web_page.locator(f".tile[data-id='{UNSAFE[0]}']")).to_have_count(0)


def test_rows_are_filtered_by_what_they_say_of_safety(web_page: Page) -> None:
    web_page.get_by_label("Pictures that are not safe").select_option("all")
    web_page.get_by_role("button", name="Filters").click()
    panel = web_page.get_by_role("dialog", name="Filters")
    panel.get_by_role("button", name="Another column").click()
    panel.get_by_label("Column").select_option("NSFW")
    panel.get_by_label("Comparison").select_option("eq")
    panel.get_by_label("Value").fill("NSFW")
    expect(web_page.locator(".pill")).to_have_text(["NSFW = NSFW"])
    panel.get_by_label("Close").click()
    until(web_page, "n => document.querySelectorAll('.tile[data-id]').length === n", len(UNSAFE))
    every = web_page.eval_on_selector_all(".tile[data-id]", "tiles => tiles.map(t => t.dataset.id)")
    assert sorted(map(int, every)) == UNSAFE


def test_pictures_almost_the_same_are_folded_on_request(web_page: Page) -> None:
    web_page.get_by_role("button", name="Fold alike").click()
    badge = web_page.locator(".tile[data-id='11'] .alike")  # row 10, the first of them, is gone
    expect(badge).to_be_visible()
    expect(web_page).to_have_url(re.compile("fold=0.96"))
    assert "12" not in ids(web_page)
    badge.click()
    expect(web_page.locator(".tile[data-id='12']")).to_be_visible()


def test_a_server_that_is_gone_is_waited_for(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(f"{served.address}#pictures?table=emoji", alone=True)
    page.wait_for_selector(".tile.loaded")
    before = captions(page)
    page.context.set_offline(True)
    page.get_by_label("Describe a picture").fill("cat")
    expect(page.locator("#notice")).to_contain_text("The server does not answer")
    assert captions(page)[:20] == before[:20]
    page.context.set_offline(False)
    # the page may have gone on by itself before
    page.evaluate("[...document.querySelectorAll('#notice button')].find(b => b.textContent === 'Try now')?.click()")
    shows(page, answer(page, "cat"))
    expect(page.locator("#notice")).to_be_hidden()


def test_a_busy_server_is_asked_again(page: Page) -> None:
    refusals = []

    def busy_twice(route: Route) -> None:
        if len(refusals) < 2:
            refusals.append(route)
            route.fulfill(status=429, json={"error": "too many", "code": 202}, headers={"Retry-After": "0.1"})
        else:
            route.continue_()

    page.route("**/api/search", busy_twice)
    search(page, "dog")
    shows(page, answer(page, "dog"))
    assert len(refusals) == 2


def test_an_empty_database_with_a_token_and_no_model(open_page: Callable[..., Page], tmp_path: Path) -> None:
    options = {"CLIPQL_TOKEN": "open sesame", "CLIPQL_MODEL": str(tmp_path / "no-model")}
    clipql.connect(tmp_path / "empty.db").close()
    with serve(tmp_path / "empty.db", tmp_path / "log", **options) as running:
        page = open_page(running.address)
        for given in ("wrong", "open sesame"):
            page.get_by_role("textbox", name="Token").fill(given)
            page.get_by_role("button", name="Enter").click()
        expect(page.get_by_role("heading", name="Nothing to search yet")).to_be_visible()
        assert page.get_by_text("clipql ingest parts/").is_visible()
        page.reload()
        expect(page.get_by_role("heading", name="Nothing to search yet")).to_be_visible()
