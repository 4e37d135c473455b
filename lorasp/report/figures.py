"""The report's figures: seeds, the paper's Figure 2 redone, costs, losses; all captions."""

from typing import Any

import altair as alt
import pandas as pd

from lorasp.claims.statistics import interval
from lorasp.config import Config
from lorasp.report.charts import (
    COLOURS,
    INK,
    Panel,
    Row,
    colour,
    data,
    grid,
    layers,
    log_ticks,
    score_scale,
    shape,
)
from lorasp.report.collect import DONE, RUN, Results
from lorasp.report.costs import COSTS, lora_profile
from lorasp.report.tables import UNTRAINED, Table

Figure = alt.ConcatChart | alt.Chart
CAPTIONS = {
    "seeds": "Every seed a dot; the upright stroke is their mean, the bar its 90 % interval "
    "(Student's t).",
    "figure2": "Figure 2 of the paper, redone: every method across the tasks. Filled marks are "
    "the mean of our seeds with one standard deviation (a single seed: with the standard "
    "error of its evaluation); hollow marks are the paper's numbers, drawn only where model and "
    "task are the paper's own. Of many methods it has those of the paper alone.",
    "profile": "Measured cost of a training step, of the states that the adapter needs (weights, "
    "gradients, AdamW moments, masks) and of its saved file, as ratios to LoRA on the same model.",
    "loss": "Training loss, the mean over the seeds; the band spans all of them. Many methods are "
    "spread over several panels.",
}


def draw_all(
    config: Config, results: Results, tables: list[Table], stamp: str
) -> dict[str, Figure]:
    """Every figure by its file name; `stamp` is written across each panel (empty: nothing is)."""
    return {
        "seeds": seeds(config, results, stamp),
        "figure2": figure2(config, results, tables, stamp),
        "profile": costs(config, results, stamp),
        "loss": loss_curves(config, results, stamp),
    }


def seeds(config: Config, results: Results, stamp: str) -> Figure:
    """Every seed's score, with mean and interval, one panel a (model, task, recipe)."""
    runs = results.runs[results.runs["status"] == DONE]
    runs = runs.astype({"value": float}) if len(runs) else runs
    labels = [entry["label"] for entry in config["methods"].values()]
    used = set(runs["method"])
    panels = []
    trained = runs[runs["recipe"] != UNTRAINED]
    for (model, task, recipe), group in trained.groupby(["model", "task", "recipe"], sort=False):
        base = runs[
            (runs["model"] == model) & (runs["task"] == task) & (runs["recipe"] == UNTRAINED)
        ]
        shown = pd.concat([base, group]).dropna(subset=["value"])
        if shown.empty:
            continue
        dots, means = [], []
        for method, scores in shown.groupby("method", sort=False):
            label = {
                "method": config["methods"][method]["label"],
                "href": f"#{scores['anchor'].iloc[0]}",
            }
            dots += [label | {"score": row.value, "seed": row.seed} for row in scores.itertuples()]
            means.append(label | _interval(scores["value"]))
        order = [label for label in labels if label in {row["method"] for row in means}]
        y = alt.Y("method:N", title=None, sort=order).axis(grid=False, ticks=False, domain=False)
        edges = [row[key] for row in means for key in ("low", "high")] + [r["score"] for r in dots]
        x = alt.X("score:Q", title=None).scale(score_scale(edges)).axis(tickCount=5)
        hue = colour(config, used).legend(None)
        bars, points = alt.Chart(data(means)).encode(y=y), alt.Chart(data(dots)).encode(y=y)
        panels.append(
            layers(
                [f"{task}, {recipe}", str(model)], 270, 20 * len(order) + 8, stamp,
                bars.mark_rule(strokeWidth=5, opacity=0.3).encode(
                    x=alt.X("low:Q"), x2="high:Q", color=hue
                ),
                bars.mark_tick(thickness=2, size=15, color=INK).encode(
                    x=x,
                    tooltip=[
                        "method:N", alt.Tooltip("score:Q", title="mean", format=".2f"),
                        alt.Tooltip("low:Q", format=".2f"), alt.Tooltip("high:Q", format=".2f"),
                    ],
                ),
                points.mark_circle(size=45, opacity=0.85, cursor="pointer").encode(
                    x=x, color=hue, href="href:N",
                    tooltip=["method:N", "seed:N", alt.Tooltip("score:Q", format=".2f")],
                ),
            )
        )  # fmt: skip
    return grid(panels, 3, (120, 70))


