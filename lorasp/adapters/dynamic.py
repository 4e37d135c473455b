"""Dynamic LoRA (arXiv 2501.14859), an interpretation: rank moves to the modules that matter.

The paper, of which our sources have the abstract and no equation, evaluates 'the layer's
importance during fine-tuning', reallocates adapter parameters by it, and considers 'the input
feature distribution', at 0.1 % more resources than LoRA. What follows is ours.

Module l has k_l components (a row of A, a column of B), r of them at the start, and computes
W + s B A with s = lora_alpha / r whatever k_l is. Sum k_l never changes. Of a step that measures,
the sensitivity of module l is

    I_l = mean over A of |A dL/dA|  +  mean over B of |B dL/dB|,

as AdaLoRA's (arXiv 2303.10512), and the spread of its inputs x over tokens, in [0, 1], is

    f_l = sqrt(sum over features of Var(x) / sum over features of E(x^2)).

At an allocation components go, one by one, to the module of the largest u_l / (k_l + 1/2), where
u_l is the product of the running means of I_l and f_l (Webster's apportionment). No module has less
than one or more than `max_rank`, or gains or loses more than `max_change` at a time.

A module that loses components loses those of the smallest |a_i| |b_i|, the norm of what
each contributes to B A. A component that is gained starts with b = 0, which changes nothing, and
with a drawn like A at the start. Only what a module has is held, with its gradient and the
optimizer's moments, so that the cost is LoRA's and that of the few steps that measure: a pass over
A and B, and the mean and the norm of 128 rows of each input. No other step computes more than
LoRA's.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, ClassVar

import torch

from lorasp.errors import UsageError

from .config import LowRankConfig, is_integer, is_number, setting
from .layer import LoraSpLayer
from .model import LowRankModel
from .plan import ModulePlan
from .ranked import RankedWeight, spread_of
from .tables import register
from .weights import LowRankMatrix


@dataclass
class DynamicLoraConfig(LowRankConfig):
    """Settings of Dynamic LoRA (arXiv 2501.14859); see `lorasp.adapters.dynamic`.

    An interpretation: the abstract is all that our sources have of the paper. All fields of PEFT's
    `LoraConfig` are accepted, except variants that need the dense A and B of PEFT's LoRA. `r` is
    the rank that every module starts with, and the mean of all.

    Args:
        max_rank: the most components of a module; by default 2 r, and never more than its matrix
            allows.
        max_change: the most that a module gains or loses at a time; by default r / 4, rounded up.
        allocations: how often the budget is allocated.
        warmup_share, final_share: of the training's steps, after which the first and the last
            allocation are; those between are evenly spaced.
        measure_steps: the number of steps, the last before each allocation, that are measured.
        smoothing: what a running mean keeps of its value at each measurement, in [0, 1), as
            AdaLoRA's beta1.
        features: whether the spread of the inputs counts.
        selection_seed: the seed of initial values.

    Raises:
        UsageError: a value is not allowed, or two do not go together.
    """

    key: ClassVar[str] = "DYNAMIC_LORA"
    method: ClassVar[str] = "Dynamic LoRA"

    max_rank: int | None = setting(None, "Most components of a module; by default 2 r.")
    max_change: int | None = setting(None, "Most that a module gains or loses at a time.")
    allocations: int = setting(8, "How often the budget is allocated.")
    warmup_share: float = setting(0.1, "Share of the steps before the first allocation.")
    final_share: float = setting(0.6, "Share of the steps before the last allocation.")
    measure_steps: int = setting(4, "Steps that are measured before each allocation.")
    smoothing: float = setting(0.85, "What a running mean keeps at each measurement.")
    features: bool = setting(True, "Whether the spread of the inputs counts.")

    def check_values(self) -> None:
        super().check_values()
        for name in ("max_rank", "max_change", "allocations", "measure_steps"):
            value = getattr(self, name)
            optional = value is None and name.startswith("max")
            if not optional and (not is_integer(value) or value < 1):
                raise UsageError(f"{name} is {value!r}; allowed: a positive integer.")
        if not is_number(self.smoothing) or not 0 <= self.smoothing < 1:
            raise UsageError(f"smoothing is {self.smoothing!r}; allowed: a number in [0, 1).")
        if not isinstance(self.features, bool):
            raise UsageError(f"features is {self.features!r}; allowed: true, false.")
        shares = (self.warmup_share, self.final_share)
        if not all(map(is_number, shares)) or not 0 <= shares[0] <= shares[1] <= 1:
            raise UsageError(
                f"warmup_share is {shares[0]!r} and final_share {shares[1]!r}; allowed: numbers in "
                "[0, 1], the first not larger than the second."
            )
        largest = max([self.r, *(self.rank_pattern or {}).values()])
        if self.max_rank is not None and self.max_rank < largest:
            raise UsageError(
                f"max_rank is {self.max_rank}; allowed is at least the largest rank that a module "
                f"starts with, {largest} by r and rank_pattern."
            )


def ranked_pair(
    config: DynamicLoraConfig, plan: ModulePlan, device: torch.device
) -> dict[str, LowRankMatrix]:
    """Make A and B of one module, by name: A is uniform and B zero, as in PEFT's LoRA.

    With init_lora_weights=False B is random too: uniform in (-1/sqrt(r), 1/sqrt(r)).
    """
    shapes = {"A": (plan.rank, plan.in_features), "B": (plan.out_features, plan.rank)}
    bounds = {"A": 1 / sqrt(plan.in_features), "B": 1 / sqrt(plan.rank)}
    pair: dict[str, LowRankMatrix] = {}
    for side, shape in shapes.items():
        weight = RankedWeight(shape, side, f"{plan.name}.{side}", bounds[side], device)
        if device.type != "meta" and (side == "A" or not config.init_lora_weights):
            weight.values.data.copy_(weight.draw(plan.rank, config.selection_seed))
        pair[side] = weight
    return pair


def apportion(weights: list[float], budget: int, least: list[int], most: list[int]) -> list[int]:
    """Share out a budget by Webster's method: one by one, to the largest weight / (share + 1/2).

    Every share is between its bounds, which must leave room for the budget; an earlier one goes
    first in a tie.
    """
    shares = list(least)
    waiting = [(-weight / (shares[i] + 0.5), i) for i, weight in enumerate(weights)]
    waiting = [entry for entry in waiting if shares[entry[1]] < most[entry[1]]]
    heapq.heapify(waiting)
    for _ in range(budget - sum(least)):
        _, index = heapq.heappop(waiting)
        shares[index] += 1
        if shares[index] < most[index]:
            heapq.heappush(waiting, (-weights[index] / (shares[index] + 0.5), index))
    return shares


def allocation_steps(config: DynamicLoraConfig, total_steps: int) -> list[int]:
    """The steps after which the budget is allocated, in order; fewer where steps are few."""
    first, last = config.warmup_share * total_steps, config.final_share * total_steps
    gaps = max(1, config.allocations - 1)
    steps = {round(first + (last - first) * i / gaps) for i in range(config.allocations)}
    return sorted(step for step in steps if step > 0)


class DynamicLoraModel(LowRankModel):
    """Puts Dynamic LoRA adapters into a model, and moves their rank; see `DynamicLoraConfig`.

    Whoever trains calls `begin_training` before the first step, and `update_and_allocate` after
    each, as `lorasp.adapters.hooks` does; without them this is LoRA of rank r.
    """

    make_pair = staticmethod(ranked_pair)
    method, differ = "Dynamic LoRA", "their ranks differ"
    _total_steps: int | None = None
    _optimizer: torch.optim.Optimizer | None = None
    _watching: tuple[Any, ...] = ()

    def ranks(self, adapter_name: str = "default") -> dict[str, int]:
        """How many components each module has at present, by its path."""
        layers = {n: m for n, m in self.model.named_modules() if isinstance(m, LoraSpLayer)}
        found = {n: m.lora_A[adapter_name] for n, m in layers.items() if adapter_name in m.lora_A}
        return {name: int(matrix.rank) for name, matrix in found.items()}  # type: ignore[arg-type]

    def begin_training(
        self, total_steps: int, optimizer: torch.optim.Optimizer, steps_done: int = 0
    ) -> None:
        """Set the schedule. The optimizer's moments will follow the components."""
        self._total_steps, self._optimizer = total_steps, optimizer
        self._watch(steps_done + 1)

    def update_and_allocate(self, global_step: int) -> None:
        """Measure and allocate where that is due, after a step and before its gradients go.

        Args:
            global_step: the number of steps taken, this one included.

        Raises:
            UsageError: `begin_training` was not called.
        """
        if self._total_steps is None:
            raise UsageError(
                "Dynamic LoRA has to know how many steps there will be: call "
                "lorasp.adapters.hooks.begin(model, optimizer, total_steps) before the first one."
            )
        for adapter in self.active_adapters:
            if self._is_measured(adapter, global_step):
                self._measure(adapter)
            config: Any = self.peft_config[adapter]
            if global_step in allocation_steps(config, self._total_steps):
                self._allocate(adapter, global_step)
        self._watch(global_step + 1)

    def _layers(self, adapter: str) -> list[Any]:
        layers = [m for m in self.model.modules() if isinstance(m, LoraSpLayer)]
        return [layer for layer in layers if adapter in layer.lora_A]

    def _is_measured(self, adapter: str, step: int) -> bool:
        config: Any = self.peft_config[adapter]
        ahead = [due for due in allocation_steps(config, self._total_steps or 0) if due >= step]
        return bool(ahead) and step > ahead[0] - config.measure_steps

    def _watch(self, step: int) -> None:
        """Have the forward passes of a step note their inputs, if it is one that measures."""
        for handle in self._watching:
            handle.remove()
        self._watching = tuple(
            layer.register_forward_pre_hook(_note_inputs(adapter))
            for adapter in self.active_adapters
            if self.peft_config[adapter].features and self._is_measured(adapter, step)  # type: ignore[attr-defined]
            for layer in self._layers(adapter)
        )

    @torch.no_grad()
    def _measure(self, adapter: str) -> None:
        config: Any = self.peft_config[adapter]
        for layer in self._layers(adapter):
            a, b = layer.lora_A[adapter], layer.lora_B[adapter]
            moved = [w.values * w.values.grad for w in (a, b) if w.values.grad is not None]
            found = [(a.importance, sum(product.abs().mean() for product in moved))]
            if a.seen:
                found.append((a.spread, torch.stack(a.seen).mean()))
                a.seen.clear()
            for mean, value in found if moved else ():
                value = value.to(mean)
                # a step that overflowed in fp16 says nothing
                mean.lerp_(value.where(value.isfinite(), mean), 1 - config.smoothing)

    def _allocate(self, adapter: str, step: int) -> None:
        config: Any = self.peft_config[adapter]
        layers = self._layers(adapter)
        means = [layer.lora_A[adapter] for layer in layers]
        scores = [float(m.importance * (m.spread if config.features else 1)) for m in means]
        if not any(scores):
            return
        ranks, least, most = [mean.rank for mean in means], [], []
        for layer, rank in zip(layers, ranks, strict=True):
            start = layer.r[adapter]
            change = config.max_change or ceil(start / 4)
            cap = min(config.max_rank or 2 * start, layer.in_features, layer.out_features)
            least.append(max(1, rank - change))
            most.append(min(cap, rank + change))
        shares = apportion(scores, sum(ranks), least, most)
        for layer, rank, share in zip(layers, ranks, shares, strict=True):
            if share != rank:
                a, b = layer.lora_A[adapter], layer.lora_B[adapter]
                order = (a.norms() * b.norms()).argsort(descending=True, stable=True)
                kept = order[:share].sort().values
                new = a.draw(share - len(kept), config.selection_seed, step)
                a.reform(kept, new, self._states(a))
                b.reform(kept, torch.zeros(b.shape[0], share - len(kept)), self._states(b))

    def _states(self, matrix: RankedWeight) -> dict[str, Any]:
        states: Any = {} if self._optimizer is None else self._optimizer.state
        return states.get(matrix.values, {})  # type: ignore[no-any-return]


def _note_inputs(adapter: str) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
    """A hook that notes the spread of a layer's inputs; a copied layer notes its own."""

    def note(layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if layer.training:
            layer.lora_A[adapter].seen.append(spread_of(inputs[0]))

    return note


register(DynamicLoraConfig.key, DynamicLoraConfig, DynamicLoraModel)
