"""The counter of live storages against sizes that can be written down."""

import torch

from lorasp.profiling.storage import LiveStorage, storage_bytes

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
    with LiveStorage([*model.parameters(), x]) as counter:
        assert counter.live == start
        y = model(x)
        # the input of tanh dies, its output is saved for the backward pass
        assert counter.live == start + FLOAT * (batch * hidden + batch * outputs)
    assert counter.peak == start + FLOAT * (2 * batch * hidden)
    assert y.shape == (batch, outputs)


def test_without_gradients_nothing_but_the_output_stays() -> None:
    batch, inputs, hidden, outputs = 7, 5, 11, 3
    model, x = mlp(inputs, hidden, outputs), torch.randn(batch, inputs)
    with torch.no_grad(), LiveStorage(model.parameters()) as counter:
        start = counter.live
        y = model(x)
        assert counter.live == start + FLOAT * batch * outputs
        del y
        assert counter.live == start


def test_backward_and_adamw_leave_a_gradient_and_two_moments() -> None:
    model, x = mlp(5, 11, 3), torch.randn(7, 5)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    weights = FLOAT * (5 * 11 + 11 * 3)
    with LiveStorage([*model.parameters(), x]) as counter:
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
    with LiveStorage([weight]) as counter:
        weight.t().add_(1)[3:].mul_(2)
    assert counter.live == counter.peak == FLOAT * 24


def test_half_precision_counts_two_bytes() -> None:
    with LiveStorage() as counter:
        kept = torch.ones(10, dtype=torch.bfloat16) + 1
        assert counter.live == storage_bytes([kept]) == 20
