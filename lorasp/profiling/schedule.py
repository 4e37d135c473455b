"""The steps of a run by kind: what a method does besides in some of them, a profile counts in.

`lorasp train` takes a step as `before_step` and `lorasp.adapters.hooks` say; so do profiles.
"""

from typing import Any

import torch

from lorasp.adapters import hooks, protect_unselected
from lorasp.adapters.dynamic import DynamicLoraConfig, allocation_steps

# Of the run that a profile's means are of: one of three epochs, as LoRA-SP's (arXiv 2403.08822).
STEPS, EPOCHS = 1000, 3

Kinds = dict[str, list[Any]]  # numbers of steps; None is one with nothing besides
PLAIN: Kinds = {"plain": [None]}


def resample_of(network: Any) -> str:
    """When LoRA-SP's selection is drawn again; 'never' for every other method."""
    config = next(iter(getattr(network, "peft_config", {}).values()), None)
    return str(getattr(config, "resample", "never"))


def run_steps(network: Any) -> int:
    """The length of the run: `STEPS`, or more where AdaLoRA's schedule would not fit."""
    if (allocator := getattr(network.base_model, "rankallocator", None)) is None:
        return STEPS
    config = allocator.peft_config
    return max(STEPS, 2 * (config.tinit + config.tfinal))


def by_kind(network: Any) -> Kinds:
    """The steps of a run, counted from 1, by what the method does in them.

    Of LoRA-SP with `resample`, `drawing` steps draw the selection. Of AdaLoRA and Dynamic LoRA,
    `measuring` steps measure importance, `allocating` ones move rank by it (of AdaLoRA: mask it),
    and AdaLoRA's `masking` ones hold what is masked. What else has a hook of its own `updates` in
    each. All others are `plain`. It is `PLAIN` where no step of a method does anything besides.
    """
    if resample_of(network) == "never" and not hooks.reallocates(network):
        return PLAIN
    kinds: Kinds = {}
    for step in range(1, run_steps(network) + 1):
        kinds.setdefault(_kind(network, step), []).append(step)
    return kinds


def _kind(network: Any, step: int) -> str:
    if (resample := resample_of(network)) != "never":
        return "drawing" if resample == "step" or step in _epochs() else "plain"
    tuner, total = network.base_model, run_steps(network)
    if (allocator := getattr(tuner, "rankallocator", None)) is not None:
        config = allocator.peft_config
        last = total - config.tfinal
        if step > last:
            return "masking"
        due = step > config.tinit and step % config.deltaT == 0
        return "allocating" if due or step == last else "measuring"
    config = next(iter(network.peft_config.values()))
    if not isinstance(config, DynamicLoraConfig):
        return "updating"
    due = allocation_steps(config, total)
    if step in due:
        return "allocating"
    measured = any(one - config.measure_steps < step < one for one in due)
    return "measuring" if measured else "plain"


def _epochs() -> list[int]:
    """The first step of each epoch of the run."""
    return [-(-epoch * STEPS // EPOCHS) + 1 for epoch in range(EPOCHS)]


def begin(network: Any, optimizer: torch.optim.Optimizer) -> None:
    """Tell the method of the run, and the optimizer what it may not move, as `train` does.

    Raises:
        UsageError: a checkpoint could not hold what the method remembers.
    """
    if resample_of(network) != "never":
        protect_unselected(optimizer, network)
    if hooks.reallocates(network):
        hooks.begin(network, optimizer, run_steps(network))


def before_step(network: Any, step: int) -> None:
    """Draw LoRA-SP's selection, if the step is one that begins with it."""
    resample = resample_of(network)
    if resample == "step":
        network.base_model.resample_selection(step - 1)
    elif resample == "epoch" and step in _epochs():
        network.base_model.resample_selection(_epochs().index(step))


def leading_to(network: Any, step: int) -> int | None:
    """The step to take first, so that `step` finds what it would in a run; None if it needs none.

    Dynamic LoRA says a step ahead whose inputs are looked at. AdaLoRA masks by what it has
    measured, which it forgets in the end; in step 0 it measures and masks nothing.
    """
    if not hooks.reallocates(network):
        return None
    return 0 if hasattr(network.base_model, "rankallocator") else step - 1


def without_values(network: Any) -> int | None:
    """A step that measures, in which no value decides what is done; None: only plain ones are so.

    Fake tensors can take it, other than one that allocates; it holds what an allocation looks at.
    """
    if not hooks.reallocates(network):
        return None
    if hasattr(network.base_model, "rankallocator"):
        return 0
    return next(iter(by_kind(network).get("measuring", [])), None)


def chosen(kinds: Kinds, repeats: int) -> list[tuple[str, Any]]:
    """Which steps to time: so many of each kind, spread over the run, through which rounds go."""
    rounds = [
        sorted((steps[turn * len(steps) // repeats], kind) for kind, steps in kinds.items())
        for turn in range(repeats)
    ]
    return [(kind, step) for one in rounds for step, kind in one]


def mean_over_run(kinds: Kinds, spreads: dict[str, dict[str, float]]) -> dict[str, float]:
    """The five numbers of a step on average: of each kind's, weighted by its number of steps."""
    total = sum(map(len, kinds.values()))
    mean = {
        point: sum(len(steps) * spreads[kind][point] for kind, steps in kinds.items()) / total
        for point in ("min", "q1", "median", "q3", "max")
    }
    return mean | {"relative_iqr": (mean["q3"] - mean["q1"]) / mean["median"]}
