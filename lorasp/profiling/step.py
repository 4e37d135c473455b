"""One training step, as profiles time it and count its bytes, on real tensors or on fake ones."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from lorasp import optimizers
from lorasp.adapters import hooks
from lorasp.models import autocast
from lorasp.profiling import schedule
from lorasp.profiling.storage import PHASES, LiveStorage, storage_bytes
from lorasp.recompute import recompute_activations

Batch = dict[str, torch.Tensor]


def ready(network: Any, resolved: dict[str, Any]) -> Any:
    """The adapted model as the Trainer has it: in training mode, recomputing, without a cache."""
    network.config.use_cache = False
    recompute_activations(network, resolved)
    return network.train()


def adamw(network: nn.Module, fused: bool) -> AdamW:
    """The optimizer of `train`: on CUDA one fused kernel, which needs no memory for its work."""
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    return AdamW(trained, lr=2e-5, fused=fused, foreach=False)


def optimizer_of(network: nn.Module, resolved: dict[str, Any], fused: bool) -> Optimizer:
    """AdamW, or the optimizer that the method brings along."""
    if optimizers.kind_of(resolved) == "adamw":
        return adamw(network, fused)
    return optimizers.of_method(network, resolved, 2e-5, 0.0, fused)


def batch_shapes(network: Any, resolved: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and number of classes of each input, all int64, of a batch without padding.

    Labels are (batch,) classes for an encoder, else tokens (batch, length).
    """
    shape = (resolved["profile"]["batch"], resolved["profile"]["length"])
    tokens = (shape, network.config.vocab_size)
    encoder = resolved["model"]["architecture"] == "encoder"
    labels = (shape[:1], network.config.num_labels) if encoder else tokens
    return {"input_ids": tokens, "labels": labels}


def training_step(
    network: nn.Module,
    optimizer: Optimizer,
    batch: Batch,
    resolved: dict[str, Any],
    after: Callable[[str], None] = lambda phase: None,
    number: int | None = None,
) -> None:
    """Forward, backward, optimizer, as `train` does them; `after` is called after each of them.

    With the step's `number` in a run (see `schedule`), what the method does in that step besides is
    done: before the forward pass, and after the optimizer's work. None: nothing.
    """
    if number is not None:
        schedule.before_step(network, number)
    with autocast(resolved):
        loss = network(**batch).loss
    after("forward")
    loss.backward()
    del loss  # as the Trainer does; the graph goes with it, and what functions keep on their own
    after("backward")
    optimizer.step()
    if number is not None:
        hooks.after_step(network, number)
    after("optimizer")


def counted_step(
    network: nn.Module,
    optimizer: Optimizer,
    batch: Batch,
    resolved: dict[str, Any],
    number: int | None = None,
) -> dict[str, Any]:
    """What one warm step holds and computes: `peak_bytes`, `phases`, `rest`, `kept`, FLOPs.

    `rest` is what is there between two steps, `kept` what the forward pass leaves for the backward
    pass, each by kind (`storage.KINDS`); so is the peak of every phase. Gradients must be None.
    """
    order = iter(PHASES[1:])
    kept: dict[str, int] = {}

    with LiveStorage(held_tensors(network, optimizer, batch)) as counter:
        rest = dict(counter.kinds)
        handles = counter.gradients_of(w for w in network.parameters() if w.requires_grad)

        def after(phase: str) -> None:
            if phase == "forward":
                kept.update(counter.kinds)
            counter.enter(next(order, phase))

        training_step(network, optimizer, batch, resolved, after, number)
        for handle in handles:
            handle.remove()
        optimizer.zero_grad()
    return {
        "peak_bytes": counter.peak,
        "phases": {
            phase: {"peak_bytes": sum(peak.values()), "kinds": peak}
            for phase, peak in counter.peaks.items()
        },
        "rest": rest,
        "kept": kept,
        "flops": sum(counter.flops.values()),
        "flops_by_phase": dict(counter.flops),
    }


def held_tensors(
    network: nn.Module, optimizer: Optimizer, batch: Batch
) -> dict[str, list[torch.Tensor]]:
    """What is there before a warm step, by kind; the inputs count as activations.

    Masks are the buffers of the adapter's layers: bits, and the values that stay frozen.
    """
    prefix = adapter_prefix(network)
    buffers = list(network.named_buffers())
    weights: list[torch.Tensor] = list(network.parameters())
    weights += [tensor for name, tensor in buffers if not (prefix and prefix in name)]
    return {
        "weights": [*weights, *quantization_states(network)],
        "masks": [tensor for name, tensor in buffers if prefix and prefix in name],
        "optimizer": [*moments(optimizer), *importances(network)],
        "activations": list(batch.values()),
    }


def adapter_prefix(network: nn.Module) -> str | None:
    """What marks a PEFT method's own tensors by name, None where there is no such method."""
    return getattr(getattr(network, "base_model", None), "prefix", None)


def moments(optimizer: Optimizer) -> list[torch.Tensor]:
    """Every tensor that the optimizer keeps: AdamW's two moments and its step counts."""
    states = optimizer.state.values()
    return [value for state in states for value in state.values() if torch.is_tensor(value)]


def importances(network: nn.Module) -> list[torch.Tensor]:
    """AdaLoRA's running means of what each trained entry matters, three to an entry."""
    state = hooks.allocation_state(network)
    return [tensor for name in hooks.REMEMBERED for tensor in state.get(name, {}).values()]


def quantization_states(network: nn.Module) -> Iterable[torch.Tensor]:
    """The scales and tables that bitsandbytes keeps beside its packed weights."""
    for module in network.modules():
        # int8: the module's state
        scales = getattr(getattr(module, "state", None), "SCB", None)
        if isinstance(scales, torch.Tensor):
            yield scales
    for weight in network.parameters():
        state = getattr(weight, "quant_state", None)
        for part in (state, getattr(state, "state2", None)):
            for name in ("absmax", "code", "offset"):
                if isinstance(tensor := getattr(part, name, None), torch.Tensor):
                    yield tensor


def state_bytes(network: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Bytes of weights, gradients, moments and buffers, right after a backward pass and a step.

    `adapter` is what the PEFT method put in, told by its name prefix: trained parameters, and as
    buffers its masks, frozen values and AdaLoRA's importances. `other` is every further trained
    weight: the head, or all of full fine-tuning. `base` is the frozen rest.
    """
    prefix = adapter_prefix(network)
    tensors = [*network.named_parameters(), *network.named_buffers()]
    adapter = [tensor for name, tensor in tensors if prefix and prefix in name]
    other = [tensor for name, tensor in tensors if not (prefix and prefix in name)]

    def trained(part: list[torch.Tensor]) -> dict[str, int]:
        weights = [tensor for tensor in part if tensor.requires_grad]
        kept = [value for weight in weights for value in optimizer.state.get(weight, {}).values()]
        return {
            "parameters": storage_bytes(weights),
            "gradients": storage_bytes(w.grad for w in weights if w.grad is not None),
            "moments": storage_bytes(value for value in kept if torch.is_tensor(value)),
            "buffers": 0,
        }

    frozen = storage_bytes(tensor for tensor in adapter if not tensor.requires_grad)
    frozen += storage_bytes(importances(network))
    return {
        "base": storage_bytes(tensor for tensor in other if not tensor.requires_grad),
        "adapter": trained(adapter) | {"buffers": frozen},
        "other": trained(other),
    }
