"""Methods ranked at every place and over all of them, and how probably one improves on another."""

import itertools
from typing import Any

import numpy as np
import pandas as pd

from lorasp.claims.statistics import interval
from lorasp.config import Config
from lorasp.report.collect import anchor
from lorasp.report.measures import Estimate, improvement, interquartile_mean, normalised, standing
from lorasp.report.scopes import REFERENCES, Place, Sample, Samples, Scope, shared
from lorasp.report.shown import learned
from lorasp.report.tables import DASH

Row = dict[str, Any]
NO_PLACE = DASH
FEWEST = 4  # runs of which a quarter is one
NOTES = (
    "Methods are placed by their mean score. In brackets is its 90 % interval (Student's t), as "
    "everywhere on this page; a mean of one run, or of equal runs, has none.",
    "P(X > Y) is the probability of improvement: how probably a run of X scores higher than a run "
    "of Y. It is the share of the pairs of their runs in which it does, a tie counting one half "
    "(Mann-Whitney's U), averaged over the tasks. It says how often X scores higher, not by how "
    "much, and does not pair the runs of one seed.",
    "In brackets after P(X > Y) is its 95 % bootstrap interval, for which runs are drawn again "
    "within each task. With few seeds it is too narrow, so it shows no difference: with 2, 3 or 5 "
    "runs of two equally good methods it leaves out the even chance, 0.5, in 30, 20 or 10 % of "
    "cases instead of 5. [1.00, 1.00] says only that every run of X scored above every run of Y. "
    "Which differences are shown is told under 'What to use when'.",
    "Among several tasks, those of which a method has one run are left out of P(X > Y); where "
    "there are no others they count, without an interval.",
    "A run that diverged, or whose metric is undefined, has no score: in P(X > Y) it loses to "
    "every run that has one. Its method has no place, and the mean shown is that of its other "
    "runs. Runs that are not made yet are counted in the last column.",
)
NORMALISED = (
    "Over several tasks scores are normalised first: on each pair of model and task 0 is the mean "
    "of the untouched base model, 1 that of the best method. Methods are placed by the mean of "
    "these over the tasks. The interquartile mean (IQM) is the mean of all their runs without the "
    "lowest and the highest quarter, rounded down to whole runs, so that no single run decides "
    "it. Its bootstrap interval (95 %) is too narrow with few seeds as well. Of fewer than four "
    "runs nothing would be cut off, so none is given."
)

SEEDS_DIFFER = (
    "Not all of these methods have runs of the same seeds, so two means can stand in another order "
    "than the runs of the seeds that both have. Those are what 'What to use when' and 'At equal "
    "cost' compare."
)


def rankings(config: Config, places: dict[Place, Samples]) -> list[Row]:
    """A ranking of each place, and before them one of each set of places that methods share.

    One is {name, title, places, recipe, decides, over_all, rows, left_out, seeds_differ}; `decides`
    tells the recipe of the verdicts, whose rankings come first.
    """
    recipe = config["verdicts"]["recipe"]
    recipes = sorted({place.recipe for place in places}, key=lambda name: name != recipe)
    found = []
    for name in recipes:
        here = {place: methods for place, methods in places.items() if place.recipe == name}
        common = {"recipe": name, "decides": name == recipe}
        found += [common | _over_all(config, here, inside) for inside in _sets(here)]
        found += [common | _at(config, place, methods) for place, methods in here.items()]
    return found


def _sets(places: dict[Place, Samples]) -> list[tuple[Place, ...]]:
    """The sets of two places or more that some method was planned at."""
    methods = dict.fromkeys(name for here in places.values() for name in here)
    planned = {name: [p for p, here in places.items() if name in here] for name in methods}
    return [items for items, _ in shared(planned) if len(items) > 1]


def _at(config: Config, place: Place, methods: Samples) -> Row:
    means = {
        name: mean
        for name, sample in methods.items()
        if (mean := sample.mean) is not None and not sample.failed
    }
    rows = [
        _row(config, name, {place: methods})
        | {"mean": sample.mean, "interval": interval(sample.values), "seeds": sample.seeds()}
        for name, sample in methods.items()
    ]
    return {
        "name": anchor("ranking", *place),
        "title": f"{place.model}, {place.task}",
        "places": (place,),
        "over_all": False,
        "rows": _placed(rows, means),
        "left_out": [],
        "seeds_differ": _seeds_differ(config, methods, means),
    }


