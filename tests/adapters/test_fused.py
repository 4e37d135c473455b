"""The layer's own function against the plain formula, PEFT's way, and every way it is called."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from lorasp.adapters import LoraSpConfig
from lorasp.adapters.dropout import draw_kept, kept_scale, rounded_rate
from lorasp.adapters.layer import LoraSpLayer
from lorasp.bench.states import inputs_of_adapters, kept_by

SELECTIONS: dict[str, dict[str, Any]] = {
    "zero": {},
    "init": {"unselected": "init"},
    "rank": {"selection": "rank"},
    "rank-init": {"selection": "rank", "unselected": "init"},
    "matrix-a": {"selection": "matrix", "unselected": "init", "matrix_side": "A"},
    "matrix-b": {"selection": "matrix", "unselected": "init", "matrix_side": "B"},
    "resample": {"resample": "step"},
    "resample-init": {"resample": "step", "unselected": "init"},
}


def adapted(
    base: nn.Module, dtype: torch.dtype = torch.float32, rate: float = 0.0, **settings: Any
) -> Any:
    """The LoRA-SP layer of one base layer, with a random B and the adapter in `dtype`."""
    config = LoraSpConfig(r=4, target_modules=["0"], lora_dropout=rate, **settings)
    config.lora_alpha = 6
    model: Any = get_peft_model(nn.Sequential(base), config, autocast_adapter_dtype=False)
    layer = model.base_model.model[0]
    torch.manual_seed(5)
    for matrix in (layer.lora_A["default"], layer.lora_B["default"]):
        if matrix.values is not None:
            matrix.values.data = torch.randn(matrix.values.shape).to(dtype)
        else:
            matrix.like = matrix.like.to(dtype)
    return layer


def by_peft(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """What PEFT's own forward makes of the same layer."""
    return super(LoraSpLayer, layer).forward(x)


def gradients(layer: Any, out: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
    trained = [p for p in layer.parameters() if p.requires_grad]
    torch.manual_seed(6)
    inputs = [x, *trained] if x.requires_grad else trained
    return list(torch.autograd.grad(out, inputs, torch.randn_like(out), materialize_grads=True))


def compare(layer: Any, x: torch.Tensor, **tolerance: float) -> None:
    """Output and gradients are those of PEFT's forward."""
    ours, theirs = layer(x), by_peft(layer, x)
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert type(ours.grad_fn).__name__ == "AdaptedLinearBackward"
    torch.testing.assert_close(ours, theirs, **tolerance)
    for one, other in zip(gradients(layer, ours, x), gradients(layer, theirs, x), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("rows", [3, 40], ids=["apart", "merged"])
@pytest.mark.parametrize("bias", [True, False])
def test_without_dropout_it_is_pefts_layer(name: str, rows: int, bias: bool) -> None:
    layer = adapted(nn.Linear(12, 10, bias), **SELECTIONS[name])
    compare(layer, torch.randn(2, rows, 12, requires_grad=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("rows", [3, 40], ids=["apart", "merged"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_gradcheck_in_float64(name: str, rows: int, rate: float) -> None:
    layer = adapted(nn.Linear(5, 6).double(), torch.float64, rate, **SELECTIONS[name])
    weights = [p for p in layer.parameters() if p.requires_grad]
    if name == "resample-init":  # what is not selected contributes, and has no gradient by intent
        weights = []

    def function(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)  # the same mask each time
        return layer(x)

    x = torch.randn(rows, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, *weights))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.73])
def test_dropout_is_the_plain_formula_under_its_own_mask(rate: float) -> None:
    layer = adapted(nn.Linear(12, 10), rate=rate)
    x = torch.randn(2, 7, 12, requires_grad=True)
    torch.manual_seed(3)
    ours = layer(x)
    torch.manual_seed(3)
    kept = draw_kept(torch.Size((14, 12)), rate, x.device)
    mask = kept_scale(kept, torch.Size((14, 12)), rate, x.dtype).view(2, 7, 12)
    assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - rounded_rate(rate))])
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    plain = layer.base_layer(x) + layer.scaling["default"] * (x * mask) @ a.t() @ b.t()
    torch.testing.assert_close(ours, plain)
    found = zip(gradients(layer, ours, x), gradients(layer, plain, x), strict=True)
    for one, other in found:
        torch.testing.assert_close(one, other)


def test_no_dropout_in_evaluation_and_with_rate_zero() -> None:
    layer = adapted(nn.Linear(12, 10), rate=0.5).eval()
    compare(layer, torch.randn(3, 12, requires_grad=True))


