"""Memory and operations of one training step, at any size, without a byte of weights.

lorasp simulate --model llama-13b --method lora-sp --batch 1 --length 512 --dtype float16
"""

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from peft.tuners.lycoris_utils import LycorisLayer
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from transformers import AutoConfig
from transformers.quantizers.auto import AutoHfQuantizer

from lorasp.adapters import hooks
from lorasp.adapters.registry import apply_method, count_parameters, quantize_of
from lorasp.errors import UsageError
from lorasp.models import CLASSES, SAFELY, head_labels, quantization_config, weights_dtype
from lorasp.profiling import schedule
from lorasp.profiling.fake import FakeMode
from lorasp.profiling.step import batch_shapes, counted_step, optimizer_of, ready
from lorasp.public_models import meta_model

Resolved = dict[str, Any]
# What torch raises where a value of a tensor that has none decides what is done.
VALUES_WANTED = (DataDependentOutputException, DynamicOutputShapeException, NotImplementedError)


def simulate(resolved: Resolved, folder: Path | None = None) -> dict[str, Any]:
    """Run one warm training step under fake tensors; what it holds and computes.

    The model class, the adapter, recomputation and AdamW are those of `train`; only the numbers are
    missing. Of AdaLoRA and Dynamic LoRA it is a step that measures (see `schedule`): what allocates
    looks at values. Neither has a matrix product, nor has drawing LoRA-SP's selection again, which
    is left out too: the operations are those of each step of a run.

    Sequences have no padding. On a CPU, what is found is what a real step takes. The step
    runs on fake CPU tensors for CUDA too, with `operators_of_cuda` and the fused AdamW in place;
    what stays a CPU's is the rest of autocast's lists, and bitsandbytes' int8 product, which keeps
    the same but makes a copy of the weight in the forward pass that CUDA does without.

    Args:
        resolved: `model` (name, architecture, targets), `method`, `runtime` (device, precision,
            weights) and `profile` (batch, length), as of a profile.
        folder: a prepared model; without one the public model of that name is meant.

    Returns what `counted_step` does, and `parameters`.
    """
    resolved = without_residual(resolved)
    fused = resolved["runtime"]["device"] == "cuda"
    resolved["runtime"]["device"] = "cpu"  # as fake tensors are without a CUDA build of torch
    try:
        network = ready(adapted(resolved, folder), resolved)
        keep_every_module(network)
        with values_unseen(), operators_of_cuda() if fused else nullcontext():
            materialise(network)
            optimizer = optimizer_of(network, resolved, fused)
            for weight in network.parameters():
                weight.grad = torch.empty_like(weight) if weight.requires_grad else None
            schedule.begin(network, optimizer)
            number = schedule.without_values(network)
            optimizer.step()  # allocates the moments
            if number is not None:
                hooks.after_step(network, schedule.leading_to(network, number) or 0)
            optimizer.zero_grad()
            batch = {
                name: torch.zeros(shape, dtype=torch.int64)
                for name, (shape, _) in batch_shapes(network, resolved).items()
            }
            return counted_step(network, optimizer, batch, resolved, number) | {
                "parameters": count_parameters(network)
            }
    except VALUES_WANTED as error:
        raise UsageError(
            f"method {resolved['method']['name']} looks at the values of weights, of which a "
            "simulated step has none: measure it (lorasp profile)"
        ) from error


def keep_every_module(network: nn.Module) -> None:
    """Spare PEFT's LoHa and LoKr the random number by which a module of theirs is left out.

    A number has no value here. Where the share to leave out is zero, and nothing else is dropped,
    the layer computes in evaluation mode what it computes in training.
    """
    for module in network.modules():
        if isinstance(module, LycorisLayer) and not any(
            [*module.module_dropout.values(), *module.rank_dropout.values()]
        ):
            module.training = False  # its own flag: the base layer's stays


def without_residual(resolved: Resolved) -> Resolved:
    """A copy: a residual is taken out before the first step, and the base takes the same bytes."""
    resolved = copy.deepcopy(resolved)
    quantize = quantize_of(resolved).removesuffix("-residual")
    resolved["method"].setdefault("settings", {})["quantize"] = quantize
    return resolved


def adapted(resolved: Resolved, folder: Path | None) -> nn.Module:
    """The model with its method on the meta device.

    A method that looks at what it has drawn draws in earnest, for which there is no other sign
    than that it fails without.
    """
    network = skeleton(resolved, folder)
    try:
        with torch.device("meta"):
            return apply_method(network, resolved)
    except (RuntimeError, UsageError) as error:
        if not isinstance(error.__cause__ or error, RuntimeError):
            raise
    try:
        return apply_method(skeleton(resolved, folder), resolved)
    except UsageError as error:
        raise error.__cause__ or error from error


