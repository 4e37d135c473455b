"""Write the report of a scale: one self-contained page, Markdown, tables, figures, numbers.

lorasp report --config config/smoke.yaml
"""

import base64
import hashlib
import shutil
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lorasp.claims import load_claims
from lorasp.config import Config
from lorasp.locks import exclusively
from lorasp.report import claims_view
from lorasp.report.badges import by_place
from lorasp.report.charts import library, save
from lorasp.report.collect import Results, anchor, collect
from lorasp.report.costs import peaks_frame, profile_frame
from lorasp.report.estimates import estimates_frame
from lorasp.report.facts import details, duration, notice, numbers, run_groups, summary
from lorasp.report.figures import CAPTIONS, Figure, draw_all
from lorasp.report.footnotes import footnotes, marked, named_in, notes_of, told_in
from lorasp.report.formats import as_csv, filled, latex, markdown, plain, write, write_frame
from lorasp.report.heatmap import without_sweeps
from lorasp.report.judged import judged
from lorasp.report.methods_section import CAPTIONS as METHODS_CAPTIONS
from lorasp.report.methods_section import methods_section
from lorasp.report.settings import open_settings, settings_frames
from lorasp.report.simulated import section
from lorasp.report.simulated_figures import SIMULATED_CAPTIONS, draw_simulated
from lorasp.report.speed import read_benches
from lorasp.report.speed import section as speed_section
from lorasp.report.speed_figure import SPEED_CAPTIONS, draw_speed
from lorasp.report.steps import simulations_frame
from lorasp.report.tables import Table, as_frame, as_tidy, paper_tables
from lorasp.results import provenance, write_json

STAMP = "{scale} run: not a result"


def write_report(config: Config, out: Path | None = None) -> Path:
    """Read results/<scale> and write the report to `out` (default reports/<scale>).

    The same results give the same bytes, apart from the report's own provenance in results.json
    and verdicts.json. Returns the path of report.html. Raises WorkError where a result file is
    damaged.
    """
    out = out or Path("reports", config["scale"])
    with exclusively(out / ".lock"), TemporaryDirectory(dir=out, prefix=".writing-") as name:
        for left in set(out.glob(".writing-*")) - {Path(name)}:  # by a process that was killed
            shutil.rmtree(left)
        _write_all(config, Path(name))
        _publish(Path(name), out)
    return out / "report.html"


def _publish(written: Path, out: Path) -> None:
    """Move every file of a finished report to its place, the page last; each move is atomic.

    Tables and figures of an earlier report that this one does not have are removed.
    """
    files = [file for file in written.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: (file.name == "report.html", file)):
        place = out / file.relative_to(written)
        place.parent.mkdir(exist_ok=True)
        file.replace(place)
    kept = {out / file.relative_to(written) for file in files}
    for folder in ("tables", "figures"):
        for place in (out / folder).glob("*"):
            if place not in kept:
                place.unlink()


