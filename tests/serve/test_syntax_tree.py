"""Reading ClickHouse's syntax tree, by which the guard goes: what is cut short or printed otherwise is no tree."""

from __future__ import annotations

import pytest

from clipql.serve import syntax_tree

TEXT = """SelectWithUnionQuery (children 1)
 ExpressionList (children 1)
  SelectQuery (children 1)
   ExpressionList (children 2)
    Function sum (alias x (children 3)) (children 1)
     ExpressionList (children 1)
      Identifier a.b (alias c)
    Literal 'x (alias y) (children 2)'
"""


def test_names_and_parents_are_read() -> None:
    nodes = syntax_tree.read(TEXT)
    assert [(n.kind, n.name) for n in nodes[4:7]] == [
        ("Function", "sum"), ("ExpressionList", ""), ("Identifier", "a.b")
    ]  # fmt: skip
    assert nodes[6].parent is nodes[5]
    assert nodes[5].parent is nodes[4]
    assert nodes[4].parent is nodes[3]
    assert [n.kind for n in syntax_tree.read(TEXT.replace("\n", "\r\n"))] == [n.kind for n in nodes]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "\n".join(TEXT.splitlines()[:4]) + "\n",
        "\n".join(TEXT.splitlines()[1:]) + "\n",
        TEXT.replace("children 2)\n    Function", "children 1)\n    Function"),
        TEXT.replace("a.b", "a\nb"),
        '{\n"meta":\n[]\n}\n',
        "Row 1:\nexplain: SelectQuery\n",
    ],
)
def test_what_is_not_whole_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not whole|no line"):
        syntax_tree.read(text)
