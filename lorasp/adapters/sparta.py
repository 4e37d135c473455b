"""SpaRTA (arXiv 2502.15975): a small random share of the model's own entries is trained."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lorasp.errors import UsageError

from .base_layers import features, numel, target_modules
from .config import is_number, setting
from .delta import DeltaModel, WeightConfig, base_of
from .masks import selected_count
from .places import Places, draw_count, draw_places
from .tables import register

PEFT_TYPE = "SPARTA"

# The projections of values and of the attention's output, by the model types of transformers.
PROJECTIONS = {
    "value attention.output.dense": "bert roberta xlm-roberta camembert electra",
    "value_proj attention.output.dense": "deberta deberta-v2",
    "v_lin out_lin": "distilbert",
    "v o": "t5 mt5 umt5",
    "v_proj out_proj": "bart mbart opt",
    "v_proj o_proj": "llama mistral mixtral gemma gemma2 gemma3_text qwen2 qwen3 smollm3",
}
VALUE_AND_OUTPUT = {
    name: targets.split() for targets, names in PROJECTIONS.items() for name in names.split()
}


@dataclass
class SpartaConfig(WeightConfig):
    """Settings of SpaRTA: Sparse Random parameTer Adaptation (arXiv 2502.15975).

    Of each targeted tensor, a weight or a bias, a random set of entries is drawn once. One vector
    a tensor, which starts at zero, is added at these entries and trained; all else is frozen, but
    a classification head, which is trained whole. With N parameters in the model below its
    head, of which n are targeted, an entry is drawn with probability p = (1 - sparsity) N / n, so
    that the share of all N that is trained is about 1 - sparsity, whatever is targeted.

    Args:
        sparsity: the share of the parameters below the head that is frozen, in (0, 1).
        density: p itself, in (0, 1]; None: from `sparsity`. Filled in once the model is known, in
            the adapter's own copy of the settings, and saved with it, so that an adapter finds its
            entries in a model whose vocabulary has grown.
        draw: 'bernoulli': each entry is drawn by itself, as in the authors' code, so that a
            tensor's number of trained entries is binomial; 'exact': that number is p times
            its entries, rounded, and at least one, so that it is the same for every seed.
        biases: whether the biases of the targeted modules are adapted as well.
        target_modules: by default the projections of values and of the attention's output, which
            leaves frozen what the authors freeze: embeddings, queries, keys, MLPs and norms.

    Raises:
        UsageError: a value is not allowed.
    """

    sparsity: float = setting(0.99, "Share of the model that is frozen, in (0, 1).")
    density: float | None = setting(None, "Probability that a targeted entry is drawn.")
    draw: str = setting("bernoulli", "How entries are drawn.", ("bernoulli", "exact"))
    biases: bool = setting(True, "Whether biases of the targeted modules are adapted.")

    def __post_init__(self) -> None:
        if not is_number(self.sparsity) or not 0 < self.sparsity < 1:
            raise UsageError(f"sparsity is {self.sparsity!r}; allowed: a number in (0, 1).")
        share = self.density
        if share is not None and not (is_number(share) and 0 < share <= 1):
            raise UsageError(f"density is {share!r}; allowed: a number in (0, 1], or none.")
        if self.draw not in ("bernoulli", "exact"):
            raise UsageError(f"draw is {self.draw!r}; allowed: bernoulli, exact.")
        super().__post_init__()
        self.peft_type = PEFT_TYPE


class SparseDelta(nn.Module):
    """A tensor with a trained value added at each of some entries; `values` is all that is saved.

    Args:
        shape: of the tensor.
        count: the number of the entries.
        device: where to allocate; on 'meta' nothing is filled in.
    """

    values: Any

    def __init__(self, shape: tuple[int, int], count: int, device: torch.device) -> None:
        super().__init__()
        self.places = Places(shape[0] * shape[1], count, device)
        values = nn.Parameter(torch.zeros(count, device=device)) if count else None
        self.register_parameter("values", values)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The tensor with the values added, in its own dtype."""
        if self.values is None:
            return weight
        flat, values = weight.reshape(-1), self.values.to(weight.dtype)
        return flat.index_add(0, self.places(), values).view(weight.shape)


class SpartaModel(DeltaModel):
    """Puts SpaRTA into a model; see `SpartaConfig` for the method."""

    target_module_mapping: dict[str, Any] = VALUE_AND_OUTPUT

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kw: Any) -> None:
        # what is filled in below is of this model, and the caller's settings may serve another
        self.peft_config[adapter_name] = replace(self.peft_config[adapter_name])
        super().inject_adapter(model, adapter_name, *args, **kw)

    def check(self, config: Any, model: nn.Module) -> None:
        if config.density is None:
            config.density = density_of(config, model)

    def make_deltas(self, config: Any, name: str, base: Any) -> dict[str, nn.Module]:
        shapes = {"weight": features(base)}
        if config.biases and base.bias is not None:
            shapes["bias"] = (len(base.bias), 1)
        deltas: dict[str, nn.Module] = {}
        on_meta = base.weight.device.type == "meta"
        for kind, shape in shapes.items():
            total, key = shape[0] * shape[1], ("sparta", config.selection_seed, f"{name}.{kind}")
            if config.draw == "exact":
                count = selected_count(total, config.density)
            else:
                count = draw_count(total, config.density, *key)
            delta = SparseDelta(shape, count, torch.device("meta" if on_meta else "cpu"))
            if not on_meta:
                delta.places.fill(draw_places(total, count, *key))
            if count:
                deltas[kind] = delta
        return deltas


def density_of(config: SpartaConfig, model: Any) -> float:
    """p = (1 - sparsity) N / n of a model; see `SpartaConfig`.

    Raises UsageError where that is no probability below 1.
    """
    below_head = getattr(model, "base_model", model)  # of transformers' models
    adapters = (".modules_to_save.", *(f".{kind}." for kind in ("delta_weight", "delta_bias")))
    total = sum(
        numel(weight)
        for name, weight in below_head.named_parameters()
        if not any(part in f".{name}" for part in adapters)
    )
    bases = [base_of(module) for module in target_modules(config, model).values()]
    targeted = sum(numel(base.weight) for base in bases)
    if config.biases:
        targeted += sum(base.bias.numel() for base in bases if base.bias is not None)
    if targeted and (1 - config.sparsity) * total >= targeted:
        raise UsageError(
            f"sparsity is {config.sparsity}, which trains {(1 - config.sparsity) * total:,.0f} of "
            f"the model's {total:,} parameters, and the target modules have {targeted:,}: "
            f"it has to be above {1 - targeted / total:.6f}, or more modules targeted."
        )
    return (1 - config.sparsity) * total / targeted if targeted else 1.0


register(PEFT_TYPE, SpartaConfig, SpartaModel)
