"""Which of several models reads the words for a column."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser_steps import answer, search, settled, shows
from browser_support import Served, serve
from playwright.sync_api import Page, expect

import clipql
from clipql.encode.clip import open_encoder
from clipql.encode.models import find

OTHER = "tiny/other"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A table of words, and a second model that sees words as the bundled one, but for the case of letters."""
    folder: Path = tmp_path_factory.mktemp("several")
    words = ["cat", "dog", "star", "fish"]
    with clipql.connect(folder / "some.db") as db:
        db.sql("CREATE TABLE some (caption String, v Array(Float32)) ENGINE = MergeTree ORDER BY caption")
        for word, vector in zip(words, open_encoder("clipql/emoji").encode_texts(words), strict=True):
            db.sql("INSERT INTO some VALUES ({c:String}, {v:Array(Float32)})", c=word, v=vector)
        db.sql("CREATE TABLE short (caption String, v Array(Float32)) ENGINE = MergeTree ORDER BY caption")
        db.sql("INSERT INTO short VALUES ('a', [1, 2, 3])")
    shutil.copytree(find("clipql/emoji").path, folder / "hub" / "models--tiny--other" / "snapshots" / ("0" * 40))
    environment = {"CLIPQL_MODEL": "clipql/emoji", "HF_HUB_CACHE": str(folder / "hub")}
    with serve(folder / "some.db", folder / "log", **environment) as running:
        yield running


def test_one_of_several_models_is_chosen_and_is_in_the_link_and_the_sql(
    open_page: Callable[..., Page], several: Served
) -> None:
    page = open_page(f"{several.address}#pictures?table=some")
    settled(page)
    choose = page.get_by_role("combobox", name="Model", exact=True)
    expect(choose.locator("option")).to_have_text(["clipql/emoji", OTHER])
    expect(choose).to_have_value("")
    with page.expect_response(lambda reply: f'"model":"{OTHER}"' in (reply.request.post_data or "")):
        choose.select_option(OTHER)
    search(page, "star")
    shows(page, answer(page, "star", table="some", model=OTHER))
    expect(page).to_have_url(re.compile("model=tiny%2Fother"))
    expect(page.locator(".pill")).to_have_text([f"model {OTHER}"])
    page.get_by_role("button", name="Show SQL").click()
    expect(page.get_by_role("dialog").locator(".statement")).to_contain_text(f"encode_text('star', '{OTHER}')")
    page.get_by_role("button", name="Edit and run").click()
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".sql-table tbody tr").first).to_contain_text("star")
    page.go_back()
    page.reload()
    expect(choose).to_have_value(OTHER)
    page.get_by_role("button", name="Search with the column’s own model").click()
    expect(choose).to_have_value("")
    expect(page).not_to_have_url(re.compile("model="))


def test_where_one_model_alone_fits_none_is_chosen(open_page: Callable[..., Page], several: Served, page: Page) -> None:
    expect(page.get_by_role("combobox", name="Model", exact=True)).to_be_hidden()  # the other models of this machine
    short = open_page(f"{several.address}#pictures?table=short")
    settled(short)
    expect(short.get_by_role("combobox", name="Model", exact=True)).to_be_hidden()


def test_tables_tell_of_the_models_that_fit(several: Served, open_page: Callable[..., Page]) -> None:
    page = open_page(f"{several.address}healthz")
    found = page.request.get(f"{several.address}api/tables").json()["tables"]
    told = {table["name"]: table["vectors"][0] for table in found}
    assert (told["some"]["usual"], told["some"]["others"]) == ("clipql/emoji", [OTHER])
    assert (told["short"]["usual"], told["short"]["others"], told["short"]["words"]) == (None, [], False)
    refused = page.request.post(several.address, data=f"SELECT encode_text('a', '{os.fspath(several.folder)}')")
    assert (refused.status, "the model must be one of" in refused.text()) == (403, True)