@settings(max_examples=30, deadline=None)
@given(
    lead=st.lists(st.integers(0, 4), max_size=3),
    sizes=st.tuples(st.integers(4, 20), st.integers(4, 20)),
    rate=st.sampled_from([0.0, 0.3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
def test_shapes_and_dtypes_are_the_base_layers(lead, sizes, rate, dtype) -> None:
    layer = adapted(nn.Linear(*sizes, dtype=dtype), dtype, rate)
    x = torch.randn(*lead, sizes[0]).to(dtype).requires_grad_()
    out = layer(x)
    assert out.shape == (*lead, sizes[1]) and out.dtype == dtype
    out.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape and x.grad.dtype == dtype
    for matrix in (layer.lora_A["default"], layer.lora_B["default"]):
        assert matrix.values.grad.shape == matrix.values.shape
        assert matrix.values.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter", ["float32", "same"])
def test_half_precision(dtype: torch.dtype, adapter: str) -> None:
    held = torch.float32 if adapter == "float32" else dtype
    layer = adapted(nn.Linear(64, 48, dtype=dtype), held)
    x = torch.randn(40, 64).to(dtype).requires_grad_()
    ours, theirs = layer(x), by_peft(layer, x)
    pairs = [
        (ours, theirs),
        *zip(gradients(layer, ours, x), gradients(layer, theirs, x), strict=True),
    ]
    for one, other in pairs:
        assert one.dtype == other.dtype
        distance = (one.double() - other.double()).norm() / other.double().norm()
        assert distance < 2 * torch.finfo(dtype).eps
    # against float64: our error is no larger than PEFT's
    exact = adapted(nn.Linear(64, 48).double(), torch.float64)
    exact.base_layer.load_state_dict(
        {k: v.double() for k, v in layer.base_layer.state_dict().items()}
    )
    for side in ("lora_A", "lora_B"):
        values = getattr(layer, side)["default"].values.data.double()
        getattr(exact, side)["default"].values.data = values
    true = by_peft(exact, x.detach().double())
    ours, theirs = (
        (f(x.detach()).double() - true).abs().mean() for f in (layer, partial(by_peft, layer))
    )
    assert ours <= 1.02 * theirs


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [3, 40])
def test_under_autocast(held: torch.dtype, rows: int) -> None:
    layer = adapted(nn.Linear(64, 48), held)
    x = torch.randn(rows, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = layer(x), by_peft(layer, x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=0.06, atol=0.2)
    inside = torch.autocast("cpu", torch.bfloat16) if rows == 3 else nullcontext()
    with inside:  # whether backward runs under autocast makes no difference
        found = zip(gradients(layer, ours, x), gradients(layer, theirs, x), strict=True)
        for one, other in found:
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=0.06, atol=0.6)


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(rate: float, reentrant: bool) -> None:
    layer = adapted(nn.Linear(12, 10), rate=rate)
    x = torch.randn(5, 12, requires_grad=True)
    torch.manual_seed(2)
    plain = gradients(layer, layer(x), x)
    torch.manual_seed(2)
    out = checkpoint(layer, x, use_reentrant=reentrant)
    for parameter in (x, *layer.parameters()):
        parameter.grad = None
    torch.manual_seed(6)
    seed_gradient = torch.randn_like(out)
    out.backward(seed_gradient)
    trained = [p for p in layer.parameters() if p.requires_grad]
    for one, other in zip(plain, (x.grad, *(p.grad for p in trained)), strict=True):
        assert torch.equal(one, other)


def test_called_twice_in_one_forward_pass() -> None:
    layer = adapted(nn.Linear(12, 12))
    x = torch.randn(5, 12, requires_grad=True)
    ours = gradients(layer, layer(torch.tanh(layer(x))), x)
    theirs = gradients(layer, by_peft(layer, torch.tanh(by_peft(layer, x))), x)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_without_gradients() -> None:
    layer = adapted(nn.Linear(12, 10), rate=0.3).eval()
    x = torch.randn(5, 12)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(layer(x), by_peft(layer, x))
            assert not layer(x).requires_grad


def test_an_input_that_needs_no_gradient_gets_no_product() -> None:
    layer = adapted(nn.Linear(64, 48))
    flops = {}
    for needed in (True, False):
        out = layer(torch.randn(200, 64, requires_grad=needed))
        with FlopCounterMode(display=False) as counter:
            out.sum().backward()
        flops[needed] = counter.get_total_flops()
    assert flops[True] - flops[False] >= 2 * 200 * 64 * 48


def test_inputs_that_are_not_contiguous() -> None:
    layer = adapted(nn.Linear(12, 10))
    x = torch.randn(12, 4, 5, requires_grad=True).permute(2, 1, 0)
    compare(layer, x, rtol=1e-4, atol=1e-5)
    wide = torch.randn(5, 1, requires_grad=True).expand(5, 12)
    compare(layer, wide, rtol=1e-4, atol=1e-5)


def test_transposed_base_layers() -> None:
    compare(adapted(Conv1D(10, 12)), torch.randn(3, 4, 12, requires_grad=True))
    compare(adapted(Conv1D(10, 12)), torch.randn(50, 12, requires_grad=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_quantised_base_layers(kind: str, dtype: torch.dtype, autocast: bool) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    dense = nn.Linear(64, 48, dtype=dtype)
    if kind == "nf4":
        base = bnb.nn.Linear4bit(64, 48, compute_dtype=dtype, quant_type="nf4")
        base.weight = bnb.nn.Params4bit(dense.weight.data, False, quant_type="nf4")
    else:
        base = bnb.nn.Linear8bitLt(64, 48, has_fp16_weights=False, threshold=6.0)
        base.weight = bnb.nn.Int8Params(dense.weight.data, requires_grad=False)
    base.bias = nn.Parameter(dense.bias.data, requires_grad=False)
    layer = adapted(base.to("cpu"), torch.float32)
    x = torch.randn(9, 64).to(dtype).requires_grad_()
    if not autocast:
        tolerance = 1e-4 if dtype == torch.float32 else 0.06
        compare(layer, x, rtol=tolerance, atol=tolerance)
        return
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = layer(x), by_peft(layer, x)
    pairs = zip(gradients(layer, ours, x), gradients(layer, theirs, x), strict=True)
    for one, other in [(ours, theirs), *pairs]:
        assert one.dtype == other.dtype
        distance = (one.double() - other.double()).norm() / other.double().norm()
        assert distance < 2 * torch.finfo(torch.bfloat16).eps


def kept_by_layer(layer: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """What a layer keeps for its backward pass besides its weights."""
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    there = {t.data_ptr() for t in (*layer.parameters(), *layer.buffers())}
    return [t for t in kept if t.data_ptr() not in there]


def test_nothing_is_kept_but_inputs_weights_and_bits() -> None:
    x = torch.randn(30, 64, requires_grad=True)
    kept = kept_by_layer(adapted(nn.Linear(64, 48), rate=0.1), x)
    assert kept[0].data_ptr() == x.data_ptr()
    assert [t.nbytes for t in kept[1:]] == [30 * 64 // 8]


@pytest.mark.parametrize("rows", [3, 40], ids=["apart", "merged"])
def test_where_a_is_frozen_its_input_is_not_kept(rows: int) -> None:
    layer = adapted(nn.Linear(64, 48), **SELECTIONS["matrix-b"])
    kept = kept_by_layer(layer, torch.randn(rows, 64, requires_grad=True))
    assert [t.shape for t in kept] == [(rows, 4)]


@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_keeps_no_more_than_frozen_but_inputs_and_bits(llama: Any, autocast: bool) -> None:
    """Bytes kept by storage: the frozen model's, the adapted layers' inputs, a bit an entry."""
    embedded = {"inputs_embeds": torch.randn(2, 32, 16, requires_grad=True)}
    settings: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.1}
    ours: Any = get_peft_model(llama.model().train(), LoraSpConfig(**settings))
    lora: Any = get_peft_model(llama.model().train(), LoraConfig(**settings))
    frozen = llama.model().requires_grad_(False)
    inputs, entries = inputs_of_adapters(ours)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        kept = [sum(kept_by(model, embedded).values()) for model in (frozen, ours, lora)]
    assert sum(entries) == 2 * 32 * (6 * 16 + 32) * 2
    assert kept[1] <= kept[0] + sum(inputs.values()) + sum(entries) // 8
    assert kept[1] < 0.8 * kept[2]


def test_a_selection_drawn_again_before_the_backward_pass_is_an_error() -> None:
    layer = adapted(nn.Linear(12, 10), resample="step")
    for forward in (layer, partial(by_peft, layer)):
        out = forward(torch.randn(3, 12))
        layer.lora_A["default"].redraw(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def test_what_it_does_not_know_takes_pefts_way() -> None:
    x = torch.randn(3, 12)
    seen: list[str] = []
    layer = adapted(nn.Linear(12, 10))
    handles = [
        part.register_forward_hook(lambda *_: seen.append("hook"))
        for part in (layer.base_layer, layer.lora_A["default"], layer.lora_dropout["default"])
    ]
    layer(x)
    assert seen == ["hook"] * 3
    for handle in handles:
        handle.remove()
    seen.clear()
    handle = layer.base_layer.register_full_backward_pre_hook(lambda *_: seen.append("backward"))
    layer(x.requires_grad_()).sum().backward()
    handle.remove()
    assert seen == ["backward"]
    assert layer._only_adapter() is not None
    layer.base_layer.forward = lambda x: seen.append("patched") or x @ torch.ones(12, 10)
    layer(x)
    assert seen[-1] == "patched"
    del layer.base_layer.forward
    layer.base_layer.weight.requires_grad_(True)  # a trained base needs its own gradient
    layer(x).sum().backward()
    assert layer.base_layer.weight.grad is not None
    layer.base_layer.weight.requires_grad_(False)
    layer.merge()
    torch.testing.assert_close(layer(x), layer.base_layer(x))
    layer.unmerge()
    layer.enable_adapters(False)
    torch.testing.assert_close(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_compiled_it_is_one_graph(rate: float) -> None:
    layer = adapted(nn.Linear(12, 10), rate=rate)
    x = torch.randn(5, 12, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.manual_seed(4)
    ours = compiled(x)
    torch.manual_seed(4)
    plain = layer(x)
    torch.testing.assert_close(ours, plain)
    for one, other in zip(gradients(layer, ours, x), gradients(layer, plain, x), strict=True):
        torch.testing.assert_close(one, other)
