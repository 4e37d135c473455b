"""Recomputation: the same numbers, more work and less memory, each policy as it promises."""

from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lorasp.adapters.registry import apply_method
from lorasp.errors import UsageError
from lorasp.profiling.storage import LiveStorage
from lorasp.recompute import POLICIES, recompute_activations

LAYERS = 4
METHODS: dict[str, dict[str, Any]] = {
    "lora-sp": {"family": "LORA_SP", "settings": {"rank": 2, "density": 0.5}},
    "ft": {"family": "full", "settings": {}},
}


class Operators(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.name()] += 1
        return func(*args, **(kwargs or {}))


def build(method: str, policy: str) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=88,  # times the hidden size as in LLaMA-7B
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
    )
    entry = METHODS[method]
    resolved = {
        "method": {**entry, "name": method, "settings": {**entry["settings"], "recompute": policy}},
        "model": {"architecture": "causal", "targets": ["q_proj", "v_proj"]},
        "cell": {"seed": 0},
        "runtime": {"precision": "fp32"},
    }
    model = apply_method(transformers.LlamaForCausalLM(config), resolved)
    recompute_activations(model, resolved)
    return model.train()


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(32, (4, 24), generator=torch.Generator().manual_seed(1))
    loss: torch.Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_gradients_are_the_same(method: str) -> None:
    results = []
    for policy in POLICIES:
        model = build(method, policy)
        loss = loss_of(model)
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.parameters() if p.requires_grad]))
    (expected, gradients), *others = results
    assert all(gradient is not None for gradient in gradients)
    for loss, found in others:
        assert torch.equal(loss, expected)
        torch.testing.assert_close(found, gradients, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_computed_again(method: str) -> None:
    """Matrix products are counted as FLOPs; of the rest, SiLU runs once a layer and a forward.

    Of the products, `selective` computes an adapter's B A again, for query and value: in float32
    it is added to the weight, which for 4 x 24 positions costs less than B (A x).
    """
    flops, silus = {}, {}
    for policy in POLICIES:
        model = build(method, policy)
        with FlopCounterMode(display=False) as counter:
            loss = loss_of(model)
            forward = counter.get_total_flops()
            loss.backward()
        flops[policy] = counter.get_total_flops()
        with Operators() as operators:
            loss_of(model).backward()
        silus[policy] = operators.calls["aten::silu"]
    assert silus == {"none": LAYERS, "full": 2 * LAYERS, "selective": 2 * LAYERS}
    again = 2 * 32 * 2 * 32 * 2 * LAYERS if method == "lora-sp" else 0
    assert flops["selective"] - flops["none"] == again
    # of 4 x 24 positions, the product with the vocabulary stands outside the layers
    outside = 2 * 4 * 24 * 32 * 32
    down = 2 * 4 * 24 * 88 * 32 * LAYERS  # a layer's last product: torch stops before it
    assert flops["full"] - flops["none"] in (forward - outside, forward - outside - down)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_between_forward_and_backward(method: str) -> None:
    kept = {}
    for policy in POLICIES:
        model = build(method, policy)
        held = {"weights": [*model.parameters(), *model.buffers()]}
        with LiveStorage(held) as storage:
            before = storage.live
            loss = loss_of(model)
            kept[policy] = storage.live - before
        loss.backward()
    assert kept["none"] > kept["selective"] > kept["full"] > 0
    # 4 x 24 positions of 32 floats are what enters a layer; the rest stands outside the layers
    assert kept["none"] - kept["full"] > LAYERS * 4 * 24 * 32 * 4


def test_another_policy_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"methods\.ft\.settings\.recompute is 'half'; allowed are"
    ):
        build("ft", "half")
