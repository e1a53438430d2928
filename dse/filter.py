"""Filter text over trials: `flash < 64 KiB and board == "rpi-pico"`; parsed, never evaluated.

    expression := all ("or" all)*            all := one ("and" one)*
    one        := "not" one | "(" expression ")" | flag | term (op term)+
                | field "in" "(" value ("," value)* ")"
    op         := < <= > >= = == != ~        ("~" is: contains this text)

A value is a number with its unit, a quoted text or a bare word. What a trial does not have matches
no comparison.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dse.errors import StudyError, nearest
from dse.trial import METRICS
from dse.units import METRIC_DIMENSION, Dimension, parse_quantity

if TYPE_CHECKING:
    import pandas as pd

Mask: TypeAlias = npt.NDArray[np.bool_]
LONGEST = 2000
DEEPEST = 40
KNOB = "knob:"

_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>"[^"]*"|'[^']*')
  | (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
  | (?P<quantity>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?:[A-Za-zµμ]+|%))(?![\w.-])
  | (?P<op><=|>=|==|!=|<|>|=|~)
  | (?P<mark>[(),%])
  | (?P<word>[^\W\d][\w.:/-]*|µ\w+)
    )""",
    re.VERBOSE,
)
_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_FLAGS = ("front", "feasible", "verified", "trained")
_COUNTS = {"trial": "number", "parameters": "parameters", "macs": "macs", "bits": "weight_bits"}
_TEXTS = ("board", "backend", "state", "baseline", "reason", "provenance", "study")
_MEASURED: Mapping[str, tuple[str, Dimension]] = {
    **{name: (kind.column, METRIC_DIMENSION[name]) for name, kind in METRICS.items()},
    "test_accuracy": ("test_accuracy", "share"),
    "clock": ("clock_hz", "hertz"),
}
FIELDS = (*_MEASURED, *_COUNTS, *_TEXTS, *_FLAGS)
_EXAMPLE = """write it like 'flash < 64 KiB and board == "rpi_pico"'"""


@dataclass(frozen=True)
class Token:
    """A piece of the text: its kind, what stands there, and where it begins."""

    kind: str
    text: str
    at: int

    @property
    def value(self) -> str:
        """What a value says, without its quotes."""
        return self.text[1:-1] if self.kind == "text" else self.text


@dataclass(frozen=True)
class Comparison:
    """`field op value`; the value is read when the field's kind is known."""

    field: str
    op: str
    values: tuple[str, ...]

    def mask(self, table: pd.DataFrame) -> Mask:
        """Which rows match; StudyError for a field or a value that the table cannot have."""
        column, read = _column(self.field, table)
        if self.op == "~":
            return _contains(table[column], self.values[0])
        wanted = [read(value) for value in self.values]
        if self.op == "in":
            return np.asarray(table[column].isin(wanted), dtype=np.bool_)
        if isinstance(wanted[0], str) and self.op not in ("==", "!="):
            raise StudyError(f"'{self.field}' is text; allowed: ==, !=, ~ (contains) and in")
        known = table[column].notna().to_numpy(dtype=np.bool_)
        values = table[column].to_numpy(dtype=object if isinstance(wanted[0], str) else np.float64)
        with np.errstate(invalid="ignore"):
            return np.asarray(_OPERATORS[self.op](values, wanted[0]), dtype=np.bool_) & known


@dataclass(frozen=True)
class Flag:
    """A field that is true or false by itself."""

    field: str

    def mask(self, table: pd.DataFrame) -> Mask:
        """Which rows it is true for."""
        if self.field not in _FLAGS or self.field not in table:
            raise StudyError(
                f"'{self.field}' says nothing alone; compare it with a value, or use one of "
                f"{', '.join(_FLAGS)}"
            )
        return table[self.field].to_numpy(dtype=np.bool_)


@dataclass(frozen=True)
class Not:
    """What the part does not match."""

    part: Filter

    def mask(self, table: pd.DataFrame) -> Mask:
        """Which rows do not match."""
        return ~self.part.mask(table)


@dataclass(frozen=True)
class Joined:
    """Parts that all must match ('and'), or of which one must ('or')."""

    word: str
    parts: tuple[Filter, ...]

    def mask(self, table: pd.DataFrame) -> Mask:
        """Which rows match."""
        join = np.logical_and if self.word == "and" else np.logical_or
        return np.asarray(join.reduce([part.mask(table) for part in self.parts]), dtype=np.bool_)


Filter: TypeAlias = Comparison | Flag | Not | Joined


def parse_filter(text: str) -> Filter:
    """The filter behind the text. Raises StudyError with one sentence that says where it breaks."""
    if len(text) > LONGEST:
        raise StudyError(f"the filter has {len(text)} characters; allowed: {LONGEST}")
    if not text.strip():
        raise StudyError(f"the filter is empty; {_EXAMPLE}")
    parser = _Parser(_tokens(text))
    found = parser.expression(0)
    if parser.next is not None:
        raise StudyError(f"{_place(parser.next)} is one too many; join parts by 'and' or 'or'")
    return found


