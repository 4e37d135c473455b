"""What to use when, in plain words: made from the scores, their intervals and the costs."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lorasp.claims import load_claims
from lorasp.claims.roles import paper_task
from lorasp.config import Config, resolve_task
from lorasp.report.advice_words import (
    ALIKE,
    MOST,
    is_same,
    joined,
    kib,
    mib,
    ms,
    names_of,
    score,
    size,
    some,
    some_of,
)
from lorasp.report.charts import Row
from lorasp.report.collect import DONE, Results
from lorasp.report.ranking import within
from lorasp.report.scopes import Place, Samples, Scope, gap
from lorasp.report.shown import above, learned
from lorasp.report.shown import within as within_margin

MOST_BUDGETS = 4
FEW = 10  # seeds: with fewer only large differences can be shown
NO_SCORE_COUNTS = (
    "The models and data of this scale are stand-ins and no score of it counts, so it cannot tell "
    "what to use when. A report of the scale mini or paper can."
)

Gap = Callable[[Row, Row], dict[str, Any]]  # the first less the second, see scopes.gap
Above = set[tuple[str, str]]  # names of methods, see shown.above
Amount = Callable[[Row], str]


def advice(
    config: Config, results: Results, places: dict[Place, Samples], points: list[Row]
) -> list[dict[str, Any]]:
    """For each scope of the recipe that decides: {title, sentences}; see `pareto_points`.

    Only trained methods with all of their scores are considered, and of them those that are shown
    to have learned; the others are named.
    """
    found = []
    recipe = config["verdicts"]["recipe"]
    for scope in dict.fromkeys(row["scope"] for row in points if row["scope"].recipe == recipe):
        here = [row for row in points if row["scope"] == scope and row["trained"]]
        whole = [row for row in here if row["score"] is not None and row["whole"]]
        whole.sort(key=lambda row: -row["score"])
        if len(whole) < 2:
            continue
        margin = margin_of(config, scope.tasks)
        base = next(
            (row["name"] for row in points if row["scope"] == scope and not row["trained"]), None
        )
        able = learned(places, scope, [row["name"] for row in whole], base, margin or 0.0)
        kept = [row for row in whole if row["name"] in able]
        sentences = _compared(kept, len(whole)) + _needs(results, places, scope, kept, margin)
        if idle := [row for row in whole if row not in kept]:
            sentences.append(_idle(idle, len(whole), margin))
        if left_out := [row for row in here if row not in whole]:
            names = [f"{row['method']} ({row['missing'] or 'no score'})" for row in left_out]
            sentences.append(f"Not considered: {joined(names)}.")
        if absent := [f"{row['method']} ({row['missing']})" for row in kept if row["missing"]]:
            sentences.append(f"Considered with the runs that there are: {some(absent)}.")
        sentences.append(_few_seeds(whole))
        title = f"{scope.model} on {', '.join(scope.tasks)}"
        found.append({"title": title, "sentences": [line for line in sentences if line]})
    return found


def _needs(
    results: Results,
    places: dict[Place, Samples],
    scope: Scope,
    kept: list[Row],
    margin: float | None,
) -> list[str]:
    """A sentence for each need, from the methods that have learned, the best score first."""
    if len(kept) < 2:
        return [
            f"If only the score counts: {row['method']}, with {score(row)}, the only one that is "
            "shown to have learned."
            for row in kept
        ]

    def between(left: Row, right: Row) -> dict[str, Any]:
        return gap(places, scope, left["name"], right["name"])

    names = [row["name"] for row in kept]
    order = above(places, scope, names)
    good, untold = kept[:1], []
    sentences = [_best(kept, between, order)]
    if margin is None:
        sentences.append(
            "If the file must be small: no claim of the paper sets a margin for these tasks, so "
            "nothing tells how much may be lost to the best score."
        )
    else:
        near = within_margin(places, scope, names[0], names[1:], margin)
        good += [row for row in kept if row["name"] in near]
        lost = above(places, scope, names, margin)
        untold = [row for row in kept if row not in good and (names[0], row["name"]) not in lost]
        sentences.append(_smallest(kept, good, untold, between, margin))
    sentences.append(_least_memory(kept, good, between, margin))
    sentences.append(_fastest(results, scope, kept, good, between, margin))
    return sentences + _budgets(kept, between, order)


def _compared(kept: list[Row], count: int) -> list[str]:
    """Of which methods all is said that follows; nothing where none is compared."""
    if len(kept) < 2:
        return []
    those = f"the {len(kept)} methods that are shown to have learned"
    return [
        f"Compared: {those}, of {count} with scores and no failed run. 'The other', 'least' and "
        f"'fastest' mean of these {len(kept)}."
    ]


def _idle(idle: list[Row], count: int, margin: float | None) -> str:
    """Which methods are not shown to have learned; where none is, nothing is recommended."""
    more = f" by more than {margin:.1f} points" if margin else ""
    asked = f"score higher than the untouched model{more}"
    if len(idle) < count:
        return f"Not recommended: {names_of(idle)}, not shown to {asked} over the same seeds."
    return (
        f"Inconclusive: none of the {count} methods is shown to {asked}. Either they learned too "
        "little, or the seeds are too few to tell, or the untouched model has no score. None is "
        "recommended, since methods that learned nothing would look the same."
    )


def _few_seeds(rows: list[Row]) -> str:
    """What so few seeds cannot show, of which methods; empty where they are many."""
    few = [row for row in rows if row["n"] < FEW]
    if not few:
        return ""
    counts = sorted({row["n"] for row in few})
    which = "each method" if len(few) == len(rows) else some_of(few)
    if counts[-1] == 1:
        return f"Few seeds: one run of {which}, of which no test can show anything."
    told = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    return (
        f"Few seeds: {told} runs of {which}. So few show only large differences, and a "
        "difference that is not shown can still be there."
    )


def margin_of(config: Config, tasks: tuple[str, ...]) -> float | None:
    """The margin in points within which the paper's claims call a method no worse on these tasks.

    It is that of the claim of non-inferiority about the fewest tasks that has all of them; None
    where no claim has.
    """
    roles = {paper_task(resolve_task(config, task)) for task in tasks}
    document = load_claims()
    claims = [
        claim
        for claim in document["claims"]
        if claim.get("test") == "noninferior" and roles <= set(claim.get("tasks", ()))
    ]
    if not claims:
        return None
    nearest = min(claims, key=lambda claim: len(claim["tasks"]))
    return float(document["margins"][nearest["margin"]]["value"])


def _alike(kept: list[Row], order: Above) -> list[Row]:
    """The methods that the first, which has the highest mean, is not shown to be above."""
    return [row for row in kept[1:] if (kept[0]["name"], row["name"]) not in order]


def _best(kept: list[Row], between: Gap, order: Above) -> str:
    """Which method scores best, or between which that is inconclusive."""
    top, alike = kept[0], _alike(kept, order)
    lead = "If only the score counts"
    if not alike:
        following = f"{kept[1]['method']}, {size(between(kept[1], top))}"
        return (
            f"{lead}: {top['method']}, with {score(top)}. Every other of these is shown to score "
            f"lower; the next is {following}."
        )
    return (
        f"{lead}: inconclusive. {top['method']} has the highest mean, {score(top)}; "
        f"{_open(kept, alike, between)}."
    )


def _open(kept: list[Row], alike: list[Row], between: Gap) -> str:
    """Which methods may be as good as the first, or, where they are fewer, which are not."""
    lower = [row for row in kept[1:] if row not in alike]
    untested = [row for row in alike if between(kept[0], row)["interval"] is None]
    if not lower:
        others = "the other" if len(alike) == 1 else f"any of the other {len(alike)}"
        told = f"{others} ({some_of(alike)}) may be as good"
    elif len(lower) <= min(len(alike), MOST):
        rest = "the other" if len(alike) == 1 else f"any of the other {len(alike)}"
        told = (
            f"only {names_of(lower)} {_is(len(lower))} shown to score lower, {rest} may be as good"
        )
    else:
        rest = "the other is" if len(lower) == 1 else f"the other {len(lower)} are"
        told = f"{some_of(alike)} may be as good, {rest} shown to score lower"
    if untested:
        told += f" (of {some_of(untested)} the runs of the same seed are too few, or all alike)"
    return told


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _smallest(
    kept: list[Row], good: list[Row], untold: list[Row], between: Gap, margin: float
) -> str:
    """The smallest saved file among the methods that are shown to be as good as the best."""
    lead = "If the file must be small"
    known = [row for row in good if row["file"]]
    if not known:
        return f"{lead}: the size of the best method's is not known."
    least = min(known, key=lambda row: row["file"])
    same = [row for row in known if is_same(row, least, "file")]
    lost = f"shown to lose less than {margin:.1f} points"
    smaller = [row for row in untold if row["file"] and row["file"] < least["file"] * (1 - ALIKE)]
    if kept[0] in same:
        told = f"{lead}: {'inconclusive. None' if smaller else 'none'} of these with a smaller "
        told += f"file than {names_of(same)} ({kib(least)}) is {lost}"
    else:
        which = "that is" if len(same) == 1 else "within 1 % that are"
        told = f"{lead}: {names_of(same)}, {kib(least)}, the smallest {which} {lost} to "
        told += f"{kept[0]['method']}; {_below(same[0], kept, between)}"
    if smaller:
        smaller.sort(key=lambda row: row["file"])
        sizes = [f"{row['method']} ({kib(row)})" for row in smaller]
        told += f". Smaller ones may lose less than that: {some(sizes)}"
    return f"{told}."


def _least_memory(kept: list[Row], good: list[Row], between: Gap, margin: float | None) -> str:
    lead = "If memory is short"
    known = [row for row in kept if row["memory"]]
    if not known:
        return f"{lead}: the memory of a step was not measured."
    least = min(known, key=lambda row: row["memory"])
    first, *same = [row for row in known if is_same(row, least, "memory")]  # the best score first
    much = "least of these" if first is least else "within 1 % of the least of these"
    told = f"{lead}: {first['method']} takes {much} in a training step, {mib(first)}; "
    told += _below(first, kept, between)
    if first is not least:
        told += f". The least is {mib(least)}, by {least['method']}"
    if more := [row for row in same if row is not least]:
        told += f". Also within 1 % of the least: {names_of(more)}"
    return f"{told}{_among(good, [first, *same], 'memory', mib, margin)}."


def _fastest(
    results: Results,
    scope: Scope,
    kept: list[Row],
    good: list[Row],
    between: Gap,
    margin: float | None,
) -> str:
    """The fastest step; those whose quartiles meet its own cannot be told apart from it."""
    lead = "If time is short"
    known = [row for row in kept if row["time"]]
    if not known:
        return f"{lead}: the time of a step was not measured."
    profiles = results.profiles
    profiles = profiles[(profiles["model"] == scope.model) & (profiles["status"] == DONE)]
    quartiles = profiles.set_index("method")[["q1", "q3"]].to_dict("index")
    first = min(known, key=lambda row: row["time"])
    ends = quartiles[first["name"]]
    alike = [
        row for row in known if row is not first and quartiles[row["name"]]["q1"] <= ends["q3"]
    ]
    told = f"{lead}: {first['method']} has the fastest training step of these, each measured once: "
    told += f"{ms(first)} "
    told += f"(quartiles {1e3 * ends['q1']:.3g} to {1e3 * ends['q3']:.3g}); "
    told += _below(first, kept, between)
    if alike:
        told += f". Maybe as fast, since the quartiles overlap: {names_of(alike)}"
    return f"{told}{_among(good, [first, *alike], 'time', ms, margin)}."


def _among(good: list[Row], cheapest: list[Row], cost: str, unit: Amount, margin: Any) -> str:
    """The cheapest of the methods as good as the best, where that is not the cheapest of all."""
    known = [row for row in good if row[cost]]
    if margin is None or not known or any(row in cheapest for row in known):
        return ""
    least = min(known, key=lambda row: row[cost])
    if len(good) == 1:
        return f". {least['method']} itself takes {unit(least)}"
    lost = f"shown to lose less than {margin:.1f} points to the best"
    return f". The cheapest that is {lost}: {least['method']}, {unit(least)}"


def _budgets(kept: list[Row], between: Gap, order: Above) -> list[str]:
    """The best for at most so many trained parameters, for powers of ten; each only once."""
    known = [row for row in kept if row["trainable"]]
    if not known:
        return ["With a given number of trained parameters: no number is known."]
    counts = [row["trainable"] for row in known]
    powers = range(int(np.ceil(np.log10(min(counts)))), int(np.ceil(np.log10(max(counts)))) + 1)
    lines: list[str] = []
    before: Row | None = None
    for power in powers:
        inside = [row for row in known if row["trainable"] <= 10.0**power]
        top = inside[0]
        if top is before:
            continue  # a larger budget buys nothing better
        before, alike = top, _alike(inside, order)
        lead = f"With at most {10**power:,} trained parameters"
        count = f"{top['trainable']:,.0f}"
        shown = f"{top['method']}, which trains {count},"
        if len(inside) == len(kept):
            lines.append(f"{lead}: as in the first line; {top['method']} trains {count}.")
        elif len(inside) == 1:
            lines.append(f"{lead}: {shown} is the only one of these, with {score(top)}.")
        elif not alike:
            others = "every other of these that is within it is shown to score lower"
            lines.append(f"{lead}: {shown} with {score(top)}; {others}.")
        else:
            lines.append(
                f"{lead}: inconclusive. {shown} has the highest mean, {score(top)}; "
                f"{_open(inside, alike, between)}."
            )
    return lines[-MOST_BUDGETS:]


def _below(row: Row, kept: list[Row], between: Gap) -> str:
    """'its score, 76.1 [75.0, 77.2], differs from that of the best by −2.1 [−3.0, −1.2] points'."""
    if row is kept[0]:
        return f"its score is the highest too, {score(row)}"
    apart = between(row, kept[0])
    shown = within(row["score"], row["interval"])
    if not apart["n"]:
        return f"its score is {shown}"
    return f"its score, {shown}, differs from that of {kept[0]['method']} by {size(apart)}"
