"""SQL text as tokens with their places, told apart and decoded exactly as ClickHouse's lexer does.

What must stay true: joining the tokens and the gaps between them gives the text back; strings, quoted names, comments
and heredocs are one token each, so nothing inside them is ever taken for SQL; what ClickHouse cannot read is a token of
kind 'error', never a guess. A literal array of numbers is one token: a query vector would otherwise be a thousand.
tests/syntax/test_reading.py holds all of this to ClickHouse's own lexer and parser.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

# what ClickHouse skips between tokens, which is not what `\s` takes
_SPACE = r" \t\n\r\f\v\x85\xa0\u180e\u2000-\u200d\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
_DIGITS = "[0-9](?:_?[0-9])*+"
_HEX = "[0-9a-fA-F](?:_?[0-9a-fA-F])*+"
_EXPONENT = rf"(?=.)(?:[+-](?=.))?(?:{_DIGITS})?"
_NUMBER = (
    rf"(?:0[xX]{_HEX}(?:\.(?:{_HEX})?)?(?:[pP]{_EXPONENT})?"
    rf"|(?:0[bB](?=[01]))?{_DIGITS}(?:\.(?:{_DIGITS})?)?(?:[eE]{_EXPONENT})?)"
)
_ELEMENT = r"[-+]?(?:[0-9]++\.?[0-9]*+|\.[0-9]++)(?:[eE][-+]?[0-9]++)?(?![.\w$])[ \t\r\n]*+"
_TOKEN = re.compile(
    rf"""
    (?:[{_SPACE}]++|--[^\n]*+|//[^\n]*+|\#[\ !][^\n]*+)*+
    (?:(?P<bits>[xX]'[0-9a-fA-F]*+'|[bB]'[01]*+')
    |(?P<unclosed>[xXbB]'(?=.))
    |(?P<heredoc>\$(?P<tag>\w*+)\$.*?\$(?P=tag)\$)
    |(?P<word>[A-Za-z_][\w$]*+|\$\w[\w$]*+)
    |(?P<vector>\[[ \t\r\n]*+{_ELEMENT}(?:,[ \t\r\n]*+{_ELEMENT})*+\])
    |(?P<comment>/\*)
    |(?P<symbol>->|::|\|\||<=>|<=|>=|<>|!=|==|@@|!~\*?|~\*|\|>|[-()\[\]{{}},;+*/%=<>?:|~^$@\u2212])
    |(?P<number>{_NUMBER}\w*+)
    |(?P<dot>\.(?:{_DIGITS}(?:[eE]{_EXPONENT})?|[eE]{_EXPONENT})?)
    |(?P<string>'[^'\\]*+(?:(?:\\.|'')[^'\\]*+)*+'|\u2018[^\u2019]*+\u2019)
    |(?P<quoted>`[^`\\]*+(?:(?:\\.|``)[^`\\]*+)*+`|"[^"\\]*+(?:(?:\\.|"")[^"\\]*+)*+"|\u201c[^\u201d]*+\u201d)
    |(?P<open>['`"\u2018\u201c])
    |(?P<error>\\G|.))
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_WHOLE_NUMBER = re.compile(_NUMBER, re.DOTALL | re.ASCII)
_AFTER_DOT = re.compile(rf"{_DIGITS}\w*+", re.ASCII)
_ELEMENT_NUMBER = re.compile(_DIGITS)
_COMMENT_MARK = re.compile(r"/\*|\*/")
# what a name's or a number's end looks like, after which a point takes an element out of it
_BEFORE_DOT = frozenset({"word", "quoted", "number", "vector"})
_ESCAPES = {b"a": b"\a", b"b": b"\b", b"e": b"\x1b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v",
            b"0": b"\0", b"N": b""}  # fmt: skip
_HEX_DIGITS = frozenset(bytes([c]) for c in b"0123456789abcdefABCDEF")
_PLAIN = b"\\`\"'/="  # these lose their backslash, as control characters do; any other character keeps it
_ESCAPE = {mark: re.compile(rb"\\x(..)|\\(.)|" + mark + mark + b"|" + mark, re.DOTALL) for mark in (b"'", b"`", b'"')}


class Token(NamedTuple):
    """kind: 'word', 'quoted', 'string', 'number', 'vector', 'symbol' or 'error'; start and end are places in the text.

    upper: the text in capitals for a word or a symbol; empty for the rest, which are never keywords.
    """

    kind: str
    text: str
    start: int
    end: int
    upper: str

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:59] + "…"
        return f"Token({self.kind!r}, {text!r}, {self.start}, {self.end})"

    @property
    def name(self) -> str | None:
        """The identifier it stands for, unquoted; None where it is none. Bytes that are no UTF-8 are surrogates."""
        if self.kind == "word":
            return self.text
        if self.kind == "quoted":
            found = _decoded(self.text)
            return None if found is None else found.decode("utf-8", "surrogateescape")
        return None

    @property
    def value(self) -> bytes | None:
        """The bytes that a string literal stands for; None where it is none."""
        return _decoded(self.text) if self.kind == "string" else None

    @property
    def said(self) -> str:
        """The identifier or the string that it stands for, as text; empty where it is neither."""
        return self.name or (self.value or b"").decode("utf-8", "surrogateescape")


def tokenize(sql: str) -> tuple[Token, ...]:
    """The tokens of a statement, without space and comments, and without the data that follows INSERT … FORMAT name."""
    return tuple(_tokens(sql))


def string_value(text: str) -> bytes | None:
    """The bytes that a text stands for where it is one string literal and nothing else."""
    tokens = tokenize(text)
    return tokens[0].value if len(tokens) == 1 else None


def _tokens(sql: str) -> list[Token]:
    found: list[Token] = []
    begin = at = 0
    kind = text = ""  # of the token before
    while match := _TOKEN.match(sql, at):
        before, last = kind, text
        group, at = str(match.lastgroup), match.end()
        start = match.start(group)
        text = sql[start:at]
        if group == "word":
            found.append(Token("word", text, start, at, text.upper()))
            kind = group
            if len(found) - begin > 3 and _data_follows(found, begin):
                break
            continue
        if group == "symbol":
            found.append(Token("symbol", text, start, at, "-" if text == "\u2212" else text))
            kind = group
            if text == ";":
                begin = len(found)
            continue
        if group == "comment":
            at = _end_of_comment(sql, start)
            if at:
                kind, text = before, last
                continue
            group = "open"
        if group in ("open", "unclosed"):
            # the quotes of word processors are quotes where at least two of them would fit
            alone = text in "\u2018\u201c" and len(sql[start : start + 6].encode("utf-8", "replace")) < 6
            kind, at = "error", at if alone else len(sql)
        elif group == "dot":
            kind = "number"
            if start and (len(text) == 1 or text[1] in "eE" or before in _BEFORE_DOT or last in (")", "]")):
                kind, at = "symbol", start + 1
        elif group == "number":
            kind, at = _numeric(sql, start, at, after_dot=last == "." and before == "symbol")
        elif group in ("heredoc", "bits"):
            kind = "string"
        elif group in ("string", "quoted"):
            # an escape that nothing ends, or a name without a character
            kind = group if "\\" not in text and len(text) > 2 else _checked(group, text)
        else:
            kind = group
        text = sql[start:at]
        found.append(Token(kind, text, start, at, text if kind == "symbol" else ""))
        if kind == "word":
            found[-1] = found[-1]._replace(upper=text.upper())
    return found


def _numeric(sql: str, start: int, end: int, *, after_dot: bool) -> tuple[str, int]:
    """The kind and the end of what begins with a digit; after a point it is an element's number or name."""
    pattern = _WHOLE_NUMBER
    if after_dot:
        whole = _AFTER_DOT.match(sql, start)
        end, pattern = (whole.end() if whole else end), _ELEMENT_NUMBER
    text = sql[start:end]
    number = pattern.match(sql, start)
    if number and number.end() == end:
        return "number", end
    return ("word" if text.replace("_", "a").isalnum() else "error"), end


def _end_of_comment(sql: str, start: int) -> int:
    """The end of a comment, which may hold others; 0 where it has none."""
    depth = 0
    for mark in _COMMENT_MARK.finditer(sql, start):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return mark.end()
    return 0


def _checked(kind: str, text: str) -> str:
    value = _decoded(text)
    return kind if value or (value is not None and kind == "string") else "error"


@lru_cache(1024)
def _decoded(text: str) -> bytes | None:
    """The bytes of a string literal or a quoted name, its quotes included; None where ClickHouse cannot read it."""
    mark = text[0]
    if mark in "\u2018\u201c":
        return text[1:-1].encode("utf-8", "surrogatepass")
    if mark == "$":
        tag = text.index("$", 1) + 1
        return text[tag:-tag].encode("utf-8", "surrogatepass")
    if mark in "xXbB":
        return _bits(text[2:-1], 16 if mark in "xX" else 2)
    body = text[1:-1].encode("utf-8", "surrogatepass")
    if b"\\" not in body and mark not in text[1:-1]:
        return body
    quote, whole = mark.encode(), True

    def replaced(match: re.Match[bytes]) -> bytes:
        nonlocal whole
        if match[1] is not None:
            high, low = (int(d, 16) if (d := match[1][i : i + 1]) in _HEX_DIGITS else 255 for i in (0, 1))
            return bytes([(high * 16 + low) & 255])
        found = match[2]
        if found is None:
            whole = whole and len(match[0]) == 2  # else a quote that ends it, as an escape took the one before
            return quote
        if found == b"x":
            whole = False
        if found in _ESCAPES:
            return _ESCAPES[found]
        return found if found in _PLAIN or found < b" " else b"\\" + found

    value = _ESCAPE[quote].sub(replaced, body)
    return value if whole else None


def _bits(digits: str, base: int) -> bytes:
    """The bytes of x'…' and b'…': what does not fill a byte comes first."""
    if not digits:
        return b""
    width = 2 if base == 16 else 8
    first = len(digits) % width
    groups = [digits[i : i + width] for i in range(first, len(digits), width)]
    if first and (base == 16 or int(digits[:first], 2) or not groups):
        groups.insert(0, digits[:first])
    return bytes(int(g, base) for g in groups)


def _data_follows(tokens: Sequence[Token], begin: int) -> bool:
    """Whether the last token is the format's name in INSERT INTO table FORMAT name, which begins at `begin`."""
    if tokens[-2].upper != "FORMAT" or tokens[begin].upper != "INSERT" or tokens[-1].upper == "VALUES":
        return False
    return not any(t.upper in ("SELECT", "WITH", "INFILE", "VALUES") for t in tokens[begin:-2])


def matching(tokens: Sequence[Token], at: int) -> int:
    """The place of the bracket that closes the one at `at`; the last token's where none does."""
    depth = 0
    for i in range(at, len(tokens)):
        if tokens[i].kind == "symbol":
            if tokens[i].text in "([{":
                depth += 1
            elif tokens[i].text in ")]}":
                depth -= 1
                if depth == 0:
                    return i
    return len(tokens) - 1


def split_list(tokens: Sequence[Token], first: int, last: int) -> list[tuple[int, int]]:
    """The comma-separated items of a run of tokens, as [first, last) pairs."""
    items: list[tuple[int, int]] = []
    begin = at = first
    while at < last:
        if tokens[at].kind == "symbol" and tokens[at].text in "([{":
            at = matching(tokens, at) + 1
            continue
        if tokens[at].text == "," and tokens[at].kind == "symbol":
            items.append((begin, at))
            begin = at + 1
        at += 1
    if begin < last:
        items.append((begin, last))
    return items


def split_statements(text: str) -> list[str]:
    """A script as its statements, without their semicolons.

    `INSERT … FORMAT name` takes all that follows as data, up to the end of the text, as clickhouse-client does; data
    after VALUES ends at the semicolon.
    """
    statements: list[str] = []
    begin = first = 0
    tokens = tokenize(text)
    for i, token in enumerate(tokens):
        if token.text == ";" and token.kind == "symbol":
            if i > first:
                statements.append(text[begin : token.start].strip())
            begin, first = token.end, i + 1
    if first < len(tokens):
        data_follows = len(tokens) - first > 3 and _data_follows(tokens, first)
        after = text[tokens[-1].end :].lstrip() if data_follows else ""
        if after.startswith(";"):  # no data, but perhaps more statements
            rest = text[tokens[-1].end :]
            return [*statements, text[begin : tokens[-1].end].strip(), *split_statements(rest)]
        statements.append(text[begin:].strip())
    return statements
