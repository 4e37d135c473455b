"""LoRA-Mini: the four-factor product, what is trained of it, and all that PEFT does with it."""

import copy
from math import sqrt
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.pytorch_utils import Conv1D

from lorasp.adapters import LoraMiniConfig
from lorasp.adapters.dropout import draw_kept, kept_scale
from lorasp.adapters.masks import draw_codes
from lorasp.adapters.mini import FactoredWeight
from lorasp.errors import UsageError


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 24)).to(dtype)


def adapt(base: nn.Module, **options: Any) -> Any:
    options = {"r": 3, "lora_alpha": 6, "target_modules": ["0", "2"]} | options
    return get_peft_model(base, LoraMiniConfig(**options))


def factors(layer: Any, adapter: str = "default") -> list[torch.Tensor]:
    """B_aux, B_tr, A_tr, A_aux of a layer, the frozen ones from their codes."""
    a, b = layer.lora_A[adapter], layer.lora_B[adapter]
    (b_aux, a_aux) = ((matrix.codes.double() - 127.5) / 128 * matrix.bound for matrix in (b, a))
    return [b_aux, b.values.detach().double(), a.values.detach().double(), a_aux]


def randomize(model: nn.Module, seed: int = 7) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator))


def train(model: nn.Module, steps: int, optimizer: Any = None) -> Any:
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        model(torch.randn(6, 30, generator=generator)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def test_the_product_of_four_factors_and_their_count() -> None:
    model = adapt(net(), inner_in=7, inner_out=5)
    x = torch.randn(4, 30)
    assert torch.equal(model(x), net()(x))  # B_tr starts at zero
    assert model.get_nb_trainable_parameters()[0] == 2 * 3 * (7 + 5)
    randomize(model)
    for index, base in ((0, net()[0]), (2, net()[2])):
        layer = model.base_model.model[index]
        b_aux, b_tr, a_tr, a_aux = factors(layer)
        assert a_tr.shape == (3, 7) and a_aux.shape == (7, base.in_features)
        assert b_aux.shape == (base.out_features, 5) and b_tr.shape == (5, 3)
        product = 6 / 3 * b_aux @ b_tr @ a_tr @ a_aux
        torch.testing.assert_close(layer.get_delta_weight("default").double(), product)
        inputs = torch.randn(9, base.in_features)
        expected = base(inputs).double() + inputs.double() @ product.t()
        torch.testing.assert_close(layer(inputs).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("in_features", "factor"), [(768, 20.21), (1024, 20.08), (4096, 20.08)])
def test_a_twentieth_of_lora_by_default(in_features: int, factor: float) -> None:
    counts = {}
    for config_class in (LoraConfig, LoraMiniConfig):
        with torch.device("meta"):
            base = nn.Sequential(nn.Linear(in_features, in_features))
        config = config_class(r=16, target_modules=["0"])
        model = get_peft_model(base, config, low_cpu_mem_usage=True)
        counts[config_class] = model.get_nb_trainable_parameters()[0]
    assert counts[LoraConfig] / counts[LoraMiniConfig] == pytest.approx(factor, abs=0.005)


def test_the_start_has_loras_variances() -> None:
    base = nn.Sequential(nn.Linear(600, 500))
    model = adapt(base, r=8, inner_in=60, inner_out=40, target_modules=["0"])
    b_aux, b_tr, a_tr, a_aux = factors(model.base_model.model[0])
    assert a_aux.var().item() == pytest.approx(1 / 60, rel=0.02)
    assert b_aux.var().item() == pytest.approx(1 / 40, rel=0.02)
    assert not b_tr.any() and a_tr.abs().max() < 1 / sqrt(600)
    assert (a_tr @ a_aux).var().item() == pytest.approx(1 / (3 * 600), rel=0.15)
    # a step of one in every entry of the trained factors, with independent signs
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (400, 60), generator=generator).double() * 2 - 1
    assert (signs @ a_aux).square().mean().item() == pytest.approx(1, rel=0.05)
    signs = torch.randint(0, 2, (40, 400), generator=generator).double() * 2 - 1
    assert (b_aux @ signs).square().mean().item() == pytest.approx(1, rel=0.05)


