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
from lorasp.report.shown import above, learned
from lorasp.report.shown import within as within_margin

ALIKE = 0.01  # costs that differ by no more are called the same
MOST_BUDGETS = 4
NO_SCORE_COUNTS = (
    "At this scale no score counts, so nothing can be said of what to use when; other scales do."
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
        sentences = _needs(results, places, scope, kept, margin)
        if idle := [row for row in whole if row not in kept]:
            sentences.append(_idle(idle, len(whole), margin))
        if left_out := [row for row in here if row not in whole]:
            names = [f"{row['method']} ({row['missing'] or 'no score'})" for row in left_out]
            sentences.append(f"Not considered: {_joined(names)}.")
        if absent := [f"{row['method']} ({row['missing']})" for row in kept if row["missing"]]:
            sentences.append(f"Considered with the runs that there are: {_joined(absent)}.")
        title = f"{scope.model} on {', '.join(scope.tasks)}"
        found.append({"title": title, "sentences": sentences})
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
        return [f"Best score: {row['method']} with {_score(row)}." for row in kept]

    def between(left: Row, right: Row) -> dict[str, Any]:
        return gap(places, scope, left["name"], right["name"])

    names = [row["name"] for row in kept]
    order = above(places, scope, names)
    good, untold = kept[:1], []
    sentences = [_best(kept, between, order)]
    if margin is None:
        sentences.append("Smallest file: no claim sets a margin for these tasks.")
    else:
        near = within_margin(places, scope, names[0], names[1:], margin)
        good += [row for row in kept if row["name"] in near]
        untold = [row for row in kept if row not in good and _may_be(row, kept, between, margin)]
        sentences.append(_smallest(kept, good, untold, between, margin))
    sentences.append(_least_memory(kept, good, between, margin))
    sentences.append(_fastest(results, scope, kept, good, between, margin))
    return sentences + _budgets(kept, order)


def _idle(idle: list[Row], count: int, margin: float | None) -> str:
    """Which methods are not shown to have learned; where none is, nothing is recommended."""
    more = f" by more than {margin:.1f} points" if margin else ""
    asked = f"above the untouched model{more} on the same seeds"
    if len(idle) < count:
        return f"Not considered, since not shown to be {asked}: {_names(idle)}."
    return (
        f"No method is shown to have learned: none of {count} is {asked}, or the untouched model "
        "has no scores or the seeds are too few to tell. Methods that learned nothing would look "
        "the same, so none is recommended."
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


def _may_be(row: Row, kept: list[Row], between: Gap, margin: float) -> bool:
    """Whether a method may be within the margin of the best, by the interval of the difference."""
    ends = between(row, kept[0])["interval"]
    return ends is None or ends[1] > -margin


def _alike(kept: list[Row], order: Above) -> list[Row]:
    """The methods that the first, which has the highest mean, is not shown to be above."""
    return [row for row in kept[1:] if (kept[0]["name"], row["name"]) not in order]


def _best(kept: list[Row], between: Gap, order: Above) -> str:
    """Which method scores best, or between which that cannot be told."""
    top, alike = kept[0], _alike(kept, order)
    shown = f"{top['method']} with {_score(top)}"
    if not alike:
        following = f"{kept[1]['method']}, {_size(between(kept[1], top))}"
        return (
            f"Best score: {shown}. Every other method is shown to be below it; the next is "
            f"{following}."
        )
    told = f"Best score: it cannot be told which. The highest mean is that of {shown}; "
    tested = [row for row in alike if between(top, row)["interval"] is not None]
    parts = []
    if tested:
        every = len(tested) == len(kept) - 1
        told_of = f"{_names(tested)} {_is(len(tested))} not shown"
        parts.append(f"{'none of the others is shown' if every else told_of} to be below it")
    if rest := [row for row in alike if row not in tested]:
        parts.append(f"of {_names(rest)} the runs of the same seed are too few, or all alike")
    return f"{told}{'; '.join(parts)}.{_others_below(len(kept) - 1 - len(alike))}"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _others_below(count: int) -> str:
    if not count:
        return ""
    who = "method" if count == 1 else f"{count} methods"
    return f" The other {who} {_is(count)} shown to be below."


def _smallest(
    kept: list[Row], good: list[Row], untold: list[Row], between: Gap, margin: float
) -> str:
    """The smallest saved file among the methods that are shown to be as good as the best."""
    known = [row for row in good if row["file"]]
    if not known:
        return "Smallest file: the size of the best method's is not known."
    least = min(known, key=lambda row: row["file"])
    same = [row for row in known if _is_same(row, least, "file")]
    told = f"Smallest file shown to be within {margin:.1f} points of the best: "
    told += f"{_names(same)}, {_kib(least)}; "
    if kept[0] in same:
        told += "no smaller one is shown to lose less than that"
    else:
        told += _below(same[0], kept, between)
    smaller = [row for row in untold if row["file"] and row["file"] < least["file"] * (1 - ALIKE)]
    if smaller:
        smaller.sort(key=lambda row: row["file"])
        sizes = _joined([f"{row['method']} ({_kib(row)})" for row in smaller])
        told += f". Of {sizes} it cannot be told"
    return f"{told}."


def _least_memory(kept: list[Row], good: list[Row], between: Gap, margin: float | None) -> str:
    known = [row for row in kept if row["memory"]]
    if not known:
        return "Least memory of a step: none was measured."
    least = min(known, key=lambda row: row["memory"])
    first, *same = [row for row in known if _is_same(row, least, "memory")]  # the best score first
    told = (
        f"Least memory of a step: {first['method']}, {_mib(first)}; {_below(first, kept, between)}"
    )
    if same:
        told += f". To a hundredth the same: {_names(same)}"
    return f"{told}{_among(good, [first, *same], 'memory', _mib, margin)}."


def _fastest(
    results: Results,
    scope: Scope,
    kept: list[Row],
    good: list[Row],
    between: Gap,
    margin: float | None,
) -> str:
    """The fastest step; those whose quartiles meet its own cannot be told apart from it."""
    known = [row for row in kept if row["time"]]
    if not known:
        return "Fastest step: none was measured."
    profiles = results.profiles
    profiles = profiles[(profiles["model"] == scope.model) & (profiles["status"] == DONE)]
    quartiles = profiles.set_index("method")[["q1", "q3"]].to_dict("index")
    first = min(known, key=lambda row: row["time"])
    ends = quartiles[first["name"]]
    alike = [
        row for row in known if row is not first and quartiles[row["name"]]["q1"] <= ends["q3"]
    ]
    told = f"Fastest step: {first['method']}, {_ms(first)} (quartiles {1e3 * ends['q1']:.3g} to "
    told += f"{1e3 * ends['q3']:.3g}); {_below(first, kept, between)}"
    if alike:
        told += f". Not told apart from it, since the quartiles meet: {_names(alike)}"
    return f"{told}{_among(good, [first, *alike], 'time', _ms, margin)}."


def _among(good: list[Row], cheapest: list[Row], cost: str, unit: Amount, margin: Any) -> str:
    """The cheapest of the methods as good as the best, where that is not the cheapest of all."""
    known = [row for row in good if row[cost]]
    if margin is None or not known or any(row in cheapest for row in known):
        return ""
    least = min(known, key=lambda row: row[cost])
    of = f"Of the methods shown to be within {margin:.1f} points of the best"
    return f". {of}: {least['method']}, {unit(least)}"


def _budgets(kept: list[Row], order: Above) -> list[str]:
    """The best for at most so many trained parameters, for powers of ten; each only once."""
    known = [row for row in kept if row["trainable"]]
    if not known:
        return ["For a given number of parameters: none is known."]
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
        told = f"At most {10**power:,} trained parameters: {top['method']}, which trains "
        told += f"{top['trainable']:,.0f}, with {_score(top)}"
        if len(inside) == 1:
            told += ", the only one"
        elif len(alike) == len(inside) - 1 > 1:
            told += "; none of the others is shown to be below it"
        elif alike:
            told += f"; {_names(alike)} {_is(len(alike))} not shown to be below it"
        lines.append(f"{told}.{_others_below(len(inside) - 1 - len(alike))}")
    return lines[-MOST_BUDGETS:]


def _below(row: Row, kept: list[Row], between: Gap) -> str:
    """'its score is 76.1 [75.0, 77.2], −2.1 [−3.0, −1.2] points from the best …'."""
    if row is kept[0]:
        return f"its score is the highest too, {_score(row)}"
    apart = between(row, kept[0])
    away = f", {_size(apart)} from {kept[0]['method']}" if apart["n"] else ""
    return f"its score is {within(row['score'], row['interval'])}{away}"


def _size(apart: dict[str, Any]) -> str:
    """A paired difference as '+1.2 [+0.3, +2.1] points (5 pairs of seeds)'."""
    if apart["estimate"] is None:
        return "with no seed in common"
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


def _names(rows: list[Row]) -> str:
    return _joined([row["method"] for row in rows])


def _joined(names: list[str]) -> str:
    """'A, B and C'; where a name has a comma itself, 'A; B; and C'."""
    if len(names) == 1:
        return names[0]
    comma, last = ("; ", "; and ") if any("," in name for name in names) else (", ", " and ")
    return f"{comma.join(names[:-1])}{last}{names[-1]}"


def _kib(row: Row) -> str:
    size = row["file"]
    return f"{size / 2**10:,.0f} KiB" if size >= 2**13 else f"{size:,.0f} bytes"


def _mib(row: Row) -> str:
    return f"{row['memory'] / 2**20:,.0f} MiB"


def _ms(row: Row) -> str:
    time = 1e3 * row["time"]
    return f"{time:,.0f} ms" if time >= 100 else f"{time:.3g} ms"
