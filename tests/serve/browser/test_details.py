"""The details of a row: long captions, long pictures, the file itself, and copying."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from browser_steps import meanwhile, painted, settled, until
from browser_support import Served, serve
from PIL import Image
from playwright.sync_api import Page, expect

import clipql

LONG_CAPTION = "a long story about a cat " * 160


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A table of a picture with 4,000 characters of caption, a panorama and a tower."""
    folder = tmp_path_factory.mktemp("odd")
    shapes = {"0-square": (600, 600), "1-panorama": (4000, 400), "2-tower": (300, 3000)}
    with clipql.connect(folder / "odd.db") as db:
        columns = "caption String, image_path String, v Array(Float32)"
        db.sql(f"CREATE TABLE odd ({columns}) ENGINE = MergeTree ORDER BY image_path")
        for n, (name, size) in enumerate(shapes.items()):
            Image.new("RGB", size, (200, 60 * n, 30)).save(folder / f"{name}.png")
            db.sql(
                "INSERT INTO odd VALUES ({c:String}, {p:String}, {v:Array(Float32)})",
                c=LONG_CAPTION if n == 0 else name,
                p=str(folder / f"{name}.png"),
                v=np.eye(3, dtype=np.float32)[n],
            )
    with serve(folder / "odd.db", folder / "log") as running:
        yield running


def test_a_long_caption_leaves_the_buttons_where_they_are(open_page: Callable[..., Page], odd: Served) -> None:
    page = open_page(f"{odd.address}#pictures?table=odd&row=0", viewport={"width": 1280, "height": 720})
    dialog = page.get_by_role("dialog")
    heading = dialog.get_by_role("heading")
    for name in ("More like this", "Add to the search", "Take away from the search", "Copy the caption"):
        expect(dialog.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
    until(page, "document.querySelector('dialog h2').clientHeight < 150")
    dialog.get_by_role("button", name="Show all of the caption").click()
    until(page, "document.querySelector('dialog h2').clientHeight > 500")
    dialog.get_by_role("button", name="Show less of the caption").click()
    assert heading.inner_text().startswith("a long story")
    expect(dialog.get_by_role("button", name="More like this")).to_be_in_viewport(ratio=1)
    page.keyboard.press("ArrowRight")
    expect(heading).to_have_text("1-panorama")
    expect(dialog.get_by_role("button", name="Show all of the caption")).to_be_hidden()


@pytest.mark.parametrize(("row", "side", "seen"), [(1, "Width", "Height"), (2, "Height", "Width")])
def test_a_long_picture_is_scrolled_rather_than_made_a_strip(
    open_page: Callable[..., Page], odd: Served, row: int, side: str, seen: str
) -> None:
    page = open_page(f"{odd.address}#pictures?table=odd&row={row}", viewport={"width": 1280, "height": 720})
    until(page, f"document.querySelector('.details-picture img')?.natural{side} >= 3000")  # the file, not a small copy
    frame = "document.querySelector('.details-picture')"
    until(page, f"{frame}.scroll{side} > {frame}.client{side} * 1.5")
    until(page, f"{frame}.querySelector('img').client{seen} > 250")

    def scrolled() -> bool:
        page.locator(".details-picture.long").focus()
        if page.evaluate("document.activeElement.matches('.details-picture.long')"):
            page.keyboard.press("ArrowRight" if row == 1 else "ArrowDown")
        return bool(page.evaluate(f"{frame}.scroll{'Left' if row == 1 else 'Top'} > 0"))

    meanwhile(page, scrolled, "the picture is scrolled by keys")
    expect(page.get_by_role("dialog").get_by_role("heading")).to_have_text("1-panorama" if row == 1 else "2-tower")


def test_the_file_of_a_picture_can_be_opened(open_page: Callable[..., Page], odd: Served) -> None:
    page = open_page(f"{odd.address}#pictures?table=odd&row=1", alone=True)
    link = page.get_by_role("dialog").get_by_role("link", name="Open the picture")
    with page.context.expect_page() as opened:
        link.click()
    opened.value.wait_for_load_state()
    until(opened.value, "document.images[0]?.naturalWidth === 4000")
    assert page.request.get(opened.value.url).body() == (odd.folder / "1-panorama.png").read_bytes()


def test_the_caption_and_the_address_are_copied(open_page: Callable[..., Page], odd: Served) -> None:
    page = open_page(f"{odd.address}#pictures?table=odd&row=0", alone=True)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    settled(page)
    dialog = page.get_by_role("dialog")
    beside = dialog.get_by_role("button", name="Copy the address")
    expect(dialog.get_by_text("Show all of the caption")).to_be_visible()
    painted(page)
    place = beside.bounding_box()
    for name, wanted in (
        ("Copy the caption", LONG_CAPTION),
        ("Copy the address", f"{odd.address}api/picture/default/odd/0"),
    ):
        dialog.get_by_role("button", name=name).click()
        painted(page)
        meanwhile(page, lambda wanted=wanted: page.evaluate("navigator.clipboard.readText()") == wanted, name)
        assert beside.or_(dialog.get_by_role("button", name="Copied")).last.bounding_box() == place  # nothing moves


def test_the_details_are_as_a_modal_dialog_for_keys_and_for_the_pointer(
    open_page: Callable[..., Page], odd: Served
) -> None:
    page = open_page(f"{odd.address}#pictures?table=odd", viewport={"width": 1280, "height": 720})
    settled(page)
    opener = page.locator(".tile[data-id='1'] .open")
    opener.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_have_attribute("aria-modal", "true")
    expect(dialog.get_by_role("heading")).to_have_text("1-panorama")
    within = "document.activeElement.closest('dialog') !== null"
    seen = set()
    for key in ["Tab"] * 30 + ["Shift+Tab"] * 30:
        page.keyboard.press(key)
        assert page.evaluate(within), key
        seen.add(page.evaluate("document.activeElement.outerHTML"))
    assert len(seen) > 5
    page.evaluate("document.getElementById('words').focus()")
    assert page.evaluate(within)
    page.mouse.click(640, 20)  # beside it: what lies behind is not clicked
    expect(dialog).to_have_count(0)
    expect(opener).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("heading")).to_have_text("1-panorama")
    page.keyboard.press("ArrowRight")
    expect(dialog.get_by_role("heading")).to_have_text("2-tower")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.locator(".tile[data-id='2'] .open")).to_be_focused()
