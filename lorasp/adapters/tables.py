"""PEFT's tables of methods, and how a method of ours gets into them."""

from typing import Any

from peft import PeftConfig
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import BaseTuner


def register(key: Any, config_class: type[PeftConfig], model_class: type[BaseTuner]) -> None:
    """Let PEFT make, save and load adapters of a method of ours.

    `register_peft_method` takes members of PEFT's own enumeration alone; its tables take any key.

    Args:
        key: the method's PEFT type, which its configurations have as `peft_type`.
        config_class: of the method's settings.
        model_class: the tuner; its `prefix` marks the adapter's tensors by name.
    """
    PEFT_TYPE_TO_CONFIG_MAPPING[key] = config_class
    PEFT_TYPE_TO_TUNER_MAPPING[key] = model_class
    PEFT_TYPE_TO_PREFIX_MAPPING[key] = model_class.prefix
