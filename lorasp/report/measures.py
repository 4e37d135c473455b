"""How methods are compared over seeds and tasks: probability of improvement, interquartile mean.

The measures of Agarwal et al. 2021 (arXiv 2108.13264), computed by SciPy: their own package,
rliable, is no longer maintained and would bring arch and seaborn along.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from lorasp.claims.statistics import RESAMPLES

LEVEL = 0.95  # of the bootstrap intervals, as in that paper
WORST = -np.inf  # the score of a run that diverged, where only the order of scores counts

Estimate = dict[str, Any]


def improvement(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> Estimate:
    """P(X > Y): how probably a run of `left` beats a run of `right`, averaged over the tasks.

    Both hold the scores (seeds,) of each task, in the same order of tasks; the seeds need be
    neither equal in number nor paired. A task has U / (n m), the Mann-Whitney statistic, in which
    a tie counts one half. Returns {estimate, interval, tasks}; the interval is None where a task
    has a single run of either side.
    """
    tasks = len(left)

    def mean(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        pairs = zip(samples[:tasks], samples[tasks:], strict=True)
        return np.mean([_beats(x, y, axis) for x, y in pairs], axis=0)

    return _estimated([*left, *right], mean) | {"tasks": tasks}


def _beats(left: np.ndarray, right: np.ndarray, axis: int) -> np.ndarray:
    # only the statistic is used; its p-value, which samples of ties alone do not have, is not
    with np.errstate(divide="ignore", invalid="ignore"):
        u = stats.mannwhitneyu(left, right, axis=axis, method="asymptotic").statistic
    return np.asarray(u / (left.shape[axis] * right.shape[axis]))


def interquartile_mean(tasks: Sequence[np.ndarray]) -> Estimate:
    """Mean of the middle half of all runs of all tasks: a quarter is cut off at either end.

    `tasks` holds the normalised scores (seeds,) of each task; every run counts once. Returns
    {estimate, interval, tasks}; the interval is None where a task has a single run.
    """

    def middle(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(stats.trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis))

    return _estimated(tasks, middle) | {"tasks": len(tasks)}


def _estimated(samples: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]) -> Estimate:
    """A statistic and its percentile interval: runs are drawn again within each sample alone."""
    found: Estimate = {"estimate": float(statistic(*samples)), "interval": None}
    if min(len(sample) for sample in samples) > 1:
        drawn = stats.bootstrap(
            tuple(samples),
            statistic,
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(0),
        ).confidence_interval
        found["interval"] = [float(drawn.low), float(drawn.high)]
    return found


def normalised(scores: np.ndarray, base: float, best: float) -> np.ndarray:
    """Scores on a scale that all tasks share: 0 is the untouched base model's mean, 1 the best."""
    return (scores - base) / (best - base)


def standing(means: Mapping[str, float]) -> dict[str, int]:
    """The place of each name by its mean, the highest first; equal means share the better place."""
    ranks = stats.rankdata([-mean for mean in means.values()], method="min")
    return {name: int(rank) for name, rank in zip(means, ranks, strict=True)}
