"""Score one finished run: `lorasp evaluate --config … --model … --task … --method … …`."""

import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors import SafetensorError

from lorasp.adapters.registry import restore_model
from lorasp.config import Cell, Config, data_folder, decisive, resolve
from lorasp.data.load import check_folder
from lorasp.errors import UsageError, WorkError
from lorasp.models import load_tokenizer
from lorasp.results import provenance, read_json, write_json


def evaluate_cell(
    config: Config, cell: Cell, overrides: dict[str, Any] | None = None, folder: Path | None = None
) -> Path:
    """Evaluate the run in `folder` (by default the cell's own) and write its metrics.json.

    `overrides` are the method settings that it was trained with. Raises UsageError where the run
    was trained under another configuration, WorkError where its files or the prepared data are
    missing or damaged, or memory runs out. A run that diverged has no weights: its scores are
    undefined.
    """
    started, clock = datetime.now(UTC), perf_counter()
    folder = folder or cell.folder
    resolved = resolve(config, cell, overrides)
    places = _places(config, resolved)
    data = {role: check_folder(place)["fingerprint"] for role, place in places.items()}
    train = check_run(folder, resolved, data)
    if train["status"] == "diverged":
        note = f"the training diverged at step {train['diverged_at']}"
        scores = _undefined(resolved["task"], note)
    else:
        scores = _scores(resolved, folder, places)
    best = headline(resolved["task"]["headline"], scores["splits"])
    result = {
        "cell": resolved["cell"],
        "config": resolved,
        "data": data,
        "provenance": provenance(),
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": perf_counter() - clock,
        "headline": best,
        **scores,
    }
    path = folder / "metrics.json"
    write_json(path, result, "metrics")
    print(f"{cell}: {_in_words(best)}", file=sys.stderr)
    return path


def _places(config: Config, resolved: Config) -> dict[str, Path]:
    """The prepared folders that the evaluation reads, by what they are to the run."""
    model, task = resolved["model"]["name"], resolved["task"]
    places = {"model": data_folder(config, "models", model)}
    if task["family"] == "instruction":
        if "benchmark" not in task:
            raise UsageError(f"tasks.{task['name']} needs `benchmark`: the data set of its test")
        return places | {"benchmark": data_folder(config, task["benchmark"])}
    places["tokens"] = data_folder(config, "tokens", model, task["name"])
    if task["family"] == "translation":
        places["dataset"] = data_folder(config, task["dataset"])
    return places


def check_run(folder: Path, resolved: Config, data: dict[str, str]) -> dict[str, Any]:
    """The train.json of `folder`, which holds a run of this configuration on this prepared data.

    `data` holds the fingerprints of the prepared folders. Raises UsageError for another
    configuration, WorkError for other data and for weights that are missing or cut off.
    """
    train = read_json(folder / "train.json", "train")
    again = f"delete {folder / 'train.json'} and train again"
    parts = ("cell", "model", "task", "method", "recipe")
    was, now = (decisive("train", values) for values in (train["config"], resolved))
    was, now = ({part: values[part] for part in parts} for values in (was, now))
    if was != now:
        key, found, wanted = _difference(was, now)
        raise UsageError(
            f"{folder} was trained with {key} {found!r} and is asked for with {wanted!r}; "
            f"give the same, or {again}"
        )
    for role, fingerprint in data.items():
        if train["data"].get(role, fingerprint) != fingerprint:
            raise WorkError(f"{folder} was trained before its {role} was prepared anew; {again}")
    size = sum(file.stat().st_size for file in (folder / "adapter").glob("*.safetensors"))
    if size != train["adapter_bytes"]:
        raise WorkError(
            f"{folder / 'adapter'} holds {size} bytes of weights and the run wrote "
            f"{train['adapter_bytes']}; {again}"
        )
    return train


def _difference(was: Any, now: Any, path: str = "") -> tuple[str, Any, Any]:
    """The dotted key of one value in which two unequal nested dictionaries differ, and the two."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return path.removeprefix("."), was, now
    key = min(key for key in {*was, *now} if was.get(key) != now.get(key))
    return _difference(was.get(key), now.get(key), f"{path}.{key}")


def headline(metric: str, splits: dict[str, Any]) -> dict[str, Any]:
    """The mean of a metric over the splits (MNLI has two) and the standard error of that mean.

    Undefined in one split is undefined as a whole. The splits hold different examples, so their
    errors are independent.
    """
    parts = [split["metrics"][metric] for split in splits.values()]
    values, errors = [part["value"] for part in parts], [part["stderr"] for part in parts]
    note = next((part["note"] for part in parts if "note" in part), None)
    return {
        "metric": metric,
        "value": None if None in values else sum(values) / len(parts),
        "stderr": None if None in errors else math.hypot(*errors) / len(parts),
        "n": sum(split["n"] for split in splits.values()),
        **({"note": note} if note else {}),
    }


def _undefined(task: Config, note: str) -> dict[str, Any]:
    """Every metric of every split without a value, and why."""
    score = {"value": None, "stderr": None, "note": note}
    metrics = dict.fromkeys(task["metrics"], score)
    return {"splits": {split: {"n": 0, "metrics": metrics} for split in task["evaluate"]}}


def _scores(resolved: Config, folder: Path, places: dict[str, Path]) -> dict[str, Any]:
    """Restore the model and run the evaluation of the task's family."""
    torch.set_num_threads(resolved["runtime"]["threads"])
    tokenizer = load_tokenizer(places["model"])
    try:
        model = restore_model(resolved, places["model"], folder)
    except SafetensorError as error:
        raise WorkError(
            f"the weights in {folder / 'adapter'} cannot be read ({error}); "
            f"delete {folder / 'train.json'} and train again"
        ) from error
    size = resolved["runtime"]["eval_batch_size"]
    try:
        # sacrebleu and lm-eval take their time to import, and a task needs one of them at most
        match resolved["task"]["family"]:
            case "translation":
                from lorasp.evaluation import translation

                folders = places["tokens"], places["dataset"]
                return translation.evaluate(resolved, model, tokenizer, *folders, size)
            case "instruction":
                from lorasp.evaluation import mmlu

                return mmlu.evaluate(resolved, model, tokenizer, places["benchmark"], size)
            case _:
                from lorasp.evaluation import glue

                return glue.evaluate(resolved, model, tokenizer, places["tokens"], size)
    except torch.OutOfMemoryError as error:
        raise WorkError(
            f"a batch of {size} does not fit into the memory of the device; "
            "lower runtime.eval_batch_size"
        ) from error


def _in_words(best: dict[str, Any]) -> str:
    if best["value"] is None:
        return f"{best['metric']}: {best['note']}"
    error = "" if best["stderr"] is None else f" ± {best['stderr']:.2f}"
    return f"{best['metric']} {best['value']:.2f}{error} (n = {best['n']})"
