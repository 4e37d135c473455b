"""The report's figures with matplotlib: the same results give the same bytes, light or dark."""

import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from lorasp.config import Config
from lorasp.report.collect import DONE, RUN, Results
from lorasp.report.tables import COSTS, UNTRAINED, Table, lora_profile
from lorasp.results import atomic

Key = tuple[str, str, str, str]  # model, task, method, recipe
INK = "#1f2328"  # replaced by currentColor in SVG, so that a page's own colour scheme decides
MUTED = "#7d8590"
# Okabe and Ito's palette: the colour-blind tell it apart, on white as on black; and a shape each.
COLOURS = ("#7d8590", "#009e73", "#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#cc79a7")
MARKERS = ("x", "s", "o", "v", "D", "P", "^")
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lorasp",
    "text.parse_math": False,  # a name with $ in it is a name
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw_all(
    config: Config, results: Results, tables: list[Table], stamp: str
) -> dict[str, Figure]:
    """Every figure by its file name; `stamp` is written across each one (empty: nothing is)."""
    with matplotlib.rc_context(STYLE):
        figures = {
            "figure2": figure2(config, results, tables),
            "parameters": score_against_parameters(config, results, tables),
            "profile": costs(config, results),
            "loss": loss_curves(config, results),
        }
        for figure in figures.values():
            if stamp:
                figure.text(
                    0.5, 0.5, stamp, rotation=18, ha="center", va="center",
                    fontsize=26, color=MUTED, alpha=0.35, zorder=9,
                )  # fmt: skip
    return figures


def save(figure: Figure, folder: Path, name: str) -> str:
    """Write folder/name.svg and .png; return the SVG element, to stand inside a page."""
    with matplotlib.rc_context(STYLE):
        with atomic(folder / f"{name}.svg") as temporary:
            figure.savefig(temporary, format="svg", transparent=True, metadata={"Date": None})
            svg = temporary.read_text().replace(INK, "currentColor")
            # several drawings share one page, so each keeps its ids to itself
            svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
            temporary.write_text(svg)
        figure.set_layout_engine("none")  # keep the layout just computed: it is the dear part
        with atomic(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    return svg[svg.index("<svg") :]


def look(config: Config, method: str) -> dict[str, Any]:
    """A method's colour and marker, the same in every figure of a configuration."""
    index = list(config["methods"]).index(method)
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _grid(
    panels: int, columns: int, height: float, width: float = 9.5
) -> tuple[Figure, list[Axes]]:
    """`panels` axes in rows of `columns`; with none, a figure that says 'not run'."""
    if not panels:
        figure = Figure(figsize=(width, 1))
        figure.text(0.5, 0.5, "not run", ha="center", va="center", color=MUTED)
        return figure, []
    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width, height * rows))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[panels:]:
        unused.remove()
    return figure, axes[:panels]


def _legend(config: Config, figure: Figure, methods: list[str], *more: Line2D) -> None:
    handles = [
        Line2D([], [], linestyle="", label=config["methods"][name]["label"], **look(config, name))
        for name in methods
    ]
    figure.legend(handles=[*handles, *more], loc="outside upper center", ncols=8, fontsize=9)


def _used(config: Config, results: Results) -> list[str]:
    used = set(results.runs.loc[results.runs["status"] == DONE, "method"])
    return [name for name in config["methods"] if name in used]


