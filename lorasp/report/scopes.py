"""What can be compared: the runs of every method at a place, and places that methods share."""

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lorasp.claims.statistics import interval
from lorasp.config import Config
from lorasp.report.collect import DIVERGED, DONE, Results
from lorasp.report.measures import WORST
from lorasp.report.tables import UNTRAINED, Table

REFERENCES = ("lora", "ft")
Item = TypeVar("Item", bound=Hashable)


class Place(NamedTuple):
    """Where methods are compared run by run."""

    model: str
    task: str
    recipe: str

    def __str__(self) -> str:
        return ", ".join(self)


@dataclasses.dataclass(frozen=True)
class Sample:
    """The planned runs of a method at a place.

    `failed` runs diverged or have an undefined metric; of `absent` ones there is no result.
    """

    scores: dict[int, float]  # in points, by seed
    diverged: int
    undefined: int
    absent: int

    @property
    def failed(self) -> int:
        return self.diverged + self.undefined

    @property
    def values(self) -> np.ndarray:
        """The scores (seeds,) of the finished runs."""
        return np.array(list(self.scores.values()))

    @property
    def outcomes(self) -> np.ndarray:
        """The scores of all runs that came to an end: one that failed is worse than any other."""
        return np.append(self.values, [WORST] * self.failed)

    @property
    def mean(self) -> float | None:
        return float(self.values.mean()) if self.scores else None

    @property
    def planned(self) -> int:
        return len(self.scores) + self.failed + self.absent

    def told(self) -> str:
        """What is missing of it; empty where nothing is."""
        counts = ((self.diverged, "diverged"), (self.undefined, "undefined"))
        parts = [f"{count} {word}" for count, word in (*counts, (self.absent, "not run")) if count]
        return ", ".join(parts)

    def seeds(self) -> str:
        """'5', or '4 of 5'."""
        done = len(self.scores)
        return str(done) if done == self.planned else f"{done} of {self.planned}"


Samples = dict[str, Sample]  # by method, in the order of the configuration


def samples(config: Config, results: Results) -> dict[Place, Samples]:
    """The planned runs by place and method; the untouched base model is at every recipe."""
    runs = results.runs
    found: dict[Place, Samples] = {}
    trained = runs[runs["recipe"] != UNTRAINED]
    for recipe in (name for name in config["recipes"] if name in set(trained["recipe"])):
        for (model, task), _ in trained[trained["recipe"] == recipe].groupby(
            ["model", "task"], sort=False
        ):
            here = runs[(runs["model"] == model) & (runs["task"] == task)]
            here = here[here["recipe"].isin((recipe, UNTRAINED))]
            by_method = dict(iter(here.groupby("method")))
            found[Place(str(model), str(task), recipe)] = {
                name: _sample(by_method[name].to_dict("records"))
                for name in config["methods"]
                if name in by_method
            }
    return found


def _sample(runs: list[dict[str, Any]]) -> Sample:
    scores, counts = {}, {"diverged": 0, "undefined": 0, "absent": 0}
    for run in sorted(runs, key=lambda run: run["seed"]):
        value = run.get("value")
        if run["status"] == DIVERGED:
            counts["diverged"] += 1
        elif run["status"] != DONE:
            counts["absent"] += 1
        elif value is None or np.isnan(value):
            counts["undefined"] += 1
        else:
            scores[int(run["seed"])] = float(value)
    return Sample(scores, **counts)


def shared(items_of: Mapping[str, Iterable[Item]]) -> list[tuple[tuple[Item, ...], list[str]]]:
    """Every set of items that some name has, with all names that have the whole set.

    The sets come by falling number of names, then of items: first what most can be compared on.
    """
    have = {name: tuple(items) for name, items in items_of.items()}
    sets = {frozenset(items): items for items in have.values() if items}
    found = [
        (items, [name for name, others in have.items() if wanted <= set(others)])
        for wanted, items in sets.items()
    ]
    return sorted(found, key=lambda entry: (-len(entry[1]), -len(entry[0])))


@dataclasses.dataclass(frozen=True)
class Scope:
    """Methods of one model and recipe that have the same tasks, all of one table of the paper."""

    model: str
    recipe: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.model}, {', '.join(self.tasks)}, {self.recipe}"


def scopes(config: Config, places: dict[Place, Samples], tables: list[Table]) -> list[Scope]:
    """What scores are averaged over, for each table, model and recipe: see `shared`.

    The untouched base model is in each that it was planned for; a set that it alone has is none.
    """
    untrained = [name for name, entry in config["methods"].items() if entry["family"] == "base"]
    found = []
    for table in tables:
        tasks = list(dict.fromkeys(column["task"] for column in table["columns"]))
        inside = [place for place in places if place.task in tasks]
        inside.sort(key=lambda place: tasks.index(place.task))
        groups: defaultdict[tuple[str, str], list[Place]] = defaultdict(list)
        for place in inside:
            groups[place.model, place.recipe].append(place)
        for (model, recipe), here in groups.items():
            methods = dict.fromkeys(name for place in here for name in places[place])
            planned = {
                name: [place.task for place in here if name in places[place]] for name in methods
            }
            trained = {name: tasks for name, tasks in planned.items() if name not in untrained}
            for items, names in shared(trained):
                base = [name for name in untrained if set(items) <= set(planned.get(name, ()))]
                found.append(Scope(model, recipe, items, (*base, *names)))
    return found


def scores_over(places: dict[Place, Samples], scope: Scope, method: str) -> dict[int, float]:
    """Mean score over the tasks of a scope, by seed; a seed must have all of them."""
    here = [places[Place(scope.model, task, scope.recipe)][method].scores for task in scope.tasks]
    seeds = set.intersection(*(set(scores) for scores in here))
    return {seed: float(np.mean([scores[seed] for scores in here])) for seed in sorted(seeds)}


def troubles(places: dict[Place, Samples], scope: Scope, method: str) -> list[str]:
    """What is missing of a method's runs in a scope, task by task."""
    parts = []
    for task in scope.tasks:
        told = places[Place(scope.model, task, scope.recipe)][method].told()
        if told:
            parts.append(told + (f" on {task}" if len(scope.tasks) > 1 else ""))
    return parts


def gap(places: dict[Place, Samples], scope: Scope, left: str, right: str) -> dict[str, Any]:
    """How far one method is above another, paired by seed: {estimate, interval, n}, in points.

    The estimate is None without a seed that both have, the interval (Student's) where such seeds
    leave nothing to test.
    """
    values = gaps(places, scope, left, right)
    return {
        "estimate": float(values.mean()) if len(values) else None,
        "interval": interval(values) if len(values) else None,
        "n": len(values),
    }


def gaps(places: dict[Place, Samples], scope: Scope, left: str, right: str) -> np.ndarray:
    """The differences (seeds,) of one method's scores to another's, of the seeds that both have."""
    mine, others = (scores_over(places, scope, name) for name in (left, right))
    return np.array([mine[seed] - others[seed] for seed in mine if seed in others])


def gains(places: dict[Place, Samples], scope: Scope, method: str, base: str) -> np.ndarray:
    """What a method gained over the untouched model, (seeds,), in points.

    A base model that is planned once, since nothing in it is drawn by seed, counts for every seed.
    """
    here = [places[Place(scope.model, task, scope.recipe)][base] for task in scope.tasks]
    if any(sample.planned != 1 for sample in here):
        return gaps(places, scope, method, base)
    once = [score for sample in here for score in sample.scores.values()]
    mine = scores_over(places, scope, method).values()
    return np.array([score - np.mean(once) for score in mine if len(once) == len(here)])
