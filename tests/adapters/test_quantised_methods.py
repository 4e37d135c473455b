"""Every method that takes quantised weights: the start, and what its first step would move."""

import pytest
import torch

from lorasp.adapters.base_layers import is_4bit, is_8bit
from lorasp.adapters.configure import peft_config
from lorasp.config import resolve_method
from lorasp.conformance.subject import Subject, distance, trainable
from lorasp.errors import UsageError
from lorasp.methods import table

pytest.importorskip("bitsandbytes")
TABLE = table()
NAMES = [name for name, entry in TABLE.items() if entry["group"] in ("peer", "peft")]
HELD = {"nf4": is_4bit, "int8": is_8bit}


def subject_of(name: str, quantize: str) -> Subject:
    method = resolve_method({"methods": TABLE}, name, {"quantize": quantize})
    return Subject(method, TABLE[name].get("applies_to", ["encoder"])[0])


def is_taken(name: str, quantize: str) -> bool:
    try:
        peft_config(subject_of(name, quantize).resolved())
    except UsageError:  # of which test_configure.py has the list
        return False
    return True


CASES = [(name, quantize) for name in NAMES for quantize in HELD if is_taken(name, quantize)]


def first_step(subject: Subject) -> tuple[float, dict[str, int], set[str]]:
    """The loss, the sizes of what is trained, and the names of those that get a gradient."""
    model = subject.built()
    torch.manual_seed(0)
    loss = model.train()(**subject.batch()).loss
    loss.backward()
    weights = trainable(model)
    moved = {n for n, w in weights.items() if w.grad is not None and bool(w.grad.any())}
    return float(loss), {n: w.numel() for n, w in weights.items()}, moved


@pytest.mark.parametrize(("name", "quantize"), CASES)
def test_it_does_on_quantised_weights_what_it_does_on_others(name: str, quantize: str) -> None:
    plain, held = subject_of(name, "none"), subject_of(name, quantize)
    assert any(HELD[quantize](module) for module in held.fresh.modules())
    loss, sizes, moved = first_step(held)
    expected, plain_sizes, plain_moved = first_step(plain)
    assert sizes == plain_sizes and moved == plain_moved
    assert loss == pytest.approx(expected, rel=0.02)
    if TABLE[name].get("starts_at_base", True):
        assert distance(held.logits(held.fresh), held.base_logits) < 0.005
