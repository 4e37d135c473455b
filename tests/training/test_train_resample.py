"""`resample` in a real run: the selection changes as it says, and only what is selected moves."""

from typing import Any

import pytest
import torch
from runs import Run, adapter_of
from transformers import TrainerCallback

from lorasp.adapters.masks import draw_mask
from lorasp.adapters.weights import ResampledWeight
from lorasp.training import train

STEPS, STEPS_AN_EPOCH = 8, 4


class Watch(TrainerCallback):
    """For each step and matrix: the mask in force, and the values before and after."""

    def __init__(self) -> None:
        self.steps: list[dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.before = {n: w.values.detach().clone() for n, w in matrices(model).items()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(
            {
                name: (weight.mask.view(-1), self.before[name], weight.values.detach().clone())
                for name, weight in matrices(kwargs["model"]).items()
            }
        )


def matrices(model: torch.nn.Module) -> dict[str, ResampledWeight]:
    return {n: m for n, m in model.named_modules() if isinstance(m, ResampledWeight)}


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watching = Watch()

    class Watched(train.CellTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(watching)

    monkeypatch.setattr(train, "CellTrainer", Watched)
    return watching


@pytest.mark.parametrize("resample", ["step", "epoch"])
def test_the_selection_is_drawn_again(run: Run, watch: Watch, resample: str) -> None:
    folder, record = run("lora-sp", epochs=2, warmup_ratio=0.0, settings={"resample": resample})
    assert record["steps"] == len(watch.steps) == STEPS
    draws = range(STEPS) if resample == "step" else [s // STEPS_AN_EPOCH for s in range(STEPS)]
    for step, draw in zip(watch.steps, draws, strict=True):
        for name, (mask, before, after) in step.items():
            module = name.removeprefix("base_model.model.")
            module, side = module.removesuffix(".default").rsplit(".lora_", 1)
            shape = (4, 32) if side == "A" else (32, 4)
            expected = draw_mask(shape, 0.5, 0, f"{module}.{side}", draw)
            assert torch.equal(mask, expected.view(-1))
            # weight decay and momentum would move every entry
            assert torch.equal(before[~mask], after[~mask])
            assert not torch.equal(before[mask], after[mask])
    first, last = watch.steps[0], watch.steps[-1]
    assert all(not torch.equal(first[name][0], last[name][0]) for name in first)
    saved = {name: value for name, value in adapter_of(folder).items() if name.endswith(".draw")}
    assert len(saved) == len(first) and {int(draw) for draw in saved.values()} == {draws[-1]}


def test_another_seed_selects_other_entries(run: Run, watch: Watch) -> None:
    run("lora-sp", max_steps=1, settings={"resample": "step"})
    run("lora-sp", seed=1, max_steps=1, settings={"resample": "step"})
    one, other = watch.steps
    assert all(not torch.equal(one[name][0], other[name][0]) for name in one)
