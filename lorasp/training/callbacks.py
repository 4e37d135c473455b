"""What a run does between its steps: LoRA-SP's selection, and the progress that a person sees."""

import math
import sys
from typing import Any

import torch
from transformers import TrainerCallback

from lorasp.adapters import protect_unselected
from lorasp.errors import WorkError


class Selection(TrainerCallback):
    """LoRA-SP with `resample`: draw the masks again each step or epoch; hold unselected entries."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        config = next(iter(getattr(model, "peft_config", {}).values()), None)
        self.resample = getattr(config, "resample", "never")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.resample != "never":
            optimizer = kwargs["optimizer"]
            protect_unselected(getattr(optimizer, "optimizer", optimizer), self.model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.resample == "step":
            self.model.base_model.resample_selection(state.global_step)  # type: ignore[operator,union-attr]

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.resample == "epoch":
            self.model.base_model.resample_selection(round(state.epoch or 0))  # type: ignore[operator,union-attr]


class Progress(TrainerCallback):
    """One line on stderr with loss, rate and time left; stops at a loss that is no number."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from tqdm import tqdm

        # in a log file a line every ten seconds is enough
        interval = 0.1 if sys.stderr.isatty() else 10.0
        self.bar = tqdm(total=state.max_steps, unit="step", mininterval=interval, desc="train")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs = logs or {}
        # train_loss, the mean of all steps, comes last: it tells of steps after the last loss
        loss = logs.get("loss", logs.get("train_loss"))
        if loss is None:
            return
        self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if not math.isfinite(loss):
            raise WorkError(
                f"the loss became {loss} at step {state.global_step}: this run diverged; "
                "lower its learning_rate or use another precision"
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()
