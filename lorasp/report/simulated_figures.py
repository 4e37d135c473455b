"""The figures of the simulated steps: what the peak is made of, how it grows, who saves what."""

from typing import Any

import altair as alt
import pandas as pd

from lorasp.report.cards import CARDS, large_steps, room
from lorasp.report.charts import INK, MUTED, Panel, Row, data, grid, layers
from lorasp.report.figures import Figure
from lorasp.report.simulated import SAME, selection_rows
from lorasp.report.steps import GIB, KINDS, shape, table_steps

# Okabe and Ito's palette again; what is frozen is grey.
SOURCES = dict(
    zip(
        KINDS.values(),
        ("#8b949e", "#0072b2", "#56b4e9", "#cc79a7", "#d55e00", "#e69f00", "#009e73"),
        strict=True,
    )
)
LINES = {"lora": "#0072b2", "lora-sp": "#d55e00", "lora-sp-depth": "#009e73"}
MORE_CARDS = (80, 40, *CARDS)
RATIOS = {
    "states": "Trained states",
    "activations": "Kept activations",
    "backward_flops": "Backward FLOPs",
    "peak": "Peak memory",
}
WIDTH = 420
FROZEN, FEWER = "#8b949e", "#0072b2"
SIMULATED_CAPTIONS = {
    "simulated-sources": "Peak memory of one training step at the paper's batch and length, by "
    "what it is made of at that moment; the number is the whole, in GiB. Each model has its own "
    "scale.",
    "simulated-cards": "What quantized weights and recomputation do to the peak of LoRA-SP, in "
    "GiB. Dashed: what cards of 8, 16 and 24 GB have for tensors, by the rule below.",
    "simulated-growth": "Peak memory against the length of a sequence and against the batch, on "
    "logarithmic scales. The dots are simulated, and the lines only join them; the first is drawn "
    "wide, so that one on top of it leaves both to be seen. Dashed: what cards have for tensors.",
    "simulated-selections": "Trained states, kept activations, FLOPs of the backward pass and peak "
    "memory of each selection as ratios to LoRA on the same model. Blue: at least 1 % is saved; "
    "grey: less is.",
}


