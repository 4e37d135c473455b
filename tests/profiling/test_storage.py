"""The counter of live storages against sizes that can be written down."""

import pytest
import torch

from lorasp.profiling.storage import SCRATCH, LiveStorage, storage_bytes

FLOAT = 4


def mlp(inputs: int, hidden: int, outputs: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, hidden, bias=False),
        torch.nn.Tanh(),
        torch.nn.Linear(hidden, outputs, bias=False),
    )


def test_forward_keeps_the_activations_that_backward_needs() -> None:
    batch, inputs, hidden, outputs = 7, 5, 11, 3
    model, x = mlp(inputs, hidden, outputs), torch.randn(batch, inputs)
    start = FLOAT * (inputs * hidden + hidden * outputs + batch * inputs)
    with LiveStorage({"weights": [*model.parameters(), x]}) as counter:
        assert counter.live == start
        y = model(x)
        # the input of tanh dies, its output is saved for the backward pass
        assert counter.live == start + FLOAT * (batch * hidden + batch * outputs)
    assert counter.peak == start + FLOAT * (2 * batch * hidden)
    assert y.shape == (batch, outputs)


def test_without_gradients_nothing_but_the_output_stays() -> None:
    batch, inputs, hidden, outputs = 7, 5, 11, 3
    model, x = mlp(inputs, hidden, outputs), torch.randn(batch, inputs)
    with torch.no_grad(), LiveStorage({"weights": model.parameters()}) as counter:
        start = counter.live
        y = model(x)
        assert counter.live == start + FLOAT * batch * outputs
        del y
        assert counter.live == start


def test_backward_and_adamw_leave_a_gradient_and_two_moments() -> None:
    model, x = mlp(5, 11, 3), torch.randn(7, 5)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    weights = FLOAT * (5 * 11 + 11 * 3)
    with LiveStorage({"weights": [*model.parameters(), x]}) as counter:
        start = counter.live
        model(x).sum().backward()
        assert counter.live == start + weights
        optimizer.step()
        steps = FLOAT * 2  # one step counter a tensor
        assert counter.live == start + 3 * weights + steps
        optimizer.zero_grad()
        assert counter.live == start + 2 * weights + steps
    assert counter.peak > start + 3 * weights


def test_views_in_place_operations_and_ties_count_once() -> None:
    weight = torch.zeros(6, 4)
    assert storage_bytes([weight, weight.t(), weight[2:]]) == FLOAT * 24
    with LiveStorage({"weights": [weight]}) as counter:
        weight.t().add_(1)[3:].mul_(2)
    assert counter.live == counter.peak == FLOAT * 24


def test_half_precision_counts_two_bytes() -> None:
    with LiveStorage() as counter:
        kept = torch.ones(10, dtype=torch.bfloat16) + 1
        assert counter.live == storage_bytes([kept]) == 20


def test_kinds_follow_a_tensor_through_a_step() -> None:
    """float32 weights cast to bfloat16, a product, its gradient: written down by hand."""
    weight = torch.nn.Parameter(torch.randn(4, 6))
    x = torch.randn(5, 6, dtype=torch.bfloat16)
    held = {"weights": [weight], "activations": [x]}
    with LiveStorage(held) as counter:
        assert counter.kinds == {"weights": FLOAT * 24, "activations": 2 * 30}
        hooks = counter.gradients_of([weight])
        y = x @ weight.to(torch.bfloat16).t()
        # nothing needs the copy backward, as x takes no gradient
        assert counter.kinds["copies"] == 0
        assert counter.peaks["forward"]["copies"] == 2 * 24
        assert counter.kinds["activations"] == 2 * 30 + 2 * 20
        counter.enter("backward")
        y.sum().backward()
        assert counter.kinds["gradients"] == FLOAT * 24
        counter.enter("optimizer")
        assert counter.peaks["optimizer"]["gradients"] == FLOAT * 24
        for hook in hooks:
            hook.remove()
    assert counter.peak == max(sum(peak.values()) for peak in counter.peaks.values())
    assert counter.flops == {"forward": 2 * 5 * 6 * 4, "backward": 2 * 5 * 6 * 4}
    assert sum(counter.kinds.values()) == counter.live


def test_what_an_operator_takes_inside_counts_at_its_peak_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SCRATCH, torch.ops.aten.mm.default, lambda a, b: 1000)
    a, b = torch.randn(3, 4), torch.randn(4, 2)
    with LiveStorage({"weights": [a, b]}) as counter:
        out = a @ b
    start = FLOAT * (3 * 4 + 4 * 2)
    assert counter.live == start + storage_bytes([out]) == start + FLOAT * 6
    assert counter.peak == counter.live + 1000
    assert counter.peaks["forward"]["temporaries"] == 1000


@pytest.mark.parametrize("causal", [False, True])
def test_operations_of_attention_are_the_closed_form(causal: bool) -> None:
    batch, heads, length, width = 2, 3, 8, 4
    q, k, v = (torch.randn(batch, heads, length, width, requires_grad=True) for _ in range(3))
    with LiveStorage() as counter:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        counter.enter("backward")
        out.sum().backward()
    forward = 2 * 2 * batch * heads * length**2 * width // (2 if causal else 1)
    assert counter.flops == {"forward": forward, "backward": forward * 5 // 2}


def test_operations_of_frozen_products_are_half_of_trained_ones_backward() -> None:
    model, x = mlp(5, 11, 3), torch.randn(7, 5, requires_grad=True)
    forward = 2 * 7 * (5 * 11 + 11 * 3)
    for trained, factor in ((True, 2), (False, 1)):
        model.requires_grad_(trained)
        with LiveStorage() as counter:
            loss = model(x).sum()
            counter.enter("backward")
            loss.backward()
        assert counter.flops == {"forward": forward, "backward": factor * forward}
