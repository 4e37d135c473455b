"""LoRA-Mini (arXiv 2411.15804): each low-rank matrix is a trained factor times a frozen one.

An adapted weight W (out x in) becomes W + s B A with s = lora_alpha / r,

    A = A_tr A_aux  (r x a times a x in),    B = B_aux B_tr  (out x b times b x r),

of which A_tr and B_tr are trained: r (a + b) numbers, where LoRA trains r (in + out). The frozen
outer factors follow from (seed, module name) and are not saved.

What is drawn is uniform with mean zero, and its variances are such that the start is LoRA's:
A_aux 1 / a, B_aux 1 / b, and A_tr 1 / (3 in), as PEFT draws A; B_tr is zero. Then an entry of A has
LoRA's variance, a * 1 / (3 in) * 1 / a; and a step of size 1 in every entry of B_tr (of A_tr), with
independent signs, moves each entry of B (of A) by 1 in mean square, b * 1 / b, as it does in LoRA.
So a learning rate of LoRA's moves the product as far.

A and B are made from their factors in each pass, r a in operations, which for a batch of more
rows than about r costs less than taking every row through the a-wide middle.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import torch
from torch import nn

from lorasp.errors import UsageError

from .config import LowRankConfig, is_integer, setting
from .masks import decode, draw_codes
from .model import LowRankModel
from .plan import ModulePlan
from .tables import register
from .weights import LowRankMatrix

Shape = tuple[int, int]
REDUCTION = 20  # the abstract's 'up to a 20x reduction' of trainable parameters


@dataclass
class LoraMiniConfig(LowRankConfig):
    """Settings of LoRA-Mini (arXiv 2411.15804); see `lorasp.adapters.mini` for the method.

    All fields of PEFT's `LoraConfig` are accepted, except variants that need dense A and B.

    Args:
        inner_in, inner_out: a and b, at least the rank and at most in and out of the module. No
            source that we have names them. By default a twentieth of in and of out, rounded down,
            but at least the rank: so LoRA of the same rank trains 20 times as much, the paper's
            headline.
        selection_seed: the seed of the frozen factors and of initial values.

    Raises:
        UsageError: a value is not allowed.
    """

    key: ClassVar[str] = "LORA_MINI"
    method: ClassVar[str] = "LoRA-Mini"

    inner_in: int | None = setting(None, "a; by default a twentieth of in, at least r.")
    inner_out: int | None = setting(None, "b; by default a twentieth of out, at least r.")

    def check_values(self) -> None:
        super().check_values()
        for name in ("inner_in", "inner_out"):
            size = getattr(self, name)
            if size is not None and (not is_integer(size) or size < 1):
                raise UsageError(f"{name} is {size!r}; allowed: a positive integer, or none.")


def inner_sizes(config: LoraMiniConfig, plan: ModulePlan) -> tuple[int, int]:
    """a and b of one module.

    Raises:
        UsageError: one is smaller than the rank, or larger than the module.
    """
    sizes = []
    for name, whole in (("inner_in", plan.in_features), ("inner_out", plan.out_features)):
        asked = getattr(config, name)
        size = max(plan.rank, whole // REDUCTION) if asked is None else asked
        if not plan.rank <= size <= whole:
            raise UsageError(
                f"{name} is {size}, and target module {plan.name} is "
                f"{plan.out_features}x{plan.in_features} with rank {plan.rank}: "
                f"allowed are {plan.rank} to {whole}."
            )
        sizes.append(size)
    return sizes[0], sizes[1]


class FactoredWeight(LowRankMatrix):
    """A or B of LoRA-Mini, whose trained factor is the parameter `values`.

    The frozen factor is held as codes of one byte, as LoRA-SP's frozen entries are: dense in
    float32 it would take more than LoRA's matrices with their gradients and moments.

    Args:
        trained, frozen: the shapes of the factors. A is trained times frozen, B frozen times
            trained: which, follows from the side that they share.
        side: 'A' or 'B'.
        bound: the frozen values lie in (-bound, bound).
        device: where to allocate; on 'meta' nothing is ever drawn.
    """

    codes: torch.Tensor

    def __init__(
        self, trained: Shape, frozen: Shape, side: str, bound: float, device: torch.device
    ) -> None:
        super().__init__()
        self.side, self.bound = side, bound
        first, last = (trained, frozen) if side == "A" else (frozen, trained)
        self.shape = (first[0], last[1])
        self.values = nn.Parameter(torch.empty(trained, device=device))
        codes = torch.zeros(frozen, dtype=torch.uint8, device=device)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("bits", None, persistent=False)

    @torch.no_grad()
    def fill(self, codes: torch.Tensor, initial: torch.Tensor | None) -> None:
        """Take over the frozen factor's codes and the trained one's start (None: zero)."""
        self.codes.copy_(codes)
        self.values.zero_() if initial is None else self.values.copy_(initial)

    @property
    def frozen(self) -> torch.Tensor:
        """The frozen factor, in the dtype of `values`."""
        return decode(self.codes, self.bound).to(self.values)

    def expanded(self, values: Any) -> torch.Tensor:
        values = values.detach()
        return values @ self.frozen if self.side == "A" else self.frozen @ values

    def chosen(self, gradient: torch.Tensor) -> torch.Tensor:
        frozen = self.frozen.to(gradient.dtype)
        return gradient @ frozen.t() if self.side == "A" else frozen.t() @ gradient

    def extra_repr(self) -> str:
        trained = "x".join(map(str, self.values.shape))
        return f"{self.shape[0]}x{self.shape[1]}, trained={trained}"


def factored_pair(
    config: LoraMiniConfig, plan: ModulePlan, device: torch.device
) -> dict[str, LowRankMatrix]:
    """Make A and B of one module, by name.

    With init_lora_weights=False B_tr is random too: uniform in (-1/sqrt(r), 1/sqrt(r)).
    """
    a, b = inner_sizes(config, plan)
    factors: dict[str, tuple[Shape, Shape, float]] = {
        "A": ((plan.rank, a), (a, plan.in_features), 1 / sqrt(plan.in_features)),
        "B": ((b, plan.rank), (plan.out_features, b), 1 / sqrt(plan.rank)),
    }
    pair: dict[str, LowRankMatrix] = {}
    for side, (trained, frozen, bound) in factors.items():
        inner = a if side == "A" else b
        # uniform within this bound has the variance 1 / inner
        weight = FactoredWeight(trained, frozen, side, sqrt(3 / inner), device)
        if device.type != "meta":
            seed, name = config.selection_seed, f"{plan.name}.{side}"
            is_random = side == "A" or not config.init_lora_weights
            start = decode(draw_codes(trained, seed, f"{name}_tr"), bound) if is_random else None
            weight.fill(draw_codes(frozen, seed, f"{name}_aux"), start)
        pair[side] = weight
    return pair


class LoraMiniModel(LowRankModel):
    """Puts LoRA-Mini adapters into a model; see `LoraMiniConfig`."""

    make_pair = staticmethod(factored_pair)
    method, differ = "LoRA-Mini", "their frozen factors differ"

    def plan_modules(self, config: Any, model: nn.Module) -> dict[str, ModulePlan]:
        plans = super().plan_modules(config, model)
        for plan in plans.values():
            inner_sizes(config, plan)
        return plans


register(LoraMiniConfig.key, LoraMiniConfig, LoraMiniModel)
