"""Budgets in words: what was asked and achieved, in a reader's units, and how far apart it is."""

from typing import Any

MEASURED = {
    "trainable": "trained parameters, without the classification head",
    "memory": "peak of a simulated training step",
    "time": "a measured training step, times the steps for each of the reference's",
}
UNITS = {  # of the numbers in a budget's file
    "trainable": MEASURED["trainable"],
    "memory": f"bytes at the {MEASURED['memory']}",
    "time": f"seconds of {MEASURED['time']}",
}
FAR = 0.1  # from there on a distance from the reference is told
Budget = dict[str, Any]


def note(found: Budget, off: float | None, reference: str) -> str | None:
    """What a fit that stays far from its reference says of it."""
    if off is None or abs(off) <= FAR:
        return None
    more = "more" if off > 0 else "less"
    return (
        f"nothing comes within {FAR:.0%} of {reference}: {told(found)} is nearest, "
        f"{abs(off):.0%} {more}"
    )


def told(budget: Budget) -> str:
    """What was fitted: the settings, or the steps."""
    settings = budget["settings"]
    words = ", ".join(f"{key} {number_text(settings[key])}" for key in sorted(settings))
    return words or f"{budget['steps']:.4g} times the steps, in whole ones,"


def number_text(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_text(budget: Budget) -> str:
    """A budget in a line or two."""
    kind, reference = budget["budget"], budget["reference"]
    where = f"{budget['method']} on {budget['model']}: "
    if budget["achieved"] is None:  # of a time: no run's steps are known yet
        steps, asked = budget["steps"], budget["asked"]
        return (
            f"{where}{steps:.4g} times the steps of {reference}, whose step takes "
            f"{amount_text(kind, asked)} and its own {amount_text(kind, asked / steps)}; what "
            "that is in whole steps is known once the data of its runs is prepared"
        )
    off = off_text(budget["off"])
    more = f"\n{budget['note']}" if budget["note"] else ""
    return (
        f"{where}{told(budget)} gives {amount_text(kind, budget['achieved'])}, {reference} has "
        f"{amount_text(kind, budget['asked'])} ({off}; {MEASURED[kind]}){more}"
    )


def amount_text(kind: str, value: float) -> str:
    """A number of parameters, bytes or seconds with the unit that a reader takes it in."""
    if kind == "trainable":
        return f"{value:,.0f}"
    return f"{value / 2**20:,.2f} MiB" if kind == "memory" else f"{value * 1e3:,.2f} ms"


def off_text(off: float) -> str:
    """A relative distance in percent: 'equal' only where it is zero, and never 0.00 %."""
    if off == 0:
        return "equal"
    if abs(off) < 1e-4:
        return f"under 0.01 % {'more' if off > 0 else 'less'}"
    return f"{100 * off:+.2f} %"