def _interval(values: pd.Series) -> Row:
    """Mean and the interval that the tests use; of one seed, or of equal ones, only the mean."""
    mean = float(values.mean())
    low, high = interval(values.to_numpy()) or (mean, mean)
    return {"score": mean, "low": low, "high": high}


def figure2(config: Config, results: Results, tables: list[Table], stamp: str) -> Figure:
    """The paper's Figure 2 again: every method across the tasks, one panel a (model, recipe).

    Filled: mean of ours with one standard deviation over the seeds; a single seed has the standard
    error of its evaluation. Hollow: the paper's number, only where model and task are the paper's.
    """
    recipes = [name for name in config["recipes"] if name in set(results.runs["recipe"])]
    drawn = [
        (f"{group['model']}, {recipe}", rows, names)
        for table in tables
        for group in table["groups"]
        for recipe in recipes
        for names in [_few(config, [method["name"] for method in group["methods"]])]
        for rows in [_marks(config, results, table, group, recipe, names)]
        if any(row["recipe"] == recipe for row in rows)
    ]
    used = {name for _, _, methods in drawn for name in methods}
    panels = []
    for title, rows, methods in drawn:
        labels = [config["methods"][name]["label"] for name in methods]
        headings = list(dict.fromkeys(row["task"] for row in rows if row["recipe"] != UNTRAINED))
        rows = [row for row in rows if row["task"] in headings]
        width = max(300, 15 * len(labels) * len(headings))
        edges = [row[key] for row in rows for key in ("low", "high")]
        x = alt.X("task:N", title=None, sort=headings).axis(labelAngle=0).scale(paddingInner=0.25)
        y = alt.Y("score:Q", title="score").scale(score_scale(edges))
        offset = alt.XOffset("method:N", sort=labels).scale(domain=labels)
        ours = alt.Chart(data([row for row in rows if row["recipe"]])).encode(x=x, xOffset=offset)
        paper = alt.Chart(data([row for row in rows if not row["recipe"]]))
        look: dict[str, Any] = {"color": colour(config, used), "shape": shape(config, used)}
        tooltip = ["method:N", "task:N", "source:N", "text:N"]
        panels.append(
            layers(
                title, width, 180, stamp,
                ours.mark_rule().encode(y=alt.Y("low:Q"), y2="high:Q", color=look["color"]),
                ours.mark_point(filled=True, size=60, opacity=1, cursor="pointer").encode(
                    y=y, **look, href="href:N", tooltip=tooltip
                ),
                paper.mark_point(filled=False, size=130, opacity=1).encode(
                    x=x, xOffset=offset, y=y, **look, tooltip=tooltip
                ),
            )
        )  # fmt: skip
    return grid(panels, 1 if any(len(table["columns"]) > 4 for table in tables) else 2, (70, 70))


def _few(config: Config, names: list[str]) -> list[str]:
    """The methods, or only those of the paper where there are more than colours."""
    if len(names) <= len(COLOURS):
        return names
    return [name for name in names if config["methods"][name].get("group", "paper") == "paper"]


def _marks(
    config: Config, results: Results, table: Table, group: Row, recipe: str, names: list[str]
) -> list[Row]:
    """The records of one panel: ours of this recipe, the untouched base model's, the paper's."""
    marks = []
    for method in (entry for entry in group["methods"] if entry["name"] in names):
        for row in method["rows"]:
            papers = row["kind"] == "paper" and group["papers"]
            if row["recipe"] not in (recipe, UNTRAINED) and not papers:
                continue
            for column, cell in zip(table["columns"], row["cells"], strict=True):
                if cell["mean"] is None or (papers and not column["papers"]):
                    continue
                key = (group["model"], column["task"], method["name"], row["recipe"])
                error = 0.0 if papers else _error(results, key, column["metric"])
                marks.append(
                    {
                        "task": column["heading"],
                        "method": config["methods"][method["name"]]["label"],
                        "source": row["source"],
                        "recipe": row["recipe"],
                        "text": cell["text"],
                        "score": cell["mean"],
                        "low": cell["mean"] - error,
                        "high": cell["mean"] + error,
                        "href": f"#{cell['anchor']}" if cell["anchor"] else None,
                    }
                )
    return marks


def _error(results: Results, key: tuple[str, ...], metric: str) -> float:
    table = results.summary
    row = table[(table[RUN] == list(key)).all(axis=1) & (table["metric"] == metric)].iloc[0]
    error = row["sd"] if row["done"] > 1 else row["stderr"]
    return 0.0 if pd.isna(error) else float(error)


