"""`select: best`: the rows and the metric that choose an epoch, and the one that was chosen."""

from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import Trainer

from lorasp.data.load import load_split
from lorasp.errors import UsageError
from lorasp.metrics import classification_metrics, regression_metrics


def rows(task: dict[str, Any], token_folder: Path) -> Dataset:
    """The rows by which an epoch is chosen: GLUE has its dev sets and no other.

    Raises UsageError for a task without any.
    """
    if task["family"] in ("classification", "regression"):
        return concatenate_datasets([load_split(token_folder, name) for name in task["evaluate"]])
    if "validation" not in task:
        raise UsageError(
            f"task {task['name']} has no validation split, so the recipe's select cannot be best; "
            "use select: last, or name a `validation` split in the task's definition"
        )
    return load_split(token_folder, task["validation"])


def metric(task: dict[str, Any]) -> str:
    """What the Trainer calls the metric: the task's headline, or the loss where texts are made."""
    scored = task["family"] in ("classification", "regression")
    return "eval_headline" if scored else "eval_loss"


def headline(task: dict[str, Any]) -> Any:
    """The Trainer's compute_metrics: the task's headline metric under the name `headline`."""

    def compute(prediction: Any) -> dict[str, float]:
        scores, labels = prediction.predictions, prediction.label_ids
        if task["family"] == "regression":
            value = regression_metrics(scores.reshape(-1), labels, [task["headline"]])
        else:
            value = classification_metrics(scores.argmax(-1), labels, [task["headline"]])
        found = value[task["headline"]]
        # undefined (constant predictions) is worse than any score on the scale of -100 to 100
        return {"headline": -101.0 if found is None else found}

    return compute


def chosen(trainer: Trainer, task: dict[str, Any]) -> dict[str, float]:
    """The best epoch of a run that is over, and its value of the metric."""
    name = metric(task)
    scores = [entry for entry in trainer.state.log_history if name in entry]
    best = (min if name == "eval_loss" else max)(scores, key=lambda entry: entry[name])
    return {"epoch": best["epoch"], "value": best[name]}
