"""Scores against what they cost, with the Pareto front: parameters, and measured memory."""

import altair as alt
import pandas as pd

from lorasp.config import Config
from lorasp.report.charts import (
    INK,
    MUTED,
    Row,
    colour,
    data,
    grid,
    layers,
    log_ticks,
    score_scale,
    shape,
)
from lorasp.report.collect import DONE, Results, anchor
from lorasp.report.tables import UNTRAINED, Table


def pareto_points(config: Config, results: Results, tables: list[Table]) -> list[Row]:
    """One record a (table, model, recipe, method): its mean score over the tasks, and its costs.

    The mean is over those tasks of the table that the model was run on, seed by seed; a method
    must have all of them, and a seed is left out where one of its tasks is missing or undefined.
    """
    done = results.runs[results.runs["status"] == DONE]
    rows = []
    for table in tables:
        tasks = list(dict.fromkeys(column["task"] for column in table["columns"]))
        inside = done[done["task"].isin(tasks)]
        for (model, recipe), runs in inside.groupby(["model", "recipe"], sort=False):
            if recipe == UNTRAINED:
                continue
            base = inside[(inside["model"] == model) & (inside["recipe"] == UNTRAINED)]
            wanted = [task for task in tasks if task in set(runs["task"])]
            for method, group in pd.concat([runs, base]).groupby("method", sort=False):
                group = group[group["task"].isin(wanted)]
                each = group.astype({"value": float}).pivot(
                    index="seed", columns="task", values="value"
                )
                if set(each.columns) != set(wanted) or each.dropna().empty:
                    continue
                means = each.dropna().mean(axis=1)
                task, own = wanted[0], UNTRAINED if method in set(base["method"]) else str(recipe)
                rows.append(
                    {
                        "panel": [f"{model}, {recipe}", ", ".join(wanted)],
                        "name": method,
                        "method": config["methods"][method]["label"],
                        "score": means.mean(),
                        "low": means.mean() - (means.std(ddof=1) if len(means) > 1 else 0),
                        "high": means.mean() + (means.std(ddof=1) if len(means) > 1 else 0),
                        "n": len(means),
                        "trainable": float(group["trainable"].mean()),
                        "memory": _memory(results, str(model), str(method)),
                        "href": "#" + anchor("runs", model, task, method, own),
                    }
                )
    return rows


def _memory(results: Results, model: str, method: str) -> float | None:
    profiles = results.profiles
    rows = profiles[
        (profiles["model"] == model) & (profiles["method"] == method) & (profiles["status"] == DONE)
    ]
    return None if rows.empty else float(rows["peak_memory"].iloc[0]) / 2**20


def front(points: list[Row], cost: str) -> list[Row]:
    """The points that no other beats in cost and in score, by rising cost."""
    best: list[Row] = []
    for point in sorted(points, key=lambda row: (row[cost], -row["score"])):
        if not best or point["score"] > best[-1]["score"]:
            best.append(point)
    return best


def pareto(
    config: Config, points: list[Row], cost: str, title: str, stamp: str
) -> alt.ConcatChart | alt.Chart:
    """Score against a cost, one panel a (model, recipe), with the front of the best."""
    panels = []
    used = {row["name"] for row in points if row[cost]}
    for name in dict.fromkeys(tuple(row["panel"]) for row in points):
        rows = [row for row in points if tuple(row["panel"]) == name and row[cost]]
        base = [row for row in points if tuple(row["panel"]) == name and not row[cost]]
        if not rows:
            continue
        low, high = min(row[cost] for row in rows), max(row[cost] for row in rows)
        room = max((high / low) ** 0.06, 1.03)
        low, high = low / room, high * room
        x = alt.X(f"{cost}:Q", title=title).scale(type="log", domain=[low, high], nice=False)
        x = x.axis(format="~s" if cost == "trainable" else ",.0f", values=log_ticks(low, high))
        shown = [row[key] for row in (*rows, *base) for key in ("low", "high")]
        y = alt.Y("score:Q", title="score").scale(score_scale(shown))
        best = front(rows, cost)
        steps = alt.Chart(data([*best, best[-1] | {cost: high}])).encode(x, y)
        marks = alt.Chart(data(rows)).encode(x=x)
        panels.append(
            layers(
                list(name), 440, 210, stamp,
                alt.Chart(data(base)).mark_rule(strokeDash=[1, 3], color=INK).encode(y=y),
                steps.mark_line(interpolate="step-after", color=MUTED, strokeWidth=1.5),
                marks.mark_rule().encode(
                    y=alt.Y("low:Q"), y2="high:Q", color=colour(config, used)
                ),
                marks.mark_point(filled=True, size=90, opacity=1, cursor="pointer").encode(
                    y=y, color=colour(config, used), shape=shape(config, used), href="href:N",
                    tooltip=[
                        alt.Tooltip("method:N"), alt.Tooltip("score:Q", format=".1f"),
                        alt.Tooltip("n:Q", title="seeds"),
                        alt.Tooltip(f"{cost}:Q", title=title, format=",.0f"),
                    ],
                ),
            )
        )  # fmt: skip
    return grid(panels, 2, (70, 90))
