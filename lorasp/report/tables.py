"""Tables 1, 2 and 3 in the paper's own layout: printed numbers, and ours for each recipe below.

A table is plain data (groups of rows of cells), so that a page, Markdown, LaTeX and CSV are views.
"""

from collections import Counter
from typing import Any

import pandas as pd

from lorasp.claims import load_claims
from lorasp.claims.roles import is_papers, paper_model, paper_task
from lorasp.config import Config, resolve_task
from lorasp.report.collect import DONE, NOT_RUN, Results, anchor

Table = dict[str, Any]
UNTRAINED = "none"  # the recipe of the untouched base model
NOT_PLANNED, TIMES, DASH = "\N{MIDDLE DOT}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"


def paper_tables(config: Config, results: Results) -> list[Table]:
    """The paper's tables in order, then one of the tasks that stand in none of them, if any."""
    tables = []
    tasks = {name: resolve_task(config, name) for name in results.runs["task"].unique()}
    titles = load_claims()["tables"]
    for number, entry in titles.items():
        inside = [task for task in tasks.values() if str(task.get("table")) == number]
        tables.append(_table(config, results, int(number), entry["title"], inside))
    others = [task for task in tasks.values() if str(task.get("table")) not in titles]
    if others:
        tables.append(_table(config, results, 0, "Tasks outside the paper's tables", others))
    return tables


def _table(
    config: Config, results: Results, number: int, title: str, tasks: list[dict[str, Any]]
) -> Table:
    order = [None, *(claim.get("task") for claim in load_claims()["claims"])]
    tasks = sorted(tasks, key=lambda task: order.index(paper_task(task)) or len(order))
    columns = _apart([column for task in tasks for column in _columns(task)])
    names = [task["name"] for task in tasks]
    runs = results.runs[results.runs["task"].isin(names)]
    recipes = [recipe for recipe in config["recipes"] if recipe in set(runs["recipe"])]
    groups = []
    for model in runs["model"].unique():
        planned = set(runs.loc[runs["model"] == model, "method"])
        methods = []
        for method in (name for name in config["methods"] if name in planned):
            sources = [UNTRAINED] if config["methods"][method]["family"] == "base" else recipes
            rows = [_ours(config, results, model, method, recipe, columns) for recipe in sources]
            if paper := _paper(config, model, method, number, columns):
                rows.insert(0, paper)
            label = config["methods"][method]["label"]
            methods.append({"name": method, "label": label, "rows": rows})
        groups.append(
            {
                "model": model,
                "paper_model": paper_model(config, model),
                "papers": is_papers(config, model),
                "methods": methods,
            }
        )
    claims = [claim for claim in load_claims()["claims"] if claim.get("table") == number]
    return {
        "number": number,
        "name": f"table{number}" if number else "other",
        "title": title,
        "stand_ins": bool(groups) and not any(group["papers"] for group in groups),
        "columns": columns,
        "totals": any(claim.get("quantity") == "total" for claim in claims),
        "groups": groups,
    }


def _columns(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The task's columns: its headline; every metric for a translation, as Table 2 has it.

    The paper's own tasks have its headings; one in the role of such a task has its own name.
    """
    role = paper_task(task)
    scores = [claim for claim in load_claims()["claims"] if claim["kind"] == "score"]
    printed = {claim["metric"]: claim for claim in scores if claim["task"] == role}
    own, translation = task["name"] == role, task["family"] == "translation"
    columns = []
    for metric in task["metrics"] if translation else [task["headline"]]:
        claim = printed.get(metric)
        label = METRICS.get(metric, metric)
        if translation:
            heading = claim["column"] if claim else label
        else:
            heading = task["name"] if role and not own else task.get("column", task["name"])
        columns.append(
            {
                "task": task["name"],
                "metric": metric,
                "heading": heading,
                "note": _note(task, label, claim if not own else None),
                "papers": own,
                "claim": (claim["task"], metric) if claim else None,
            }
        )
    return columns


def _apart(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The columns, each heading that two tasks share preceded by the task's name."""
    shared = Counter(column["heading"] for column in columns)
    return [
        column | {"heading": f"{column['task']}: {column['heading']}"}
        if shared[column["heading"]] > 1
        else column
        for column in columns
    ]


def _note(task: dict[str, Any], metric: str, claim: dict[str, Any] | None) -> str:
    """The small print under a heading: the metric, and what a stand-in stands for."""
    if task["family"] == "translation":
        return str(task["name"])
    return metric if claim is None else f"{metric}; in the role of {claim['column']}"


METRICS = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "bleu": "BLEU",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}


