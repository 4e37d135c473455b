"""The scores of GLUE on the paper's scale, 0 to 100, as scikit-learn and scipy compute them.

These are the calls behind GLUE's own metric script, which has to be fetched from the hub.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from lorasp.errors import UsageError

CLASSIFICATION = ("accuracy", "f1", "matthews")
REGRESSION = ("pearson", "spearman")


def classification_metrics(
    predictions: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> dict[str, float | None]:
    """Scores of class indices against class indices, both of shape (n,).

    F1 is that of class 1. Where a score is 0/0 (one class only) it is 0, as in scikit-learn.
    Raises UsageError for a name that is not in CLASSIFICATION.
    """
    _check_names(names, CLASSIFICATION, "classification")
    score = {
        "accuracy": accuracy_score,
        "f1": lambda truth, found: f1_score(truth, found, zero_division=0.0),
        "matthews": matthews_corrcoef,
    }
    return {name: 100 * float(score[name](labels, predictions)) for name in names}


def regression_metrics(
    predictions: np.ndarray, labels: np.ndarray, names: Sequence[str]
) -> dict[str, float | None]:
    """Correlations of two real vectors of shape (n,); None where one of them is constant.

    Predictions that are not finite give None too. Raises UsageError for a name that is not in
    REGRESSION.
    """
    _check_names(names, REGRESSION, "regression")
    found, truth = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if not np.isfinite(found).all() or np.ptp(found) == 0 or np.ptp(truth) == 0:
        return dict.fromkeys(names)
    score = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}
    return {name: 100 * float(score[name](found, truth).statistic) for name in names}


def _check_names(names: Sequence[str], allowed: Sequence[str], family: str) -> None:
    if unknown := sorted(set(names) - set(allowed)):
        raise UsageError(
            f"metrics {', '.join(unknown)} are not for {family}; allowed are {', '.join(allowed)}"
        )
