"""Judge the claims about memory, time and counts on the measured profiles."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lorasp.claims import Claim
from lorasp.claims.limits import Bounds, bounds_of, digits, shown
from lorasp.claims.roles import models_for
from lorasp.claims.samples import NotRun
from lorasp.config import Config

LIKE = ["batch", "length", "device", "threads", "counter"]  # what makes two profiles comparable
MEASURES = {
    "peak_memory": "peak memory",
    "step": "time of a step",
    "adapter_states": "memory of the adapter's states",
    "states": "memory of all states",
    "adapter_bytes": "size of the saved adapter",
    "trainable": "number of trainable parameters",
}
ORDER = ["not reproduced", "inconclusive", "reproduced"]  # of several models the first decides


class Ratio(NamedTuple):
    """Left over right on one model; low and high are the ratio itself but for a measured time."""

    model: str
    value: float
    low: float
    high: float

    def verdict(self, bounds: Bounds) -> str:
        """Whether left needs what the bounds allow of what right needs."""
        return bounds.verdict(self.low, self.high)


def judge_resource(
    config: Config, claim: Claim, margin: float, profiles: pd.DataFrame, every_role: bool
) -> dict[str, Any]:
    """The verdict on 'what left needs is within `bounds_of` of what right needs', on every model.

    Memory and counts are the same in every run, so their ratio decides. A time varies: while the
    ratio of the quartiles straddles a bound it is inconclusive. The worst model decides. With
    `every_role` every model that the claim names must be measured. Raises NotRun where a profile is
    missing.
    """
    left, right, measure = claim["left"], claim["right"], claim["measure"]
    known = set(profiles["method"])
    if unknown := [method for method in (left, right) if method not in known]:
        raise NotRun(f"no profile of {' or '.join(unknown)} is planned at this scale")
    pairs = {}
    for role in claim["models"]:
        for model in models_for(config, role) or ([role] if every_role else []):
            sides = [_profile(profiles, model, method) for method in (left, right)]
            if every_role or None not in sides:
                pairs[model] = sides
    if not pairs:
        names = " or ".join(claim["models"])
        raise NotRun(f"no profile of {left} and {right} on any {names} is planned at this scale")
    bounds = bounds_of(claim["test"], margin)
    ratios = [_ratio(measure, model, (left, right), sides) for model, sides in pairs.items()]
    worst = min(
        ratios, key=lambda one: (ORDER.index(one.verdict(bounds)), -bounds.beyond(one.value))
    )
    labels = [config["methods"][method]["label"] for method in (left, right)]
    where = f" on {worst.model}" + (f", the worst of {len(ratios)} models," if ratios[1:] else "")
    places = digits(worst.value, bounds.nearest(worst.value))
    ranged = worst.low < worst.high
    spread = f" (quartiles {worst.low:.2f} to {worst.high:.2f})" if ranged else ""
    return {
        "verdict": worst.verdict(bounds),
        "because": f"The {MEASURES[measure]} of {labels[0]}{where} is {worst.value:.{places}f} of "
        f"that of {labels[1]}{spread}; the claim needs {bounds.words(places)}."
        + _resolution(worst, bounds),
        "stand_in": any(model not in claim["models"] for model in pairs),
        "evidence": [f"{ratio.model}: {ratio.value:.{max(3, places)}f}" for ratio in ratios],
        "test": {
            "name": claim["test"],
            "n": len(ratios),
            "planned": len(ratios),
            "estimate": worst.value,
            "interval": [worst.low, worst.high] if ranged else None,
            "level": None,
            "margin": margin,
            "p": None,
            "p_adjusted": None,
            "bootstrap": None,
            "seeds_needed": None,
        },
    }


def _resolution(ratio: Ratio, bounds: Bounds) -> str:
    """Of a time that cannot be told from a bound: what these measurements could tell."""
    if ratio.verdict(bounds) != "inconclusive":
        return ""
    bound = bounds.nearest(ratio.value)
    below, above = ratio.value / ratio.high, ratio.value / ratio.low
    return (
        f" These timings tell a ratio from {shown(bound)} only if it is below "
        f"{bound * below:.2f} or above {bound * above:.2f}."
    )


def _profile(profiles: pd.DataFrame, model: str, method: str) -> dict[str, Any] | None:
    """The planned profile of a model and method, measured or not; None where none is planned."""
    found = profiles[(profiles["model"] == model) & (profiles["method"] == method)]
    return None if found.empty else {str(key): value for key, value in found.iloc[0].items()}


def _ratio(
    measure: str, model: str, methods: tuple[str, str], sides: list[dict[str, Any] | None]
) -> Ratio:
    """Raises NotRun where one side is not measured, or not under the same conditions."""
    measured = []
    for method, profile in zip(methods, sides, strict=True):
        if profile is None:
            raise NotRun(f"no profile of {method} on {model} is planned at this scale")
        if profile["status"] != "done":
            raise NotRun(f"{method} on {model} has not been profiled")
        measured.append(profile)
    left, right = measured
    if differing := [key for key in LIKE if left[key] != right[key]]:
        names = f"{methods[0]} and {methods[1]} on {model}"
        raise NotRun(
            f"the profiles of {names} differ in {', '.join(differing)}; measure them again"
        )
    if not np.isfinite(right[measure]) or right[measure] <= 0:
        raise NotRun(f"{methods[1]} on {model} has no {MEASURES[measure]} to compare with")
    value = float(left[measure] / right[measure])
    if measure != "step":
        return Ratio(model, value, value, value)
    return Ratio(model, value, float(left["q1"] / right["q3"]), float(left["q3"] / right["q1"]))
