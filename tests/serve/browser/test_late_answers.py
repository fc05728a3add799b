"""An answer that comes when the user has gone on is dropped: what is newer stays."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from browser_data import EMOJI
from browser_steps import answer, meanwhile, painted, settled, shows
from browser_support import Served
from playwright.sync_api import APIResponse, Error, Page, Route, expect


class Late:
    """Holds the first answer to a path whose request has a text in it; it is of the moment it was asked for."""

    def __init__(self, page: Page, path: str, text: str) -> None:
        self._page, self._path, self._text = page, path, text
        self._held: list[tuple[Route, APIResponse]] = []
        page.route(path, self._take)

    def _take(self, route: Route) -> None:
        asked = (route.request.post_data or "") + route.request.url
        if self._held or self._text not in asked:
            route.continue_()
        else:
            self._held.append((route, route.fetch()))

    @property
    def is_held(self) -> bool:
        """Whether it has been asked for."""
        return bool(self._held)

    def come(self) -> None:
        """Let the answer come, and the page do with it what it does."""
        with contextlib.suppress(Error):  # the page may have given the request up
            for route, reply in self._held:
                route.fulfill(response=reply)
        self._page.unroute(self._path)
        painted(self._page)


Act = Callable[[Page], Any]


@dataclass(frozen=True)
class Case:
    """Where one begins, what is asked first and answered last, what is asked then, and what is to be seen."""

    begin: str
    path: str
    text: str
    first: Act
    second: Act
    seen: Act


def to(address: str) -> Act:
    return lambda page: page.evaluate("address => { location.hash = address }", address)


def write(words: str) -> Act:
    return lambda page: page.get_by_label("Describe a picture").fill(words)


def facet(page: Page) -> None:
    page.get_by_role("dialog").get_by_role("region", name="category").get_by_role("button").first.click()


def open_facets(page: Page) -> None:
    page.get_by_role("button", name="Facets").click()
    expect(page.get_by_role("dialog").get_by_role("region", name="category")).to_be_visible()


def find_key(text: str) -> Act:
    return lambda page: page.get_by_role("region", name="key").get_by_role("searchbox").fill(text)


def only_key(page: Page) -> None:
    expect(page.get_by_role("region", name="key").get_by_role("status")).to_have_text("No value has that in it.")


def status(text: str) -> Act:
    return lambda page: expect(page.get_by_role("dialog").get_by_role("status").first).to_have_text(text)


def legend_is_a_scale(page: Page) -> None:
    expect(page.locator(".map-legend .map-ends")).to_be_visible()
    page.get_by_role("button", name="Change between light and dark").click()  # draws the legend anew
    expect(page.locator(".map-legend .map-ends")).to_be_visible()
    expect(page.locator(".map-legend .map-values")).to_have_count(0)


def has_url(page: Page) -> None:
    expect(page.get_by_role("dialog").locator("dt").filter(has_text="url")).to_be_visible()


def open_and_choose(page: Page) -> None:
    open_facets(page)
    facet(page)


def open_and_find(page: Page) -> None:
    open_facets(page)
    find_key("1")(page)


def dogs(page: Page) -> None:
    shows(page, answer(page, "dog", k=3))


EMOJIS = "#pictures?table=emoji"
ALL = f"{EMOJI} of {EMOJI} rows match"
CASES = {
    "a search": Case(EMOJIS, "**/api/search", '"cat"', write("cat"), write("dog"), dogs),
    "facets": Case(EMOJIS, "**/api/facets", "category", open_and_choose, facet, status(ALL)),
    "values": Case(EMOJIS, "**/api/facets", '"containing":"1"', open_and_find, find_key("no such key"), only_key),
    "details": Case(
        f"{EMOJIS}&where=0",
        "**/api/rows/**",
        "/emoji/5",
        to(f"{EMOJIS}&where=0&row=5"),
        to("#pictures?table=web&where=0&row=5"),
        has_url,
    ),
    "colours of the map": Case(
        "#map?table=emoji",
        "**/api/projection",
        '"by":"category"',
        to("#map?table=emoji&colour=category"),
        to("#map?table=emoji&colour=letters"),
        legend_is_a_scale,
    ),
}


def test_an_answer_to_an_older_question_changes_nothing(page: Page, served: Served) -> None:
    page.set_viewport_size({"width": 700, "height": 480})  # less to draw
    for name, case in CASES.items():
        if page.get_by_role("dialog").count():
            page.keyboard.press("Escape")
        to(case.begin)(page)
        settled(page)
        painted(page)
        late = Late(page, case.path, case.text)
        case.first(page)
        meanwhile(page, lambda late=late: late.is_held, f"{name} is asked for")
        case.second(page)
        case.seen(page)
        late.come()
        case.seen(page)
