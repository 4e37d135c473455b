"""The benches of a step: every goal is there, and what is not the same work is found out."""

from functools import partial
from typing import Any

import pytest
import torch

from lorasp.adapters.fused import AdaptedLinear
from lorasp.adapters.weights import SelectedWeight
from lorasp.bench import states, step
from lorasp.results import first_error

IDS = torch.randint(3, step.VOCABULARY, (2, 8))
BUILD = partial(step.encoder, 2, 64, 8)


def test_a_step_of_everybody() -> None:
    found = step.bench(1, 1, layers=2, hidden=64, shape=(2, 8))
    assert {goal["goal"] for goal in found["goals"]} == {*step.GOALS}
    assert [case["case"] for case in found["cases"]] == [*step.CASES]
    assert all(check["met"] for check in found["checks"]) and len(found["checks"]) == 4
    document = {"schema": 1, "kind": "bench", "started": "", "finished": "", "load": 0.0, **found}
    assert first_error(document, "bench") is None


def corrupt(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the gradients that fused layers alone compute: PEFT's way goes through Expand."""
    real = AdaptedLinear.backward

    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        dx, weight, da, db, adapter = real(ctx, gradient)
        return dx, weight, change(da), db, adapter

    monkeypatch.setattr(AdaptedLinear, "backward", staticmethod(backward))


@pytest.mark.parametrize("case", step.CASES)
@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_wrong_gradients_break_the_check(case: str, factor: float, monkeypatch) -> None:
    corrupt(lambda gradient: gradient * factor, monkeypatch)
    assert not step.same_gradients(BUILD, IDS, case)["met"]


def test_layers_that_are_not_fused_break_the_check(monkeypatch) -> None:
    monkeypatch.setattr("lorasp.adapters.layer.LoraSpLayer._only_adapter", lambda layer: None)
    assert not step.same_gradients(BUILD, IDS, "all-linear")["met"]


def test_states_are_what_the_formulas_say(monkeypatch) -> None:
    kept = {states.FROZEN: 100, states.LIMIT: 150, states.PEFT: 400, states.OURS: 120}
    monkeypatch.setattr(states, "kept_by_llama", lambda *shape: kept)
    found = states.bench(1, 1, layers=1, hidden=64)
    held, file, of_llama = (case["values"] for case in found["cases"])
    entries = step.RANK * (4 * 2 * 64 + 2 * (64 + 256))
    assert held[states.PEFT]["median"] == entries * 16 + 12 * 4  # and AdamW's counts of steps
    assert held[states.OURS]["median"] == entries * 8 + entries // 8 + 12 * 4
    assert file[states.OURS]["median"] < 0.6 * file[states.PEFT]["median"]
    assert of_llama[states.OURS]["median"] == 120
    figures = {goal["goal"]: goal["median"] for goal in found["goals"]}
    assert figures["states.kept.limit"] == 0.8
    model = states.get_peft_model(BUILD(), states.LoraSpConfig(target_modules=["query"]))
    assert sum(isinstance(m, SelectedWeight) for m in model.modules()) == 4
