"""Texts into token ids, once for each (model, task); no padding: batches are padded in training."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lorasp.data.load import load_split, splits
from lorasp.errors import WorkError
from lorasp.results import fingerprint

IGNORED = -100  # the label that PyTorch's cross-entropy skips
Task = dict[str, Any]
Batch = dict[str, list[Any]]
Encode = Callable[[Batch], Batch]


def write_tokens(folder: Path, task: Task, model: Path, dataset: Path) -> None:
    """Write `{split}/` for the splits of a task that the data set has.

    Columns: input_ids, attention_mask, token_type_ids (where the tokenizer makes them), labels
    (a class index, a score, or token ids) and length (of input_ids). Nothing is longer than the
    task's max_length, but for translations to be scored. Raises WorkError for a missing column or
    split, an empty split, or a label outside the task's range.
    """
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    for split in wanted_splits(task, dataset):
        # What is scored against a full reference is translated in full.
        whole = task["family"] == "translation" and split in task["evaluate"]
        encode = _encoder(tokenizer, task | {"max_length": None} if whole else task)
        table = load_split(dataset, split)
        check_table(table, task, dataset / f"{split}.parquet")
        # A given fingerprint keeps the file's bytes equal from run to run.
        tokens = table.map(
            encode,
            batched=True,
            remove_columns=table.column_names,
            new_fingerprint=fingerprint([split, task["name"]])[:16],
        )
        if task["family"] == "instruction":
            tokens = _with_answers(tokens, dataset / f"{split}.parquet", task)
        tokens.save_to_disk(str(folder / split))


def wanted_splits(task: Task, dataset: Path) -> list[str]:
    """The training split, those that are evaluated, and the task's `validation` if it names one."""
    present = splits(dataset)
    # Instructions are evaluated on a benchmark, which is not a split of their own data.
    evaluated = [] if task["family"] == "instruction" else task["evaluate"]
    named = [task["train"], *evaluated, *([task["validation"]] if "validation" in task else [])]
    needed = list(dict.fromkeys(named))
    for split in needed:
        if split not in present:
            raise WorkError(
                f"task {task['name']} needs the split {split!r} of {dataset}; "
                f"there is {', '.join(present) or 'none'}"
            )
    return needed


def check_table(table: Dataset, task: Task, file: Path) -> None:
    """Raise WorkError unless the table has rows, the task's columns and labels in range."""
    if len(table) == 0:
        raise WorkError(f"{file} is empty: task {task['name']} needs at least one row in it")
    for column in (*task["text"], task["label"]):
        if column not in table.column_names:
            raise WorkError(
                f"{file} has no column {column!r}, which task {task['name']} reads; "
                f"it has {', '.join(table.column_names)}"
            )
    texts = [*task["text"]]
    if task["family"] in ("translation", "instruction"):
        texts.append(task["label"])
    for column in texts:
        for row, text in enumerate(table[column]):
            if not isinstance(text, str):
                raise WorkError(f"{file}, row {row}: {column} is {text!r}; it must be a text")
    if task["label"] in texts:
        return
    classes = range(len(task.get("labels", [])))
    for row, label in enumerate(table[task["label"]]):
        if task["family"] == "classification" and label not in classes:
            allowed = f"0 to {len(classes) - 1} ({', '.join(task['labels'])})"
        elif task["family"] == "regression" and not _is_number(label):
            allowed = "a finite number"
        else:
            continue
        raise WorkError(f"{file}, row {row}: the label is {label!r}; allowed is {allowed}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < float("inf")


def _encoder(tokenizer: PreTrainedTokenizerBase, task: Task) -> Encode:
    """The function from a batch of rows to a batch of tokens for the family of the task."""
    limits = {"truncation": task["max_length"] is not None, "max_length": task["max_length"]}
    make = {
        "classification": _encode_texts,
        "regression": _encode_texts,
        "translation": _encode_translation,
        "instruction": _encode_instruction,
    }[task["family"]]

    def encode(batch: Batch) -> Batch:
        tokens = make(tokenizer, task, limits, batch)
        return tokens | {"length": [len(ids) for ids in tokens["input_ids"]]}

    return encode


def _encode_texts(
    tokenizer: PreTrainedTokenizerBase, task: Task, limits: dict[str, Any], batch: Batch
) -> Batch:
    texts = [batch[column] for column in task["text"]]
    kind = float if task["family"] == "regression" else int
    return {
        **tokenizer(*texts, **limits),
        "labels": [kind(label) for label in batch[task["label"]]],
    }


def _encode_translation(
    tokenizer: PreTrainedTokenizerBase, task: Task, limits: dict[str, Any], batch: Batch
) -> Batch:
    source = [task["prefix"] + text for text in batch[task["text"][0]]]
    target = tokenizer(text_target=batch[task["label"]], **limits)["input_ids"]
    tokens = tokenizer(source, return_token_type_ids=False, **limits)
    return {**tokens, "labels": target}


def _encode_instruction(
    tokenizer: PreTrainedTokenizerBase, task: Task, limits: dict[str, Any], batch: Batch
) -> Batch:
    """Prompt and answer are encoded apart, so that the mask ends exactly between them."""
    tokens: Batch = {"input_ids": [], "attention_mask": [], "labels": []}
    columns = (*task["text"], task["label"])
    for row in zip(*(batch[column] for column in columns), strict=True):
        values = dict(zip(columns, row, strict=True))
        prompt = tokenizer(prompt_text(task, values))["input_ids"]
        answer = tokenizer(values[task["label"]], add_special_tokens=False)["input_ids"]
        ids = (prompt + answer + [tokenizer.eos_token_id])[: limits["max_length"]]
        tokens["input_ids"].append(ids)
        tokens["attention_mask"].append([1] * len(ids))
        tokens["labels"].append(([IGNORED] * len(prompt))[: len(ids)] + ids[len(prompt) :])
    return tokens


def prompt_text(task: Task, row: dict[str, Any]) -> str:
    """The prompt of an instruction; the shorter one where its second column is empty."""
    optional = task["text"][-1]
    form = "prompt" if row.get(optional) else "prompt_without_input"
    text: str = task[form].format(**{column: row[column] for column in task["text"]})
    return text


def _with_answers(tokens: Dataset, file: Path, task: Task) -> Dataset:
    """The rows that have a label left; the loss of a prompt that fills max_length is no number."""
    kept = [
        row
        for row, labels in enumerate(tokens["labels"])
        if any(label != IGNORED for label in labels)
    ]
    if not kept:
        raise WorkError(
            f"{file}: no prompt is shorter than max_length {task['max_length']} of task "
            f"{task['name']}, so no answer is left to learn; raise max_length"
        )
    if dropped := len(tokens) - len(kept):
        print(
            f"{file}: {dropped} of {len(tokens)} prompts leave no room for an answer",
            file=sys.stderr,
        )
    return tokens.select(kept, new_fingerprint=tokens._fingerprint)
