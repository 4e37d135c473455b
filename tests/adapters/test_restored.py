"""A trained model of quantised weights and the one restored; values narrower than queries."""

import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lorasp.adapters.registry import apply_method, restore_model, save_adapter, seed_adapter
from lorasp.config import resolve_method
from lorasp.data.tiny_models import write_model
from lorasp.methods import table
from lorasp.models import load_model

pytest.importorskip("bitsandbytes")
METHODS = table()
NAMES = ("lora", "lora-sp", "sparta", "lora-mini", "dynamic-lora")
NARROW = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
KV = 16  # outputs of a key or a value, less than bitsandbytes packs at a time
IDS = torch.arange(5, 21).view(2, 8)
BATCH = {"input_ids": IDS, "labels": IDS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    write_model(place, "llama", {**NARROW, "num_key_value_heads": 1}, ["a text"], 300)
    return place


def resolved(name: str, **settings: Any) -> dict[str, Any]:
    return {
        "cell": {"seed": 1},
        "model": {"name": "m", "architecture": "causal", "targets": ["q_proj", "v_proj", "o_proj"]},
        "method": resolve_method({"methods": METHODS}, name, settings),
        "runtime": {"device": "cpu", "precision": "fp32", "weights": "fp32", "threads": 1},
    }


def trained(model: Any) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def step(model: Any, rate: float) -> dict[str, torch.Tensor]:
    """The gradients of one pass, with which the model then goes a step of that rate."""
    model.train().zero_grad()
    torch.manual_seed(0)
    model(**BATCH).loss.backward()
    found = {}
    for name, weight in trained(model).items():
        assert weight.grad is not None, name
        found[name] = weight.grad.clone()
        weight.data.sub_(rate * weight.grad)
    return found


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    out: torch.Tensor = model.eval()(input_ids=IDS).logits
    return out


def values(model: Any) -> list[Any]:
    return [m for n, m in model.named_modules() if n.endswith("v_proj")]


@pytest.mark.parametrize(("name", "quantize"), [("dora", "nf4"), *product(NAMES, ("nf4", "int8"))])
def test_restored_is_trained(name: str, quantize: str, folder: Path, tmp_path: Path) -> None:
    """Bit for bit, and gradients do not know of an evaluation in between."""
    at = resolved(name, quantize=quantize)
    model = apply_method(load_model(at, folder), at)
    assert {layer.out_features for layer in values(model)} == {KV}
    for _ in range(3):
        step(model, 1.0)
    before = step(model, 0)
    expected = logits(model)
    assert all(torch.equal(grad, before[n]) for n, grad in step(model, 0).items())
    save_adapter(model, tmp_path / "adapter")
    assert torch.equal(logits(restore_model(at, folder, tmp_path)), expected)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_the_base_multiplies_in_evaluation_as_in_training(quantize: str, folder: Path) -> None:
    at = resolved("base", quantize=quantize)
    model: Any = restore_model(at, folder, folder)
    torch.testing.assert_close(logits(model), _training_logits(load_model(at, folder)))


@torch.no_grad()
def _training_logits(model: Any) -> torch.Tensor:
    # the model has no dropout; int8 rounds its inputs in evaluation alone
    int8 = [m for m in model.modules() if type(m).__name__ == "Linear8bitLt"]
    model.train()
    for layer in int8:
        layer.eval()
    out: torch.Tensor = model(input_ids=IDS).logits
    return out


def test_a_method_draws_by_generators_of_its_own_seed() -> None:
    """Python's, NumPy's and torch's, the same whatever drew before, and not those of the head."""

    def draws(seed: int) -> list[float]:
        seed_adapter({"cell": {"seed": seed}})
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    first = draws(3)
    torch.rand(7), np.random.rand(7), random.random()
    assert draws(3) == first
    torch.manual_seed(3)  # as the head is drawn
    assert float(torch.rand(())) != first[2]
    assert not set(draws(4)) & set(first)
