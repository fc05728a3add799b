"""Pictures that are gone, as most of a collection of the web's are after some years: how the page stays calm."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import unquote

import pytest
from browser_steps import meanwhile, painted, settled, until
from browser_support import Served
from playwright.sync_api import Page, Route, expect

# the sum of all shifts that no key and no click has brought about, as the browser itself reports them
SHIFTS = """() => {
    window.shifts = 0;
    window.moved = [];
    const place = rect => [rect.x, rect.y, rect.width, rect.height].map(Math.round).join(' ');
    const moved = ({ node, previousRect, currentRect }) =>
        `${node?.dataset?.id ?? node?.className ?? node?.nodeName}: ${place(previousRect)} -> ${place(currentRect)}`;
    new PerformanceObserver(list => {
        for (const entry of list.getEntries()) {
            if (entry.hadRecentInput) continue;
            window.shifts += entry.value;
            window.moved.push(`${entry.value.toFixed(3)} ${[...entry.sources].map(moved).join(', ')}`);
        }
    }).observe({ type: 'layout-shift', buffered: true });
}"""
MOST_SHIFT = 0.1


def open_web(open_page: Callable[..., Page], served: Served, dies: Callable[[str], bool]) -> Page:
    """The table of the web's pictures, of which some are answered 404."""
    page = open_page(f"{served.address}healthz")
    page.add_init_script(f"({SHIFTS})()")

    def answer(route: Route) -> None:
        if dies(route.request.url):
            route.fulfill(status=404, body="")
        else:
            route.continue_()

    page.route(re.compile(r"/(good|gone)/"), answer)
    page.goto(f"{served.address}#pictures?table=web&safe=all")
    settled(page)
    return page


def at_the_end(page: Page) -> bool:
    """Scroll on; whether everything is shown."""
    page.mouse.wheel(0, 300)
    painted(page)
    return page.evaluate(  # type: ignore[no-any-return]
        "document.querySelector('.end') !== null && scrollY + innerHeight >= document.documentElement.scrollHeight - 2"
    )


@pytest.mark.parametrize("of", [3, 2])
def test_what_is_seen_stays_where_it_is_while_pictures_die(
    open_page: Callable[..., Page], served: Served, of: int
) -> None:
    page = open_web(open_page, served, lambda url: sum(map(ord, url)) % of == 0)
    meanwhile(page, lambda: at_the_end(page), "the end is shown")
    until(page, "[...document.querySelectorAll('.tile:not(.left, .dead) img[src]')].every(image => image.complete)")
    assert page.evaluate("window.shifts") < MOST_SHIFT, page.evaluate("window.moved")
    assert page.locator(".tile.dead").count() > 3


def test_where_all_are_gone_there_is_a_list_of_captions_with_archives(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_web(open_page, served, lambda url: True)
    expect(page.locator(".grid.captions")).to_be_visible()
    painted(page)
    heights = page.eval_on_selector_all(".tile[data-id]", "tiles => tiles.map(t => t.getBoundingClientRect().height)")
    assert max(heights) < 60
    assert page.evaluate("window.shifts") < MOST_SHIFT, page.evaluate("window.moved")
    link = page.locator(".tile.dead[data-id='3'] .archive")
    expect(link).to_have_attribute("href", re.compile(r"^https://web\.archive\.org/web/http://127\.0\.0\.1"))
    page.locator(".tile[data-id='3'] .open").click()
    expect(page.get_by_role("dialog").get_by_text("Look for it in the Internet Archive")).to_be_visible()
    page.keyboard.press("Escape")
    until(page, "document.activeElement.closest('.tile')?.dataset.id === '3'")
    page.keyboard.press("ArrowDown")
    until(page, "document.activeElement.closest('.tile')?.dataset.id === '4'")


def test_an_address_that_failed_is_not_asked_for_again(open_page: Callable[..., Page], served: Served) -> None:
    page = open_web(open_page, served, lambda url: "/gone/" in url)
    meanwhile(page, lambda: at_the_end(page), "the end is shown")
    until(page, "localStorage.getItem('clipql:dead')?.includes('/gone/')")
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(unquote(sent.url)))
    page.reload()
    settled(page)
    expect(page.locator(".tile.dead").first).to_be_hidden()
    assert [url for url in asked if "/gone/" in url] == []


def test_that_all_are_gone_is_said_before_the_captions(open_page: Callable[..., Page], served: Served) -> None:
    page = open_web(open_page, served, lambda url: True)
    note = page.locator("#gone")
    expect(note).to_have_text("None of these pictures loads: only their captions are shown.")
    expect(note).to_be_visible()
    lines = "[...document.querySelectorAll('#gone, .tile')].map(one => one.getBoundingClientRect())"
    until(page, f"(([line, first]) => line.height > 0 && first.height > 0 && line.bottom <= first.top)({lines})")


def test_only_those_that_load_is_offered_above_the_grid(open_page: Callable[..., Page], served: Served) -> None:
    page = open_web(open_page, served, lambda url: "good" not in url)
    only = page.get_by_role("button", name="Only those that load")
    expect(only).to_be_visible()
    assert page.evaluate("scrollY") == 0
    expect(only).to_be_in_viewport()
    only.click()
    expect(page.locator("#gone button").first).to_be_focused()
    expect(page.locator(".tile.dead:visible")).to_have_count(0)
