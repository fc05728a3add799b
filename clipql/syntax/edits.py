"""Edits of a statement's text: places in it with what shall stand there, gathered and then applied to it at once."""

from __future__ import annotations

from collections.abc import Iterable

# the place [start, end) and the text for it; nothing is taken away where start is end
Edit = tuple[int, int, str]


def edited(text: str, edits: Iterable[Edit], start: int = 0, end: int | None = None) -> str:
    """The text, or its part [start, end), with the edits that lie in it.

    What is put in at the beginning of a place stands before what takes that place. Raises ValueError where two edits
    change the same letters, of which one would be lost.
    """
    last = len(text) if end is None else end
    parts, at = list[str](), start
    for begin, stop, new in sorted(e for e in edits if start <= e[0] and e[1] <= last):
        if begin < at:
            raise ValueError(f"two edits at {begin}: {text[begin : max(at, stop)]!r} would become {new!r} too")
        parts += (text[at:begin], new)
        at = stop
    return "".join((*parts, text[at:last]))
