"""Sweeps: one method over values of its settings and of its recipe, as runs like all others.

A point of a sweep that is the plain method, or the plain recipe, has its name, and what two sweeps
have in common has one name in both: nothing is trained twice.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lorasp.config import Cell, Config, known, pick
from lorasp.errors import UsageError

RECIPE = (
    *("learning_rate", "epochs", "max_steps", "batch_size", "micro_batch_size"),
    *("weight_decay", "warmup_ratio", "schedule", "select"),
)
RANKS, SCALES = ("rank", "r"), ("lora_alpha", "alpha")
Values = dict[str, Any]
Entry = dict[str, Any]


class Point(NamedTuple):
    """A combination of values on one model and task: what is set, and the names of its runs."""

    sweep: Entry
    model: str
    task: str
    values: Values
    settings: Values  # of the method, those that differ from its own
    changes: Values  # of the recipe, those that differ from what it says of this model and task
    method: str
    recipe: str


def points(config: Config) -> list[dict[str, Any]]:
    """Which run is which point: {sweep, model, task, values, cell}, the seeds one after another."""
    return [
        {
            "sweep": point.sweep["name"],
            "model": point.model,
            "task": point.task,
            "values": point.values,
            "cell": Cell(
                config["scale"], point.model, point.task, point.method, point.recipe, seed
            ),
        }
        for point in _points(config)
        for seed in point.sweep["seeds"]
    ]


def expand(config: Config) -> Config:
    """The configuration with the methods, recipes and experiments of its sweeps added.

    Raises UsageError for a name that is in no table, for a key that is neither a setting of the
    method nor of a recipe, and for a name that is taken.
    """
    for index, sweep in enumerate(config.get("sweeps", [])):
        _check(f"sweeps.{index}", config, sweep)
    methods, recipes = dict(config["methods"]), dict(config["recipes"])
    groups: list[Entry] = []
    for point in _points(config):
        origin, base = point.sweep["method"], point.sweep["recipe"]
        if point.settings:
            _add(methods, point.method, _method(config["methods"][origin], point.settings))
        if point.changes:
            _add(recipes, point.recipe, _recipe(config["recipes"][base], point.changes))
        names = ("model", "task", "method", "recipe")
        group = {f"{kind}s": [getattr(point, kind)] for kind in names}
        groups.append(group | {"seeds": point.sweep["seeds"]})
    # a recipe's exceptions for a method hold for what is swept of it
    copies = {(point.sweep["method"], point.method) for point in _points(config) if point.settings}
    for origin, copy in sorted(copies):
        recipes = {name: _extended(recipe, origin, copy) for name, recipe in recipes.items()}
    experiments = [*config["experiments"], *groups]
    return config | {"methods": methods, "recipes": recipes, "experiments": experiments}


def resized(settings: Values, changes: Values) -> Values:
    """Settings with some changed; the factor lora_alpha / rank stays, unless alpha is given."""
    found = {**settings, **changes}
    for rank, scale in itertools.product(RANKS, SCALES):
        if rank in changes and rank in settings and scale in settings and scale not in changes:
            alpha = settings[scale] * changes[rank] / settings[rank]
            found[scale] = int(alpha) if alpha == int(alpha) else alpha
    return found


def _points(config: Config) -> Iterator[Point]:
    for sweep in config.get("sweeps", []):
        own = config["methods"][sweep["method"]].get("settings", {})
        recipe = config["recipes"][sweep["recipe"]]
        for model, task, *chosen in itertools.product(
            sweep["models"], sweep["tasks"], *sweep["over"].values()
        ):
            values = dict(zip(sweep["over"], chosen, strict=True))
            said = pick(recipe, model=model, task=task, method=sweep["method"])
            changes = {k: v for k, v in values.items() if k in RECIPE and said.get(k) != v}
            settings = _differing(own, {k: v for k, v in values.items() if k not in RECIPE})
            names = (_name(sweep["method"], settings), _name(sweep["recipe"], changes))
            yield Point(sweep, model, task, values, settings, changes, *names)


def _differing(own: Values, chosen: Values) -> Values:
    """What of the chosen settings is not as it would be without saying it."""
    found = {}
    for key, value in chosen.items():
        others = {name: other for name, other in chosen.items() if name != key}
        if resized(own, others).get(key) != value:
            found[key] = value
    return found


def _name(origin: str, changes: Values) -> str:
    """lora-sp.density-0.25.rank-8: the same for the same values, in whatever order."""
    return ".".join([origin, *(f"{key}-{_word(changes[key])}" for key in sorted(changes))])


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else f"{value:.12g}".replace("+", "")


def _told(changes: Values) -> str:
    return ", ".join(f"{key} {_word(changes[key])}" for key in sorted(changes))


def _method(entry: Entry, settings: Values) -> Entry:
    label = f"{entry['label']}, {_told(settings)}"
    return entry | {"label": label, "settings": resized(entry.get("settings", {}), settings)}


def _recipe(entry: Entry, changes: Values) -> Entry:
    """The recipe with values that win over those it has for single models, tasks and methods."""
    source = f"{entry.get('source', 'a recipe of this configuration')}; swept: {_told(changes)}"
    return _without(entry, changes) | changes | {"source": source}


def _without(recipe: Entry, keys: Values) -> Entry:
    kept = {key: value for key, value in recipe.items() if key not in keys}
    return _each_exception(kept, lambda special: _without(special, keys))


def _extended(recipe: Entry, origin: str, copy: str) -> Entry:
    """The recipe, saying of `copy` what it says of `origin`."""
    found = _each_exception(recipe, lambda special: _extended(special, origin, copy))
    if origin in found.get("per_method", {}):
        found["per_method"] = {copy: found["per_method"][origin]} | found["per_method"]
    return found


def _each_exception(recipe: Entry, change: Callable[[Entry], Entry]) -> Entry:
    """The recipe with what it says of single models, tasks and methods changed."""
    return {
        key: {name: change(special) for name, special in value.items()}
        if key.startswith("per_")
        else value
        for key, value in recipe.items()
    }


def _add(table: dict[str, Entry], name: str, entry: Entry) -> None:
    if table.setdefault(name, entry) != entry:
        raise UsageError(
            f"a sweep makes {name!r}, and there is another entry of that name: rename that one"
        )


def _check(where: str, config: Config, sweep: Entry) -> None:
    for kind in ("model", "task"):
        for name in sweep[f"{kind}s"]:
            known(f"{where}.{kind}s", name, config[f"{kind}s"])
    entry = known(f"{where}.method", sweep["method"], config["methods"])
    known(f"{where}.recipe", sweep["recipe"], config["recipes"])
    if entry["family"] == "base":
        raise UsageError(f"{where}.method is {sweep['method']}, which trains nothing: leave it out")
    settings = {*entry.get("settings", {}), *filter(None, [entry.get("size")])}
    if unknown := sorted(set(sweep["over"]) - settings - set(RECIPE)):
        raise UsageError(
            f"{where}.over has {', '.join(unknown)}; allowed are keys of a recipe "
            f"({', '.join(RECIPE)}) and the settings that methods.{sweep['method']} has "
            f"({', '.join(sorted(settings)) or 'none'})"
        )
    if "match" in entry and set(sweep["over"]) - set(RECIPE):
        raise UsageError(
            f"{where}.method is {sweep['method']}, whose settings are fitted to a budget: sweep "
            "keys of its recipe alone, or the method that it is like"
        )
