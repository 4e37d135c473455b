"""What was run: recipes, methods, and what each setting did that the paper leaves open."""

from typing import Any

import pandas as pd

from lorasp.claims import PAPER, load_claims
from lorasp.claims.statistics import interval
from lorasp.config import Config
from lorasp.report.collect import RUN, Results, per_seed
from lorasp.report.tables import UNTRAINED


def settings_frames(config: Config, results: Results) -> dict[str, pd.DataFrame]:
    """The recipes and methods of the planned runs, one to a row; cells are text."""
    recipes = [name for name in config["recipes"] if name in set(results.runs["recipe"])]
    methods = [name for name in config["methods"] if name in set(results.runs["method"])]
    return {
        "recipes": pd.DataFrame([recipe_row(name, config["recipes"][name]) for name in recipes]),
        "methods": pd.DataFrame([method_row(name, config["methods"]) for name in methods]),
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


def method_row(name: str, methods: dict[str, dict[str, Any]]) -> dict[str, str]:
    """A method's settings, what it trains and where it comes from."""
    method = methods[name]
    fitted = [f"; fitted to {methods[one]['label']}" for one in method.get("match", {}).values()]
    return {
        "Method": method["label"],
        "Name": name,
        "Settings": (_pairs(method.get("settings", {})) or "none")
        + "".join(f"{words}: see 'At equal cost'" for words in fitted),
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


def open_settings(config: Config, results: Results) -> list[dict[str, Any]]:
    """What the papers leave open: {of, setting, paper, assumed, effects}.

    `of` is the paper's title: that of the paper that the suite reproduces, then those of the other
    claims files of the configuration. An effect of a compared pair is {what, of, estimate,
    interval, n}: mean of the second less the first, in points, paired by seed, with its Student
    interval (None where it cannot be told).
    """
    names = dict.fromkeys([PAPER, *config["claims"]])
    return [
        {
            "of": paper["title"],
            **entry,
            "effects": _effects(config, results, entry.get("compare", {})),
        }
        for paper in (load_claims(name)["paper"] for name in names)
        for entry in paper.get("not_stated", [])
    ]


def _effects(
    config: Config, results: Results, compare: dict[str, list[str]]
) -> list[dict[str, Any]]:
    scores = per_seed(results)
    scores = scores[scores["headline"] & (scores["recipe"] != UNTRAINED)]
    effects = []
    for kind, column in (("methods", "method"), ("recipes", "recipe")):
        if kind not in compare:
            continue
        first, second = compare[kind]
        place = [name for name in RUN if name != column]
        for key, group in scores.groupby(place, sort=False):
            each = group.pivot(index="seed", columns=column, values="value")
            if not {first, second} <= set(each.columns):
                continue
            gaps = (each[second] - each[first]).dropna()
            if len(gaps):
                names = dict(zip(place, key, strict=True))
                of = (_name(config, f"{name}s", value) for name, value in names.items())
                effects.append(
                    {
                        "what": f"{_name(config, kind, second)} less {_name(config, kind, first)}",
                        "of": ", ".join(of),
                        "estimate": float(gaps.mean()),
                        "interval": interval(gaps.to_numpy()),
                        "n": len(gaps),
                    }
                )
    return effects


def _name(config: Config, kind: str, name: str) -> str:
    return str(config["methods"][name]["label"]) if kind == "methods" else name