def _over_all(config: Config, places: dict[Place, Samples], inside: tuple[Place, ...]) -> Row:
    scales = {place: scale(config, places, place) for place in inside}
    scaled = {place: ends for place, ends in scales.items() if not isinstance(ends, str)}
    names = [name for name in config["methods"] if all(name in places[p] for p in inside)]
    rows, means = [], {}
    for name in names:
        there = [places[place][name] for place in inside]
        row = _row(config, name, {place: places[place] for place in inside})
        row |= {"mean": None, "iqm": None, "seeds": str(sum(len(s.scores) for s in there))}
        if scaled and all(sample.scores and not sample.failed for sample in there):
            tasks = [normalised(places[p][name].values, *ends) for p, ends in scaled.items()]
            if sum(len(task) for task in tasks) >= FEWEST:
                row["iqm"] = interquartile_mean(tasks)
            row["mean"] = means[name] = float(np.mean([task.mean() for task in tasks]))
        rows.append(row)
    titles = "; ".join(f"{place.model}, {place.task}" for place in inside)
    left_out = [
        f"{place.model}, {place.task}: {why}"
        for place, why in scales.items()
        if place not in scaled
    ]
    return {
        "name": anchor("ranking", inside[0].recipe, *(part for p in inside for part in p[:2])),
        "title": f"{len(names)} methods over {len(inside)} pairs of model and task ({titles})",
        "places": inside,
        "over_all": True,
        "rows": _placed(rows, means),
        "left_out": left_out,
        "seeds_differ": any(_seeds_differ(config, places[place], means) for place in inside),
    }


def _seeds_differ(config: Config, methods: Samples, means: dict[str, float]) -> bool:
    """Whether some mean is over other seeds than another; the untouched base model has no seed."""
    trained = [name for name in means if config["methods"][name]["family"] != "base"]
    return len({frozenset(methods[name].scores) for name in trained}) > 1


def scale(config: Config, places: dict[Place, Samples], place: Place) -> tuple[float, float] | str:
    """The means that become 0 and 1 at a place; in words why it has none.

    The method with the best mean must be shown to be above the base model, seed by seed (see
    `shown.learned`): a scale of noise would blow up every difference.
    """
    methods = places[place]
    bases = [name for name in methods if config["methods"][name]["family"] == "base"]
    base = next((methods[name].mean for name in bases), None)
    whole = {
        name: sample.mean
        for name, sample in methods.items()
        if sample.mean is not None and not sample.failed and name not in bases
    }
    if base is None:
        return "the untouched base model has no score"
    if not whole:
        return "no method has all of its scores"
    best = max(whole, key=lambda name: whole[name])
    if len(methods[best].scores) == 1:
        return "the best method has one run, so nothing shows that it is above the base model"
    scope = Scope(place.model, place.recipe, (place.task,), tuple(methods))
    if best not in learned(places, scope, list(whole), bases[0], 0.0):
        return "the best method is not shown to be above the untouched base model"
    return base, whole[best]


def _row(config: Config, name: str, places: dict[Place, Samples]) -> Row:
    """What both kinds of ranking say of a method."""
    samples = {place: methods[name] for place, methods in places.items()}
    others = [
        reference
        for reference in REFERENCES
        if reference != name and all(reference in methods for methods in places.values())
    ]
    against = {
        other: compared(list(samples.values()), [methods[other] for methods in places.values()])
        for other in others
    }
    missing = [
        sample.told() + (f" ({place.model}, {place.task})" if len(places) > 1 else "")
        for place, sample in samples.items()
        if sample.told()
    ]
    return {
        "method": name,
        "label": config["methods"][name]["label"],
        "group": config["methods"][name].get("group", "paper"),
        "against": against,
        "missing": "; ".join(missing),
    }


