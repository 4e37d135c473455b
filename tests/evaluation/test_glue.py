"""GLUE's scores against a plain loop with scikit-learn and scipy; batches must not matter."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from lorasp.config import Config, data_folder, resolve
from lorasp.data.load import load_split
from lorasp.evaluation import glue
from lorasp.models import load_tokenizer


@pytest.mark.parametrize("task", ["mrpc", "stsb"])
def test_outputs_do_not_depend_on_batches_padding_or_order(
    config: Config, trained: Callable, alone: Callable, task: str
) -> None:
    cell, model = trained("roberta-tiny", task, "ft")
    resolved = resolve(config, cell)
    tokenizer = load_tokenizer(data_folder(config, "models", "roberta-tiny"))
    rows = load_split(data_folder(config, "tokens", "roberta-tiny", task), "validation")
    assert len({len(ids) for ids in rows["input_ids"]}) > 1, "equal lengths would test no padding"
    expected = alone(model, rows)
    assert np.ptp(expected, axis=0).min() > 0.1, "equal outputs would hide a wrong order"
    for size in (1, 5, 64):
        outputs = glue.predict(resolved, model, tokenizer, rows, size)
        assert outputs == pytest.approx(expected, abs=1e-5)
    order = np.random.default_rng(0).permutation(len(rows))
    outputs = glue.predict(resolved, model, tokenizer, rows.select(order), 5)
    assert outputs == pytest.approx(expected[order], abs=1e-5)


def test_scores_equal_scikit_learn_on_the_same_predictions(
    config: Config, trained: Callable, alone: Callable
) -> None:
    cell, model = trained("roberta-tiny", "mrpc", "lora")
    tokens = data_folder(config, "tokens", "roberta-tiny", "mrpc")
    rows = load_split(tokens, "validation")
    predictions, labels = alone(model, rows).argmax(1), np.array(rows["labels"])
    tokenizer = load_tokenizer(data_folder(config, "models", "roberta-tiny"))
    found = glue.evaluate(resolve(config, cell), model, tokenizer, tokens, 8)
    scores = found["splits"]["validation"]
    assert scores["n"] == len(labels)
    accuracy = metrics.accuracy_score(labels, predictions)
    assert scores["metrics"]["accuracy"]["value"] == pytest.approx(100 * accuracy)
    f1 = metrics.f1_score(labels, predictions, zero_division=0)
    assert scores["metrics"]["f1"]["value"] == pytest.approx(100 * f1)
    error = 100 * np.sqrt(accuracy * (1 - accuracy) / (len(labels) - 1))
    assert scores["metrics"]["accuracy"]["stderr"] == pytest.approx(error)


def test_regression_takes_the_single_output(
    config: Config, trained: Callable, alone: Callable
) -> None:
    cell, model = trained("roberta-tiny", "stsb", "lora")
    tokens = data_folder(config, "tokens", "roberta-tiny", "stsb")
    rows = load_split(tokens, "validation")
    outputs = alone(model, rows)
    assert outputs.shape == (len(rows), 1)
    tokenizer = load_tokenizer(data_folder(config, "models", "roberta-tiny"))
    found = glue.evaluate(resolve(config, cell), model, tokenizer, tokens, 8)
    scores = found["splits"]["validation"]["metrics"]
    expected = stats.pearsonr(outputs[:, 0].astype(float), rows["labels"]).statistic
    assert scores["pearson"]["value"] == pytest.approx(100 * expected, abs=0.01)
    expected = stats.spearmanr(outputs[:, 0], rows["labels"]).statistic
    assert scores["spearman"]["value"] == pytest.approx(100 * expected, abs=0.01)


def test_constant_predictions_have_no_correlation_but_a_note() -> None:
    task = {"family": "regression", "metrics": ["pearson"]}
    scores = glue.score(task, np.ones((4, 1), np.float32), np.arange(4.0))
    assert scores["metrics"]["pearson"]["value"] is None
    assert scores["metrics"]["pearson"]["stderr"] is None
    assert "constant" in scores["metrics"]["pearson"]["note"]


def test_outputs_that_are_not_finite_get_no_score() -> None:
    task = {"family": "classification", "metrics": ["accuracy", "f1"]}
    outputs = np.array([[0.0, 1.0], [np.nan, np.nan]])
    scores = glue.score(task, outputs, np.array([1, 0]))["metrics"]
    # argmax of the second row is 0: it would count as right
    assert scores["accuracy"]["value"] is None and "not finite" in scores["accuracy"]["note"]


def test_both_dev_sets_of_mnli(config: Config, trained: Callable, alone: Callable) -> None:
    cell, model = trained("roberta-tiny", "mnli", "lora")
    tokens = data_folder(config, "tokens", "roberta-tiny", "mnli")
    tokenizer = load_tokenizer(data_folder(config, "models", "roberta-tiny"))
    found = glue.evaluate(resolve(config, cell), model, tokenizer, tokens, 8)["splits"]
    assert list(found) == ["validation_matched", "validation_mismatched"]
    for split, scores in found.items():
        rows = load_split(tokens, split)
        right = alone(model, rows).argmax(1) == np.array(rows["labels"])
        assert scores["metrics"]["accuracy"]["value"] == pytest.approx(100 * right.mean())
