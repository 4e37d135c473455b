"""Train one cell with the Hugging Face Trainer: `lorasp train --config … --model … --task … …`."""

import datetime
import math
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from lorasp.adapters.registry import apply_method, count_parameters, save_adapter
from lorasp.config import Cell, data_folder, resolve
from lorasp.data.load import check_folder, load_split
from lorasp.errors import UsageError, WorkError
from lorasp.metrics import classification_metrics, regression_metrics
from lorasp.models import load_model, load_tokenizer
from lorasp.recompute import recompute_activations
from lorasp.results import provenance, write_json
from lorasp.training.callbacks import Progress, Selection


def train_cell(
    config: dict[str, Any],
    cell: Cell,
    overrides: dict[str, Any] | None = None,
    folder: Path | None = None,
    micro_batch: int | None = None,
) -> Path:
    """Train a cell and write `adapter/` and `train.json` into its folder; the path of the latter.

    The untouched base model (`base`) takes no step. `micro_batch` sequences are computed at a time:
    by default the recipe's micro_batch_size, else the whole batch. The batch of a step stays what
    the recipe says, and so does its loss: another micro-batch is the same run but for rounding,
    and for which entries a dropout of the model takes out. Raises UsageError for settings that
    cannot be trained and WorkError for damaged inputs or a loss that is no longer a number.
    """
    started = datetime.datetime.now(datetime.UTC)
    resolved = resolve(config, cell, overrides)
    if micro_batch and resolved["recipe"]:
        resolved["recipe"]["micro_batch_size"] = micro_batch
    folder = folder or cell.folder
    model_folder = data_folder(config, "models", cell.model)
    token_folder = data_folder(config, "tokens", cell.model, cell.task)
    data = {
        "model": check_folder(model_folder)["fingerprint"],
        "tokens": check_folder(token_folder)["fingerprint"],
    }
    set_seed(cell.seed)
    torch.set_num_threads(resolved["runtime"]["threads"])
    # Deterministic kernels where there are any; a warning names the ones that are not.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It also fills new memory with NaN, which only helps to find who reads what was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    tokenizer = load_tokenizer(model_folder)
    model = apply_method(load_model(resolved, model_folder), resolved)
    recompute_activations(model, resolved)
    if resolved["runtime"]["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()

    outcome: dict[str, Any] = {
        "steps": 0,
        "examples": 0,
        "tokens": 0,
        "loss": [],
        "final_loss": None,
        "best": None,
    }
    if resolved["method"]["family"] != "base":
        outcome = _fit(model, tokenizer, resolved, token_folder, folder)

    fresh = folder / "adapter.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        adapter_bytes = save_adapter(model, fresh)
        if resolved["method"]["family"] == "full":
            tokenizer.save_pretrained(fresh)  # the folder is then a model that can be prepared
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        fresh.rename(folder / "adapter")
    except OSError as error:
        raise WorkError(f"cannot write {folder / 'adapter'}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    finished = datetime.datetime.now(datetime.UTC)
    write_json(
        folder / "train.json",
        {
            "cell": resolved["cell"],
            "config": resolved,
            "data": data,
            "provenance": provenance(),
            "started": started.isoformat(timespec="seconds"),
            "finished": finished.isoformat(timespec="seconds"),
            "wall_seconds": (finished - started).total_seconds(),
            "peak_memory_bytes": peak_memory(resolved["runtime"]["device"]),
            "parameters": count_parameters(model),
            "adapter_bytes": adapter_bytes,
            **outcome,
        },
        "train",
    )
    return folder / "train.json"


def peak_memory(device: str) -> int:
    """Bytes: the CUDA allocator's peak, or the peak resident set of this process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024


def _fit(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    resolved: dict[str, Any],
    token_folder: Path,
    folder: Path,
) -> dict[str, Any]:
    """Train the model in place; what train.json says about the steps taken."""
    task, recipe = resolved["task"], resolved["recipe"]
    training = load_split(token_folder, task["train"])
    steps_an_epoch = math.ceil(len(training) / recipe["batch_size"])
    steps = recipe.get("max_steps", math.ceil(steps_an_epoch * recipe["epochs"]))
    best = recipe["select"] == "best"
    validation = _selection_rows(task, token_folder) if best else None
    checkpoints = folder / ".checkpoints"
    shutil.rmtree(checkpoints, ignore_errors=True)
    trainer = CellTrainer(
        model=model,
        args=_arguments(resolved, checkpoints, steps, best),
        train_dataset=training,
        eval_dataset=validation,
        data_collator=_collator(tokenizer, model, resolved),
        compute_metrics=_headline(task) if best and "loss" not in _selection_metric(task) else None,
        callbacks=[Selection(model), Progress()],
    )
    trainer.causal = resolved["model"]["architecture"] == "causal"
    trainer.model_accepts_loss_kwargs = True  # the loss comes divided by the whole batch
    if trainer.args.n_gpu > 1:
        raise UsageError(
            f"{trainer.args.n_gpu} CUDA devices are visible, and one run would spread its batch "
            "over all of them: name one, for instance CUDA_VISIBLE_DEVICES=0"
        )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    began = time.perf_counter()
    try:
        trainer.train()
    except torch.OutOfMemoryError as error:
        raise WorkError(
            "out of GPU memory: give --micro-batch, or the recipe's micro_batch_size, less than "
            f"{_micro_batch(recipe)} (the batch stays what it is), or set the method's recompute "
            "to selective or full"
        ) from error
    finally:
        shutil.rmtree(checkpoints, ignore_errors=True)
    print(f"trained {trainer.state.global_step} steps in {time.perf_counter() - began:.1f} s")
    epochs, rest = divmod(trainer.state.global_step, steps_an_epoch)
    log = [
        {key: entry[key] for key in ("step", "epoch", "loss", "learning_rate")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return {
        "steps": trainer.state.global_step,
        "examples": epochs * len(training) + rest * recipe["batch_size"],
        "tokens": int(trainer.state.num_input_tokens_seen),
        "loss": log,
        "final_loss": log[-1]["loss"] if log else None,
        "best": _best(trainer, task) if best else None,
    }


def _arguments(resolved: dict[str, Any], folder: Path, steps: int, best: bool) -> TrainingArguments:
    recipe, runtime = resolved["recipe"], resolved["runtime"]
    micro = _micro_batch(recipe)
    if recipe["batch_size"] % micro:
        raise UsageError(
            f"micro_batch_size {micro} does not divide batch_size {recipe['batch_size']}"
        )
    seed = resolved["cell"]["seed"]
    return TrainingArguments(
        output_dir=str(folder),
        seed=seed,
        data_seed=seed,
        use_cpu=runtime["device"] == "cpu",
        bf16=runtime["precision"] == "bf16",
        fp16=runtime["precision"] == "fp16",
        # one kernel for all weights, which needs no memory of its own
        optim="adamw_torch_fused" if runtime["device"] == "cuda" else "adamw_torch",
        learning_rate=recipe["learning_rate"],
        weight_decay=recipe["weight_decay"],
        lr_scheduler_type=recipe["schedule"],
        warmup_steps=math.ceil(steps * recipe["warmup_ratio"]),
        num_train_epochs=recipe["epochs"],
        max_steps=recipe.get("max_steps", -1),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=recipe["batch_size"] // micro,
        per_device_eval_batch_size=runtime["eval_batch_size"],
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        include_num_input_tokens_seen="non_padding",
        eval_strategy="epoch" if best else "no",
        save_strategy="epoch" if best else "no",
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=best,
        metric_for_best_model=_selection_metric(resolved["task"]) if best else None,
        greater_is_better="loss" not in _selection_metric(resolved["task"]) if best else None,
        logging_strategy="steps",
        logging_steps=max(1, steps // 50),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=runtime.get("report_to", "none"),
        run_name=str(folder.parent),
        disable_tqdm=True,  # our own bar, one line with loss, rate and time left
        dataloader_pin_memory=runtime["device"] == "cuda",
    )


def _micro_batch(recipe: dict[str, Any]) -> int:
    return int(recipe.get("micro_batch_size", recipe["batch_size"]))


def _collator(
    tokenizer: PreTrainedTokenizerBase, model: torch.nn.Module, resolved: dict[str, Any]
) -> Any:
    """Pad each batch to its own longest example; labels of sequences are padded with -100."""
    if resolved["model"]["architecture"] == "encoder":
        return DataCollatorWithPadding(tokenizer)
    seq2seq = resolved["model"]["architecture"] == "seq2seq"
    return DataCollatorForSeq2Seq(tokenizer, model=model if seq2seq else None)


def _selection_rows(task: dict[str, Any], token_folder: Path) -> Dataset:
    """The rows by which `select: best` chooses an epoch: GLUE has its dev sets and no other."""
    if task["family"] in ("classification", "regression"):
        return concatenate_datasets([load_split(token_folder, name) for name in task["evaluate"]])
    if "validation" not in task:
        raise UsageError(
            f"task {task['name']} has no validation split, so the recipe's select cannot be best; "
            "use select: last, or name a `validation` split in the task's definition"
        )
    return load_split(token_folder, task["validation"])


def _selection_metric(task: dict[str, Any]) -> str:
    scored = task["family"] in ("classification", "regression")
    return "eval_headline" if scored else "eval_loss"


def _headline(task: dict[str, Any]) -> Any:
    """The Trainer's compute_metrics: the task's headline metric under the name `headline`."""

    def compute(prediction: Any) -> dict[str, float]:
        scores, labels = prediction.predictions, prediction.label_ids
        if task["family"] == "regression":
            value = regression_metrics(scores.reshape(-1), labels, [task["headline"]])
        else:
            value = classification_metrics(scores.argmax(-1), labels, [task["headline"]])
        headline = value[task["headline"]]
        # undefined (constant predictions) is worse than any score on the scale of -100 to 100
        return {"headline": -101.0 if headline is None else headline}

    return compute


def _best(trainer: Trainer, task: dict[str, Any]) -> dict[str, float]:
    metric = _selection_metric(task)
    scores = [entry for entry in trainer.state.log_history if metric in entry]
    chosen = (min if metric == "eval_loss" else max)(scores, key=lambda entry: entry[metric])
    return {"epoch": chosen["epoch"], "value": chosen[metric]}


class CellTrainer(Trainer):
    """The Trainer, with batches by the lengths that `prepare` counted, and a whole batch's loss.

    A step's loss is the mean over the examples of its batch, or over their tokens, into however
    many micro-batches it is cut.
    """

    causal = False  # causal models divide by the tokens of the whole batch themselves

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # the Trainer would drop the lengths and count anew, or read them one by one from the disk
        rows: Any = self.train_dataset
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(batch_size, lengths=rows["length"][:])

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if num_items_in_batch is None or self.causal:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs)
        loss = outputs.loss * (inputs["labels"] != -100).sum() / num_items_in_batch
        return (loss, outputs) if return_outputs else loss
