"""ClickHouse's syntax tree, as EXPLAIN AST prints it: a node a line, a space deeper than its parent."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_LINE = re.compile(
    r"(?P<indent> *)(?P<kind>\S+)(?: (?P<rest>.*?))?(?: \(alias .*?\))?(?: \(children \d+\))?\Z", re.DOTALL
)


@dataclass
class Node:
    """kind: such as 'Function' or 'TableIdentifier'. name: what follows it on the line."""

    kind: str
    name: str
    depth: int
    parent: Node | None
    children: list[Node] = field(default_factory=list)


def read(text: str) -> list[Node]:
    """All nodes in the order of the lines, so that a parent comes before its children."""
    found: list[Node] = []
    last: dict[int, Node] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        depth = len(match["indent"])
        # the children of the first line stand as deep as it does
        depth = depth if found else -1
        parent = last.get(max((d for d in last if d < depth), default=-2)) if found else None
        node = Node(match["kind"], (match["rest"] or "").strip(), depth, parent)
        if parent is not None:
            parent.children.append(node)
        found.append(node)
        last = {d: n for d, n in last.items() if d < depth}
        last[depth] = node
    return found
