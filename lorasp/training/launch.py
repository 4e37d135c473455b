"""Start a run's processes, one for each device: `lorasp train … --processes 2`."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from lorasp import gpus
from lorasp.config import Cell, Config
from lorasp.processes import Again, Place, run


def train_on_several(
    processes: int,
    config: Config,
    cell: Cell,
    overrides: dict[str, Any],
    folder: Path | None,
    micro_batch: int | None,
) -> Path:
    """`train_cell` by so many processes of this machine, which share the rows of each step.

    Where memory runs out in one of them all start again, from the last checkpoint and with half
    the micro-batch.
    """
    runtime = config["runtime"] | config["models"][cell.model].get("runtime", {})
    retry: tuple[Any, ...] = ()
    while True:
        part = partial(_take_part, runtime["device"], config, cell, overrides, folder, micro_batch)
        try:
            run(processes, partial(part, retry))
        except Again as again:
            retry = again.args
        else:
            return (folder or cell.folder) / "train.json"


def _take_part(
    device: str,
    config: Config,
    cell: Cell,
    overrides: dict[str, Any],
    folder: Path | None,
    micro_batch: int | None,
    retry: tuple[Any, ...],
    place: Place,
) -> None:
    if device == "cpu":
        os.environ[gpus.VISIBLE] = ""  # a GPU beside it would be taken for the device
    from lorasp.training.sharded import join
    from lorasp.training.train import train_cell

    join(place, device)
    train_cell(config, cell, overrides, folder, micro_batch, *retry)