def costs(config: Config, results: Results, stamp: str) -> Figure:
    """Measured costs as ratios to LoRA on the same model: below 1 is cheaper."""
    done = results.profiles[results.profiles["status"] == DONE]
    used = set(done["method"])
    hue, form = colour(config, used).legend(None), shape(config, used).legend(None)
    panels: list[Panel] = []
    for name in ("step", "peak_memory", "adapter_states", "adapter_bytes"):
        rows = [
            {
                "method": (label := config["methods"][profile["method"]]["label"]),
                "row": f"{profile['model']}: {label}",
                # full fine-tuning has no adapter at all: a mark at zero would flatter it
                "ratio": float(profile[name] / peer[name])
                if profile[name] and peer[name]
                else None,
            }
            for _, profile in done.iterrows()
            if profile["method"] != "lora"
            and (peer := lora_profile(results, profile["model"])) is not None
        ]
        if not rows:
            break
        ratios = [row["ratio"] for row in rows if row["ratio"]] + [1.0]
        wide = max(ratios) > 8
        edges = [min(ratios) * 0.85, max(ratios) * (3 if wide else 1.3)]
        scale = alt.Scale(type="log" if wide else "linear", nice=False, domain=edges)
        labels = alt.Axis(labels=not panels, ticks=False, domain=False, grid=True)
        y = alt.Y("row:N", title=None, sort=[row["row"] for row in rows]).axis(labels)
        x = alt.X("ratio:Q", title="ratio to LoRA").scale(scale)
        x = x.axis(values=log_ticks(*edges)) if wide else x.axis(tickCount=4)
        marks = alt.Chart(data(rows)).encode(x=x, y=y)
        panels.append(
            layers(
                COSTS[name][0], 150, 20 * len(rows), stamp,
                alt.Chart(data([{"ratio": 1}])).mark_rule(color=INK).encode(x=x),
                marks.mark_point(filled=True, size=70, opacity=1).encode(
                    color=hue, shape=form,
                    tooltip=["row:N", alt.Tooltip("ratio:Q", format=".3f")],
                ),
                marks.mark_text(align="left", dx=8, fontSize=10, color=INK).encode(
                    text=alt.Text("ratio:Q", format=".2f")
                ),
            )
        )  # fmt: skip
    return grid(panels, 4, (40, 70))


def loss_curves(config: Config, results: Results, stamp: str) -> Figure:
    """Training loss by step, one line a method, one panel a (model, task, recipe), or several."""
    used = set(results.losses["method"])
    every = [name for name in config["methods"] if name in used]
    few = len(every) <= len(COLOURS)
    panels: list[Panel] = []
    for (model, task, recipe), losses in results.losses.groupby(
        ["model", "task", "recipe"], sort=False
    ):
        names = [name for name in every if name in set(losses["method"])]
        title = [f"{task}, {recipe}", str(model)]
        for first in range(0, len(names), len(COLOURS)):
            shown = names[first : first + len(COLOURS)]
            labels = [config["methods"][name]["label"] for name in shown]
            own = alt.Scale(domain=labels, range=COLOURS[: len(labels)])
            hue = alt.Color("method:N", scale=own).legend(columns=2, symbolSize=40)
            hue = colour(config, used) if few else hue
            part = losses[losses["method"].isin(shown)]
            panels.append(_losses(config, part, hue, title, stamp))
    return grid(panels, 3, (70, 90 if few else 165), "shared" if few else "independent")


def _losses(
    config: Config, losses: pd.DataFrame, hue: alt.Color, title: list[str], stamp: str
) -> Panel:
    lines = losses.groupby(["method", "step"], sort=False)["loss"]
    points = lines.agg(["mean", "min", "max"]).reset_index()
    rows = [
        {
            "method": config["methods"][method]["label"],
            **line.drop(columns="method").iloc[k].to_dict(),
        }
        for method, line in points.groupby("method", sort=False)
        for k in range(0, len(line), -(-len(line) // 100))  # a hundred points draw a line
    ]
    chart = alt.Chart(data(rows)).encode(
        x=alt.X("step:Q", title="step").axis(tickCount=4),
        color=hue,
    )
    name = "training loss"
    return layers(
        title, 300, 140, stamp,
        chart.mark_area(opacity=0.15).encode(
            y=alt.Y("min:Q", title=name).scale(zero=False), y2="max:Q"
        ),
        chart.mark_line(strokeWidth=1.3).encode(
            y=alt.Y("mean:Q", title=name).scale(zero=False),
            tooltip=["method:N", "step:Q", alt.Tooltip("mean:Q", format=".3f")],
        ),
    )  # fmt: skip
