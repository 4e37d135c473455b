"""The tuner around a `Delta`: its gradients, and PEFT's life of an adapter, on four families."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from lorasp import Delta
from lorasp.adapters import DeltaConfig, offer
from lorasp.adapters.adapted import adapted_linear
from lorasp.adapters.delta import DeltaLayer, deltas_of
from lorasp.errors import UsageError


class Product(Delta):
    """W + B A, with A frozen and drawn again: something drawn, and something that starts at 0."""

    frozen: torch.Tensor

    def __init__(self, out_features, in_features, generator, rank=2) -> None:
        super().__init__(out_features, in_features, generator)
        self.values = nn.Parameter(torch.zeros(out_features, rank))
        frozen = torch.randn(rank, in_features, generator=generator)
        self.register_buffer("frozen", frozen, persistent=False)

    def forward(self, weight):
        return weight + self.values @ self.frozen


class Curve(Delta):
    """A function of W that is not linear, in W or in its parameters, one in a module."""

    def __init__(self, out_features, in_features, generator) -> None:
        super().__init__(out_features, in_features, generator)
        self.scale = nn.Parameter(torch.zeros(out_features, 1))
        self.mix = nn.Linear(in_features, in_features, bias=False)
        nn.init.zeros_(self.mix.weight)

    def forward(self, weight):
        return weight * torch.exp(self.scale) + torch.tanh(self.mix(weight))


METHODS = {"product": Product, "curve": Curve}
for method_name, method_class in METHODS.items():
    offer(method_name, method_class)


def config(family, method, **settings) -> DeltaConfig:
    return DeltaConfig(
        task_type=family.task, target_modules=list(family.targets), method=method, **settings
    )


def randomize(model, seed: int = 7, adapter: str = "default") -> None:
    """Stand-in for training: every parameter of the adapter gets a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    for delta in deltas_of(model, adapter):
        for parameter in delta.parameters():
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def adapt(family, method="product", **settings):
    model = get_peft_model(family.model(), config(family, method, **settings))
    randomize(model)
    return model.eval()


@torch.no_grad()
def logits(model, family):
    return model(**family.batch()).logits


def layers(model) -> dict[str, DeltaLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, DeltaLayer)}


