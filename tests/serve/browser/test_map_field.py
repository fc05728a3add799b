"""The map's field: what is chosen on it, what it is coloured by, and how much of the window it has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browser_data import EMOJI, WEB
from browser_steps import painted, until
from browser_support import Served
from playwright.sync_api import Page, expect

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture
def page(open_page: Callable[..., Page], served: Served) -> Page:
    """The map of the emoji."""
    opened = open_page(f"{served.address}#map?table=emoji&q=cat")
    expect(opened.locator(".map-said")).to_contain_text(f"{EMOJI} pictures")
    return opened


# whether something is drawn in the corner of the field, where no point is
IN_THE_CORNER = """(() => {
    const field = document.querySelector('.map-canvas');
    return field.getContext('2d').getImageData(6, field.height - 6, 1, 1).data[3] > 0;
})()"""


def test_escape_gives_up_the_lasso_and_what_is_chosen(page: Page) -> None:
    lasso, chosen = page.get_by_role("button", name="Lasso"), page.get_by_label("Chosen on the map")
    lasso.click()
    expect(lasso).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(lasso).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Choose all in view").click()
    expect(chosen).to_contain_text(f"{EMOJI} chosen")
    page.keyboard.press("Escape")
    expect(chosen).to_be_hidden()
    box = page.locator(".map-canvas").bounding_box()
    assert box is not None
    lasso.click()
    page.mouse.move(box["x"] + 20, box["y"] + 80)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 80)
    page.mouse.move(box["x"] + 300, box["y"] + 300)
    page.keyboard.press("Escape")
    page.mouse.up()
    painted(page)
    expect(chosen).to_be_hidden()


def test_the_line_around_what_is_chosen_is_seen_as_long_as_it_is(page: Page) -> None:
    until(page, f"!{IN_THE_CORNER}")
    page.get_by_role("button", name="Choose all in view").click()
    until(page, IN_THE_CORNER)
    page.get_by_role("button", name="Zoom in").click()
    page.get_by_role("button", name="Zoom out").click()
    until(page, IN_THE_CORNER)
    page.get_by_role("button", name="Choose none").click()
    until(page, f"!{IN_THE_CORNER}")


def test_the_map_has_what_the_lines_above_it_leave_of_the_window(page: Page) -> None:
    whole = "document.documentElement.scrollHeight <= innerHeight"
    assert page.evaluate(whole)
    page.evaluate("location.hash += '&with=1~dog&where=width>1'")  # chips and a pill
    expect(page.locator(".pill")).to_be_visible()
    until(page, whole)
    page.get_by_role("button", name="Choose all in view").click()
    page.get_by_role("button", name="Pick these").click()
    expect(page.locator("#tray")).to_be_visible()
    until(page, whole)
    said, tray = page.locator(".map-said").bounding_box(), page.locator("#tray").bounding_box()
    assert said is not None
    assert tray is not None
    assert said["y"] + said["height"] <= tray["y"]


def test_what_is_chosen_as_the_colour_is_what_the_points_have(page: Page) -> None:
    colour = page.get_by_label("Colour by")
    colour.select_option("similarity to the search")
    expect(page.locator(".map-ends")).to_be_visible()
    page.get_by_label("Clear the search").click()
    expect(colour).to_have_value("")
    expect(page.locator(".map-ends")).to_have_count(0)
    page.get_by_label("Describe a picture").fill("dog")
    expect(colour).to_have_value("similarity to the search")
    expect(page.locator(".map-ends")).to_be_visible()


def test_a_column_with_one_number_alone_is_said_to_have_it(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(f"{served.address}#map?table=web&safe=all&colour=height")
    expect(page.locator(".map-said")).to_contain_text(f"{WEB} pictures")
    expect(page.locator(".map-legend")).to_have_text("400 in every row")


def test_on_a_phone_the_map_says_what_fingers_do(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(f"{served.address}#map?table=emoji", **PHONE)
    expect(page.locator(".map-said")).to_contain_text("pinch to zoom, tap to open")
    page.get_by_role("button", name="Choose all in view").click()
    expect(page.get_by_label("Chosen on the map")).to_be_visible()
    expect(page.locator(".map-said")).to_be_hidden()
