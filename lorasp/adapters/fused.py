"""A layer with its adapter as one autograd function, which keeps nothing but the layer's input.

y = x W^T + b + s D(x) A^T B^T, where D is dropout and s the scaling, and for a gradient g of y

    dB = s g^T (D(x) A^T),    dA = (s g B)^T D(x),    dx = g W + D'(s g B A).

PEFT builds this from some ten operations and keeps D(x), D(x) A^T and the mask of D. Here A and B
are expanded from their selected entries, and D(x) A^T is computed, once more in the backward pass;
of the mask a bit an entry is kept. Where A is frozen, D(x) A^T is kept in place of x. Without
dropout, in float32 and float64, s B A is added to a passing copy of W instead, which for many
tokens costs less than their two thin products.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from .base_layers import autocast_dtype, dense_weight, plain_weight, without_autocast
from .dropout import draw_kept, kept_scale
from .weights import LowRankMatrix


class Adapter(NamedTuple):
    """What a layer's function needs besides tensors: its parts, and how they are joined."""

    base: Any
    a: LowRankMatrix
    b: LowRankMatrix
    scaling: float
    dropout: float


def adapted_linear(x: torch.Tensor, adapter: Adapter) -> torch.Tensor:
    """The layer's output (..., out) for inputs (..., in), in the dtype of the base layer's output.

    Base layers are torch's Linear, transformers' Conv1D, and bitsandbytes' Linear4bit and
    Linear8bitLt, all frozen. Under autocast everything but a 4-bit product is computed in its
    dtype, otherwise the adapter in its own, as in PEFT. There are no second derivatives.
    """
    out: torch.Tensor = AdaptedLinear.apply(
        x, plain_weight(adapter.base), adapter.a.values, adapter.b.values, adapter
    )
    return out


class AdaptedLinear(torch.autograd.Function):
    """Forward and backward pass of an adapted layer; see the module's formulas."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        a_values: torch.Tensor | None,
        b_values: torch.Tensor | None,
        adapter: Adapter,
    ) -> torch.Tensor:
        autocast = autocast_dtype(x)
        dtype = autocast or _adapter_dtype(adapter)
        trains_a, trains_b = ctx.needs_input_grad[2:4]
        rows, z = x.reshape(-1, x.shape[-1]), None
        kept = draw_kept(rows.shape, adapter.dropout, x.device) if adapter.dropout else None
        merges = kept is None and autocast is None and _merging_pays(rows, weight, dtype)
        if weight is None:  # bitsandbytes' layers see to autocast themselves
            out = adapter.base(rows)
        with without_autocast(x, autocast):
            a, b = adapter.a.expanded(a_values).to(dtype), adapter.b.expanded(b_values).to(dtype)
            if weight is not None and merges:
                merged = torch.addmm(weight, b, a, alpha=adapter.scaling)
                out = F.linear(rows, merged, adapter.base.bias)
            else:
                if weight is not None:
                    out = _base_product(adapter.base, rows, weight, autocast)
                # Not in place: selective recomputation may have kept the product as it is.
                z = _times(rows.to(dtype), _scale(kept, rows.shape, adapter, dtype)) @ a.t()
                out = _plus_product(out, z, b, adapter)
            if z is None and trains_b and not trains_a:
                z = rows @ a.t()
        ctx.adapter, ctx.dtype, ctx.merges, ctx.autocast = adapter, dtype, merges, autocast
        ctx.shape, ctx.x_dtype = x.shape, x.dtype
        # Where A is frozen its inputs are not needed: the gradient of B takes the thin product.
        inputs, thin = (x, None) if trains_a else (None, z if trains_b else None)
        # The masks are kept for their version: a selection drawn again before the backward pass
        # is an error.
        saved = (inputs, thin, weight, a_values, b_values, kept, adapter.a.bits, adapter.b.bits)
        ctx.save_for_backward(*saved)
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, z, weight, a_values, b_values, kept, *_ = ctx.saved_tensors
        adapter, dtype = ctx.adapter, ctx.dtype
        needs_x, _, needs_a, needs_b, _ = ctx.needs_input_grad
        dx = da = db = None
        with without_autocast(gradient, autocast_dtype(gradient)):
            g = gradient.reshape(-1, gradient.shape[-1])
            low = g.to(dtype)
            a, b = adapter.a.expanded(a_values).to(dtype), adapter.b.expanded(b_values).to(dtype)
            dz = low @ b * adapter.scaling
            scale = _scale(kept, (g.shape[0], ctx.shape[-1]), adapter, dtype)
            if needs_a:
                inputs = _times(x.reshape(-1, ctx.shape[-1]).to(dtype), scale)
                da = adapter.a.chosen(dz.t() @ inputs).to(a_values.dtype)
                z = inputs @ a.t()
                del inputs
            if needs_b:
                db = adapter.b.chosen(low.t() @ (z * adapter.scaling)).to(b_values.dtype)
            if needs_x and ctx.merges:
                dx = g @ torch.addmm(weight, b, a, alpha=adapter.scaling)
            elif needs_x:
                dense = dense_weight(adapter.base, weight, ctx.autocast or ctx.x_dtype)
                dx = g.to(dense.dtype) @ dense
                if dx.dtype != dtype:
                    dx.add_(_times(dz @ a, scale))
                elif scale is None:
                    dx.addmm_(dz, a)
                else:
                    dx.addcmul_(dz @ a, scale)
            if dx is not None:
                dx = dx.to(ctx.x_dtype).view(ctx.shape)
        return dx, None, da, db, None


def _adapter_dtype(adapter: Adapter) -> torch.dtype:
    matrix: Any = adapter.a
    held = matrix.like if matrix.values is None else matrix.values
    dtype: torch.dtype = held.dtype
    return dtype


def _merging_pays(rows: torch.Tensor, weight: torch.Tensor | None, dtype: torch.dtype) -> bool:
    """Whether W + s B A, twice, costs less than what it spares, and is not rounded off.

    Per unit of rank: two products of `out` by `in` against three of the rows, with `in` (D(x) A^T
    and dz A) and `out` (the sum) columns.
    """
    if weight is None or not dtype == weight.dtype == rows.dtype or dtype.itemsize < 4:
        return False
    out_features, in_features = weight.shape
    return rows.shape[0] * (2 * in_features + out_features) > 2 * out_features * in_features


def _base_product(
    base: Any, rows: torch.Tensor, weight: torch.Tensor, autocast: torch.dtype | None
) -> torch.Tensor:
    if autocast is None:
        return F.linear(rows, weight, base.bias)
    bias = None if base.bias is None else base.bias.to(autocast)
    return F.linear(rows.to(autocast), weight.to(autocast), bias)


def _plus_product(
    out: torch.Tensor, z: torch.Tensor, b: torch.Tensor, adapter: Adapter
) -> torch.Tensor:
    """out + s z B^T, in the dtype of `out`."""
    if out.dtype == z.dtype:
        return torch.addmm(out, z, b.t(), alpha=adapter.scaling)
    return (z @ b.t() * adapter.scaling).add_(out).to(out.dtype)  # one rounding


def _scale(
    kept: torch.Tensor | None, shape: tuple[int, ...], adapter: Adapter, dtype: torch.dtype
) -> torch.Tensor | None:
    """What dropout multiplies the rows by, None without dropout."""
    return None if kept is None else kept_scale(kept, shape, adapter.dropout, dtype)


def _times(values: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return values if scale is None else values * scale
