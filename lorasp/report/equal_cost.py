"""Methods that were given as much as another of something: how nearly, and what it did."""

from pathlib import Path
from typing import Any

import pandas as pd

from lorasp.budgets import UNITS, matched, path_of
from lorasp.config import Config
from lorasp.report.claims_view import difference
from lorasp.report.scopes import Place, Samples, Scope, gap
from lorasp.report.tables import DASH
from lorasp.results import read_json

WORDS = {"trainable": "trained parameters", "memory": "peak memory", "time": "time of training"}
FACTORS = {"trainable": (1.0, ""), "memory": (2.0**-20, " MiB"), "time": (1e3, " ms a step")}


def equal_cost_frame(
    config: Config, places: dict[Place, Samples], root: Path | None = None
) -> pd.DataFrame:
    """A row of text for each fitted method and place: what was matched, how well, the difference.

    Budgets are read from results/<scale>, or from the folder `root` in its place; the first column
    of a row is its recipe. Raises WorkError where one is damaged.
    """
    rows = []
    for place, methods in places.items():
        for name, sample in methods.items():
            if "match" not in config["methods"][name]:
                continue
            kind, reference = matched(config, name)
            path = path_of(config, place.model, name, root)
            budget = read_json(path, "budget") if path.is_file() else None
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
                    **_fitted(kind, budget),
                    "Score difference": difference(apart) if apart["n"] else "no pair of runs",
                    "Missing": "; ".join(
                        f"{label}: {told}"
                        for label, told in zip(labels, missing, strict=False)
                        if told
                    ),
                }
            )
    return pd.DataFrame(rows)


def _fitted(kind: str, budget: dict[str, Any] | None) -> dict[str, str]:
    """How nearly a budget was reached, and with which settings."""
    if budget is None:
        return {"Asked": "not fitted", "Achieved": "not fitted", "Off": DASH, "With": DASH}
    factor, unit = FACTORS[kind]
    amounts = [f"{budget[key] * factor:,.6g}{unit}" for key in ("asked", "achieved")]
    chosen = [f"{key} {value:g}" for key, value in budget["settings"].items()]
    if kind == "time":
        chosen = [f"{budget['steps']:.4g} times the steps"]
    told = ", ".join(chosen) + (f" ({budget['note']})" if budget["note"] else "")
    off = f"{100 * budget['off']:+.2f} %".replace("-", "\N{MINUS SIGN}")
    return {"Asked": amounts[0], "Achieved": amounts[1], "Off": off, "With": told}


def units(frame: pd.DataFrame) -> str:
    """What the words of the column 'In' count, for those that occur."""
    used = [kind for kind, words in WORDS.items() if words in set(frame["In"])]
    return "; ".join(f"{WORDS[kind]}: {UNITS[kind]}" for kind in used)
