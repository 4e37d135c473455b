"""Run a function over a data set in batches of similar length, so that little is padding."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Result = TypeVar("Result")


def map_by_length(
    run: Callable[[dict[str, torch.Tensor]], Iterable[Result]],
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    device: torch.device,
    title: str,
) -> list[Result]:
    """`run` on padded model inputs, each tensor (batch, longest); results in the rows' order.

    The longest come first: what does not fit into memory fails at once, not at the end. `rows` are
    tokens as `prepare` leaves them, with their `length`.
    """
    lengths = rows["length"][:]
    rows = rows.select_columns([name for name in INPUTS if name in rows.column_names])
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    collate = DataCollatorWithPadding(tokenizer)
    results: dict[int, Result] = {}
    with torch.inference_mode(), tqdm(total=len(order), desc=title, unit="ex") as progress:
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            features: Any = rows[indices]  # read at once: row by row takes twice the time
            batch = collate(features)
            outputs = run({name: values.to(device) for name, values in batch.items()})
            results |= zip(indices, outputs, strict=True)
            progress.update(len(indices))
    return [results[index] for index in range(len(order))]
