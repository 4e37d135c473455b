"""The low-rank matrices of LoRA-SP, of which only the selected entries are parameters."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .masks import decode, pack_bits, unpack_bits


class LowRankMatrix(nn.Module):
    """A or B of an adapted layer, as the layer's function (`fused`) needs it.

    `values` is what is trained of it, None where nothing is; `bits` is the mask in force, where
    there is one that can change between a forward pass and its backward pass.
    """

    values: Any
    bits: Any

    def expanded(self, values: Any) -> torch.Tensor:
        """The dense matrix (out, in) that `values` make; no gradients."""
        raise NotImplementedError

    def chosen(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of `values`, in their shape, from that of the dense matrix (out, in)."""
        raise NotImplementedError

    @property
    def weight(self) -> torch.Tensor:
        """The dense matrix (out, in); gradients flow to `values`."""
        return Expand.apply(self.values, self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)


class SelectedWeight(LowRankMatrix):
    """A matrix whose selected entries are one compact parameter, in place of LoRA's nn.Linear.

    `values` holds the selected entries in row-major order and nothing else, so that gradients,
    optimizer states and saved files are as small. The rest is zero, or frozen at `bound` times a
    code of one byte. Mask and codes are buffers that are not saved: they follow from the seed.

    Args:
        shape: (out, in) of the matrix, as of `nn.Linear.weight`.
        selected: the number of selected entries, 0 to out * in.
        keeps_rest: whether unselected entries stay at their initial value or are zero.
        bound: the initial values lie in (-bound, bound).
        device: where to allocate; on 'meta' nothing is ever drawn.
    """

    # Each is None where there is nothing to hold.
    rest: Any
    like: Any

    def __init__(
        self,
        shape: tuple[int, int],
        selected: int,
        keeps_rest: bool,
        bound: float,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.shape, self.selected, self.bound = shape, selected, bound
        rest = prod(shape) - selected
        values = nn.Parameter(torch.empty(selected, device=device)) if selected else None
        bits = _bytes(-(-prod(shape) // 8), device) if selected and rest else None
        self.register_parameter("values", values)
        self.register_buffer("bits", bits, persistent=False)
        self.register_buffer(
            "rest", _bytes(rest, device) if keeps_rest and rest else None, persistent=False
        )
        # What `weight` is like where nothing is trained; otherwise it is like `values`.
        self.register_buffer(
            "like", None if selected else torch.empty(0, device=device), persistent=False
        )

    @torch.no_grad()
    def fill(self, mask: torch.Tensor, codes: torch.Tensor | None) -> None:
        """Take over the selection and the initial values (codes; None: all start at zero)."""
        mask = mask.reshape(-1)
        if self.values is not None:
            initial = None if codes is None else decode(codes.reshape(-1)[mask], self.bound)
            self.values.zero_() if initial is None else self.values.copy_(initial)
        if self.bits is not None:
            self.bits.copy_(pack_bits(mask))
        if self.rest is not None and codes is not None:
            self.rest.copy_(codes.reshape(-1)[~mask])

    @property
    def mask(self) -> torch.Tensor:
        """Which entries are selected, boolean (out, in)."""
        if self.bits is not None:
            return unpack_bits(self.bits, prod(self.shape)).view(self.shape)
        device = self.weight.device
        return torch.full(self.shape, self.selected > 0, dtype=torch.bool, device=device)

    @property
    def frozen(self) -> int:
        """The number of entries that contribute a value and never move."""
        return 0 if self.rest is None else self.rest.numel()

    @property
    def weight(self) -> torch.Tensor:
        """The dense matrix (out, in); gradients flow to the selected entries alone."""
        if self.values is None:
            return self.expanded(None)
        whole = self.bits is None
        return self.values.view(self.shape) if whole else Expand.apply(self.values, self)

    def expanded(self, values: torch.Tensor | None) -> torch.Tensor:
        """The dense matrix (out, in) that has `values` in its selected places; no gradients."""
        like = self.like if values is None else values
        frozen: Any = None if self.rest is None else decode(self.rest, self.bound).to(like)
        if values is None:
            return frozen.view(self.shape)
        if self.bits is None:
            return values.detach().view(self.shape)
        mask = unpack_bits(self.bits, prod(self.shape))
        dense = values.new_zeros(prod(self.shape)).masked_scatter_(mask, values)
        if frozen is not None:
            dense.masked_scatter_(~mask, frozen)
        return dense.view(self.shape)

    def chosen(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of `values`, in their order, from that of the dense matrix (out, in)."""
        gradient = gradient.reshape(-1)
        if self.bits is None:
            return gradient
        # Their number is known: no device has to wait for it, and fake tensors work.
        mask = unpack_bits(self.bits, prod(self.shape))
        places = torch.nonzero_static(mask, size=self.selected).squeeze(1)
        return gradient.index_select(0, places)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}x{self.shape[1]}, selected={self.selected}"


class ResampledWeight(LowRankMatrix):
    """A matrix whose selection is drawn again during training, hence a parameter in full.

    Any entry may be selected some day, so values, gradients and optimizer states cannot be halved.
    The number of the draw is saved, so that a reloaded adapter is the same function. An unselected
    entry gets no gradient; `protect_unselected` keeps momentum and weight decay from moving it.

    Args:
        shape: (out, in) of the matrix.
        keeps_rest: whether unselected entries contribute their present value, or nothing.
        bound: the initial values lie in (-bound, bound).
        draw_mask: the mask, boolean (out, in), of a draw's number.
        device: where to allocate; on 'meta' nothing is ever drawn.
    """

    draw: torch.Tensor

    def __init__(
        self,
        shape: tuple[int, int],
        keeps_rest: bool,
        bound: float,
        draw_mask: Callable[[int], torch.Tensor],
        device: torch.device,
    ) -> None:
        super().__init__()
        self.shape, self.keeps_rest = shape, keeps_rest
        self.bound, self.draw_mask = bound, draw_mask
        numel = prod(shape)
        self.values = nn.Parameter(torch.empty(numel, device=device))
        self.register_buffer("bits", _bytes(-(-numel // 8), device), persistent=False)
        self.register_buffer("draw", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def fill(self, mask: torch.Tensor, codes: torch.Tensor | None) -> None:
        """Take over the first selection and the initial values (codes; None: all start at zero)."""
        self.bits.copy_(pack_bits(mask))
        self.values.zero_() if codes is None else self.values.copy_(
            decode(codes.reshape(-1), self.bound)
        )

    def redraw(self, draw: int) -> None:
        """Put the selection of draw number `draw` in force."""
        self.draw.fill_(draw)
        self.bits.copy_(pack_bits(self.draw_mask(draw)))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.draw.is_meta:
            self.redraw(int(self.draw))

    @property
    def mask(self) -> torch.Tensor:
        """Which entries are selected at present, boolean (out, in)."""
        return unpack_bits(self.bits, prod(self.shape)).view(self.shape)

    @property
    def selected(self) -> int:
        """The number of entries that are selected at present."""
        return int(self.mask.sum())

    @property
    def frozen(self) -> int:
        """The number of entries that contribute a value and do not move at present."""
        return prod(self.shape) - self.selected if self.keeps_rest else 0

    def expanded(self, values: Any) -> torch.Tensor:
        """The dense matrix (out, in) that `values` make under the present mask; no gradients."""
        values = values.detach().view(self.shape)
        return values if self.keeps_rest else values.where(self.mask, values.new_zeros(()))

    def chosen(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of `values` from that of the dense matrix: zero where not selected."""
        return gradient.where(self.mask, gradient.new_zeros(())).reshape(-1)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}x{self.shape[1]}, draw={int(self.draw)}"


class Expand(torch.autograd.Function):
    """The dense matrix of a `LowRankMatrix`, from its values.

    Nothing but a bit mask is kept for the backward pass. Saved as a tensor, it makes autograd
    refuse a selection that was drawn again in between.
    """

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, matrix: LowRankMatrix) -> torch.Tensor:
        ctx.matrix = matrix
        ctx.save_for_backward(matrix.bits)
        return matrix.expanded(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        _ = ctx.saved_tensors
        return ctx.matrix.chosen(gradient), None


def protect_unselected(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> list[torch.utils.hooks.RemovableHandle]:
    """Keep `optimizer` from moving entries that are not selected in the step it takes.

    Needed with `resample` other than 'never', where momentum and weight decay would move entries
    that get no gradient; without such a matrix in `model` nothing is registered. Wrap the optimizer
    itself, not a wrapper whose step may be skipped.

    Returns:
        The handles of the two hooks, whose `remove()` ends the protection.
    """
    weights = [module for module in model.modules() if isinstance(module, ResampledWeight)]
    if not weights:
        return []
    before: dict[ResampledWeight, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        before.update((weight, weight.values.detach().clone()) for weight in weights)

    def restore(*_: Any) -> None:
        for weight, values in before.items():
            weight.values.data.copy_(torch.where(weight.mask.view(-1), weight.values.data, values))
        before.clear()

    return [optimizer.register_step_pre_hook(keep), optimizer.register_step_post_hook(restore)]


def _bytes(count: int, device: torch.device) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.uint8, device=device)
