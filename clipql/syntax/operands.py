"""Whether an expression may end before a word, by which keywords are told from names: `SELECT a, limit FROM t LIMIT 1`.

ClickHouse has no reserved words. A word where an operand is expected is a name, whatever it is spelled like; after an
operand it is an operator, the keyword of a clause, or an alias.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipql.syntax.lexer import Token, matching

# after an operand, these ask for another
_INFIX = {"AND", "OR", "XOR", "LIKE", "ILIKE", "REGEXP", "IN", "IS", "BETWEEN", "DIV", "MOD", "AS", "NOT", "GLOBAL",
          "JOIN", "ON", "USING", "BY", "OVER", "TO", "STEP", "SAMPLE", "EXCEPT", "APPLY", "REPLACE",
          "COLLATE"}  # fmt: skip
_OF_CASE = {"WHEN", "THEN", "ELSE"}
# where an operand is expected, these are no operands yet
_PREFIX = {"NOT", "CASE", "INTERVAL", "DISTINCT"}
_AFTER_IS = {"NULL", "NOT", "DISTINCT", "TRUE", "FALSE", "UNKNOWN"}
# these are names where a clause follows
_SELDOM = {"OVER", "APPLY", "IN", "DIV", "MOD", "CASE", "EXCEPT", "REPLACE", "TO", "STEP", "COLLATE", "SAMPLE"}
# words that are columns so seldom that one after AND is no operand for certain
_NO_NAMES = {"FROM", "PREWHERE", "WHERE", "HAVING", "QUALIFY"}
_UNSURE = {"IN", "DIV", "MOD", "CASE"}
_CLAUSES = {"FROM", "PREWHERE", "WHERE", "GROUP", "HAVING", "WINDOW", "QUALIFY", "ORDER", "LIMIT", "OFFSET", "FETCH",
            "SETTINGS", "FORMAT", "INTO", "UNION", "SELECT"}  # fmt: skip
# what may stand between NOT or GLOBAL and an operand
_AFTER_NOT = {"IN", "LIKE", "ILIKE", "BETWEEN", "REGEXP", "NOT"}
# whatever follows these is a name
_NAMING = {"AS", "JOIN"}
_LONG_UNITS = ("NANOSECOND", "MICROSECOND", "MILLISECOND", "SECOND", "MINUTE", "HOUR", "DAY", "WEEK", "MONTH",
               "QUARTER", "YEAR")  # fmt: skip
_SHORT_UNITS = {"NS", "US", "MS", "SS", "S", "MI", "N", "HH", "H", "DD", "D", "WW", "W", "WK", "MM", "M", "QQ", "Q",
                "YYYY", "YY", "Y"}  # fmt: skip
_UNITS = {u + s for u in _LONG_UNITS for s in ("", "S")} | _SHORT_UNITS
_UNITS |= {f"SQL_TSI_{u}" for u in _UNITS}


class Operands:
    """Steps over the tokens of a SELECT, or of an item of it, outside brackets.

    expected: whether an operand comes next. named: whether the last token gave a name to what stands before it. unsure:
    whether what was read could be read otherwise.
    """

    def __init__(self) -> None:
        self.expected, self.named, self.unsure = True, False, False
        self._begun = False  # whether the last token was the keyword of a clause
        self._names = False  # whether it was an AS or a JOIN, which a name follows
        self._cases = self._intervals = 0

    def clause(self) -> None:
        """A clause begins."""
        self.expected, self.named, self._begun = True, False, True
        self._cases = self._intervals = 0

    def step(self, tokens: Sequence[Token], at: int) -> int:
        """Take the token at a place; the place after it, or after the bracket that it opens."""
        token = tokens[at]
        before = tokens[at - 1].upper if at else ""
        naming = self._names or (before == "FROM" and self._begun) or before == "."
        self._begun = self._names = self.named = False
        if token.kind == "symbol":
            return self._symbol(tokens, at)
        if token.kind in ("word", "quoted"):
            top = self._top(tokens, at) if token.upper == "TOP" and before in ("SELECT", "DISTINCT", "ALL") else 0
            if top:
                return top
            following = tokens[at + 1] if at + 1 < len(tokens) else None
            if naming:
                self.expected = False
            else:
                self._word(token, before, following, tokens[at - 2].upper if at > 1 else "")
        else:
            if token.kind == "string" and before == "INTERVAL" and _says_unit(token):
                self._intervals -= 1
            self.expected = False
        return at + 1

    def _symbol(self, tokens: Sequence[Token], at: int) -> int:
        text = tokens[at].text
        if text in "([{":
            on = text == "(" and at > 1 and (tokens[at - 2].upper, tokens[at - 1].upper) == ("DISTINCT", "ON")
            self.expected = on
            return matching(tokens, at) + 1
        if text == "*":  # of columns where an operand is expected, a product else
            self.expected = not self.expected
        else:
            self.expected = text not in ")]}"
        if text == ",":
            self._cases = self._intervals = 0
        return at + 1

    def _word(self, token: Token, before: str, following: Token | None, second: str) -> None:
        word = token.upper
        after = _upper(following)
        if (word in _SELDOM and after in _CLAUSES) or (word == "INTERVAL" and after in _NO_NAMES):
            self.unsure = self.unsure or word in _UNSURE
            self.named, self.expected = not self.expected, False
        elif not self.expected and word in _INFIX - _NAMING and after in _NO_NAMES:
            self.unsure = self.named = True
        elif self.expected:
            joins = before in ("NOT", "GLOBAL") and word in _AFTER_NOT
            if (before, word) in (("SELECT", "ALL"), ("CASE", "WHEN")) or (
                (before, word) == ("DISTINCT", "FROM") and second in ("IS", "NOT")
            ):
                return
            begins = word in _PREFIX and (word != "DISTINCT" or before in ("SELECT", "IS", "NOT"))
            if joins or (begins and not _alone(following)):
                self._cases += word == "CASE"
                self._intervals += word == "INTERVAL"
                return
            if before == "EXCEPT" and word != "STRICT" and following is not None and following.text == "(":
                self.unsure = True  # the column of a star, or something else
            self.expected = False
        elif self._joins(word) and not _alone(following) and (word != "IS" or after in _AFTER_IS):
            self.expected, self._names = True, word in _NAMING
        elif word == "END" and self._cases:
            self._cases -= 1
        elif word in _UNITS and self._intervals:
            self._intervals -= 1
        elif word == "NULLS" and before in ("IGNORE", "RESPECT"):
            pass
        else:
            self.named = True

    def _joins(self, word: str) -> bool:
        """Whether a word after an operand asks for another."""
        return word in _INFIX or (word in _OF_CASE and self._cases > 0)

    def _top(self, tokens: Sequence[Token], at: int) -> int:
        """The place after TOP n WITH TIES; 0 where TOP is a name."""
        following = tokens[at + 1] if at + 1 < len(tokens) else None
        if following is None or not (following.kind == "number" or following.text == "("):
            return 0
        end = matching(tokens, at + 1) + 1 if following.text == "(" else at + 2
        ties = [t.upper for t in tokens[end : end + 2]] == ["WITH", "TIES"]
        return end + 2 if ties else end


def _upper(token: Token | None) -> str:
    return token.upper if token else ""


def _alone(following: Token | None) -> bool:
    """Whether a word stands alone, with nothing of an operand after it."""
    return following is None or (following.kind == "symbol" and following.text not in "([{-+*")


def _says_unit(token: Token) -> bool:
    """Whether the string after INTERVAL holds the unit itself, as '2 days'."""
    return any(chr(byte).isalpha() for byte in token.value or b"")
