"""Printed numbers as what they are: the interval of all values that round to them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from lorasp.claims import Claim, Document, find
from lorasp.errors import WorkError

NUMBER = re.compile(r"\d+(?:\.\d*)?")
SCALES = (1, 10**3, 10**6, 10**9)  # printed plainly, or in thousands, millions, billions
Pattern = str | list[str]


@dataclass(frozen=True)
class Outcome:
    """What a check computed: in one sentence, its verdict, the steps, and the steps as records."""

    verdict: str
    found: str
    evidence: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Interval:
    """The closed interval from `low` to `high`, exact."""

    low: Fraction
    high: Fraction

    def __add__(self, other: "Interval") -> "Interval":
        return Interval(self.low + other.low, self.high + other.high)

    def __sub__(self, other: "Interval") -> "Interval":
        return Interval(self.low - other.high, self.high - other.low)

    def times(self, factor: Fraction) -> "Interval":
        """Every value times a factor of at least 0."""
        return Interval(self.low * factor, self.high * factor)

    def holds(self, value: Fraction | int) -> bool:
        return self.low <= value <= self.high

    def meets(self, other: "Interval") -> bool:
        """Whether the two have a value in common."""
        return self.low <= other.high and other.low <= self.high


def exact(value: float) -> Fraction:
    """A number of a claims file as it is written there, without the error of binary floats."""
    return Fraction(str(value))


def rounding(text: str, value: float) -> Interval:
    """All values that round to `value` at the precision with which `text` prints it.

    '84.5' is 84.45 to 84.55, '348.M' is 347.5 to 348.5 million. Raises WorkError where `text` holds
    no number that is `value`, plain or in thousands, millions or billions.
    """
    for match in NUMBER.finditer(text.replace(",", "")):
        digits = match.group()
        for scale in SCALES:
            if Fraction(digits) * scale == exact(value):
                decimals = len(digits.partition(".")[2])
                half = Fraction(scale, 2 * 10**decimals)
                return Interval(exact(value) - half, exact(value) + half)
    raise WorkError(f"printed is {text!r}, in which there is no number that is value, {value:g}")


def interval(claim: Claim) -> Interval:
    """All values that the printed number of a claim can stand for; WorkError without a number."""
    if "value" not in claim:
        raise WorkError(f"claim {claim['id']} has no value, and this check needs one")
    return rounding(claim["printed"], claim["value"])


def chosen(document: Document, of: Pattern, unit: str | None = None) -> list[Claim]:
    """The claims with a value whose ids match one pattern or several, in that order.

    Raises WorkError where a pattern matches none of them, or none of that unit.
    """
    claims = []
    for pattern in [of] if isinstance(of, str) else of:
        numbers = [
            claim
            for claim in find(document, pattern)
            if "value" in claim and unit in (None, claim["unit"])
        ]
        if not numbers:
            raise WorkError(f"no claim like {pattern} has a number in {unit or 'any unit'}")
        claims += numbers
    return claims


def show(value: Fraction | float, unit: str = "percent") -> str:
    """A number for people: counts in millions, scores with two decimals."""
    if unit != "parameters":
        return f"{float(value):.2f}"
    millions = float(value) / 1e6
    return f"{millions:,.2f}M" if abs(millions) >= 100 else f"{millions:.3f}M"


def listed(words: Iterable[str]) -> str:
    """Words as a sentence lists them: 'a', 'a and b', 'a, b and c'."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
