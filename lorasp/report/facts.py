"""What a report rests on: the notice of its scale, its runs, their origin, and all its numbers."""

import json
from collections import Counter
from typing import Any

import pandas as pd

from lorasp.claims.roles import is_papers
from lorasp.config import Config
from lorasp.report.collect import DIVERGED, DONE, NOT_RUN, RUN, TRAINED, Results
from lorasp.results import fingerprint, provenance

CONTEXT = (
    "Small stand-ins. {models}: these are other models on other data than the paper's. "
    "The paper's numbers stand beside them for context alone and are not comparable with them; "
    "what can be compared is one method with another within this page."
)


def notice(config: Config, results: Results) -> str:
    """What the scale's numbers mean; empty where every model is one of the paper's."""
    if "no_result" in config:
        return str(config["no_result"])
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
        "diverged": [
            f"{' '.join(run[name] for name in RUN)} seed-{run['seed']}"
            for run in runs[runs["status"] == DIVERGED].to_dict("records")
        ],
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
                "n": group["n"].max(),  # none of a seed that diverged
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
