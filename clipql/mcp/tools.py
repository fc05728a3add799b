"""The tools that agents are given: search by words, picture or row, SQL that only reads, the schema, small pictures.

What must stay true: what a tool gives back is short: rows end at a number that the caller knows of, vectors and long
texts are cut, and what was cut is said.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import Field

from clipql.errors import ClipqlError
from clipql.mcp.asking import Asking
from clipql.version import __version__

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])
# rows of SQL that are given at most, pictures beside the rows of a search, and letters of a value
MOST_ROWS, MOST_SEARCHED, MOST_PICTURES, MOST_LETTERS = 1_000, 200, 20, 2_000
# numbers of a vector that are shown
_NUMBERS = 4
# bytes of a picture's file
_MOST_BYTES = 10 << 20
_INSTRUCTIONS = """\
A clipql database: tables of images and captions with CLIP vectors, asked in ClickHouse's SQL. Call `schema` first.
`search_by_text`, `search_by_image` and `search_by_row` rank rows by meaning. `sql` runs one statement that reads; in it
encode_text('words') is a vector, as in
SELECT url, caption FROM laion ORDER BY cosineDistance(image_embedding, encode_text('a cat')) LIMIT 10.
`thumbnail` shows the picture of a row, by its number `_row`, which searches give and SQL knows as a column."""

Table = Annotated[str, Field(description="table, as `schema` names it; database.table where it is not in default")]
Number = Annotated[int, Field(description="the row's number, _row in what a search gave", ge=0)]
Rows = Annotated[int, Field(description="how many rows", ge=1, le=MOST_SEARCHED)]
Where = Annotated[str | None, Field(description="condition in SQL on the other columns, such as width > 500")]
Vectors = Annotated[str | None, Field(description="vector column to compare with (default: the images', if any)")]
Safe = Annotated[bool, Field(description="leave out the rows that the table marks as not safe to show (NSFW)")]
Shown = Annotated[int, Field(description="how many of the rows to show pictures of", ge=0, le=MOST_PICTURES)]


def server(asking: Asking, folder: Path) -> MCPServer[Any]:
    """The server with its tools. Run it. folder: what paths of pictures are relative to."""

    @contextlib.asynccontextmanager
    async def life(server: MCPServer[Any]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asking.close()

    made: MCPServer[Any] = MCPServer(
        "clipql", version=__version__, instructions=_INSTRUCTIONS, log_level="WARNING", lifespan=life
    )
    tools = Tools(asking, folder)
    for tool in (
        tools.schema, tools.search_by_text, tools.search_by_image, tools.search_by_row, tools.sql, tools.thumbnail,
    ):  # fmt: skip
        reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
        made.tool(annotations=reads, structured_output=False)(_told(tool))
    return made


def _told(tool: F) -> F:
    """A tool whose errors reach the agent as what they say."""

    @functools.wraps(tool)
    async def run(**given: Any) -> Any:
        try:
            return await tool(**given)
        except ClipqlError as error:
            raise ToolError(str(error)) from error

    return run  # type: ignore[return-value]


class Tools:
    """What each tool does. Their docstrings are what agents read."""

    def __init__(self, asking: Asking, folder: Path) -> None:
        """folder: what paths of pictures are relative to."""
        self._asking, self._folder = asking, folder

    async def schema(self) -> str:
        """Tables with their columns, rows, vector columns and the models that these take words for."""
        told = await self._asking.json("/api/tables")
        tables = [_described(each) for each in told["tables"]]
        others = await self._asking.sql(
            "SELECT database, table, groupArray(concat(name, ' ', type)) AS columns FROM system.columns "
            "WHERE database NOT IN ('system', 'information_schema', 'INFORMATION_SCHEMA') GROUP BY database, table "
            "ORDER BY database, table",
            MOST_ROWS,
        )
        known = {(each["database"], each["table"]) for each in tables}
        tables += [
            {"database": database, "table": table, "columns": columns}
            for database, table, columns in others["data"]
            if (database, table) not in known
        ]
        return _json({"tables": tables})

    async def search_by_text(
        self,
        table: Table,
        text: Annotated[str, Field(description="what to look for, in words, such as a cat on a sofa")],
        k: Rows = 10,
        where: Where = None,
        column: Vectors = None,
        safe: Safe = True,
        pictures: Shown = 0,
    ) -> list[Any]:
        """The rows whose picture or caption is nearest to words in meaning."""
        return await self._search(table, {"text": text}, k, where, column, safe, pictures)

    async def search_by_image(
        self,
        table: Table,
        path: Annotated[str | None, Field(description="a picture's file on the machine that this runs on")] = None,
        image_base64: Annotated[str | None, Field(description="or the file's bytes in base64")] = None,
        k: Rows = 10,
        where: Where = None,
        column: Vectors = None,
        safe: Safe = True,
        pictures: Shown = 0,
    ) -> list[Any]:
        """The rows that are nearest to a picture, given by its path or in base64."""
        if (path is None) == (image_base64 is None):
            raise ToolError("give one of path and image_base64")
        if path is not None:
            image_base64 = base64.b64encode(self._file(path)).decode()
        return await self._search(table, {"image": image_base64}, k, where, column, safe, pictures)

    async def search_by_row(
        self,
        table: Table,
        row: Number,
        k: Rows = 10,
        where: Where = None,
        column: Vectors = None,
        safe: Safe = True,
        pictures: Shown = 0,
    ) -> list[Any]:
        """The rows that are nearest to another row of the table, without that row."""
        return await self._search(table, {"id": str(row)}, k, where, column, safe, pictures, but=row)

    async def sql(
        self,
        statement: Annotated[str, Field(description="one statement in ClickHouse's SQL, without FORMAT")],
        max_rows: Annotated[int, Field(description="rows to give at most", ge=1, le=MOST_ROWS)] = 100,
    ) -> str:
        """Run one statement that reads (SELECT, WITH, EXPLAIN, SHOW, DESCRIBE). Nothing can be changed by it."""
        found = await self._asking.sql(statement, max_rows)
        rows = [[_short(value) for value in row] for row in found["data"][:max_rows]]
        columns = [f"{each['name']} {each['type']}" for each in found["meta"]]
        more = {"cut": f"there are more than these {max_rows:,} rows"} if len(found["data"]) > max_rows else {}
        return _json({"columns": columns, "rows": rows, **more})

    async def thumbnail(
        self,
        table: Table,
        row: Number,
        size: Annotated[int, Field(description="pixels each way", ge=16, le=1024)] = 256,
    ) -> Image:
        """The picture of a row, small. Rows whose picture is a URL have none here: open the URL."""
        return await self._picture(table, row, size)

    async def _picture(self, table: str, row: int, size: int) -> Image:
        database, _, name = table.rpartition(".")
        where = "/".join(quote(part, safe="") for part in (database or "default", name, str(row)))
        return Image(data=await self._asking.picture(f"/api/thumbnail/{where}?size={size}"), format="webp")

    async def _search(
        self,
        table: str,
        term: Mapping[str, Any],
        k: int,
        where: str | None,
        column: str | None,
        safe: bool,
        pictures: int,
        but: int | None = None,
    ) -> list[Any]:
        """A search, as text and pictures. but: a row that is left out."""
        database, _, name = table.rpartition(".")
        more = 0 if but is None else 1
        asked = {
            "table": name, "database": database or None, "k": k + more, "terms": [term], "where": where,
            "column": column, "safe": safe,
        }  # fmt: skip
        found = await self._asking.json("/api/search", {n: v for n, v in asked.items() if v is not None})
        rows = [_row(each) for each in found["rows"] if each["id"] != str(but)][:k]
        out: list[Any] = [_json({"rows": rows, "sql": found["sql"]})]
        for each in rows[:pictures]:
            row = each["_row"]
            try:
                image = await self._picture(table, row, 256)
            except ClipqlError as error:
                out.append(f"row {row}: {error}")
            else:
                out += [f"row {row}:", image]
        return out

    def _file(self, path: str) -> bytes:
        try:
            with open(self._folder / Path(path).expanduser(), "rb") as file:
                data = file.read(_MOST_BYTES + 1)
        except (OSError, RuntimeError, ValueError) as error:
            raise ToolError(f"{path[:200]}: {getattr(error, 'strerror', None) or error}") from error
        if len(data) > _MOST_BYTES:
            raise ToolError(f"{path[:200]} has more than {_MOST_BYTES:,} bytes")
        return data


def _described(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table of vectors, for agents."""
    return {
        "database": table["database"],
        "table": table["name"],
        "rows": table["rows"],
        "columns": [f"{each['name']} {each['type']}" for each in table["columns"]],
        "vectors": [
            {name: each[name] for name in ("column", "dimension", "model", "words", "of", "indexes")}
            for each in table["vectors"]
        ],
        **{name: table[name] for name in ("caption", "picture", "nsfw") if table.get(name)},
    }


def _row(found: Mapping[str, Any]) -> dict[str, Any]:
    """A found row: its number, how near it is, and its columns."""
    return {
        "_row": int(found["id"]),
        "distance": found["distance"],
        "values": {name: _short(value) for name, value in found["values"].items()},
    }


def _short(value: Any) -> Any:
    """A value, cut where it is long."""
    if isinstance(value, str) and len(value) > MOST_LETTERS:
        return f"{value[:MOST_LETTERS]}… ({len(value):,} letters)"
    if isinstance(value, Mapping):
        return {name: _short(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        numbers = len(value) > 2 * _NUMBERS and all(isinstance(each, (int, float)) for each in value)
        if numbers:
            return f"[{', '.join(f'{each:.4g}' for each in value[:_NUMBERS])}, … {len(value):,} numbers]"
        cut = [f"… {len(value):,} values"] if len(value) > MOST_ROWS else []
        return [*(_short(each) for each in value[:MOST_ROWS]), *cut]
    return value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
