"""Train one cell with the Hugging Face Trainer: `lorasp train --config … --model … --task … …`."""

import gc
import math
import shutil
import signal
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from lorasp import optimizers
from lorasp.adapters import hooks
from lorasp.adapters.registry import apply_method, count_parameters, save_adapter
from lorasp.config import Cell, data_folder, resolve
from lorasp.data.load import check_folder, load_split
from lorasp.errors import UsageError, WorkError, is_out_of_memory
from lorasp.models import attention_of, device_of, load_model, load_tokenizer
from lorasp.processes import Again
from lorasp.recompute import recompute_activations
from lorasp.results import forget_results, provenance, write_json
from lorasp.training import best_epoch, sharded
from lorasp.training.callbacks import Allocation, Checkpoints, Diverged, Progress, Selection
from lorasp.training.checkpoints import newest_sound
from lorasp.training.history import History, identity, recall
from lorasp.training.trainer import CellTrainer

MINUTES = 10  # between two checkpoints, where runtime.checkpoint_minutes is not given
UNTRAINED: dict[str, Any] = {
    "status": "finished",
    "diverged_at": None,
    "steps": 0,
    "examples": 0,
    "tokens": 0,
    "loss": [],
    "final_loss": None,
    "best": None,
}


def train_cell(
    config: dict[str, Any],
    cell: Cell,
    overrides: dict[str, Any] | None = None,
    folder: Path | None = None,
    micro_batch: int | None = None,
    retried: dict[str, Any] | None = None,
) -> Path:
    """Train a cell and write `adapter/` and `train.json` into its folder; the path of the latter.

    The untouched base model (`base`) takes no step. `micro_batch` sequences are computed at a time:
    by default the recipe's micro_batch_size, else the whole batch. The batch of a step stays what
    the recipe says, and so does its loss: another micro-batch is the same run but for rounding,
    and for which entries a dropout of the model takes out.

    A run that was interrupted goes on from its last checkpoint in `.checkpoints/`; one whose loss
    or weights are no longer numbers has the status 'diverged' and an empty `adapter/`. Raises
    UsageError for settings that cannot be trained and WorkError for damaged inputs or a disk that
    refuses.

    Where several processes work on it, all call this and the first one writes the files. Again is
    raised where memory ran out in one: they start once more, with its argument as `retried`, what
    the run's history is from then on.
    """
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
    device_of(resolved)  # or there is none, which is told before anything asks CUDA
    torch.set_num_threads(resolved["runtime"]["threads"])
    # Deterministic kernels where there are any; a warning names the ones that are not.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It also fills new memory with NaN, which only helps to find who reads what was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    processes = sharded.size()
    asked = _micro_batch(resolved["recipe"], processes) if resolved["recipe"] else None
    checkpoints = folder / ".checkpoints"
    mine = identity(resolved, data, processes)
    history = sharded.told(lambda: recall(checkpoints, mine, asked))
    if retried:
        vars(history).update(retried)
    tokenizer = load_tokenizer(model_folder)
    model, outcome = _model(resolved, model_folder), UNTRAINED
    if resolved["method"]["family"] != "base":
        while not (fitted := _fit(model, tokenizer, resolved, token_folder, history, checkpoints)):
            del model  # before the next one takes its place
            gc.collect()
            torch.cuda.empty_cache()
            model = _model(resolved, model_folder)
        outcome = fitted

    peak = sharded.most(history.peak_memory(resolved["runtime"]["device"]))
    state = sharded.gathered(model) if outcome["status"] == "finished" else None
    if not sharded.is_first():
        return folder / "train.json"
    adapter_bytes = _write_adapter(model, state, tokenizer, resolved, outcome["status"], folder)
    write_json(
        folder / "train.json",
        {
            "cell": resolved["cell"],
            "config": resolved,
            "data": data,
            "provenance": provenance(),
            "started": history.started,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "wall_seconds": history.seconds(),
            "peak_memory_bytes": peak,
            "processes": processes,
            "attention": attention_of(model),
            "micro_batch": {"asked": asked, "used": history.micro_batch, "halved": history.halved},
            "resumed": history.resumed,
            "parameters": count_parameters(model),
            "adapter_bytes": adapter_bytes,
            **outcome,
        },
        "train",
    )
    shutil.rmtree(checkpoints, ignore_errors=True)
    return folder / "train.json"


