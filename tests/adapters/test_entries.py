"""Single entries: what trains, what stays bit-equal, and gradients against a dense reference."""

import copy
from math import sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from lorasp.adapters import LoraSpConfig, selection_summary
from lorasp.adapters.masks import decode, draw_codes, draw_mask


class Net(nn.Module):
    """Two linear layers of different shapes, with a bend between them."""

    def __init__(self, sizes: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(sizes[0], sizes[1], dtype=dtype)
        self.second = nn.Linear(sizes[1], sizes[2], dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


LAYERS = ["first", "second"]


def adapt(net: nn.Module, **settings: object) -> PeftModel:
    return get_peft_model(net, LoraSpConfig(target_modules=LAYERS, **settings))


def matrices(model: PeftModel, adapter: str = "default") -> dict[str, nn.Module]:
    """Each low-rank matrix by the name that keys its mask."""
    net = model.base_model.model
    return {
        f"{layer}.{side}": getattr(getattr(net, layer), f"lora_{side}")[adapter]
        for layer in LAYERS
        for side in "AB"
    }


def train(model: nn.Module, steps: int, optimizer: torch.optim.Optimizer | None = None):
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    width = next(m.in_features for m in model.modules() if isinstance(m, nn.Linear))
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        x = torch.randn(5, width, generator=generator)
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    return optimizer


def initial_dense(name: str, shape: tuple[int, int], rank: int, random_b: bool) -> torch.Tensor:
    """The initial matrix by the definition: A uniform within 1/sqrt(in), B zero or 1/sqrt(r)."""
    if name.endswith(".B") and not random_b:
        return torch.zeros(shape)
    bound = 1 / sqrt(shape[1] if name.endswith(".A") else rank)
    return decode(draw_codes(shape, 0, name), bound)


@pytest.mark.parametrize("random_b", [False, True])
@pytest.mark.parametrize("unselected", ["zero", "init"])
def test_exactly_half_of_the_entries_move(unselected: str, random_b: bool, tmp_path) -> None:
    settings = {"r": 5, "unselected": unselected, "init_lora_weights": not random_b}
    model = adapt(Net((12, 9, 7)), **settings)
    base = copy.deepcopy(model.base_model.model.first.base_layer.weight.data)
    optimizer = train(model, 20)
    model.save_pretrained(tmp_path)
    saved_states = copy.deepcopy(optimizer.state_dict())
    reloaded = PeftModel.from_pretrained(Net((12, 9, 7)), tmp_path, is_trainable=True)

    def check(model: PeftModel) -> None:
        for name, matrix in matrices(model).items():
            mask = draw_mask(matrix.shape, 0.5, 0, name)
            dense = matrix.weight.detach()
            start = initial_dense(name, matrix.shape, 5, random_b)
            moved = dense != start
            assert torch.equal(matrix.mask, mask)
            assert mask.sum() == round(mask.numel() / 2) == matrix.values.numel()
            assert moved[mask].all()
            rest = start if unselected == "init" else torch.zeros_like(start)
            assert torch.equal(dense[~mask], rest[~mask])

    check(model)
    check(reloaded)
    x = torch.randn(4, 12)
    assert torch.equal(model(x), reloaded(x))

    # Resuming with the saved optimizer states goes on as if nothing had happened, bit by bit.
    resumed = torch.optim.AdamW(reloaded.parameters(), lr=0.05, weight_decay=0.1)
    resumed.load_state_dict(saved_states)
    train(model, 5, optimizer), train(reloaded, 5, resumed)
    check(reloaded)
    for name, matrix in matrices(model).items():
        assert torch.equal(matrix.weight, matrices(reloaded)[name].weight)

    pair = {side: matrices(model)[f"first.{side}"].weight.detach() for side in "AB"}
    merged = model.merge_and_unload().first.weight
    torch.testing.assert_close(merged, base + 8 / 5 * pair["B"] @ pair["A"], rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12)),
    rank=st.integers(1, 7),
    density=st.floats(0.05, 1.0),
    selection=st.sampled_from(["element", "rank", "matrix", "depth"]),
    unselected=st.sampled_from(["zero", "init"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    random_b=st.booleans(),
    rslora=st.booleans(),
)
def test_function_and_gradients_equal_the_dense_reference(
    sizes, rank, density, selection, unselected, dtype, random_b, rslora
) -> None:
    """The reference keeps dense A and B as leaves: W x + (alpha / r) B A x, gradients masked."""
    rank = min(rank, *sizes)
    unselected = "init" if selection == "matrix" else unselected
    model = adapt(
        Net(sizes, dtype),
        r=rank,
        lora_alpha=3,
        density=density,
        selection=selection,
        unselected=unselected,
        init_lora_weights=not random_b,
        use_rslora=rslora,
    ).to(dtype)
    train_like = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # small, or tanh is so flat that in bfloat16 its slope is rounding alone
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=train_like))
    x = torch.randn(4, sizes[0], generator=train_like).to(dtype)
    out = model(x)
    out.square().sum().backward()

    weights = matrices(model)
    dense = {name: m.weight.detach().clone().requires_grad_() for name, m in weights.items()}
    factor = 3 / (sqrt(rank) if rslora else rank)
    net = Net(sizes, dtype)

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        base = getattr(net, name)
        a, b = dense[f"{name}.A"], dense[f"{name}.B"]
        return base(x) + (x @ a.T @ b.T) * factor

    expected = layer("second", torch.tanh(layer("first", x)))
    expected.square().sum().backward()
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 0.1}[dtype]
    scale = expected.abs().max().clamp(min=1)
    assert ((out - expected).abs().max() / scale) < tolerance
    for name, matrix in weights.items():
        if matrix.values is None:
            continue
        gradient = dense[name].grad[matrix.mask]
        assert matrix.values.grad.shape == matrix.values.shape == gradient.shape
        error = (matrix.values.grad - gradient).abs().max()
        assert error / gradient.abs().max().clamp(min=1) < tolerance


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 9), st.sampled_from([0.25, 0.5, 0.8]), st.booleans())
def test_whole_ranks_with_zero_are_lora_of_the_smaller_rank(rank, density, rslora) -> None:
    few = max(1, round(density * rank))
    alpha = 6.0
    model = adapt(
        Net((10, 9, 9)),
        r=rank,
        lora_alpha=alpha,
        density=density,
        selection="rank",
        use_rslora=rslora,
    )
    # PEFT's alpha that gives its rank `few` the factor of rank `rank`.
    alpha *= sqrt(few / rank) if rslora else few / rank
    lora = get_peft_model(
        Net((10, 9, 9)),
        LoraConfig(target_modules=LAYERS, r=few, lora_alpha=alpha, use_rslora=rslora),
    )
    for name, theirs in matrices(lora).items():
        ours = matrices(model)[name]
        torch.nn.init.normal_(theirs.weight)
        assert ours.values.numel() == theirs.weight.numel()
        ours.values.data.copy_(theirs.weight.data.view(-1))
    x = torch.randn(6, 10)
    ours_out, theirs_out = model(x), lora(x)
    torch.testing.assert_close(ours_out, theirs_out)
    ours_out.square().sum().backward(), theirs_out.square().sum().backward()
    for name, theirs in matrices(lora).items():
        gradient = matrices(model)[name].values.grad.view(theirs.weight.shape)
        torch.testing.assert_close(gradient, theirs.weight.grad, rtol=1e-4, atol=1e-4)
    trainable = [m.get_nb_trainable_parameters()[0] for m in (model, lora)]
    assert trainable[0] == trainable[1]


