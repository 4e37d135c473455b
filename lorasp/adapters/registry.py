"""From the name of a method to a model that trains it, and back from the files it left."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch.distributed.tensor import DTensor
from transformers import set_seed

from lorasp.adapters import LoraSpConfig  # registers LORA_SP with PEFT
from lorasp.adapters.base_layers import keep_unpacked, numel
from lorasp.adapters.configure import BASE_SETTINGS, peft_config
from lorasp.adapters.masks import raw_words
from lorasp.adapters.residual import quantize_residual
from lorasp.errors import UsageError, WorkError
from lorasp.models import compute_dtype, load_model
from lorasp.plugins import is_own, told_of

QUANTIZE = ("none", "nf4", "int8", "nf4-residual", "int8-residual")


def quantize_of(resolved: dict[str, Any]) -> str:
    """How the method holds the base weights: one of QUANTIZE, or UsageError."""
    method = resolved["method"]
    quantize = method.get("settings", {}).get("quantize", "none")
    if quantize not in QUANTIZE:
        raise UsageError(
            f"methods.{method['name']}.settings.quantize is {quantize!r}; "
            f"allowed are {', '.join(QUANTIZE)}"
        )
    return str(quantize)


def apply_method(model: torch.nn.Module, resolved: dict[str, Any]) -> torch.nn.Module:
    """Give the model what the method trains, drawn from the run's seed; all else is frozen."""
    family, name = resolved["method"]["family"], resolved["method"]["name"]
    quantize = quantize_of(resolved)
    if family in ("base", "full"):
        if unknown := sorted(set(resolved["method"].get("settings", {})) - set(BASE_SETTINGS)):
            raise UsageError(
                f"methods.{name}.settings has no {', '.join(unknown)}; "
                f"{family} allows {', '.join(BASE_SETTINGS)}"
            )
        if family == "full" and quantize != "none":
            raise UsageError(f"method {name}: full fine-tuning cannot be quantised")
        return model.requires_grad_(family == "full")
    seed_adapter(resolved)
    config = peft_config(resolved)
    _hold_base(model, config, quantize, compute_dtype(resolved))
    try:
        adapted: torch.nn.Module = get_peft_model(model, config)  # type: ignore[arg-type]
    except Exception as error:
        if is_own(resolved["method"]) and not isinstance(error, UsageError):
            told = told_of(resolved["method"], error)
            raise UsageError(f"method {name}: its own code fails: {told}") from error
        if isinstance(error, NotImplementedError | TypeError | ValueError):
            raise UsageError(f"method {name}: {error}") from error
        raise
    _check_ranks(adapted)
    return adapted


def seed_adapter(resolved: dict[str, Any]) -> None:
    """Seed Python's, NumPy's and torch's generators for what a method draws before training.

    The run's seed itself has drawn the head: the same numbers again would be no draw of their own.
    """
    seed = resolved.get("cell", {}).get("seed", 0)
    set_seed(int(raw_words(1, "adapter", seed)[0]) >> 32)  # NumPy takes 32 bits


def _check_ranks(model: torch.nn.Module) -> None:
    """Refuse what PEFT's LoRA accepts: a rank that no product of that shape can have."""
    for path, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            largest = min(int(layer.in_features or 0), int(layer.out_features or 0))
            if (rank := max(layer.r.values(), default=0)) > largest:
                raise UsageError(
                    f"rank {rank} is larger than the matrix of {path}, which is "
                    f"{layer.out_features}x{layer.in_features}: allowed is at most {largest}"
                )


def _hold_base(
    model: torch.nn.Module, config: Any, quantize: str, compute_dtype: torch.dtype
) -> None:
    if quantize.endswith("-residual"):
        if not isinstance(config, LoraSpConfig):
            raise UsageError(f"quantize: {quantize} is Eq. 3 of LoRA-SP, and only LORA_SP has it")
        quantize_residual(model, config, quantize.removesuffix("-residual"), compute_dtype)
    keep_unpacked(model)


def save_adapter(
    model: torch.nn.Module, folder: Path, state: dict[str, torch.Tensor] | None = None
) -> int:
    """Write what the method trained (all weights for full, nothing for base); bytes of the weights.

    `folder` exists afterwards. For a full run it is a model folder of its own. `state` has all
    weights by name, gathered, where the model was fully trained in parts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        # of frozen weights in parts PEFT would gather all, to save none
        whole = {k: v for k, v in model.state_dict().items() if not isinstance(v, DTensor)}
        # "auto" would ask the hub whether the vocabulary was resized
        model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=whole)
    elif any(parameter.requires_grad for parameter in model.parameters()):
        model.save_pretrained(folder, state_dict=state)  # type: ignore[operator]
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def restore_model(
    resolved: dict[str, Any], model_folder: Path, cell_folder: Path
) -> torch.nn.Module:
    """The trained model of a cell, in evaluation mode: the base and what `save_adapter` wrote."""
    family = resolved["method"]["family"]
    if family == "full":
        return load_model(resolved, cell_folder / "adapter").eval()
    model = load_model(resolved, model_folder)
    if family != "base":
        if not (cell_folder / "adapter" / SAFETENSORS_WEIGHTS_NAME).is_file():
            raise WorkError(
                f"{cell_folder / 'adapter'} has no {SAFETENSORS_WEIGHTS_NAME}, and pickled weights "
                "are not read: train again"
            )
        _hold_base(model, peft_config(resolved), quantize_of(resolved), compute_dtype(resolved))
        model = PeftModel.from_pretrained(model, str(cell_folder / "adapter"))  # type: ignore[arg-type]
    return model.eval()


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Trainable and total parameters; a quantised weight counts the numbers it stands for.

    The unselected entries of LoRA-SP are no parameters and are in neither count.
    """
    trainable = total = 0
    for parameter in model.parameters():
        count = numel(parameter)
        total += count
        trainable += count if parameter.requires_grad else 0
    return {"trainable": trainable, "total": total}
