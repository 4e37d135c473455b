"""Vega-Lite charts: their common look, and each as SVG, as PNG and as a live part of a page."""

import functools
import json
import math
import re
from pathlib import Path
from typing import Any, Literal

import altair as alt
import vl_convert

from lorasp.config import Config
from lorasp.results import atomic

Row = dict[str, Any]
Panel = alt.LayerChart | alt.FacetChart
INK = "currentColor"  # in SVG a page's own colour scheme decides
PRINTED_INK = "#1f2328"  # what it is in PNG
MUTED = "#7d8590"
# Okabe and Ito's palette: the colour-blind tell it apart, on white as on black; and a shape each.
COLOURS = ("#7d8590", "#009e73", "#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#cc79a7")
SHAPES = ("triangle-right", "square", "circle", "triangle-down", "diamond", "cross", "triangle-up")
# Where there are more methods than colours, the group of each is what is told apart.
GROUPS = {
    "paper": ("#0072b2", "circle"),
    "ablation": ("#e69f00", "square"),
    "peer": ("#d55e00", "diamond"),
    "peft": ("#009e73", "triangle-up"),
    "own": ("#cc79a7", "cross"),
}
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.strip("v").split(".")[:2])
VEGA_BASE = "https://vega.github.io/vega-datasets/"  # vl-convert's base of a link like #place
TEXT = {"labelColor": INK, "titleColor": INK, "labelFontSize": 11, "titleFontSize": 11}
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": TEXT
    | {"domainColor": MUTED, "tickColor": MUTED, "gridColor": MUTED, "gridOpacity": 0.25}
    | {"titleFontWeight": "normal", "labelLimit": 240},
    "legend": TEXT
    | {"orient": "top", "title": None, "columns": 8, "symbolSize": 80}
    | {"symbolOpacity": 1},
    "title": {"color": INK, "anchor": "start", "fontSize": 13, "fontWeight": 600},
    "padding": 8,
}


def data(rows: list[Row]) -> alt.InlineData:
    """Plain records, rounded: what is drawn needs no more digits, and a page no more bytes."""
    return alt.InlineData(values=[{k: _rounded(value) for k, value in r.items()} for r in rows])


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _method_scale(config: Config, used: set[str], choices: tuple[str, ...]) -> alt.Scale:
    """Every method's colour or shape, the same in all figures of a configuration."""
    names = list(config["methods"])
    kept = [name for name in names if name in used]
    return alt.Scale(
        domain=[config["methods"][name]["label"] for name in kept],
        range=[choices[names.index(name) % len(choices)] for name in kept],
    )


def colour(config: Config, used: set[str]) -> alt.Color:
    """The encoding of a method by colour."""
    return alt.Color("method:N", scale=_method_scale(config, used, COLOURS))


def shape(config: Config, used: set[str]) -> alt.Shape:
    """The encoding of a method by shape."""
    return alt.Shape("method:N", scale=_method_scale(config, used, SHAPES))


def group_look(used: set[str]) -> tuple[alt.Color, alt.Shape]:
    """The encodings of a method's group by colour and by shape."""
    names = [name for name in GROUPS if name in used]
    colours, shapes = (
        alt.Scale(domain=names, range=[GROUPS[name][k] for name in names]) for k in (0, 1)
    )
    return alt.Color("group:N", scale=colours), alt.Shape("group:N", scale=shapes)


def score_scale(values: list[float], points: float = 10) -> alt.Scale:
    """A scale over the values and at least so many points of score: noise must not fill a panel."""
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), (points - (high - low)) / 2)
    return alt.Scale(domain=[low - room, high + room], nice=True, zero=False)


def log_ticks(low: float, high: float, least: int = 3, most: int = 6) -> list[float]:
    """Round numbers in a range: powers of ten, or as many more of each decade as make `least`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for firsts in ((10,), (10, 20, 50), range(10, 100, 5), range(10, 100)):
        ticks = [
            value for k in decades for n in firsts if low <= (value := n * 10.0**k / 10) <= high
        ]
        if len(ticks) >= least:
            break
    return ticks if firsts == (10,) else ticks[:: -(-len(ticks) // most) or 1]


def grid(
    panels: list[Panel],
    columns: int,
    gap: tuple[int, int],
    legends: Literal["shared", "independent"] = "shared",
) -> alt.ConcatChart | alt.Chart:
    """Panels in rows, `gap` pixels between columns and rows of plots.

    They have one legend, or with `legends` "independent" one each. With no panel, a line that says
    'not run'.
    """
    if not panels:
        nothing = alt.Chart(data([{}]), width=600, height=30)
        return nothing.mark_text(text="not run", color=MUTED).properties(config=CONFIG)
    joined = alt.concat(
        *panels, columns=columns, bounds="flush", spacing={"column": gap[0], "row": gap[1]}
    )
    joined = joined.resolve_scale(color=legends, shape=legends, xOffset="independent")
    return joined.properties(config=CONFIG)


def layers(title: str | list[str], width: int, height: int, stamp: str, *parts: alt.Chart) -> Panel:
    """One panel; `stamp` is written across it (empty: nothing is)."""
    written = [
        alt.Chart(data([{}]))
        .mark_text(text=stamp, angle=344, fontSize=min(22, width / 14), color=MUTED, opacity=0.45)
        .encode(x=alt.value(width / 2), y=alt.value(height / 2))
    ]
    return alt.layer(*parts, *(written if stamp else [])).properties(
        title=title, width=width, height=height
    )


def save(chart: alt.ConcatChart | alt.Chart, folder: Path, name: str) -> tuple[str, str]:
    """Write folder/name.svg and .png; return the SVG, and the chart as JSON for a page's script."""
    specification = chart.to_dict()
    svg: str = vl_convert.vegalite_to_svg(specification, vl_version=VEGA_LITE)
    # several drawings share one page, so each keeps its ids to itself
    svg = re.sub(r'(<clipPath id="|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(rf'(href="){re.escape(VEGA_BASE)}#', r"\g<1>#", svg)
    with atomic(folder / f"{name}.svg") as temporary:
        temporary.write_text(svg.replace('href="#', 'href="../report.html#'))
    paper = '<rect width="100%" height="100%" fill="#fff"/>'
    printed = re.sub(r"^(<svg[^>]*>)", rf"\g<1>{paper}", svg.replace(INK, PRINTED_INK))
    with atomic(folder / f"{name}.png") as temporary:
        temporary.write_bytes(vl_convert.svg_to_png(printed, scale=2))
    return svg, json.dumps(specification, separators=(",", ":")).replace("<", "\\u003c")


@functools.cache
def library() -> str:
    """Vega, Vega-Lite and vega-embed as one script, fit to stand inside a page."""
    script: str = vl_convert.javascript_bundle(
        "window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE
    )
    # inside HTML these would end the script, or change how it is read; they occur in strings alone
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
