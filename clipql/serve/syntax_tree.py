"""ClickHouse's syntax tree, as EXPLAIN AST prints it: a node a line, a space deeper than its parent."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_CHILDREN = re.compile(r" \(children (\d+)\)\Z")
_KIND = re.compile(r"[A-Za-z][\w:]*\Z", re.ASCII)


@dataclass(slots=True)
class Node:
    """kind: such as 'Function' or 'TableIdentifier'. name: what follows it on the line."""

    kind: str
    name: str
    depth: int
    parent: Node | None
    children: list[Node] = field(default_factory=list)


def read(text: str) -> list[Node]:
    """All nodes in the order of the lines, so that a parent comes before its children.

    Raises ValueError for what is no whole tree: each node says how many children it has.
    """
    found: list[Node] = []
    counts: list[int] = []
    around: list[Node] = []  # what the last node stands in, and itself: from the outside in
    for line in text.replace("\r\n", "\n").split("\n")[:-1]:
        kind, name, count = _line(line)
        # the children of the first line stand as deep as it does
        depth = len(line) - len(line.lstrip(" ")) if found else -1
        while around and around[-1].depth >= depth:
            around.pop()
        parent = around[-1] if around else None
        node = Node(kind, name, depth, parent)
        if parent is not None:
            parent.children.append(node)
        found.append(node)
        counts.append(count)
        around.append(node)
    if (
        not found
        or text[0] == " "
        or any(len(node.children) != count for node, count in zip(found, counts, strict=True))
    ):
        raise ValueError("it is not whole")
    return found


def _line(line: str) -> tuple[str, str, int]:
    """A node's kind, its name, and how many children it has."""
    rest = line.lstrip(" ")
    children = _CHILDREN.search(rest)
    kind, _, name = (rest[: children.start()] if children else rest).partition(" ")
    if not _KIND.match(kind):
        raise ValueError(f"{line[:100]!r} is no line of it")
    return kind, name.partition(" (alias ")[0].strip(), int(children[1]) if children else 0
