"""What a method does between the steps of a training loop, for those that do anything.

PEFT's AdaLoRA and our Dynamic LoRA measure the importance of their parts in each step and take
rank from some modules: their tuners have a method `update_and_allocate`. A loop of one's own calls

    begin(model, optimizer, total_steps)
    for step in range(1, total_steps + 1):
        ...
        optimizer.step()
        after_step(model, step)
        optimizer.zero_grad()
"""

from typing import Any

import torch

from lorasp.errors import UsageError


def reallocates(model: Any) -> bool:
    """Whether the model's method wants to be called after each step."""
    tuner = getattr(model, "base_model", None)
    configs = getattr(model, "peft_config", {}).values()
    # AdaMSS of PEFT has the method in any case, and does something in it if asked to
    return hasattr(tuner, "update_and_allocate") and any(
        getattr(config, "use_asa", True) for config in configs
    )


def begin(
    model: Any, optimizer: torch.optim.Optimizer, total_steps: int, steps_done: int = 0
) -> None:
    """Tell the method of a training that begins, or that goes on after `steps_done` steps.

    AdaLoRA's `tinit` and `tfinal` are numbers of steps, or in (0, 1) shares of all.

    Raises:
        UsageError: the method's schedule does not fit into so few steps, or what it remembers
            could not go into a checkpoint.
    """
    if not reallocates(model):
        return
    tuner = model.base_model
    if hasattr(tuner, "begin_training"):
        tuner.begin_training(total_steps, optimizer, steps_done)
        return
    if not hasattr(tuner, "rankallocator"):
        raise UsageError(
            f"{type(tuner).__name__} allocates during training in a way whose state no checkpoint "
            "has: leave that out (for AdaMSS: use_asa: false)"
        )
    allocator, config = tuner.rankallocator, tuner.peft_config[tuner.trainable_adapter_name]
    for name in ("tinit", "tfinal"):  # PEFT knows them as numbers of steps alone
        if 0 < (share := getattr(config, name)) < 1:
            setattr(config, name, int(share * total_steps))
    # the last step before tfinal masks, by what the steps before it have measured
    if total_steps - config.tfinal < max(2, config.tinit + 1):
        raise UsageError(
            f"AdaLoRA with tinit {config.tinit} and tfinal {config.tfinal} has no step left to "
            f"allocate in, of {total_steps} steps in all: lower them, or train for more steps."
        )
    allocator.set_total_step(total_steps)


def after_step(model: Any, step: int) -> None:
    """Let the method do its part after the optimizer's `step`-th step, before gradients go.

    Args:
        step: the number of steps taken, this one included.
    """
    if reallocates(model):
        model.base_model.update_and_allocate(step)


def allocation_state(model: Any) -> dict[str, Any]:
    """What the method remembers beside the model's tensors: of AdaLoRA, importances and ranks."""
    allocator = getattr(getattr(model, "base_model", None), "rankallocator", None)
    if allocator is None:
        return {}
    state = {name: dict(getattr(allocator, name)) for name in REMEMBERED}
    return {**state, "rank_pattern": allocator.peft_config.rank_pattern}


def restore_allocation(model: Any, state: dict[str, Any]) -> None:
    """Put back what `allocation_state` gave."""
    if not state:
        return
    allocator = model.base_model.rankallocator
    weights = dict(model.base_model.model.named_parameters())
    for name in REMEMBERED:
        found = {key: value.to(weights[key].device) for key, value in state[name].items()}
        setattr(allocator, name, found)
    allocator.peft_config.rank_pattern = state["rank_pattern"]


REMEMBERED = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of AdaLoRA's RankAllocator, by parameter
