"""Public models by name on the meta device: every shape and count, and not one byte of weights."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasp.errors import UsageError
from lorasp.results import read_yaml

if TYPE_CHECKING:  # transformers takes seconds to import, and few commands come here
    from transformers import PreTrainedModel

FILE = Path(__file__).with_name("public_models.yaml")


@functools.cache
def public_models() -> dict[str, dict[str, Any]]:
    """Name to the model's class in transformers and the arguments of its config."""
    return read_yaml(FILE)


def meta_model(name: str, head_labels: int = 2) -> "PreTrainedModel":
    """The transformers model of that name with its task head: float32 on the meta device.

    Args:
        name: one of `public_models()`.
        head_labels: outputs of the classification head, where the model has one.

    Raises UsageError with the names that there are.
    """
    if name not in public_models():
        raise UsageError(
            f"{name!r} is not in {FILE.name}; known are {', '.join(sorted(public_models()))}"
        )
    import torch
    import transformers

    entry = public_models()[name]
    architecture = getattr(transformers, entry["class"])
    config = architecture.config_class(**entry["arguments"], num_labels=head_labels)
    with torch.device("meta"):
        model: PreTrainedModel = architecture(config)
    return model