def skeleton(resolved: Resolved, folder: Path | None) -> nn.Module:
    """The base model on the meta device, its linear layers replaced where they are quantised."""
    labels = head_labels(resolved)
    if folder is None:
        network: Any = meta_model(resolved["model"]["name"], labels)
    else:
        config = AutoConfig.from_pretrained(folder, num_labels=labels, **SAFELY)
        with torch.device("meta"):
            network = CLASSES[resolved["model"]["architecture"]].from_config(config)
    if (quantization := quantization_config(resolved)) is not None:
        quantizer = AutoHfQuantizer.from_config(quantization)
        quantizer.preprocess_model(network, device_map={"": "cpu"})
        quantizer.postprocess_model(network)
    dtype = weights_dtype(resolved)
    # as from_pretrained has it: T5's `wo` overflows in fp16
    kept = network._keep_in_fp32_modules if dtype == torch.float16 else ()
    for name, weight in network.named_parameters():
        if not any(part in kept for part in name.split(".")):
            weight.data = weight.data.to(dtype)
    return network


def materialise(network: nn.Module) -> None:
    """Put fake tensors in the places of meta ones: shared stay shared, quantised are packed."""
    made: dict[int, Any] = {}
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                if id(weight) not in made:
                    made[id(weight)] = _parameter(module, name, weight)
                module._parameters[name] = made[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _parameter(module: Any, name: str, weight: nn.Parameter) -> nn.Parameter:
    """A fake parameter like the meta one; bitsandbytes' own kinds as a first step leaves them."""
    kind = type(weight).__name__
    if kind not in ("Params4bit", "Int8Params"):
        dtype = weight.dtype
        if type(module).__name__ == "Linear4bit" and name == "bias":
            dtype = module.compute_dtype
        return nn.Parameter(torch.empty(weight.shape, dtype=dtype), weight.requires_grad)
    shape = (module.out_features, module.in_features)
    if kind == "Int8Params":
        made: Any = nn.Parameter(torch.empty(shape, dtype=torch.int8), requires_grad=False)
        made.CB = made.SCB = None
        module.state.CB, module.state.SCB = made.data, torch.empty(shape[0])
        return cast(nn.Parameter, made)
    from bitsandbytes.functional import quantize_4bit

    dense = torch.empty(shape, dtype=weight.dtype)
    packed, state = quantize_4bit(dense, compress_statistics=True, quant_type="nf4")
    made = nn.Parameter(packed, requires_grad=False)
    made.quant_state = state
    return cast(nn.Parameter, made)


def _no_packing(*_: Any) -> None:
    """In place of what looks for several sequences in a row."""


def _finite(_: Any) -> np.bool_:
    """In place of what looks for infinities, as PEFT's VB-LoRA does in each step."""
    return np.False_


def _first(_: Any) -> float:
    """In place of the count of steps, which corrects AdamW's bias."""
    return 1.0


@contextmanager
def values_unseen() -> Iterator[None]:
    """Fake tensors; what would look at a value is told beforehand, nothing is freed by chance."""
    with suppress(ImportError):
        from bitsandbytes import functional

        functional.name2qmap["dynamic"] = functional.create_dynamic_map()
    collects = gc.isenabled()
    gc.disable()  # storages die by reference count alone, so that two runs free at the same moments
    try:
        with (
            patch("transformers.masking_utils.find_packed_sequence_indices", _no_packing),
            patch("torch.optim.adam._get_value", _first),
            patch("torch.Tensor.isinf", _finite),
            FakeMode(),
        ):
            yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def operators_of_cuda() -> Iterator[None]:
    """What CUDA does by other operators than a CPU, where that decides what is kept.

    Dropout keeps a mask of bytes, attention with dropout or a mask is one kernel that keeps neither
    scores nor probabilities, and autocast leaves layer norms in float32.
    """
    attention, norm = F.scaled_dot_product_attention, F.layer_norm

    def fused_attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if attn_mask is None and dropout_p == 0:  # a CPU has this kernel as well
            arguments = (attn_mask, dropout_p, is_causal)
            return attention(query, key, value, *arguments, scale=scale, enable_gqa=enable_gqa)
        if enable_gqa:
            groups = query.shape[1] // key.shape[1]
            key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(
                ~attn_mask, -torch.inf
            )
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            query, key, value = (x.to(dtype) for x in (query, key, value))
        if attn_mask is not None:
            scores = (*query.shape[:3], key.shape[2])
            attn_mask = attn_mask.to(query.dtype).expand(scores)
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        inputs = (query, key, value, attn_mask)
        out: torch.Tensor = kernel(*inputs, True, dropout_p, is_causal, scale=scale)[0]
        return out

    def fused_dropout(
        input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        return torch.native_dropout(input, p, True)[0] if training and p > 0 else input

    def norm_in_float32(
        input: torch.Tensor,
        shape: list[int],
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            input = input.float()
            weight, bias = (None if x is None else x.float() for x in (weight, bias))
        return norm(input, shape, weight, bias, eps)

    with (
        patch.object(F, "scaled_dot_product_attention", fused_attention),
        patch.object(F, "dropout", fused_dropout),
        patch.object(F, "layer_norm", norm_in_float32),
    ):
        yield
