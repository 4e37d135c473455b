"""Methods that were given as much as another of something: how nearly, and what it did."""

from pathlib import Path
from typing import Any

import pandas as pd

from lorasp.budget_words import MEASURED, amount_text, number_text, off_text
from lorasp.budgets import matched, path_of
from lorasp.config import Config
from lorasp.report.claims_view import difference
from lorasp.report.collect import DONE, Results
from lorasp.report.scopes import Place, Samples, Scope, gap
from lorasp.report.tables import DASH
from lorasp.results import read_json

WORDS = {"trainable": "trained parameters", "memory": "peak memory", "time": "time of training"}
Budget = dict[str, Any]


def equal_cost_frame(
    config: Config, results: Results, places: dict[Place, Samples], root: Path | None = None
) -> pd.DataFrame:
    """A row of text for each fitted method and place: what was matched, how well, the difference.

    The budget is the one that the runs were trained with, as their train.json has it; before there
    is a run it is the fitted one, from results/<scale> or from the folder `root` in its place. The
    first column of a row is its recipe. Raises WorkError where a file is damaged.
    """
    rows = []
    for place, methods in places.items():
        for name, sample in methods.items():
            if "match" not in config["methods"][name]:
                continue
            kind, reference = matched(config, name)
            mine, others = (_finished(results, place, one) for one in (name, reference))
            budgets = _trained_with(mine)
            path = path_of(config, place.model, name, root)
            if not budgets and path.is_file():
                budgets = [read_json(path, "budget") | {"note": "no run of it yet"}]
            missing = [sample.told()]
            if reference in methods:
                scope = Scope(place.model, place.recipe, (place.task,), (reference, name))
                apart = gap(places, scope, name, reference)
                missing.append(methods[reference].told())
            else:
                apart = {"estimate": None, "interval": None, "n": 0}
            labels = [config["methods"][one]["label"] for one in (name, reference)]
            rows.append(
                {
                    "Recipe": place.recipe,
                    "Model": place.model,
                    "Task": place.task,
                    "Method": labels[0],
                    "Equal to": labels[1],
                    "In": WORDS[kind],
                    "Score difference": difference(apart) if apart["n"] else "no pair of runs",
                    **_fitted(kind, budgets, _steps(mine), _steps(others)),
                    "Missing": "; ".join(
                        f"{label}: {told}"
                        for label, told in zip(labels, missing, strict=False)
                        if told
                    ),
                }
            )
    return pd.DataFrame(rows)


def _finished(results: Results, place: Place, method: str) -> list[dict[str, Any]]:
    """The train.json of every run of a method at a place whose score counts."""
    runs = results.runs
    for key, value in (*place._asdict().items(), ("method", method), ("status", DONE)):
        runs = runs[runs[key] == value]
    return [read_json(Path(folder, "train.json"), "train") for folder in runs["folder"]]


def _trained_with(runs: list[dict[str, Any]]) -> list[Budget]:
    """The budgets of these runs, each once: they differ where it was fitted again in between."""
    found = [run["config"]["method"].get("budget") for run in runs]
    return [one for place, one in enumerate(found) if one and one not in found[:place]]


def _steps(runs: list[dict[str, Any]]) -> str:
    """'250', or '250 to 252' where the runs differ; empty without a run."""
    counts = sorted({run["steps"] for run in runs})
    return " to ".join(f"{count:,}" for count in dict.fromkeys(counts[:1] + counts[-1:]))


def _fitted(kind: str, budgets: list[Budget], taken: str, reference: str) -> dict[str, str]:
    """How nearly a budget was reached, with which settings, and of a time in how many steps."""
    if not budgets:
        return {"Asked": "not fitted", "Achieved": "not fitted", "Off": DASH, "With": DASH}
    asked, achieved, off, told = [], [], [], []
    for budget in budgets:
        asked.append(amount_text(kind, budget["asked"]))
        if budget["achieved"] is None:  # fitted before the rows were known
            achieved.append(DASH)
            off.append(DASH)
        else:
            achieved.append(amount_text(kind, budget["achieved"]))
            off.append(off_text(budget["off"]).replace("-", "\N{MINUS SIGN}"))
        chosen = [f"{key} {number_text(value)}" for key, value in budget["settings"].items()]
        if kind == "time":
            chosen = [f"{budget['steps']:.4g} times the steps"]
        told.append(", ".join(chosen) + (f" ({budget['note']})" if budget["note"] else ""))
    if kind == "time" and taken:
        told.append(f"{taken} steps taken" + (f", {reference} by the other" if reference else ""))
    parts = {"Asked": asked, "Achieved": achieved, "Off": off, "With": told}
    return {key: "; ".join(dict.fromkeys(texts)) for key, texts in parts.items()}


def units(frame: pd.DataFrame) -> str:
    """What exactly is matched, for the words that occur in the column 'In'."""
    used = [MEASURED[kind] for kind, words in WORDS.items() if words in set(frame["In"])]
    drawn = (
        " What a method draws at random is counted with seed 0; runs of other seeds differ by it."
    )
    chance = drawn if MEASURED["trainable"] in used else ""
    return f"What is matched: {'; '.join(used)}.{chance}"
