"""Scores against what they cost, with the Pareto front: parameters, file, memory and time."""

import itertools
import math
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from lorasp.claims.statistics import interval
from lorasp.config import Config
from lorasp.report.advice_words import joined
from lorasp.report.charts import INK, MUTED, Panel, Row, data, grid, group_look, layers, log_ticks
from lorasp.report.collect import DONE, Results, anchor
from lorasp.report.measures import standing
from lorasp.report.placing import LETTER, LINE, Box, Point, place
from lorasp.report.ranking import NO_PLACE, within
from lorasp.report.scopes import Place, Samples, Scope, scores_over, troubles
from lorasp.report.tables import UNTRAINED

COSTS = {  # by name: what it is, its unit and its factor
    "trainable": ("trainable parameters", "", 1.0),
    "file": ("saved file", "KiB", 2.0**-10),
    "memory": ("peak memory of a step", "MiB", 2.0**-20),
    "time": ("time of a step", "ms", 1e3),
}
SHORT = {"trainable": "parameters", "file": "file", "memory": "memory", "time": "time"}
NO_FRONT = (
    "No figure of the score against {costs}: with the recipe that decides, no trained method has "
    "both a score and a known cost of that kind yet."
)
SIZE = (500, 290)
LONGEST = 26  # letters of a name in a plot


def pareto_points(
    config: Config, results: Results, places: dict[Place, Samples], found: list[Scope]
) -> list[Row]:
    """One record a scope and method: its mean score over the tasks, place, and what it costs.

    The mean is seed by seed; a seed is left out where one of its tasks is missing. A method of
    which a run failed keeps the mean of the others, has no place and is on no front; one without a
    score is `score: None`.
    """
    rows = []
    for scope in found:
        here = [_point(config, results, places, scope, method) for method in scope.methods]
        ranks = standing(
            {row["name"]: row["score"] for row in here if row["score"] is not None and row["whole"]}
        )
        fronts = {
            cost: {row["name"] for row in front([r for r in here if _counts(r, cost)], cost)}
            for cost in COSTS
        }
        for row in here:
            on = [cost for cost, names in fronts.items() if row["name"] in names]
            rows.append(row | {"place": ranks.get(row["name"]), "fronts": on})
    return rows


def _counts(row: Row, cost: str) -> bool:
    return row["trained"] and bool(row[cost]) and row["score"] is not None and row["whole"]


def _point(
    config: Config, results: Results, places: dict[Place, Samples], scope: Scope, method: str
) -> Row:
    values = np.array(list(scores_over(places, scope, method).values()))
    here = [places[Place(scope.model, task, scope.recipe)][method] for task in scope.tasks]
    mean = float(values.mean()) if len(values) else None
    entry = config["methods"][method]
    recipe = UNTRAINED if entry["family"] == "base" else scope.recipe
    return {
        "scope": scope,
        "name": method,
        "method": entry["label"],
        "group": entry.get("group", "paper"),
        "trained": entry["family"] != "base",
        "score": mean,
        "interval": interval(values) if len(values) else None,
        "n": len(values),
        "whole": not any(sample.failed for sample in here),
        "missing": "; ".join(troubles(places, scope, method)),
        "href": "#" + anchor("runs", scope.model, scope.tasks[0], method, recipe),
        **costs_of(results, scope, method, recipe),
    }


def costs_of(results: Results, scope: Scope, method: str, recipe: str) -> Row:
    """What a method costs at a scope: counts, bytes and seconds; None for what is not known.

    Parameters and the file are those of its runs (of its profile where none has ended), averaged
    over the tasks, whose heads differ; memory and time are the profile's.
    """
    runs, profiles = results.runs, results.profiles
    runs = runs[(runs["model"] == scope.model) & (runs["method"] == method)]
    runs = runs[runs["task"].isin(scope.tasks) & (runs["recipe"] == recipe)]
    measured = profiles[(profiles["model"] == scope.model) & (profiles["method"] == method)]
    measured = measured[measured["status"] == DONE]
    saved = _mean(runs, "adapter_bytes") if recipe != UNTRAINED else None

    def either(name: str) -> float | None:
        return _mean(runs, name) or _mean(measured, name)

    return {
        "trainable": either("trainable"),
        "total": either("total"),
        "file": saved or _mean(measured, "adapter_bytes"),
        "memory": _mean(measured, "peak_memory"),
        "time": _mean(measured, "step"),
    }


def _mean(frame: pd.DataFrame, column: str) -> float | None:
    if column not in frame or not frame[column].notna().any():
        return None
    return float(frame[column].mean())


def front(points: list[Row], cost: str) -> list[Row]:
    """The points that no other beats in cost and in score, by rising cost."""
    best: list[Row] = []
    for point in sorted(points, key=lambda row: (row[cost], -row["score"])):
        if not best or point["score"] > best[-1]["score"]:
            best.append(point)
    return best


