"""What nobody looks at, or nobody waits for, has no frame drawn: each takes the processor what a search takes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from browser_steps import meanwhile, painted, search, settled, until
from browser_support import Served
from playwright.sync_api import Page, Route, expect

MOVES = """document.getAnimations().filter(one => one.playState === 'running')
    .map(one => one.effect.target.className + ': ' + (one.animationName ?? one.transitionProperty))"""


@pytest.fixture
def moving(open_page: Callable[..., Page], served: Served) -> Page:
    """The page of somebody who has not asked for less motion."""
    opened = open_page(f"{served.address}#pictures?table=emoji", reduced_motion="no-preference")
    opened.wait_for_selector(".tile.loaded")
    return opened


def test_results_that_stand_move_nothing_though_more_are_to_come(moving: Page) -> None:
    search(moving, "cat")
    settled(moving)
    expect(moving.locator("#after")).to_contain_text("More pictures")
    painted(moving)
    assert until(moving, f"{MOVES}.length === 0") is True
    moving.get_by_role("link", name="SQL").click()
    expect(moving.locator(".sql-editor")).to_be_visible()
    assert until(moving, f"{MOVES}.length === 0") is True


def test_the_sign_that_more_are_fetched_turns_while_they_are(moving: Page) -> None:
    held: list[Route] = []
    holding = True

    def hold(route: Route) -> None:
        if holding and json.loads(route.request.post_data or "{}").get("offset"):
            held.append(route)
        else:
            route.continue_()

    moving.route("**/api/search", hold)
    search(moving, "cat")
    moving.evaluate("scrollTo(0, document.body.scrollHeight)")
    until(moving, f"{MOVES}.includes('spinner: turn')")
    holding = False  # for the pages after this one
    for route in held:
        route.continue_()
    until(moving, f"!{MOVES}.includes('spinner: turn')")


@pytest.mark.parametrize("late", [False, True])
def test_pictures_come_in_softly_only_where_they_were_waited_for(moving: Page, late: bool) -> None:
    held: list[Route] = []
    moving.evaluate("""() => {
        window.softly = new Set();
        document.addEventListener('transitionrun', event => event.propertyName === 'opacity'
            && event.target.matches('.tile img') && window.softly.add(event.target.closest('.tile').dataset.id), true);
        const asked = new WeakMap();
        window.soon = new Set();
        new MutationObserver(all => all.forEach(({ target }) => asked.set(target, performance.now())))
            .observe(document.querySelector('#grid'), { subtree: true, attributeFilter: ['src'] });
        document.addEventListener('load', ({ target }) => {
            if (performance.now() - asked.get(target) < 200) window.soon.add(target.closest('.tile')?.dataset.id);
        }, true);
    }""")
    holding = late
    moving.route("**/thumbnail/**", lambda route: held.append(route) if holding else route.continue_())
    search(moving, "dog")
    if late:
        meanwhile(moving, lambda: held, "pictures are asked for")
        moving.wait_for_timeout(300)  # so long that they count as late
        holding = False  # for those that come into view next
        for route in held:
            route.continue_()
    settled(moving)
    if late:
        until(moving, "window.softly.size > 0")
    else:
        assert moving.evaluate("[...window.softly].filter(id => window.soon.has(id))") == []


def test_where_the_words_of_a_figure_do_not_fit_the_figure_is_seen_alone(page: Page) -> None:
    search(page, "cat")
    settled(page)
    seen = """width => {
        const tile = document.querySelector('.tile[data-id]');
        Object.assign(tile.style, { flex: 'none', width: `${width}px` });
        const line = tile.querySelector('.similarity');
        const [seen, all] = [line, line.firstChild].map(one => one.getBoundingClientRect());
        return [Math.round(all.height / seen.height), Math.abs(all.bottom - seen.bottom) < 2, line.innerText];
    }"""
    shown = page.locator(".similarity").first.inner_text()
    assert page.evaluate(seen, 140) == [1, True, shown]
    assert page.evaluate(seen, 80) == [2, True, shown]  # the last of two lines, which is the figure
    assert page.evaluate(seen, 60) == [2, True, shown]
