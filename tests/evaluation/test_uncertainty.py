"""Standard errors against closed forms; what they resample against the scores themselves."""

import numpy as np
import pytest

from lorasp.evaluation.uncertainty import STATISTICS, bootstrap_error, error_of_mean
from lorasp.metrics import classification_metrics, regression_metrics


def test_the_error_of_an_accuracy_is_binomial() -> None:
    correct = np.array([100.0] * 30 + [0.0] * 10)
    assert error_of_mean(correct) == pytest.approx(100 * np.sqrt(0.75 * 0.25 / 39))


def test_one_example_has_no_error() -> None:
    assert error_of_mean(np.ones(1)) is None
    assert bootstrap_error("pearson", np.ones(1), np.ones(1)) is None


@pytest.mark.parametrize("classes", [2, 3])
def test_class_statistics_equal_the_scores_of_each_row(classes: int) -> None:
    found, truth = np.random.default_rng(0).integers(0, classes, (2, 6, 25))
    found[0] = 0  # a resample may hold one class only
    for name in ["matthews"] + ["f1"] * (classes == 2):
        expected = [
            classification_metrics(f, t, [name])[name] for f, t in zip(found, truth, strict=True)
        ]
        assert 100 * STATISTICS[name](found, truth) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlations_equal_the_scores_of_each_row(name: str) -> None:
    rng = np.random.default_rng(0)
    found, truth = rng.normal(size=(4, 20)), rng.integers(0, 5, (4, 20)).astype(float)
    expected = [regression_metrics(f, t, [name])[name] for f, t in zip(found, truth, strict=True)]
    assert 100 * STATISTICS[name](found, truth) == pytest.approx(np.array(expected))


def test_the_bootstrap_of_pearson_finds_its_asymptotic_error() -> None:
    rng, rho, size = np.random.default_rng(3), 0.6, 1500
    x, noise = rng.normal(size=(2, size))
    error = bootstrap_error("pearson", x, rho * x + np.sqrt(1 - rho**2) * noise)
    assert error == pytest.approx(100 * (1 - rho**2) / np.sqrt(size), rel=0.1)


def test_the_bootstrap_of_f1_finds_its_asymptotic_error() -> None:
    # F1 is a function of the proportion p = TP / (TP + FP + FN) of the pairs with a 1 in them:
    # F1 = 2p / (1 + p), so by the delta method its error is 2 / (1 + p)^2 sqrt(p (1 - p) / m)
    found = np.array([1] * 300 + [1] * 100 + [0] * 100 + [0] * 500)
    truth = np.array([1] * 300 + [0] * 100 + [1] * 100 + [0] * 500)
    p, m = 300 / 500, 500
    expected = 2 / (1 + p) ** 2 * np.sqrt(p * (1 - p) / m)
    assert bootstrap_error("f1", found, truth) == pytest.approx(100 * expected, rel=0.1)


def test_the_bootstrap_is_seeded() -> None:
    found, truth = np.random.default_rng(0).normal(size=(2, 30))
    assert bootstrap_error("spearman", found, truth) == bootstrap_error("spearman", found, truth)


def test_undefined_resamples_are_left_out() -> None:
    # of three pairs, one in nine resamples is one pair thrice, and has no correlation
    found, truth = np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 1.0])
    error = bootstrap_error("pearson", found, truth)
    assert error is not None and 0 < error < 200
    assert bootstrap_error("pearson", np.ones(3), truth) is None