def both(*texts: str | None) -> str:
    """One filter that says what each of these says; empty ones say nothing."""
    given = [text.strip() for text in texts if text and text.strip()]
    return given[0] if len(given) == 1 else " and ".join(f"({text})" for text in given)


def filter_mask(text: str, table: pd.DataFrame) -> Mask:
    """Which rows of a study's table (dse/overview.py) the text matches; all for an empty one."""
    if not text.strip():
        return np.ones(len(table), dtype=np.bool_)
    return parse_filter(text).mask(table)


def _tokens(text: str) -> list[Token]:
    found, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            rest = text[at:].strip()
            raise StudyError(f"the filter cannot be read from '{rest[:20]}' on; {_EXAMPLE}")
        found.append(Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)))
        at = match.end()
    return found


def _place(token: Token | None) -> str:
    if token is None:
        return "the end of the filter"
    return f"'{token.text[:40]}' at character {token.at + 1} of the filter"


class _Parser:
    """Recursive descent over the tokens, as deep as DEEPEST brackets."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.tokens, self.at = tokens, 0

    @property
    def next(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, *texts: str) -> Token | None:
        """The next token when it is one of these marks or words."""
        token = self.next
        if token is None or token.kind == "text" or token.text.lower() not in texts:
            return None
        self.at += 1
        return token

    def expression(self, depth: int) -> Filter:
        return self.joined("or", lambda: self.joined("and", lambda: self.one(depth)))

    def joined(self, word: str, part: Callable[[], Filter]) -> Filter:
        parts = [part()]
        while self.take(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def one(self, depth: int) -> Filter:
        if depth > DEEPEST:
            raise StudyError(f"the filter is nested deeper than {DEEPEST} brackets")
        if self.take("not"):
            return Not(self.one(depth + 1))
        if self.take("("):
            found = self.expression(depth + 1)
            self.expect(")")
            return found
        return self.comparison()

    def expect(self, mark: str) -> None:
        if not self.take(mark):
            raise StudyError(f"expected '{mark}', found {_place(self.next)}")

    def comparison(self) -> Filter:
        left = self.term()
        if left.kind == "word" and self.take("in"):
            return Comparison(left.text, "in", self.listed())
        if left.kind == "word" and (self.next is None or self.next.kind != "op"):
            return Flag(left.text)
        found: list[Filter] = []
        while self.next is not None and self.next.kind == "op":
            op = self.tokens[self.at].text
            self.at += 1
            right = self.term()
            found.append(_compared(left, "==" if op == "=" else op, right))
            left = right
        if not found:
            raise StudyError(f"{_place(left)} is compared with nothing; {_EXAMPLE}")
        return found[0] if len(found) == 1 else Joined("and", tuple(found))

    def listed(self) -> tuple[str, ...]:
        self.expect("(")
        values = [self.term().value]
        while self.take(","):
            values.append(self.term().value)
        self.expect(")")
        return tuple(values)

    def term(self) -> Token:
        token = self.next
        if token is None or token.kind in ("op", "mark"):
            raise StudyError(f"expected a name or a value, found {_place(token)}; {_EXAMPLE}")
        self.at += 1
        unit = self.next
        if token.kind == "number" and unit is not None and self._is_unit(unit):
            self.at += 1
            return Token("number", f"{token.text} {unit.text}", token.at)
        return token

    def _is_unit(self, token: Token) -> bool:
        words = ("and", "or", "not", "in")
        return token.text == "%" or (token.kind == "word" and token.text.lower() not in words)


def _compared(left: Token, op: str, right: Token) -> Comparison:
    if left.kind == "word":
        return Comparison(left.text, op, (right.value,))
    if right.kind == "word":
        return Comparison(right.text, _MIRRORED.get(op, op), (left.value,))
    raise StudyError(
        f"{_place(left)} is compared with a value; one side must name a field, such as flash"
    )


def _column(field: str, table: pd.DataFrame) -> tuple[str, Callable[[str], Any]]:
    """The column of a field, and how its values are read."""
    if field in _MEASURED:
        column, dimension = _MEASURED[field]
        return column, lambda text: parse_quantity(text, dimension)
    if field in _COUNTS:
        return _COUNTS[field], lambda text: _number(field, text)
    if field in _TEXTS and field in table:
        return field, str
    if f"{KNOB}{field}" in table:
        column = f"{KNOB}{field}"
        numeric = table[column].dtype.kind in "iufb"
        return column, (lambda text: _number(field, text)) if numeric else str
    knobs = [name.removeprefix(KNOB) for name in map(str, table) if name.startswith(KNOB)]
    names = {name for name in FIELDS if name not in _TEXTS or name in table}
    raise StudyError(f"the filter names '{field}'; {nearest(field, names | set(knobs))}")


def _number(field: str, text: str) -> float:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise StudyError(f"'{field}' is a number; found '{text}'") from None


def _contains(column: pd.Series[Any], text: str) -> Mask:
    # Few distinct values are common; each is looked at once.
    found = {value: text.lower() in str(value).lower() for value in column.dropna().unique()}
    return np.asarray(column.map(found).fillna(False), dtype=np.bool_)