def draw_fronts(
    config: Config, points: list[Row], stamp: str
) -> tuple[dict[str, alt.ConcatChart | alt.Chart], str]:
    """Score against each cost by file name, and in words which are not drawn and why.

    A figure has one panel a scope of the recipe that decides, with the front.
    """
    panels = {cost: _panels(config, points, cost, stamp) for cost in COSTS}
    drawn = {SHORT[cost]: grid(found, 2, (70, 95)) for cost, found in panels.items() if found}
    empty = [f"the {COSTS[cost][0]}" for cost, found in panels.items() if not found]
    return drawn, NO_FRONT.format(costs=joined(empty)) if empty else ""


def _panels(config: Config, points: list[Row], cost: str, stamp: str) -> list[Panel]:
    recipe = config["verdicts"]["recipe"]
    points = [row for row in points if row["scope"].recipe == recipe and row["score"] is not None]
    used = {row["group"] for row in points if row[cost] and row["trained"]}
    panels: list[Panel] = []
    for scope in dict.fromkeys(row["scope"] for row in points):
        here = [row for row in points if row["scope"] == scope]
        if any(row[cost] and row["trained"] for row in here):
            panels.append(_panel(here, cost, used, stamp))
    return panels


def _panel(points: list[Row], cost: str, used: set[str], stamp: str) -> Panel:
    what, unit, factor = COSTS[cost]
    shown = [row for row in points if row[cost] and row["trained"]]
    ends = _log_domain([row[cost] * factor for row in shown])
    edges = [end for row in shown for end in (row["interval"] or [row["score"]] * 2)]
    low, high = min(edges), max(edges)
    room = max(0.06 * (high - low), (10 - (high - low)) / 2)  # noise must not fill a panel
    scores = (low - room, high + room)
    marks = [_mark(row, cost, factor) for row in shown]
    _name(marks, ends, scores)
    x = alt.X("cost:Q", title=f"{what}, {unit}" if unit else what)
    x = x.scale(type="log", domain=list(ends), nice=False)
    x = x.axis(format="~s" if cost == "trainable" else ",~r", values=log_ticks(*ends))
    y = alt.Y("score:Q", title="score").scale(domain=list(scores), nice=False, zero=False)
    best = front([mark for mark in marks if mark["counts"]], "cost")
    line = [*best, best[-1] | {"cost": ends[1]}] if best else []
    untrained = [row["score"] for row in points if not row["trained"]]
    base = [{"score": score} for score in untrained if scores[0] < score < scores[1]]
    under = "".join(f"; untouched: {score:.1f}" for score in untrained)
    colour, form = group_look(used)
    named = [mark for mark in marks if mark["at_cost"] is not None]
    tooltip = ["method:N", "group:N", "text:N", "seeds:Q", alt.Tooltip("cost:Q", format=",.4~g")]
    chart = alt.Chart(data(marks)).encode(x=x)
    title = [f"{points[0]['scope'].model}, {points[0]['scope'].recipe}"]
    return layers(
        [*title, ", ".join(points[0]["scope"].tasks) + under], *SIZE, stamp,
        alt.Chart(data(base)).mark_rule(strokeDash=[1, 3], color=INK).encode(y=y),
        alt.Chart(data(line)).encode(x, y).mark_line(
            interpolate="step-after", color=MUTED, strokeWidth=1.5
        ),
        alt.Chart(data(named)).mark_rule(color=MUTED, strokeWidth=0.7, opacity=0.7).encode(
            x=x, y=y, x2="to_cost:Q", y2="to_score:Q"
        ),
        chart.mark_rule(opacity=0.55).encode(y=alt.Y("low:Q"), y2="high:Q", color=colour),
        *(
            alt.Chart(data([mark for mark in marks if mark["counts"] == counts]))
            .mark_point(filled=counts, size=75, opacity=1, cursor="pointer")
            .encode(x=x, y=y, color=colour, shape=form, href="href:N", tooltip=tooltip)
            for counts in (True, False)
        ),
        alt.Chart(data(best)).mark_point(size=190, shape="circle", color=INK, strokeWidth=1).encode(
            x=x, y=y
        ),
        *(
            alt.Chart(data([mark for mark in named if mark["counts"] == counts])).mark_text(
                fontSize=10, color=INK, opacity=1 if counts else 0.7
            ).encode(x=alt.X("at_cost:Q"), y=alt.Y("at_score:Q"), text="short:N")
            for counts in (True, False)
        ),
    )  # fmt: skip