def random_delta(method, out_features, in_features, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    delta = METHODS[method](out_features, in_features, generator).to(dtype)
    for parameter in delta.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return delta


@given(
    st.sampled_from(sorted(METHODS)),
    st.lists(st.integers(1, 3), min_size=0, max_size=2),
    st.integers(1, 5),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_gradients_are_those_of_the_plain_composition(
    method, rows, inputs, outputs, bias, conv
) -> None:
    torch.manual_seed(inputs + 7 * outputs)
    base = Conv1D(outputs, inputs) if conv else nn.Linear(inputs, outputs, bias=bias)
    base.double().requires_grad_(False)
    delta = random_delta(method, outputs, inputs)
    x = torch.randn(*rows, inputs, dtype=torch.float64, requires_grad=True)

    def ours(x, *parameters):
        return adapted_linear(x, base, [delta], base.bias)

    def plain(x):
        weight = base.weight.t() if conv else base.weight
        return F.linear(x, delta(weight), base.bias)

    parameters = list(delta.parameters())
    torch.testing.assert_close(ours(x), plain(x))
    assert torch.autograd.gradcheck(ours, (x, *parameters))
    cotangent = torch.randn(*rows, outputs, dtype=torch.float64)
    found = torch.autograd.grad(ours(x), [x, *parameters], cotangent)
    expected = torch.autograd.grad(plain(x), [x, *parameters], cotangent)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_of_the_weight_the_bias_and_a_chain() -> None:
    base = nn.Linear(4, 3).double()
    deltas = [random_delta("product", 3, 4, 1), random_delta("curve", 3, 4, 2)]
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    inputs = [x, base.weight, base.bias, *(p for d in deltas for p in d.parameters())]
    ours = adapted_linear(x, base, deltas, base.bias)
    plain = F.linear(x, deltas[1](deltas[0](base.weight)), base.bias)
    torch.testing.assert_close(ours, plain)
    found = torch.autograd.grad(ours.sin().sum(), inputs)
    expected = torch.autograd.grad(plain.sin().sum(), inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_the_input_is_kept(method) -> None:
    base = nn.Linear(32, 48).requires_grad_(False)
    delta = random_delta(method, 48, 32, dtype=torch.float32)
    x = torch.randn(5, 32, requires_grad=True)
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = adapted_linear(x, base, [delta], base.bias)
    known = {t.untyped_storage().data_ptr() for t in (x, base.weight, *delta.parameters())}
    assert set(kept) == known and out.shape == (5, 48)
    delta.requires_grad_(False)
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        adapted_linear(x, base, [delta], base.bias)
    assert x.untyped_storage().data_ptr() not in kept  # for dx the weights alone are needed


def test_a_parameter_that_changed_before_the_backward_pass_is_an_error() -> None:
    base, delta = nn.Linear(3, 2), random_delta("product", 2, 3, dtype=torch.float32)
    out = adapted_linear(torch.randn(4, 3), base, [delta], base.bias)
    with torch.no_grad():
        delta.values.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_second_derivatives_are_refused() -> None:
    base, delta = nn.Linear(3, 2), random_delta("curve", 2, 3, dtype=torch.float32)
    x = torch.randn(4, 3, requires_grad=True)
    out = adapted_linear(x, base, [delta], base.bias).square().sum()
    (first,) = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("method", METHODS)
def test_save_and_load(family, method, tmp_path) -> None:
    untrained = get_peft_model(family.model(), config(family, method)).eval()
    torch.testing.assert_close(logits(untrained, family), logits(family.model(), family))
    model = adapt(family, method, selection_seed=3)
    expected = logits(model, family)
    assert (expected - logits(family.model(), family)).abs().max() > 1e-5
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)  # what the draws do not depend on
    for options in ({}, {"adapter_name": "value", "low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(family.model(), tmp_path, **options).eval()
        assert torch.equal(logits(loaded, family), expected)
    auto = family.auto_class
    family.model().save_pretrained(tmp_path / "base")
    base = auto._target_class.from_pretrained(tmp_path / "base")
    again = get_peft_model(base, config(family, method))
    randomize(again)
    again.save_pretrained(tmp_path / "auto")
    assert torch.equal(
        logits(auto.from_pretrained(tmp_path / "auto").eval(), family), logits(again.eval(), family)
    )


def test_an_adapter_never_brings_code_along(roberta, tmp_path) -> None:
    adapt(roberta).save_pretrained(tmp_path / "adapter")
    roberta.model().save_pretrained(tmp_path / "base")
    program = (
        "import lorasp.adapters, peft, sys, transformers\n"
        "from lorasp.errors import UsageError\n"
        "base = transformers.RobertaForSequenceClassification.from_pretrained(sys.argv[1])\n"
        "try:\n"
        "    peft.PeftModel.from_pretrained(base, sys.argv[2])\n"
        "except UsageError as error:\n"
        "    print(error)\n"
    )
    folders = [str(tmp_path / "base"), str(tmp_path / "adapter")]
    done = subprocess.run(
        [sys.executable, "-c", program, *folders], capture_output=True, text=True, check=True
    )
    assert "the method 'product'" in done.stdout and "offered here; there are none" in done.stdout


def test_several_adapters(family, tmp_path) -> None:
    outputs = {}
    for seed, name in enumerate(("one", "two")):
        single = adapt(family, ("product", "curve")[seed], selection_seed=seed)
        randomize(single, seed)
        single.save_pretrained(tmp_path / name)
        outputs[name] = logits(single, family)
    model = PeftModel.from_pretrained(family.model(), tmp_path / "one", adapter_name="one")
    model.load_adapter(tmp_path / "two", adapter_name="two")
    model.eval()
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        assert torch.equal(logits(model, family), outputs[name])
        trained = {n for n, p in model.named_parameters() if p.requires_grad and "delta_" in n}
        assert trained and all(f".{name}." in n for n in trained)
    if not family.labels:  # a classification head belongs to the adapter
        with model.disable_adapter():
            base = family.model()
            assert torch.equal(logits(model, family), logits(base, family))
        model.base_model.set_adapter(["one", "two"])
        path, layer = next(iter(layers(model).items()))
        weight = base.get_submodule(path.removeprefix("base_model.model.")).weight
        weight = weight.t() if isinstance(layer.base_layer, Conv1D) else weight
        for name in ("one", "two"):
            weight = layer.delta_weight[name](weight)
        x = torch.randn(4, layer.in_features)
        torch.testing.assert_close(layer(x), F.linear(x, weight, layer.base_layer.bias))
        both = logits(model, family)
        model.merge_adapter()
        torch.testing.assert_close(logits(model, family), both)
        model.unmerge_adapter()
    model.set_adapter("one")
    model.delete_adapter("two")
    assert not deltas_of(model, "two") and torch.equal(logits(model, family), outputs["one"])


def test_an_adapter_added_later_draws_what_it_would_draw_alone(roberta) -> None:
    alone = adapt(roberta, selection_seed=5)
    model = adapt(roberta, selection_seed=4)
    model.add_adapter("late", config(roberta, "product", selection_seed=5))
    drawn = [delta.frozen for delta in deltas_of(alone, "default")]
    assert len(drawn) == 4 and not torch.equal(drawn[0], drawn[1])
    for late, single in zip(deltas_of(model, "late"), drawn, strict=True):
        assert torch.equal(late.frozen, single)
    for other, single in zip(deltas_of(model, "default"), drawn, strict=True):
        assert not torch.equal(other.frozen, single)
    assert not any(
        p.requires_grad for delta in deltas_of(model, "late") for p in delta.parameters()
    )


@pytest.mark.parametrize("method", METHODS)
def test_merge_unmerge_unload(family, method) -> None:
    model = adapt(family, method)
    expected = logits(model, family)
    before = {n: p.clone() for n, p in model.named_parameters()}
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model, family), expected)
    model.unmerge_adapter()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert torch.equal(logits(model, family), expected)
    unloaded = copy.deepcopy(model).unload()
    assert not layers(unloaded)
    if not family.labels:
        assert torch.equal(logits(unloaded, family), logits(family.model(), family))
    merged = model.merge_and_unload()
    assert not layers(merged)
    torch.testing.assert_close(logits(merged, family), expected)


def test_a_safe_merge_refuses_what_is_no_number(roberta) -> None:
    model = adapt(roberta)
    deltas_of(model, "default")[0].values.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="'default' has entries that are no finite numbers"):
        model.merge_adapter(safe_merge=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("autocast_adapter", [True, False])
def test_half_precision_base(roberta, method, autocast_adapter) -> None:
    base = roberta.model().bfloat16()
    model = get_peft_model(base, config(roberta, method), autocast_adapter_dtype=autocast_adapter)
    randomize(model)
    expected = torch.float32 if autocast_adapter else torch.bfloat16
    for delta in deltas_of(model, "default"):
        assert {t.dtype for t in (*delta.parameters(), *delta.buffers())} == {expected}
    out = model(**roberta.batch())
    assert out.logits.dtype == torch.bfloat16
    out.loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in grads)
    model.eval()
    before = logits(model, roberta)
    assert torch.equal(logits(model.merge_and_unload(), roberta), before)  # rounded once, alike


def test_autocast_and_checkpointing_give_the_same_gradients(llama) -> None:
    model = adapt(llama, "curve").train()

    def gradients(**context) -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, **context):
            model(**llama.batch()).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    exact, mixed = gradients(enabled=False), gradients()
    for a, b in zip(exact, mixed, strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() <= 0.05 * a.norm()
    for reentrant in (False, True):
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for a, b in zip(exact, gradients(enabled=False), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("method", METHODS)
def test_quantised_layers(quantization, method, tmp_path) -> None:
    """Output and gradients by the dequantised weight; merging rounds as quantising anew does."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    # int8 rounds otherwise in training, and nf4 packs itself in evaluation
    layer = quantised(nn.Linear(64, 96), quantization).train(quantization == "nf4")
    x = torch.randn(5, 64, requires_grad=True)
    exact = layer(x.detach())
    dense = dense_of(layer)
    model = get_peft_model(
        nn.Sequential(layer), DeltaConfig(target_modules=["0"], method=method, selection_seed=1)
    ).eval()
    torch.testing.assert_close(model(x.detach()), exact)
    randomize(model)
    (delta,) = deltas_of(model, "default")
    change = delta(dense) - dense
    out = model(x)
    torch.testing.assert_close(out, exact + x @ change.t(), rtol=1e-4, atol=1e-4)
    gradient = torch.randn_like(out)
    parameters = [x, *delta.parameters()]
    found = torch.autograd.grad(out, parameters, gradient)
    expected = torch.autograd.grad(F.linear(x, delta(dense)), parameters, gradient)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        with model.disable_adapter():
            assert torch.equal(model(x), exact)
        expected = model(x)
        again = quantised(linear_of(delta(dense), layer.bias), quantization)
        model.merge_adapter()
        tolerance = 0.02 * float(dense.abs().max())
        merged = model.base_model.model[0].base_layer
        rounded = dense_of(again)
        assert (dense_of(merged) - rounded).abs().max() <= tolerance
        assert (model(x) - expected).norm() <= 0.2 * expected.norm()
        model.unmerge_adapter()
        assert torch.equal(model(x), expected)
        assert type(model.merge_and_unload()[0]) is type(layer)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_layer_can_be_merged_before_its_first_call(quantization) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layer = quantised(nn.Linear(64, 96), quantization)
    dense, settings = dense_of(layer), DeltaConfig(target_modules=["0"], method="product")
    model = get_peft_model(nn.Sequential(layer), settings).eval()
    randomize(model)
    (delta,) = deltas_of(model, "default")
    with torch.no_grad():
        again = dense_of(quantised(linear_of(delta(dense), layer.bias), quantization))
        model.merge_adapter()
        merged = dense_of(model.base_model.model[0].base_layer)
    assert (merged - again).abs().max() <= 0.02 * float(again.abs().max())


def dense_of(layer) -> torch.Tensor:
    """The weight that bitsandbytes multiplies by, from its own parts."""
    import bitsandbytes as bnb

    if isinstance(layer, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    held = layer.state if layer.state.SCB is not None else layer.weight
    return held.CB * held.SCB.unsqueeze(1) / 127


def linear_of(weight, bias) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight.data, made.bias.data = weight.detach().clone(), bias.detach().clone()
    return made


def quantised(linear, quantization):
    """bitsandbytes' own way: load a float layer's state, then move it to its device."""
    import bitsandbytes as bnb

    size = (linear.in_features, linear.out_features)
    if quantization == "nf4":
        layer = bnb.nn.Linear4bit(*size, quant_type="nf4")
    else:
        layer = bnb.nn.Linear8bitLt(*size, has_fp16_weights=False, threshold=6.0)
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu").requires_grad_(False)


def test_all_linear_targets(roberta) -> None:
    settings = DeltaConfig(task_type="SEQ_CLS", target_modules="all-linear", method="product")
    assert len(layers(get_peft_model(roberta.model(), settings))) == 2 * 6
    default = get_peft_model(roberta.model(), DeltaConfig(task_type="SEQ_CLS", method="product"))
    assert default.peft_config["default"].target_modules == {"query", "value"}


@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_on_fake_tensors(llama, method) -> None:
    with torch.device("meta"):
        base = llama.build()
        model = get_peft_model(
            base, config(llama, method), low_cpu_mem_usage=True, autocast_adapter_dtype=False
        )
    assert all(p.is_meta for p in model.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, foreach=False)
        for _ in range(2):
            model(input_ids=torch.zeros(2, 6, dtype=torch.long)).logits.sum().backward()
            optimizer.step()
    assert trained and all(p.grad.shape == p.shape for p in trained)


def test_floating_point_operations_are_those_of_the_products() -> None:
    base, tokens = nn.Linear(16, 24, bias=False).requires_grad_(False), 10
    delta = random_delta("product", 24, 16, dtype=torch.float32)
    x = torch.randn(tokens, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        adapted_linear(x, base, [delta], None).sum().backward()
    products = 3 * 2 * tokens * 16 * 24  # out, dx, g^T x
    low_rank = 3 * 2 * 24 * 16 * 2  # B A twice, and the gradient of B
    assert counter.get_total_flops() == products + low_rank


def test_refusals(roberta, llama) -> None:
    model = roberta.model()
    with pytest.raises(UsageError, match=r"of the method 'absent'.* there are .*product"):
        get_peft_model(model, config(roberta, "absent"))
    with pytest.raises(UsageError, match="embeddings is a Embedding; only Linear, Conv1D"):
        get_peft_model(
            model, DeltaConfig(target_modules=["query", "word_embeddings"], method="product")
        )
    assert not layers(model)  # as it was before the refusals
    with pytest.raises(UsageError, match=r"only a subclass of lorasp\.Delta can be offered"):
        offer("linear", nn.Linear)
    with pytest.raises(UsageError, match="selection_seed is '3'; allowed: an integer"):
        DeltaConfig(selection_seed="3")
    adapted = adapt(llama)
    with pytest.raises(UsageError, match="choose one for all"):
        adapted(**llama.batch(), adapter_names=["default"] * 3)

    class Narrow(Delta):
        def forward(self, weight):
            return weight[:1]

    offer("narrow", Narrow)
    with pytest.raises(
        UsageError, match=r"Narrow gave a weight of \(1, 16\) for one of \(16, 16\)"
    ):
        get_peft_model(model, config(roberta, "narrow"))(**roberta.batch())
