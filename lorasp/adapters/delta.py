"""A method of a few lines: what the adapted weight is, and PEFT's whole life around it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
    check_adapters_to_merge,
)
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.integrations import skip_init_on_device
from torch import nn

from lorasp.errors import UsageError

from .adapted import adapted_linear, adapted_weight
from .base_layers import (
    check_adaptable,
    features,
    keep_unpacked,
    plain_weight,
    target_modules,
    with_values,
)
from .config import is_integer, setting
from .masks import raw_words
from .tables import register

PEFT_TYPE = "DELTA"


class Delta(nn.Module):
    """What a method makes of the weight of a linear layer; subclass it, and nothing else.

    `__init__` makes Parameters, all of which are trained and saved, and buffers, which are saved
    if they are persistent: what can be drawn again from `generator` should not be. It may take
    more arguments, the method's settings. `forward` gives the adapted weight, a tensor of the same
    shape, by operations that autograd knows; it is called again in the backward pass, and so may
    draw no random numbers and change no state.

    Args:
        out_features: rows of the weight.
        in_features: its columns.
        generator: of the CPU, seeded from the run's seed and the layer's name; make tensors on the
            CPU, they are moved to the layer's device.
    """

    def __init__(
        self, out_features: int, in_features: int, generator: torch.Generator, **settings: Any
    ) -> None:
        super().__init__()

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The adapted weight (out, in) from the base weight (out, in), in the same dtype."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")


OFFERED: dict[str, type[Delta]] = {}


def offer(name: str, method: type[Delta]) -> None:
    """Let configurations name a method: `DeltaConfig(method=name)` adapts with this class.

    Raises UsageError if the class is no Delta. A later offer takes the place of an earlier one.
    """
    if not (isinstance(method, type) and issubclass(method, Delta)):
        raise UsageError(f"{name} is {method!r}; only a subclass of lorasp.Delta can be offered.")
    OFFERED[name] = method


@dataclass
class WeightConfig(PeftConfig):
    """What every method that adapts whole weights is told.

    Args:
        selection_seed: the seed of what is drawn.
        target_modules, exclude_modules, modules_to_save: as of PEFT's LoraConfig.
    """

    selection_seed: int = setting(0, "Seed of all that is drawn.")
    target_modules: Any = field(
        default=None, metadata={"help": "Names or a pattern of modules, or 'all-linear'."}
    )
    exclude_modules: Any = field(
        default=None, metadata={"help": "Names or a pattern of modules to leave out."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules that are trained and saved whole."}
    )

    def __post_init__(self) -> None:
        if not is_integer(self.selection_seed):
            raise UsageError(f"selection_seed is {self.selection_seed!r}; allowed: an integer.")
        super().__post_init__()
        for name in ("target_modules", "exclude_modules"):
            if isinstance(names := getattr(self, name), list):
                setattr(self, name, set(names))  # as PEFT's own configurations do


@dataclass
class DeltaConfig(WeightConfig):
    """Settings of an adapter whose weights are a `Delta`'s.

    Args:
        method: the name under which the class was offered; a saved adapter names it, and never
            brings code along.
        settings: further arguments of the class.
        target_modules: by default those of PEFT's LoRA.
    """

    method: str = setting("", "Name of an offered method.")
    settings: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Further arguments of the method's class."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE


class DeltaLayer(nn.Module, BaseTunerLayer):
    """A linear layer with the deltas of several adapters, the active ones in force.

    Where more than one is active, each adapts what the one before it made.
    """

    adapter_layer_names = ("delta_weight", "delta_bias")
    other_param_names = ()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer: Any = base_layer
        self.delta_weight = nn.ModuleDict()
        self.delta_bias = nn.ModuleDict()
        self.out_features, self.in_features = features(base_layer)
        self._disable_adapters = False
        self._active_adapter: Any = []
        self.merged_adapters: list[str] = []
        # The base layer of a merged one: a tuple, so that no state dict finds it.
        self._unmerged: tuple[Any, ...] = ()

    def update_layer(self, adapter_name: str, deltas: dict[str, nn.Module], config: Any) -> None:
        """Add an adapter: deltas of 'weight' and of 'bias', which is adapted as (out, 1)."""
        for kind, delta in deltas.items():
            getattr(self, f"delta_{kind}")[adapter_name] = delta
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The adapted layer's output (..., out) for inputs (..., in)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [] if self.disable_adapters or self.merged else self.active_adapters
        weights = [self.delta_weight[name] for name in names if name in self.delta_weight]
        biases = [self.delta_bias[name] for name in names if name in self.delta_bias]
        if not weights and not biases:
            out: torch.Tensor = self.base_layer(x, *args, **kwargs)
            return out
        return adapted_linear(x, self.base_layer, weights, self._bias(biases))

    def _bias(self, deltas: list[nn.Module]) -> torch.Tensor | None:
        bias: torch.Tensor | None = self.base_layer.bias
        if bias is None or not deltas:
            return bias
        column = bias.unsqueeze(1)
        for delta in deltas:
            column = delta(column.to(_dtype(delta, column)))
        return column.squeeze(1)

    @torch.no_grad()
    def adapted(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight (out, in) and bias (out,) with one adapter in force; a 4-bit weight dense."""
        kinds = (self.delta_weight, self.delta_bias)
        weights, biases = ([k[adapter_name]] if adapter_name in k else [] for k in kinds)
        base = self.base_layer
        parameters = [p for delta in weights for p in delta.parameters()]
        plain = plain_weight(base)
        return adapted_weight(base, plain, weights, parameters, torch.float32), self._bias(biases)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put a layer with the adapted weight in the place of the base layer, which is kept.

        A quantised weight is quantised again, with the rounding that this takes.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.delta_weight and name not in self.delta_bias:
                continue
            weight, bias = self.adapted(name)
            if safe_merge and not all(t.isfinite().all() for t in (weight, bias) if t is not None):
                raise ValueError(f"adapter {name!r} has entries that are no finite numbers.")
            self._unmerged = self._unmerged or (self.base_layer,)
            self.base_layer = with_values(self.base_layer, weight, bias)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put the base layer back, as it was to the bit."""
        if self._unmerged:
            self.base_layer = self._unmerged[0].to(self.base_layer.weight.device)
        self._unmerged, self.merged_adapters = (), []

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return False


class DeltaModel(BaseTuner):
    """Puts the deltas of a method into a model; see `DeltaConfig`.

    The rest is PEFT's own: use `get_peft_model`, `PeftModel.from_pretrained` and so on as with
    LoRA. A configuration that does not fit is refused before the model changes.
    """

    prefix: str = "delta_"
    tuner_layer_cls = DeltaLayer
    target_module_mapping: dict[str, Any] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        keep_unpacked(model)
        _maybe_include_all_linear_layers(peft_config, model)
        for name, module in target_modules(peft_config, model).items():
            check_adaptable(name, base_of(module))
        self.check(peft_config, model)

    def check(self, config: Any, model: nn.Module) -> None:
        """Raises UsageError for a configuration that does not fit the model."""
        if config.method not in OFFERED:
            raise UsageError(
                f"the adapter is of the method {config.method!r}, and no class of that name has "
                f"been offered here; there are {', '.join(sorted(OFFERED)) or 'none'}: import the "
                "module that offers it (lorasp.adapters.delta.offer) first."
            )

    def make_deltas(self, config: Any, name: str, base: Any) -> dict[str, nn.Module]:
        """The deltas of one layer, by what they adapt: 'weight', 'bias' or both."""
        generator = torch.Generator()
        generator.manual_seed(int(raw_words(1, "generator", config.selection_seed, name)[0]))
        method = OFFERED[config.method]
        with torch.device("cpu"):
            return {"weight": method(*features(base), generator, **config.settings)}

    @skip_init_on_device  # parameters on the meta device would draw nothing from the generator
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
        # a compiled model draws what the plain one does
        deltas = self.make_deltas(
            peft_config, current_key.replace("_orig_mod.", ""), base_of(target)
        )
        layer = target if isinstance(target, DeltaLayer) else DeltaLayer(target)
        layer.set_adapter(self.active_adapters)
        layer.update_layer(adapter_name, deltas, peft_config)
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT's also hands over `weight`, which a head of several layers, unloaded, has not.
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for delta in deltas_of(self, adapter_name) if autocast_adapter_dtype else ():
            for module in delta.modules():
                for name, buffer in module.named_buffers(recurse=False):
                    # PEFT casts parameters alone, and these are computed with them.
                    if buffer.dtype in (torch.float16, torch.bfloat16):
                        setattr(module, name, buffer.float())

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT expects it next to the last part; a delta may have modules of its own.
        for kind in DeltaLayer.adapter_layer_names:
            key = key.replace(f".{kind}.{adapter_name}.", f".{kind}.", 1)
        return key

    @contextmanager
    def _enable_peft_forward_hooks(
        self, *args: Any, adapter_names: Any = None, **kwargs: Any
    ) -> Iterator[None]:
        if adapter_names is not None:
            raise UsageError(
                "the rows of a batch cannot take adapters of their own here: choose one for all "
                "of them (set_adapter), and leave adapter_names out."
            )
        yield


def deltas_of(model: nn.Module, adapter_name: str) -> list[nn.Module]:
    """The deltas of an adapter in a model, in the order of its layers."""
    kinds = [
        kind
        for layer in model.modules()
        if isinstance(layer, DeltaLayer)
        for kind in (layer.delta_weight, layer.delta_bias)
    ]
    return [kind[adapter_name] for kind in kinds if adapter_name in kind]


def base_of(module: Any) -> Any:
    """The layer that is adapted, whether or not it has an adapter already."""
    return module.get_base_layer() if isinstance(module, DeltaLayer) else module


def _dtype(delta: nn.Module, weight: torch.Tensor) -> torch.dtype:
    own = next(delta.parameters(), weight)
    return torch.promote_types(weight.dtype, own.dtype)


register(PEFT_TYPE, DeltaConfig, DeltaModel)
