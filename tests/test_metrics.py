"""The scores against formulas written out by hand."""

import math

import numpy as np
import pytest

from lorasp.errors import UsageError
from lorasp.metrics import classification_metrics, regression_metrics


def counts(found: list[int], truth: list[int]) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives, true negatives of class 1."""
    pairs = list(zip(found, truth, strict=True))
    return tuple(pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0)))


@pytest.mark.parametrize("seed", range(5))
def test_classification_against_the_confusion_table(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, truth = rng.integers(0, 2, (2, 40))
    tp, fp, fn, tn = counts(found.tolist(), truth.tolist())
    scores = classification_metrics(found, truth, ["accuracy", "f1", "matthews"])
    assert scores["accuracy"] == pytest.approx(100 * (tp + tn) / 40)
    assert scores["f1"] == pytest.approx(100 * 2 * tp / (2 * tp + fp + fn))
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    assert scores["matthews"] == pytest.approx(100 * (tp * tn - fp * fn) / math.sqrt(product))


def test_f1_is_that_of_class_one() -> None:
    found, truth = np.array([1, 0, 0, 0]), np.array([1, 1, 0, 0])
    assert classification_metrics(found, truth, ["f1"])["f1"] == pytest.approx(100 * 2 / 3)
    # of class 0 it would be 80, the macro average 73
    assert classification_metrics(1 - found, 1 - truth, ["f1"])["f1"] == pytest.approx(80)


def test_one_class_only_scores_zero_as_in_scikit_learn() -> None:
    found, truth = np.zeros(6, int), np.array([0, 1] * 3)
    scores = classification_metrics(found, truth, ["accuracy", "f1", "matthews"])
    assert scores == {"accuracy": 50.0, "f1": 0.0, "matthews": 0.0}


def ranks(values: list[float]) -> list[float]:
    """Ranks from 1, equal values sharing the mean of theirs."""
    return [
        sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values
    ]


def correlation(x: list[float], y: list[float]) -> float:
    """Pearson's r by its definition."""
    n, mean_x, mean_y = len(x), sum(x) / len(x), sum(y) / len(y)
    covariance = sum((x[i] - mean_x) * (y[i] - mean_y) for i in range(n))
    return covariance / math.sqrt(
        sum((value - mean_x) ** 2 for value in x) * sum((value - mean_y) ** 2 for value in y)
    )


def test_regression_against_the_definitions() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 6, 30).astype(float)  # with ties, as in STS-B
    found = (truth + rng.normal(size=30)).astype(np.float32)
    scores = regression_metrics(found, truth, ["pearson", "spearman"])
    x, y = found.astype(float).tolist(), truth.tolist()
    assert scores["pearson"] == pytest.approx(100 * correlation(x, y))
    assert scores["spearman"] == pytest.approx(100 * correlation(ranks(x), ranks(y)))


@pytest.mark.parametrize("found", [[2.0, 2.0, 2.0], [1.0, math.nan, 2.0], [1.0, math.inf, 2.0]])
def test_an_undefined_correlation_is_none(found: list[float]) -> None:
    scores = regression_metrics(np.array(found), np.array([1.0, 2.0, 3.0]), ["pearson", "spearman"])
    assert scores == {"pearson": None, "spearman": None}


def test_constant_labels_are_undefined_too() -> None:
    assert regression_metrics(np.array([1.0, 2.0]), np.ones(2), ["pearson"]) == {"pearson": None}


def test_a_metric_of_another_family_is_refused() -> None:
    with pytest.raises(UsageError, match=r"pearson.*classification.*accuracy, f1, matthews"):
        classification_metrics(np.zeros(2), np.zeros(2), ["pearson"])
    with pytest.raises(UsageError, match=r"bleu.*regression.*pearson, spearman"):
        regression_metrics(np.zeros(2), np.zeros(2), ["bleu"])
