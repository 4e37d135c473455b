"""Methods that do something between the steps, or bring an optimizer: real runs, killed and not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from parts import assert_same, resumed, start, wait
from runs import Run, adapter_of, weights
from test_resume import KILLED, dies_in
from transformers import TrainerCallback

from lorasp.adapters import hooks
from lorasp.adapters.dynamic import allocation_steps
from lorasp.config import Config
from lorasp.errors import UsageError
from lorasp.training import train

METHODS: dict[str, dict[str, Any]] = {
    "dynamic": {
        "family": "DYNAMIC_LORA",
        "settings": {"rank": 4, "lora_alpha": 4, "warmup_share": 0.1, "measure_steps": 2},
    },
    "ada": {
        "family": "ADALORA",
        "settings": {"init_r": 4, "target_r": 2, "lora_alpha": 8, "tinit": 1, "total_step": 1000},
    },
    "plus": {
        "family": "LORA",
        "settings": {"rank": 4, "optimizer": {"kind": "loraplus", "loraplus_lr_ratio": 4}},
    },
    "fa": {"family": "LORA", "settings": {"rank": 4, "optimizer": {"kind": "lorafa"}}},
    "mini": {"family": "LORA_MINI", "settings": {"rank": 4, "inner_in": 8, "lora_alpha": 4}},
}


@pytest.fixture(autouse=True)
def methods(config: Config) -> Config:
    """The methods above, and a checkpoint after every step."""
    for name, entry in METHODS.items():
        about = {"label": name, "source": "a test", "trainable_rule": "as its settings say"}
        config["methods"][name] = {**about, **entry}
    config["runtime"]["checkpoint_minutes"] = 1e-9
    return config


class Calls(TrainerCallback):
    """The gradients and ranks that a hook sees and leaves, step by step."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.ranks: list[dict[str, int]] = []


@pytest.mark.parametrize("micro", [None, 4])
@pytest.mark.parametrize("name", METHODS)
def test_killed_after_every_step(
    run: Run, project: Path, name: str, micro: int | None, tmp_path: Path
) -> None:
    recipe: dict[str, Any] = {"select": "best", "epochs": 2}
    if micro:
        recipe["micro_batch_size"] = micro

    def part() -> None:
        dies_in(train.CellTrainer, "_save_checkpoint")
        run(name, out="parts", **recipe)

    whole, record = run(name, out="whole", **recipe)
    codes = [wait(start(part))]
    while codes[-1] == KILLED:
        codes.append(wait(start(part)))
    assert codes == [KILLED] * record["steps"] + [0]
    assert_same(whole, project / "parts")
    assert resumed(project / "parts") == [*range(1, len(codes))]
