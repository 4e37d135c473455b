"""Checks of printed numbers against each other, each with the benefit of its rounding.

A sum, mean or share is accepted if any values that round to the printed parts give one that rounds
to the printed result.
"""

from fractions import Fraction
from math import ceil, floor
from typing import Any

from lorasp.claims import Claim, Document
from lorasp.claims.printed import (
    Interval,
    Outcome,
    Pattern,
    chosen,
    exact,
    interval,
    listed,
    rounding,
    show,
)
from lorasp.errors import WorkError

RUNS = 20  # how many runs a mean is tried for


def mean(document: Document, claim: Claim, *, of: Pattern) -> Outcome:
    """The printed number is the mean of others, of its unit."""
    parts = chosen(document, of, claim["unit"])
    share = Fraction(1, len(parts))
    computed = _sum(parts).times(share)
    middle = sum(exact(part["value"]) for part in parts) * share
    return _follows(claim, computed, middle, f"the mean of the {len(parts)} numbers", parts)


def total(
    document: Document, claim: Claim, *, of: Pattern, minus: Pattern | None = None
) -> Outcome:
    """The printed number is the sum of others, less the numbers under `minus`."""
    plus = chosen(document, of, claim["unit"])
    less = chosen(document, minus, claim["unit"]) if minus else []
    computed = _sum(plus) - _sum(less)
    middle = sum(exact(part["value"]) for part in plus) - sum(exact(p["value"]) for p in less)
    how = " + ".join(part["printed"] for part in plus)
    how += "".join(f" \N{MINUS SIGN} {part['printed']}" for part in less)
    return _follows(claim, computed, Fraction(middle), how, plus + less)


def share(document: Document, claim: Claim, *, of: str, share: float) -> Outcome:
    """The printed number is a share of another, such as its half."""
    (whole,) = chosen(document, of, claim["unit"])
    computed = interval(whole).times(exact(share))
    how = f"{share:g} of {whole['printed']}"
    return _follows(claim, computed, exact(whole["value"]) * exact(share), how, [whole])


def _sum(claims: list[Claim]) -> Interval:
    return sum((interval(claim) for claim in claims), Interval(Fraction(0), Fraction(0)))


def _follows(
    claim: Claim, computed: Interval, middle: Fraction, how: str, parts: list[Claim]
) -> Outcome:
    """Whether the printed result can be the computed one, and what is missing if not."""
    unit, printed = claim["unit"], interval(claim)
    follows = printed.meets(computed)
    difference = exact(claim["value"]) - middle
    close = "which rounds to" if printed.holds(middle) else "within rounding of"
    found = f"{how} is {show(middle, unit)}, {close if follows else 'not'} the printed "
    found += claim["printed"]
    evidence = [
        f"The printed parts are rounded: unrounded, the result lies between "
        f"{show(computed.low, unit)} and {show(computed.high, unit)}.",
        f"The printed result stands for {show(printed.low, unit)} to {show(printed.high, unit)}.",
    ]
    if not follows:
        found += f", which is {show(abs(difference), unit)} {'more' if difference > 0 else 'less'}"
        slack = (computed.high - computed.low + printed.high - printed.low) / 2
        evidence.append(f"Rounding explains {show(slack, unit)} at most.")
    rows = [{"id": part["id"], "printed": part["printed"]} for part in parts]
    return Outcome("reproduced" if follows else "inconsistent", found, evidence, rows)


def equal(document: Document, claim: Claim, *, of: Pattern) -> Outcome:
    """Numbers that name the same quantity agree; the claim's own is one of them, if it has one."""
    claims = [*([claim] if "value" in claim else []), *chosen(document, of)]
    if len(claims) < 2:
        raise WorkError("check equal compares at least two numbers")
    intervals = [interval(one) for one in claims]
    agree = max(i.low for i in intervals) <= min(i.high for i in intervals)
    values = [exact(one["value"]) for one in claims]
    unit = claims[0]["unit"]
    found = f"{listed(one['printed'] for one in claims)} "
    found += "agree" if agree else f"differ by {show(max(values) - min(values), unit)}"
    rows = [{"id": one["id"], "printed": one["printed"]} for one in claims]
    return Outcome("reproduced" if agree else "inconsistent", found, [], rows)


def quotes(document: Document, claim: Claim, *, numbers: dict[str, Any]) -> Outcome:
    """Every number that the text repeats is the table's: id of the table's number to the text's."""
    rows, wrong = [], []
    for name, text in numbers.items():
        (cell,) = chosen(document, name)
        text = str(text)
        digits = rounding(cell["printed"], cell["value"])
        same = any(digits.holds(exact(float(text.rstrip("M"))) * scale) for scale in (1, 10**6))
        rows.append({"id": name, "text": text, "table": cell["printed"], "same": same})
        if not same:
            wrong.append(f"{text} in the text is {cell['printed']} in the table ({name})")
    found = f"all {len(rows)} numbers are the table's" if not wrong else "; ".join(wrong)
    return Outcome("inconsistent" if wrong else "reproduced", found, [], rows)


