"""GLUE's work, an epoch and an evaluation, beside transformers' recipe: `lorasp bench glue`."""

import itertools
import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from sklearn.metrics import accuracy_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from lorasp.bench import measure
from lorasp.config import Cell, Config, data_folder
from lorasp.data.generated import BAD, GOOD, NOUNS, VERBS
from lorasp.data.load import load_split
from lorasp.data.prepare import prepare_dataset, prepare_model, prepare_tokens
from lorasp.evaluation.evaluate import evaluate_cell
from lorasp.methods import table
from lorasp.planning.workload import facts
from lorasp.results import read_json
from lorasp.training.train import train_cell

SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    # keeps the variance of what a layer is given: at the usual 0.02 little of a text would reach
    # the first token, from which an untrained model has to tell its class
    "initializer_range": 256**-0.5,
}
ROWS = {"train": 640, "validation": 256}
ROUNDS = 2  # and one that warms up: about four minutes on two quiet cores
BATCH = 16  # that of LoRA's runs of RoBERTa-base on GLUE
RATE, RANK, MAX_LENGTH = 3e-3, 16, 128
TARGETS = ["query", "value"]
PAIR = ["sentence1", "sentence2"]
COLUMNS = {"sst2": ["sentence"], "mrpc": PAIR, "rte": PAIR}
# Mean tokens of an example as a plan assumes them, special tokens included and nothing cut.
MEAN = {task: facts()["datasets"][f"nyu-mll/glue/{task}"]["tokens"] for task in COLUMNS}
# Mean and standard deviation. The deviations, and SST-2's mean in validation, are from memory:
# it trains on phrases and is evaluated on whole sentences. An example of MRPC or RTE is a pair;
# RTE's first text is a paragraph at times, and about one pair in eleven is cut.
LENGTHS = {
    "sst2": {"train": (MEAN["sst2"], 9), "validation": (25, 11)},
    "mrpc": {"train": (MEAN["mrpc"], 13), "validation": (MEAN["mrpc"], 13)},
    "rte": {"train": (MEAN["rte"], 45), "validation": (MEAN["rte"], 45)},
}
APART = 3.0  # points of accuracy, 8 of 256 rows: as all share them, those that differ alone count
FLIPPED = 0.1  # labels that say the opposite of their text: a perfect score would hide differences
OURS, PEER, DYNAMIC = "lorasp", "transformers, padded to 128", "transformers, dynamic padding"


def bench(rounds: int, cores: int) -> dict[str, Any]:
    """Examples a second of `lorasp train` and `lorasp evaluate`, beside the usual script's steps.

    All load their model and begin with texts that are tokenised; ours also checks the prepared
    files, writes its adapter and results, and loads the adapter again to evaluate it. A round is
    a seed.
    """
    torch.set_num_threads(cores)
    cases, figures, checks = [], [], []
    with tempfile.TemporaryDirectory() as name:
        for task in LENGTHS:
            config = prepared(Path(name, task), task, cores)
            scores: dict[str, list[float]] = {OURS: [], PEER: [], DYNAMIC: []}
            seconds = measure.in_turn(contestants(config, task, scores), rounds)
            cases.append(_case(task, seconds))
            figures.append(measure.ratios(seconds[PEER], seconds[OURS]))
            checks += [
                same_accuracy(task, peer, scores[OURS], scores[peer]) for peer in (PEER, DYNAMIC)
            ]
    what = (
        f"a RoBERTa of {SIZES['num_hidden_layers']} layers, hidden {SIZES['hidden_size']}, random "
        f"weights; {ROWS['train']} invented texts to train on and {ROWS['validation']} to evaluate "
        f"on, in lengths like SST-2's, MRPC's and RTE's; batch {BATCH}, {cores} threads, {rounds} "
        "rounds; the goal is for the task that gains least"
    )
    least = min(figures, key=lambda figure: figure["median"])
    return measure.result("glue", what, cases, {"glue.speed": least}, checks)


def _case(task: str, seconds: measure.Seconds) -> dict[str, Any]:
    examples = sum(ROWS.values())
    return {
        "case": f"{task}: an epoch and an evaluation",
        "unit": "examples a second",
        "values": {
            who: measure.quartiles([examples / taken for taken in times])
            for who, times in seconds.items()
        },
    }


