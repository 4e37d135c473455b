"""The figure of the benches: every contestant's cost beside the peer's, a panel a case."""

from typing import Any

import altair as alt

from lorasp.report.charts import INK, MUTED, data, grid, layers
from lorasp.report.figures import Figure
from lorasp.report.speed import Answer, relative

# Okabe and Ito's palette again; what the others are set against is grey.
SHADES = {"peer": "#8b949e", "less": "#0072b2", "more": "#d55e00"}
WIDTH, COLUMNS = 300, 2
SPEED_CAPTIONS = {
    "speed-cases": "Time (of states: bytes) of each contestant over the peer's median, the line at "
    "1: a dot is the median, its bar the quartiles. Blue costs less than the peer, orange more. "
    "Goals are on the ratios round by round, in the table above.",
}


def draw_speed(answers: list[Answer]) -> dict[str, Figure]:
    """The figure by its file name, where there is a case to draw."""
    panels = [
        _panel(f"{answer['bench']}: {case['case']}", rows)
        for answer in answers
        for case in answer["cases"]
        if (rows := relative(case))
    ]
    return {"speed-cases": grid(panels, COLUMNS, (250, 70))} if panels else {}


def _panel(title: str, rows: list[dict[str, Any]]) -> Any:
    for row in rows:
        row["cost"] = "peer" if row["peer"] else "less" if row["ratio"] < 1 else "more"
    widest = max(1.0, *(row["high"] for row in rows))
    x = alt.X("ratio:Q", title="over the peer's median").axis(tickCount=5)
    x = x.scale(domain=[0, 1.05 * widest], nice=False)
    order = [row["contestant"] for row in rows]
    y = alt.Y("contestant:N", title=None, sort=order).axis(ticks=False, domain=False, grid=False)
    shade = alt.Color("cost:N", legend=None).scale(domain=[*SHADES], range=[*SHADES.values()])
    marks = alt.Chart(data(rows)).encode(
        y=y,
        tooltip=[
            "contestant:N",
            *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("ratio", "low", "high")),
        ],
    )
    return layers(
        title, WIDTH, 24 * len(rows), "",
        alt.Chart(data([{"ratio": 1}])).mark_rule(color=MUTED, strokeDash=[3, 3]).encode(x=x),
        marks.mark_rule(strokeWidth=4, opacity=0.45).encode(
            x=alt.X("low:Q"), x2="high:Q", color=shade
        ),
        marks.mark_point(filled=True, size=80, opacity=1).encode(x=x, color=shade),
        marks.mark_text(align="left", dx=6, fontSize=11, color=INK).encode(
            x=alt.value(WIDTH), text=alt.Text("ratio:Q", format=".2f")
        ),
    )  # fmt: skip