def _write_all(config: Config, out: Path) -> None:
    every = collect(config)
    verdicts = judged(config, every)
    entries = claims_view.view(config, verdicts)
    papers = claims_view.papers(config, every, verdicts)
    made = summary(config, every)
    config, results = marked(config), without_sweeps(config, every)
    tables = paper_tables(config, results, by_place(config, verdicts))
    steps = simulations_frame()
    simulated = section(steps)
    benches = read_benches()
    speed = speed_section(benches)
    no_result = "no_result" in config
    stamp = STAMP.format_map(config) if no_result else ""
    charts = draw_all(config, results, tables, stamp)
    methods, methods_charts, methods_frames = methods_section(config, results, every, tables, stamp)
    facts = {
        "config": config,
        "paper": load_claims()["paper"],
        "papers": papers,
        "no_result": no_result,
        "notice": notice(config, results),
        "tally": claims_view.tally(entries),
        "basis": claims_view.basis(entries),
        "findings": claims_view.findings(entries),
        "rule": claims_view.RULE,
        "claims": entries,
        "audit": claims_view.audited(entries),
        "tables": tables,
        "references": load_claims()["references"],
        "costs": profile_frame(config, results),
        "peaks": peaks_frame(config, results),
        "estimates": estimates_frame(config),
        "open_settings": open_settings(config, results),
        "settings": settings_frames(config, results),
        "footnotes": footnotes(config, set(every.runs["method"]) | set(results.profiles["method"])),
        "figures": _figures(charts, CAPTIONS, out / "figures"),
        "methods": methods,
        "methods_figures": _figures(methods_charts, METHODS_CAPTIONS, out / "figures"),
        "simulated": simulated,
        "simulated_figures": _figures(draw_simulated(steps), SIMULATED_CAPTIONS, out / "figures"),
        "speed": speed,
        "speed_figures": _figures(draw_speed(benches), SPEED_CAPTIONS, out / "figures"),
        "summary": made,
        "groups": run_groups(every),
        "details": details(every),
        "unplanned": every.unplanned,
    }
    write_json(out / "results.json", numbers(config, every, made), "report")
    judgement = {"scale": config["scale"], "provenance": provenance(), "papers": papers}
    write_json(out / "verdicts.json", judgement | {"verdicts": verdicts}, "verdicts")
    measured = {"profile": facts["costs"], "peaks": facts["peaks"]}
    frames = {table["name"]: as_frame(table) for table in tables} | measured | methods_frames
    for table in (*simulated["tables"], *speed["tables"]):
        frames[table["name"]] = table["frame"]
    if not facts["estimates"].empty:
        frames["estimates"] = facts["estimates"]
    prose = {"claims": claims_view.claims_frame(entries), "audit": claims_view.audit_frame(entries)}
    _write_tables(out / "tables", every, tables, frames, prose, facts["footnotes"])
    settings = {name: markdown(frame) for name, frame in facts["settings"].items()}
    shown = {name: markdown(frame) for name, frame in (frames | prose).items()}
    text = environment().get_template("report.md.j2").render(facts, markdown=shown | settings)
    write(out / "report.md", text)
    scripts = [Markup(library()), Markup(_template("page.js"))]
    page = environment().get_template("report.html.j2")
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    write(out / "report.html", page.render(facts, scripts=scripts, hashes=Markup(hashes)))


def environment() -> Environment:
    """The templates of the report; what a .html template shows is escaped."""
    made = Environment(
        loader=PackageLoader("lorasp.report"),
        autoescape=lambda name: bool(name) and ".html" in str(name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"anchor": anchor, "plain": plain, "duration": duration, "markdown": markdown}
    made.filters |= {"named_in": named_in, "told_in": told_in, "frame": as_frame, "filled": filled}
    made.filters["difference"] = claims_view.difference
    return made


def _figures(
    charts: dict[str, Figure], captions: dict[str, str], folder: Path
) -> list[dict[str, Any]]:
    """Write every chart to `folder`; what the templates show of it."""
    figures = []
    for name, chart in charts.items():
        svg, specification = save(chart, folder, name)
        figures.append(
            {
                "name": name,
                "svg": Markup(svg),
                "chart": Markup(specification),
                "caption": captions[name],
            }
        )
    return figures


def _write_tables(
    folder: Path,
    results: Results,
    tables: list[Table],
    frames: dict[str, pd.DataFrame],
    prose: dict[str, pd.DataFrame],
    readings: list[dict[str, Any]],
) -> None:
    for name, frame in frames.items():
        write_frame(folder, name, frame, latex(frame), notes_of(frame, readings))
    for name, frame in prose.items():
        shown = [column for column in claims_view.PRINTED if column in frame.columns]
        write_frame(folder, name, frame, latex(frame[shown], prose=True))
    numbers = {"cells": as_tidy(tables), "runs": results.runs, "scores": results.scores}
    for name, frame in numbers.items():
        write(folder / f"{name}.csv", as_csv(frame))


def _template(name: str) -> str:
    return (resources.files("lorasp.report") / "templates" / name).read_text()


def _sha256(script: str) -> str:
    """The hash by which the page's content security policy knows a script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
