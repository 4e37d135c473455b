"""Sweeps as heat maps: the score at every combination of values, and how far it moves over them."""

import itertools
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from lorasp.claims import load_claims
from lorasp.config import Cell, Config, cells, pick
from lorasp.report.charts import INK, MUTED, Panel, Row, data, grid, layers
from lorasp.report.collect import DIVERGED, DONE, RUN, Results, summarise
from lorasp.sweeps import points

HEAT = "#009e73"
WIDTH, HEIGHT = 92, 40  # pixels of a cell
WORDS = {"learning_rate": "learning rate", "batch_size": "batch size"}
SWEEP_CAPTIONS = {
    "sweeps": "Each cell is one combination of values: the mean score over its seeds and, below, "
    "their standard deviation and the number of runs. The stronger the colour, the higher the "
    "score; maps of one model and task share the scale. A dashed border marks the combination "
    "that this configuration uses elsewhere, a plain border the one that the paper states, where "
    "it is among those that were run. A cell without a run, or with one that diverged, says so."
}


def without_sweeps(config: Config, results: Results) -> Results:
    """The results without the runs that a sweep alone asks for: they are no methods to compare."""
    if not config.get("sweeps"):
        return results
    own = config["experiments"][::-1]  # those of the sweeps were put last
    seeds = {sweep["name"]: sweep["seeds"] for sweep in config["sweeps"]}
    for point in points(config):
        cell = point["cell"]
        group = {f"{kind}s": [getattr(cell, kind)] for kind in RUN}
        group |= {"seeds": seeds[point["sweep"]]}
        if cell.seed == group["seeds"][0] and group in own:
            own.remove(group)
    kept = {_key(cell) for cell in cells(config | {"experiments": own[::-1]})}
    runs, scores, losses = (
        frame.loc[
            [key in kept for key in frame[[*RUN, "seed"]].itertuples(index=False, name=None)], :
        ]
        for frame in (results.runs, results.scores, results.losses)
    )
    return Results(
        runs, scores, summarise(runs, scores), losses, results.profiles, results.unplanned
    )


def _key(cell: Cell) -> tuple[Any, ...]:
    return (*(getattr(cell, name) for name in RUN), cell.seed)


def maps(config: Config, results: Results) -> list[Row]:
    """One map a sweep, model and task: {sweep, model, task, method, label, keys, cells}.

    A cell is {values, mean, sd, n, planned, diverged, undefined, paper, own}; `paper` and `own`
    mark the setting that the paper states and that of the configuration's method and recipe.
    """
    runs = results.runs.set_index([*RUN, "seed"]).to_dict("index")
    methods = {sweep["name"]: sweep for sweep in config.get("sweeps", [])}
    found = []
    grouped = itertools.groupby(points(config), lambda p: (p["sweep"], p["model"], p["task"]))
    for (name, model, task), here in grouped:
        sweep = methods[name]
        by_values: dict[tuple[Any, ...], list[Cell]] = {}
        for point in here:
            if _key(point["cell"]) not in runs:
                continue
            by_values.setdefault(tuple(point["values"].items()), []).append(point["cell"])
        if not by_values:  # the configuration has other experiments than its sweeps made
            continue
        found.append(
            {
                "sweep": name,
                "model": model,
                "task": task,
                "method": sweep["method"],
                "label": config["methods"][sweep["method"]]["label"],
                "recipe": sweep["recipe"],
                "keys": list(sweep["over"]),
                "cells": [
                    _cell(dict(values), [runs[_key(cell)] for cell in there])
                    | {
                        "own": (there[0].method, there[0].recipe)
                        == (sweep["method"], sweep["recipe"]),
                        "paper": _is_papers(config, sweep, there[0], dict(values)),
                    }
                    for values, there in by_values.items()
                ],
            }
        )
    return found


def _is_papers(config: Config, sweep: Row, cell: Cell, values: Row) -> bool:
    """Whether the values are what the paper states, or where it does not, the configuration's."""
    recipe = pick(
        config["recipes"][sweep["recipe"]], model=cell.model, task=cell.task, method=cell.method
    )
    own = recipe | config["methods"][sweep["method"]].get("settings", {})
    stated = load_claims()["paper"].get("stated", {})
    return all(value == stated.get(key, own.get(key)) for key, value in values.items())


