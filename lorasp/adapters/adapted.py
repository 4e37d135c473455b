"""A linear layer with an adapted weight as one autograd function, which keeps only its input.

y = x f(W)^T + b, where f is a chain of deltas, and for a gradient g of y

    dx = g f(W),    db = sum g,    and f's own graph takes g^T x to the parameters of f.

f(W) is computed in the forward pass and, with its graph, once more in the backward pass: nothing
of the size of W outlives either.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.func import functional_call

from lorasp.errors import UsageError

from .base_layers import (
    autocast_dtype,
    dense_weight,
    is_4bit,
    is_8bit,
    plain_weight,
    without_autocast,
)


def adapted_linear(
    x: torch.Tensor, base: Any, deltas: Sequence[nn.Module], bias: torch.Tensor | None
) -> torch.Tensor:
    """The output (..., out), in the dtype of the base layer's, for inputs (..., in).

    The adapted weight is computed in the wider dtype of the weight's and the parameters', and
    rounded once, to the dtype of the product; under autocast that is autocast's. A 4-bit weight is
    dequantised, adapted and multiplied by once, as bitsandbytes' own product is that of the
    dequantised weight. The int8 product rounds its inputs as well and so is bitsandbytes', and what
    the deltas add to the weight is multiplied by beside it. There are no second derivatives.

    Args:
        x: inputs (..., in).
        base: torch's Linear, transformers' Conv1D, bitsandbytes' Linear4bit or Linear8bitLt.
        deltas: modules that take a weight (out, in) and give one, applied one after the other.
        bias: (out,), in place of the layer's; None where it has none.
    """
    parameters = [weight for delta in deltas for weight in delta.parameters()]
    out: torch.Tensor = AdaptedWeight.apply(
        x, plain_weight(base), bias, base, tuple(deltas), *parameters
    )
    return out


def adapted_weight(
    base: Any,
    weight: torch.Tensor | None,
    deltas: Sequence[nn.Module],
    parameters: Sequence[torch.Tensor],
    dtype: torch.dtype,
) -> torch.Tensor:
    """f(W) (out, in), in the wider dtype of the weight's and the parameters'.

    Args:
        weight: what `plain_weight` gave.
        parameters: of all deltas, in place of their own.
        dtype: in which a quantised weight is dequantised.

    Raises:
        UsageError: a delta gave a weight of another shape.
    """
    adapted = weight if weight is not None else dense_weight(base, None, dtype)
    if parameters:
        adapted = adapted.to(torch.promote_types(adapted.dtype, parameters[0].dtype))
    rest = iter(parameters)
    for delta in deltas:
        own = {name: next(rest) for name, _ in delta.named_parameters()}
        before, adapted = adapted.shape, functional_call(delta, own, (adapted,))
        if adapted.shape != before:
            raise UsageError(
                f"{type(delta).__name__} gave a weight of {tuple(adapted.shape)} for one of "
                f"{tuple(before)}: its forward has to keep the shape."
            )
    return adapted


class AdaptedWeight(torch.autograd.Function):
    """Forward and backward pass of an adapted layer; see the module's formulas."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        base: Any,
        deltas: tuple[nn.Module, ...],
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        autocast = autocast_dtype(x)
        dtype = autocast or x.dtype
        if is_8bit(base):  # sees to autocast itself, and dequantises after its first call
            out = base(x)
        with without_autocast(x, autocast):
            adapted = adapted_weight(base, weight, deltas, parameters, dtype)
            if is_8bit(base):
                change = adapted.sub(dense_weight(base, None, dtype)).to(dtype)
                shift = None if bias is None or base.bias is None else bias - base.bias
                out = out + F.linear(x.to(dtype), change, _cast(shift, dtype)).to(out.dtype)
            else:
                if is_4bit(base):
                    dtype = base.compute_dtype or dtype
                out = F.linear(x.to(dtype), adapted.to(dtype), _cast(bias, dtype))
                if is_4bit(base):
                    out = out.to(x.dtype)
        trains = any(ctx.needs_input_grad[i] for i in (1, *range(5, 5 + len(parameters))))
        ctx.base, ctx.deltas, ctx.dtype = base, deltas, dtype
        ctx.x, ctx.bias = (x.shape, x.dtype), None if bias is None else bias.dtype
        ctx.save_for_backward(x if trains else None, weight, *parameters)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, *parameters = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _, _, *needs = ctx.needs_input_grad
        shape, x_dtype = ctx.x
        dx = db = None
        with without_autocast(gradient, autocast_dtype(gradient)):
            g = gradient.reshape(-1, gradient.shape[-1]).to(ctx.dtype)
            # leaves of a graph of their own
            start = None if weight is None else weight.detach().requires_grad_(needs_weight)
            leaves = [p.detach().requires_grad_(n) for p, n in zip(parameters, needs, strict=True)]
            trained = [leaf for leaf in (start, *leaves) if leaf is not None and leaf.requires_grad]
            with torch.set_grad_enabled(bool(trained)):
                adapted = adapted_weight(ctx.base, start, ctx.deltas, leaves, ctx.dtype)
            if needs_x:
                dx = (g @ adapted.detach().to(ctx.dtype)).to(x_dtype).view(shape)
            if needs_bias:
                db = g.sum(0).to(ctx.bias)
            found: list[torch.Tensor | None] = []
            if trained:
                # its place in the graph is enough: the dense weight goes before its gradient comes
                edge, wide = get_gradient_edge(adapted), adapted.dtype
                del adapted
                rows = x.reshape(-1, shape[-1]).to(ctx.dtype)
                dense = (g.t() @ rows).to(wide)
                found = list(torch.autograd.grad([edge], trained, [dense], allow_unused=True))
        order = iter(found)
        dweight = next(order) if needs_weight else None
        return dx, dweight, db, None, None, *(next(order) if need else None for need in needs)


def _cast(bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if bias is None else bias.to(dtype)