def draw_simulated(frame: pd.DataFrame) -> dict[str, Figure]:
    """Every figure for which there are steps, by its file name."""
    if frame.empty:
        return {}
    drawn = {
        "simulated-sources": sources(frame),
        "simulated-cards": cards(frame),
        "simulated-growth": growth(frame),
        "simulated-selections": selections(frame),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def sources(frame: pd.DataFrame) -> Figure | None:
    """Stacked bars of the peak, a panel a model, a bar a method."""
    panels = [
        _bars(f"{model}, batch {shape(steps.iloc[0])}", steps, list(steps["label"]), [])
        for model, steps in table_steps(frame).groupby("model", sort=False)
    ]
    return grid(panels, 2, (130, 60)) if panels else None


def cards(frame: pd.DataFrame) -> Figure | None:
    """Stacked bars of LoRA-SP's peak by number format and recomputation, with the cards' memory."""
    steps = large_steps(frame)
    steps = steps[steps["method"] == "lora-sp"]
    names = {"none": "unquantized", "nf4": "NF4", "int8": "int8"}
    policies = {"none": "", "full": ", full recomputation", "selective": ", selective"}
    panels = []
    for model, group in steps.groupby("model", sort=False):
        rows = [
            names[q] + policies[r]
            for q, r in zip(group["quantize"], group["recompute"], strict=True)
        ]
        panels.append(
            _bars(f"LoRA-SP on {model}, batch {shape(group.iloc[0])}", group, rows, list(CARDS))
        )
    return grid(panels, 2, (225, 60)) if panels else None


def _bars(title: str, steps: pd.DataFrame, names: list[str], limits: list[int]) -> Panel:
    """One panel of stacked bars with their totals, and upright rules at the cards' memory."""
    rows: list[Row] = [
        {
            "step": name,
            "source": source,
            "place": place,
            "GiB": step[f"at_peak_{kind}"] / GIB,
            "share": step[f"at_peak_{kind}"] / step["peak"],
        }
        for name, (_, step) in zip(names, steps.iterrows(), strict=True)
        for place, (kind, source) in enumerate(KINDS.items())
        if step[f"at_peak_{kind}"]
    ]
    totals = [
        {"step": name, "peak": peak / GIB} for name, peak in zip(names, steps["peak"], strict=True)
    ]
    widest = max(row["peak"] for row in totals)
    limits = [card for card in limits if room(card, 0) / GIB < 1.15 * widest]
    y = alt.Y("step:N", title=None, sort=names).axis(ticks=False, domain=False)
    # rules would cross numbers that stand beside the bars, so there they stand at the edge
    scale = alt.Scale(domain=[0, widest * (1.02 if limits else 1.16)], nice=False)
    place = alt.value(WIDTH + 4) if limits else alt.X("peak:Q").scale(scale)
    x = alt.X("GiB:Q", title="GiB").scale(scale).axis(tickCount=5)
    shades = alt.Scale(domain=list(SOURCES), range=list(SOURCES.values()))
    return layers(
        title, WIDTH, 24 * len(names), "",
        alt.Chart(data(rows)).mark_bar(height=15).encode(
            x=x, y=y, order="place:Q", color=alt.Color("source:N", scale=shades),
            tooltip=[
                "step:N", "source:N", alt.Tooltip("GiB:Q", format=".2f"),
                alt.Tooltip("share:Q", format=".1%"),
            ],
        ),
        alt.Chart(data(totals)).mark_text(align="left", dx=5, fontSize=11, color=INK).encode(
            x=place, y=y, text=alt.Text("peak:Q", format=".2f")
        ),
        *_limits([{"GiB": room(card, 0) / GIB, "card": f"{card} GB"} for card in limits], "x"),
    )  # fmt: skip


def _limits(rows: list[Row], side: str) -> list[alt.Chart]:
    """Dashed rules at what each card has, each with its name at the panel's edge."""
    if not rows:
        return []
    rules = alt.Chart(data(rows))
    line = rules.mark_rule(color=INK, strokeDash=[4, 3], opacity=0.7)
    if side == "x":
        text = rules.mark_text(align="left", dx=3, dy=-6, fontSize=10, color=INK)
        return [line.encode(x="GiB:Q"), text.encode(x="GiB:Q", y=alt.value(0), text="card:N")]
    text = rules.mark_text(align="left", dx=4, fontSize=10, color=INK)
    return [line.encode(y="GiB:Q"), text.encode(y="GiB:Q", x=alt.value("width"), text="card:N")]


def growth(frame: pd.DataFrame) -> Figure | None:
    """Peak against length and against batch, on the model that was simulated at most of them."""
    plain = frame[(frame["quantize"] == "none") & (frame["recompute"] == "none")]
    plain = plain[plain["method"].isin(LINES)]
    varied = plain[~plain["base"]]
    if varied.empty:
        return None
    model = varied["model"].mode()[0]
    steps = plain[plain["model"] == model]
    base = steps[steps["base"]]
    panels: list[Panel] = []
    for axis, other in (("length", "batch"), ("batch", "length")):
        along = steps[steps[other].isin(base[other])]
        if along[axis].nunique() > 1:
            panels.append(_lines(model, axis, f"{other} {along[other].iloc[0]}", along))
    return grid(panels, 2, (90, 60)) if panels else None


def _lines(model: str, axis: str, fixed: str, steps: pd.DataFrame) -> Panel:
    rows = [
        {"method": row["label"], axis: int(row[axis]), "GiB": row["peak"] / GIB}
        for _, row in steps.iterrows()
    ]
    labels = dict(zip(steps["method"], steps["label"], strict=True))
    order = [labels[name] for name in LINES if name in labels]
    shades = alt.Scale(domain=order, range=[LINES[name] for name in LINES if name in labels])
    values = sorted({row[axis] for row in rows})
    low, high = (choose(row["GiB"] for row in rows) for choose in (min, max))
    limits = [
        {"GiB": room(card, 0) / GIB, "card": f"{card} GB"}
        for card in MORE_CARDS
        if 0.9 * low < room(card, 0) / GIB < 1.5 * high
    ]
    edges = [
        min(low, *(row["GiB"] for row in limits)) * 0.92,
        max(high, *(row["GiB"] for row in limits)) * 1.08,
    ]
    x = alt.X(f"{axis}:Q", title=f"{axis} ({fixed})").scale(type="log", base=2)
    y = alt.Y("GiB:Q", title="peak, GiB").scale(type="log", domain=edges, nice=False)
    chart = alt.Chart(data(rows)).encode(
        x=x.axis(values=values, grid=False),
        y=y.axis(values=_ticks(edges)),
        color=alt.Color("method:N", scale=shades, legend=alt.Legend(symbolOpacity=1)),
        tooltip=["method:N", f"{axis}:Q", alt.Tooltip("GiB:Q", format=".2f")],
    )
    first = chart.transform_filter(alt.datum.method == order[0])
    rest = chart.transform_filter(alt.datum.method != order[0])
    return layers(
        f"{model}: {axis}", WIDTH, 260, "",
        # the first line is wide and pale, so that one on top of it is seen, and it too
        first.mark_line(strokeWidth=9, opacity=0.35),
        rest.mark_line(strokeWidth=2, point={"size": 35, "opacity": 1}),
        *_limits(limits, "y"),
    )  # fmt: skip


def _ticks(edges: list[float]) -> list[int]:
    """Round numbers of GiB inside a range, not at its upper end, where the title is."""
    few = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
    choice = range(2, 64, 2) if edges[1] < 3 * edges[0] else few
    return [value for value in choice if edges[0] < value < 0.95 * edges[1]]


def selections(frame: pd.DataFrame) -> Figure | None:
    """What each selection needs of what LoRA needs: a panel a quantity, a row of them a model."""
    steps = selection_rows(frame)
    if steps.empty:
        return None
    steps = steps[steps["method"] != "lora"]
    panels: list[Panel] = []
    for model, group in steps.groupby("model", sort=False):
        for name, title in RATIOS.items():
            first = name == next(iter(RATIOS))
            panels.append(_ratios(str(model), title, group, f"{name}_ratio", first))
    return grid(panels, len(RATIOS), (50, 70))


def _ratios(model: str, title: str, steps: pd.DataFrame, column: str, first: bool) -> Panel:
    rows: list[dict[str, Any]] = [
        {"method": row["label"], "ratio": row[column], "saves": row[column] <= 1 - SAME}
        for _, row in steps.iterrows()
    ]
    order = [row["method"] for row in rows]
    y = alt.Y("method:N", title=None, sort=order).axis(
        labels=first, ticks=False, domain=False, grid=False
    )
    x = alt.X("ratio:Q", title="ratio to LoRA").scale(domain=[0, 1.08], nice=False)
    x = x.axis(values=[0, 0.5, 1], grid=False)
    marks = alt.Chart(data(rows))
    shade = alt.Color("saves:N", legend=None).scale(domain=[False, True], range=[FROZEN, FEWER])
    return layers(
        [title, model], 185, 22 * len(order), "",
        marks.mark_bar(height=13).encode(
            x=x, y=y, color=shade, tooltip=["method:N", alt.Tooltip("ratio:Q", format=".4f")]
        ),
        marks.mark_text(align="left", dx=4, fontSize=11, color=INK).encode(
            x=alt.value(185), y=y, text=alt.Text("ratio:Q", format=".2f")
        ),
        alt.Chart(data([{"ratio": 1}])).mark_rule(color=MUTED, strokeDash=[3, 3]).encode(x=x),
    )  # fmt: skip
