"""What the browser tests do and see, in words."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from patience import LAST_NET_SECONDS
from playwright.sync_api import Page, expect

FRAME_SECONDS = 60


def ids(page: Page) -> list[str]:
    """The ids of the pictures shown, in order."""
    found: list[str] = page.eval_on_selector_all(".tile[data-id]:not(.dead)", "tiles => tiles.map(t => t.dataset.id)")
    return found


def captions(page: Page) -> list[str]:
    """The captions shown, in order."""
    return [text.strip() for text in page.locator(".tile[data-id]:not(.dead) .caption").all_inner_texts()]


def until(page: Page, expression: str, argument: Any = None) -> Any:
    """Wait until JavaScript is true, and give what it is. Playwright's own way uses eval, which the page forbids."""
    return meanwhile(page, lambda: page.evaluate(expression, argument), f"{expression} {argument or ''}")


def meanwhile(page: Page, is_so: Callable[[], Any], what: str) -> Any:
    """Wait until something is so, and give what it is; meanwhile the page goes on. what: in words, for the error."""
    deadline = time.monotonic() + LAST_NET_SECONDS
    next_frame = time.monotonic() + FRAME_SECONDS
    while not (found := is_so()):
        assert time.monotonic() < deadline, f"not within {LAST_NET_SECONDS} s: {what}\n{condition(page)}"
        page.wait_for_timeout(50)  # each look costs two processes some milliseconds
        if time.monotonic() > next_frame:
            # a Chromium has been seen that drew a page no more; what waits to come into view then waits without end
            page.screenshot(timeout=1000 * LAST_NET_SECONDS)
            next_frame = time.monotonic() + FRAME_SECONDS
    return found


def condition(page: Page) -> str:
    """What a page is at, for an error: whether it draws, where it is scrolled, which pictures wait."""
    found: dict[str, Any] = page.evaluate(
        """async () => ({
            drawn: await Promise.race([
                new Promise(done => requestAnimationFrame(() => done(true))),
                new Promise(done => setTimeout(() => done(false), 10_000)),
            ]),
            visibility: document.visibilityState,
            scrolled: [window.scrollY, window.innerHeight, document.documentElement.scrollHeight],
            tiles: [...document.querySelectorAll('.tile')].map(tile => tile.className.replace('tile', '').trim()),
            waiting: [...document.querySelectorAll('.tile img')].filter(one => !one.complete).map(one => one.src),
            after: document.getElementById('after')?.innerText,
        })"""
    )
    return "\n".join(f"{name}: {value}" for name, value in found.items())


def painted(page: Page) -> None:
    """Wait until what has happened so far is on the screen, and all that the page does at once about it is done."""
    two_frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))"
    none_come = "new Promise(done => setTimeout(done, 30_000))"  # a Chromium has been seen that drew a page no more
    page.evaluate(f"() => Promise.race([{two_frames}, {none_come}])")


def restyled(page: Page, act: Callable[[], object]) -> int:
    """How many elements the browser works out the style of while something is done, and until it is on the screen: the
    work that makes tasks long where it grows with the page, as a number that no machine changes.
    """
    browser = page.context.browser
    assert browser is not None
    browser.start_tracing(page=page, categories=["devtools.timeline"])
    try:
        act()
        painted(page)
    finally:
        events = json.loads(browser.stop_tracing())["traceEvents"]
    known = [event["args"]["elementCount"] for event in events if "elementCount" in event.get("args", {})]
    assert known, "the browser tells nothing of styles"
    return sum(known)


def answer(
    page: Page, *terms: str | dict[str, Any], table: str = "emoji", url: str | None = None, **rest: Any
) -> list[str]:
    """The ids that the server itself gives for words, or for terms as the API takes them."""
    asked = {"table": table, "terms": [{"text": t} if isinstance(t, str) else t for t in terms], **rest}
    reply = page.request.post(
        f"{url or page.url.partition('#')[0]}api/search", data=asked, timeout=1000 * LAST_NET_SECONDS
    )
    assert reply.ok, reply.text()
    return [row["id"] for row in reply.json()["rows"]]


def shows(page: Page, wanted: list[str]) -> None:
    """Wait until the pictures begin with these."""
    until(
        page,
        "ids => ids.every((id, i) => document.querySelectorAll('.tile[data-id]')[i]?.dataset.id === id)",
        wanted[:30],
    )


def first_is(page: Page, id: str) -> None:
    """Wait until a row is the first shown."""
    until(page, "id => document.querySelector('.tile[data-id]')?.dataset.id === id", id)


def settled(page: Page) -> None:
    """Wait until the newest search is shown."""
    until(
        page,
        "!document.querySelector('#grid').matches('[aria-busy=true]')"
        " && document.querySelector('.tile[data-id], .empty')",
    )


def search(page: Page, words: str) -> None:
    """Type words and wait for their results."""
    with page.expect_response(lambda reply: reply.url.endswith("/api/search")):
        page.get_by_label("Describe a picture").fill(words)
        page.get_by_label("Describe a picture").press("Enter")
    settled(page)


def hover_action(page: Page, number: int, name: str) -> str:
    """Press a button of the number-th picture; gives its id."""
    tile = page.locator(".tile[data-id]:not(.dead)").nth(number)
    found = tile.get_attribute("data-id")
    assert found is not None
    tile.hover()
    tile.get_by_role("button", name=name, exact=True).click()
    return found


def drop(page: Page, data: bytes, type: str = "image/png") -> None:
    """Drop a file on the page, as from the desktop."""
    transfer = page.evaluate_handle(
        """([bytes, type]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], 'picture.png', { type }));
            return transfer;
        }""",
        [list(data), type],
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    expect(page.locator("#drop")).to_be_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(page.locator("#drop")).to_be_hidden()


def chips(page: Page) -> list[str]:
    """The parts of the query, as a screen reader names them."""
    return page.eval_on_selector_all(".chip", "chips => chips.map(c => c.getAttribute('aria-label'))")  # type: ignore[no-any-return]
