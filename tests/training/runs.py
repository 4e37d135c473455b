"""What the tests of training share: the tiny tasks, a recorder, and the weights of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

Run = Callable[..., tuple[Path, dict[str, Any]]]
TASKS = {"roberta-tiny": "mrpc", "t5-tiny": "wmt16-en-ro", "llama-tiny": "alpaca-mmlu"}


class Recorder(TrainerCallback):
    """Keeps the batches of a run, and a copy of the trained weights after each epoch."""

    def __init__(self) -> None:
        self.batches: list[dict[str, torch.Tensor]] = []
        self.epochs: list[dict[str, torch.Tensor]] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.epochs.append(weights(kwargs["model"]))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of what a model trains, by name."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    """The saved tensors of a run's adapter, by name."""
    (file,) = (folder / "adapter").glob("*.safetensors")
    return load_file(file)