def order(
    document: Document,
    claim: Claim,
    *,
    of: Pattern,
    than: Pattern | float,
    at_least: int | None = None,
    source: str | None = None,
) -> Outcome:
    """Printed numbers are greater than others, pair by pair: all of them, or `at_least` so many.

    `than` may be one number from elsewhere, with its source: then what fails is not reproduced,
    while what fails against the paper's own numbers is a contradiction.
    """
    left = chosen(document, of)
    if isinstance(than, (int, float)):
        outside: Claim = {"id": source or "elsewhere", "printed": f"{than:g}", "value": than}
        right = [outside] * len(left)
    else:
        right = chosen(document, than)
    if len(left) != len(right):
        raise WorkError(f"check order pairs {len(left)} numbers with {len(right)}")
    rows = [
        {
            "left": one["id"],
            "left_printed": one["printed"],
            "right": other["id"],
            "right_printed": other["printed"],
            "difference": float(exact(one["value"]) - exact(other["value"])),
        }
        for one, other in zip(left, right, strict=True)
    ]
    greater = sum(row["difference"] > 0 for row in rows)
    less = [row for row in rows if row["difference"] < 0]
    needed = len(rows) if at_least is None else at_least
    found = f"{greater} of {len(rows)} greater, {len(less)} less"
    if len(rows) == 1:
        found = f"{rows[0]['left_printed']} against {rows[0]['right_printed']}"
    evidence = [
        f"{row['left']}: {row['left_printed']} against {row['right_printed']}"
        f" ({row['difference']:+.1f})."
        for row in rows
        if row["difference"] <= 0
    ]
    gain = sum(row["difference"] for row in rows)
    largest = max(rows, key=lambda row: abs(row["difference"]))
    if len(rows) > 2 and 0 < largest["difference"] <= gain:
        evidence.append(
            f"The mean difference is {gain / len(rows):+.2f}; {largest['left']} alone "
            f"({largest['difference']:+.1f}) is {largest['difference'] / gain:.0%} of it."
        )
    failed = "not reproduced" if isinstance(than, (int, float)) else "inconsistent"
    return Outcome("reproduced" if greater >= needed else failed, found, evidence, rows)


def attainable(
    document: Document, claim: Claim, *, of: Pattern, examples: dict[str, int]
) -> Outcome:
    """Each printed accuracy is one that a run can have: a whole number of right answers out of n.

    This is the GRIM test (Brown and Heathers, 2017) on the size of each task's evaluation set, for
    scores rounded to the nearest; what cutting off instead would allow is told, and the smallest
    number of runs whose mean, rounded, can give every printed score.
    """
    scores = [one for one in chosen(document, of) if one.get("task") in examples]
    if not scores:
        raise WorkError(f"check attainable finds no score of {listed(examples)} like {of}")

    def possible(score: Claim, runs: int, shift: Fraction = Fraction(0)) -> bool:
        answers = examples[score["task"]] * runs
        inside = (interval(score) + Interval(shift, shift)).times(Fraction(answers, 100))
        return ceil(inside.low) <= floor(inside.high)

    def cut_off(score: Claim) -> bool:
        """Whether a run can have it if digits were cut off: values from the printed one up."""
        within = interval(score)
        return possible(score, 1, shift=(within.high - within.low) / 2)

    single = [score for score in scores if not possible(score, 1)]
    counts = (n for n in range(1, RUNS + 1) if all(possible(score, n) for score in scores))
    fewest = next(counts, None)
    found = f"{len(single)} of {len(scores)} printed accuracies are not those of a single run"
    if neither := [score for score in single if not cut_off(score)]:
        found += f", {len(neither)} of them not even cut off instead of rounded"
    evidence = []
    for score in single:
        n = examples[score["task"]]
        below = floor(exact(score["value"]) * n / 100)
        evidence.append(
            f"{score['id']}: {score['printed']} is impossible on {n} examples; the neighbours "
            f"are {below}/{n} = {100 * below / n:.2f} and "
            f"{below + 1}/{n} = {100 * (below + 1) / n:.2f}"
            + (", which cut off would be it." if cut_off(score) else ".")
        )
    if single:
        evidence.append(
            f"Means of {fewest} runs can give every one of them; no smaller number of runs can."
            if fewest
            else f"No number of runs up to {RUNS} can give every one of them as a mean."
        )
        evidence.append("How many runs a score is the mean of, the paper does not say.")
    rows = [
        {"id": one["id"], "printed": one["printed"], "examples": examples[one["task"]],
         "single_run": possible(one, 1)}
        for one in scores
    ]  # fmt: skip
    return Outcome("not comparable" if single else "reproduced", found, evidence, rows)
