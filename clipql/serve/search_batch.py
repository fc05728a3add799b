"""Many searches in one request of the REST API: same table, conditions and columns, and a list of what is looked for.

What must stay true: each answer is that of the same search alone; all words are encoded together, and one statement is
run for all vectors.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from clipql.serve import search_request as search
from clipql.serve.condition_errors import in_conditions
from clipql.serve.json_response import JsonResponse
from clipql.serve.limits import Limits
from clipql.serve.models_at_hand import model_for
from clipql.serve.search_request import Search, Term, wrong
from clipql.serve.search_results import SearchResults
from clipql.serve.search_statement import mixed, statement
from clipql.serve.service import Request, Service
from clipql.sql.planning import explain

MOST_QUERIES, MOST_ROWS = 1_000, 100_000  # searches of one request; rows of all of them together


@dataclass(frozen=True)
class Batch:
    """A request, checked. common: what all searches share, with the terms of the first. queries: the terms of each."""

    common: Search
    queries: tuple[tuple[Term, ...], ...]

    @classmethod
    def read(cls, given: Mapping[str, Any], uploads: Mapping[str, bytes], limits: Limits) -> Batch:
        """The request in parsed JSON, in which there is the key `queries`. Raises QueryError with what is wrong."""
        queries = given["queries"]
        if not isinstance(queries, list) or not 1 <= len(queries) <= MOST_QUERIES:
            raise wrong(f"queries: expected a list of 1 to {MOST_QUERIES:,} searches, each a term or a list of terms")
        for key in ("terms", "fold", "hybrid", "format"):
            if given.get(key) not in (None, False, "JSON", []):
                raise wrong(f"{key} goes with one search: leave it out beside queries")
        common = Search.read({k: v for k, v in given.items() if k != "queries"}, uploads, limits)
        if common.k * len(queries) > MOST_ROWS:
            raise wrong(
                f"{len(queries):,} queries of {common.k:,} rows are more than {MOST_ROWS:,} rows: ask for fewer at once"
            )
        each = [
            search.terms_of(query if isinstance(query, list) else [query], uploads, f"queries: number {number}: ")
            for number, query in enumerate(queries, 1)
        ]
        if any(t.url is not None for terms in each for t in terms):
            raise wrong("url goes with one search: send the pictures themselves beside queries")
        return cls(replace(common, terms=each[0]), tuple(each))


def answer(service: Service, results: SearchResults, asked: Batch) -> Response:
    """The response to many searches. Call it in a thread of the pool, as whoever acts there. Raises ClipqlError."""
    began, common = time.perf_counter(), asked.common
    table = service.table(common.database, common.table)
    column = service.column(table, common.column)
    roles = service.roles[table]
    every = [term for terms in asked.queries for term in terms]
    encodes = any(t.encodes for t in every)
    model = model_for(service.database.encoders, column, common.model) if encodes else None
    words = list(dict.fromkeys(t.text for t in every if t.text is not None))
    encoded = dict(zip(words, service.database.encoders.texts(words, model), strict=True)) if words else {}

    def vector(terms: Sequence[Term]) -> NDArray[np.float32]:
        found = [encoded[t.text] if t.text is not None else results.vector(t, table, column.name, model) for t in terms]
        return mixed(found, [t.weight for t in terms])

    vectors = [vector(terms) for terms in asked.queries]
    ready = time.perf_counter()
    made = statement(common, table, column, roles, vectors[0])
    with in_conditions(made.sql, common.where):
        answers = service.run_many(Request(made.sql), [{"query": v} for v in vectors])
    searched = time.perf_counter()
    service.metrics.took("encode", ready - began)
    service.metrics.took("search", searched - ready)
    pages = [results.page(common, table, column.name, each.output.arrow(), roles.types) for each in answers]
    shown = [{"rows": [results.shown(table, roles, row) for row in rows], "more": more} for rows, more, _ in pages]
    seconds = {"encode": ready - began, "search": searched - ready, "total": time.perf_counter() - began}
    return JsonResponse(
        {
            "answers": shown,
            "sql": made.sql,
            "plan": explain.describe([s.plan for s in answers[0].steps], service.registry),
            "ms": {k: round(v * 1000, 2) for k, v in seconds.items()},
        }
    )
