"""The OpenAPI document of the server, which a test compares with the routes that there are."""

from __future__ import annotations

from typing import Any

from clipql.serve import search_batch
from clipql.serve.limits import Options
from clipql.serve.packing import MAP
from clipql.version import __version__

_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_WHOLE = {"type": "integer"}
_COUNT = {"type": ["integer", "null"]}
_NAMES = {"type": "array", "items": _TEXT}
_ROW = {
    "id": _TEXT,
    "distance": {"type": ["number", "null"]},
    "caption": {"type": ["string", "null"]},
    "picture": {"type": ["string", "null"], "description": "an http(s) address, for the browser to load"},
    "thumbnail": {"type": ["string", "null"], "description": "a path on this server"},
    "values": {"type": "object"},
    "duplicate_of": {"type": ["string", "null"]},
}
_WHERE = {
    "anyOf": [{"type": ["string", "null"]}, _NAMES],
    "description": "a condition in SQL, or a list of them, all of which are met; up to 1,000 rows that "
    "`_row IN (3, 1, 2)` lists come in that order where nothing is searched for",
}
_PLACE = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in ("database", "table", "id")]


def document(options: Options) -> dict[str, Any]:
    """The document, with this server's limits."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "clipql",
            "version": __version__,
            "description": "Search images and captions by meaning; `/` speaks ClickHouse's HTTP protocol.",
        },
        "security": [{"bearer": []}, {"basic": []}] if options.token else [],
        "paths": {**_clickhouse(), **_rest(options)},
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
            },
            "schemas": {
                "Error": _object({"error": _TEXT, "code": _WHOLE}, ["error", "code"]),
                "Term": _object({"text": _TEXT, "image": _TEXT, "upload": _TEXT, "url": _TEXT, "id": _TEXT,
                                 "weight": _NUMBER, "vector": {"type": "array", "items": _NUMBER}}),
                "Row": _object({**_ROW, "hybrid_score": _NUMBER}, list(_ROW)),
            },
        },
    }  # fmt: skip


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required or []}


def _reply(description: str, schema: dict[str, Any] | None, media: str = "application/json") -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    content = {"content": {media: {"schema": schema}}} if schema is not None else {}
    return {"200": {"description": description, **content}, "default": {"description": "an error", "content": error}}


def _get(summary: str, schema: dict[str, Any], media: str = "application/json", **more: Any) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": _reply(summary, schema, media), **more}}


def _post(summary: str, body: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    taken = {"required": True, "content": {"application/json": {"schema": body}}}
    return {"post": {"summary": summary, "requestBody": taken, "responses": _reply(summary, schema)}}


def _clickhouse() -> dict[str, Any]:
    query = [{"name": "query", "in": "query", "schema": _TEXT}]
    statement = {"content": {"text/plain": {"schema": _TEXT}}}
    return {
        "/": {
            **_get("A statement in `query`, that only reads", _TEXT, "text/plain", parameters=query),
            "post": {
                "summary": "A statement, in `query` or the body, and data to insert",
                "parameters": query,
                "requestBody": statement,
                "responses": _reply("the result, in the format asked for", _TEXT, "text/plain"),
            },
        },
        "/ping": _get("Whether the server is there", _TEXT, "text/plain"),
        "/replicas_status": _get("Whether the server is there", _TEXT, "text/plain"),
    }


def _search(options: Options) -> dict[str, Any]:
    terms = {"type": "array", "items": {"$ref": "#/components/schemas/Term"}}
    properties = {
        "table": _TEXT,
        "database": _TEXT,
        "column": _TEXT,
        "model": {"type": ["string", "null"], "description": "of /api/models, in the place of the column's"},
        "k": {
            **_WHOLE,
            "minimum": 1,
            "maximum": options.limits.rows,
            "default": 40,
            "description": f"rows; at most {options.limits.k} as JSON or with fold",
        },
        "offset": {**_WHOLE, "minimum": 0, "default": 0},
        "where": _WHERE,
        "safe": {"type": "boolean", "default": True},
        "recall": {"type": ["number", "null"]},
        "exact": {"type": "boolean", "default": False},
        "fold": {"type": ["number", "null"], "description": "cosine from which a row repeats an earlier one"},
        "hybrid": {
            "type": "boolean",
            "default": False,
            "description": "look for the words of the one term, a text, too, and rank by both; rows have hybrid_score",
        },
        "words": {"type": ["string", "null"], "description": "of hybrid: the column; by default that of the captions"},
        "score": {
            **_object({"column": _TEXT, "weight": _NUMBER}, ["column", "weight"]),
            "type": ["object", "null"],
            "description": "a column of numbers mixed into the order: least distance - weight * column first (without "
            "terms, least -weight * column), rows without a number last",
        },
        "terms": terms,
        "queries": {
            "type": "array",
            "items": {"anyOf": [terms["items"], terms]},
            "maxItems": search_batch.MOST_QUERIES,
            "description": "many searches at once, each a term or a list of terms; the reply has `answers` then",
        },
        "columns": {"type": ["array", "null"], "items": _TEXT},
        "format": {"enum": ["JSON", "CSV", "Parquet", "Arrow"], "default": "JSON"},
    }
    rows = {"type": "array", "items": {"$ref": "#/components/schemas/Row"}}
    result = {
        "rows": rows,
        "table_id": {**_TEXT, "description": "another where a table of this name has been made anew"},
        "sql": _TEXT,
        "params": {"type": "object"},
        "plan": _NAMES,
        "exact": {"type": "boolean"},
        "more": {"type": "boolean"},
        "answers": {"type": "array", "items": _object({"rows": rows, "more": {"type": "boolean"}})},
        "ms": {"type": "object"},
    }
    made = _post(
        "The rows nearest to words, pictures, rows and vectors", _object(properties, ["table"]), _object(result)
    )
    made["post"]["requestBody"]["content"]["multipart/form-data"] = {"schema": _object({"query": _TEXT}, ["query"])}
    return made


def _projection(options: Options) -> dict[str, Any]:
    made = _post("A point for every row that a search goes through, or what colours the points", {}, {})
    asked = dict(_search(options)["post"]["requestBody"]["content"]["application/json"]["schema"])
    more = {
        "by": {"type": ["string", "null"], "description": "a column, whose values are given in the place of places"},
        "by_similarity": {"type": "boolean", "default": False, "description": "how similar each row is to `terms`"},
        "better_than": {"type": ["string", "null"], "description": "the `method` of the points that are known already"},
    }
    shape = {key: value for key, value in asked["properties"].items() if key != "queries"}
    made["post"]["requestBody"]["content"]["application/json"] = {"schema": _object({**shape, **more}, ["table"])}
    told = "the length of a header, uint32; the header, JSON; and the arrays that it lists"
    numbers = {"type": "string", "format": "binary", "description": told}
    stage = _object({"stage": _object({"name": _TEXT, "done": _WHOLE, "total": _WHOLE})})
    made["post"]["responses"] = {
        **_reply("points or values", numbers, MAP),
        "202": {"description": "there are none yet", "content": {"application/json": {"schema": stage}}},
    }
    return made


def _rest(options: Options) -> dict[str, Any]:
    point = _object({"id": _TEXT, "x": _NUMBER, "y": _NUMBER})
    size = {"name": "size", "in": "query", "schema": {**_WHOLE, "minimum": 16, "maximum": 1024, "default": 256}}
    tables = _object({"version": _TEXT, "model": {"type": ["string", "null"]}, "write": {"type": "boolean"},
                      "most": _object({"search": _WHOLE, "file": _WHOLE}),
                      "tables": {"type": "array", "items": {"type": "object"}}})  # fmt: skip
    wall = _object({"files": {"type": "boolean"}, "network": {"type": "boolean"}, "says": _TEXT})
    status = _object({"version": _TEXT, "write": {"type": "boolean"}, "sandbox": wall, "limits": {"type": "object"}})
    asked = _object({"database": _TEXT, "table": _TEXT, "column": _TEXT, "ids": _NAMES}, ["table", "ids"])
    row = {k: v for k, v in _ROW.items() if k not in ("distance", "duplicate_of")}
    return {
        "/healthz": _get("Whether the server is well", _object({"ok": {"type": "boolean"}})),
        "/api/status": _get("What protects the server, and its limits", status),
        "/metrics": _get("Figures for Prometheus", _TEXT, "text/plain"),
        "/api/openapi.json": _get("This document", {"type": "object"}),
        "/api/login": _post("A token for a cookie", _object({"token": _TEXT}), _object({"ok": {"type": "boolean"}})),
        "/api/tables": _get("The tables with vectors", tables),
        "/api/search": _search(options),
        "/api/models": _get(
            "The models that are on the server's machine",
            _object({"models": {"type": "array", "items": _object({"name": _TEXT, "dimension": _WHOLE})}}),
        ),
        "/api/count": _post(
            "How many rows a search goes through, and how many of those that meet its conditions are not safe",
            _object({"database": _TEXT, "table": _TEXT, "where": _WHERE, "safe": {"type": "boolean"}}, ["table"]),
            _object({"rows": _WHOLE, "matching": _WHOLE, "hidden": _WHOLE}),
        ),
        "/api/facets": _post(
            "The same counts, and of each column the values that the rows of a search have, or their histogram",
            _object(
                {
                    "database": _TEXT,
                    "table": _TEXT,
                    "where": _WHERE,
                    "safe": {"type": "boolean"},
                    "values_of": {"type": ["string", "null"], "description": "only this column's, of whatever number"},
                    "containing": {"type": ["string", "null"], "description": "what those values have in them"},
                },
                ["table"],
            ),
            _object(
                {
                    "rows": _WHOLE,
                    "matching": _WHOLE,
                    "hidden": _WHOLE,
                    "columns": {"type": "array", "items": {"type": "object"}},
                    "many": _NAMES,
                }
            ),
        ),
        "/api/chance": _post(
            "The similarity that words without a meaning reach; a search that reaches no more has found nothing",
            _object({"database": _TEXT, "table": _TEXT, "column": _TEXT, "model": _TEXT}, ["table"]),
            _object({"similarity": {"type": ["number", "null"]}}),
        ),
        "/api/rows/{database}/{table}/{id}": _get("A row", _object(row), parameters=_PLACE),
        "/api/thumbnail/{database}/{table}/{id}": _get(
            "A small picture of the file that a row names", _TEXT, "image/webp", parameters=[*_PLACE, size]
        ),
        "/api/picture/{database}/{table}/{id}": _get(
            "The picture's file that a row names, as it is", _TEXT, "image/*", parameters=_PLACE
        ),
        "/api/map": _post(
            "Places of rows in the plane, within [-1, 1]", asked, _object({"points": {"type": "array", "items": point}})
        ),
        "/api/projection": _projection(options),
        "/api/explain": _post(
            "The plan of a statement", _object({"sql": _TEXT, "database": _TEXT}, ["sql"]), _object({"plan": _NAMES})
        ),
        "/api/complete": _get("Words to complete SQL with", _object({"keywords": _NAMES, "functions": _NAMES})),
        "/api/progress/{query_id}": _get(
            "What a statement sent with the header `X-Clipql-Tell: progress` has read; null where it is not known",
            _object({"read_rows": _COUNT, "total_rows": _COUNT}),
            parameters=[{"name": "query_id", "in": "path", "required": True, "schema": _TEXT}],
        ),
    }
