"""The optimizer of a run: AdamW, or one that a method brings along."""

from typing import Any

import torch
from peft import PeftModel
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from torch.optim import AdamW, Optimizer

from lorasp.errors import UsageError

KINDS = ("adamw", "loraplus", "lorafa")


def kind_of(resolved: dict[str, Any]) -> str:
    """Which optimizer a run's method asks for, one of KINDS, or UsageError."""
    optimizer = resolved["method"].get("settings", {}).get("optimizer", {"kind": "adamw"})
    kind = optimizer.get("kind") if isinstance(optimizer, dict) else optimizer
    if kind not in KINDS or not isinstance(optimizer, dict):
        raise UsageError(
            f"methods.{resolved['method']['name']}.settings.optimizer is {optimizer!r}; allowed is "
            f"a mapping with kind: {' | '.join(KINDS)}"
        )
    if kind == "adamw" and len(optimizer) > 1:
        extra = ", ".join(sorted(set(optimizer) - {"kind"}))
        raise UsageError(
            f"methods.{resolved['method']['name']}.settings.optimizer has no {extra}; adamw takes "
            "what it needs from the recipe"
        )
    return str(kind)


def of_method(
    network: torch.nn.Module,
    resolved: dict[str, Any],
    learning_rate: float,
    weight_decay: float,
    fused: bool,
) -> Optimizer:
    """PEFT's optimizer for a method whose `optimizer` is not AdamW.

    loraplus (LoRA+, arXiv 2402.12354) is AdamW in which B learns loraplus_lr_ratio times as fast;
    lorafa (LoRA-FA, arXiv 2308.03303) freezes A and projects the gradient of B. Further keys of the
    setting are PEFT's arguments.

    Args:
        fused: of AdamW: one kernel for all weights.

    Raises:
        UsageError: the method has no matrices A and B of PEFT's kind, or an argument is not PEFT's.
    """
    method = resolved["method"]
    kind = kind_of(resolved)
    arguments = {k: v for k, v in method["settings"]["optimizer"].items() if k != "kind"}
    trained = [(name, w) for name, w in network.named_parameters() if w.requires_grad]
    pairs = [w for name, w in trained if "lora_A" in name or "lora_B" in name]
    plain = method["family"] == "LORA" or kind == "loraplus"  # LoRA-FA multiplies by A itself
    if not (isinstance(network, PeftModel) and plain and pairs and all(w.ndim == 2 for w in pairs)):
        raise UsageError(
            f"methods.{method['name']}.settings.optimizer: {kind} needs whole matrices A and B, "
            f"which {method['family']} does not train; use family LORA or kind: adamw"
        )
    try:
        if kind == "lorafa":
            config: Any = network.peft_config[network.active_adapter]
            arguments = {"r": config.r, "lora_alpha": config.lora_alpha, **arguments}
            return create_lorafa_optimizer(
                network, lr=learning_rate, weight_decay=weight_decay, **arguments
            )
        arguments = {"loraplus_weight_decay": weight_decay, **arguments}
        return create_loraplus_optimizer(network, AdamW, lr=learning_rate, fused=fused, **arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"methods.{method['name']}.settings.optimizer: {error}") from error
