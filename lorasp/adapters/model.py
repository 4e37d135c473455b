"""The tuners: one for any pair of low-rank matrices of ours, and `LoraSpModel`, that of LoRA-SP."""

from dataclasses import replace
from typing import Any

import torch
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorasp.errors import UsageError

from .base_layers import keep_unpacked, target_modules
from .config import LoraSpConfig, LowRankConfig
from .layer import LAYER_TYPES, LoraSpLayer, MakePair, layer_type, low_rank_pair
from .plan import ModulePlan, adapted_names, trained_sides
from .tables import register
from .weights import ResampledWeight, SelectedWeight


class LowRankModel(LoraModel):
    """Puts adapters of two low-rank matrices of our own into a model.

    Everything but the injection is PEFT's own: use `get_peft_model`, `PeftModel.from_pretrained`
    and the rest as with LoRA. A configuration that does not fit is refused before the
    model changes.
    """

    tuner_layer_cls: type[LoraLayer] = LoraSpLayer
    make_pair: MakePair
    method: str  # as people call it
    differ: str  # why two adapters have no sum
    _plans: dict[str, ModulePlan]

    def plan_modules(self, config: Any, model: nn.Module) -> dict[str, ModulePlan]:
        """What each target module gets, by its path; UsageError where the settings do not fit."""
        targets = target_modules(config, model)
        return {name: plan_module(config, name, module) for name, module in targets.items()}

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        keep_unpacked(model)
        _maybe_include_all_linear_layers(peft_config, model)
        self._plans = self.plan_modules(peft_config, model)

    def _check_target_module_exists(  # type: ignore[override]  # static there, but called on self
        self, peft_config: Any, key: str
    ) -> Any:
        matched = LoraModel._check_target_module_exists(peft_config, key)
        return matched if not matched or key in self._plans else False

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        plan = self._plans[current_key]
        if isinstance(target, LoraSpLayer):
            target.update_layer(adapter_name, peft_config, plan, self.make_pair)
            return
        layer = layer_type(target)(target, adapter_name, peft_config, plan, self.make_pair)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        raise UsageError(
            f"{self.method} adapters cannot be added up into one, as {self.differ}: merge them "
            "into the base model one after the other (merge_adapter)."
        )


class LoraSpModel(LowRankModel):
    """Puts LoRA-SP adapters into a model; see `LoraSpConfig` for the method."""

    make_pair = staticmethod(low_rank_pair)
    method, differ = "LoRA-SP", "their selections differ"

    def plan_modules(self, config: Any, model: nn.Module) -> dict[str, ModulePlan]:
        return plan_modules(config, model)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for weight in _weights(self, adapter_name) if autocast_adapter_dtype else []:
            # PEFT casts parameters alone; a matrix without any has to follow its partner.
            if isinstance(weight, SelectedWeight) and weight.values is None:
                weight.like = weight.like.to(torch.float32)

    def resample_selection(self, draw: int, adapter_name: str | None = None) -> None:
        """Put the selection of draw number `draw` in force, for `resample` 'epoch' or 'step'.

        The number is saved with the adapter. Draw 0 is in force from the start.

        Args:
            draw: which draw, 0 or more: the number of the epoch or of the step.
            adapter_name: whose selection; by default that of all active adapters.

        Raises:
            UsageError: the adapter keeps its selection (resample='never').
        """
        for name in [adapter_name] if adapter_name else self.active_adapters:
            config: Any = self.peft_config[name]
            if config.resample == "never":
                raise UsageError(
                    f"adapter {name!r} keeps its selection: set resample to 'epoch' or 'step'."
                )
            for weight in _weights(self, name):
                if isinstance(weight, ResampledWeight):
                    weight.redraw(draw)