def _paper(
    config: Config, model: str, method: str, number: int, columns: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """The paper's own row for a model and method, or None where it prints none."""
    name = paper_model(config, model)
    claims = [
        claim
        for claim in load_claims()["claims"]
        if (claim.get("model"), claim.get("method"), claim.get("table")) == (name, method, number)
    ]
    if not claims:
        return None
    counts = {claim["quantity"]: claim["printed"] for claim in claims if claim["kind"] == "count"}
    scores = {(c["task"], c["metric"]): c for c in claims if c["kind"] == "score"}
    cells = []
    for column in columns:
        claim = scores.get(column["claim"]) if column["claim"] else None
        cells.append(
            {
                "text": claim["printed"] if claim else NOT_PLANNED,
                "mean": claim["value"] if claim else None,
                "status": "paper" if claim else "not planned",
                "anchor": None,
            }
        )
    source = "paper" if is_papers(config, model) else f"paper, {name}"
    return {"source": source, "recipe": None, "cells": cells, **_counts(counts)}


def _counts(counts: dict[str, str]) -> dict[str, str]:
    return {name: counts.get(name, "") for name in ("trainable", "total")}


def _ours(
    config: Config,
    results: Results,
    model: str,
    method: str,
    recipe: str,
    columns: list[dict[str, Any]],
) -> dict[str, Any]:
    runs, tasks = results.runs, [column["task"] for column in columns]
    mine = (runs["model"] == model) & (runs["method"] == method) & (runs["recipe"] == recipe)
    mine = runs[mine & runs["task"].isin(tasks)]
    source = "ours" if recipe == UNTRAINED else f"ours, {recipe}"
    counts = {name: _span(mine, name) for name in ("trainable", "total")}
    cells = [
        cell_of(results, (model, column["task"], method, recipe), column["metric"])
        for column in columns
    ]
    return {"source": source, "recipe": recipe, "cells": cells, **_counts(counts)}


def _span(runs: pd.DataFrame, name: str) -> str:
    """A count with its thousands set apart, or the range where heads of tasks differ."""
    if name not in runs or not runs[name].notna().any():
        return NOT_RUN if len(runs) else NOT_PLANNED
    low, high = int(runs[name].min()), int(runs[name].max())
    return f"{low:,}" if low == high else f"{low:,}{DASH}{high:,}"


def cell_of(results: Results, key: tuple[str, str, str, str], metric: str) -> dict[str, Any]:
    """One cell of ours: 'mean ± sd (n)', with every planned seed that is missing told."""
    model, task, method, recipe = key
    table = results.summary
    group = table[
        (table["model"] == model)
        & (table["task"] == task)
        & (table["method"] == method)
        & (table["recipe"] == recipe)
    ]
    if group.empty:
        return {"text": NOT_PLANNED, "mean": None, "status": "not planned", "anchor": None}
    place = {"anchor": anchor("runs", *key)}
    rows = group[group["metric"] == metric]
    if rows.empty or not rows["done"].iloc[0] + rows["undefined"].iloc[0]:
        return {"text": NOT_RUN, "mean": None, "status": NOT_RUN, **place}
    row = rows.iloc[0]
    done, undefined, planned = int(row["done"]), int(row["undefined"]), int(row["planned"])
    seeds = str(done) if done == planned else f"{done} of {planned}"
    if undefined:
        seeds += f", {undefined} undefined"
    mean = float(row["mean"]) if done else None
    value = "undefined" if mean is None else f"{mean:.1f}"
    spread = f" ± {row['sd']:.1f}" if done > 1 else ""
    status = DONE if done == planned else "partial"
    return {"text": f"{value}{spread} ({seeds})", "mean": mean, "status": status, **place}


def as_frame(table: Table) -> pd.DataFrame:
    """A table as one flat frame of strings: model, method, source, counts, one column a score."""
    rows = []
    for group in table["groups"]:
        for method in group["methods"]:
            for row in method["rows"]:
                values = {
                    "Model": group["model"],
                    "Method": method["label"],
                    "Source": row["source"],
                }
                values["Trainable parameters"] = row["trainable"]
                if table["totals"]:
                    values["Total parameters"] = row["total"]
                for column, cell in zip(table["columns"], row["cells"], strict=True):
                    values[column["heading"]] = cell["text"]
                rows.append(values)
    return pd.DataFrame(rows)


def as_tidy(tables: list[Table]) -> pd.DataFrame:
    """Every cell of the tables as numbers, one row a (table, model, method, source, column)."""
    return pd.DataFrame(
        [
            {
                "table": table["name"],
                "model": group["model"],
                "method": method["name"],
                "source": row["source"],
                "task": column["task"],
                "metric": column["metric"],
                "mean": cell["mean"],
                "status": cell["status"],
            }
            for table in tables
            for group in table["groups"]
            for method in group["methods"]
            for row in method["rows"]
            for column, cell in zip(table["columns"], row["cells"], strict=True)
        ]
    )


def profile_frame(config: Config, results: Results) -> pd.DataFrame:
    """Measured costs of a step as strings, each with its ratio to LoRA on the same model."""
    rows = []
    for _, profile in results.profiles.iterrows():
        entry = {
            "Model": profile["model"],
            "Method": config["methods"][profile["method"]]["label"],
            f"Batch {TIMES} length": f"{profile['batch']} {TIMES} {profile['length']}",
        }
        done = profile["status"] == DONE
        lora = lora_profile(results, profile["model"])
        peer = dict.fromkeys(COSTS) if lora is None else lora
        for name, (heading, unit, factor) in COSTS.items():
            entry[heading] = _cost(profile[name], factor, unit, peer[name]) if done else NOT_RUN
        rows.append(entry)
    return pd.DataFrame(rows)


def _cost(value: float, factor: float, unit: str, peer: float | None) -> str:
    """A value in its unit and its ratio to LoRA's; 'none' for states that the method has not."""
    if not value:
        return "none"
    scaled = value * factor
    text = f"{scaled:,.0f}" if scaled >= 100 or not unit else f"{scaled:.3g}"
    ratio = f" ({TIMES}{value / peer:.2f})" if peer else ""
    return f"{text} {unit}".rstrip() + ratio


COSTS = {
    "step": ("Step, median", "ms", 1e3),
    "tokens_per_second": ("Tokens a second", "", 1.0),
    "peak_memory": ("Peak memory", "MiB", 2.0**-20),
    "adapter_states": ("Adapter states", "KiB", 2.0**-10),
    "states": ("All trained states", "KiB", 2.0**-10),
    "adapter_bytes": ("Saved file", "KiB", 2.0**-10),
    "trainable": ("Trainable parameters", "", 1.0),
}


def lora_profile(results: Results, model: str) -> pd.Series | None:
    """The finished profile of LoRA on a model: what every ratio is taken to."""
    profiles = results.profiles
    rows = profiles[
        (profiles["model"] == model) & (profiles["method"] == "lora") & (profiles["status"] == DONE)
    ]
    return None if rows.empty else rows.iloc[0]
