"""What the words of a statement from the network may be, one after the other: names, calls, clauses.

These rules need no syntax tree, so they also hold where ClickHouse's tree shows nothing: TTL … SET, SHOW … WHERE, the
parameters after APPLY. What must stay true: a clause whose expressions the tree leaves out is refused, or has literals
only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from clipql.errors import QueryError
from clipql.serve import allowed, structures
from clipql.serve.allowed import words
from clipql.serve.foreign import Foreign
from clipql.serve.spelling import check_name, check_table_name, denied
from clipql.syntax.lexer import Token, matching
from clipql.tables.registry import INTERNAL
from clipql.tables.shape import ORDER_INDEX

_FILES = (("INTO", "OUTFILE"), ("FROM", "INFILE"))
_ASKING = words("SELECT WITH FROM ( INSERT DELETE UPDATE")
# what stands before an operand and after it, where a clause may not begin: a name that is spelled so would have to be
# followed by a function's name that is one of these words
_SIGNS_BEFORE = words(", ( [ . = == != <> < > <= >= + - / || ? :")
_WORDS_BEFORE = words(
    "AS SELECT DISTINCT BY WHERE PREWHERE HAVING ON AND OR NOT LIKE ILIKE IN BETWEEN WHEN THEN ELSE CASE WITH"
)
_WORDS_AFTER = words(
    "FROM AS AND OR LIKE ILIKE IN NOT BETWEEN IS ASC DESC WHERE PREWHERE GROUP ORDER HAVING LIMIT OFFSET UNION "
    "SETTINGS FORMAT SELECT THEN ELSE END WHEN"
)
_DEFINING = words("CREATE ALTER REPLACE")
_LITERALS = words("number string vector")


class TokenRules:
    """The rules of a server. refused: the functions that the network may not call, in small letters."""

    def __init__(self, refused: Collection[str]) -> None:
        self._refused = refused
        self.left_out: Mapping[str, Foreign] = {}

    def check(self, tokens: Sequence[Token]) -> None:
        """Raise QueryError for a statement that may not be run."""
        if sum(t.upper == "FORMAT" and _is_format(tokens, at) for at, t in enumerate(tokens)) > 1:
            raise QueryError("a statement has one FORMAT", code=62, name="SYNTAX_ERROR")
        for at, token in enumerate(tokens):
            if token.text == ";" and token.kind == "symbol":
                raise QueryError("Multi-statements are not allowed", code=62, name="SYNTAX_ERROR")
            if token.name is not None:
                self._check_named(tokens, at, token.name)
            if token.kind == "word":
                _check_word(tokens, at)
        word = tokens[0].upper if tokens else ""
        if word in _DEFINING:
            _check_definition(tokens)
        elif word == "SHOW":
            _check_show(tokens)

    def _check_named(self, tokens: Sequence[Token], at: int, name: str) -> None:
        check_name(name)
        lowered = name.lower()
        if lowered == INTERNAL or name.startswith("_clipql"):
            raise denied(f"{name[:60]} is clipql's own")
        if lowered == ORDER_INDEX and tokens[0].upper in ("ALTER", "DROP"):
            raise denied(f"the index {ORDER_INDEX} is clipql's own: it stands for the table's ORDER BY")
        if lowered in self.left_out:
            each = self.left_out[lowered]
            raise denied(f"{each} is not for the network: {each.why}")
        following = tokens[at + 1].text if at + 1 < len(tokens) else ""
        before = tokens[at - 1] if at else None
        # the data of an INSERT, which come with it
        fed = name == "input" and tokens[0].upper == "INSERT" and before is not None and before.upper == "FROM"
        if following == "(" and lowered in structures.TAKE:
            structures.check_parameter(tokens, at)
        if following == "(" and lowered in self._refused and not fed:
            raise denied(f"{name[:60]}() is not called for the network")
        if lowered == "system" and following == "." and at + 2 < len(tokens) and (before is None or before.text != "."):
            check_table(f"system.{tokens[at + 2].name or ''}")
            # a copy of the columns has an engine of its own
            engine = tokens[at + 3].upper if at + 3 < len(tokens) else ""
            if before is not None and before.upper == "AS" and tokens[0].upper in _DEFINING and engine != "ENGINE":
                raise denied("a table like one of ClickHouse's own is not made for the network")
        if name.upper() == "IDENTIFIER" and _is_parameter(tokens, at):
            unset = tokens[at - 2].text[:60]
            raise QueryError(f"Substitution `{unset}` is not set", code=456, name="UNKNOWN_QUERY_PARAMETER")


def check_table(name: str, *, column: bool = False) -> None:
    """Raise QueryError for a table, with its database where that is said, that is not read for the network.

    column: what follows the table's name is one of its columns.
    """
    database, dot, table = name.partition(".")
    check_table_name(name)
    table = table.partition(".")[0] if column else table
    if dot and database.lower() == "system" and table.lower() not in allowed.SYSTEM_TABLES:
        raise denied(f"{name[:60]} is not read for the network")
    if database.lower() == INTERNAL:
        raise denied(f"{name[:60]} is clipql's own")


def _check_word(tokens: Sequence[Token], at: int) -> None:
    word = tokens[at].upper
    if (tokens[at - 1].upper if at else "", word) in _FILES:
        raise denied(f"{word} is not run for the network")
    if word == "APPLY" and not _is_operand(tokens, at):
        _check_apply(tokens, at)
    elif word == "FORMAT" and _is_format(tokens, at) and tokens[at + 1].name not in allowed.FORMATS:
        raise QueryError(f"Unknown format {tokens[at + 1].text[:60]}", code=73, name="UNKNOWN_FORMAT")
    elif word == "CLUSTER" and _is_cluster(tokens, at):
        raise denied("ON CLUSTER is not run for the network")
    elif word == "ENGINE" and tokens[0].upper not in _ASKING and not _is_operand(tokens, at):
        _check_engine(tokens, at)


def _check_apply(tokens: Sequence[Token], at: int) -> None:
    """The function after APPLY and its parameters, which the syntax tree does not show."""
    at += 2 if at + 1 < len(tokens) and tokens[at + 1].text == "(" else 1
    name = tokens[at].name if at < len(tokens) else None
    following = tokens[at + 1].text if at + 1 < len(tokens) else ""
    if name is None or not allowed.function(name) or following == "->":
        raise denied("APPLY is run with the name of an allowed function")
    if following == "(" and not all(
        t.kind in _LITERALS or t.text in (",", "-") for t in tokens[at + 2 : matching(tokens, at + 1)]
    ):
        raise denied("APPLY is run with parameters that are literals")


def _check_engine(tokens: Sequence[Token], at: int) -> None:
    at += 2 if at + 1 < len(tokens) and tokens[at + 1].text == "=" else 1
    name = tokens[at].name if at < len(tokens) else None
    before = tokens[at - 1].text == "="
    if before and (name is None or name.lower() not in allowed.ENGINES):
        raise denied(f"the engine {name and name[:60]} is not made for the network")


def _check_definition(tokens: Sequence[Token]) -> None:
    """The clauses of CREATE, REPLACE and ALTER that would do more than define."""
    ttl = grouped = False
    for a, b, c in zip(tokens, tokens[1:], [*tokens[2:], tokens[0]], strict=False):
        ttl = ttl or a.upper == "TTL"
        grouped = grouped or (ttl and (a.upper, b.upper) == ("GROUP", "BY"))
        if grouped and a.upper == "SET" and b.name is not None and c.text == "=":
            raise denied("TTL … GROUP BY … SET is not run for the network")
        if a.upper == "TO" and b.upper in ("DISK", "VOLUME") and c.kind == "string":
            raise denied(f"TO {b.upper} is not run for the network")
        if (a.upper, b.upper) == ("SQL", "SECURITY") and c.upper != "INVOKER":
            raise denied("a view for the network is read with the rights of who asks: SQL SECURITY INVOKER")
        if a.upper == "DEFINER" and b.text == "=":
            raise denied("DEFINER is not run for the network")
        if a.upper == "UUID" and b.kind == "string":
            raise denied("UUID '…' is not run for the network")


def _check_show(tokens: Sequence[Token]) -> None:
    """SHOW … WHERE, and LIMIT of more than a number, are expressions that the syntax tree does not show."""
    for at, token in enumerate(tokens):
        after = tokens[at + 1 : at + 4]
        if token.upper == "WHERE":
            raise denied("SHOW … WHERE is not run for the network: use LIKE, or SELECT from a table of system")
        if token.upper == "LIMIT" and not (after and after[0].kind == "number"):
            raise denied("SHOW … LIMIT is run for the network with a number")
        said = [t.upper for t in after]
        if token.upper in ("FROM", "IN") and len(after) > 2 and said[1] in ("FROM", "IN") and after[2].name:
            check_table(f"{after[2].name}.{after[0].name}")


def check_create(tokens: Sequence[Token]) -> None:
    """Raise QueryError for a CREATE of what the network does not make."""
    spelled = [t.upper for t in tokens]
    kind = next((w for w in spelled[1:6] if w in ("TABLE", "VIEW", "INDEX", "DATABASE")), None)
    before = set(spelled[1 : spelled.index(kind)]) if kind else set()
    if kind is None or not before <= {"OR", "REPLACE", "TEMPORARY", "TEMP", "UNIQUE"}:
        raise denied("CREATE is run for TABLE, VIEW, INDEX and DATABASE")
    if kind == "DATABASE":
        at = spelled.index(kind) + 1
        at += 3 if spelled[at : at + 3] == ["IF", "NOT", "EXISTS"] else 0
        engine = [w for w in spelled[at + 1 :] if w != "="]
        if engine not in ([], ["ENGINE", "ATOMIC"]):
            raise denied("CREATE DATABASE is run with a name alone, or with ENGINE = Atomic")


def killed(tokens: Sequence[Token]) -> tuple[str, bool]:
    """The query's id in KILL QUERY WHERE query_id = '…' [SYNC | ASYNC | TEST], and whether it is only looked for.

    Raises QueryError for any other KILL.
    """
    if len(tokens) > 7 and tokens[-2].upper == "FORMAT":
        tokens = tokens[:-2]
    words = [t.upper or t.text for t in tokens]
    shape = ["KILL", "QUERY", "WHERE", "QUERY_ID", "="]
    good = words[:5] == shape and len(tokens) in (6, 7) and tokens[5].kind == "string"
    if not good or (len(tokens) == 7 and words[6] not in ("SYNC", "ASYNC", "TEST")):
        raise denied("KILL is run as KILL QUERY WHERE query_id = '…'")
    return (tokens[5].value or b"").decode("utf-8", "replace"), words[-1] == "TEST"


def _is_operand(tokens: Sequence[Token], at: int) -> bool:
    """Whether a word is a name for certain: nothing but an operand may stand between what is before and after it."""
    before = tokens[at - 1] if at else None
    after = tokens[at + 1] if at + 1 < len(tokens) else None
    if before is None or not (before.text in _SIGNS_BEFORE or before.upper in _WORDS_BEFORE):
        return False
    return after is None or after.upper in _WORDS_AFTER or (after.kind == "symbol" and after.text != "(")


def _is_parameter(tokens: Sequence[Token], at: int) -> bool:
    """Whether a word is the type in `{name:Type}`."""
    return at >= 3 and tokens[at - 1].text == ":" and tokens[at - 3].text == "{"


def _is_cluster(tokens: Sequence[Token], at: int) -> bool:
    """Whether CLUSTER follows ON and has a name: a column of that name in a join's condition has none."""
    if not at or at + 1 >= len(tokens) or tokens[at - 1].upper != "ON":
        return False
    return tokens[at + 1].name is not None or tokens[at + 1].kind == "string"


def _is_format(tokens: Sequence[Token], at: int) -> bool:
    """Whether FORMAT opens a clause here."""
    if at + 1 >= len(tokens) or tokens[at + 1].name is None or (at and tokens[at - 1].text in (",", ".", "(")):
        return False
    if tokens[at + 1].upper in _WORDS_AFTER:
        return False  # no format is called so
    after = tokens[at + 2] if at + 2 < len(tokens) else None
    return after is None or after.upper in ("SETTINGS", "INTO", "FORMAT") or tokens[0].upper == "INSERT"
