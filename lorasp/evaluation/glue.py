"""Classification and regression: GLUE's metrics of the model's predictions on tokenised splits."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorasp import metrics
from lorasp.data.load import load_split
from lorasp.evaluation.batches import map_by_length
from lorasp.evaluation.uncertainty import bootstrap_error, error_of_mean
from lorasp.models import autocast, device_of

Resolved = dict[str, Any]


def evaluate(
    resolved: Resolved,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Path,
    batch_size: int,
) -> dict[str, Any]:
    """The scores of every split in the task's `evaluate`, from the folder of its tokens."""
    splits = {}
    for split in resolved["task"]["evaluate"]:
        rows = load_split(tokens, split)
        outputs = predict(resolved, model, tokenizer, rows, batch_size, split)
        splits[split] = score(resolved["task"], outputs, np.asarray(rows["labels"]))
    return {"splits": splits}


def predict(
    resolved: Resolved,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    batch_size: int,
    title: str = "predict",
) -> np.ndarray:
    """The model's float32 outputs in the rows' order: (n, classes), or (n, 1) for regression."""

    def run(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with autocast(resolved):
            logits: torch.Tensor = model(**batch).logits
        return logits.float().cpu()

    device = device_of(resolved)
    return torch.stack(map_by_length(run, rows, tokenizer, batch_size, device, title)).numpy()


def score(task: dict[str, Any], outputs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """n and {metric: value and standard error} of (n, classes) or (n, 1) outputs.

    A score that is undefined is null and carries a note that says why.
    """
    names = task["metrics"]
    values: dict[str, float | None]
    if not np.isfinite(outputs).all():
        # argmax of NaN is a class like any other: a diverged run must not get a score
        values, note = dict.fromkeys(names), "the model's outputs are not finite"
    elif task["family"] == "regression":
        predictions = outputs.squeeze(1)
        values = metrics.regression_metrics(predictions, labels, names)
        note = "undefined: the predictions or the labels are constant"
    else:
        predictions = outputs.argmax(1)
        values, note = metrics.classification_metrics(predictions, labels, names), ""
    return {
        "n": len(labels),
        "metrics": {
            name: {"value": None, "stderr": None, "note": note}
            if value is None
            else {"value": value, "stderr": _standard_error(name, predictions, labels)}
            for name, value in values.items()
        },
    }


def _standard_error(name: str, predictions: np.ndarray, labels: np.ndarray) -> float | None:
    if name == "accuracy":
        return error_of_mean(100.0 * (predictions == labels))
    return bootstrap_error(name, predictions, labels)
