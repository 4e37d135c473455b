"""How long jobs take: FLOPs at a stated share of the device's peak, and what bounds small steps."""

import math
from typing import Any, NamedTuple

from lorasp.planning.devices import Device
from lorasp.planning.memory import Fit, Step
from lorasp.planning.workload import Rows

UTILISATION = 0.35
# Seconds: imports, reading the data, the first slow steps.
STARTUP = {"cpu": 5.0, "gpu": 30.0}
STORAGE = 1e9  # bytes a second, read from or written to disk
# Seconds to launch the kernels of a training step (forward, backward, optimizer), however small:
# for each step and each layer. A third of it for a forward pass alone.
LAUNCH = {"cpu": (0.005, 0.002), "gpu": (0.004, 0.0014)}
FORWARD_SHARE = 1 / 3
PADDING = 1.1  # tokens computed for each token of text, in batches of similar length
METERED = 2.0  # seconds that a profile steps at least while it reads the meter of energy
# What is asked of a scheduler: twice the estimate and ten minutes.
MARGIN, LEAST_MINUTES = 2, 10


class Pace(NamedTuple):
    """FLOP/s that a job gets on one device, seconds to launch a step, bytes a second of memory,
    seconds before a job's first step."""

    rate: float
    launch: float
    bandwidth: float
    start: float


def pace(device: Device, precision: str, utilisation: float, layers: int) -> Pace:
    """The pace of a model of so many layers on a device."""
    kind = "cpu" if device["name"] == "cpu" else "gpu"
    once, each = LAUNCH[kind]
    rate = device["tflops"][precision] * 1e12 * utilisation
    return Pace(rate, once + each * layers, device["bandwidth"], STARTUP[kind])


class Cost(NamedTuple):
    """FLOPs and seconds of one job."""

    flops: float
    seconds: float


def steps_of(rows: int, recipe: dict[str, Any]) -> int:
    """Optimizer steps of a run, as the Trainer counts them."""
    return int(recipe.get("max_steps", 0)) or math.ceil(
        math.ceil(rows / recipe["batch_size"]) * recipe["epochs"]
    )


def shortened(length: float, longest: int) -> float:
    """The share of a full-length example's FLOPs that one of mean length takes, with padding."""
    return min(1.0, PADDING * length / longest)


def startup(weights: float, pace: Pace) -> float:
    """Seconds before a job's first step, with its weights read from disk."""
    return pace.start + weights / STORAGE


def training(
    rows: Rows, recipe: dict[str, Any], chosen: Fit, share: float, pace: Pace, eval_batch: int
) -> Cost:
    """One run: its steps, with `select: best` a look at the validation rows after every epoch."""
    step = chosen.step
    steps = steps_of(rows.train, recipe)
    micro_steps = steps * recipe["batch_size"] // (chosen.micro * chosen.gpus)
    examples = (
        steps * recipe["batch_size"] if "max_steps" in recipe else rows.train * recipe["epochs"]
    )
    flops = examples * step.flops / step.batch * share
    seconds = max(flops / (pace.rate * chosen.gpus), micro_steps * pace.launch)
    if recipe["select"] == "best":
        epochs = math.ceil(recipe["epochs"])
        looked = scoring(epochs * rows.select, step, share, pace, eval_batch)
        saved = epochs * saved_bytes(step) / STORAGE
        flops, seconds = flops + looked.flops, seconds + looked.seconds + saved
    return Cost(flops, seconds + startup(step.weights, pace) + saved_bytes(step) / STORAGE)


def scoring(rows: int, step: Step, share: float, pace: Pace, batch: int) -> Cost:
    """Forward passes over rows, without the start of the job."""
    flops = rows * step.forward / step.batch * share
    launches = math.ceil(rows / batch) * pace.launch * FORWARD_SHARE
    return Cost(flops, max(flops / pace.rate, launches))


def beam_search(
    rows: int, tokens: float, step: Step, share: float, pace: Pace, batch: int, beams: int
) -> Cost:
    """Translations: every generated token reads all weights once for its batch, or is bound by the
    launches of a forward pass; a batch goes on to about twice the mean length."""
    generated = math.ceil(rows / batch) * 2 * tokens
    seconds = generated * max(step.weights / pace.bandwidth, pace.launch * FORWARD_SHARE)
    flops = beams * rows * step.forward / step.batch * share
    return Cost(flops, max(flops / pace.rate, seconds))


def saved_bytes(step: Step) -> float:
    """Bytes of what a run saves: all that it trains, in float32."""
    return 4 * step.trainable


def minutes(seconds: float) -> int:
    """Minutes to ask of a scheduler."""
    return math.ceil(MARGIN * seconds / 60) + LEAST_MINUTES
