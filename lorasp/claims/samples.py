"""Which runs a claim about scores is judged on: the paper's roles filled, paired by seed."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pandas as pd

from lorasp.claims import Claim
from lorasp.claims.roles import models_for, tasks_for
from lorasp.claims.wording import number
from lorasp.config import Config

RUN = ("model", "task", "method", "recipe")
BASE = "base"  # the untouched model; its recipe is `none`
Run = tuple[str, str, str, str]


class NotRun(Exception):
    """A claim cannot be judged on these runs; the message is the reason in a sentence."""


class Pair(NamedTuple):
    """A model and a task of the configuration, and what they are in the paper."""

    model: str
    task: str
    model_role: str
    task_role: str

    def __str__(self) -> str:
        return f"{self.model} on {self.task}"


@dataclasses.dataclass(frozen=True)
class Runs:
    """The plan and the scores of a scale, by run.

    planned: the seeds of a run. scores: the values by seed, of a run and metric; metric None is the
    headline. An undefined value is infinite, because NaN stands for a missing one from here on.
    """

    config: Config
    planned: dict[Run, set[int]]
    scores: dict[tuple[Run, str | None], dict[int, float]]


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a test is given: values, (seeds, pairs) in points, of every seed that is complete.

    gain: (seeds, pairs), the compared method less the untouched model; no row where that has no
    score. undefined: the runs whose score is not defined. notes: what else a reader must know.
    """

    values: np.ndarray
    planned: int
    groups: list[dict[str, str]]
    undefined: list[str]
    notes: list[str]
    stand_in: bool = False
    gain: np.ndarray | None = None


def index_runs(config: Config, scores: pd.DataFrame, planned: pd.DataFrame) -> Runs:
    """Sort the frames that `judge` is given by run."""
    plan: dict[Run, set[int]] = {}
    for *run, seed in planned[[*RUN, "seed"]].itertuples(index=False):
        plan.setdefault(_run(*run), set()).add(int(seed))
    found: dict[tuple[Run, str | None], dict[int, float]] = {}
    columns = [*RUN, "seed", "metric", "value", "headline"]
    for *run, seed, metric, value, headline in scores[columns].itertuples(index=False):
        for name in (metric, None) if headline else (metric,):
            by_seed = found.setdefault((_run(*run), name), {})
            by_seed[int(seed)] = float(value) if np.isfinite(value) else np.inf
    return Runs(config, plan, found)


def score_sample(runs: Runs, claim: Claim, recipe: str) -> Sample:
    """Our seeds' scores less the printed one, (seeds, 1). Raises NotRun."""
    model, task, method = claim["model"], claim["task"], claim["method"]
    if not _is_own(runs.config, Pair(model, task, model, task)):
        raise NotRun(f"the paper's own {model} on its own {task} is not in this configuration")
    run = _run(model, task, method, recipe)
    if not (planned := sorted(runs.planned.get(run, ()))):
        raise NotRun(_unplanned(runs, (method,), recipe, f"{model} and {task}"))
    scores = _column(runs, run, claim["metric"], planned)
    found = ~np.isnan(scores)
    if not found.any():
        raise NotRun(f"none of the {len(planned)} planned runs of {' '.join(run)} has a score")
    return Sample(
        values=scores[found, None] - claim["value"],
        planned=len(planned),
        groups=[dict(zip(RUN, run, strict=True))],
        undefined=_undefined([run], planned, scores[:, None]),
        notes=_missing(planned, found),
    )


def relation_sample(runs: Runs, claim: Claim, recipe: str, every_role: bool) -> Sample:
    """Left less right, seed by seed, on each model and task that is planned for both.

    A seed without a score on either side, or on any of the tasks, is left out and told. With
    `every_role` all models and tasks that the claim names must have runs. Raises NotRun.
    """
    methods, metric = (claim["left"], claim["right"]), claim.get("metric")
    pairs = _pairs(runs, methods, claim["models"], claim["tasks"], recipe)
    named = {m: [_run(p.model, p.task, m, recipe) for p in pairs] for m in (*methods, BASE)}
    seeds = _paired(runs, [run for method in methods for run in named[method]])
    lefts, rights, bases = (
        np.column_stack([_column(runs, run, metric, seeds) for run in named[method]])
        for method in (*methods, BASE)
    )
    scored = ~(np.isnan(lefts) | np.isnan(rights))
    _check_runs(claim, pairs, scored.any(axis=0), every_role)
    complete = scored.all(axis=1)
    if not complete.any():
        raise NotRun("no seed has a score of both methods on every model and task")
    with np.errstate(invalid="ignore"):  # infinity less infinity: both undefined
        values = (lefts - rights)[complete]
        gain = (rights - bases)[complete & ~np.isnan(bases).any(axis=1)]
    used = [run for m in (*methods, *([BASE] if len(gain) else [])) for run in named[m]]
    return Sample(
        values=values,
        planned=len(seeds),
        groups=[dict(zip(RUN, run, strict=True)) for run in dict.fromkeys(used)],
        undefined=[
            *_undefined(named[methods[0]], seeds, lefts),
            *_undefined(named[methods[1]], seeds, rights),
        ],
        notes=[
            *_by_pair(pairs, values),
            *_fewest(runs, pairs, methods, recipe, seeds),
            *_missing(seeds, complete),
            *_unfilled(claim, pairs),
        ],
        stand_in=not all(_is_own(runs.config, pair) for pair in pairs),
        gain=gain,
    )


