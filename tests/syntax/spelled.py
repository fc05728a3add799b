"""Random SELECTs, spelled in every way that ClickHouse's lexer and parser know, by a seed.

Every name and string has MARK and a number in what it stands for, so that each can be told from all others whatever it
is written like. A third of the statements are then changed by a letter, and so may be no SQL any more.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

MARK = "q7z"
SPACES = (" ", " ", " ", " ", " ", "  ", "\n", "\t", "\r\n", "\f", "\v", "\xa0", "\x85", "\u3000", "\u2003", "\u200b",
          "\ufeff", "\u2028", "/**/", "/* a /* FROM */ ' */", "/* -- */", "-- it's (\n", "--\n", "#! [\n", "# \"x\n",
          "// {\n")  # fmt: skip
KEYWORDS = ("limit", "offset", "format", "settings", "window", "order", "group", "final", "sample", "having", "where",
            "with", "select", "from", "union", "except", "intersect", "prewhere", "qualify", "into", "fetch", "values",
            "all", "any", "array", "join", "left", "on", "using", "as", "by", "interval", "date", "case", "end", "top",
            "columns", "replace", "apply", "distinct", "in", "not", "is", "over", "index", "key", "first", "rows",
            "global", "asof", "ties", "fill", "totals", "desc", "asc", "mod", "div", "null", "true", "exists", "cast",
            "extract", "substring", "trim", "like", "between", "and", "or", "then", "else", "when", "recursive",
            "paste")  # fmt: skip
NUMBERS = ("0", "7", "42", "1_000", "3.5", "3.", "1e5", "1E-3", "2.5e+3", "0x1F", "0XaB", "0x1.8p3", "0b101", "1_0.5_0",
           "18446744073709551615", "1e400", "00012", "0.0", "9.e1", "inf", "nan", "0b0", "1.0e0")  # fmt: skip
TYPES = ("String", "UInt8", "Array(Float32)", "Nullable(String)", "Decimal(9, 2)", "Tuple(a UInt8, b String)",
         "LowCardinality(Nullable(String))", "FixedString(3)", "DateTime64(3, 'UTC')", "Map(String, Array(UInt8))",
         "Enum8('a' = 1, 'b' = 2)")  # fmt: skip
OPERATORS = ("+", "-", "*", "/", "%", "=", "==", "!=", "<>", "<", ">", "<=", ">=", "<=>", "||", "AND", "OR", "DIV",
             "MOD", "LIKE", "NOT LIKE", "ILIKE", "IS DISTINCT FROM", "REGEXP")  # fmt: skip
JOINS = ("JOIN", "INNER JOIN", "LEFT JOIN", "RIGHT OUTER JOIN", "FULL JOIN", "ANY LEFT JOIN", "LEFT ANY JOIN",
         "GLOBAL INNER JOIN", "SEMI LEFT JOIN", "LEFT ANTI JOIN", "ASOF JOIN", "ALL INNER JOIN")  # fmt: skip
ENDS = (" FORMAT JSON", " FORMAT Null", "\nFORMAT  TSV ", " INTO OUTFILE 'x' FORMAT CSV", ";", " ; ;")
NASTY = "'\"`\\()[]{},;.:*-/#$@ \n\t\0e\u2018\u2019\u201c\u201d\u2212\xa0%!?<>=|~^&1xXbB_N"


class Spelled:
    """Makes statements. Its output is a list of words and signs, which `text` joins by odd spacing."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self._number = rng, 0

    def statement(self) -> str:
        """A SELECT as text."""
        self._number = 0
        text = self.text(self.query(self.rng.choice((1, 2, 2, 3))))
        if self.rng.random() < 0.15:
            text += self.rng.choice(
                (" FORMAT JSON", " FORMAT Null", "\nFORMAT  TSV ", " INTO OUTFILE 'x' FORMAT CSV", ";", " ; ;")
            )
        return self.changed(text) if self.rng.random() < 0.35 else text

    def changed(self, text: str) -> str:
        """The text with a letter put in, taken out or doubled."""
        for _ in range(self.rng.choice((1, 1, 2))):
            at = self.rng.randrange(len(text))
            new = self.rng.choice(NASTY)
            text = self.rng.choice(
                (
                    text[:at] + new + text[at:],
                    text[:at] + text[at + 1 :],
                    text[:at] + new + text[at + 1 :],
                    text[:at] + text[at : at + 3] + text[at:],
                )
            )
        return text

    def text(self, words: Sequence[str]) -> str:
        """Words joined; between two signs, or two words, there is always a space."""
        parts: list[str] = [self.gap()] if self.chance(0.05) else []
        before = ""
        for word in words:
            tight = before in "([{,.:" or word in ")]},.(" or before in (")", "]", "::") or word == "::"
            joined = before == "." or word == "."
            if before and not joined and not (tight and self.chance(0.6)):
                parts.append(self.gap())
            elif joined and self.chance(0.03):
                parts.append(" ")
            parts.append(word)
            before = word
        return "".join(parts)

    def gap(self) -> str:
        space = self.rng.choice(SPACES) if self.chance(0.25) else " "
        # comments that begin with a sign would join one before them
        return f" {space} " if space[0] in "-/#" else space

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    # names and strings

    def mark(self) -> str:
        self._number += 1
        return f"{MARK}{self._number}"

    def name(self, *, keyword: float = 0.04) -> str:
        """A name, quoted or not."""
        rng = self.rng
        if self.chance(keyword):
            word = rng.choice(KEYWORDS)
            return rng.choice((word, word.upper(), f"`{word}`", f'"{word}"'))
        kind = rng.randrange(10)
        mark = self.mark()
        if kind < 5:
            return rng.choice(("", "_", "a", "Z_", "é" * 0)) + mark + rng.choice(("", "_", "b", "$", "_9", "$x"))
        if kind == 9 and self.chance(0.3):
            return f"“{mark}{rng.choice(('', ' x', '`', 'é', '“', chr(92)))}”"
        quote = "`" if kind < 8 else '"'
        return quote + self.inside(mark, quote) + quote

    def inside(self, mark: str, quote: str) -> str:
        """Letters between quotes that hold a mark."""
        pieces = [self.letters(mark)]
        for _ in range(self.rng.choice((0, 0, 1, 1, 2, 3))):
            pieces.insert(self.rng.choice((0, len(pieces))), self.piece(quote))
        return "".join(pieces)

    def letters(self, mark: str) -> str:
        """A mark, perhaps with letters as escapes."""
        if self.chance(0.8):
            return mark
        return "".join(f"\\x{ord(c):02x}" if self.chance(0.4) else c for c in mark)

    def piece(self, quote: str) -> str:
        found = self._piece(quote)
        # the tree of a statement with a line's end in a name cannot be read
        return self._piece(quote) if quote != "'" and found in ("\\n", "\n", "\\\n") and self.chance(0.9) else found

    def _piece(self, quote: str) -> str:
        other = {"'": '"`', "`": "\"'", '"': "`'"}[quote]
        return self.rng.choice(
            (
                "\\n", "\\t", "\\\\", "\\'", "\\\"", "\\`", quote * 2, "\\x41", "\\xe9", "\\xc3\\xa9", "\\0", "\\a",
                "\\b", "\\e", "\\f", "\\r", "\\v", "\\N", "\\q", "\\%", "\\_", "\\/", "\\=", "\\d", "é", "漢",
                "🙂", " ", "--", "/*", "*/", ";", "$$", "'" if quote != "'" else " ", other, "(", ")", ",", ".",
                "SELECT", " FROM t", "\n", "\\\n", "\t", "{", "]", "#", "\u2019", "\\é", "\\xZZ", "\\x4g",
            )
        )  # fmt: skip

    def string(self) -> str:
        rng, mark = self.rng, self.mark()
        kind = rng.randrange(12)
        if kind < 8:
            return "'" + self.inside(mark, "'") + "'"
        if kind == 8:
            tag = rng.choice(("", "a", "_x1", "q"))
            return f"${tag}${mark}{rng.choice(('', chr(39), ' $ ', chr(10), '`', '/*', chr(92), 'é'))}${tag}$"
        if kind == 9:
            return rng.choice("xX") + "'" + mark.encode().hex() + "'"
        if kind == 10:
            return rng.choice("bB") + "'" + "".join(f"{b:08b}" for b in mark.encode()) + "'"
        return f"‘{mark}{rng.choice(('', chr(39), '‘', chr(92), 'é'))}’"

    def column(self) -> list[str]:
        path = [self.name()]
        while self.chance(0.25) and len(path) < 5:
            path += [".", self.name(keyword=0.08)]
        return path

    # expressions

    def expression(self, depth: int) -> list[str]:
        rng = self.rng
        if depth <= 0:
            return rng.choice((self.column, self.column, self.number, lambda: [self.string()], self.vector))()
        kinds: tuple[Callable[[int], list[str]], ...] = (
            self.simple, self.simple, self.operation, self.operation, self.call, self.call, self.brackets, self.array,
            self.cast, self.interval, self.with_lambda, self.case, self.membership, self.scalar, self.element,
            self.between, self.prefix, self.special, self.window, self.named_within,
        )  # fmt: skip
        return rng.choice(kinds)(depth)

    def simple(self, depth: int) -> list[str]:
        return self.expression(0)

    def number(self) -> list[str]:
        return [self.rng.choice(NUMBERS)]

    def vector(self) -> list[str]:
        count = self.rng.randrange(1, 4)
        numbers = [self.rng.choice(("1", "-2", "0.5", "+3", "1e3", ".5", "-1.5E-2", "7.")) for _ in range(count)]
        return ["[" + self.rng.choice((",", ", ", " , ", ",\n")).join(numbers) + "]"]

    def operation(self, depth: int) -> list[str]:
        return [*self.expression(depth - 1), *self.rng.choice(OPERATORS).split(), *self.expression(depth - 1)]

    def arguments(self, depth: int, least: int = 0, most: int = 3) -> list[str]:
        found: list[str] = []
        for i in range(self.rng.randrange(least, most + 1)):
            found += [",", *self.expression(depth - 1)] if i else self.expression(depth - 1)
        return found

    def call(self, depth: int) -> list[str]:
        name = self.rng.choice((f"f{self.mark()}", f"f{self.mark()}", "length", "L2Distance", "count", "if", "left"))
        if name == "count" and self.chance(0.5):
            return [name, "(", "*", ")"]
        if self.chance(0.05):
            return ["quantile", "(", "0.5", ")", "(", *self.expression(depth - 1), ")"]
        return [name, "(", *(["DISTINCT"] if name == "count" else []), *self.arguments(depth, 1), ")"]

    def brackets(self, depth: int) -> list[str]:
        if self.chance(0.3):
            return ["(", *self.arguments(depth, 2), ")"]
        return ["(", *self.expression(depth - 1), ")"]

    def array(self, depth: int) -> list[str]:
        if self.chance(0.2):
            return ["{", f"'{self.mark()}'", ":", *self.expression(depth - 1), "}"]
        return ["[", *self.arguments(depth), "]"]

    def cast(self, depth: int) -> list[str]:
        kind = self.rng.choice(TYPES)
        return self.rng.choice(
            (
                lambda: [*self.expression(0), "::", kind],
                lambda: ["CAST", "(", *self.expression(depth - 1), "AS", kind, ")"],
                lambda: ["CAST", "(", *self.expression(depth - 1), ",", "'String'", ")"],
                lambda: ["(", *self.column(), ")", "::", kind, "::", "String"],
            )
        )()

    def interval(self, depth: int) -> list[str]:
        unit = self.rng.choice(("DAY", "hour", "MONTH", "SQL_TSI_WEEK", "YEARS"))
        return self.rng.choice(
            (["INTERVAL", "1", unit], ["INTERVAL", "'2 days'"], ["INTERVAL", *self.expression(0), unit])
        )

    def with_lambda(self, depth: int) -> list[str]:
        one, two = f"l{self.mark()}", f"l{self.mark()}"
        head = [one] if self.chance(0.6) else ["(", one, ",", two, ")"]
        return ["arrayMap", "(", *head, "->", *self.expression(depth - 1), ",", *self.expression(depth - 1), ")"]

    def case(self, depth: int) -> list[str]:
        operand = self.expression(depth - 1) if self.chance(0.4) else []
        found = ["CASE", *operand]
        for _ in range(self.rng.randrange(1, 3)):
            found += ["WHEN", *self.expression(depth - 1), "THEN", *self.expression(depth - 1)]
        return [*found, *(["ELSE", *self.expression(depth - 1)] if self.chance(0.6) else []), "END"]

    def membership(self, depth: int) -> list[str]:
        word = self.rng.choice((["IN"], ["NOT", "IN"], ["GLOBAL", "IN"]))
        inside = self.query(depth - 1) if self.chance(0.6) else self.arguments(depth, 1)
        return [*self.expression(0), *word, "(", *inside, ")"]

    def scalar(self, depth: int) -> list[str]:
        return [*(["EXISTS"] if self.chance(0.3) else []), "(", *self.query(depth - 1), ")"]

    def element(self, depth: int) -> list[str]:
        base = self.column() if self.chance(0.5) else ["(", *self.expression(depth - 1), ")"]
        return (
            [*base, "[", *self.expression(0), "]"]
            if self.chance(0.6)
            else [*base, ".", self.rng.choice(("1", "2", "1.2"))]
        )

    def between(self, depth: int) -> list[str]:
        no = ["NOT"] if self.chance(0.3) else []
        # ClickHouse writes the left side twice, which may only be a column here
        return ["(", *self.column(), *no, "BETWEEN", *self.expression(0), "AND", *self.expression(0), ")"]

    def prefix(self, depth: int) -> list[str]:
        inner = self.expression(depth - 1)
        return self.rng.choice(
            (["NOT", *inner], ["-", *inner], [*inner, "IS", "NULL"], [*inner, "IS", "NOT", "NULL"],
             [*inner, "?", *self.expression(0), ":", *self.expression(0)])
        )  # fmt: skip

    def special(self, depth: int) -> list[str]:
        inner = self.expression(0)
        return self.rng.choice(
            (
                ["extract", "(", "YEAR", "FROM", *inner, ")"],
                ["substring", "(", *inner, "FROM", "1", "FOR", "2", ")"],
                ["trim", "(", "BOTH", "'x'", "FROM", *inner, ")"],
                ["position", "(", "'x'", "IN", *inner, ")"],
                ["DATE", "'2020-01-01'"],
                ["TIMESTAMP", "'2020-01-01 00:00:00'"],
                ["NULL"],
                ["true"],
            )
        )

    def window(self, depth: int) -> list[str]:
        over = ["PARTITION", "BY", *self.column()] if self.chance(0.5) else []
        over += ["ORDER", "BY", *self.column()] if self.chance(0.5) else []
        frame = (
            ["ROWS", "BETWEEN", "UNBOUNDED", "PRECEDING", "AND", "CURRENT", "ROW"] if over and self.chance(0.3) else []
        )
        return ["sum", "(", *self.expression(0), ")", "OVER", "(", *over, *frame, ")"]

    def named_within(self, depth: int) -> list[str]:
        return ["(", *self.expression(depth - 1), "AS", f"i{self.mark()}", ")", "+", "1"]

    # stars

    def star(self) -> list[str]:
        rng = self.rng
        head = rng.choice(
            (
                lambda: ["*"],
                lambda: ["*"],
                lambda: [self.name(keyword=0), ".", "*"],
                lambda: [self.name(keyword=0), ".", self.name(keyword=0), ".", "*"],
                lambda: ["COLUMNS", "(", "'x.*'", ")"],
                lambda: [self.name(keyword=0), ".", "COLUMNS", "(", "'x'", ")"],
                lambda: ["COLUMNS", "(", self.name(keyword=0), ",", self.name(keyword=0), ")"],
                lambda: ["*", "LIKE", "'x%'"],
            )
        )()
        for _ in range(rng.choice((0, 0, 0, 1, 2))):
            head += rng.choice(
                (
                    lambda: ["EXCEPT", "(", self.name(keyword=0), ",", self.name(keyword=0), ")"],
                    lambda: ["EXCEPT", self.name(keyword=0)],
                    lambda: ["EXCEPT", "STRICT", "(", self.name(keyword=0), ")"],
                    lambda: ["REPLACE", "(", *self.expression(1), "AS", self.name(keyword=0), ")"],
                    lambda: ["APPLY", "(", "toString", ")"],
                    lambda: ["APPLY", "max"],
                    lambda: ["APPLY", "(", f"k{self.mark()}", "->", *self.expression(0), ")"],
                )
            )()
        return head

    # SELECTs

    def query(self, depth: int) -> list[str]:
        """One SELECT or several, in brackets or not."""
        parts = self.select(depth)
        while self.chance(0.12):
            word = self.rng.choice(
                (["UNION", "ALL"], ["UNION", "DISTINCT"], ["INTERSECT"], ["EXCEPT"], ["EXCEPT", "ALL"])
            )
            following = self.select(depth)
            parts += [*word, *(["(", *following, ")"] if self.chance(0.25) else following)]
        return ["(", *parts, ")"] if self.chance(0.04) else parts

    def items(self, depth: int) -> list[str]:
        found: list[str] = []
        for i in range(self.rng.choice((1, 1, 2, 3))):
            item = self.star() if self.chance(0.2) else [*self.expression(depth), *self.alias()]
            found += [",", *item] if i else item
        return [*found, ","] if self.chance(0.03) else found

    def alias(self) -> list[str]:
        if self.chance(0.55):
            return []
        name = self.name(keyword=0.06)
        return ["AS", name] if self.chance(0.7) else [name]

    def select(self, depth: int) -> list[str]:
        rng = self.rng
        depth = max(depth, 0)
        head = [*self.with_clause(depth)] if depth and self.chance(0.2) else []
        body = ["SELECT"]
        if self.chance(0.1):
            body += rng.choice((["DISTINCT"], ["ALL"], ["DISTINCT", "ON", "(", *self.column(), ")"], ["TOP", "3"]))
        body += self.items(min(depth, 2))
        source = self.from_clause(depth) if self.chance(0.85) else []
        first = source and "SAMPLE" not in source and self.chance(0.04)
        found = [*head, *source, *body] if first else [*head, *body, *source]
        return found + self.clauses(depth)

    def with_clause(self, depth: int) -> list[str]:
        found = ["WITH", *(["RECURSIVE"] if self.chance(0.1) else [])]
        for i in range(self.rng.choice((1, 1, 2))):
            named = (
                [self.name(keyword=0), "AS", "(", *self.query(depth - 1), ")"]
                if self.chance(0.6)
                else [*self.expression(depth - 1), "AS", self.name(keyword=0)]
            )
            found += [",", *named] if i else named
        return found

    def from_clause(self, depth: int) -> list[str]:
        found = ["FROM", *self.source(depth)]
        while self.chance(0.3):
            kind = self.rng.randrange(8)
            if kind == 0:
                found += [",", *self.source(depth)]
            elif kind == 1:
                word = self.rng.choice((["CROSS", "JOIN"], ["PASTE", "JOIN"], ["NATURAL", "JOIN"]))
                found += [*word, *self.source(depth)]
            elif kind == 2:
                left = ["LEFT"] if self.chance(0.4) else []
                found += [*left, "ARRAY", "JOIN", *self.expression(1), "AS", self.name(keyword=0)]
            else:
                using = ["USING", "(", self.name(keyword=0), ")"] if self.chance(0.4) else ["ON", *self.expression(1)]
                found += [*self.rng.choice(JOINS).split(), *self.source(depth), *using]
        return found

    def source(self, depth: int) -> list[str]:
        kind = self.rng.randrange(10)
        if kind < 6 or depth <= 0:
            found = [self.name(keyword=0.02)]
            if self.chance(0.25):
                found += [".", self.name(keyword=0.04)]
        elif kind < 8:
            found = ["(", *self.query(depth - 1), ")"]
        elif kind < 9:
            found = [self.rng.choice(("numbers", f"t{self.mark()}")), "(", *self.arguments(1, 1, 2), ")"]
        else:
            inner = [*self.source(depth - 1), *self.rng.choice((["CROSS", "JOIN"], [","])), *self.source(depth - 1)]
            return ["(", *inner, ")"]
        if self.chance(0.5):
            found += [*(["AS"] if self.chance(0.6) else []), self.name(keyword=0.04)]
        if kind < 6:
            found += ["FINAL"] if self.chance(0.06) else []
            found += (
                ["SAMPLE", "1", "/", "10", *(["OFFSET", "1", "/", "2"] if self.chance(0.5) else [])]
                if self.chance(0.05)
                else []
            )
        return found

    def list(self, make: Callable[[], list[str]]) -> list[str]:
        found = make()
        while self.chance(0.3):
            found += [",", *make()]
        return found

    def clauses(self, depth: int) -> list[str]:
        """What follows FROM, each clause with a chance."""
        return [word for clause in self._clauses(min(depth, 2)) for word in clause]

    def _clauses(self, depth: int) -> Iterator[list[str]]:
        chance = self.chance
        if chance(0.06):
            yield ["PREWHERE", *self.expression(1)]
        if chance(0.4):
            yield ["WHERE", *self.expression(depth)]
        if chance(0.15):
            totals = ["WITH", "TOTALS"] if chance(0.2) else []
            yield ["GROUP", "BY", *self.list(lambda: self.expression(1)), *totals]
        if chance(0.08):
            yield ["HAVING", *self.expression(1)]
        if chance(0.04):
            yield ["WINDOW", self.name(keyword=0), "AS", "(", "ORDER", "BY", *self.column(), ")"]
        if chance(0.04):
            yield ["QUALIFY", *self.expression(1)]
        if chance(0.3):
            yield ["ORDER", "BY", *self.list(self.order_item)]
        if chance(0.06):
            offset = ["OFFSET", "2"] if chance(0.4) else []
            yield ["LIMIT", "3", *offset, "BY", *self.list(self.column)]
        if chance(0.3):
            yield self.rng.choice(
                (["LIMIT", "5"], ["LIMIT", "5", "OFFSET", "6"], ["LIMIT", "2", ",", "3"], ["OFFSET", "4", "ROWS"],
                 ["LIMIT", *self.expression(0)])
            )  # fmt: skip
        if chance(0.06):
            yield ["SETTINGS", "max_threads", "=", "1", *([",", "max_block_size", "=", "'10'"] if chance(0.4) else [])]

    def order_item(self) -> list[str]:
        found = self.expression(1)
        found += [self.rng.choice(("ASC", "DESC", "desc", "DESCENDING"))] if self.chance(0.5) else []
        found += ["NULLS", self.rng.choice(("FIRST", "LAST"))] if self.chance(0.1) else []
        return [*found, *(["WITH", "FILL"] if self.chance(0.03) else [])]


def statements(seed: int) -> Iterator[str]:
    """SELECTs without end."""
    made = Spelled(random.Random(seed))
    while True:
        yield made.statement()
