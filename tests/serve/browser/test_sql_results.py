"""What the SQL view shows of a statement, and takes away again: results, charts and plans."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browser_steps import search, settled, until
from browser_support import Served
from playwright.sync_api import Page, expect

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


def run(page: Page, sql: str) -> None:
    """Write a statement and run it; its table is there."""
    if page.evaluate("document.body.dataset.view") != "sql":
        page.get_by_role("link", name="SQL").click()
    page.get_by_label("SQL statement").fill(sql)
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".sql-table")).to_be_visible()
    expect(page.get_by_role("button", name="Run")).to_have_text("Run")


def column(page: Page, number: int) -> list[str]:
    """The texts of a column of the result."""
    return page.locator(f".sql-table tbody td:nth-child({number})").all_inner_texts()


@pytest.mark.parametrize("nothing", ["", " \n", ";", "-- only a word to oneself", "/* nor; this */ ;\n-- nor this"])
@pytest.mark.parametrize("key", ["Control+Enter", "Explain"])
def test_without_a_statement_no_result_of_another_is_shown(page: Page, nothing: str, key: str) -> None:
    run(page, "SELECT 7 AS seven")
    page.get_by_label("SQL statement").fill(nothing)
    if key == "Explain":
        page.get_by_role("button", name="Explain").click()
    else:
        page.get_by_label("SQL statement").press(key)
    expect(page.locator(".sql .status").first).to_have_text("There is no statement to run.")
    expect(page.locator(".sql-out")).to_be_empty()
    expect(page.locator(".sql-error")).to_be_hidden()


def test_the_way_back_from_the_first_statement_run_leads_out_of_the_view_and_from_the_second_to_the_first(
    page: Page,
) -> None:
    run(page, "SELECT 1 AS one")
    run(page, "SELECT 2 AS two")
    expect(page.locator(".sql-table th")).to_have_text(["two"])
    page.go_back()
    expect(page.get_by_label("SQL statement")).to_have_value("SELECT 1 AS one")
    page.go_back()
    settled(page)
    expect(page.locator("#view-pictures")).to_be_visible()
    page.go_forward()
    expect(page.get_by_label("SQL statement")).to_have_value("SELECT 1 AS one")


def test_what_is_no_number_is_told_from_what_is_not_there_and_both_come_last(page: Page) -> None:
    run(page, "SELECT arrayJoin([2., NULL, nan, inf, -1., -inf]) AS x")
    assert column(page, 1) == ["2", "NULL", "nan", "inf", "-1", "-inf"]
    page.locator(".sql-table .sort").click()
    assert column(page, 1) == ["-inf", "-1", "2", "inf", "nan", "NULL"]
    page.locator(".sql-table .sort").click()
    assert column(page, 1) == ["inf", "2", "-1", "-inf", "nan", "NULL"]


def test_a_chart_begins_with_what_tells_something(page: Page) -> None:
    run(page, "SELECT _row, image_path, caption, letters FROM emoji LIMIT 30")
    page.get_by_role("button", name="Chart").click()
    named = {label: page.get_by_label(label).evaluate("s => s.selectedOptions[0].text") for label in ("Across", "Up")}
    assert named == {"Across": "caption", "Up": "letters"}  # not the row's number over paths that all begin alike
    run(page, "SELECT number AS x, number * number AS y FROM numbers(9)")
    page.get_by_role("button", name="Chart").click()
    expect(page.get_by_role("img", name="Points of y by x, from 0 to 64")).to_be_visible()


def test_a_chart_of_the_first_rows_alone_says_so(page: Page) -> None:
    run(page, "SELECT concat('n', toString(number)) AS name, number AS n FROM numbers(90)")
    page.get_by_role("button", name="Chart").click()
    expect(page.locator(".chart-bar")).to_have_count(60)
    expect(page.locator(".sql-chart")).to_contain_text("The first 60 of 90 rows")
    page.get_by_label("Kind of chart").select_option("Histogram")
    expect(page.locator(".sql-chart")).not_to_contain_text("The first")


def test_a_long_line_of_a_plan_goes_on_below(page: Page) -> None:
    fits = "(plan => plan.scrollWidth <= plan.clientWidth && plan.scrollWidth > 0)(document.querySelector('.plan'))"
    search(page, "cat")
    page.get_by_role("button", name="how it was searched").click()
    expect(page.locator(".plan")).to_contain_text("an exact scan")
    page.set_viewport_size({"width": 420, "height": 720})
    until(page, fits)
    lines = page.locator(".plan").inner_text().splitlines()
    assert lines[0].startswith("Top-k search")
    assert lines[1].startswith("  table: ")
    page.keyboard.press("Escape")
    page.get_by_role("link", name="SQL").click()
    page.get_by_role("button", name="Explain").click()
    expect(page.locator(".plan")).to_contain_text("emoji")
    until(page, fits)


def test_a_chart_on_a_phone_leaves_the_page_as_wide_as_the_screen(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}#sql?table=emoji", **PHONE)
    run(page, "SELECT caption, letters, category, image_path, key FROM emoji LIMIT 30")
    page.get_by_role("button", name="Chart").click()
    expect(page.locator(".chart svg")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("document.querySelector('.sql-editor').getBoundingClientRect().right") <= 390
