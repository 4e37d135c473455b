"""Quantize a base model with the adapter's initial product taken out of it: Eq. 3 of the paper."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers.quantizers.base import get_keys_to_not_convert

from lorasp.errors import UsageError

from .config import LoraSpConfig
from .layer import LoraSpLayer
from .model import LoraSpModel

HEADS = ("lm_head", "classifier", "score", "qa_outputs")


@torch.no_grad()
def quantize_residual(
    model: Any,
    config: LoraSpConfig,
    quantization: str = "nf4",
    compute_dtype: torch.dtype | None = None,
) -> Any:
    """Replace the linear layers of `model` by Q = qN(W - dW0), where dW0 = (alpha / r) B0 A0.

    Put the adapter in afterwards with `get_peft_model(model, config)`: its initial values follow
    from `config`, so that the adapted layer computes Q x + dW0 x, close to W x. While B starts at
    zero, as by default, dW0 is zero and this is plain quantization; set init_lora_weights=False
    (B random) for a residual. Output layers and heads stay as they are, as with transformers'
    BitsAndBytesConfig. The paper transposes the difference; shapes require that it is not.

    Args:
        model: a PreTrainedModel with its weights in place; changed in place, and returned.
        config: of the adapter to come.
        quantization: 'nf4' (4 bits, blocks of 64, doubly quantized) or 'int8' (rows).
        compute_dtype: in which 4-bit layers multiply; by default the dtype of the weights.

    Raises:
        UsageError: `quantization` is unknown, or a target module cannot be quantized.
    """
    if quantization not in ("nf4", "int8"):
        raise UsageError(f"quantization is {quantization!r}; allowed: nf4, int8.")
    kept = {*get_keys_to_not_convert(model), *HEADS, *(config.modules_to_save or ())}
    kept |= set(model._keep_in_fp32_modules or ())  # T5 takes the dtype of `wo` for its inputs
    subtract_initial_product(model, config)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and not _is_kept(name, kept):
            model.set_submodule(name, _quantized(module, quantization, compute_dtype))
    flag = "is_loaded_in_4bit" if quantization == "nf4" else "is_loaded_in_8bit"
    setattr(model, flag, True)  # as transformers marks models that it quantizes
    return model


def subtract_initial_product(model: Any, config: LoraSpConfig) -> None:
    """Take dW0 out of the weight of every module that `config` would adapt, in place."""
    tuner = LoraSpModel(model, deepcopy(config), "initial")
    layers: dict[str, Any] = {n: m for n, m in model.named_modules() if isinstance(m, LoraSpLayer)}
    unfit = [n for n, layer in layers.items() if type(layer.get_base_layer()) is not nn.Linear]
    for layer in layers.values() if not unfit else ():
        layer.get_base_layer().weight.data -= layer.get_delta_weight("initial")
    tuner.unload()
    if unfit:
        found = type(model.get_submodule(unfit[0])).__name__
        raise UsageError(
            f"target module {unfit[0]} is a {found}, and only plain Linear layers can be "
            "quantized: load the model unquantized, or leave the module out of target_modules."
        )


def _is_kept(name: str, kept: set[str]) -> bool:
    return any(name == k or name.startswith(f"{k}.") or name.split(".")[-1] == k for k in kept)


def _quantized(
    linear: nn.Linear, quantization: str, compute_dtype: torch.dtype | None
) -> nn.Module:
    # Only here: a machine without bitsandbytes can use everything else.
    import bitsandbytes as bnb

    weight, device = linear.weight.data, linear.weight.device
    shape = (linear.in_features, linear.out_features, linear.bias is not None)
    layer: nn.Linear
    if quantization == "nf4":
        dtype = compute_dtype or weight.dtype
        layer = bnb.nn.Linear4bit(*shape, dtype, quant_type="nf4", device="meta")
        layer.weight = bnb.nn.Params4bit(weight.cpu(), False, quant_type="nf4", module=layer)
    else:
        layer = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False, threshold=6.0, device="meta")
        layer.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False)
    layer.bias = linear.bias
    return layer.to(device).requires_grad_(False)
