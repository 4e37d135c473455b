"""The ranking as figures: interquartile means, and the probability of improvement of every pair."""

from typing import Any

import altair as alt

from lorasp.config import Config
from lorasp.report.charts import INK, MUTED, Panel, Row, data, grid, group_look, layers
from lorasp.report.measures import Estimate
from lorasp.report.scopes import REFERENCES

Figure = alt.ConcatChart | alt.Chart
CELL, MOST = 27, 32  # pixels of a cell of the matrix, and methods in it
WINS, LOSES = "#0072b2", "#d55e00"
RANKING_CAPTIONS = {
    "ranking": "The methods in the order of the ranking, with the probability that a run of each "
    "scores higher than one of LoRA, or of full fine-tuning (FT), and over several tasks with the "
    "interquartile mean of the normalised scores. The upright line is an even chance. Bars are "
    "95 % bootstrap intervals, which are too narrow with few seeds and so show no difference; a "
    "mark without a bar has too few runs for one, or hides it.",
    "improvement": "Probability, in percent, that a run of the method on the left scores higher "
    "than a run of the method above, averaged over the pairs of model and task that both have "
    "runs of. Blue: the one on the left is more often higher; orange: the one above. Off the "
    "diagonal, a cell without a number has no runs in common. No difference is marked as shown: "
    "bootstrap intervals are too narrow with few seeds, and the pairs are many. All pairs are in "
    "tables/improvement.csv.",
}
UNDRAWN = "No figure: with the recipe that decides, no two methods {} on the same model and task."


def draw_ranking(
    config: Config,
    rankings: list[Row],
    found: dict[tuple[str, str], Estimate],
    stamp: str,
) -> dict[str, Figure]:
    """Both figures by their file names, for the recipe that decides; one without marks is none."""
    mine = [ranking for ranking in rankings if ranking["decides"]]
    over_all = [ranking for ranking in mine if ranking["over_all"]]
    panels = [panel for ranking in (over_all or mine)[:2] for panel in _row(config, ranking, stamp)]
    matrix = [_matrix(config, (over_all or mine)[:1], found, stamp)] if found else []
    drawn = {"ranking": (panels, 3, (40, 90)), "improvement": (matrix, 1, (40, 70))}
    return {name: grid(*parts) for name, parts in drawn.items() if parts[0]}


def undrawn(rankings: list[Row]) -> str:
    """Why there is neither figure."""
    planned = any(ranking["decides"] and len(ranking["rows"]) > 1 for ranking in rankings)
    return UNDRAWN.format("have runs yet" if planned else "are planned")


def _row(config: Config, ranking: Row, stamp: str) -> list[Panel]:
    """The interquartile means of a ranking and its chances against the references, side by side."""
    rows = ranking["rows"]
    used = {row["group"] for row in rows}
    kinds = [("interquartile mean", [(row, row.get("iqm")) for row in rows])]
    for name in REFERENCES:
        label = config["methods"][name]["label"]
        kinds.append((f"P(X > {label})", [(row, row["against"].get(name)) for row in rows]))
    panels: list[Panel] = []
    for title, estimates in kinds:
        if any(estimate is not None for _, estimate in estimates):
            panels.append(_intervals(title, estimates, used, not panels, stamp))
    return panels


def _intervals(
    title: str,
    estimates: list[tuple[Row, Estimate | None]],
    used: set[str],
    first: bool,
    stamp: str,
) -> Panel:
    order = [row["label"] for row, _ in estimates]
    marks = [
        {
            "method": row["label"],
            "group": row["group"],
            "estimate": estimate["estimate"],
            "low": (estimate["interval"] or [estimate["estimate"]] * 2)[0],
            "high": (estimate["interval"] or [estimate["estimate"]] * 2)[1],
        }
        for row, estimate in estimates
        if estimate is not None
    ]
    y = alt.Y("method:N", title=None).scale(domain=order)
    y = y.axis(labels=first, ticks=False, domain=False, grid=True, labelPadding=8)
    x = alt.X("estimate:Q", title=title).axis(tickCount=5, format="~r")
    chance = title.startswith("P(")
    x = x.scale(domain=[0, 1]) if chance else x.scale(zero=False)
    colour, form = group_look(used)
    chart = alt.Chart(data(marks)).encode(y=y)
    numbers = [alt.Tooltip(f"{key}:Q", format=".2f") for key in ("estimate", "low", "high")]
    even = alt.Chart(data([{"estimate": 0.5}])).mark_rule(color=MUTED).encode(x=x)
    return layers(
        title, 240, 18 * len(order), stamp,
        *([even] if chance else []),
        chart.mark_rule(strokeWidth=3, opacity=0.5).encode(
            x=alt.X("low:Q"), x2="high:Q", color=colour
        ),
        chart.mark_point(filled=True, size=60, opacity=1).encode(
            x=x, color=colour, shape=form, tooltip=["method:N", "group:N", *numbers]
        ),
    )  # fmt: skip


def _matrix(
    config: Config, rankings: list[Row], found: dict[tuple[str, str], Estimate], stamp: str
) -> Panel:
    """Every pair as a cell; rows and columns in the order of the ranking, then the others."""
    ranked = [row["method"] for ranking in rankings for row in ranking["rows"]]
    every = list(dict.fromkeys([*ranked, *(x for x, _ in found)]))
    names = every[:MOST]
    more = f"; the first {MOST} of {len(every)} methods" if len(every) > MOST else ""
    labels = [config["methods"][name]["label"] for name in names]
    cells: list[dict[str, Any]] = [
        {
            "X": config["methods"][x]["label"],
            "Y": config["methods"][y]["label"],
            "percent": 100 * estimate["estimate"],
            "winner": "row" if estimate["estimate"] >= 0.5 else "column",
            "lead": abs(estimate["estimate"] - 0.5),
            "interval": "one run"
            if estimate["interval"] is None
            else "{:.0f} to {:.0f} %".format(*(100 * end for end in estimate["interval"])),
            "tasks": estimate["tasks"],
        }
        for (x, y), estimate in found.items()
        if x in names and y in names
    ]
    rows = alt.Y("X:N", title=None).scale(domain=labels).axis(ticks=False, domain=False)
    columns = alt.X("Y:N", title=None).scale(domain=labels)
    columns = columns.axis(orient="top", labelAngle=-50, ticks=False, domain=False)
    size = CELL * len(names)
    chart = alt.Chart(data(cells)).encode(x=columns, y=rows)
    tooltip = ["X:N", "Y:N", alt.Tooltip("percent:Q", format=".1f"), "interval:N", "tasks:Q"]
    return layers(
        f"P(row > column), %{more}", size, round(0.75 * size), stamp,
        chart.mark_rect(stroke=MUTED, strokeWidth=0.2).encode(
            color=alt.Color("winner:N", legend=None).scale(
                domain=["row", "column"], range=[WINS, LOSES]
            ),
            opacity=alt.Opacity("lead:Q", legend=None).scale(domain=[0, 0.5], range=[0, 0.6]),
            tooltip=tooltip,
        ),
        chart.mark_text(fontSize=9.5, color=INK).encode(
            text=alt.Text("percent:Q", format=".0f"), tooltip=tooltip
        ),
    )  # fmt: skip
