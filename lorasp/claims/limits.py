"""The bounds that a claim sets on a ratio of resources, and how both are written."""

import math
from typing import NamedTuple

TESTS = ("less", "at_most", "equal")
EXACT = 1e-9  # a ratio beyond a bound by no more is on it: 1 - 0.9 is not 0.1 to a computer


class Bounds(NamedTuple):
    """What left over right may be, both ends included; `low` is -inf where there is only a top."""

    low: float
    high: float

    def verdict(self, low: float, high: float) -> str:
        """Of a ratio that lies from `low` to `high`."""
        if self.low - EXACT <= low and high <= self.high + EXACT:
            return "reproduced"
        if high < self.low - EXACT or low > self.high + EXACT:
            return "not reproduced"
        return "inconclusive"

    def beyond(self, value: float) -> float:
        """How far a ratio is outside; below 0 inside."""
        return max(self.low - value, value - self.high)

    def nearest(self, value: float) -> float:
        return min((self.high, self.low), key=lambda bound: abs(value - bound))

    def words(self, places: int | None = None) -> str:
        """'0.90 or less', or '0.99 to 1.01'; with `places` decimals, or as many as they have."""
        ends = [shown(end) if places is None else f"{end:.{places}f}" for end in self]
        return f"{ends[1]} or less" if math.isinf(self.low) else f"{ends[0]} to {ends[1]}"


def bounds_of(test: str, margin: float) -> Bounds:
    """`less` needs a share less, `at_most` allows that share more, `equal` that much either way."""
    low = 1 - margin if test == "equal" else -math.inf
    return Bounds(low, 1 - margin if test == "less" else 1 + margin)


def digits(value: float, bound: float) -> int:
    """The decimals, 2 to 6, at which the bound is exact and a ratio near it does not look like it.

    A ratio within 0.01 of the bound has three or more.
    """
    for places in range(2 if abs(value - bound) >= 0.01 else 3, 6):
        alike = f"{value:.{places}f}" == f"{bound:.{places}f}" and abs(value - bound) > EXACT
        if not alike and abs(round(bound, places) - bound) < EXACT:
            return places
    return 6


def shown(bound: float) -> str:
    """A bound with two decimals, or as many as it has: '0.90', '1.001'."""
    return f"{bound:.2f}" if abs(round(bound, 2) - bound) < EXACT else f"{bound:g}"