def figure2(config: Config, results: Results, tables: list[Table]) -> Figure:
    """The paper's Figure 2 again: every method across the tasks, one row of panels a model.

    Filled: mean of ours with one standard deviation over the seeds; a single seed has the standard
    error of its evaluation. Hollow: the paper's number, only where model and task are the paper's.
    """
    recipes = [name for name in config["recipes"] if name in set(results.runs["recipe"])]
    panels = [
        (table, group, recipe)
        for table in tables
        for group in table["groups"]
        for recipe in recipes
        if any(
            row["recipe"] == recipe and _has_score(row)
            for m in group["methods"]
            for row in m["rows"]
        )
    ]
    figure, axes = _grid(len(panels), 1 if _wide(tables) else 2, 2.5)
    for axis, (table, group, recipe) in zip(axes, panels, strict=True):
        kept = [
            index
            for index in range(len(table["columns"]))
            if any(
                row["recipe"] == recipe and row["cells"][index]["mean"] is not None
                for method in group["methods"]
                for row in method["rows"]
            )
        ]
        columns, places = [table["columns"][index] for index in kept], np.arange(len(kept))
        methods = [method["name"] for method in group["methods"]]
        for index, method in enumerate(methods):
            shift = (index - (len(methods) - 1) / 2) * 0.7 / len(methods)
            trained = config["methods"][method]["family"] != "base"
            key = recipe if trained else UNTRAINED
            points = [
                _mean_error(
                    results, (group["model"], column["task"], method, key), column["metric"]
                )
                for column in columns
            ]
            mean, error = np.array(points).T
            axis.errorbar(
                places + shift, mean, yerr=np.nan_to_num(error), linestyle="", markersize=5,
                elinewidth=1, **look(config, method),
            )  # fmt: skip
            if group["papers"]:
                rows = group["methods"][index]["rows"]
                for paper in (row for row in rows if row["recipe"] is None):
                    printed = [
                        paper["cells"][index]["mean"] if column["papers"] else None
                        for index, column in zip(kept, columns, strict=True)
                    ]
                    axis.plot(places + shift, np.array(printed, dtype=float), linestyle="",
                              markersize=9, fillstyle="none", **look(config, method))  # fmt: skip
        axis.set_xticks(places, [column["heading"] for column in columns])
        least_span(axis)
        axis.set_xlim(-0.6, len(places) - 0.4)
        axis.grid(axis="x", visible=False)
        axis.set_title(f"{group['model']}, {recipe}")
        axis.set_ylabel("score")
    if panels:
        hollow = Line2D(
            [], [], linestyle="", marker="o", fillstyle="none", color=MUTED, label="paper"
        )
        own = any(group["papers"] for _, group, _ in panels)
        _legend(config, figure, _used(config, results), *([hollow] if own else []))
    return figure


def _has_score(row: dict[str, Any]) -> bool:
    return any(cell["mean"] is not None for cell in row["cells"])


def _wide(tables: list[Table]) -> bool:
    return any(len(table["columns"]) > 4 for table in tables)


def _mean_error(results: Results, key: Key, metric: str) -> tuple[float, float]:
    table = results.summary
    rows = table[(table[RUN] == list(key)).all(axis=1) & (table["metric"] == metric)]
    if rows.empty:
        return np.nan, np.nan
    row = rows.iloc[0]
    return row["mean"], row["sd"] if row["done"] > 1 else row["stderr"]


def score_against_parameters(config: Config, results: Results, tables: list[Table]) -> Figure:
    """Score against trainable parameters: one panel a model and recipe, one line a task."""
    done = results.runs[results.runs["status"] == DONE]
    trained = done[done["recipe"] != UNTRAINED]
    panels = list(trained.groupby(["model", "recipe"], sort=False)) if len(trained) else []
    figure, axes = _grid(len(panels), 2, 3.0)
    for axis, ((model, recipe), runs) in zip(axes, panels, strict=True):
        means = runs.astype({"value": float}).groupby(
            ["task", "method"], sort=False, as_index=False
        )
        means = means[["trainable", "value"]].mean().sort_values("trainable")
        ends = {}
        for task, line in means.groupby("task", sort=False):
            middle = line.groupby("trainable")["value"].mean()  # two methods may train as many
            axis.plot(middle.index, middle, color=MUTED, linewidth=0.8, zorder=1)
            for point in line.itertuples():
                axis.plot(point.trainable, point.value, markersize=5, **look(config, point.method))
            ends[str(task)] = (line["trainable"].iloc[-1], line["value"].iloc[-1])
        least_span(axis)
        label_ends(axis, ends)
        axis.set_xscale("log")
        axis.margins(x=0.08)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter("")
        axis.set_xlabel("trainable parameters")
        axis.set_ylabel("score")
        axis.set_title(f"{model}, {recipe}")
    if panels:
        methods = [name for name in _used(config, results) if name in set(trained["method"])]
        _legend(config, figure, methods)
    return figure


