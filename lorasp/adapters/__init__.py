"""LoRA-SP as a PEFT tuner; importing this package registers it, so that PEFT can load adapters."""

from .config import LoraSpConfig
from .model import LoraSpModel, selection_summary
from .residual import quantize_residual
from .weights import protect_unselected

__all__ = [
    "LoraSpConfig",
    "LoraSpModel",
    "protect_unselected",
    "quantize_residual",
    "selection_summary",
]
