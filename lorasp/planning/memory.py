"""What a run needs of a device's memory: micro-batch, GPUs, and what would make it fit."""

import os
import sys
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any, NamedTuple

from tqdm import tqdm

from lorasp.config import Config, resolve_method, resolve_model
from lorasp.planning.devices import GIB, Device
from lorasp.planning.workload import Shape

MOST_GPUS = 8
# What the allocator's fragments and the CUDA context take beside the tensors, as an assumption.
FRAGMENTS, CONTEXT = 0.06, 0.6 * GIB
PROCESS = 2 * GIB  # of a process with torch and transformers imported
REMEDIES: list[dict[str, str]] = [
    {"recompute": "selective"},
    {"recompute": "full"},
    {"quantize": "nf4"},
    {"quantize": "nf4", "recompute": "full"},
]


class Step(NamedTuple):
    """A training step of a micro-batch, linear in it but for `peak` and `accumulated` (convex).

    Bytes: `peak` on its own; `accumulated` where gradients of an earlier micro-batch are there
    already; `states` weights, gradients and moments; `resting` these and the weights' copies in
    another format; `kept` what the forward pass keeps for the backward pass. FLOPs: `flops` all,
    `forward` of the forward pass. `trainable` and `total` count parameters.
    """

    batch: float
    peak: float
    accumulated: float
    states: float
    resting: float
    weights: float
    kept: float
    flops: float
    forward: float
    trainable: float
    total: float


def step_of(simulated: dict[str, Any], batch: int) -> Step:
    """The numbers of a plan out of a simulated step."""
    rest = simulated["rest"]
    gradients = rest.get("optimizer", 0) // 2  # as large as either of AdamW's moments
    states = sum(rest.get(kind, 0) for kind in ("weights", "masks", "optimizer")) + gradients
    accumulated = max(
        phase["peak_bytes"] - phase["kinds"].get("gradients", 0) + gradients
        for phase in simulated["phases"].values()
    )
    return Step(
        batch,
        simulated["peak_bytes"],
        accumulated,
        states,
        states + max(phase["kinds"].get("copies", 0) for phase in simulated["phases"].values()),
        rest["weights"],
        simulated["kept"].get("activations", 0),
        simulated["flops"],
        simulated["flops_by_phase"]["forward"],
        simulated["parameters"]["trainable"],
        simulated["parameters"]["total"],
    )


def line(one: Step, other: Step, batch: int) -> Step:
    """The step at `batch` on the straight line through two: between them never below the truth,
    because a peak is a maximum of affine functions; outside never above it."""
    share = (batch - one.batch) / (other.batch - one.batch)
    return Step(*(a + share * (b - a) for a, b in zip(one, other, strict=True)))


class Steps:
    """The steps of one model, method and length by micro-batch, simulated as few as will do."""

    def __init__(self, simulate: Callable[[int], Step]) -> None:
        self.simulate = simulate
        self.known: dict[int, Step] = {}

    def exact(self, batch: int) -> Step:
        """The simulated step."""
        if batch not in self.known:
            step = self.known[batch] = self.simulate(batch)
            # of no sequences: all that does not grow with them, but for one weight's gradient
            empty = {"batch": 0, "kept": 0, "flops": 0, "forward": 0}
            held = {"peak": step.resting, "accumulated": step.resting}
            self.known.setdefault(0, step._replace(**empty, **held))
        return self.known[batch]

    def most(self, batch: int) -> Step:
        """The step, or an upper bound where it lies between two that are known."""
        below = [known for known in self.known if known <= batch]
        above = [known for known in self.known if known >= batch]
        if batch in self.known or not (below and above):
            return self.exact(batch)
        return line(self.known[max(below)], self.known[min(above)], batch)

    def least(self, batch: int) -> Step | None:
        """A lower bound, where two smaller steps are known."""
        below = sorted(known for known in self.known if known < batch)
        if len(below) < 2:
            return None
        return line(self.known[below[-2]], self.known[below[-1]], batch)


def largest_fitting(steps: Steps, sizes: list[int], fits: Callable[[Step], bool]) -> int | None:
    """The largest of the rising `sizes` whose step fits, None where not even the first does."""
    low, high = -1, len(sizes)
    while high - low > 1:
        floor = steps.least(sizes[low + 1])
        if floor is not None and not fits(floor):
            break
        descending = range(high - 1, low, -1)
        guess = next((i for i in descending if fits(steps.most(sizes[i]))), None)
        if guess == len(sizes) - 1:
            return sizes[guess]
        tried = low + 1 if guess is None else guess
        if fits(steps.exact(sizes[tried])):
            low = tried
        else:
            high = tried
    return sizes[low] if low >= 0 else None


def divisors(number: int) -> list[int]:
    """The divisors of a number, rising."""
    return [size for size in range(1, number + 1) if number % size == 0]


class Fit(NamedTuple):
    """How a batch is computed: `micro` sequences on each of `gpus`, bytes of `tensors` on one."""

    gpus: int
    micro: int
    tensors: int
    fits: bool
    step: Step


def on_device(tensors: float, device: Device) -> int:
    """Bytes that a process needs for so many bytes of tensors."""
    if device["name"] == "cpu":
        return int(tensors + PROCESS)
    return int(tensors * (1 + FRAGMENTS) + CONTEXT)


def held(step: Step, gpus: int, whole: bool, layers: int) -> float:
    """Bytes of tensors on one of `gpus`, which share the states (FSDP) and gather two layers."""
    if gpus == 1:
        return step.peak if whole else step.accumulated
    return step.accumulated - step.states * (1 - 1 / gpus) + 2 * step.weights / layers


