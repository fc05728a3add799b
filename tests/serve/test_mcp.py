"""`clipql mcp`, asked by the SDK's own client: over standard input and output for a folder, in memory for a server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipql.encode.models import BUNDLED
from tests.serve.conftest import ROWS, TOKEN, Running, fill

pytest.importorskip("mcp", reason="the extra mcp is not installed")
from mcp import Client, ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from clipql.mcp import asking, tools

Call = Callable[..., Awaitable[Any]]


def texts(result: Any) -> list[str]:
    """The texts of a result."""
    return [each.text for each in result.content if each.type == "text"]


def value(result: Any) -> Any:
    """The JSON of a result's first text."""
    assert not result.is_error, texts(result)
    return json.loads(texts(result)[0])


async def over_stdio(folder: Path, talk: Callable[[ClientSession], Awaitable[None]]) -> None:
    """Talk to `clipql mcp` on a folder."""
    command = ["-m", "clipql", "--db", str(folder / "test.db"), "mcp"]
    given = {**os.environ, "CLIPQL_MODEL": BUNDLED}
    here = StdioServerParameters(command=sys.executable, args=command, env=given, cwd=folder)
    async with stdio_client(here) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        await talk(session)


def test_a_folder_is_searched_and_asked_over_stdio(tmp_path: Path) -> None:
    fill(tmp_path)

    async def talk(session: ClientSession) -> None:
        listed = {each.name: each for each in (await session.list_tools()).tools}
        assert sorted(listed) == ["schema", "search_by_image", "search_by_row", "search_by_text", "sql", "thumbnail"]
        assert all(each.annotations and each.annotations.read_only_hint for each in listed.values())
        told = value(await session.call_tool("schema", {}))["tables"]
        assert [(each["table"], each["rows"]) for each in told] == [("laion", ROWS), ("pictures", 4)]
        await check_rows(session.call_tool)
        await check_pictures(session.call_tool, tmp_path)
        wrong = await session.call_tool("search_by_text", {"table": "laion", "text": "a cat", "k": 2})
        assert wrong.is_error  # the column is of another model

    asyncio.run(over_stdio(tmp_path, talk))


async def check_rows(call: Call) -> None:
    """Rows by SQL and by another row."""
    other = "(SELECT image_embedding FROM laion WHERE _row = 7)"
    near = f"SELECT _row, url FROM laion ORDER BY cosineDistance(image_embedding, {other}), _row LIMIT 4"
    rows = value(await call("sql", {"statement": near}))["rows"]
    assert rows[0][0] == 7
    found = value(await call("search_by_row", {"table": "default.laion", "row": 7, "k": 3, "safe": False}))["rows"]
    assert [[each["_row"], each["values"]["url"]] for each in found] == rows[1:]
    cut = value(await call("sql", {"statement": "SELECT image_embedding FROM laion", "max_rows": 2}))
    assert (len(cut["rows"]), cut["cut"]) == (2, "there are more than these 2 rows")
    assert cut["rows"][0][0].endswith("… 16 numbers]")
    few = value(await call("search_by_row", {"table": "laion", "row": 7, "k": 2, "where": "url = 'nix'"}))
    assert few["rows"] == []
    for statement in ("DROP TABLE laion", "INSERT INTO laion VALUES (1)", "SELECT file('/etc/passwd')",
                      "SELECT * FROM url('http://127.0.0.1/')", "SELEC 1"):  # fmt: skip
        refused = await call("sql", {"statement": statement})
        assert (refused.is_error, "Code: " in texts(refused)[0]) == (True, True), statement
    assert (await call("sql", {"statement": "SELECT 1", "max_rows": 1_000_000})).is_error


async def check_pictures(call: Call, folder: Path) -> None:
    """Pictures of rows, and searches by pictures."""
    drawn = await call("thumbnail", {"table": "pictures", "row": 0, "size": 64})
    assert drawn.content[0].mime_type == "image/webp"
    assert Image.open(io.BytesIO(base64.b64decode(drawn.content[0].data))).size == (64, 32)
    secret = await call("thumbnail", {"table": "pictures", "row": 2})
    assert (secret.is_error, "canary" in texts(secret)[0]) == (True, False)
    shown = await call("search_by_row", {"table": "pictures", "row": 1, "k": 3, "pictures": 3})
    assert [each.type for each in shown.content if each.type == "image"] == ["image"]
    for path in ("nix.png", "pictures/secret.txt", "/etc/passwd"):
        refused = await call("search_by_image", {"table": "laion", "path": path})
        assert (refused.is_error, "canary" in texts(refused)[0] or "root:" in texts(refused)[0]) == (True, False)
    assert (await call("search_by_image", {"table": "laion"})).is_error


def test_a_server_is_asked_at_its_address_with_its_token(server: Running, reader: Running) -> None:
    async def talk() -> None:
        async with Client(tools.server(asking.of_server(server.url, None), server.folder)) as client:
            await check_rows(client.call_tool)
            await check_pictures(client.call_tool, server.folder)
        async with Client(tools.server(asking.of_server(reader.url, TOKEN), reader.folder)) as client:
            assert value(await client.call_tool("sql", {"statement": "SELECT count() FROM laion"}))["rows"] == [[ROWS]]
        async with Client(tools.server(asking.of_server(reader.url, "wrong"), reader.folder)) as client:
            assert "token" in texts(await client.call_tool("schema", {}))[0]
        async with Client(tools.server(asking.of_server("http://127.0.0.1:9", None), Path())) as client:
            assert "does not answer" in texts(await client.call_tool("schema", {}))[0]

    asyncio.run(talk())