def least_span(axis: Axes, points: float = 10) -> None:
    """Widen the y axis to at least so many points of score: noise must not fill a panel."""
    low, high = axis.get_ylim()
    missing = max(0.0, points - (high - low)) / 2
    axis.set_ylim(low - missing, high + missing)


def label_ends(axis: Axes, ends: dict[str, tuple[float, float]]) -> None:
    """Write each name right of its point, pushed up where it would lie on the one below."""
    low, high = axis.get_ylim()
    gap, floor = 0.06 * (high - low), -np.inf
    for name, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        floor = max(y, floor + gap)
        axis.text(x * 1.3, floor, name, va="center", fontsize=8)


def loss_curves(config: Config, results: Results) -> Figure:
    """Training loss by step, one panel a (model, task, recipe), one thin line a seed."""
    panels = list(results.losses.groupby(["model", "task", "recipe"], sort=False))
    figure, axes = _grid(len(panels), 4, 2.0)
    for axis, ((model, task, recipe), losses) in zip(axes, panels, strict=True):
        for (method, _), line in losses.groupby(["method", "seed"], sort=False):
            axis.plot(line["step"], line["loss"], linewidth=0.9, alpha=0.8,
                      color=look(config, str(method))["color"])  # fmt: skip
        axis.set_title(f"{task}, {recipe}\n{model}", fontsize=8)
        axis.tick_params(labelsize=7)
    if panels:
        used = set(results.losses["method"])
        _legend(config, figure, [name for name in config["methods"] if name in used])
        figure.supxlabel("step", fontsize=9)
        figure.supylabel("training loss", fontsize=9)
    return figure


def costs(config: Config, results: Results) -> Figure:
    """Measured costs as ratios to LoRA on the same model: below 1 is cheaper."""
    names = ["step", "peak_memory", "adapter_states", "adapter_bytes"]
    done = results.profiles[results.profiles["status"] == DONE]
    rows = [
        (profile, peer)
        for _, profile in done.iterrows()
        if profile["method"] != "lora"
        and (peer := lora_profile(results, profile["model"])) is not None
    ]
    figure, axes = _grid(len(names) if rows else 0, 4, 1.0 + 0.3 * len(rows))
    places = np.arange(len(rows))[::-1]
    for axis, name in zip(axes, names, strict=False):
        ratios = [profile[name] / peer[name] if peer[name] else np.nan for profile, peer in rows]
        # full fine-tuning has no adapter at all: a bar of length zero would flatter it
        ratios = [np.nan if ratio == 0 else ratio for ratio in ratios]
        axis.axvline(1, color=INK, linewidth=0.9)
        for place, ratio, (profile, _) in zip(places, ratios, rows, strict=True):
            axis.plot(ratio, place, markersize=6, **look(config, profile["method"]))
            if np.isfinite(ratio):
                axis.annotate(f"{ratio:.2f}", (ratio, place), xytext=(6, 0), va="center",
                              textcoords="offset points", fontsize=7)  # fmt: skip
        labels = [f"{p['model']}  {config['methods'][p['method']]['label']}" for p, _ in rows]
        axis.set_yticks(places, labels if axis is axes[0] else [""] * len(rows))
        axis.set_ylim(-0.7, len(rows) - 0.3)
        if np.nanmax([*ratios, 1]) > 8:
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter("")
        axis.margins(x=0.3)
        axis.set_title(COSTS[name][0])
        axis.set_xlabel("ratio to LoRA")
    return figure
