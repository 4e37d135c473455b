"""PEFT's LoRA layers with matrices of our own, as LoRA-SP's, in place of the dense ones."""

from collections.abc import Callable
from functools import partial
from math import prod, sqrt
from typing import Any

import torch
from peft.import_utils import is_bnb_4bit_available, is_bnb_available
from peft.tuners import lora
from peft.tuners.lora.layer import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from .config import LoraSpConfig, LowRankConfig
from .fused import Adapter, adapted_linear
from .masks import draw_codes, draw_components, draw_mask, selected_count
from .plan import ModulePlan
from .weights import LowRankMatrix, ResampledWeight, SelectedWeight

Shape = tuple[int, int]
# Makes A (rank x in) and B (out x rank) of one module, by name, on a device: 'cpu', or 'meta',
# where they are allocated but not drawn.
MakePair = Callable[[Any, ModulePlan, torch.device], dict[str, LowRankMatrix]]


def low_rank_pair(
    config: LoraSpConfig, plan: ModulePlan, device: torch.device
) -> dict[str, LowRankMatrix]:
    """Make A (rank x in) and B (out x rank) of one module, by name.

    A is uniform in (-1/sqrt(in), 1/sqrt(in)) and B zero, as in PEFT's LoRA. B is random where it is
    frozen (selection='matrix') or init_lora_weights=False: uniform in (-1/sqrt(r), 1/sqrt(r)).

    Args:
        device: where to make them; on 'meta' they are allocated but not drawn.
    """
    rank = plan.rank
    if config.selects_smaller_rank:
        rank = selected_count(plan.rank, config.density)
    shapes = {"A": (rank, plan.in_features), "B": (plan.out_features, rank)}
    bounds = {"A": 1 / sqrt(plan.in_features), "B": 1 / sqrt(plan.rank)}
    b_is_random = plan.side == "A" or not config.init_lora_weights
    is_random = {"A": plan.side != "A", "B": b_is_random}

    pair: dict[str, LowRankMatrix] = {}
    for side, shape in shapes.items():
        name, seed = f"{plan.name}.{side}", config.selection_seed
        selected, mask_of = _selection(config, plan, side, shape)
        keeps_rest = config.unselected == "init"
        if config.resample == "never":
            # What stays at zero need not be stored.
            keeps_rest = keeps_rest and is_random[side]
            weight: Any = SelectedWeight(shape, selected, keeps_rest, bounds[side], device)
        else:
            weight = ResampledWeight(shape, keeps_rest, bounds[side], mask_of, device)
        if device.type != "meta":
            codes = draw_codes(shape, seed, name) if is_random[side] else None
            weight.fill(mask_of(0), codes)
        pair[side] = weight
    return pair


