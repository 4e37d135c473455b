"""bitsandbytes base layers: a training step, merging, and Eq. 3, Q = qN(W - dW0)."""

import copy

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from peft.utils.integrations import dequantize_module_weight
from torch import nn

from lorasp.adapters import LoraSpConfig, quantize_residual
from lorasp.adapters.layer import LoraSpLayer
from lorasp.adapters.masks import decode, draw_codes, draw_mask
from lorasp.errors import UsageError

bnb = pytest.importorskip("bitsandbytes")
LAYERS = {"nf4": bnb.nn.Linear4bit, "int8": bnb.nn.Linear8bitLt}
TARGETS = ["q_proj", "v_proj", "down_proj"]
WIDTH = 64  # a block of NF4


def llama() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * WIDTH,
        vocab_size=64,
    )
    return transformers.LlamaForCausalLM(config).eval()


def config(**settings) -> LoraSpConfig:
    return LoraSpConfig(task_type="CAUSAL_LM", target_modules=TARGETS, r=4, **settings)


IDS = torch.arange(5, 17).view(2, 6)


def layers(model: nn.Module) -> dict[str, LoraSpLayer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, LoraSpLayer)}


@pytest.mark.parametrize("quantization", LAYERS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"unselected": "init"},
        {"selection": "rank"},
        {"selection": "matrix", "unselected": "init"},
    ],
    ids=["zero", "init", "rank", "matrix"],
)
def test_training_step_save_load_and_merge(quantization, settings, tmp_path) -> None:
    model = get_peft_model(
        quantize_residual(llama(), config(**settings), quantization), config(**settings)
    )
    assert all(isinstance(m.get_base_layer(), LAYERS[quantization]) for m in layers(model).values())
    assert len(layers(model)) == 6 and type(model.base_model.model.lm_head) is nn.Linear
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=0.02)
    losses = []
    for _ in range(4):
        loss = model(input_ids=IDS, labels=IDS).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all((p != before[n]).any() for n, p in trained.items())

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        quantize_residual(llama(), config(**settings), quantization), tmp_path
    )
    with torch.no_grad():  # bitsandbytes multiplies differently where gradients are wanted
        expected = model.eval()(input_ids=IDS).logits
        assert torch.equal(loaded(input_ids=IDS).logits, expected)
        sums = {
            n: dequantize_module_weight(m.get_base_layer()) + m.get_delta_weight("default")
            for n, m in layers(model).items()
        }
        merged = model.merge_and_unload()
        for name, weight in sums.items():
            layer = merged.get_submodule(name.removeprefix("base_model.model."))
            found = dequantize_module_weight(layer)
            again = dequantize_module_weight(quantize(weight, quantization))
            torch.testing.assert_close(found, again, rtol=0, atol=0.02 * float(weight.abs().max()))


@pytest.mark.parametrize("evaluated_before", [False, True])
def test_gradients_are_the_same_after_an_evaluation(evaluated_before) -> None:
    """On a CPU with AVX512, bitsandbytes packs a 4-bit weight in its first evaluation for good."""

    def evaluate(network) -> None:
        with torch.no_grad():
            network.eval()(input_ids=IDS)

    base = quantize_residual(llama(), config(), "nf4")
    if evaluated_before:
        evaluate(base)
    model = get_peft_model(base, config())
    found = []
    for _ in range(2):
        model.train().zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        evaluate(model)
    reference = get_peft_model(quantize_residual(llama(), config(), "nf4"), config()).train()
    reference(input_ids=IDS, labels=IDS).loss.backward()
    exact = [p.grad for p in reference.parameters() if p.requires_grad]
    for grads in found:
        for ours, theirs in zip(grads, exact, strict=True):
            # packing before the adapter came has rounded the scales of the blocks
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0.05 * float(theirs.abs().max()))


@pytest.mark.parametrize("quantization", LAYERS)
def test_residual_is_equation_three(quantization: str) -> None:
    """Each layer computes qN(W - dW0) x + dW0 x, with dW0 = (alpha / r) B0 A0 by the definition."""
    settings = config(unselected="zero", init_lora_weights=False, lora_alpha=8, selection_seed=2)
    plain = llama()
    weights = {n: m.weight.clone() for n, m in plain.named_modules() if isinstance(m, nn.Linear)}
    model = get_peft_model(quantize_residual(plain, settings, quantization), settings)

    for path, layer in layers(model).items():
        name = path.removeprefix("base_model.model.")
        out_features, in_features = weights[name].shape
        pair = {}
        for side, shape, fan_in in (
            ("A", (4, in_features), in_features),
            ("B", (out_features, 4), 4),
        ):
            mask = draw_mask(shape, 0.5, 2, f"{name}.{side}")
            pair[side] = decode(draw_codes(shape, 2, f"{name}.{side}"), fan_in**-0.5) * mask
        product = 8 / 4 * pair["B"] @ pair["A"]
        assert product.abs().max() > 0.01
        quantized = quantize(weights[name] - product, quantization)
        x = torch.randn(5, in_features)
        expected = quantized(x) + x @ product.T
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
        # The adapted layer starts near W, although dW0 is larger than W here.
        error = (layer(x) - x @ weights[name].T).norm() / (x @ weights[name].T).norm()
        assert error < {"nf4": 0.4, "int8": 0.05}[quantization]


def quantize(weight: torch.Tensor, quantization: str) -> nn.Module:
    """bitsandbytes' own way: load a float layer's state, then move it to its device."""
    out_features, in_features = weight.shape
    if quantization == "nf4":
        layer = bnb.nn.Linear4bit(in_features, out_features, bias=False, quant_type="nf4")
    else:
        layer = bnb.nn.Linear8bitLt(
            in_features, out_features, bias=False, has_fp16_weights=False, threshold=6.0
        )
    layer.load_state_dict({"weight": weight})
    return layer.to("cpu")


@pytest.mark.parametrize("quantization", LAYERS)
def test_with_b_at_zero_it_is_plain_quantization(quantization: str) -> None:
    x = torch.randn(3, WIDTH)
    plain = llama()
    weight = plain.model.layers[0].self_attn.q_proj.weight.clone()
    model = quantize_residual(plain, config(), quantization)
    expected = quantize(weight, quantization)(x)
    assert torch.equal(model.model.layers[0].self_attn.q_proj(x), expected)


def test_adapting_a_model_that_transformers_quantized(tmp_path) -> None:
    llama().save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path,
        quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
        device_map="cpu",
        dtype=torch.float32,
    )
    ours = get_peft_model(copy.deepcopy(model), config())
    mine = quantize_residual(llama(), config(), "nf4")
    for name, layer in layers(ours).items():
        twin = mine.get_submodule(name.removeprefix("base_model.model."))
        assert torch.equal(layer.get_base_layer().weight, twin.weight)
    ours(input_ids=IDS, labels=IDS).loss.backward()
    with pytest.raises(UsageError, match=r"q_proj is a Linear4bit, and only plain Linear layers"):
        quantize_residual(model, config(), "nf4")
    assert not layers(model) and not hasattr(model, "peft_config")  # as it was before the refusal


def test_unknown_quantization() -> None:
    with pytest.raises(UsageError, match="quantization is 'int3'; allowed: nf4, int8"):
        quantize_residual(llama(), config(), "int3")
