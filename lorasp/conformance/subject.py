"""A method on a tiny model, as the checks take it: built, trained for some steps, asked."""

import copy
import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lorasp.adapters.hooks import after_step, allocation_state, begin, restore_allocation
from lorasp.adapters.registry import apply_method
from lorasp.data.tiny_models import write_model
from lorasp.models import load_model
from lorasp.optimizers import kind_of, of_method
from lorasp.training.callbacks import Selection
from lorasp.training.trainer import TRAINED, restore, trained_state

# Two layers, of T5 one encodes; the head of an encoder has two classes.
SHAPES = {"encoder": "roberta", "seq2seq": "t5", "causal": "llama"}
# A square and a rectangular one, as outputs and inputs must not be taken for each other.
TARGETS = {
    "encoder": ["query", "intermediate.dense"],
    "seq2seq": ["q", "wi"],
    "causal": ["q_proj", "v_proj"],
}
# Hidden size 64: bitsandbytes packs that many 4-bit numbers at a time.
SIZES: dict[str, dict[str, int]] = {
    "roberta": {"hidden_size": 64, "intermediate_size": 128},
    "t5": {"d_model": 64, "d_kv": 32, "num_layers": 1, "d_ff": 128},
    "llama": {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 1},
}
RUNTIME = {"device": "cpu", "precision": "fp32", "weights": "fp32", "threads": 1}
# Large steps, and weight decay that would move whatever the optimizer holds by mistake.
RATE, DECAY, STEPS = 1e-2, 0.1, 10
PAUSE = 2  # steps before the checkpoint
MORE = 50  # steps for a method that learns slowly
Batch = dict[str, torch.Tensor]
State = dict[str, torch.Tensor]


class Failed(Exception):
    """A check has failed; the sentence says what was expected, what was found and what to do."""


class NotApplicable(Exception):
    """A check has nothing to look at in this method; the sentence says why."""


@dataclass
class Trained:
    """A model after STEPS steps, and what was seen on the way; names are those of parameters.

    states: every parameter and buffer after that many steps.  learned: those with a gradient other
    than zero in some step.  losses: of the batch without dropout, before and after.
    """

    model: Any
    optimizer: torch.optim.Optimizer
    states: dict[int, State] = field(default_factory=dict)
    learned: set[str] = field(default_factory=set)
    losses: list[float] = field(default_factory=list)


class Subject:
    """A resolved method on the tiny model of an architecture; what is dear is made once."""

    def __init__(self, method: dict[str, Any], architecture: str) -> None:
        self.method, self.architecture = method, architecture
        self.folder = tiny_folder(SHAPES[architecture])
        self.scratch = tempfile.TemporaryDirectory(prefix="lorasp-")  # the checkpoint of `trained`

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
        known = self.base_state.keys()
        return {plain: state[name] for name in state for plain in base_names(name) & known}

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
        ids = torch.randint(5, 250, (rows, length), generator=generator)
        ids[:, 0] = torch.arange(rows) % 3  # special tokens, as texts begin with
        return {
            "input_ids": ids,
            "labels": (torch.arange(rows) % 4).clip(max=1) if self.on_encoder else ids,
        }

    @property
    def on_encoder(self) -> bool:
        return self.architecture == "encoder"

    @functools.cached_property
    def fresh(self) -> Any:
        """The base with the method in it, on which no step was taken."""
        return self.built()

    @functools.cached_property
    def base_state(self) -> State:
        return whole_state(self._loaded)

    @functools.cached_property
    def base_logits(self) -> torch.Tensor:
        return self.logits(self.base())

    @functools.cached_property
    def trained(self) -> Trained:
        """STEPS steps on one batch; NotApplicable where nothing is trained."""
        model = self.built()
        if not trainable(model):
            raise NotApplicable("nothing is trained")
        found = Trained(model, self.optimizer(model), losses=[self.loss(model)])

        def look(step: int) -> None:
            if step in (0, PAUSE, 2 * PAUSE):
                found.states[step] = whole_state(model)
            if step == PAUSE:
                keep(model, found.optimizer, Path(self.scratch.name))

        for _ in self.steps(model, STEPS, found.optimizer, look=look):
            for name, weight in model.named_parameters():
                if weight.grad is not None and bool(weight.grad.any()):
                    found.learned.add(name)
        found.losses.append(self.loss(model))
        return found

    def optimizer(self, model: Any) -> torch.optim.Optimizer:
        """AdamW over what is trained, or the optimizer that the method brings along."""
        if kind_of(self.resolved()) != "adamw":
            return of_method(model, self.resolved(), RATE, DECAY, fused=False)
        return torch.optim.AdamW(
            trainable(model).values(), lr=RATE, weight_decay=DECAY, foreach=False
        )

    def steps(
        self,
        model: Any,
        count: int,
        optimizer: Any = None,
        done: int = 0,
        look: Callable[[int], None] = lambda step: None,
    ) -> Iterator[torch.Tensor]:
        """Take steps number `done` to `count`, and yield each loss between gradients and update.

        `look` is called before each of them, and told how many were taken.
        """
        optimizer = optimizer or self.optimizer(model)
        state = SimpleNamespace(global_step=done, epoch=0.0, max_steps=count)
        selection = Selection(model)
        selection.on_train_begin(None, state, None, optimizer=optimizer)
        begin(model, optimizer, max(count, STEPS), done)
        batch = self.batch()
        for step in range(done, count):
            look(step)
            torch.manual_seed(step)  # of dropout: a step draws the same whatever was before
            state.global_step = step
            selection.on_step_begin(None, state, None)
            loss = model.train()(**batch).loss
            loss.backward()
            seen = loss.detach()
            del loss  # and its graph, which knows the shapes that a method may change
            yield seen
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
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if name.endswith("bias"):  # zero in a new model, and no method could scale it
            weight.normal_(0, 0.02, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@functools.cache
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="lorasp-")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lorasp-") as folder:
        yield Path(folder)


def keep(model: Any, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Write a checkpoint: what training can change, in the optimizer and the method too."""
    save_file({n: tensor.clone() for n, tensor in trained_state(model).items()}, folder / TRAINED)
    torch.save((optimizer.state_dict(), allocation_state(model)), folder / "optimizer.pt")


def put_back(model: Any, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Take over what `keep` wrote."""
    restore(model, folder)
    moments, allocation = torch.load(folder / "optimizer.pt", weights_only=True)
    optimizer.load_state_dict(moments)
    restore_allocation(model, allocation)


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


def base_names(name: str) -> set[str]:
    """The names of which a tensor of an adapted model has one in the base, if it is of the base."""
    for layer in (".base_layer.", ".original_module."):
        name = name.replace(layer, ".")
    name = name.replace(".self_attn.model.", ".self_attn.")  # of PEFT's LLaMA-Adapter
    # of what adapts layers, of what adds a prompt, and of neither
    return {name.removeprefix(prefix) for prefix in ("base_model.model.", "base_model.", "")}


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two tensors' entries, as a share of the largest entry."""
    return float((one - other).abs().max() / other.abs().max())