def _selection(
    config: LoraSpConfig, plan: ModulePlan, side: str, shape: Shape
) -> tuple[int, Callable[[int], torch.Tensor]]:
    """How many entries of one matrix are selected, and the mask of a draw's number."""
    numel, density, seed = prod(shape), config.density, config.selection_seed
    if config.selection == "element":
        mask_of = partial(draw_mask, shape, density, seed, f"{plan.name}.{side}")
        return selected_count(numel, density), mask_of
    if config.selection == "rank" and not config.selects_smaller_rank:
        count = selected_count(plan.rank, density) * (numel // plan.rank)
        return count, partial(_component_mask, side, shape, density, seed, plan.name)
    whole = side in plan.side
    return numel if whole else 0, lambda draw: torch.full(shape, whole)


def _component_mask(
    side: str, shape: Shape, density: float, seed: int, name: str, draw: int
) -> torch.Tensor:
    rank = shape[0] if side == "A" else shape[1]
    components = draw_components(rank, density, seed, name, draw)
    return (components[:, None] if side == "A" else components[None, :]).expand(shape)


class LoraSpLayer(nn.Module, LoraLayer):
    """What is changed in PEFT's LoRA layers: how an adapter is made, and how one is computed.

    The usual case, one adapter at work in a layer whose parts nobody has changed, is one function
    (`fused`). Several adapters, rows of a batch with adapters of their own, disabled or merged
    adapters and hooked parts take PEFT's way, which is inherited like the rest.
    """

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: LowRankConfig,
        plan: ModulePlan,
        make_pair: MakePair,
    ) -> None:
        nn.Module.__init__(self)
        LoraLayer.__init__(self, base_layer)
        self.is_target_conv_1d_layer = self.fan_in_fan_out = isinstance(base_layer, Conv1D)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, plan, make_pair)

    def update_layer(  # type: ignore[override]  # only this package calls it
        self, adapter_name: str, config: LowRankConfig, plan: ModulePlan, make_pair: MakePair
    ) -> None:
        """Add an adapter, on the device and in the dtype of the base layer."""
        device, _ = self._get_base_layer_device_and_dtype(self.get_base_layer())
        on_meta = device is not None and device.type == "meta"
        pair = make_pair(config, plan, torch.device("meta" if on_meta else "cpu"))
        self.lora_A[adapter_name], self.lora_B[adapter_name] = pair["A"], pair["B"]
        dropout = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.lora_dropout[adapter_name] = dropout
        self.r[adapter_name] = plan.rank
        self.lora_alpha[adapter_name] = plan.alpha
        self.scaling[adapter_name] = scaling(config, plan)
        self.use_rslora[adapter_name] = config.use_rslora
        self.use_dora[adapter_name] = self.lora_bias[adapter_name] = False
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The adapted layer's output (..., out) for inputs (..., in)."""
        adapter = None if args or kwargs else self._only_adapter()
        if adapter is None:
            out: torch.Tensor = super().forward(x, *args, **kwargs)
            return out
        return adapted_linear(x, adapter)

    def _only_adapter(self) -> Adapter | None:
        """The adapter at work, None where PEFT's forward has to see to it."""
        at_work = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(at_work) != 1:
            return None
        name = at_work[0]
        a: Any = self.lora_A[name]
        b: Any = self.lora_B[name]
        base, dropout = self.base_layer, self.lora_dropout[name]
        plain = all(_is_untouched(part) for part in (base, a, b, dropout))
        if not plain or any(weight.requires_grad for weight in base.parameters()):
            return None
        rate = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        return Adapter(base, a, b, self.scaling[name], rate)


def _is_untouched(part: Any) -> bool:
    """Whether a module computes what its class says: no hooks, no other forward, no subclass."""
    forward = part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__
    backward = part._backward_hooks or part._backward_pre_hooks
    ours = isinstance(part, LowRankMatrix) or type(part) in PARTS
    return ours and not forward and not backward


def scaling(config: LowRankConfig, plan: ModulePlan) -> float:
    """The factor of B A: lora_alpha / r, or with use_rslora lora_alpha / sqrt(r)."""
    return plan.alpha / (sqrt(plan.rank) if config.use_rslora else plan.rank)


class Linear(LoraSpLayer, lora.Linear):
    """LoRA-SP on nn.Linear and on transformers' Conv1D (GPT-2)."""


# Ordered: bitsandbytes layers are nn.Linear too.
LAYER_TYPES: dict[type[nn.Module], type[LoraSpLayer]] = {}

if is_bnb_available():
    import bitsandbytes as bnb

    class Linear8bitLt(LoraSpLayer, lora.Linear8bitLt):
        """LoRA-SP on bitsandbytes' int8 layer."""

    LAYER_TYPES[bnb.nn.Linear8bitLt] = Linear8bitLt

if is_bnb_4bit_available():

    class Linear4bit(LoraSpLayer, lora.Linear4bit):
        """LoRA-SP on bitsandbytes' 4-bit layer."""

    LAYER_TYPES[bnb.nn.Linear4bit] = Linear4bit

LAYER_TYPES |= {nn.Linear: Linear, Conv1D: Linear}
PARTS = {*LAYER_TYPES, nn.Dropout, nn.Identity}


def layer_type(base_layer: nn.Module) -> Any:
    """The LoRA-SP layer that fits a base layer, None if there is none."""
    fitting = (ours for theirs, ours in LAYER_TYPES.items() if isinstance(base_layer, theirs))
    return next(fitting, None)
