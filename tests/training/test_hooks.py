"""Methods that do something between the steps, or bring an optimizer: real runs, killed and not."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import assert_same, resumed, start, wait
from peft import AdaLoraConfig, get_peft_model
from runs import Run, adapter_of
from test_resume import KILLED, dies_in
from transformers import TrainerCallback

from lorasp.adapters import hooks
from lorasp.config import Config
from lorasp.errors import UsageError
from lorasp.methods import table
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


class Watch(TrainerCallback):
    """Of each step: the gradients when the hook came, and the optimizer's rates and decays."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.gradients: list[bool] = []
        self.rates: list[set[tuple[float, float]]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        groups = kwargs["optimizer"].param_groups
        self.rates.append({(group["lr"], group["weight_decay"]) for group in groups})


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watching, inner = Watch(), hooks.after_step

    def after_step(model: Any, step: int) -> None:
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        watching.gradients.append(all(weight.grad is not None for weight in trained))
        watching.steps.append(step)
        inner(model, step)

    class Watched(train.CellTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(watching)

    monkeypatch.setattr(hooks, "after_step", after_step)
    monkeypatch.setattr(train, "CellTrainer", Watched)
    return watching


def ranks_of(folder: Path) -> list[int]:
    """The number of components of each saved A."""
    return [len(value) for name, value in adapter_of(folder).items() if "lora_A" in name]


BEST: dict[str, Any] = {"select": "best", "epochs": 2, "batch_size": 32, "micro_batch_size": 8}
RESUMED: dict[str, dict[str, Any]] = {
    "dynamic": BEST | {"settings": {"allocations": 3, "final_share": 0.9}},
    "ada": BEST,
    "plus": {"max_steps": 3, "micro_batch_size": 4},
    "fa": {"max_steps": 3},
    "mini": {"max_steps": 3},
}


@pytest.mark.parametrize("name", RESUMED)
def test_killed_after_every_step(run: Run, project: Path, name: str) -> None:
    recipe = RESUMED[name]

    def part() -> None:
        dies_in(train.CellTrainer, "_save_checkpoint")
        run(name, out="parts", **recipe)

    whole, record = run(name, out="whole", **recipe)
    codes = [wait(start(part))]
    while codes[-1] == KILLED:
        codes.append(wait(start(part)))
    assert codes == [KILLED] * (record["steps"] - ("select" not in recipe)) + [0]
    assert_same(whole, project / "parts")
    assert resumed(project / "parts") == [*range(1, len(codes))]
    if name == "dynamic":
        ranks = ranks_of(whole)
        assert set(ranks) != {4} and sum(ranks) == 4 * len(ranks)


@pytest.mark.parametrize("name", ["dynamic", "ada"])
def test_the_hook_comes_once_a_step_and_sees_its_gradients(
    run: Run, watch: Watch, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    inner = hooks.begin

    def begin(model: Any, optimizer: Any, total: int, done: int = 0) -> None:
        told.append(total)
        inner(model, optimizer, total, done)

    monkeypatch.setattr(hooks, "begin", begin)
    folder, record = run(name, max_steps=5, micro_batch_size=4)
    assert told == [record["steps"]] == [5]
    assert watch.steps == [1, 2, 3, 4, 5] and all(watch.gradients)
    if name == "ada":
        config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
        kept = [sum(pattern) for pattern in config["rank_pattern"].values()]
        assert config["total_step"] == 5 and sum(kept) <= 2 * len(kept) < 4 * len(kept)


def test_b_learns_faster_with_lora_plus(run: Run, watch: Watch) -> None:
    run("plus", max_steps=3, schedule="constant", warmup_ratio=0.0)
    # A, B, the head's biases; embeddings, of which none is trained
    assert watch.rates == [{(1e-2, 0.1), (4e-2, 0.1), (4e-2, 0.0), (1e-6, 0.1)}] * 3


def test_a_stays_where_it_is_with_lora_fa(run: Run) -> None:
    (early, first), (late, _) = (run("fa", out=f"{n}", max_steps=n) for n in (1, 4))
    one, other = adapter_of(early), adapter_of(late)
    for name, value in one.items():
        assert torch.equal(value, other[name]) == ("lora_A" in name), name
    # q and v of two layers of width 32, and the head
    head = sum(value.numel() for name, value in one.items() if "classifier" in name)
    assert first["parameters"]["trainable"] == 4 * 4 * 32 + head


@pytest.mark.parametrize(("total", "steps"), [(2, (0, 0)), (10, (1, 3)), (145, (14, 43))])
def test_adalora_warms_up_and_ends_its_schedule_at_shares_of_the_run(
    total: int, steps: tuple[int, int]
) -> None:
    entry = table()["adalora"]
    settings = AdaLoraConfig(target_modules=["0"], **entry["settings"])
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(32, 32)), settings)
    hooks.begin(model, torch.optim.AdamW(model.parameters()), total)
    config = model.peft_config["default"]
    assert (config.tinit, config.tfinal, config.total_step) == (*steps, total)
    budgets = [model.base_model.rankallocator.budget_schedule(n)[0] for n in range(1, total + 1)]
    assert budgets[: steps[0]] == [24] * steps[0] and budgets == sorted(budgets, reverse=True)
    assert budgets[total - steps[1] - 1 :] == [16] * (steps[1] + 1)


@pytest.mark.parametrize(
    ("name", "settings", "what"),
    [
        ("plus", {"optimizer": {"kind": "sgd"}}, "allowed is a mapping with kind: adamw | lora"),
        ("plus", {"optimizer": "loraplus"}, "is 'loraplus'; allowed is a mapping"),
        ("plus", {"optimizer": {"kind": "adamw", "lr": 1}}, "optimizer has no lr"),
        ("plus", {"optimizer": {"kind": "loraplus", "ratio": 2}}, "loraplus_lr_ratio"),
        ("lora-sp", {"optimizer": {"kind": "loraplus", "loraplus_lr_ratio": 2}}, "whole matrices"),
        ("mini", {"optimizer": {"kind": "lorafa"}}, "lorafa needs whole matrices A and B"),
        ("ada", {"tinit": 4}, "tinit 4 and tfinal 0 has no step left to allocate in, of 4 steps"),
    ],
)
def test_refusals(run: Run, name: str, settings: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=re.escape(what)):
        run(name, settings=settings, max_steps=4)
