"""The methods of ours as PEFT tuners; importing this package registers them with PEFT."""

from .config import LoraSpConfig
from .delta import Delta, DeltaConfig, DeltaModel, offer
from .dynamic import DynamicLoraConfig, DynamicLoraModel
from .mini import LoraMiniConfig, LoraMiniModel
from .model import LoraSpModel, selection_summary
from .residual import quantize_residual
from .sparta import SpartaConfig, SpartaModel
from .weights import protect_unselected

__all__ = [
    "Delta",
    "DeltaConfig",
    "DeltaModel",
    "DynamicLoraConfig",
    "DynamicLoraModel",
    "LoraMiniConfig",
    "LoraMiniModel",
    "LoraSpConfig",
    "LoraSpModel",
    "SpartaConfig",
    "SpartaModel",
    "offer",
    "protect_unselected",
    "quantize_residual",
    "selection_summary",
]
