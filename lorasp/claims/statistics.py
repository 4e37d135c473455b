"""The tests behind a verdict, each with its intervals and the number of seeds that would settle it.

The tests, their power and Holm's correction are statsmodels', the bootstrap is SciPy's. Scores are
in points, 0 to 100, and higher is better.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

ALPHA = 0.05
LEVEL = 1 - 2 * ALPHA  # of the intervals: TOST passes where this one lies within the margin
POWER = 0.8
MOST_SEEDS = 1000
RESAMPLES = 2000
TIE = 1e-9  # values that differ by less are the same number, summed in another order

Test = dict[str, Any]


def equivalent(values: np.ndarray, margin: float, planned: int | None = None) -> Test:
    """Two one-sided tests (Schuirmann 1987) of -margin < mean < margin; against: outside it.

    `values`, here and in the other two, is (seeds,) or, for a mean over several tasks,
    (seeds, tasks), in points: ours less the printed score, or left less right of the same seed.
    Returns the `test` of verdicts.schema.json with the p-values not yet adjusted; they are None
    where fewer than two seeds, no spread or an undefined score leave nothing to test.
    """
    return _test("equivalent", values, margin, planned)


def noninferior(values: np.ndarray, margin: float, planned: int | None = None) -> Test:
    """One-sided t test of mean > -margin; against: of mean < -margin."""
    return _test("noninferior", values, margin, planned)


def superior(values: np.ndarray, margin: float = 0.0, planned: int | None = None) -> Test:
    """One-sided t test of mean > margin, which is 0 in a claim; against: of mean < margin."""
    return _test("superior", values, margin, planned)


def p_values(name: str, values: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """The p-values for and against, of one sample (seeds,) or of each column (seeds, samples).

    Both are NaN for a sample that cannot be tested.
    """
    from statsmodels.stats.weightstats import DescrStatsW  # two seconds, so only when it is needed

    values, testable = np.asarray(values, dtype=float), _testable(values)
    if not testable.any():
        return np.full(testable.shape, np.nan), np.full(testable.shape, np.nan)
    sample = DescrStatsW(_widened(np.where(testable, values, np.nan)))
    if name == "equivalent":
        p = sample.ttost_mean(-margin, margin)[0]
        above = sample.ttest_mean(margin, alternative="larger")[1]
        below = sample.ttest_mean(-margin, alternative="smaller")[1]
        against = np.minimum(1, 2 * np.minimum(above, below))
    else:
        p = sample.ttest_mean(bound(name, margin), alternative="larger")[1]
        against = sample.ttest_mean(bound(name, margin), alternative="smaller")[1]
    return np.where(testable, p, np.nan), np.where(testable, against, np.nan)


def _testable(values: np.ndarray) -> np.ndarray:
    """Whether a sample has two values or more, all defined, that are not all the same."""
    if len(values) < 2:
        return np.zeros(values.shape[1:], dtype=bool)
    with np.errstate(invalid="ignore"):
        return np.isfinite(values).all(axis=0) & (np.ptp(values, axis=0) > TIE)


def _widened(values: np.ndarray) -> np.ndarray:
    """Samples with ties, moved away from their mean by what the steps of a score may hide.

    A score counts examples and so moves in steps. When seeds spread by less than a step, most of
    them agree by rounding alone, and a t test takes that for precision: simulated, it errs in up to
    8 % of cases instead of 5 %. As in Sheppard's correction the variance of rounding is added,
    step² / 12 for each of the two scores in a difference; the step is the smallest difference in
    the sample. A sample without ties comes back as it is.
    """
    gaps = np.diff(np.sort(values, axis=0), axis=0)
    tied = (gaps <= TIE).any(axis=0)
    step = np.min(gaps, axis=0, where=gaps > TIE, initial=np.inf)
    mean, variance = values.mean(axis=0), values.var(axis=0, ddof=1)
    hidden = np.where(tied, step, 0.0) ** 2 / 6
    return np.where(tied, mean + (values - mean) * np.sqrt(1 + hidden / variance), values)


def holm(p: Sequence[float | None]) -> list[float]:
    """Holm's adjusted p-values. A claim that could not be tested counts with p = 1."""
    from statsmodels.stats.multitest import multipletests

    known = [1.0 if value is None else value for value in p]
    if len(known) == 1:  # statsmodels collects all garbage at every call, which takes a while
        return known
    return [float(value) for value in multipletests(known, ALPHA, method="holm")[1]]


