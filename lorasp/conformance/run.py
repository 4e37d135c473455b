"""A method's checks on every architecture: a table, and below it what failed, and why."""

import textwrap
from collections import Counter
from typing import Any

from . import ARCHITECTURES, CHECKS, Outcome, check

SHOWN = {"passed": "passed", "failed": "FAILED", "excused": "excused", "not applicable": "-"}


def check_everywhere(method: dict[str, Any]) -> list[Outcome]:
    """The outcomes of a resolved method on every architecture, each with the method's name."""
    return [
        {"method": method["name"], **outcome}
        for architecture in ARCHITECTURES
        for outcome in check(method, architecture)
    ]


def as_text(title: str, outcomes: list[Outcome]) -> str:
    """A line for each check with its outcome on each architecture, then the reasons."""
    width = max(map(len, CHECKS))
    found = {(one["check"], one["architecture"]): SHOWN[one["outcome"]] for one in outcomes}
    lines = [title, "", _row("", width, list(ARCHITECTURES))]
    for name in CHECKS:
        lines.append(_row(name, width, [found[name, where] for where in ARCHITECTURES]))
    for outcome in ("failed", "excused", "not applicable"):
        if reasons := _reasons(outcomes, outcome):
            lines += ["", f"{outcome}:", *reasons]
    return "\n".join(line.rstrip() for line in lines)


def line(name: str, outcomes: list[Outcome]) -> str:
    """What a method's table comes down to: how many outcomes of each kind."""
    counts = Counter(one["outcome"] for one in outcomes)
    return f"{name}: {', '.join(f'{counts[kind]} {kind}' for kind in SHOWN if counts[kind])}"


def summary(found: list[Outcome]) -> str:
    """How many methods pass every check that applies to them, and which do not."""
    names = dict.fromkeys(one["method"] for one in found)
    failed, excused = (
        {one["method"] for one in found if one["outcome"] == outcome}
        for outcome in ("failed", "excused")
    )
    kinds = {
        "passed every check that applies to them": names.keys() - failed - excused,
        "have an excused failure": excused - failed,
        "FAILED": failed,
    }
    lines = [f"{len(names)} methods on {', '.join(ARCHITECTURES)}:"]
    for told, members in kinds.items():
        shown = "" if told.startswith("passed") else f": {', '.join(sorted(members))}"
        lines += [f"  {len(members)} {told}{shown}"] if members else []
    return "\n".join(lines)


def _row(first: str, width: int, cells: list[str]) -> str:
    return f"{first:{width}}  " + "".join(f"{cell:9}" for cell in cells)


def _reasons(outcomes: list[Outcome], outcome: str) -> list[str]:
    """Each reason once, after the checks and architectures that it is of."""
    places: dict[str, dict[str, list[str]]] = {}
    for one in outcomes:
        if one["outcome"] == outcome:
            where = places.setdefault(one["because"], {})
            where.setdefault(one["architecture"], []).append(one["check"])
    lines = []
    for because, where in places.items():
        checks = ", ".join(dict.fromkeys(name for names in where.values() for name in names))
        text = f"{checks} ({', '.join(where)}): {because}"
        lines += textwrap.wrap(
            text,
            100,
            initial_indent="  ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines
