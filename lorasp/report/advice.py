"""What to use when, in plain words: made from the scores, their intervals and the costs."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lorasp.claims import load_claims
from lorasp.claims.roles import paper_task
from lorasp.config import Config, resolve_task
from lorasp.report.charts import Row
from lorasp.report.claims_view import signed
from lorasp.report.collect import DONE, Results
from lorasp.report.ranking import within
from lorasp.report.scopes import Place, Samples, Scope, gap

ALIKE = 0.01  # costs that differ by no more are called the same
MOST_BUDGETS = 4
NO_SCORE_COUNTS = (
    "At this scale no score counts, so nothing can be said of what to use when; other scales say "
    "it."
)

Gap = Callable[[str, str], dict[str, Any]]


def advice(
    config: Config, results: Results, places: dict[Place, Samples], points: list[Row]
) -> list[dict[str, Any]]:
    """For each scope of the recipe that decides: {title, sentences}; see `pareto_points`.

    Only trained methods with all of their scores are considered; the others are named.
    """
    found = []
    recipe = config["verdicts"]["recipe"]
    for scope in dict.fromkeys(row["scope"] for row in points if row["scope"].recipe == recipe):
        here = [row for row in points if row["scope"] == scope and row["trainable"] != 0]
        kept = [row for row in here if row["score"] is not None and row["whole"]]
        kept.sort(key=lambda row: -row["score"])
        if len(kept) < 2:
            continue
        left_out = [
            f"{row['method']} ({row['missing'] or 'no score'})" for row in here if row not in kept
        ]

        def between(left: str, right: str, scope: Scope = scope) -> dict[str, Any]:
            return gap(places, scope, left, right)

        margin = margin_of(config, scope.tasks)
        sentences = [
            _best(kept, between),
            _smallest(kept, between, margin),
            _least_memory(kept, between, margin),
            _fastest(results, scope, kept, between, margin),
            *_budgets(kept, between),
        ]
        if left_out:
            sentences.append(f"Not considered: {', '.join(left_out)}.")
        title = f"{scope.model} on {', '.join(scope.tasks)}"
        found.append({"title": title, "sentences": [line for line in sentences if line]})
    return found


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


def _best(kept: list[Row], between: Gap) -> str:
    """Which method scores best, or between which that cannot be told."""
    top = kept[0]
    alike = _alike(kept, between)
    shown = f"{top['method']} with {_score(top)}"
    if not alike:
        next_gap = between(top["name"], kept[1]["name"])
        return (
            f"Best score: {shown}. Every other method is below it; the next, "
            f"{kept[1]['method']}, by {_size(next_gap)}."
        )
    single = [row for row in alike if between(top["name"], row["name"])["n"] < 2]
    names = _names([row["method"] for row in alike])
    because = (
        "there are too few runs of the same seed"
        if len(single) == len(alike)
        else "the interval of the difference, paired by seed, holds 0, or there are too few seeds"
        if single
        else "the interval of the difference, paired by seed, holds 0"
    )
    rest = len(kept) - 1 - len(alike)
    others = f" The other {_counted(rest, 'method')} below." if rest else ""
    return (
        f"Best score: it cannot be told which. The highest mean is that of {shown}; {names} "
        f"cannot be told apart from it ({because}).{others}"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun} is" if count == 1 else f"{count} {noun}s are"


def _alike(kept: list[Row], between: Gap) -> list[Row]:
    """The methods that the first, which has the highest mean, is not shown to be above."""
    found = []
    for row in kept[1:]:
        ends = between(kept[0]["name"], row["name"])["interval"]
        if ends is None or ends[0] <= 0:
            found.append(row)
    return found


def _within_margin(kept: list[Row], between: Gap, margin: float) -> tuple[list[Row], list[Row]]:
    """The methods shown to be less than a margin below the best, and those it cannot be told of."""
    good, untold = [kept[0]], []
    for row in kept[1:]:
        ends = between(row["name"], kept[0]["name"])["interval"]
        if ends is not None and ends[0] > -margin:
            good.append(row)
        elif ends is None or ends[1] > -margin:
            untold.append(row)
    return good, untold


def _smallest(kept: list[Row], between: Gap, margin: float | None) -> str:
    """The smallest saved file among the methods that are shown to be as good as the best."""
    if margin is None:
        return "Smallest file: no claim sets a margin for these tasks, and 'as good as' needs one."
    known = [row for row in kept if row["file"]]
    if kept[0] not in known:
        return "Smallest file: the size of the best method's is not known."
    good, untold = _within_margin(kept, between, margin)
    least = min((row for row in good if row in known), key=lambda row: row["file"])
    same = [row for row in good if row in known and _is_same(row, least, "file")]
    names = _names([row["method"] for row in same])
    told = f"Smallest file within {margin:g} points of the best: "
    if least is kept[0]:
        told += (
            f"that of {names} with the best mean, "
            f"{_kib(least)}; no smaller one is shown to lose less than that"
        )
    else:
        told += f"{names}, {_kib(least)}; {_below(least, kept, between)}"
    smaller = [row for row in untold if row in known and row["file"] < least["file"] * (1 - ALIKE)]
    if smaller:
        smaller.sort(key=lambda row: row["file"])
        sizes = _names([f"{row['method']} ({_kib(row)})" for row in smaller])
        told += f". Of {sizes} it cannot be told"
    return f"{told}."


def _least_memory(kept: list[Row], between: Gap, margin: float | None) -> str:
    known = [row for row in kept if row["memory"]]
    if not known:
        return "Least memory: no step was measured."
    told = f"Least memory of a step: {_cheapest(known, kept, 'memory', _mib, between)}"
    return f"{told}{_among(known, kept, 'memory', _mib, between, margin)}."


def _fastest(
    results: Results, scope: Scope, kept: list[Row], between: Gap, margin: float | None
) -> str:
    """The fastest step; those whose quartiles meet its own cannot be told apart from it."""
    known = [row for row in kept if row["time"]]
    if not known:
        return "Fastest step: none was measured."
    first = min(known, key=lambda row: row["time"])
    profiles = results.profiles
    profiles = profiles[(profiles["model"] == scope.model) & (profiles["status"] == DONE)]
    quartiles = profiles.set_index("method")[["q1", "q3"]].to_dict("index")
    ends = quartiles[first["name"]]
    alike = [
        row["method"]
        for row in known
        if row is not first and quartiles[row["name"]]["q1"] <= ends["q3"]
    ]
    spread = f"quartiles {1e3 * ends['q1']:.3g} to {1e3 * ends['q3']:.3g}"
    told = f"Fastest step: {first['method']}, {_ms(first)} ({spread})"
    if alike:
        told += f"; {_names(alike)} cannot be told apart from it, since the quartiles meet"
    told += f"; {_below(first, kept, between)}"
    return f"{told}{_among(known, kept, 'time', _ms, between, margin)}."


def _cheapest(
    known: list[Row], kept: list[Row], cost: str, unit: Callable[[Row], str], between: Gap
) -> str:
    least = min(known, key=lambda row: row[cost])
    same = [row["method"] for row in known if _is_same(row, least, cost)]
    return f"{_names(same)}, {unit(least)}; {_below(least, kept, between)}"


def _among(
    known: list[Row],
    kept: list[Row],
    cost: str,
    unit: Callable[[Row], str],
    between: Gap,
    margin: float | None,
) -> str:
    """The cheapest of the methods as good as the best, where that is not the cheapest of all."""
    if margin is None:
        return ""
    good = [row for row in _within_margin(kept, between, margin)[0] if row in known]
    least = min(known, key=lambda row: row[cost])
    if not good or any(_is_same(row, least, cost) for row in good):
        return ""
    cheapest = min(good, key=lambda row: row[cost])
    return (
        f". Of the methods shown to be within {margin:g} points of the best: {cheapest['method']}, "
        f"{unit(cheapest)}"
    )


def _budgets(kept: list[Row], between: Gap) -> list[str]:
    """The best for at most so many trained parameters, for powers of ten; each only once."""
    known = [row for row in kept if row["trainable"]]
    if not known:
        return ["For a given number of parameters: none is known."]
    counts = [row["trainable"] for row in known]
    powers = range(int(np.ceil(np.log10(min(counts)))), int(np.ceil(np.log10(max(counts)))) + 1)
    lines: list[str] = []
    before: list[Row] = []
    for power in powers:
        inside = [row for row in known if row["trainable"] <= 10.0**power]
        if not inside or (before and inside[0] is before[0]):
            continue  # a larger budget buys nothing better
        before = inside
        top, alike = inside[0], _alike(inside, between)
        told = (
            f"At most {10**power:,} trained parameters: {top['method']} ({top['trainable']:,.0f}) "
            f"with {_score(top)}"
        )
        if len(inside) == 1:
            told += ", the only one"
        elif alike:
            told += f"; {_names([row['method'] for row in alike])} cannot be told apart from it"
        else:
            told += f"; the other {_counted(len(inside) - 1, 'method')} below"
        lines.append(f"{told}.")
    return lines[-MOST_BUDGETS:]


def _below(row: Row, kept: list[Row], between: Gap) -> str:
    """'its score is 76.1 [75.0, 77.2], −2.1 [−3.0, −1.2] from the best (5 pairs of seeds)'."""
    if row is kept[0]:
        return f"it has the highest mean too, {_score(row)}"
    apart = between(row["name"], kept[0]["name"])
    away = f", {_size(apart)} from {kept[0]['method']}" if apart["n"] else ""
    return f"its score is {within(row['score'], row['interval'])}{away}"


def _size(apart: dict[str, Any]) -> str:
    """A paired difference as '+1.2 [+0.3, +2.1] points (5 pairs of seeds)'."""
    shown = signed(apart["estimate"])
    if apart["interval"] is not None:
        shown += f" [{', '.join(signed(end) for end in apart['interval'])}]"
    single = apart["n"] == 1
    pairs = "one pair of seeds, so no interval" if single else f"{apart['n']} pairs of seeds"
    return f"{shown} points ({pairs})"


def _score(row: Row) -> str:
    seeds = "one seed, so no interval" if row["n"] == 1 else f"{row['n']} seeds"
    return f"{within(row['score'], row['interval'])} ({seeds})"


def _is_same(row: Row, other: Row, cost: str) -> bool:
    return bool(abs(row[cost] - other[cost]) <= ALIKE * other[cost])


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _kib(row: Row) -> str:
    size = row["file"]
    return f"{size / 2**10:,.0f} KiB" if size >= 2**13 else f"{size:,.0f} bytes"


def _mib(row: Row) -> str:
    return f"{row['memory'] / 2**20:,.0f} MiB"


def _ms(row: Row) -> str:
    return f"{1e3 * row['time']:,.3g} ms"