def adjust(family: list[Test]) -> None:
    """Fill in Holm's adjusted p-values of the tests of a family, for and against apart."""
    for key in ("p", "p_against"):
        for test, adjusted in zip(family, holm([test[key] for test in family]), strict=True):
            test[f"{key}_adjusted"] = None if test[key] is None else adjusted


def still_open(family: list[Test], key: str) -> int:
    """How many tests of a family Holm has not rejected: it compares the next with ALPHA over that.

    `key` is p or p_against.
    """
    adjusted = [test[f"{key}_adjusted"] for test in family]
    return sum(p is None or p >= ALPHA for p in adjusted)


def decide(test: Test) -> str:
    """The verdict of a test with its adjusted p-values."""
    if test["p"] is None:
        return "inconclusive"
    if test["p_adjusted"] < ALPHA:
        return "reproduced"
    return "not reproduced" if test["p_against_adjusted"] < ALPHA else "inconclusive"


def interval(values: np.ndarray) -> list[float] | None:
    """Student's interval at LEVEL for the mean of (seeds,) values; None where nothing is tested."""
    from statsmodels.stats.weightstats import DescrStatsW

    if not _testable(values):
        return None
    low, high = DescrStatsW(_widened(np.asarray(values, dtype=float))).tconfint_mean(1 - LEVEL)
    return [float(low), float(high)]


def bootstrap(values: np.ndarray) -> list[float] | None:
    """Percentile interval at LEVEL of the mean of (seeds, tasks) values, stratified by task.

    Seeds are drawn again within each task, from a fixed random state.
    """
    if not _testable(values.mean(axis=1)):
        return None
    drawn = stats.bootstrap(
        tuple(values.T),
        lambda *tasks, axis: np.mean([np.mean(task, axis=axis) for task in tasks], axis=0),
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return [float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)]


def bound(name: str, margin: float) -> float:
    """Where the mean must lie above in a one-sided test."""
    return margin if name == "superior" else -margin


def towards(test: Test) -> str:
    """Which p-value more seeds with this mean would make small: p or p_against."""
    mean, margin = test["estimate"], test["margin"]
    within = (
        abs(mean) < margin if test["name"] == "equivalent" else mean > bound(test["name"], margin)
    )
    return "p" if within else "p_against"


def seeds_needed(test: Test, values: np.ndarray, alpha: float) -> int | None:
    """The seeds with which a test would decide with power 0.8, if mean and spread stay.

    `values` are those of the test. It would be decided towards 'reproduced' where the mean is on
    that side of the margin, else towards 'not reproduced'. `alpha` is the level that Holm leaves.
    None: more than MOST_SEEDS, or the test has no p-value.
    """
    from statsmodels.stats.power import TTestPower

    if test["p"] is None:
        return None
    name, margin, mean = test["name"], test["margin"], test["estimate"]
    sd = float(np.std(_widened(values.reshape(len(values), -1).mean(axis=1)), ddof=1))
    seeds = np.arange(2, MOST_SEEDS + 1)
    if name != "equivalent":
        gaps = [abs(mean - bound(name, margin))]
    elif towards(test) == "p":
        gaps = [margin - mean, margin + mean]  # two tests, both of which must succeed
    else:
        gaps, alpha = [abs(mean) - margin], alpha / 2
    failing = sum(
        1 - TTestPower().power(gap / sd, seeds, alpha, alternative="larger") for gap in gaps
    )
    enough = seeds[1 - failing >= POWER]
    return int(enough[0]) if len(enough) else None


def _test(name: str, values: np.ndarray, margin: float, planned: int | None) -> Test:
    tasks = np.asarray(values, dtype=float)
    tasks = tasks[:, None] if tasks.ndim == 1 else tasks
    each = tasks.mean(axis=1)
    p, against = (
        None if np.isnan(value) else float(value) for value in p_values(name, each, margin)
    )
    defined = len(each) > 0 and bool(np.isfinite(each).all())
    return {
        "name": name,
        "n": int(np.isfinite(each).sum()),
        "planned": len(each) if planned is None else planned,
        "estimate": float(each.mean()) if defined else None,
        "interval": interval(each),
        "level": LEVEL,
        "margin": margin,
        "p": p,
        "p_adjusted": None,
        "p_against": against,
        "p_against_adjusted": None,
        "bootstrap": bootstrap(tasks),
        "seeds_needed": None,
    }