def _model(resolved: dict[str, Any], folder: Path) -> torch.nn.Module:
    """The model as it is before its first step, whatever was drawn before."""
    if resolved["runtime"]["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()  # what a try with more at a time took is not its peak
    set_seed(resolved["cell"]["seed"])
    model = apply_method(load_model(resolved, folder, sharded.parts(resolved)), resolved)
    recompute_activations(model, resolved)
    return model


def _write_adapter(
    model: torch.nn.Module,
    state: dict[str, torch.Tensor] | None,
    tokenizer: PreTrainedTokenizerBase,
    resolved: dict[str, Any],
    status: str,
    folder: Path,
) -> int:
    """Put what was trained into `folder`/adapter, nothing of a diverged run; bytes of the weights.

    Raises WorkError where the disk refuses.
    """
    fresh = folder / "adapter.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        size = save_adapter(model, fresh, state) if status == "finished" else 0
        if status == "finished" and resolved["method"]["family"] == "full":
            tokenizer.save_pretrained(fresh)  # the folder is then a model that can be prepared
        forget_results(folder)  # what was said of the former adapter goes before it
        shutil.rmtree(folder / "adapter", ignore_errors=True)
        fresh.rename(folder / "adapter")
    except OSError as error:
        raise WorkError(f"cannot write {folder / 'adapter'}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return size


def _fit(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    resolved: dict[str, Any],
    token_folder: Path,
    history: History,
    checkpoints: Path,
) -> dict[str, Any] | None:
    """Train the model in place; what train.json says about the steps taken, None without memory.

    Goes on from the last checkpoint. SIGTERM or Ctrl-C ends it with one, and the process.
    """
    task, recipe = resolved["task"], resolved["recipe"]
    training = load_split(token_folder, task["train"])
    steps_an_epoch = math.ceil(len(training) / recipe["batch_size"])
    steps = recipe.get("max_steps", math.ceil(steps_an_epoch * recipe["epochs"]))
    best = recipe["select"] == "best"
    validation = best_epoch.rows(task, token_folder) if best else None
    several = sharded.size() > 1
    kind = optimizers.kind_of(resolved)
    if several and (hooks.reallocates(model) or kind == "lorafa"):
        raise UsageError(
            f"method {resolved['method']['name']} trains in one process: "
            + ("LoRA-FA's optimizer" if kind == "lorafa" else "what it moves between modules")
            + " cannot be shared out; leave out --processes, or give it 1"
        )
    trainer = (sharded.ShardedTrainer if several else CellTrainer)(
        model=model,
        args=_arguments(resolved, checkpoints, history.micro_batch or 1, steps, best),
        train_dataset=training,
        eval_dataset=validation,
        data_collator=_collator(tokenizer, model, resolved),
        compute_metrics=best_epoch.headline(task)
        if best and "loss" not in best_epoch.metric(task)
        else None,
    )
    trainer.causal = resolved["model"]["architecture"] == "causal"
    trainer.model_accepts_loss_kwargs = True  # the loss comes divided by the whole batch
    trainer.history = history
    trainer.resolved = resolved
    if trainer.args.n_gpu > 1:
        raise UsageError(
            f"{trainer.args.n_gpu} CUDA devices are visible, and one run would spread its batch "
            "over all of them: name one, for instance CUDA_VISIBLE_DEVICES=0"
        )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    minutes = resolved["runtime"].get("checkpoint_minutes", MINUTES)
    keeper_of = sharded.AgreedCheckpoints if several else Checkpoints
    keeper = keeper_of(trainer, minutes, best, history.checkpoint)
    progress = Progress()
    for callback in (Selection(model), Allocation(model), keeper, progress):
        trainer.add_callback(callback)
    status, diverged_at = "finished", None
    handlers = {
        number: signal.signal(number, keeper.stop)
        for number in (signal.SIGTERM, signal.SIGINT)
        if signal.getsignal(number) != signal.SIG_IGN  # as a shell has it for what is in its back
    }
    try:
        checkpoint = history.checkpoint
        with closing(progress):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        history.halve(trainer.state.global_step + 1, recipe["batch_size"], sharded.size())
        if several:  # the others wait for what this process was about to do
            raise Again(history.for_retry()) from None
        history.checkpoint = newest_sound(checkpoints)
        return None
    except Diverged as error:
        if sharded.is_first():
            print(error, file=sys.stderr)
        status, diverged_at = "diverged", error.step
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if keeper.told:
        raise SystemExit(keeper.told)
    if sharded.is_first():
        print(f"{status} after {trainer.state.global_step} steps in {history.seconds():.1f} s")
    epochs, rest = divmod(trainer.state.global_step, steps_an_epoch)
    log = [
        {key: entry[key] for key in ("step", "epoch", "loss", "learning_rate")}
        for entry in trainer.state.log_history
        if math.isfinite(entry.get("loss", math.nan))
    ]
    done = status == "finished"
    return {
        "status": status,
        "diverged_at": diverged_at,
        "steps": trainer.state.global_step,
        "examples": epochs * len(training) + rest * recipe["batch_size"],
        "tokens": int(trainer.state.num_input_tokens_seen),
        "loss": log,
        "final_loss": log[-1]["loss"] if log and done else None,
        "best": best_epoch.chosen(trainer, task) if best and done else None,
    }


def _arguments(
    resolved: dict[str, Any], folder: Path, micro: int, steps: int, best: bool
) -> TrainingArguments:
    recipe, runtime = resolved["recipe"], resolved["runtime"]
    at_once = micro * sharded.size()
    if recipe["batch_size"] % at_once:
        several = f" in each of {sharded.size()} processes" if sharded.size() > 1 else ""
        raise UsageError(
            f"micro_batch_size {micro}{several} does not divide batch_size {recipe['batch_size']}"
            f"{', which --processes must divide too' if several else ''}"
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
        gradient_accumulation_steps=recipe["batch_size"] // at_once,
        ddp_backend="gloo" if runtime["device"] == "cpu" and sharded.size() > 1 else None,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # masks follow from the seed, in every process
        per_device_eval_batch_size=runtime["eval_batch_size"],
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        include_num_input_tokens_seen="non_padding",
        eval_strategy="epoch" if best else "no",
        save_strategy="epoch" if best else "no",  # when is told by Checkpoints
        load_best_model_at_end=best,
        metric_for_best_model=best_epoch.metric(resolved["task"]) if best else None,
        greater_is_better="loss" not in best_epoch.metric(resolved["task"]) if best else None,
        logging_strategy="steps",
        logging_steps=max(1, steps // 50),
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=runtime.get("report_to", "none"),
        run_name=str(folder.parent),
        disable_tqdm=True,  # our own bar, one line with loss, rate and time left
        dataloader_pin_memory=runtime["device"] == "cuda",
    )


def _micro_batch(recipe: dict[str, Any], processes: int) -> int:
    share = max(1, recipe["batch_size"] // processes)
    return int(recipe.get("micro_batch_size", share))


def _collator(
    tokenizer: PreTrainedTokenizerBase, model: torch.nn.Module, resolved: dict[str, Any]
) -> Any:
    """Pad each batch to its own longest example; labels of sequences are padded with -100."""
    if resolved["model"]["architecture"] == "encoder":
        return DataCollatorWithPadding(tokenizer)
    seq2seq = resolved["model"]["architecture"] == "seq2seq"
    return DataCollatorForSeq2Seq(tokenizer, model=model if seq2seq else None)