def compared(left: list[Sample], right: list[Sample]) -> Estimate | None:
    """The probability of improvement over the tasks that both have runs of; None without any.

    A task with a single run of either counts only where there is no other: it has no interval.
    """
    both = [
        (x.outcomes, y.outcomes)
        for x, y in zip(left, right, strict=True)
        if len(x.outcomes) and len(y.outcomes)
    ]
    pairs = [(x, y) for x, y in both if len(x) > 1 and len(y) > 1] or both
    if not pairs:
        return None
    return improvement([x for x, _ in pairs], [y for _, y in pairs])


def _placed(rows: list[Row], means: dict[str, float]) -> list[Row]:
    """The rows with their place; those without one come last, by their mean where they have one."""
    ranks = standing(means) if means else {}

    def order(row: Row) -> tuple[float, float]:
        mean = row["mean"]
        return ranks.get(row["method"], np.inf), np.inf if mean is None else -mean

    return sorted((row | {"place": ranks.get(row["method"])} for row in rows), key=order)


def pairs(places: dict[Place, Samples], recipe: str) -> dict[tuple[str, str], Estimate]:
    """P(X > Y) of every pair of methods over all places of a recipe that both were planned at."""
    here = [methods for place, methods in places.items() if place.recipe == recipe]
    names = dict.fromkeys(name for methods in here for name in methods)
    found: dict[tuple[str, str], Estimate] = {}
    for x, y in itertools.combinations(names, 2):
        both = [methods for methods in here if x in methods and y in methods]
        estimate = compared([m[x] for m in both], [m[y] for m in both])
        if estimate is not None:
            found[x, y] = estimate
            found[y, x] = _turned(estimate)
    return found


def _turned(estimate: Estimate) -> Estimate:
    ends = estimate["interval"]
    turned = None if ends is None else [1 - ends[1], 1 - ends[0]]
    return estimate | {"estimate": 1 - estimate["estimate"], "interval": turned}


def chance(estimate: Estimate | None) -> str:
    """'0.83 [0.61, 0.97]', or with the reason why there is no interval."""
    if estimate is None:
        return "no runs"
    if estimate["interval"] is None:
        return f"{estimate['estimate']:.2f} (one run)"
    return within(estimate["estimate"], estimate["interval"], 2)


def within(value: float, ends: list[float] | None, digits: int = 1) -> str:
    """'81.2 [80.4, 82.0]' with typographic signs."""
    text = f"{value:.{digits}f}"
    if ends is not None:
        text += f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"
    return text.replace("-", "\N{MINUS SIGN}")


def ranking_frame(config: Config, ranking: Row) -> pd.DataFrame:
    """A ranking as text, one row a method."""
    references = [
        name for name in REFERENCES if any(name in row["against"] for row in ranking["rows"])
    ]
    rows = []
    for row in ranking["rows"]:
        shown = {
            "Place": NO_PLACE if row["place"] is None else str(row["place"]),
            "Method": row["label"],
            "Group": row["group"],
        }
        if ranking["over_all"]:
            mean = row["mean"]
            shown["Normalised mean"] = "none" if mean is None else within(mean, None, 2)
            shown["IQM"] = _iqm(row["iqm"])
        else:
            shown["Score"] = "none" if row["mean"] is None else within(row["mean"], row["interval"])
        for name in references:
            heading = f"P(X > {config['methods'][name]['label']})"
            same = row["method"] == name
            shown[heading] = NO_PLACE if same else chance(row["against"].get(name))
        shown["Runs"] = row["seeds"]
        rows.append(shown | {"Missing": row["missing"]})
    return pd.DataFrame(rows)


def _iqm(estimate: Estimate | None) -> str:
    if estimate is None:
        return "none"
    if estimate["interval"] is None:
        return f"{within(estimate['estimate'], None, 2)} (one run)"
    return within(estimate["estimate"], estimate["interval"], 2)


def pairs_frame(config: Config, found: dict[tuple[str, str], Estimate]) -> pd.DataFrame:
    """The probability of improvement of every pair, as numbers, one row a pair."""
    return pd.DataFrame(
        [
            {
                "X": config["methods"][x]["label"],
                "Y": config["methods"][y]["label"],
                "P(X > Y)": f"{estimate['estimate']:.3f}",
                "95 % interval": ""
                if estimate["interval"] is None
                else "{:.3f} to {:.3f}".format(*estimate["interval"]),
                "Tasks": str(estimate["tasks"]),
            }
            for (x, y), estimate in found.items()
        ]
    )
