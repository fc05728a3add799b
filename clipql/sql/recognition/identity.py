"""Which model a vector comes from, so that vectors of two models are never compared.

A column remembers the model that filled it, an encoded constant the one that made it; of any other vector nothing is
known, and it may be compared with all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from clipql.encode.names import canonical
from clipql.errors import ModelMismatch
from clipql.sql.recognition.calls import Call, FindTable, find_pairs, find_sources
from clipql.sql.recognition.recognise import VectorSelect
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope


@dataclass(frozen=True)
class Origins:
    """What is known of the vectors in one statement. models: of each parameter that holds an encoded constant."""

    find: FindTable
    models: Mapping[str, str] = field(default_factory=dict)

    def check(self, select: VectorSelect, call: Call) -> None:
        """Raises ModelMismatch where a call compares a column with a vector from another model than filled it."""
        column = select.table.column(call.column)
        if column is None or column.model is None:
            return
        for text in _expanded(call.argument, select.scope.withs, select.aliases):
            for model, what in self._models(text):
                if canonical(model) != canonical(column.model):
                    name = f"{call.column} of {select.table.full_name}"
                    raise ModelMismatch(
                        f"{name} was filled by the model {column.model}, and {what} is a vector of {model}: "
                        f"compare vectors of one model, as with encode_text('…', '{column.model}')"
                    )

    def _models(self, text: str) -> Iterator[tuple[str, str]]:
        for name in re.findall(r"\{(\w+):Array\(Float32\)\}", text):
            if name in self.models:
                yield self.models[name], "the query"
        for model in re.findall(r"_clipql_encode_\w+\('((?:[^'\\]|\\.)+)'", text):
            yield model, "the query"
        if "SELECT" not in text.upper():
            return
        for scope in read(text).selects:
            names = {t.name for t in scope.within("SELECT")}
            for source in find_sources(scope, self.find)[0]:
                for column in source.table.columns:
                    if column.model and column.name in names:
                        yield column.model, f"{column.name} of {source.table.full_name}"

    def check_pairs(self, scope: Scope) -> None:
        """Raises ModelMismatch where a SELECT compares two columns that two models filled."""
        for (a, first), (b, second) in find_pairs(scope, self.find):
            if first.model and second.model and canonical(first.model) != canonical(second.model):
                names = f"{first.name} of {a.full_name}", f"{second.name} of {b.full_name}"
                raise ModelMismatch(
                    f"{names[0]} was filled by the model {first.model}, {names[1]} by {second.model}: "
                    "the distance between two such vectors means nothing"
                )


def _expanded(text: str, withs: tuple[str, ...], aliases: Mapping[str, str]) -> list[str]:
    """An expression, and those that the names in it stand for."""
    found, todo, seen = [text], [text], set[str]()
    while todo:
        for token in read(todo.pop()).tokens:
            name = token.name
            if not name or name in seen:
                continue
            seen.add(name)
            meant = (
                [aliases[name]] if name in aliases else [w for w in withs if re.search(rf"\b{re.escape(name)}\b", w)]
            )
            found += meant
            todo += meant if name in aliases else []
    return found
