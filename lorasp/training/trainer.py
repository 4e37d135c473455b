"""The Trainer of a run: its batches, a whole batch's loss, and checkpoints that lose nothing."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from lorasp import optimizers
from lorasp.adapters import hooks
from lorasp.errors import WorkError, is_out_of_memory
from lorasp.training import checkpoints
from lorasp.training.history import History

KEEP = 2  # checkpoints, and the best one
TRAINED = "trained.safetensors"
LOOP = "loop.pt"


class CellTrainer(Trainer):
    """The Trainer, with batches by the lengths that `prepare` counted, and a whole batch's loss.

    A step's loss is the mean over the examples of its batch, or over their tokens, into however
    many micro-batches it is cut. A checkpoint holds what can change and not the frozen base, is
    always taken between a step and what follows it (another step, or the end of an epoch with its
    evaluation), and is sealed when it is whole; a run that goes on from it takes the same steps as
    one that was never interrupted.
    """

    causal = False  # causal models divide by the tokens of the whole batch themselves
    resolved: dict[str, Any] | None = None  # of the run, whose method may bring an optimizer along
    history: History
    order: "Order"
    digests: dict[str, str] = {}  # noqa: RUF012 (of a checkpoint's files, where known already)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # the Trainer would drop the lengths and count anew, or read them one by one from the disk
        rows: Any = self.train_dataset
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        self.order = Order(batch_size, lengths=rows["length"][:])
        return self.order

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        if self.resolved is None or optimizers.kind_of(self.resolved) == "adamw":
            return super().create_optimizer(*args, **kwargs)
        model: Any = self.model
        self.optimizer = optimizers.of_method(
            model,
            self.resolved,
            self.args.learning_rate,
            self.args.weight_decay,
            fused=self.args.device.type == "cuda",
        )
        return self.optimizer

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if num_items_in_batch is None or self.causal:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs)
        loss = outputs.loss * (inputs["labels"] != -100).sum() / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        try:
            return super().evaluate(*args, **kwargs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size = self.args.per_device_eval_batch_size
            raise WorkError(
                f"a batch of {size} does not fit into the memory of the device to be evaluated; "
                "lower runtime.eval_batch_size"
            ) from error

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = self.checkpoint()
        with checkpoints.writing(folder):
            super()._save_checkpoint(model, trial)
            torch.save(self.loop_state(), folder / LOOP)
            self.history.save(folder, self.args.device.type)
            best = self.state.best_model_checkpoint
            checkpoints.seal(folder, Path(best) if best else None, self.digests)
        checkpoints.rotate(folder, KEEP, Path(best) if best else None)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        # the checkpoint of these weights lies there: it was taken before their evaluation
        if best := super()._determine_best_metric(metrics, trial):
            self.state.best_model_checkpoint = str(self.checkpoint())
        return best

    def checkpoint(self) -> Path:
        """Where the checkpoint of the steps taken so far lies, or would."""
        return Path(str(self.args.output_dir), f"{checkpoints.NAME}{self.state.global_step}")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        model: Any = self.model
        save_file(trained_state(model), Path(str(output_dir), TRAINED))

    def is_finite(self) -> bool:
        """Whether every weight that is trained is a number."""
        model: Any = self.model
        return all_finite(weight for weight in model.parameters() if weight.requires_grad)

    def loop_state(self) -> dict[str, Any]:
        """What the training loop holds besides, and the Trainer's own checkpoints leave out."""
        return {
            "allocation": hooks.allocation_state(self.model),
            "order": self.order.began,
            "loss": self._tr_loss.detach().clone(),
            "loss_before": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        folder = Path(str(self.state.best_model_checkpoint))
        restore(self.model, folder)
        state = torch.load(folder / LOOP, weights_only=True)
        hooks.restore_allocation(self.model, state["allocation"])

    def _init_training_state(
        self, max_steps: int, steps_an_epoch: int, epochs: int, checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """The epoch to go on in, and how many of its micro-batches to pass over.

        After the last step of an epoch there is none left, and its end comes next.
        """
        begin = super()._init_training_state(max_steps, steps_an_epoch, epochs, checkpoint, trial)
        if checkpoint is None:
            return begin
        if self.state.best_global_step:
            best = f"{checkpoints.NAME}{self.state.best_global_step}"
            self.state.best_model_checkpoint = str(Path(checkpoint).with_name(best))
        epoch, last = divmod(self.state.global_step - 1, steps_an_epoch)
        done = steps_an_epoch if self.state.global_step >= max_steps else last + 1
        if done < steps_an_epoch:
            self.order.next = torch.load(Path(checkpoint, LOOP), weights_only=True)["order"]
        return epoch, done * self.args.gradient_accumulation_steps

    def restore_loop(self, folder: Path) -> None:
        """Take over what `loop_state` gave, when training begins again."""
        state = torch.load(folder / LOOP, weights_only=True)
        hooks.restore_allocation(self.model, state["allocation"])
        self._tr_loss.copy_(state["loss"])
        self._total_loss_scalar = state["loss_before"]
        self._globalstep_last_logged = state["last_logged"]


class Order(LengthGroupedSampler):
    """The order of an epoch's rows, which a run that goes on in that epoch draws once more.

    began: torch's random state at the start of the epoch.  next: one to draw from, once.
    """

    began: torch.Tensor
    next: torch.Tensor | None = None

    def __iter__(self) -> Iterator[int]:
        generator = self.generator or torch.default_generator
        if self.next is not None:
            generator.set_state(self.next)
            self.next = None
        self.began = generator.get_state()
        return super().__iter__()


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no tensor has an inf or a nan."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All that training can change in a model, by name: every tensor but the frozen parameters."""
    frozen = {name for name, tensor in model.named_parameters() if not tensor.requires_grad}
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().contiguous() for name, tensor in named if name not in frozen}


@torch.no_grad()
def restore(model: Any, folder: Path) -> None:
    """Put back what `trained_state` gave, in place."""
    saved = load_file(folder / TRAINED)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in saved:
            if tensor.shape != saved[name].shape:  # a matrix that has gained or lost rank
                tensor.data = tensor.new_empty(saved[name].shape)
            tensor.copy_(saved[name])


def random_states() -> list[Any]:
    """The states of all generators that a step may draw from."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return [random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda]


def set_random_states(states: list[Any]) -> None:
    """Put back what `random_states` gave."""
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)
