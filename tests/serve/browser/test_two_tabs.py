"""Two tabs of one browser: what one keeps, the other shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browser_steps import settled, until
from browser_support import Served
from playwright.sync_api import Page, expect


@pytest.fixture
def other(page: Page, open_page: Callable[..., Page], served: Served) -> Page:
    """Another tab beside `page`."""
    opened = open_page(f"{served.address}#pictures?table=web")
    settled(opened)
    return opened


def test_a_search_saved_or_removed_in_one_tab_is_so_in_the_list_that_another_shows(page: Page, other: Page) -> None:
    for tab, name in ((page, "one"), (other, "two")):
        tab.get_by_role("button", name="Saved searches").click()
        tab.get_by_label("Name of this search").fill(name)
    page.get_by_role("button", name="Save", exact=True).click()
    expect(other.locator(".views a")).to_have_text(["one"])
    expect(other.get_by_role("dialog")).not_to_contain_text("No search has been saved")
    expect(other.get_by_label("Name of this search")).to_have_value("two")
    other.get_by_role("button", name="Save", exact=True).click()
    expect(page.locator(".views a")).to_have_text(["one", "two"])
    page.get_by_role("button", name="Remove one").click()
    expect(page.get_by_role("dialog")).to_contain_text("“one” was removed.")
    for tab in (page, other):
        expect(tab.locator(".views a")).to_have_text(["two"])


def test_statements_run_in_one_tab_are_listed_in_another(page: Page, other: Page) -> None:
    for tab, sql in ((page, "SELECT 1"), (other, "SELECT 2")):
        tab.get_by_role("link", name="SQL").click()
        tab.get_by_label("SQL statement").fill(sql)
        tab.get_by_role("button", name="Run").click()
        expect(tab.locator(".sql-table")).to_be_visible()
    for tab in (page, other):
        tab.get_by_text("Earlier statements").click()
        expect(tab.locator(".sql-past button")).to_have_text(["SELECT 2", "SELECT 1"])


def test_light_and_dark_are_those_of_the_browser(page: Page, other: Page) -> None:
    until(other, "document.querySelector('#view-pictures').dataset.band !== undefined")  # all its parts are there
    for theme in ("dark", "light"):
        page.get_by_role("button", name="Change between light and dark").click()
        for tab in (page, other):
            until(tab, "theme => document.documentElement.dataset.theme === theme", theme)


def test_pictures_found_to_be_gone_in_two_tabs_are_both_remembered(page: Page, other: Page) -> None:
    until(other, "localStorage.getItem('clipql:dead') !== null")
    mine = "http://127.0.0.1:9/of-another-tab.png"
    page.evaluate(
        """address => {
            const kept = JSON.parse(localStorage.getItem('clipql:dead'));
            localStorage.setItem('clipql:dead', JSON.stringify([[address, Date.now()], ...kept.slice(0, 1)]));
        }""",
        mine,
    )
    other.get_by_label("Pictures that are not safe").select_option("all")  # more of them, of which some are gone
    to_the_end = "window.scrollTo(0, document.documentElement.scrollHeight)"
    until(other, f"({to_the_end}, JSON.parse(localStorage.getItem('clipql:dead')).length > 2)")
    assert mine in [address for address, _ in other.evaluate("JSON.parse(localStorage.getItem('clipql:dead'))")]
