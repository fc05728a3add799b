"""The SQL view, the map, and how the page looks on a phone and in the dark."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from browser_data import EMOJI
from browser_steps import captions, ids, meanwhile, painted, search, settled, until
from browser_support import Served
from playwright.sync_api import Page, Route, expect


def write_sql(page: Page, sql: str) -> None:
    """Replace the statement."""
    page.get_by_label("SQL statement").fill(sql)


def test_sql_is_completed_run_and_shared(page: Page, open_page: Callable[..., Page]) -> None:
    page.get_by_role("link", name="SQL").click()
    write_sql(page, "")
    page.get_by_label("SQL statement").press_sequentially("SELECT capt")
    expect(page.get_by_role("option").first).to_contain_text("caption")
    page.keyboard.press("Enter")
    page.keyboard.type(", letters FROM emoji ORDER BY letters, caption LIMIT 3")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".sql-table th")).to_have_text(["caption", "letters"])
    rows = page.locator(".sql-table tbody tr").all_inner_texts()
    assert len(rows) == 3
    other = open_page(page.url)
    expect(other.get_by_label("SQL statement")).to_have_value(
        "SELECT caption, letters FROM emoji ORDER BY letters, caption LIMIT 3"
    )


def test_the_sql_view_begins_with_a_statement_about_the_table_that_is_open(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}#sql?table=web")
    expect(page.get_by_label("SQL statement")).to_have_value("SELECT url, caption, NSFW\nFROM web\nLIMIT 20")
    page = open_page(f"{served.address}#sql")  # the largest table that can be searched
    expect(page.get_by_label("SQL statement")).to_have_value("SELECT _row, image_path, caption\nFROM emoji\nLIMIT 20")
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".cell-picture img")).to_have_count(20)


def test_pictures_are_shown_where_a_column_holds_their_addresses(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}#sql?table=web")
    write_sql(page, "SELECT url, caption, toUInt64(18446744073709551615) AS big FROM web LIMIT 4")
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".cell-picture img")).to_have_count(3)
    until(page, "document.querySelector('.cell-picture img').naturalWidth > 0")
    cells = page.locator(".sql-table tbody tr").nth(1).locator("td")
    expect(cells).to_have_text(
        ["javascript:document.title='hacked'", "an address that is a script", "18446744073709551615"]
    )
    assert page.locator(".sql-table a[href^='javascript']").count() == 0


def test_a_wrong_statement_says_what_is_wrong_and_explain_shows_the_plan(page: Page) -> None:
    page.get_by_role("link", name="SQL").click()
    write_sql(page, "SELECT captoin FROM emoji")
    page.keyboard.press("Control+Enter")
    page.get_by_label("SQL statement").press("Control+Enter")
    expect(page.locator(".sql-error")).to_contain_text("captoin")
    write_sql(page, "SELECT caption FROM emoji ORDER BY cosineDistance(image_embedding, encode_text('cat')) LIMIT 5")
    page.get_by_role("button", name="Explain").click()
    expect(page.locator(".sql-out .plan")).to_contain_text("image_embedding")
    expect(page.locator(".sql-error")).to_be_hidden()


@pytest.mark.parametrize("first", ["Run", "Explain"])
@pytest.mark.parametrize("then", ["Run", "Explain", "another statement"])
def test_a_late_answer_to_an_older_statement_is_not_shown(page: Page, first: str, then: str) -> None:
    def hold_first(route: Route) -> None:
        if "nothing_of_this_name" in (route.request.post_data or ""):
            held.append(route)
        else:
            route.continue_()

    held: list[Route] = []
    page.get_by_role("link", name="SQL").click()
    page.route(re.compile("default_format|api/explain"), hold_first)
    write_sql(page, "SELECT nothing_of_this_name FROM emoji")
    page.get_by_role("button", name=first).click()
    meanwhile(page, lambda: held, "the first statement is held")
    result = {
        "Run": page.locator(".sql-table td").first,
        "Explain": page.locator(".sql-out .plan"),
        "another statement": page.get_by_label("SQL statement"),
    }[then]
    if then == "another statement":
        page.evaluate("location.hash = '#sql?table=emoji&sql=SELECT+7'")
        expect(result).to_have_value("SELECT 7")
    else:
        write_sql(page, "SELECT caption FROM emoji LIMIT 1")
        page.keyboard.press("Control+Enter") if then == "Run" else page.get_by_role("button", name=then).click()
        expect(result).to_be_visible()
    for route in held:
        route.abort()  # the page has cancelled it already: then nothing tells that it has failed
    painted(page)
    expect(result).to_be_visible()
    expect(page.locator(".sql-error")).to_be_hidden()
    expect(page.get_by_role("button", name="Run")).to_have_text("Run")


def test_the_sql_of_a_search_gives_its_rows(page: Page) -> None:
    search(page, "heart")
    page.get_by_role("button", name="Show SQL").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".statement")).to_contain_text("encode_text('heart')")
    # as many rows as are shown: pages that are asked for ahead may have come
    limit = int(re.search(r"LIMIT (\d+)", dialog.locator(".statement").inner_text())[1])  # type: ignore[index]
    assert limit in (40, 80, 120)
    dialog.get_by_role("button", name="Edit and run").click()
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".sql-table tbody tr")).to_have_count(limit)
    shown = page.locator(".sql-table tbody tr td:nth-child(2)").all_inner_texts()
    page.go_back()
    settled(page)
    assert shown[:20] == captions(page)[:20]


def test_the_sql_of_a_search_gives_the_pages_that_came_later_and_no_more_than_is_similar_enough(page: Page) -> None:
    def statement() -> str:
        page.get_by_role("button", name="Show SQL").click()
        text = page.locator("dialog .statement").inner_text()
        page.keyboard.press("Escape")
        return text

    search(page, "heart")
    page.keyboard.press("End")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    until(page, "document.querySelectorAll('.tile[data-id]').length >= 120")
    assert int(statement().rpartition("LIMIT ")[2]) >= 120  # the first page has 40
    similar = page.locator(".tile .similarity").nth(4).inner_text().rpartition(" ")[2]
    slider = page.get_by_label("Least similarity shown")
    slider.evaluate("(i, cut) => { i.step = 'any'; i.value = cut; i.dispatchEvent(new Event('input')); }", similar)
    until(page, "document.querySelectorAll('.tile[data-id]').length < 40")
    assert statement().endswith(f"LIMIT {len(ids(page))}")


def test_the_map_shows_the_results_and_opens_them(page: Page) -> None:
    search(page, "cat")
    page.get_by_role("link", name="Map").click()
    expect(page.locator(".map-said")).to_contain_text(f"{EMOJI} pictures")
    expect(page.locator(".map-list li")).to_have_count(EMOJI)
    page.get_by_role("button", name="Zoom in").click()
    first = page.locator(".map-list button").first
    caption = first.inner_text()
    first.click()
    expect(page.get_by_role("dialog").get_by_role("heading")).to_have_text(caption)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Show all").click()
    place = until(
        page,
        """() => { // somewhere on the canvas there is a picture: find it as a pointer would
            const canvas = document.querySelector('.map-canvas');
            const box = canvas.getBoundingClientRect();
            for (let y = 40; y < box.height - 40; y += 8) for (let x = 40; x < box.width - 40; x += 8) {
                canvas.dispatchEvent(new PointerEvent('pointermove', { clientX: box.left + x, clientY: box.top + y }));
                if (canvas.classList.contains('over')) return [box.left + x, box.top + y];
            }
        }""",
    )
    page.mouse.click(*place)
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Pictures").click()
    assert sorted(map(int, ids(page))) == list(range(EMOJI))


@pytest.mark.parametrize("view", ["pictures", "map", "sql"])
def test_a_phone_shows_it_without_scrolling_sideways(open_page: Callable[..., Page], served: Served, view: str) -> None:
    page = open_page(
        f"{served.address}#{view}?table=emoji&q=cat&with=-0.5~heart",
        viewport={"width": 375, "height": 740},
        is_mobile=True,
        has_touch=True,
        device_scale_factor=2,
    )
    page.wait_for_selector({"pictures": ".tile.loaded", "map": ".map-list li", "sql": ".sql-editor"}[view])
    painted(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    if view == "pictures":
        page.locator(".tile .open").first.tap()
        expect(page.get_by_role("dialog").get_by_role("button", name="More like this")).to_be_visible()


def test_a_phone_has_every_choice_and_the_count_on_its_screen(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(f"{served.address}#pictures?table=web&q=cat", viewport={"width": 390, "height": 800})
    settled(page)
    for control in ("#table", "#safe", "#filters", "#fold", "#show-sql", "#export", "#status"):
        box = page.locator(control).bounding_box()
        assert box is not None, control
        assert box["x"] >= 0, control
        assert box["x"] + box["width"] <= 390, control


def test_the_page_has_one_heading_and_says_what_its_numbers_are(page: Page) -> None:
    assert page.locator("h1").count() == 1
    search(page, "cat")
    assert page.locator(".tile .similarity").first.inner_text().startswith("similarity 0.")
    page.get_by_role("link", name="SQL").click()
    expect(page.get_by_label("SQL statement")).to_have_role("textbox")


def test_it_is_dark_where_the_system_is_and_where_it_is_asked_to_be(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}#pictures?table=emoji&q=star", color_scheme="dark")
    page.wait_for_selector(".tile.loaded")
    brightness = (
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    )
    assert page.evaluate(brightness) < 120
    page.get_by_role("button", name="Change between light and dark").click()
    until(page, f"{brightness} > 600")
    page.reload()
    until(page, f"{brightness} > 600")


def test_every_control_has_a_name_and_every_picture_its_caption(page: Page) -> None:
    def nameless() -> list[str]:
        found: list[str] = page.evaluate(
            """() => [...document.querySelectorAll('button, a, input, select, textarea')]
                .filter(node => node.checkVisibility() && !(node.getAttribute('aria-label') || node.title ||
                    node.tagName !== 'SELECT' && node.textContent.trim() || node.labels?.length ||
                    node.querySelector('img[alt]')))
                .map(node => node.outerHTML.slice(0, 120))"""
        )
        return found

    search(page, "cat + star")
    assert nameless() == []
    for name in ("Filters", "Show SQL", "Export", "Help and keys"):
        page.get_by_role("button", name=name).click()
        expect(page.get_by_role("dialog")).to_be_visible()
        assert nameless() == []
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
    alts = page.eval_on_selector_all(
        ".tile:not(.hollow)", "tiles => tiles.map(t => [t.querySelector('img').alt, t.innerText])"
    )
    assert alts
    assert all(text.strip().startswith(alt) for alt, text in alts)


def test_the_place_of_an_error_is_where_it_is_in_the_editor(page: Page) -> None:
    page.get_by_role("link", name="SQL").click()
    for button in ("Run", "Explain"):
        write_sql(page, "\n\n  SELECT 'für 🐈' -- eins\nFORM nothing FORM nothing")
        page.get_by_role("button", name=button).click()
        page.get_by_role("button", name="Go to the place").click()
        rest = page.evaluate("(area => area.value.slice(area.selectionStart))(document.querySelector('#sql'))")
        assert rest == "nothing FORM nothing"
        page.get_by_label("SQL statement").fill("")


def test_the_keys_of_the_sql_view_work_wherever_the_focus_is(page: Page) -> None:
    page.get_by_role("link", name="SQL").click()
    expect(page.get_by_label("SQL statement")).to_be_focused()
    write_sql(page, "SELECT 7 AS seven")
    page.locator("body").click(position={"x": 5, "y": 700})
    page.keyboard.press("Control+Enter")
    expect(page.locator(".sql-table td")).to_have_text(["7"])


def test_a_result_is_sorted_charted_saved_and_shown_as_pictures(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(f"{served.address}#sql?table=emoji")
    write_sql(
        page,
        "SET max_threads = 1 -- one; comment\n; SELECT arrayJoin([10, 2, 9]::Array(UInt64)) AS n, toString(n) AS s, "
        "range(20)::Array(Float32) AS v",
    )
    page.get_by_role("button", name="Run").click()
    cells = page.locator(".sql-table tbody td:first-child")
    expect(cells).to_have_text(["10", "2", "9"])
    page.get_by_role("button", name="n", exact=True).click()
    expect(cells).to_have_text(["2", "9", "10"])  # numbers, though ids come as text
    page.get_by_role("button", name="s", exact=True).click()
    expect(cells).to_have_text(["10", "2", "9"])
    expect(page.locator(".sql-table tbody td:last-child").first).to_contain_text("[20 numbers]")
    page.get_by_role("button", name="Chart").click()
    expect(page.locator(".chart rect")).to_have_count(3)
    page.get_by_label("Kind of chart").select_option("Histogram")
    expect(page.locator(".chart rect")).to_have_count(30)
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV").click()
    assert Path(saved.value.path()).read_text().splitlines()[0] == '"n","s","v"'


def test_tables_earlier_statements_and_vectors_lead_on(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(f"{served.address}#sql?table=emoji")
    write_sql(page, "SELECT ")
    side = page.get_by_label("Tables and statements")
    expect(side.get_by_text("None was run in this browser yet")).to_have_count(1)
    side.get_by_text("emoji", exact=True).click()
    side.get_by_role("button", name="Insert letters").click()
    expect(page.get_by_label("SQL statement")).to_have_value("SELECT letters")

    write_sql(page, "SELECT _row, image_embedding FROM emoji WHERE _row IN (3, 5, 9) ORDER BY _row = 5, _row DESC")
    page.get_by_role("button", name="Run").click()
    page.get_by_role("button", name="Search by this vector").first.click()
    expect(page.locator(".sql-table tbody td:first-child").first).to_have_text("9")
    expect(page.locator(".sql-table th").last).to_have_text("distance")
    side.get_by_text("Earlier statements").click()
    side.get_by_role("button", name="SELECT _row, image_embedding FROM emoji WHERE").click()
    page.get_by_role("button", name="Run").click()
    page.get_by_role("button", name="As pictures").click()
    settled(page)
    assert ids(page) == ["9", "3", "5"]  # in the statement's order
