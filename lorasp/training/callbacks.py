"""What a run does between its steps: LoRA-SP's selection, checkpoints, what a person sees."""

import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from lorasp.adapters import hooks, protect_unselected
from lorasp.training.checkpoints import is_sealed
from lorasp.training.trainer import CellTrainer, random_states, set_random_states


class Selection(TrainerCallback):
    """LoRA-SP with `resample`: draw the masks again each step or epoch; hold unselected entries."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.draw: int | None = None  # in force
        config = next(iter(getattr(model, "peft_config", {}).values()), None)
        self.resample = getattr(config, "resample", "never")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.resample != "never":
            optimizer = kwargs["optimizer"]
            protect_unselected(getattr(optimizer, "optimizer", optimizer), self.model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.resample == "never":
            return
        draw = state.global_step if self.resample == "step" else int(state.epoch or 0)
        if draw != self.draw:
            self.model.base_model.resample_selection(draw)  # type: ignore[operator,union-attr]
            self.draw = draw


class Allocation(TrainerCallback):
    """Tells a method that moves rank during training how long it takes, and of each step."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        optimizer = kwargs["optimizer"]
        plain = getattr(optimizer, "optimizer", optimizer)
        hooks.begin(self.model, plain, state.max_steps, state.global_step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        hooks.after_step(self.model, state.global_step + 1)


class Checkpoints(TrainerCallback):
    """Takes a checkpoint every so many minutes, when told to stop, and for `select: best`.

    told: the exit code that a signal asks for, or 0.

    Args:
        minutes: between two checkpoints.
        every_epoch: whether the end of each epoch needs one, from which the best is chosen.
        checkpoint: the one that the run goes on from.
    """

    def __init__(
        self, trainer: CellTrainer, minutes: float, every_epoch: bool, checkpoint: Path | None
    ) -> None:
        self.trainer, self.seconds, self.every_epoch = trainer, 60 * minutes, every_epoch
        self.checkpoint = checkpoint
        self.told = 0

    def stop(self, number: int, _: Any) -> None:
        """Have the run end as soon as its state is on the disk; a handler of signals."""
        self.told = 128 + number
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the next Ctrl-C ends it at once

    @property
    def code(self) -> int:
        """The exit code to end with after the checkpoint, or 0 to go on."""
        return self.told

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.checkpoint:
            self.trainer.restore_loop(self.checkpoint)
        self.saved = time.monotonic()
        self._mark(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark(state)
        over = control.should_training_stop
        if over and not self.trainer.is_finite():  # no loss is computed with what it has made
            raise Diverged(state.global_step, "weights became inf or nan")
        due = time.monotonic() - self.saved >= self.seconds and not over
        ends = self.every_epoch and (over or float(state.epoch).is_integer())
        control.should_save = bool(self.code) or due or ends

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.code:
            return
        # a step can take minutes: what is done of it is dropped
        randomness, loss, tokens = self.marked
        set_random_states(randomness)
        self.trainer._tr_loss.copy_(loss)
        state.num_input_tokens_seen = tokens
        if state.global_step and not is_sealed(self.trainer.checkpoint()):
            self.trainer._save_checkpoint(self.trainer.model, None)
        raise SystemExit(self.code)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.code:  # the checkpoint was taken before the evaluation
            raise SystemExit(self.code)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = False
        if self.checkpoint and self.checkpoint == self.trainer.checkpoint():
            # no step was left of the epoch, before whose first one the Trainer would do this
            self.trainer._load_rng_state(str(self.checkpoint))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved = time.monotonic()
        if self.code:
            raise SystemExit(self.code)

    def _mark(self, state: Any) -> None:
        loss = self.trainer._tr_loss.detach().clone()
        self.marked = random_states(), loss, state.num_input_tokens_seen


class Diverged(Exception):
    """The loss or a weight is no longer a number, as `what` says; it was noticed at `step`."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(
            f"{what} at step {step}: this run diverged; "
            "lower its learning_rate or use another precision"
        )
        self.step = step


class Progress(TrainerCallback):
    """One line on stderr with loss, rate and time left; raises Diverged at a loss of no number."""

    bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from tqdm import tqdm

        # in a log file a line every ten seconds is enough
        interval = 0.1 if sys.stderr.isatty() else 10.0
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            mininterval=interval,
            desc="train",
            disable=not state.is_world_process_zero,
        )

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
            raise Diverged(state.global_step, f"the loss became {loss}")

    def close(self) -> None:
        """End the line, so that what is said next has one of its own."""
        if self.bar is not None:
            self.bar.close()