def fit(
    steps: Steps,
    batch: int,
    device: Device,
    layers: int,
    micro: int | None = None,
    most: int = MOST_GPUS,
) -> Fit:
    """The fewest GPUs (a power of two, at `most`), then the largest micro-batch, that hold a batch.

    `micro` is a given micro-batch. What fits nowhere is given as on one GPU. On a CPU, where
    nothing is to be chosen, a smaller batch is held to take as much memory as the largest one.
    """
    if device["name"] == "cpu" and micro is not None:
        step = steps.exact(max([micro, *steps.known]))
        fitting = on_device(step.accumulated, device) <= device["memory_bytes"]
        return Fit(1, micro, int(step.accumulated), fitting, step)
    for gpus in (1, 2, 4, 8):
        if batch % gpus or gpus > most:
            break
        share = batch // gpus

        def tensors(step: Step, gpus: int = gpus, share: int = share) -> float:
            return held(step, gpus, share == step.batch, layers)

        def fits(step: Step, tensors: Callable[[Step], float] = tensors) -> bool:
            return on_device(tensors(step), device) <= device["memory_bytes"]

        sizes = divisors(share) if micro is None else [micro] if share % micro == 0 else []
        if sizes and (chosen := largest_fitting(steps, sizes, fits)) is not None:
            step = steps.most(chosen)
            return Fit(gpus, chosen, int(tensors(step)), True, step)
    step = steps.most(micro or 1)
    return Fit(1, micro or 1, int(held(step, 1, False, layers)), False, step)


class Question(NamedTuple):
    """One model by one method at one length, and the (batch, given micro-batch) to be computed."""

    model: str
    method: str
    length: int
    batches: tuple[tuple[int, int | None], ...]


class Answer(NamedTuple):
    """The fit of each batch, the settings with which one GPU would hold it, if any would do, and
    on how many GPUs the weights can be shared out."""

    fits: dict[tuple[int, int | None], Fit]
    remedy: str
    most: int = MOST_GPUS


def answer(config: Config, question: Question, shape: Shape, device: Device) -> Answer:
    """Simulate what must be known of a question and fit its batches to the device."""
    steps = _steps(config, question, shape, {})
    most = _most_gpus(config, question)
    # the largest first: smaller ones then lie between known ones
    fits = {
        (batch, micro): fit(steps, batch, device, shape.layers, micro, most)
        for batch, micro in sorted(question.batches, key=lambda pair: -pair[0])
    }
    alone = all(one.fits and one.gpus == 1 for one in fits.values())
    states = max(one.step.states for one in fits.values())
    return Answer(fits, "" if alone else _remedy(config, question, shape, device, states), most)


def _most_gpus(config: Config, question: Question) -> int:
    """One for what `lorasp train` holds whole in every process: encoders and quantised weights."""
    model = resolve_model(config, question.model)
    settings = resolve_method(config, question.method).get("settings", {})
    whole = model["architecture"] == "encoder" or settings.get("quantize", "none") != "none"
    precision = {**config["runtime"], **model.get("runtime", {})}["precision"]
    return 1 if whole or precision == "fp16" else MOST_GPUS


def _remedy(config: Config, question: Question, shape: Shape, device: Device, states: float) -> str:
    family = resolve_method(config, question.method)["family"]
    for settings in REMEDIES:
        if family == "full" and "quantize" in settings:
            continue
        if "quantize" not in settings and on_device(states, device) > device["memory_bytes"]:
            continue  # recomputation saves activations alone
        step = _steps(config, question, shape, settings).exact(1)
        if on_device(step.accumulated, device) <= device["memory_bytes"]:
            return ", ".join(f"{key}: {value}" for key, value in settings.items())
    return ""


def _steps(config: Config, question: Question, shape: Shape, settings: dict[str, str]) -> Steps:
    model = resolve_model(config, question.model)
    method = resolve_method(config, question.method, settings)
    runtime = {**config["runtime"], **model.get("runtime", {})}

    def simulate(batch: int) -> Step:
        from lorasp.profiling.simulations import simulation  # imports torch and transformers

        profile = {"batch": batch, "length": question.length}
        resolved = {"model": model, "method": method, "runtime": runtime, "profile": profile}
        return step_of(simulation(resolved, shape.folder), batch)

    return Steps(simulate)


def answers(
    config: Config, questions: list[Question], shapes: dict[str, Shape], device: Device
) -> dict[tuple[str, str, int], Answer]:
    """Every question's answer by (model, method, length), on as many cores as there are."""
    calls = [(config, question, shapes[question.model], device) for question in questions]
    workers = min(os.cpu_count() or 1, MOST_GPUS, len(calls)) if sys.platform == "linux" else 1
    if workers < 2:
        found = [answer(*call) for call in _shown(calls, len(calls))]
    else:
        import lorasp.profiling.simulations  # noqa: F401  # once, before the processes fork

        # left early, it ends its processes, which an executor would wait for
        with get_context("fork").Pool(workers, initializer=_on_one_thread) as pool:
            found = list(_shown(pool.imap(_answer, calls), len(calls)))
    keys = [(question.model, question.method, question.length) for question in questions]
    return dict(zip(keys, found, strict=True))


def _on_one_thread() -> None:
    """OpenMP's threads are not in a forked process: one that asks for them waits for ever."""
    import torch

    torch.set_num_threads(1)


def _answer(call: tuple[Config, Question, Shape, Device]) -> Answer:
    return answer(*call)


def _shown(steps: Any, total: int) -> Any:
    return tqdm(steps, total=total, desc="simulate", unit="method", delay=3, file=sys.stderr)