def _mark(row: Row, cost: str, factor: float) -> Row:
    low, high = row["interval"] or (row["score"], row["score"])
    name = row["method"]
    return {
        "method": name,
        "short": name if len(name) <= LONGEST else name[: LONGEST - 1] + "…",
        "group": row["group"],
        "score": row["score"],
        "low": low,
        "high": high,
        "text": within(row["score"], row["interval"]),
        "seeds": row["n"],
        "cost": row[cost] * factor,
        "counts": row["whole"],
        "href": row["href"],
    }


def _log_domain(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max((high / low) ** 0.08, 1.05)
    return low / room, high * room


def _name(marks: list[Row], ends: tuple[float, float], scores: tuple[float, float]) -> None:
    """Give every mark the place of its name, those on the front first, in the panel's own units."""
    width, height = SIZE
    per_pixel = math.log(ends[1] / ends[0]) / width, (scores[1] - scores[0]) / height
    on_front = {mark["method"] for mark in front([m for m in marks if m["counts"]], "cost")}
    marks.sort(key=lambda mark: (mark["method"] not in on_front, -mark["score"]))
    across = [math.log(mark["cost"] / ends[0]) / per_pixel[0] for mark in marks]
    pixels = [
        (x, (scores[1] - mark["score"]) / per_pixel[1])
        for x, mark in zip(across, marks, strict=True)
    ]
    corners = [at for mark, at in zip(marks, pixels, strict=True) if mark["method"] in on_front]
    found = place(pixels, [mark["short"] for mark in marks], SIZE, _stairs(sorted(corners)))
    for mark, at in zip(marks, found, strict=True):
        mark["at_cost"] = mark["at_score"] = mark["to_cost"] = mark["to_score"] = None
        if at is not None:
            mark["at_cost"] = ends[0] * math.exp(at[0] * per_pixel[0])
            mark["at_score"] = scores[1] - at[1] * per_pixel[1]
            x, y = pixels[marks.index(mark)]
            edge = (
                _towards(x, at[0], LETTER / 2 * len(mark["short"])),
                _towards(y, at[1], LINE / 2),
            )
            mark["to_cost"] = ends[0] * math.exp(edge[0] * per_pixel[0])
            mark["to_score"] = scores[1] - edge[1] * per_pixel[1]


def _stairs(corners: list[Point]) -> list[Box]:
    """The line of a front in pixels, as boxes that are a pixel or two thick."""
    boxes: list[Box] = []
    ends = [*(x for x, _ in corners[1:]), SIZE[0]]
    for (x, y), end in zip(corners, ends, strict=True):
        boxes.append((x, y - 1, end, y + 1))
    for (_, y), (x, above) in itertools.pairwise(corners):
        boxes.append((x - 1, above, x + 1, y))
    return boxes


def _towards(start: float, middle: float, half: float) -> float:
    """The coordinate of a name's box that is next to a mark."""
    return min(max(start, middle - half), middle + half)


def methods_frame(points: list[Row], scope: Scope) -> pd.DataFrame:
    """Score, place and costs of every method of a scope as text, the best first."""
    here = [row for row in points if row["scope"] == scope]
    here.sort(key=lambda row: (row["place"] or math.inf, -(row["score"] or -math.inf)))
    return pd.DataFrame([_told(row) for row in here])


def _told(row: Row) -> dict[str, str]:
    share = None if not row["total"] else 100 * (row["trainable"] or 0) / row["total"]
    told = {
        "Place": NO_PLACE if row["place"] is None else str(row["place"]),
        "Method": row["method"],
        "Group": row["group"],
        "Score": "none" if row["score"] is None else within(row["score"], row["interval"]),
        "Seeds": str(row["n"]),
        "Trained share": "not known" if share is None else f"{share:.3g} %",
    }
    told |= {
        _heading(cost): _amount(row[cost], cost) if row["trained"] else NO_PLACE for cost in COSTS
    }
    fronts = ", ".join(SHORT[cost] for cost in row["fronts"])
    return told | {"On the front of": fronts or NO_PLACE, "Missing": row["missing"]}


def _heading(cost: str) -> str:
    what, unit, _ = COSTS[cost]
    return f"{what[0].upper()}{what[1:]}{f', {unit}' if unit else ''}"


def _amount(value: float | None, cost: str) -> str:
    if value is None:
        return "not known"
    if cost == "trainable":
        return f"{value:,.0f}"
    scaled = value * COSTS[cost][2]
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:.3g}"


def front_words(points: list[Row], scope: Scope) -> list[str]:
    """Which methods are on the front of each cost, in a line a cost."""
    here = [row for row in points if row["scope"] == scope]
    sentences = []
    for cost, (what, _, _) in COSTS.items():
        names: list[Any] = [row for row in here if cost in row["fronts"]]
        names.sort(key=lambda row: row[cost])
        if names:
            sentences.append(f"{what}: {joined([row['method'] for row in names])}")
    return sentences