def same_accuracy(task: str, peer: str, ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """The check that both learned, and equally well, over seeds that share their rows.

    Args:
        ours: accuracy of each seed, 0 to 100; `theirs` the same.
    """
    means = np.mean(ours), np.mean(theirs)
    learned = 50 + 5 * 50 / math.sqrt(ROWS["validation"])
    return {
        "what": f"{task}: accuracy of ours and of {peer}, mean of {len(ours)} seeds",
        "found": f"{means[0]:.1f} and {means[1]:.1f}",
        "allowed": f"{APART} apart on the rows that both share, and {learned:.1f} at least",
        "met": bool(abs(means[0] - means[1]) <= APART and min(means) >= learned),
    }


def prepared(folder: Path, task: str, cores: int) -> Config:
    """A configuration whose data set, model and tokens lie below `folder`, as `prepare` left them.

    It holds what one cell needs: (roberta, `task`, lora-sp, usual, any seed).
    """
    for split, (mean, deviation) in LENGTHS[task].items():
        file = folder / "texts" / f"{split}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        texts(task, split, mean, deviation).to_parquet(file)
    methods = table()
    methods["lora-sp"]["settings"] |= {"rank": RANK, "lora_alpha": RANK}
    config: Config = {
        "scale": "bench",
        "data_dir": str(folder / "data"),
        "runtime": {
            "device": "cpu",
            "precision": "fp32",
            "threads": cores,
            "eval_batch_size": BATCH,
        },
        "datasets": {task: {"source": {"kind": "local", "path": str(folder / "texts")}}},
        "models": {
            "roberta": {
                "architecture": "encoder",
                "targets": TARGETS,
                "source": {
                    "kind": "generated",
                    "shape": "roberta",
                    "config": SIZES,
                    "vocabulary": {"dataset": task, "columns": COLUMNS[task], "size": 1000},
                },
            }
        },
        "tasks": {task: {"dataset": task, "max_length": MAX_LENGTH}},
        "methods": methods,
        # what the Trainer does where nothing is said, but for the rate
        "recipes": {
            "usual": {
                "learning_rate": RATE,
                "epochs": 1,
                "batch_size": BATCH,
                "weight_decay": 0.0,
                "warmup_ratio": 0.0,
                "schedule": "linear",
                "select": "last",
            }
        },
    }
    prepare_dataset(config, task)
    prepare_model(config, "roberta")
    prepare_tokens(config, "roberta", task)
    return config


def texts(task: str, split: str, mean: float, deviation: float) -> Dataset:
    """Invented rows of a split, balanced, whose tokens vary in number as a log-normal does.

    Half of the words of a text are kind, or unkind, and its label says which. Every word is one
    token, and `prepare` adds two special ones for each text.
    """
    rng = random.Random(f"{task}/{split}")
    spread = math.sqrt(math.log(1 + (deviation / mean) ** 2))
    columns = COLUMNS[task]
    rows = []
    for index in range(ROWS[split]):
        tokens = round(rng.lognormvariate(math.log(mean) - spread**2 / 2, spread))
        words = max(min(tokens, MAX_LENGTH) - 2 * len(columns), 2 * len(columns))
        kind = index % 2
        telling = rng.choices(GOOD if kind else BAD, k=math.ceil(words / 2))
        drawn = telling + rng.choices(["the", *NOUNS, *VERBS], k=words - len(telling))
        rng.shuffle(drawn)
        parts = [drawn] if len(columns) == 1 else [drawn[: words // 2], drawn[words // 2 :]]
        label = kind if rng.random() >= FLIPPED else 1 - kind
        sentences = dict(zip(columns, map(" ".join, parts), strict=True))
        rows.append({**sentences, "label": label, "idx": index})
    return Dataset.from_list(rows)


def contestants(
    config: Config, task: str, scores: dict[str, list[float]]
) -> dict[str, Callable[[], None]]:
    """What each runs in a round; it adds the accuracy, 0 to 100, to its list in `scores`."""
    model, dataset = data_folder(config, "models", "roberta"), data_folder(config, task)
    tokenizer = AutoTokenizer.from_pretrained(model)
    padded, ragged = (
        {split: _encoded(load_split(dataset, split), tokenizer, task, how) for split in ROWS}
        for how in ("max_length", False)
    )
    dynamic = DataCollatorWithPadding(tokenizer)
    runs: dict[str, Callable[[int], float]] = {
        OURS: lambda seed: train_and_evaluate(config, task, seed),
        PEER: lambda seed: fine_tune(model, padded, default_data_collator, seed),
        DYNAMIC: lambda seed: fine_tune(model, ragged, dynamic, seed),
    }

    def numbered(who: str) -> Callable[[], None]:
        seeds = itertools.count()
        return lambda: scores[who].append(runs[who](next(seeds)))

    return {who: numbered(who) for who in runs}


def train_and_evaluate(config: Config, task: str, seed: int) -> float:
    """The accuracy, 0 to 100, of a run of `lorasp train` and of `lorasp evaluate`."""
    cell = Cell("bench", "roberta", task, "lora-sp", "usual", seed)
    with tempfile.TemporaryDirectory() as name:
        train_cell(config, cell, folder=Path(name))
        found = read_json(evaluate_cell(config, cell, folder=Path(name)), "metrics")
    return float(found["headline"]["value"])


def _encoded(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, task: str, padding: str | bool
) -> Dataset:
    def encode(batch: dict[str, list[Any]]) -> Any:
        parts = [batch[column] for column in COLUMNS[task]]
        return tokenizer(*parts, padding=padding, max_length=MAX_LENGTH, truncation=True)

    return rows.map(encode, batched=True)


def fine_tune(model: Path, rows: dict[str, Dataset], collator: Any, seed: int) -> float:
    """The accuracy, 0 to 100, of PEFT's LoRA under the Trainer with its own defaults."""
    torch.use_deterministic_algorithms(False)  # ours has turned it on
    set_seed(seed)
    classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    lora = LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=RANK, target_modules=TARGETS)
    with tempfile.TemporaryDirectory() as name:
        trainer = Trainer(
            model=get_peft_model(classifier, lora),
            args=TrainingArguments(
                output_dir=name,
                seed=seed,
                use_cpu=True,
                learning_rate=RATE,
                num_train_epochs=1,
                per_device_train_batch_size=BATCH,
                per_device_eval_batch_size=BATCH,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            data_collator=collator,
            compute_metrics=_accuracy,
        )
        trainer.train()
        return float(trainer.evaluate()["eval_accuracy"])


def _accuracy(found: Any) -> dict[str, float]:
    return {"accuracy": 100 * accuracy_score(found.label_ids, found.predictions.argmax(1))}