@settings(deadline=None, max_examples=20)
@given(
    rows=st.sampled_from([1, 64]),  # many: the product is added to a copy of the weight
    sizes=st.tuples(st.integers(3, 30), st.integers(3, 20)),
    conv=st.booleans(),
    rate=st.sampled_from([0.0, 0.3]),
)
def test_gradients_are_those_of_autograd(
    rows: int, sizes: tuple[int, int], conv: bool, rate: float
) -> None:
    torch.manual_seed(0)
    base: Any = Conv1D(20, 30) if conv else nn.Linear(30, 20)
    options = {"inner_in": sizes[0], "inner_out": sizes[1], "target_modules": ["0"]}
    model = adapt(nn.Sequential(base), lora_dropout=rate, **options).double()
    randomize(model)
    layer = model.base_model.model[0]
    b_aux, b_tr, a_tr, a_aux = factors(layer)
    x = torch.randn(rows, 30, dtype=torch.float64, requires_grad=True)
    leaves = [b_tr.requires_grad_(), a_tr.requires_grad_(), x]
    torch.manual_seed(1)
    out = model(x)
    out.square().sum().backward()
    trained = [layer.lora_B["default"].values.grad, layer.lora_A["default"].values.grad, x.grad]
    dropped = x
    if rate:  # what was dropped, from torch's generator in the same state
        torch.manual_seed(1)
        kept = draw_kept(x.shape, rate, x.device)
        dropped = x * kept_scale(kept, tuple(x.shape), rate, torch.float64)
    weight = base.weight.t() if conv else base.weight
    expected = x @ weight.t() + base.bias + 2 * dropped @ (b_aux @ b_tr @ a_tr @ a_aux).t()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(expected.square().sum(), leaves)
    for ours, theirs in zip(trained, gradients, strict=True):
        # frozen values are float32
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_with_identities_outside_it_is_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    """a = in and b = out; the frozen factors replaced by the identity, which no code stands for."""
    identity = property(lambda matrix: torch.eye(matrix.codes.shape[0]).to(matrix.values))
    monkeypatch.setattr(FactoredWeight, "frozen", identity)
    base = nn.Sequential(nn.Linear(30, 20))
    mini = adapt(copy.deepcopy(base), inner_in=30, inner_out=20, target_modules=["0"])
    lora: Any = get_peft_model(base, LoraConfig(r=3, lora_alpha=6, target_modules=["0"]))
    randomize(mini)
    pairs = []
    for side in ("lora_A", "lora_B"):
        ours = getattr(mini.base_model.model[0], side)["default"]
        theirs = getattr(lora.base_model.model[0], side)["default"]
        theirs.weight.data.copy_(ours.values.data)
        pairs.append((ours.values, theirs.weight))
    assert mini.get_nb_trainable_parameters() == lora.get_nb_trainable_parameters()
    x = torch.randn(50, 30)
    out, expected = mini(x), lora(x)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward(), expected.square().sum().backward()
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_frozen_factors_never_move_and_are_not_saved(tmp_path) -> None:
    model = adapt(net(), inner_in=7)
    before = [[f.clone() for f in factors(model.base_model.model[i])] for i in (0, 2)]
    optimizer = train(model, 10)
    model.save_pretrained(tmp_path)
    saved = copy.deepcopy(optimizer.state_dict())
    loaded: Any = PeftModel.from_pretrained(net(), tmp_path, is_trainable=True)
    resumed = torch.optim.AdamW(loaded.parameters(), lr=0.05, weight_decay=0.1)
    resumed.load_state_dict(saved)
    train(model, 5, optimizer), train(loaded, 5, resumed)
    for index, start in zip((0, 2), before, strict=True):
        one, other = (factors(m.base_model.model[index]) for m in (model, loaded))
        for place, (a, b, c) in enumerate(zip(one, other, start, strict=True)):
            assert torch.equal(a, b)
            moved = a != c
            assert moved.all() if place in (1, 2) else not moved.any()
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    trained = sum(3 * (7 + 3) for _ in range(2))  # a twentieth of 20 and 24 is less than the rank
    assert 4 * trained <= size < 4 * trained + 800


def test_draws_follow_from_seed_and_name() -> None:
    one, same, other = (adapt(net(), selection_seed=seed) for seed in (0, 0, 1))
    torch.manual_seed(123)
    for index in (0, 2):
        first, second, third = (
            m.base_model.model[index].lora_A["default"] for m in (one, same, other)
        )
        assert torch.equal(first.codes, second.codes) and torch.equal(first.values, second.values)
        assert not torch.equal(first.codes, third.codes)
        assert torch.equal(first.codes, draw_codes(tuple(first.codes.shape), 0, f"{index}.A_aux"))
    b = one.base_model.model[0].lora_B["default"]
    assert not torch.equal(b.codes.view(-1)[:60], first.codes.view(-1)[:60])