def plan_modules(config: LoraSpConfig, model: nn.Module) -> dict[str, ModulePlan]:
    """What each target module of a model gets from LoRA-SP, by its path.

    Raises:
        UsageError: a target is of a type that is not supported, or smaller than the rank.
    """
    targets = target_modules(config, model)
    plans = {
        name: plan_module(config, name, targets[name])
        for name in adapted_names(list(targets), config)
    }
    if config.selection == "matrix":
        sizes = {n: (p.rank * p.in_features, p.rank * p.out_features) for n, p in plans.items()}
        sides = trained_sides(sizes, config)
        plans = {name: replace(plan, side=sides[name]) for name, plan in plans.items()}
    return plans


def plan_module(config: LowRankConfig, name: str, module: nn.Module) -> ModulePlan:
    """What a target module gets; UsageError where its type is not supported, or it is too small."""
    base: Any = module.get_base_layer() if isinstance(module, LoraSpLayer) else module
    if layer_type(base) is None:
        allowed = ", ".join(kind.__name__ for kind in LAYER_TYPES)
        raise UsageError(
            f"target module {name} is a {type(base).__name__}; {config.method} adapts {allowed}: "
            "change target_modules or exclude_modules."
        )
    if isinstance(base, Conv1D):
        in_features, out_features = base.nx, base.nf
    else:
        in_features, out_features = base.in_features, base.out_features
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    rank = ranks.get(get_pattern_key(list(ranks), name), config.r)
    if rank > min(in_features, out_features):
        raise UsageError(
            f"rank {rank} is larger than the matrix of target module {name}, which is "
            f"{out_features}x{in_features}: allowed is at most {min(in_features, out_features)}."
        )
    return ModulePlan(
        name=name.replace("_orig_mod.", ""),  # a compiled model has the masks of the plain one
        in_features=in_features,
        out_features=out_features,
        rank=rank,
        alpha=alphas.get(get_pattern_key(list(alphas), name), config.lora_alpha),
    )


def _weights(model: nn.Module, adapter_name: str) -> list[SelectedWeight | ResampledWeight]:
    layers = [layer for layer in model.modules() if isinstance(layer, LoraSpLayer)]
    pairs = [(layer.lora_A, layer.lora_B) for layer in layers if adapter_name in layer.lora_A]
    matrices = [matrices[adapter_name] for pair in pairs for matrices in pair]
    return [m for m in matrices if isinstance(m, SelectedWeight | ResampledWeight)]


def selection_summary(model: nn.Module) -> dict[str, dict[str, int]]:
    """Count entries and bytes of each LoRA-SP adapter in a model, from its tensors as they are.

    Returns:
        For each adapter's name, of all its A and B together:
        entries: of the dense matrices that are held;
        trainable: entries that are parameters; all of them with `resample`, where any may be moved;
        selected: entries that the present draw allows to move;
        frozen: entries that contribute a value and never move;
        mask_bytes, frozen_bytes: of the buffers that hold the selection and the frozen values;
        state_bytes: parameters, their gradients and AdamW's two moments in the parameters' dtype,
        and both kinds of buffers: what training holds for the adapter, without activations.
    """
    names = {n for m in model.modules() if isinstance(m, LoraSpLayer) for n in m.lora_A}
    return {name: _summarize(_weights(model, name)) for name in sorted(names)}


def _summarize(weights: list[SelectedWeight | ResampledWeight]) -> dict[str, int]:
    parameters = [p for weight in weights for p in weight.parameters()]
    buffers = {name: 0 for name in ("bits", "rest", "like", "draw")}
    for weight in weights:
        for name, buffer in weight.named_buffers():
            buffers[name] += buffer.nbytes
    entries = sum(weight.shape[0] * weight.shape[1] for weight in weights)
    selected = sum(weight.selected for weight in weights)
    frozen = sum(weight.frozen for weight in weights)
    return {
        "entries": entries,
        "trainable": sum(p.numel() for p in parameters),
        "selected": selected,
        "frozen": frozen,
        "mask_bytes": buffers["bits"] + buffers["draw"],
        "frozen_bytes": buffers["rest"],
        "state_bytes": sum(4 * p.nbytes for p in parameters) + sum(buffers.values()),
    }


register(LoraSpConfig.key, LoraSpConfig, LoraSpModel)
