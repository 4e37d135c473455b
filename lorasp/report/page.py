"""Write the report of a scale: one self-contained page, Markdown, tables, figures, numbers.

lorasp report --config config/smoke.yaml
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from lorasp.claims import load_claims
from lorasp.claims.roles import is_papers
from lorasp.config import Config
from lorasp.report.collect import DONE, NOT_RUN, RUN, TRAINED, Results, anchor, collect
from lorasp.report.figures import draw_all, save
from lorasp.report.settings import settings_frames
from lorasp.report.tables import (
    DASH,
    NOT_PLANNED,
    TIMES,
    as_frame,
    as_tidy,
    paper_tables,
    profile_frame,
)
from lorasp.results import atomic, fingerprint, provenance, write_json

SMOKE = (
    "Smoke run. Random models on generated data: no score on this page is a result. "
    "It shows that every path works, and nothing else."
)
CONTEXT = (
    "Small stand-ins. {models}: these are other models on other data than the paper's. "
    "The paper's numbers stand beside them for context alone and are not comparable with them; "
    "what can be compared is one method with another within this page."
)
LATEX = {"±": r"$\pm$", TIMES: r"$\times$", NOT_PLANNED: r"$\cdot$", DASH: "--"}
CAPTIONS = {
    "figure2": "Figure 2 of the paper, redone: every method across the tasks. Filled marks are "
    "the mean of our seeds with one standard deviation (a single seed: with the standard "
    "error of its evaluation); hollow marks are the paper's numbers, drawn only where model and "
    "task are the paper's own.",
    "parameters": "Score against the number of trainable parameters, by method. A thin line joins "
    "the methods of one task; LoRA at r/2 trains as many parameters as LoRA-SP.",
    "profile": "Measured cost of a training step, of the states that the adapter needs (weights, "
    "gradients, AdamW moments, masks) and of its saved file, as ratios to LoRA on the same model.",
    "loss": "Training loss of every run, one line a seed.",
}


def write_report(config: Config, out: Path | None = None) -> Path:
    """Read results/<scale> and write the report to `out` (default reports/<scale>).

    The same results give the same bytes, apart from the report's own provenance in results.json.
    Returns the path of report.html. Raises WorkError where a result file is damaged.
    """
    out = out or Path("reports", config["scale"])
    results = collect(config)
    tables = paper_tables(config, results)
    costs = profile_frame(config, results)
    smoke = config["scale"] == "smoke"
    drawn = draw_all(config, results, tables, stamp="smoke run: not a result" if smoke else "")
    figures = [
        {
            "name": name,
            "svg": Markup(save(figure, out / "figures", name)),
            "caption": CAPTIONS[name],
        }
        for name, figure in drawn.items()
    ]
    for table in tables:
        _write_frame(out / "tables", table["name"], as_frame(table))
    _write_frame(out / "tables", "profile", costs)
    for name, frame in (
        ("cells", as_tidy(tables)),
        ("runs", results.runs),
        ("scores", results.scores),
    ):
        _write(out / "tables" / f"{name}.csv", frame.to_csv(index=False))
    settings = settings_frames(config, results)
    facts = {
        "config": config,
        "paper": load_claims()["paper"],
        "smoke": smoke,
        "notice": notice(config, results),
        "tables": tables,
        "costs": costs,
        "settings": settings,
        "cost_keys": results.profiles.to_dict("records"),
        "figures": figures,
        "summary": summary(config, results),
        "groups": run_groups(results),
        "details": details(results),
        "unplanned": results.unplanned,
    }
    write_json(out / "results.json", numbers(config, results, facts["summary"]), "report")
    markdown = {table["name"]: _markdown(as_frame(table)) for table in tables}
    facts |= {"markdown": {**markdown, "profile": _markdown(costs), **_each(settings)}}
    environment = Environment(
        loader=PackageLoader("lorasp.report"),
        autoescape=lambda name: bool(name) and ".html" in str(name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"anchor": anchor, "plain": _plain, "duration": duration}
    _write(out / "report.md", environment.get_template("report.md.j2").render(facts))
    page = out / "report.html"
    _write(page, environment.get_template("report.html.j2").render(facts))
    return page


def notice(config: Config, results: Results) -> str:
    """What the scale's numbers mean; empty where every model is one of the paper's."""
    if config["scale"] == "smoke":
        return SMOKE
    models = [model for model in results.runs["model"].unique() if not is_papers(config, model)]
    if not models:
        return ""
    roles = [
        f"{model} stands for {entry['stands_for']}"
        + (f" ({entry['note']})" if "note" in entry else "")
        if "stands_for" in (entry := config["models"][model])
        else f"{model} is not in the paper"
        for model in models
    ]
    return CONTEXT.format(models="; ".join(roles))


def summary(config: Config, results: Results) -> dict[str, Any]:
    """What the whole report rests on: counts of runs, time, code, machines, versions."""
    runs = results.runs
    counts = Counter(runs["status"])
    made = runs[runs["status"] != NOT_RUN]
    versions: dict[str, set[str]] = {}
    for entry in _column(made, "versions"):
        for package, version in entry.items():
            versions.setdefault(package, set()).add(version)
    commits = sorted({str(commit) for commit in _column(made, "commit")})
    return {
        "planned": len(runs),
        "done": counts[DONE],
        "trained": counts[TRAINED],
        "not_run": counts[NOT_RUN],
        "undefined": int(results.summary["undefined"].sum()),
        "profiles_planned": len(results.profiles),
        "profiles_done": int((results.profiles["status"] == DONE).sum()),
        "wall_seconds": float(runs["wall_seconds"].sum()),
        "commits": commits,
        "dirty": bool(any(_column(made, "dirty"))),
        "other_config": int((~made["same_config"]).sum()),
        "machines": sorted(
            {f"{row.machine} ({row.cores:.0f} cores)" for row in made.itertuples()}
            if len(made)
            else []
        ),
        "versions": {
            package: ", ".join(sorted(found)) for package, found in sorted(versions.items())
        },
        "first": min(_column(made, "finished"), default=None),
        "last": max(_column(made, "finished"), default=None),
        "config": fingerprint(config)[:12],
    }


def _column(runs: pd.DataFrame, name: str) -> list[Any]:
    return [] if name not in runs else runs[name].dropna().tolist()


def run_groups(results: Results) -> list[dict[str, Any]]:
    """The runs for the provenance table, one group a (model, task, method, recipe)."""
    groups = []
    for key, runs in results.runs.groupby(RUN, sort=False):
        rows = [
            {name: None if _missing(value) else value for name, value in row.items()}
            for row in runs.to_dict("records")
        ]
        groups.append(
            {**dict(zip(RUN, key, strict=True)), "anchor": rows[0]["anchor"], "runs": rows}
        )
    return groups


def _missing(value: Any) -> bool:
    return not isinstance(value, dict | list) and bool(pd.isna(value))


def details(results: Results) -> list[dict[str, Any]]:
    """Every metric of every split, the seeds together: both MNLI sets, F1 beside accuracy, …"""
    scores = results.scores[~results.scores["headline"]]
    rows = []
    for key, group in scores.groupby([*RUN, "split", "metric"], sort=False):
        values = group["value"].dropna()
        spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
        missing = len(group) - len(values)
        seeds = f"{len(values)}" + (f", {missing} undefined" if missing else "")
        value = (
            f"{values.mean():.1f}{spread} ({seeds})" if len(values) else f"undefined ({missing})"
        )
        error = group["stderr"].mean()
        rows.append(
            dict(zip([*RUN, "split", "metric"], key, strict=True))
            | {
                "value": value,
                "stderr": "" if pd.isna(error) else f"{error:.1f}",
                "n": group["n"].iloc[0],
            }
        )
    return rows


def numbers(config: Config, results: Results, facts: dict[str, Any]) -> dict[str, Any]:
    """The report as numbers: the summary of every group of runs, all runs, all profiles."""
    return {
        "scale": config["scale"],
        "provenance": provenance(),
        "summary": facts,
        "groups": _records(results.summary),
        "runs": _records(results.runs.drop(columns=["versions"], errors="ignore")),
        "profiles": _records(results.profiles),
    }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them: null for what is missing, no key that says nothing."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records"))
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _plain(text: object) -> str:
    """Text for Markdown: HTML in a name stays text, and a pipe ends no table cell."""
    return str(escape(str(text))).replace("&#39;", "'").replace("&#34;", '"').replace("|", "\\|")


def _markdown(frame: pd.DataFrame) -> str:
    if frame.empty:
        return "_no runs planned_"
    return str(frame.map(_plain).rename(columns=_plain).to_markdown(index=False))


def _each(frames: dict[str, pd.DataFrame]) -> dict[str, str]:
    return {name: _markdown(frame) for name, frame in frames.items()}


def _write_frame(folder: Path, name: str, frame: pd.DataFrame) -> None:
    """One table as CSV, Markdown, and LaTeX with booktabs rules."""
    _write(folder / f"{name}.csv", frame.to_csv(index=False))
    _write(folder / f"{name}.md", _markdown(frame) + "\n")
    latex = frame.to_latex(
        index=False, escape=True, column_format="lll" + "r" * (frame.shape[1] - 3)
    )
    for sign, command in LATEX.items():
        latex = latex.replace(sign, command)
    _write(folder / f"{name}.tex", latex)


def _write(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text)