@torch.no_grad()
def logits(model: Any, family: Any) -> torch.Tensor:
    return model(**family.batch()).logits  # type: ignore[no-any-return]


def test_save_load_merge_disable_and_two_adapters(family, tmp_path) -> None:
    config = LoraMiniConfig(task_type=family.task, target_modules=list(family.targets), r=4)
    model: Any = get_peft_model(family.model(), config).eval()
    base = logits(model, family)
    randomize(model)
    expected = logits(model, family)
    assert not torch.allclose(base, expected)
    model.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(family.model(), tmp_path, **options).eval()
        assert torch.equal(logits(loaded, family), expected)
    with model.disable_adapter():
        if not family.labels:
            assert torch.equal(logits(model, family), base)
    model.add_adapter("two", copy.deepcopy(config))
    model.set_adapter("two")
    torch.testing.assert_close(logits(model, family), base)
    model.set_adapter("default")
    assert torch.equal(logits(model, family), expected)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, family), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model, family), expected, rtol=1e-4, atol=1e-5)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, family), expected, rtol=1e-4, atol=1e-5)


def test_autocast_checkpointing_and_bf16(llama) -> None:
    config = LoraMiniConfig(target_modules=list(llama.targets), r=4)
    model: Any = get_peft_model(llama.model(), config).train()
    randomize(model)

    def gradients(**context: Any) -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, **context):
            model(**llama.batch()).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    exact, mixed = gradients(enabled=False), gradients()
    for a, b in zip(exact, mixed, strict=True):
        assert b.dtype == torch.float32 and (a - b).norm() <= 0.05 * a.norm()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for a, b in zip(exact, gradients(enabled=False), strict=True):
        torch.testing.assert_close(a, b)
    half: Any = get_peft_model(llama.model().bfloat16(), config, autocast_adapter_dtype=False)
    half(**llama.batch()).loss.backward()
    assert all(
        p.dtype == torch.bfloat16 and p.grad.isfinite().all()
        for p in half.parameters()
        if p.requires_grad
    )


@pytest.mark.parametrize("quantization", ["Linear4bit", "Linear8bitLt"])
def test_quantized_layers(quantization: str) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    kind, options = getattr(bnb.nn, quantization), {}
    if quantization == "Linear8bitLt":
        options = {"has_fp16_weights": False, "threshold": 6.0}
    layer = kind(64, 64, bias=False, **options).to("cpu")
    model = adapt(nn.Sequential(layer), target_modules=["0"])
    x = torch.randn(5, 64)
    start = model(x)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    out = model(x)
    assert out.square().sum() < start.square().sum()
    delta = model.base_model.model[0].get_delta_weight("default")
    with model.disable_adapter():
        torch.testing.assert_close(out, model(x) + x @ delta.t(), rtol=1e-3, atol=1e-4)


def test_meta_and_fake_tensors_draw_nothing(llama, monkeypatch) -> None:
    config = LoraMiniConfig(target_modules=list(llama.targets), r=4)
    real = get_peft_model(llama.model(), config)
    monkeypatch.setattr("lorasp.adapters.masks.raw_words", lambda *_: pytest.fail("drawn"))
    with torch.device("meta"):
        base = llama.build()
    model: Any = get_peft_model(base, config, low_cpu_mem_usage=True, autocast_adapter_dtype=False)
    shapes = {name: tensor.shape for name, tensor in real.named_parameters()}
    assert {name: tensor.shape for name, tensor in model.named_parameters()} == shapes
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        trained = [p for p in model.parameters() if p.requires_grad]
        model(input_ids=torch.zeros(2, 6, dtype=torch.long)).logits.sum().backward()
    assert trained and all(p.grad.shape == p.shape for p in trained)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"inner_in": 0}, "inner_in is 0; allowed: a positive integer"),
        ({"inner_in": 2}, "inner_in is 2, and target module 0 is 20x30 with rank 3: .* 3 to 30"),
        ({"inner_out": 21}, "inner_out is 21, and target module 0 .* allowed are 3 to 20"),
        ({"use_dora": True}, "use_dora does not work with LoRA-Mini"),
    ],
)
def test_refusals(options: dict[str, Any], what: str) -> None:
    base = net()
    with pytest.raises(UsageError, match=what):
        adapt(base, **options)
    assert type(base[0]) is nn.Linear
