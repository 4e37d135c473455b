"""What all benches share: contestants timed in turn, ratios by round, goals, one kind of result."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorasp.results import provenance, read_yaml

GOALS = Path(__file__).with_name("goals.yaml")
Seconds = dict[str, list[float]]


def in_turn(contestants: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> Seconds:
    """Seconds of each contestant in each round, all of them once a round, so that drift is shared.

    Every round begins with another of them: whoever runs after a heavy one runs on warmer caches.
    The first `warmup` rounds are not counted.
    """
    names = list(contestants)
    seconds: Seconds = {name: [] for name in names}
    for number in range(warmup + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            contestants[name]()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of some figures: `median`, `q1`, `q3`."""
    q1, median, q3 = map(float, np.quantile(values, (0.25, 0.5, 0.75)))
    return {"median": median, "q1": q1, "q3": q3}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of ours / theirs, round by round."""
    return quartiles([a / b for a, b in zip(ours, theirs, strict=True)])


def exactly(value: float) -> dict[str, float]:
    """A figure that was counted, not timed: it has no spread."""
    return {"median": value, "q1": value, "q3": value}


def judged(figures: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Each figure beside its goal; `met` compares the median. KeyError where goals.yaml has none.

    Args:
        figures: by the goal's id, as `quartiles`, `ratios` or `exactly` return them.
    """
    goals = read_yaml(GOALS)
    listed = []
    for name, figure in figures.items():
        goal, bound = goals[name], goals[name].get("at_most", goals[name].get("at_least"))
        met = figure["median"] <= bound if "at_most" in goal else figure["median"] >= bound
        listed.append({"goal": name, **goal, **figure, "met": met})
    return listed


def result(
    bench: str,
    what: str,
    cases: list[dict[str, Any]],
    figures: Mapping[str, Mapping[str, float]],
    checks: list[dict[str, Any]],
) -> dict[str, Any]:
    """The answer of a bench as `lorasp/schemas/bench.schema.json` has it, but for when it ran.

    Args:
        what: one sentence: what was run, how often, on what.
        cases: each `case` (its name), `unit` (such as 'ms' or 'bytes') and `values`: by contestant,
            `median`, `q1` and `q3` in that unit.
        figures: what `judged` takes.
        checks: what must be equal for a time to mean anything: each `what`, `found`, `allowed`
            (a sentence each) and `met`.
    """
    return {
        "bench": bench,
        "what": what,
        "cases": cases,
        "goals": judged(figures),
        "checks": checks,
        "provenance": provenance(),
    }


def as_text(found: dict[str, Any]) -> str:
    """A bench's answer for a terminal: its cases, then the goals, then what was checked."""
    lines = [found["what"], ""]
    for case in found["cases"]:
        lines.append(f"{case['case']} ({case['unit']})")
        for name, value in case["values"].items():
            spread = f"   quartiles {_digits(value['q1'])} to {_digits(value['q3'])}"
            counted = value["q1"] == value["q3"]
            lines.append(f"  {name:38}{_digits(value['median']):>14}{'' if counted else spread}")
    lines.append("")
    for goal in found["goals"]:
        relation, bound = (
            ("at most", goal["at_most"]) if "at_most" in goal else ("at least", goal["at_least"])
        )
        state = "met    " if goal["met"] else "NOT MET"
        lines.append(f"{state} {goal['median']:7.3f}, goal {relation} {bound:g}: {goal['what']}")
    for check in found["checks"]:
        state = "holds  " if check["met"] else "BROKEN "
        lines.append(f"{state} {check['what']}: {check['found']} (allowed: {check['allowed']})")
    return "\n".join(lines)


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
