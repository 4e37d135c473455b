"""A run that is interrupted, by whatever and whenever, ends as one that was never interrupted."""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Run, adapter_of

from lorasp.config import Config
from lorasp.training import train

# What two parts of one run may differ in.
OWN = ("started", "finished", "wall_seconds", "peak_memory_bytes", "resumed", "provenance")
Child = Callable[[], Any]


def in_child(work: Child) -> int:
    """Start `work` in a forked process with a process group of its own; its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def outcome(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What two runs are compared by."""
    record = json.loads((folder / "train.json").read_text())
    return {key: value for key, value in record.items() if key not in OWN}, adapter_of(folder)


def assert_same(one: Path, two: Path) -> None:
    (record, weights), (other, others) = outcome(one), outcome(two)
    assert record == other
    assert set(weights) == set(others)
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture
def often(config: Config) -> None:
    """A checkpoint after every step."""
    config["runtime"]["checkpoint_minutes"] = 1e-9


CASES = [
    ("lora-sp", "roberta-tiny", {"select": "best", "epochs": 3}),
    ("lora-sp", "roberta-tiny", {"select": "last", "epochs": 2, "settings": {"resample": "epoch", "dropout": 0.1}}),
    ("lora-sp", "roberta-tiny", {"select": "best", "epochs": 2, "settings": {"resample": "step"}, "micro_batch_size": 4}),
    ("ft", "roberta-tiny", {"select": "best", "epochs": 2, "max_steps": 6}),
    ("ft", "t5-tiny", {"select": "best", "epochs": 2, "batch_size": 24}),
    ("lora", "llama-tiny", {"max_steps": 5, "settings": {"dropout": 0.1}}),
]


@pytest.mark.parametrize(("method", "model", "recipe"), CASES)
def test_killed_after_each_step(run: Run, often: None, project: Path, method, model, recipe, capfd) -> None:
    whole, record = run(method, model, out="whole", **recipe)
    saved = train.CellTrainer._save_checkpoint
    parts = 0
    while not (project / "parts" / "train.json").exists():
        def die(self, *args):
            saved(self, *args)
            os.kill(os.getpid(), signal.SIGKILL)
        def part():
            train.CellTrainer._save_checkpoint = die
            run(method, model, out="parts", **recipe)
        process = in_child(part)
        status = os.waitpid(process, 0)[1]
        parts += 1
        assert parts < 30
    print(record["steps"], parts)
    again = json.loads((project / "parts" / "train.json").read_text())
    print(again["resumed"])
    assert_same(whole, project / "parts")
    print(capfd.readouterr().err[-600:])
