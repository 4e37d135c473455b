"""Tables 1, 2 and 3 in the paper's own layout: printed, independent, ours by recipe, verdicts.

A table is plain data (groups of rows of cells), so that a page, Markdown, LaTeX and CSV are views.
"""

from collections import Counter
from typing import Any

import pandas as pd

from lorasp.claims import load_claims
from lorasp.claims.roles import is_papers, paper_model, paper_task
from lorasp.config import Config, resolve_task
from lorasp.report.badges import Badge, Badges, words
from lorasp.report.collect import DONE, NOT_RUN, Results, anchor

Table = dict[str, Any]
TITLE_OF_OTHERS = "Tasks outside the paper's tables"
UNTRAINED = "none"  # the recipe of the untouched base model
NOT_PLANNED, TIMES, DASH = "\N{MIDDLE DOT}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
BLANK = {"text": NOT_PLANNED, "mean": None, "status": "not planned", "anchor": None}


def paper_tables(config: Config, results: Results, badges: Badges | None = None) -> list[Table]:
    """The paper's tables in order, then one of the tasks that stand in none of them, if any.

    `badges` are the verdicts by their place; a method without one has no row of verdicts.
    """
    badges = badges or Badges()
    tables = []
    tasks = {name: resolve_task(config, name) for name in results.runs["task"].unique()}
    titles = load_claims()["tables"]
    for number, entry in titles.items():
        inside = [task for task in tasks.values() if str(task.get("table")) == number]
        tables.append(_table(config, results, badges, int(number), entry["title"], inside))
    others = [task for task in tasks.values() if str(task.get("table")) not in titles]
    if others:
        tables.append(_table(config, results, badges, 0, TITLE_OF_OTHERS, others))
    return tables


def _table(
    config: Config,
    results: Results,
    badges: Badges,
    number: int,
    title: str,
    tasks: list[dict[str, Any]],
) -> Table:
    order = [None, *(claim.get("task") for claim in load_claims()["claims"])]
    tasks = sorted(tasks, key=lambda task: order.index(paper_task(task)) or len(order))
    columns = _apart([column for task in tasks for column in _columns(task)])
    names = [task["name"] for task in tasks]
    runs = results.runs[results.runs["task"].isin(names)]
    recipes = [UNTRAINED, *config["recipes"]]
    groups = []
    for model in runs["model"].unique():
        planned = set(runs.loc[runs["model"] == model, "method"])
        methods = []
        for method in (name for name in config["methods"] if name in planned):
            here = runs[(runs["model"] == model) & (runs["method"] == method)]
            sources = [recipe for recipe in recipes if recipe in set(here["recipe"])]
            rows = _printed(config, model, method, number, columns)
            rows += [_ours(config, results, model, method, recipe, columns) for recipe in sources]
            rows += _verdicts(config, badges, model, method, number, columns)
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


def _printed(
    config: Config, model: str, method: str, number: int, columns: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The paper's own row for a model and method, and the independent numbers; none without any."""
    name = paper_model(config, model)
    claims = _claims(name, method, number)
    if not claims:
        return []
    counts = {claim["quantity"]: claim["printed"] for claim in claims if claim["kind"] == "count"}
    scores = {(c["task"], c["metric"]): c for c in claims if c["kind"] == "score"}
    here = [scores.get(column["claim"]) for column in columns]
    stands = "" if is_papers(config, model) else f", {name}"
    papers = [
        _number(claim["printed"], claim["value"], "paper") if claim else BLANK for claim in here
    ]
    rows = [_row("paper", f"paper{stands}", papers, _counts(counts))]
    found = [claim.get("independent") if claim else None for claim in here]
    if sources := sorted({entry["source"] for entry in found if entry}):
        cells = [
            _number(_independent(entry), entry["value"], "independent") if entry else BLANK
            for entry in found
        ]
        rows.append(_row("independent", f"independent, {', '.join(sources)}", cells, _counts({})))
    return rows


def _claims(model: str, method: str, number: int) -> list[dict[str, Any]]:
    """The claims of one row of one of the paper's tables."""
    place = (model, method, number)
    return [
        claim
        for claim in load_claims()["claims"]
        if (claim.get("model"), claim.get("method"), claim.get("table")) == place
    ]


def _number(text: str, value: float | None, status: str) -> dict[str, Any]:
    return {"text": text, "mean": value, "status": status, "anchor": None}


def _independent(entry: dict[str, Any]) -> str:
    return f"{entry['value']:.1f}" + (f" ± {entry['spread']:.1f}" if "spread" in entry else "")


def _row(
    kind: str, source: str, cells: list[dict[str, Any]], counts: dict[str, str], **more: Any
) -> dict[str, Any]:
    shown = {"kind": kind, "source": source, "recipe": None, "cells": cells, "over_all": []}
    return {**shown, **counts, **more}


def _verdicts(
    config: Config,
    badges: Badges,
    model: str,
    method: str,
    number: int,
    columns: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """The row of verdicts on the numbers above it; none where nothing is judged."""
    name = paper_model(config, model)
    counts: dict[str, list[Badge]] = {"trainable": [], "total": []}
    for claim in _claims(name, method, number):
        if claim["kind"] == "count":
            counts[claim["quantity"]] = badges.claim(claim["id"])
    scores = {
        (claim["task"], claim["metric"]): claim["id"]
        for claim in _claims(name, method, number)
        if claim["kind"] == "score"
    }
    cells = []
    for column in columns:
        own = badges.claim(scores[column["claim"]]) if column["claim"] in scores else []
        related = badges.relations.get((model, column["task"], column["metric"], method), [])
        cells.append(BLANK | {"text": words(own + related), "badges": own + related})
    over_all = badges.relations.get((model, None, None, method), [])
    if not any([over_all, *counts.values(), *(cell["badges"] for cell in cells)]):
        return []
    texts = _counts({quantity: words(found) for quantity, found in counts.items()})
    return [_row("verdict", "verdict", cells, texts, badges=counts, over_all=over_all)]


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
    return _row("ours", source, cells, _counts(counts)) | {"recipe": recipe}


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
        return dict(BLANK)
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
                    "Source": "; ".join([row["source"], *(words([b]) for b in row["over_all"])]),
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
            if row["kind"] != "verdict"
            for column, cell in zip(table["columns"], row["cells"], strict=True)
        ]
    )