@pytest.mark.parametrize("random_b", [False, True])
def test_whole_ranks_with_init_keep_the_other_components(random_b: bool) -> None:
    model = adapt(
        Net((12, 9, 9)), r=4, selection="rank", unselected="init", init_lora_weights=not random_b
    )
    train(model, 10)
    for layer in LAYERS:
        a, b = (matrices(model)[f"{layer}.{side}"] for side in "AB")
        components = a.mask.any(dim=1)
        assert components.sum() == 2
        assert torch.equal(a.mask, components[:, None].expand(a.shape))
        assert torch.equal(b.mask, components[None, :].expand(b.shape))
        for matrix, name in ((a, f"{layer}.A"), (b, f"{layer}.B")):
            start = initial_dense(name, matrix.shape, 4, random_b)
            moved = matrix.weight.detach() != start
            assert torch.equal(moved, matrix.mask)


@pytest.mark.parametrize("side", ["A", "B"])
def test_whole_matrices_train_one_side_from_zero(side: str) -> None:
    frozen = "AB".replace(side, "")
    model = adapt(Net((8, 8, 8)), r=4, selection="matrix", unselected="init", matrix_side=side)
    x = torch.randn(3, 8)
    assert torch.equal(model(x), Net((8, 8, 8))(x))
    start = {name: m.weight.detach().clone() for name, m in matrices(model).items()}
    train(model, 5)
    for name, matrix in matrices(model).items():
        moved = matrix.weight.detach() != start[name]
        if name.endswith(side):
            assert moved.all() and not start[name].any()
        else:
            assert not moved.any() and start[name].all()
            assert not list(matrix.parameters()) and name.endswith(frozen)


def test_summary_counts_what_is_there() -> None:
    model = adapt(Net((12, 9, 7)), r=4, unselected="init")
    entries = 4 * (12 + 9) + 4 * (9 + 7)
    summary = selection_summary(model)["default"]
    assert summary["entries"] == entries
    assert summary["trainable"] == summary["selected"] == entries / 2
    assert summary["frozen"] == summary["frozen_bytes"] == (4 * 12 + 4 * 9) / 2
    assert summary["mask_bytes"] == sum(-(-4 * n // 8) for n in (12, 9, 9, 7))
    buffers = summary["mask_bytes"] + summary["frozen_bytes"]
    assert summary["state_bytes"] == 4 * 4 * entries / 2 + buffers
    assert model.get_nb_trainable_parameters()[0] == entries / 2
