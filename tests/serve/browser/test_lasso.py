"""The map and its lasso, the band over the grid, and what is picked with them."""

from __future__ import annotations

import json
import re

import numpy as np
from browser_data import EMOJI
from browser_steps import painted, search, settled, until
from playwright.sync_api import Page, expect

NO_WEBGL = """
    const before = HTMLCanvasElement.prototype.getContext;
    HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
        return kind === 'webgl' ? null : before.call(this, kind, ...rest);
    };
"""


def open_map(page: Page) -> None:
    page.get_by_role("link", name="Map").click()
    expect(page.locator(".map-said")).to_contain_text(f"{EMOJI} pictures")
    expect(page.locator(".map-list li")).to_have_count(EMOJI)


def horizontal_places(page: Page) -> dict[int, float]:
    """Where each row is between left and right, as the server says."""
    reply = page.request.post(f"{page.url.partition('#')[0]}api/projection", data={"table": "emoji"})
    body = reply.body()
    begin = 4 + int.from_bytes(body[:4], "little")
    head = json.loads(body[4:begin])
    rows = int(head["first"]) + np.cumsum(np.frombuffer(body, np.uint32, head["count"], begin), dtype=np.int64)
    places = np.frombuffer(body, np.uint16, 2 * head["count"], begin + 4 * head["count"]).reshape(-1, 2)
    return dict(zip(rows.tolist(), (places[:, 0] / 65535 * 2 - 1).tolist(), strict=True))


def test_a_lasso_chooses_what_is_inside_to_be_picked_or_shown(page: Page) -> None:
    open_map(page)
    box = page.locator(".map-canvas").bounding_box()
    assert box is not None
    middle, right = box["x"] + box["width"] / 2, box["x"] + box["width"] - 2
    top, bottom = box["y"] + 2, box["y"] + box["height"] - 2
    inside = [row for row, x in horizontal_places(page).items() if x > 0]

    page.keyboard.down("Shift")
    page.mouse.move(middle, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (middle, bottom)):
        page.mouse.move(x, y)
    page.mouse.up()
    page.keyboard.up("Shift")
    chosen = page.get_by_label("Chosen on the map")
    expect(chosen).to_contain_text(f"{len(inside)} chosen")
    chosen.get_by_role("button", name="Pick these").click()
    expect(page.locator(".tray-count")).to_have_text(f"{len(inside)} picked")
    expect(chosen).to_be_hidden()

    page.get_by_role("button", name="Choose all in view").click()
    expect(chosen).to_contain_text(f"{EMOJI} chosen")
    page.get_by_role("button", name="Lasso").click()
    page.mouse.move(middle, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (middle, bottom)):
        page.mouse.move(x, y)
    page.mouse.up()
    expect(page.get_by_role("button", name="Lasso")).to_have_attribute("aria-pressed", "false")
    chosen.get_by_role("button", name="Show these").click()
    expect(page.locator(".pill")).to_have_text(f"{len(inside)} chosen rows")
    settled(page)
    # a page of them, or more where those left room in the window while they were laid out
    until(page, "n => document.querySelectorAll('.tile[data-id]').length >= n", min(40, len(inside)))
    shown = page.eval_on_selector_all(".tile[data-id]", "tiles => tiles.map(t => [+t.dataset.id, t.className])")
    assert {row for row, _ in shown} <= set(inside)
    assert all("picked" in classes for _, classes in shown)


def test_points_are_coloured_by_a_column_whose_values_filter_or_by_similarity(page: Page) -> None:
    search(page, "cat")
    open_map(page)
    colour = page.get_by_label("Colour by")
    colour.select_option("category")
    legend = page.get_by_role("group", name="Legend")
    first = legend.get_by_role("button").first
    expect(first).to_be_visible()
    name, rows = first.locator("span:not(:empty)").all_inner_texts()
    asked = {"table": "emoji", "where": f"category = '{name}'"}
    counted = page.request.post(f"{page.url.partition('#')[0]}api/count", data=asked)
    assert rows == str(counted.json()["matching"])
    first.click()
    expect(page.locator(".pill")).to_have_text(f"category = {name}")
    expect(page.locator(".map-said")).to_contain_text(f"{rows} pictures")
    colour.select_option("similarity to the search")
    expect(legend.locator(".map-ends")).to_be_visible()
    expect(page).to_have_url(re.compile("colour=similarity"))
    page.reload()
    expect(legend.locator(".map-ends")).to_be_visible()


def test_keys_move_the_map_and_open_what_is_in_its_middle(page: Page) -> None:
    page.add_init_script(NO_WEBGL)
    page.reload()
    open_map(page)
    field = page.locator(".map-canvas")
    expect(field).to_have_attribute("data-by", "canvas")  # it is drawn without WebGL too
    until(
        page,
        """() => {
            const canvas = document.querySelector('.map-points');
            return canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(part => part > 0);
        }""",
    )
    regions = page.get_by_label("Regions").get_by_role("button")
    region = regions.first.inner_text()
    assert region
    regions.first.click()
    painted(page)
    field.focus()
    for key in ("ArrowLeft", "ArrowRight", "-", "+"):
        page.keyboard.press(key)
    expect(field).to_have_class(re.compile("over"))
    caption = page.locator(".map-tip").inner_text()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("heading")).to_have_text(caption)


def test_a_band_over_the_grid_picks_what_it_touches(page: Page) -> None:
    expect(page.locator("#view-pictures")).to_have_attribute("data-band", "")
    tiles = page.locator(".tile[data-id]")
    first, third = tiles.nth(0).bounding_box(), tiles.nth(2).bounding_box()
    assert first is not None
    assert third is not None
    assert first["y"] == third["y"]
    page.mouse.move(first["x"] - 6, first["y"] + 20)  # between the edge of the window and the first picture
    page.mouse.down()
    page.mouse.move(third["x"] + 10, third["y"] + 40, steps=4)
    expect(page.locator(".grid-band")).to_have_count(1)
    page.mouse.up()
    expect(page.locator(".tray-count")).to_have_text("3 picked")
    expect(page.locator(".grid-band")).to_have_count(0)
    page.keyboard.down("Shift")
    page.mouse.move(third["x"] + 10, third["y"] + 40)
    page.mouse.down()
    fourth = tiles.nth(3).bounding_box()
    assert fourth is not None
    page.mouse.move(fourth["x"] + 10, fourth["y"] + 50, steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    expect(page.locator(".tray-count")).to_have_text("4 picked")
    expect(page.get_by_role("dialog")).to_have_count(0)
