"""What the sweeps of a method measured, as evidence beside a claim about its sensitivity."""

from collections import defaultdict
from statistics import mean
from typing import Any

from lorasp.claims import Claim
from lorasp.claims.samples import RUN, Runs
from lorasp.claims.wording import number
from lorasp.sweeps import points

Row = dict[str, Any]


def measured(runs: Runs, claim: Claim) -> tuple[list[str], list[Row]]:
    """Sentences and rows on the sweeps of the claim's method that vary what the claim names.

    A row is a point: model, task, the swept values, the mean score in points over the seeds that
    have one, and their number. A sentence a sweep: the range of these means over the whole sweep,
    and the largest one along each value with all others fixed.
    """
    wanted = claim["sweep"]
    entries = {
        entry["name"]: entry
        for entry in runs.config.get("sweeps", [])
        if entry["method"] == wanted["method"] and set(entry["over"]) & set(wanted["over"])
    }
    grids: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for one in _points(runs):
        if one["sweep"] in entries:
            grids[one["sweep"], one["model"], one["task"]].append(one)
    said, rows = [], []
    for (name, model, task), grid in grids.items():
        scored = [one for one in grid if one["scores"]]
        said.append(_sentence(name, model, task, list(entries[name]["over"]), grid, scored))
        rows += [
            {"sweep": name, "model": model, "task": task, **one["values"]}
            | {"mean": mean(one["scores"]), "seeds": len(one["scores"])}
            for one in scored
        ]
    return said or ["No sweep of it is planned at this scale."], rows


def _points(runs: Runs) -> list[Row]:
    """The points of the sweeps, each once with the defined scores of its seeds."""
    found: dict[tuple[Any, ...], Row] = {}
    for point in points(runs.config):
        cell = point["cell"]
        run = tuple(getattr(cell, key) for key in RUN)
        one = found.setdefault(
            (point["sweep"], run),
            {key: point[key] for key in ("sweep", "model", "task", "values")}
            | {"scores": [], "undefined": 0},
        )
        score = runs.scores.get((run, None), {}).get(cell.seed)
        if score is not None:
            defined = abs(score) < float("inf")
            one["scores"] += [score] * defined
            one["undefined"] += not defined
    return list(found.values())


def _sentence(
    name: str, model: str, task: str, keys: list[str], grid: list[Row], scored: list[Row]
) -> str:
    place = f"Sweep {name}, {model} on {task}"
    if len(scored) < 2:
        return f"{place}: {len(scored)} of {len(grid)} points have a score."
    means = [mean(one["scores"]) for one in scored]
    values = [(key, [one["values"][key] for one in grid]) for key in keys]
    over = " and ".join(f"{key} {_span(found)}" for key, found in values)
    along = ", ".join(f"{key} moves them by up to {number(_largest(scored, key))}" for key in keys)
    undefined = sum(one["undefined"] for one in grid)
    left_out = f"; left out, without a defined score: {undefined} runs" if undefined else ""
    missing = "" if len(scored) == len(grid) else f" of {len(grid)}"
    return (
        f"{place}: over {over} the scores of {len(scored)}{missing} points, means over their "
        f"seeds, range from {number(min(means))} to {number(max(means))}; with all else fixed, "
        f"{along} points{left_out}."
    )


def _span(values: list[Any]) -> str:
    """'4 to 32' of numbers, else the words."""
    if all(isinstance(value, (int, float)) for value in values):
        return f"{min(values):g} to {max(values):g}"
    return ", ".join(dict.fromkeys(map(str, values)))


def _largest(scored: list[Row], key: str) -> float:
    """The largest difference of means between points that differ in one value alone."""
    lines = defaultdict(list)
    for one in scored:
        fixed = tuple(sorted((k, str(v)) for k, v in one["values"].items() if k != key))
        lines[fixed].append(mean(one["scores"]))
    return max(max(line) - min(line) for line in lines.values())
