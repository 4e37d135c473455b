"""What was run, as tables: the values of each recipe and the settings of each method."""

from typing import Any

import pandas as pd

from lorasp.config import Config
from lorasp.report.collect import Results


def settings_frames(config: Config, results: Results) -> dict[str, pd.DataFrame]:
    """The recipes and methods of the planned runs, one to a row; cells are text."""
    recipes = [name for name in config["recipes"] if name in set(results.runs["recipe"])]
    methods = [name for name in config["methods"] if name in set(results.runs["method"])]
    return {
        "recipes": pd.DataFrame([recipe_row(name, config["recipes"][name]) for name in recipes]),
        "methods": pd.DataFrame([method_row(name, config["methods"][name]) for name in methods]),
    }


def recipe_row(name: str, recipe: dict[str, Any]) -> dict[str, str]:
    """A recipe's values, and its exceptions as 'model, task, method: values'."""
    exceptions = [f"{', '.join(names)}: {_pairs(values)}" for names, values in _special(recipe)]
    return {
        "Recipe": name,
        "Values": _pairs(recipe),
        "Exceptions": "; ".join(exceptions) or "none",
        "Source": recipe.get("source", ""),
    }


def method_row(name: str, method: dict[str, Any]) -> dict[str, str]:
    """A method's settings, what it trains and where it comes from."""
    return {
        "Method": method["label"],
        "Name": name,
        "Settings": _pairs(method.get("settings", {})) or "none",
        "Trains": method["trainable_rule"],
        "Source": method["source"],
    }


def _pairs(values: dict[str, Any]) -> str:
    shown = {k: v for k, v in values.items() if k != "source" and not k.startswith("per_")}
    return ", ".join(f"{key} {value}" for key, value in shown.items())


def _special(recipe: dict[str, Any]) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every exception of a recipe with the names under which it stands."""
    found: list[tuple[tuple[str, ...], dict[str, Any]]] = []
    for kind in ("per_model", "per_task", "per_method"):
        for name, values in recipe.get(kind, {}).items():
            if _pairs(values):
                found.append(((name,), values))
            found += [((name, *names), inner) for names, inner in _special(values)]
    return found
