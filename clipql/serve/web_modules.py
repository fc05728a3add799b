"""The modules of the page that its first results need, as one: fewer requests are fewer round trips on a slow line.

Nothing is built beforehand. When the server starts, the modules are put one behind the other as they stand, without
what they import from each other and without their comments. What must stay true: no two of them give one name to
different things; and each is to be had under its own name, too, as what the one module has of it, so that the parts
that come later share its state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_IMPORT = re.compile(r"^import \{[^}]*\} from '\./([\w.]+)';\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|class|const|let) ([A-Za-z_$][\w$]*))", re.MULTILINE)
_NAMED = re.compile(
    r"^(?:export )?(?:async )?(?:function\*?|class|const|let) ([A-Za-z_$][\w$]*|[\[{][^=]*)", re.MULTILINE
)


_COMMENT = re.compile(r"^[ \t]*(?:/\*\*?.*?\*/[ \t]*|//[^\n]*)\n", re.MULTILINE | re.DOTALL)


def order(modules: Mapping[str, str], first: str) -> list[str]:
    """A module and all that it imports at once, each behind what it needs. Raises KeyError where one is not there."""
    found: list[str] = []
    begun = set()

    def visit(name: str) -> None:
        if name not in begun:
            begun.add(name)
            for needed in _IMPORT.findall(modules[name]):
                visit(needed)
            found.append(name)

    visit(first)
    return found


def names(text: str) -> set[str]:
    """What a module declares at its outermost level."""
    return {name for told in _NAMED.findall(text) for name in re.findall(r"[A-Za-z_$][\w$]*", told)}


def without_comments(text: str) -> str:
    """A module without the lines that are comments alone, which are a fifth of what would travel. A line within a text
    of several lines stays.
    """

    def left(found: re.Match[str]) -> str:
        within_text = text.count("`", 0, found.start()) % 2
        return found[0] if within_text else ""

    return _COMMENT.sub(left, text)


def joined(modules: Mapping[str, str], first: str, called: str) -> dict[str, str]:
    """Texts by name: the one module under `called`, and its parts as what they are of it.

    Raises ValueError where two parts declare one name.
    """
    parts = order(modules, first)
    declared: dict[str, str] = {}
    for part in parts:
        for name in names(modules[part]):
            if name in declared:
                raise ValueError(f"{declared[name]} and {part} both declare {name}, and are one module together")
            declared[name] = part
    exports = {part: _EXPORT.findall(modules[part]) for part in parts}
    body = [f"// {part}\n{_EXPORT.sub('', _IMPORT.sub('', without_comments(modules[part])))}" for part in parts]
    every = ", ".join(name for part in parts for name in exports[part])
    whole = "\n".join([*body, f"export {{ {every} }};\n"])
    shims = {part: f"export {{ {', '.join(exports[part])} }} from './{called}';\n" for part in parts}
    return {called: whole, **shims}
