"""The sentences of a verdict: what was found, how sure it is, and what would settle it."""

from collections.abc import Sequence
from typing import Any

from lorasp.claims.statistics import LEVEL

MINUS = "\N{MINUS SIGN}"


def found(test: dict[str, Any], left: str, right: str, seeds: str, where: str = "") -> str:
    """How far `left` is from `right`, such as 'LoRA-SP is 2.9 points below LoRA (…)'."""
    estimate = test["estimate"]
    digits = _digits([estimate, test["margin"], *(test["interval"] or [])])
    size, side = number(abs(estimate), digits), "above" if estimate > 0 else "below"
    far = "level with" if float(size) == 0 else f"{size} points {side}"
    spread = f"{interval(test['interval'], digits)}, " if test["interval"] else ""
    return f"{left} is {far} {right}{where} ({spread}{count(test, seeds)})"


def interval(ends: Sequence[float], digits: int = 1) -> str:
    """'90 % interval −4.1 to −1.7'."""
    low, high = (number(end, digits) for end in ends)
    return f"{100 * LEVEL:.0f} % interval {low} to {high}"


def number(value: float, digits: int = 1) -> str:
    """A rounded number with a true minus sign, and none on a zero."""
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", MINUS)


def p_value(p: float) -> str:
    """'p = 0.012', or 'p < 0.001'."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def count(test: dict[str, Any], things: str) -> str:
    """'5 pairs of seeds', or '4 of 5 pairs of seeds' where one is missing."""
    n, planned = test["n"], test["planned"]
    if n == planned == 1:
        return {"seeds": "one seed", "pairs of seeds": "one pair of seeds"}[things]
    return f"{n} {things}" if n == planned else f"{n} of {planned} {things}"


def settled_by(seeds: int | None, at_most: int) -> str:
    """How many seeds an open question needs."""
    if seeds is None:
        return f"More than {at_most:,} seeds would be needed"
    return f"About {seeds} seeds would settle it if mean and spread stay as they are"


def _digits(values: Sequence[float]) -> int:
    """One decimal, or two where one would hide what the numbers are about."""
    return 1 if max(abs(value) for value in values) >= 1 else 2
