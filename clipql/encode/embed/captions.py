"""Captions: of a picture, in a file beside it; and alone, a line each in text files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clipql.encode.embed.rows import Row, Skip
from clipql.storage.files import open_plain

CAPTION_NAMES = ("caption", "TEXT", "text")
SIDECARS = ("txt", "caption", "json")
LONGEST_LINE = 1 << 20
_LARGEST_SIDECAR = 16 << 20


class BadSidecar(Exception):
    """A file beside a picture that cannot be read; the message says which and why."""


def from_sidecars(found: Mapping[str, bytes], where: str, column: str | None = None) -> tuple[str, dict[str, Any]]:
    """The caption and the further columns in the files beside a picture.

    found: their content by ending, of `SIDECARS`. where: how messages call them, without the ending. column: the key
    of the caption in the JSON. A text file's words go before those of the JSON. Raises BadSidecar.
    """
    extra: dict[str, Any] = {}
    caption = next((_text(found[e]) for e in ("txt", "caption") if e in found), None)
    if "json" in found:
        try:
            told = json.loads(found["json"])
        except (ValueError, RecursionError) as error:
            raise BadSidecar(f"{where}.json is not JSON: {error}") from error
        if not isinstance(told, dict):
            raise BadSidecar(f"{where}.json holds {type(told).__name__}; expected an object with a caption and more")
        extra = dict(told)
        name = caption_name(list(extra), column)
        if name is not None and (caption is None or extra[name] == caption):
            value = extra.pop(name)
            caption = value if isinstance(value, str) else ("" if value is None else str(value))
    return _whole(caption or ""), extra


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
            while line := file.readline(LONGEST_LINE):
                number += 1
                key, long = f"{path}#{number}", not line.endswith(b"\n")
                if long:
                    long = len(line) == LONGEST_LINE
                    while line and long and not line.endswith(b"\n"):
                        line = file.readline(LONGEST_LINE)
                if skip:
                    yield Row(key)
                elif long:
                    yield Row(key, error=f"{path} line {number:,} is longer than {LONGEST_LINE:,} bytes")
                else:
                    caption = _text(line)
                    yield Row(key, caption=caption, error="" if caption else f"{path} line {number:,} is blank")
    except OSError as error:
        yield Row(f"{path}#!", error=f"{path}: {error.strerror or error}, after line {number:,}")


def _text(data: bytes) -> str:
    return _whole(data.decode("utf-8-sig", "replace").strip())


def _whole(text: str) -> str:
    """Text that UTF-8 can hold: JSON may bring lone surrogates, which no file format of ours can."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text
