"""The bound that a claim sets on a ratio of resources, and how the two are written beside it."""

TESTS = ("less", "at_most")
EXACT = 1e-9


def bound_of(test: str, margin: float) -> float:
    """What left over right may be: `less` needs a share less, `at_most` allows that share more."""
    return 1 + margin if test == "at_most" else 1 - margin


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
