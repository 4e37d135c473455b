"""Standard errors of the scores: closed form for a mean, a seeded bootstrap for the others.

Both are over the examples of a split; the spread over training seeds is the report's business.
"""

from collections.abc import Callable

import numpy as np
from scipy import stats

RESAMPLES = 1000
AT_ONCE = 50  # resamples in memory, each as large as the split
SEED = 0


def error_of_mean(values: np.ndarray) -> float | None:
    """Standard error of the mean of (n,) values; None for fewer than two."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def bootstrap_error(metric: str, predictions: np.ndarray, labels: np.ndarray) -> float | None:
    """Standard error, 0 to 100, of `metric` over RESAMPLES resamples of the (n,) example pairs.

    Resamples in which the metric is undefined are left out; None where fewer than two remain.
    """
    if len(labels) < 2:
        return None
    rng, spread = np.random.default_rng(SEED), np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, AT_ONCE):
        drawn = rng.integers(len(labels), size=(AT_ONCE, len(labels)))
        spread[start : start + AT_ONCE] = STATISTICS[metric](predictions[drawn], labels[drawn])
    spread = spread[np.isfinite(spread)]
    return 100 * float(np.std(spread, ddof=1)) if len(spread) > 1 else None


def _f1(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """2 TP / (2 TP + FP + FN) of class 1, along the last axis; 0 where there is none."""
    hits = ((predictions == 1) & (labels == 1)).sum(-1)
    marked = (predictions == 1).sum(-1) + (labels == 1).sum(-1)
    return 2 * hits / np.maximum(marked, 1)


def _matthews(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The correlation of two class assignments along the last axis; 0 where one is constant."""
    size = labels.shape[-1]
    classes = np.union1d(predictions, labels)
    found = np.stack([(predictions == c).mean(-1) for c in classes])
    truth = np.stack([(labels == c).mean(-1) for c in classes])
    agreement = (predictions == labels).sum(-1) / size
    covariance = agreement - (found * truth).sum(0)
    product = (1 - (found**2).sum(0)) * (1 - (truth**2).sum(0))
    defined = product > 1e-12
    return np.where(defined, covariance / np.sqrt(np.where(defined, product, 1)), 0.0)


def _pearson(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The linear correlation along the last axis; NaN where one side is constant."""
    x = predictions - predictions.mean(-1, keepdims=True)
    y = labels - labels.mean(-1, keepdims=True)
    product = (x**2).sum(-1) * (y**2).sum(-1)
    return (x * y).sum(-1) / np.sqrt(np.where(product > 0, product, np.nan))


def _spearman(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The linear correlation of the ranks, ties sharing their mean rank."""
    return _pearson(stats.rankdata(predictions, axis=-1), stats.rankdata(labels, axis=-1))


STATISTICS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