def _cell(values: Row, runs: list[Row]) -> Row:
    done = [run["value"] for run in runs if run["status"] == DONE]
    scores = np.array([value for value in done if value is not None and not np.isnan(value)])
    return {
        "values": values,
        "mean": float(scores.mean()) if len(scores) else None,
        "sd": float(scores.std(ddof=1)) if len(scores) > 1 else None,
        "n": len(scores),
        "planned": len(runs),
        "diverged": sum(run["status"] == DIVERGED for run in runs),
        "undefined": len(done) - len(scores),
    }


def whole(cell: Row) -> bool:
    """Whether every planned run of a cell has a score."""
    return bool(cell["n"] == cell["planned"])


def _lines(cell: Row) -> tuple[str, str]:
    """What stands in a cell: its mean, and under it the spread, the runs and what went wrong."""
    bad = [f"{cell[name]} {name}" for name in ("diverged", "undefined") if cell[name]]
    if cell["mean"] is None:
        return (bad[0], "") if bad else ("not run", "")
    spread = "" if cell["sd"] is None or bad else f"± {cell['sd']:.1f} "
    runs = str(cell["n"]) if whole(cell) else f"{cell['n']} of {cell['planned']}"
    return f"{cell['mean']:.1f}", ", ".join([f"{spread}({runs})", *bad])


def draw_sweeps(found: list[Row], stamp: str) -> dict[str, alt.ConcatChart | alt.Chart]:
    """The maps as one figure, a panel for each, and for each value of a third key."""
    panels = []
    for entry in found:
        same = [m for m in found if (m["model"], m["task"]) == (entry["model"], entry["task"])]
        means = [c["mean"] for m in same for c in m["cells"] if c["mean"] is not None]
        ends = (min(means), max(means)) if means else (0.0, 1.0)
        rest = entry["keys"][2:]
        for chosen in dict.fromkeys(
            tuple(cell["values"][key] for key in rest) for cell in entry["cells"]
        ):
            inside = [
                cell
                for cell in entry["cells"]
                if tuple(cell["values"][key] for key in rest) == chosen
            ]
            more = [f"{_word(key)} {told(v)}" for key, v in zip(rest, chosen, strict=True)]
            panels.append(_panel(entry, inside, more, ends, stamp))
    return {"sweeps": grid(panels, 2, (90, 90))} if panels else {}


def _panel(
    entry: Row, inside: list[Row], more: list[str], ends: tuple[float, float], stamp: str
) -> Panel:
    down, across = (entry["keys"][0], entry["keys"][1] if len(entry["keys"]) > 1 else "")
    rows = [
        {
            "down": told(cell["values"][down]),
            "across": told(cell["values"][across]) if across else "",
            "mean": cell["mean"],
            "first": _lines(cell)[0],
            "second": _lines(cell)[1],
            "mark": "paper" if cell["paper"] else "own" if cell["own"] else "",
        }
        for cell in inside
    ]
    orders = [list(dict.fromkeys(row[key] for row in rows)) for key in ("down", "across")]
    y = alt.Y("down:N", title=_word(down)).scale(domain=orders[0])
    x = alt.X("across:N", title=_word(across) or None).scale(domain=orders[1])
    x = x.axis(labelAngle=0, ticks=False, domain=False)
    y = y.axis(ticks=False, domain=False)
    heat = alt.Opacity("mean:Q", legend=None).scale(domain=list(ends), range=[0.08, 0.65])

    def chart(kept: list[Row]) -> alt.Chart:
        return alt.Chart(data(kept)).encode(x=x, y=y)

    marks = [
        chart([row for row in rows if row["mark"] == mark]).mark_rect(
            fill=None, stroke=INK, strokeWidth=2, strokeDash=dash
        )
        for mark, dash in (("paper", [1, 0]), ("own", [4, 3]))
    ]
    place = ", ".join([entry["task"], entry["model"], *more])
    size = (WIDTH * len(orders[1]), HEIGHT * len(orders[0]))
    return layers(
        [f"{entry['label']}, {entry['recipe']}", place], *size, stamp,
        chart([row for row in rows if row["mean"] is not None]).mark_rect(color=HEAT).encode(
            opacity=heat
        ),
        chart(rows).mark_rect(fill=None, stroke=MUTED, strokeWidth=0.4),
        *marks,
        chart(rows).mark_text(dy=-6, fontSize=12, color=INK).encode(text="first:N"),
        chart(rows).mark_text(dy=9, fontSize=9, color=INK).encode(text="second:N"),
    )  # fmt: skip


