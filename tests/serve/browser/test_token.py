"""A server that asks for a token: what its dialog says, and that nobody is asked twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browser_steps import meanwhile, painted, settled
from browser_support import Served
from playwright.sync_api import Page, Route, expect

TOKEN = "open sesame"


class Door:
    """Lets those requests pass that have its token; while it `holds`, none."""

    def __init__(self, page: Page) -> None:
        self.page, self.token = page, TOKEN
        self.held: list[Route] = []
        self.holds = False
        page.route("**/api/**", self.answer)

    def answer(self, route: Route) -> None:
        if route.request.url.endswith("/api/login"):
            route.fulfill(json={})
        elif self.holds:
            self.held.append(route)
        elif route.request.headers.get("authorization") == f"Bearer {self.token}":
            route.continue_()
        else:
            self.refuse(route)

    def asked_for(self, path: str) -> None:
        """Wait until a request to this path is held."""
        meanwhile(self.page, lambda: [r for r in self.held if r.request.url.endswith(path)], f"{path} is held")

    def refuse_one(self, path: str) -> None:
        """Refuse what was held to this path."""
        for route in [r for r in self.held if r.request.url.endswith(path)]:
            self.held.remove(route)
            self.refuse(route)

    def refuse_held(self) -> None:
        """Hold no more, and refuse what was held."""
        self.holds = False
        while self.held:
            self.refuse(self.held.pop(0))

    @staticmethod
    def refuse(route: Route) -> None:
        route.fulfill(status=401, json={"error": "a token is asked for", "code": 516})


@pytest.fixture
def door(open_page: Callable[..., Page], served: Served) -> tuple[Page, Door]:
    """A page before which stands a door."""
    page = open_page(f"{served.address}healthz")
    made = Door(page)
    page.goto(f"{served.address}#pictures?table=emoji")
    return page, made


def give(page: Page, token: str) -> None:
    page.get_by_role("textbox", name="Token").fill(token)
    page.get_by_role("button", name="Enter", exact=True).click()


def test_the_dialog_tells_a_wrong_token_from_one_that_was_right_before(door: tuple[Page, Door]) -> None:
    page, at = door
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("It is the one that clipql serve was started with.")
    give(page, "wrong")
    expect(dialog).to_contain_text("The server did not take that token.")
    give(page, TOKEN)
    settled(page)
    expect(dialog).to_have_count(0)
    at.holds = True  # the dialog would take the keys, should something else be refused before they are typed
    page.get_by_label("Describe a picture").fill("cat")
    at.asked_for("/api/search")
    at.token = "another"  # the server was started anew
    at.refuse_held()
    expect(dialog).to_contain_text("The server has another token than before.")
    give(page, TOKEN)
    expect(dialog).to_contain_text("The server did not take that token.")
    give(page, "another")
    settled(page)
    expect(dialog).to_have_count(0)
    expect(page.locator(".tile .caption").first).to_contain_text("cat")


def test_what_was_refused_late_is_asked_again_with_the_token_given_meanwhile(door: tuple[Page, Door]) -> None:
    page, at = door
    give(page, TOKEN)
    settled(page)
    at.token, at.holds = "another", True
    page.get_by_label("Describe a picture").fill("cat")
    at.asked_for("/api/search")
    page.get_by_role("button", name="Facets").click()  # while nothing is refused, whose dialog would be above it
    at.asked_for("/api/facets")
    at.holds = False
    at.refuse_one("/api/facets")
    give(page, "another")
    expect(page.get_by_text("rows match")).to_be_visible()
    at.refuse_held()
    expect(page.locator(".tile .caption").first).to_contain_text("cat")
    painted(page)
    expect(page.get_by_role("dialog")).to_have_count(1)  # that of the facets


@pytest.mark.parametrize("given", [True, False])
def test_what_is_pressed_before_a_token_is_asked_for_opens_when_it_is_given(
    door: tuple[Page, Door], given: bool
) -> None:
    page, at = door
    held: list[Route] = []
    page.route("**/facets.js*", lambda route: held.append(route))  # which is fetched once results are seen
    give(page, TOKEN)
    settled(page)
    page.get_by_role("button", name="Facets").click()
    meanwhile(page, lambda: held, "the part is asked for")
    at.token = "another"
    page.get_by_label("Describe a picture").fill("cat")
    expect(page.get_by_role("textbox", name="Token")).to_be_visible()
    with page.expect_response("**/facets.js*"):
        held[0].continue_()
    painted(page)
    expect(page.get_by_role("dialog")).to_have_count(1)  # that of the token
    if given:
        give(page, "another")
        expect(page.get_by_text("rows match")).to_be_visible()
    else:
        page.keyboard.press("Escape")
        expect(page.locator("#notice")).to_contain_text("This server asks for a token.")
        expect(page.get_by_role("dialog")).to_have_count(0)


def test_whoever_says_no_is_left_alone_until_they_ask(door: tuple[Page, Door]) -> None:
    page, _ = door
    expect(page.get_by_role("textbox", name="Token")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#notice")).to_contain_text("This server asks for a token.")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Enter the token").click()
    give(page, TOKEN)
    settled(page)
    expect(page.locator("#notice")).to_be_hidden()
