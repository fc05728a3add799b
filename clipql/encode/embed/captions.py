"""Captions: of a picture, in a file beside it; and alone, a line each in text files.

What must stay true: a caption is text as people wrote it. Its HTML entities are resolved and its white space is single
spaces, as CLIP's own tokenizer has it before it counts; no value of JSON becomes a caption by its Python spelling.
"""

from __future__ import annotations

import codecs
import functools
import html
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from clipql.encode.embed.rows import Row, Skip
from clipql.storage.files import open_plain

CAPTION_NAMES = ("caption", "TEXT", "text")
SIDECARS = ("txt", "caption", "json")
LONGEST_LINE = 1 << 20
_LARGEST_SIDECAR = 16 << 20
# longest first: that of UTF-32 begins as that of UTF-16 does
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


class BadSidecar(Exception):
    """A file beside a picture that cannot be read; the message says which and why."""


def from_sidecars(found: Mapping[str, bytes], where: str, column: str | None = None) -> tuple[str, dict[str, Any]]:
    """The caption and the further columns in the files beside a picture.

    found: their content by ending, of `SIDECARS`. where: how messages call them, without the ending. column: the key
    of the caption in the JSON. A text file's words go before those of the JSON. Raises BadSidecar.
    """
    extra: dict[str, Any] = {}
    caption = next((_text(found[e], f"{where}.{e}") for e in ("txt", "caption") if e in found), None)
    if "json" in found:
        try:
            told = json.loads(found["json"])
        except (ValueError, RecursionError) as error:
            raise BadSidecar(f"{where}.json is not JSON: {error}") from error
        if not isinstance(told, dict):
            raise BadSidecar(f"{where}.json holds {type(told).__name__}; expected an object with a caption and more")
        extra = dict(told)
        name = caption_name(list(extra), column)
        if name is not None:
            caption = _from_json(name, extra, caption)
    return caption or "", extra


def _from_json(name: str, extra: dict[str, Any], caption: str | None) -> str | None:
    """The caption, and the value taken out of the further columns where it says no more than the caption."""
    value = extra[name]
    said = spoken(value)
    if caption is not None:
        if said == caption:
            del extra[name]
        return caption
    if not isinstance(value, (list, dict)):
        del extra[name]
    return said


def spoken(value: Any) -> str:
    """A value as a caption: text, or a number as text; of a list, its first text; '' where there is none."""
    if isinstance(value, list):
        return next((said for each in value if isinstance(each, str) and (said := cleaned(each))), "")
    if isinstance(value, (str, bytes)):
        return cleaned(value if isinstance(value, str) else value.decode("utf-8", "replace"))
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return ""
    return str(value) if math.isfinite(value) else ""


def cleaned(text: str) -> str:
    """Text as CLIP's own tokenizer cleans it: entities resolved twice, single spaces; by ftfy where it is installed."""
    if not text.isascii():
        text = _fixed(
            text.encode("utf-8", "replace").decode()
        )  # JSON may bring lone surrogates, which no file can hold
    if "&" in text:
        text = html.unescape(html.unescape(text)).encode("utf-8", "replace").decode()
    return " ".join(text.split())


def _fixed(text: str) -> str:
    fix = _ftfy()
    return fix(text) if fix is not None else text


@functools.cache
def _ftfy() -> Callable[[str], str] | None:
    try:
        found: Callable[[str], str] = import_module("ftfy").fix_text
    except ImportError:
        return None
    return found


def caption_name(names: list[str], column: str | None) -> str | None:
    """Which of the columns holds the caption: the one that was asked for, or one of the usual names."""
    if column is not None:
        return column if column in names else None
    return next((n for n in CAPTION_NAMES if n in names), None)


def read_sidecars(picture: Path, column: str | None) -> tuple[str, dict[str, Any]]:
    """The caption and further columns of a picture file from `pic.txt`, `pic.caption` and `pic.json` beside it."""
    found: dict[str, bytes] = {}
    for ending in SIDECARS:
        path = picture.with_suffix(f".{ending}")
        try:
            with open_plain(path, follow=True) as file:
                data = file.read(_LARGEST_SIDECAR + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BadSidecar(f"{path}: {error.strerror or error}") from error
        if len(data) > _LARGEST_SIDECAR:
            raise BadSidecar(f"{path} is larger than {_LARGEST_SIDECAR >> 20} MB; expected a caption")
        found[ending] = data
    return from_sidecars(found, str(picture.with_suffix("")), column)


def read_lines(path: Path, skip: Skip) -> Iterator[Row]:
    """One row a line. A blank line is a row without a caption, so that rows and line numbers stay together."""
    number = 0
    try:
        with open(path, "rb") as file:
            read = _line_reader(file)
            while line := read(LONGEST_LINE):
                number += 1
                key, long = f"{path}#{number}", not line.endswith(b"\n")
                if long:
                    long = len(line) >= LONGEST_LINE
                    while line and long and not line.endswith(b"\n"):
                        line = read(LONGEST_LINE)
                if skip:
                    yield Row(key)
                elif long:
                    yield Row(key, error=f"{path} line {number:,} is longer than {LONGEST_LINE:,} bytes")
                else:
                    caption = cleaned(line.decode("utf-8-sig", "replace"))
                    yield Row(key, caption=caption, error="" if caption else f"{path} line {number:,} is blank")
    except OSError as error:
        yield Row(f"{path}#!", error=f"{path}: {error.strerror or error}, after line {number:,}")
    except BadSidecar as error:
        yield Row(f"{path}#!", error=str(error))


def _line_reader(file: BinaryIO) -> Callable[[int], bytes]:
    """Reads lines of a file as UTF-8, whatever it is in. Raises BadSidecar where it is no text."""
    encoding = _encoding(file.read(4096), file.name)
    file.seek(0)
    if encoding.startswith("utf-8"):
        return file.readline
    text = io.TextIOWrapper(file, encoding, "replace", newline="\n")
    return lambda size: text.readline(size).encode("utf-8", "replace")


def _encoding(data: bytes, where: str) -> str:
    """That of a text, by its first bytes: UTF-16 and UTF-32 by their mark, UTF-16 by its zeros too.

    Raises BadSidecar for what is no text.
    """
    found = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if found is not None or b"\0" not in data:
        return found or "utf-8"
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        # of text in European languages, every other byte is zero; none in UTF-8 is
        if data[first::2].count(0) > len(data) // 4 and not data[1 - first :: 2].count(0):
            return name
    raise BadSidecar(f"{where} holds zero bytes and is neither UTF-8 nor UTF-16; expected text")


def _text(data: bytes, where: str) -> str:
    return cleaned(data.decode(_encoding(data, where), "replace"))