def _run(model: str, task: str, method: str, recipe: str) -> Run:
    return model, task, method, "none" if method == BASE else recipe


def _is_own(config: Config, pair: Pair) -> bool:
    """True where model and task are the paper's own and not stand-ins: the task on all its data."""
    model, task = config["models"].get(pair.model), config["tasks"].get(pair.task)
    if model is None or task is None or (pair.model, pair.task) != pair[2:]:
        return False
    data = config["datasets"][task["dataset"]]
    whole = "rows" not in data and data["source"]["kind"] != "generated"
    return whole and "stands_for" not in model


def _pairs(
    runs: Runs, methods: tuple[str, ...], models: list[str], tasks: list[str], recipe: str
) -> list[Pair]:
    """The models and tasks that fill those roles and are planned for every method."""
    own_models = [(name, role) for role in models for name in models_for(runs.config, role)]
    own_tasks = [(name, role) for role in tasks for name in tasks_for(runs.config, role)]
    pairs = [
        Pair(model, task, model_role, task_role)
        for model, model_role in own_models
        for task, task_role in own_tasks
        if all(_run(model, task, method, recipe) in runs.planned for method in methods)
    ]
    if not pairs:
        where = " and ".join(
            ", ".join(dict.fromkeys(name for name, _ in filled)) or f"any {' or '.join(roles)}"
            for filled, roles in ((own_models, models), (own_tasks, tasks))
        )
        raise NotRun(_unplanned(runs, methods, recipe, where))
    return pairs


def _unplanned(runs: Runs, methods: tuple[str, ...], recipe: str, where: str) -> str:
    """Why there is nothing to judge: a method that nobody runs, or no run where it is needed."""
    used = {method for _, _, method, _ in runs.planned}
    if unknown := [method for method in methods if method not in used]:
        return f"no run of {' or '.join(unknown)} is planned at this scale"
    return f"no run of {' and '.join(methods)} on {where} is planned with recipe {recipe}"


def _single(runs: Runs, run: Run) -> bool:
    """True for an untouched model that is run once, because nothing in it is drawn by seed."""
    return run[2] == BASE and len(runs.planned.get(run, ())) == 1


def _paired(runs: Runs, used: list[Run]) -> list[int]:
    """The seeds that are planned for all of these runs."""
    plans = [runs.planned[run] for run in used if not _single(runs, run)]
    return sorted(set.intersection(*plans)) if plans else []


def _column(runs: Runs, run: Run, metric: str | None, seeds: list[int]) -> np.ndarray:
    """The scores (seeds,) of a run: NaN where missing, infinite where undefined."""
    found = runs.scores.get((run, metric), {})
    if _single(runs, run):
        return np.full(len(seeds), next(iter(found.values()), np.nan))
    return np.array([found.get(seed, np.nan) for seed in seeds])


def _check_runs(claim: Claim, pairs: list[Pair], done: np.ndarray, every_role: bool) -> None:
    """Raise NotRun where a model or task that counts has no seed of both methods yet."""
    for kind, position in (("models", 2), ("tasks", 3)):
        filled = dict.fromkeys(pair[position] for pair in pairs)
        wanted = claim[kind] if every_role else list(filled)
        ran = {pair[position] for pair, any_seed in zip(pairs, done, strict=True) if any_seed}
        having = [role for role in wanted if role in ran]
        if not having:
            metric = f" ({claim['metric']})" if "metric" in claim else ""
            raise NotRun(f"none of the planned runs has a score{metric} of both methods")
        if len(having) < len(wanted):
            verb = "has" if len(having) == 1 else "have"
            raise NotRun(f"only {', '.join(having)} of {len(wanted)} {kind} {verb} runs")


def _undefined(used: list[Run], seeds: list[int], scores: np.ndarray) -> list[str]:
    """The runs (columns of `scores`) and seeds (rows) without a defined score."""
    return [
        f"{' '.join(used[column])} seed {seeds[row]}"
        for row, column in np.argwhere(np.isinf(scores))
    ]


def _by_pair(pairs: list[Pair], values: np.ndarray) -> list[str]:
    """The mean difference on each model and task, where there are several."""
    means = values.mean(axis=0)
    lines = [f"{p}: {number(mean, 2)} points" for p, mean in zip(pairs, means, strict=True)]
    return lines if len(pairs) > 1 else []


def _fewest(
    runs: Runs, pairs: list[Pair], methods: tuple[str, ...], recipe: str, seeds: list[int]
) -> list[str]:
    """Which of several models and tasks has fewer seeds planned than the others, and so decides."""
    plans = {
        str(pair): len(_paired(runs, [_run(pair.model, pair.task, m, recipe) for m in methods]))
        for pair in pairs
    }
    if max(plans.values()) == len(seeds):
        return []
    few = ", ".join(f"{place}: {n}" for place, n in plans.items())
    return [f"the seeds that are planned on all of them count; planned on each: {few}"]


def _missing(seeds: list[int], complete: np.ndarray) -> list[str]:
    """The seeds that are left out."""
    gone = [str(seed) for seed, found in zip(seeds, complete, strict=True) if not found]
    return [f"left out, because a score is missing: seed {', '.join(gone)}"] if gone else []


def _unfilled(claim: Claim, pairs: list[Pair]) -> list[str]:
    """The models and tasks of the claim that nothing here is or stands for."""
    filled = {role for pair in pairs for role in pair[2:]}
    idle = [role for role in (*claim["models"], *claim["tasks"]) if role not in filled]
    return [f"nothing here is, or stands for, {', '.join(idle)}"] if idle else []
