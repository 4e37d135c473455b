"""A method on a tiny model, as the checks take it: built, trained for some steps, asked."""

import copy
import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel

from lorasp.adapters.hooks import after_step, begin
from lorasp.adapters.registry import apply_method
from lorasp.data.tiny_models import write_model
from lorasp.models import load_model
from lorasp.training.callbacks import Selection

# Two layers; the head of an encoder has two classes.
SHAPES = {"encoder": "roberta", "seq2seq": "t5", "causal": "llama"}
TARGETS = {
    "encoder": ["query", "value"],
    "seq2seq": ["q", "v"],
    "causal": ["q_proj", "v_proj"],
}
# Hidden size 64: bitsandbytes packs that many 4-bit numbers at a time.
SIZES: dict[str, dict[str, int]] = {
    "roberta": {"hidden_size": 64, "intermediate_size": 128},
    "t5": {"d_model": 64, "d_kv": 32, "d_ff": 128},
    "llama": {"hidden_size": 64, "intermediate_size": 128},
}
RUNTIME = {"device": "cpu", "precision": "fp32", "weights": "fp32", "threads": 1}
# Large steps, and weight decay that would move whatever the optimizer holds by mistake.
RATE, DECAY, STEPS = 1e-2, 0.1, 10
Batch = dict[str, torch.Tensor]
State = dict[str, torch.Tensor]


class Failed(Exception):
    """A check has failed; the sentence says what was expected, what was found and what to do."""


class NotApplicable(Exception):
    """A check has nothing to look at in this method; the sentence says why."""


@dataclass
class Trained:
    """A model after STEPS steps, and what was seen on the way; names are those of parameters.

    start: every parameter and buffer before the first step.  learned: those with a gradient other
    than zero in some step.  losses: of the batch without dropout, before and after.
    """

    model: Any
    start: State
    learned: set[str] = field(default_factory=set)
    losses: list[float] = field(default_factory=list)


class Subject:
    """A resolved method on the tiny model of an architecture; what is dear is made once."""

    def __init__(self, method: dict[str, Any], architecture: str) -> None:
        self.method, self.architecture = method, architecture
        self.folder = tiny_folder(SHAPES[architecture])

    def resolved(self, seed: int = 0, **settings: Any) -> dict[str, Any]:
        """What a stage would resolve for a run of the method, with other settings laid over."""
        method = {**self.method, "settings": {**self.method.get("settings", {}), **settings}}
        model = {"name": f"tiny {SHAPES[self.architecture]}", "architecture": self.architecture}
        return {
            "cell": {"seed": seed},
            "model": {**model, "targets": TARGETS[self.architecture]},
            "method": method,
            "runtime": dict(RUNTIME),
        }

    @functools.cached_property
    def _loaded(self) -> Any:
        return load_model(self.resolved(), self.folder).eval()

    def base(self) -> Any:
        """The model without the method, quantised where the method has it so; a copy of its own."""
        return copy.deepcopy(self._loaded)

    def of_base(self, state: State) -> State:
        """The tensors of the base among those of an adapted model, by their names in the base."""
        names = {name for name, _ in self._named()}
        return {base_name(n): tensor for n, tensor in state.items() if base_name(n) in names}

    def _named(self) -> list[tuple[str, torch.Tensor]]:
        return [*self._loaded.named_parameters(), *self._loaded.named_buffers()]

    def built(self, seed: int = 0, **settings: Any) -> Any:
        """The base with the method in it, drawn from the seed, before any step."""
        return apply_method(self.base(), self.resolved(seed, **settings))

    def adapted(self) -> Any:
        """A copy of the trained model; NotApplicable where the method is no adapter."""
        if not isinstance(self.trained.model, PeftModel):
            raise NotApplicable(f"{self.method['family']} is no adapter beside the base weights")
        return copy.deepcopy(self.trained.model)

    def batch(self, rows: int = 4, length: int = 8) -> Batch:
        """Tokens (rows, length) and labels: classes (rows,) for an encoder, else the tokens."""
        generator = torch.Generator().manual_seed(length)
        # beyond the special tokens
        ids = torch.randint(5, 250, (rows, length), generator=generator)
        return {"input_ids": ids, "labels": torch.arange(rows) % 2 if self.on_encoder else ids}

    @property
    def on_encoder(self) -> bool:
        return self.architecture == "encoder"

    @functools.cached_property
    def trained(self) -> Trained:
        """STEPS steps on one batch; NotApplicable where nothing is trained."""
        model = self.built()
        if not trainable(model):
            raise NotApplicable("nothing is trained")
        found = Trained(model, whole_state(model), losses=[self.loss(model)])
        for _ in self.steps(model, STEPS):
            for name, weight in model.named_parameters():
                if weight.grad is not None and bool(weight.grad.any()):
                    found.learned.add(name)
        found.losses.append(self.loss(model))
        return found

    def steps(
        self, model: Any, count: int, optimizer: Any = None, done: int = 0
    ) -> Iterator[torch.Tensor]:
        """Take steps number `done` to `count`, and yield each loss between gradients and update."""
        optimizer = optimizer or optimizer_of(model)
        state = SimpleNamespace(global_step=done, epoch=0.0, max_steps=count)
        selection = Selection(model)
        selection.on_train_begin(None, state, None, optimizer=optimizer)
        begin(model, optimizer, STEPS, done)
        batch = self.batch()
        for step in range(done, count):
            torch.manual_seed(step)  # of dropout: a step draws the same whatever was before
            state.global_step = step
            selection.on_step_begin(None, state, None)
            loss = model.train()(**batch).loss
            loss.backward()
            yield loss.detach()
            optimizer.step()
            after_step(model, step + 1)
            optimizer.zero_grad()

    @torch.no_grad()
    def loss(self, model: Any) -> float:
        return float(model.eval()(**self.batch()).loss)

    @torch.no_grad()
    def logits(self, model: Any) -> torch.Tensor:
        """The logits of the batch without dropout; no loss is asked for."""
        ids = self.batch()["input_ids"]
        inputs = {"input_ids": ids}
        if self.architecture == "seq2seq":
            inputs["decoder_input_ids"] = ids
        out: torch.Tensor = model.eval()(**inputs).logits
        return out


@functools.cache
def tiny_folder(shape: str) -> Path:
    """A model of the shape on the disk, made once in a process and removed at its end."""
    folder = Path(_scratch().name, shape)
    write_model(folder, shape, SIZES[shape], ["a text for the tokenizer"], 300)
    return folder


@functools.cache
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="lorasp-")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lorasp-") as folder:
        yield Path(folder)


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    """AdamW over what is trained."""
    return torch.optim.AdamW(trainable(model).values(), lr=RATE, weight_decay=DECAY, foreach=False)


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def whole_state(model: Any) -> State:
    """A copy of every parameter and buffer, those that are not saved too, by name."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def differing(one: State, other: State) -> list[str]:
    """The names whose tensors are not the same, bit for bit; a name in one alone is such."""
    names = sorted(one.keys() | other.keys())
    return [n for n in names if n not in one or n not in other or not _same(one[n], other[n])]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def base_name(name: str) -> str:
    """The name that a tensor of an adapted model has in the base, if it is of the base."""
    name = name.removeprefix("base_model.model.")
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two tensors' entries, as a share of the largest entry."""
    return float((one - other).abs().max() / other.abs().max())