def _word(key: str) -> str:
    return WORDS.get(key, key)


def told(value: Any) -> str:
    """A value as an axis has it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def sentences(found: list[Row]) -> list[str]:
    """How far the score moves over each map, and beside it over the same of LoRA where it is there.

    Only cells with all their runs count; those of both that have the same values are compared.
    """
    lines = []
    for entry in found:
        good = [cell for cell in entry["cells"] if whole(cell)]
        lacking = len(entry["cells"]) - len(good)
        where = f"{entry['label']} on {entry['task']} ({entry['model']}, {entry['recipe']})"
        if len(good) < 2:
            lines.append(
                f"{where}: {len(good)} of {len(entry['cells'])} combinations have all their "
                "runs, so how robust it is cannot be told."
            )
            continue
        low, high = (end(good, key=lambda cell: cell["mean"]) for end in (min, max))
        line = (
            f"{where}: mean scores go from {low['mean']:.1f} ({_values(low)}) to "
            f"{high['mean']:.1f} ({_values(high)}), a range of {high['mean'] - low['mean']:.1f} "
            f"points over {len(good)} combinations"
        )
        spreads = [cell["sd"] for cell in good if cell["sd"] is not None]
        if spreads:
            runs = sorted({cell["n"] for cell in good})
            counts = str(runs[0]) if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
            line += (
                f"; part of it is chance, for runs of one combination that differ in their seed "
                f"alone have a standard deviation of {np.mean(spreads):.1f} on average ({counts} "
                "runs each)"
            )
        else:
            line += "; with one run each, it cannot be told how much of it is chance"
        if lacking:
            verbs = ("lacks", "has") if lacking == 1 else ("lack", "have")
            line += "; {} more {} runs or {} failed ones".format(lacking, *verbs)
        line += "."
        lines.append(line + _beside_lora(entry, found))
    return lines


def _beside_lora(entry: Row, found: list[Row]) -> str:
    if entry["method"] == "lora":
        return ""
    for other in found:
        if other["method"] != "lora" or any(other[k] != entry[k] for k in ("model", "task")):
            continue
        keys = entry["keys"]
        if set(keys) != set(other["keys"]):
            continue
        mine, others = ([cell for cell in m["cells"] if whole(cell)] for m in (entry, other))
        shared = {_at(c, keys) for c in mine} & {_at(c, keys) for c in others}
        if len(shared) > 1:
            ranges = [
                np.ptp([cell["mean"] for cell in cells if _at(cell, keys) in shared])
                for cells in (mine, others)
            ]
            more = "more" if ranges[0] > ranges[1] else "no more"
            return (
                f" Over the {len(shared)} combinations that both were "
                f"run with, it moves by {ranges[0]:.1f} points and {other['label']} by "
                f"{ranges[1]:.1f}: {more} than {other['label']}."
            )
    return ""


def _at(cell: Row, keys: list[str]) -> tuple[Any, ...]:
    return tuple(cell["values"][key] for key in keys)


def _values(cell: Row) -> str:
    return ", ".join(f"{_word(key)} {told(value)}" for key, value in cell["values"].items())


def sweeps_frame(found: list[Row]) -> pd.DataFrame:
    """Every cell of every map as text."""
    return pd.DataFrame(
        [
            {
                "Model": entry["model"],
                "Method": entry["label"],
                "Task": entry["task"],
                "Recipe": entry["recipe"],
                "Values": _values(cell),
                "Score": _lines(cell)[0],
                "Spread (runs)": _lines(cell)[1],
                "Setting": "the paper's"
                if cell["paper"]
                else "the configuration's own"
                if cell["own"]
                else "",
            }
            for entry in found
            for cell in entry["cells"]
        ]
    )
