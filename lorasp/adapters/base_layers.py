"""The layers of a base model that adapters adapt: which they are, and the weights they hold."""

from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorasp.errors import UsageError

KINDS = "Linear, Conv1D, and bitsandbytes' Linear4bit and Linear8bitLt"


def target_modules(config: Any, model: nn.Module) -> dict[str, Any]:
    """The modules of a model that a PEFT configuration targets, by path; none inside an adapter."""
    targets: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name and not name.startswith(inside):
            if check_target_module_exists(config, name):
                targets[name] = module
            if isinstance(module, BaseTunerLayer):
                inside += (f"{name}.",)
    return targets


def check_adaptable(name: str, module: nn.Module) -> None:
    """Raises UsageError if a target module is of a type that has no weight of (out, in)."""
    if not isinstance(module, nn.Linear | Conv1D):
        raise UsageError(
            f"target module {name} is a {type(module).__name__}; only {KINDS} can be adapted: "
            "change target_modules or exclude_modules."
        )


def features(base: Any) -> tuple[int, int]:
    """The numbers of outputs and of inputs of a layer."""
    if isinstance(base, Conv1D):
        return base.nf, base.nx
    return base.out_features, base.in_features


def numel(weight: Any) -> int:
    """How many numbers a parameter stands for: bitsandbytes packs two of 4 bits into a byte."""
    state = getattr(weight, "quant_state", None)
    return int(weight.numel() if state is None else state.shape.numel())


def is_4bit(base: nn.Module) -> bool:
    """Whether a layer holds its weight in bitsandbytes' 4 bits."""
    return _is_a(base, "Linear4bit")


def is_8bit(base: nn.Module) -> bool:
    """Whether a layer holds its weight in bitsandbytes' int8."""
    return _is_a(base, "Linear8bitLt")


def _is_a(base: nn.Module, name: str) -> bool:
    # by name, since a machine without bitsandbytes can use everything else
    return any(kind.__name__ == name for kind in type(base).__mro__)


def keep_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights for inference on a CPU with AVX512.

    The first pass of a layer in evaluation mode does so, after which it passes no gradients on,
    what is dequantised is not its weight, and its product is another one, which needs a multiple of
    32 outputs. So this comes before a model's first pass, whether or not it gets an adapter.
    """
    layers: list[Any] = [module for module in model.modules() if is_4bit(module)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
        if getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
            from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

            layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu_inverse(
                layer.weight.data, layer.weight.quant_state
            )


def plain_weight(base: Any) -> torch.Tensor | None:
    """The weight of a layer as (out, in), None where it is quantised."""
    if isinstance(base, Conv1D):
        return base.weight.t()
    return None if is_4bit(base) or is_8bit(base) else base.weight


def dense_weight(base: Any, weight: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """The weight (out, in) of a layer in `dtype`, a quantised one as bitsandbytes multiplies by it.

    That is, 4 bits in the layer's own dtype of computation where it has one. `weight` is what
    `plain_weight` gave.
    """
    if weight is not None:
        return weight.to(dtype)
    if is_4bit(base):
        from bitsandbytes.functional import dequantize_4bit

        packed, state = base.weight.data.view(-1, 1), base.weight.quant_state
        dense: torch.Tensor = dequantize_4bit(packed, state).to(base.compute_dtype or dtype)
        return dense
    if base.state.CB is None:  # as before the layer's first call
        base.init_8bit_state()
    scales = base.state.SCB.unsqueeze(1) / 127
    return base.state.CB.to(dtype, copy=True).mul_(scales)  # type: ignore[no-any-return]


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype of autocast on the device of `x`, None where it is off."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def without_autocast(x: torch.Tensor, autocast: torch.dtype | None) -> AbstractContextManager[Any]:
    """A context without autocast on the device of `x`; `autocast` is what `autocast_dtype` gave."""
    return nullcontext() if autocast is None else torch.autocast(x.device.type, enabled=False)


def with_values(base: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    """A layer like `base` with other values, which leaves `base` as it is.

    Args:
        weight: (out, in), floating; quantised again as the weight of `base` is, where that is.
        bias: (out,), None where `base` has none.
    """
    layer, old = copy(base), base.weight
    layer._parameters = dict(base._parameters)
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(base.bias.dtype), base.bias.requires_grad)
    if is_4bit(base):
        from bitsandbytes.nn import Params4bit

        settings = ("blocksize", "compress_statistics", "quant_type", "quant_storage")
        same = {name: getattr(old, name) for name in settings}
        dense = weight.to("cpu", old.quant_state.dtype)
        packed: Any = Params4bit(dense, False, module=layer, **same)
        layer.weight = packed.to(old.device)
    elif is_8bit(base):
        from bitsandbytes.nn import Int8Params

        layer.state = copy(base.state)
        layer.state.reset_grads()
        rounded: Any = Int8Params(weight.cpu(), requires_grad=False)
        layer.weight = rounded.to(old.device)
    else:
        values = weight.t() if isinstance(base, Conv1D) else weight
        layer.weight = nn.Parameter(values.to(old.dtype).contiguous(), old.requires_grad)
    return layer
