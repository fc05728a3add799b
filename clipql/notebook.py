"""IPython's magics: `%load_ext clipql`, then `%clipql` for a line of SQL and `%%clipql` for a cell.

    %load_ext clipql
    %clipql laion.db

    %%clipql found <<
    SELECT url, caption FROM laion ORDER BY cosineDistance(image_embedding, encode_text({words:String})) LIMIT 10

Parameters are the notebook's variables of those names. A result is shown as a table, with small pictures where its rows
name some. What must stay true: what a row holds is text, and never becomes markup; a file that is no picture shows
nothing of itself; a picture at a URL is fetched by the reader's browser, and only where that was asked for.
"""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class

from clipql.connection import connect
from clipql.database import Database
from clipql.errors import ClipqlError
from clipql.result import Result

# of a shown picture: pixels each way; the most that its file may have; rows whose pictures are shown
_SIZE, _PIXELS, _SHOWN = 96, 64_000_000, 50
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO")
_FILES = ("image_path", "picture_path", "path", "file", "filename")
_URLS = ("url", "image_url", "picture_url", "src")
_PLACE = re.compile(r"(?:[a-z]+://)?[^\s();]+")
_INTO = re.compile(r"\s*([A-Za-z_]\w*)\s*<<\s*")
_PARAMETER = re.compile(r"\{\s*([A-Za-z_]\w*)\s*:")
_OPTIONS = {"plain", "urls"}
_STYLE = f"max-width:{_SIZE}px;max-height:{_SIZE}px"


class Shown:
    """A result as notebooks show it: with a picture before each row that names one."""

    def __init__(self, result: Result, *, urls: bool) -> None:
        """urls: whether pictures at URLs are shown, too, which the reader's browser fetches."""
        self.result, self._urls = result, urls

    def __repr__(self) -> str:
        return repr(self.result)

    def _repr_html_(self) -> str:
        plain = self.result._repr_html_()
        pictures = self._pictures()
        if not any(pictures):
            return plain
        head, *rows = plain.split("<tr>")
        titles, *body = rows
        shown = [f"<td>{picture}</td>{row}" for picture, row in zip(pictures, body, strict=True)]
        return "<tr>".join([head, f"<th></th>{titles}", *shown])

    def _pictures(self) -> list[str]:
        columns = {name.lower(): name for name in reversed(self.result.columns)}
        file = next((columns[n] for n in _FILES if n in columns), None)
        url = next((columns[n] for n in _URLS if n in columns), None) if self._urls else None
        table = self.result.arrow().slice(0, _SHOWN)
        found = [""] * table.num_rows
        if url is not None:
            found = [_fetched(value) for value in table.column(url).to_pylist()]
        if file is not None:
            found = [_drawn(value) or had for value, had in zip(table.column(file).to_pylist(), found, strict=True)]
        return found


def _fetched(url: Any) -> str:
    if not isinstance(url, str) or not url.lower().startswith(("http://", "https://")):
        return ""
    return f'<img src="{html.escape(url)}" loading="lazy" referrerpolicy="no-referrer" style="{_STYLE}">'


def _drawn(name: Any) -> str:
    """A file as a small picture within the page; empty for what is none."""
    from PIL import Image, ImageOps

    if not isinstance(name, str) or not name or not Path(name).is_file():
        return ""
    try:
        with Image.open(name, formats=_FORMATS) as picture:
            if picture.width * picture.height > _PIXELS:
                return ""
            picture.draft("RGB", (_SIZE, _SIZE))
            small = ImageOps.exif_transpose(picture)
            small.thumbnail((_SIZE, _SIZE))
            out = io.BytesIO()
            small.convert("RGBA").save(out, "WEBP", quality=80, method=2)
    except Exception:  # noqa: BLE001, of whatever a decoder may say of what is no picture
        return ""
    return f'<img src="data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}">'


@magics_class
class ClipqlMagics(Magics):  # type: ignore[misc]
    """The magics, with the database that they ask."""

    database: Database | None = None

    @line_cell_magic  # type: ignore[untyped-decorator]
    def clipql(self, line: str, cell: str | None = None) -> Any:
        """Open a database, or run SQL in the one that is open.

        `%clipql laion.db` opens a folder, `%clipql http://127.0.0.1:8123` a server. `%clipql SELECT …` and a cell of
        `%%clipql` run SQL; parameters such as {words:String} are variables of the notebook. `%%clipql name <<` keeps
        the result under a name. `--urls` shows pictures at URLs, too, which your browser fetches; `--plain` none.
        """
        options, line = _options(line)
        into = None
        if cell is not None and (found := _INTO.fullmatch(line)):
            into, line = found[1], ""
        try:
            if line and _PLACE.fullmatch(line):
                self._open(line)
                line = ""
                if cell is None:
                    return None
            statement = f"{line}\n{cell or ''}".strip()
            if not statement:
                raise UsageError("%clipql needs SQL, or a database to open")
            result = self._run(statement)
        except ClipqlError as error:
            raise UsageError(str(error)) from error
        if into is not None:
            self.shell.user_ns[into] = result
            return None
        return result if "plain" in options else Shown(result, urls="urls" in options)

    def _open(self, where: str) -> None:
        self.close()
        self.database = connect(where)

    def _run(self, statement: str) -> Result:
        if self.database is None:
            self.database = connect()
        names = {name for name in _PARAMETER.findall(statement) if name in self.shell.user_ns}
        return self.database.sql(statement, **{name: self.shell.user_ns[name] for name in names})

    def close(self) -> None:
        """Close the database that was opened here."""
        if self.database is not None:
            self.database.close()
            self.database = None


def _options(line: str) -> tuple[set[str], str]:
    """The options that a line begins with, and the rest as it was written. Raises UsageError for others."""
    begin = re.match(r"\s*((?:--\w+\s*)*)(.*)", line, re.DOTALL)
    assert begin is not None
    found = {each.removeprefix("--") for each in begin[1].split()}
    if unknown := found - _OPTIONS:
        raise UsageError(f"%clipql has no option --{min(unknown)}; it has --{', --'.join(sorted(_OPTIONS))}")
    return found, begin[2].strip()


_loaded: dict[int, ClipqlMagics] = {}


def load(shell: Any) -> None:
    """What `%load_ext clipql` does."""
    _loaded[id(shell)] = magics = ClipqlMagics(shell)
    shell.register_magics(magics)


def unload(shell: Any) -> None:
    """What `%unload_ext clipql` does: the database is closed, too."""
    magics = _loaded.pop(id(shell), None)
    if magics is not None:
        magics.close()
        for kind in ("line", "cell"):
            shell.magics_manager.magics[kind].pop("clipql", None)
