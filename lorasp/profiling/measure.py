"""Measure real training steps of one model and method: time, tokens a second, memory, bytes.

lorasp profile --config config/smoke.yaml --model roberta-tiny --method lora-sp
"""

import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import AdamW, Optimizer

from lorasp.adapters.registry import apply_method, count_parameters, save_adapter
from lorasp.config import Config, data_folder, resolve_method, resolve_model
from lorasp.data.load import check_folder
from lorasp.errors import UsageError
from lorasp.models import autocast, device_of, load_model
from lorasp.profiling.storage import LiveStorage, storage_bytes
from lorasp.recompute import recompute_activations
from lorasp.results import provenance, write_json

PHASES = ("forward", "backward", "optimizer")


def profile_path(config: Config, model: str, method: str) -> Path:
    """Where the profile of a model and method lies."""
    return Path("results", config["scale"], "profile", model, f"{method}.json")


def resolve_profile(config: Config, model: str, method: str) -> Config:
    """What decides a profile: model, method, runtime, and the shape of the step.

    Raises UsageError where the configuration plans no such profile, or the method trains nothing.
    """
    plan = config["profile"]
    planned = [entry for entry in plan["cells"] if entry["model"] == model]
    entry = next((entry for entry in planned if method in entry["methods"]), None)
    if entry is None:
        pairs = [f"{cell['model']} {name}" for cell in plan["cells"] for name in cell["methods"]]
        raise UsageError(
            f"profile.cells plans no {model} {method}; planned are {', '.join(pairs) or 'none'}"
        )
    resolved = {"model": resolve_model(config, model), "method": resolve_method(config, method)}
    if resolved["method"]["family"] == "base":
        raise UsageError(
            f"profile.cells: method {method} trains nothing, so it has no training step"
        )
    return {
        **resolved,
        "runtime": {**config["runtime"], **resolved["model"].get("runtime", {})},
        "profile": {
            "warmup": plan["warmup"],
            "repeats": plan["repeats"],
            "batch": entry["batch"],
            "length": entry["length"],
        },
    }


def profile_cell(config: Config, model: str, method: str) -> Path:
    """Run the training steps of a model and method that the configuration plans; write the profile.

    The timed steps run without any counter. On CUDA the peak is torch's own
    (`max_memory_allocated`); on a CPU one more step runs under `LiveStorage`. Both hold weights,
    states and activations, and no memory of the process beyond tensors. Raises UsageError for a
    profile that is not planned, WorkError where the model is not prepared.
    """
    resolved = resolve_profile(config, model, method)
    plan, folder = resolved["profile"], data_folder(config, "models", model)
    started, clock = datetime.now(UTC), time.perf_counter()
    manifest = check_folder(folder)
    device = device_of(resolved)
    torch.set_num_threads(resolved["runtime"]["threads"])
    network = apply_method(load_model(resolved, folder), resolved).train()
    recompute_activations(network, resolved)
    optimizer = AdamW([weight for weight in network.parameters() if weight.requires_grad], lr=2e-5)
    batch = random_batch(network, resolved, device)

    def step(after: Callable[[str], None] = lambda phase: None) -> None:
        with autocast(resolved):
            loss = network(**batch).loss
        after("forward")
        loss.backward()
        after("backward")
        optimizer.step()
        after("optimizer")

    def warm() -> None:
        step()
        optimizer.zero_grad()

    for _ in range(max(1, plan["warmup"])):  # the first step allocates the optimizer's moments
        warm()
    seconds = timed_steps(step, optimizer, plan["repeats"], device)
    peak, counter = peak_memory(warm, network, optimizer, batch, device)
    step()
    states = state_bytes(network, optimizer)
    with tempfile.TemporaryDirectory() as scratch:
        adapter_bytes = save_adapter(network, Path(scratch))
    spreads = {name: spread(values) for name, values in seconds.items()}
    result = {
        "scale": config["scale"],
        "model": model,
        "method": method,
        **plan,
        "config": resolved,
        "data": {f"models/{model}": manifest["fingerprint"]},
        "provenance": provenance(),
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": time.perf_counter() - clock,
        "device": {
            "type": device.type,
            "name": device_name(device),
            "threads": torch.get_num_threads(),
        },
        "seconds": spreads,
        "tokens_per_second": plan["batch"] * plan["length"] / spreads["step"]["median"],
        "peak_memory_bytes": peak,
        "peak_memory_counter": counter,
        "parameters": count_parameters(network),
        "states": states,
        "adapter_bytes": adapter_bytes,
    }
    path = profile_path(config, model, method)
    write_json(path, result, "profile")
    print(
        f"{model} {method}: {spreads['step']['median'] * 1e3:.1f} ms a step, "
        f"peak {peak / 2**20:.1f} MiB ({counter})",
        file=sys.stderr,
    )
    return path


def random_batch(
    network: torch.nn.Module, resolved: Config, device: torch.device
) -> dict[str, torch.Tensor]:
    """Seeded random tokens without padding: input_ids and attention_mask (batch, length), int64.

    Labels are (batch,) classes for an encoder, else tokens (batch, length): the inputs themselves
    for a causal model, a second draw for a sequence-to-sequence model.
    """
    shape = (resolved["profile"]["batch"], resolved["profile"]["length"])
    generator = torch.Generator().manual_seed(0)
    config: Any = network.config

    def draw(size: tuple[int, ...], high: int) -> torch.Tensor:
        return torch.randint(0, high, size, generator=generator)

    tokens = draw(shape, config.vocab_size)
    pad = config.pad_token_id
    if pad is not None:
        # RoBERTa takes positions from the padding token, so a random one would be a hole
        tokens[tokens == pad] = (pad + 1) % config.vocab_size
    architecture = resolved["model"]["architecture"]
    if architecture == "encoder":
        labels = draw(shape[:1], config.num_labels)
    else:
        labels = tokens if architecture == "causal" else draw(shape, config.vocab_size)
    batch = {"input_ids": tokens, "attention_mask": torch.ones(shape).long(), "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def timed_steps(
    step: Callable[[Callable[[str], None]], None],
    optimizer: Optimizer,
    repeats: int,
    device: torch.device,
) -> dict[str, list[float]]:
    """Seconds of every repeat, by phase and as a whole; the device is awaited between phases."""
    seconds: dict[str, list[float]] = {name: [] for name in ("step", *PHASES)}
    for _ in range(repeats):
        synchronize(device)
        marks = [time.perf_counter()]

        def after(phase: str, marks: list[float] = marks) -> None:
            synchronize(device)
            marks.append(time.perf_counter())

        step(after)
        for index, phase in enumerate(PHASES):
            seconds[phase].append(marks[index + 1] - marks[index])
        seconds["step"].append(marks[-1] - marks[0])
        optimizer.zero_grad()
    return seconds


def peak_memory(
    step: Callable[[], None],
    network: torch.nn.Module,
    optimizer: Optimizer,
    batch: dict[str, torch.Tensor],
    device: torch.device,
) -> tuple[int, str]:
    """Peak bytes of one warm step and the name of the counter that saw it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device), "torch.cuda.max_memory_allocated"
    held = [*network.parameters(), *network.buffers(), *batch.values(), *moments(optimizer)]
    with LiveStorage(held) as counter:
        step()
    return counter.peak, "live tensor storages"


def moments(optimizer: Optimizer) -> list[torch.Tensor]:
    """Every tensor that the optimizer keeps: AdamW's two moments and its step counts."""
    states = optimizer.state.values()
    return [value for state in states for value in state.values() if torch.is_tensor(value)]


def state_bytes(network: torch.nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Bytes of weights, gradients, moments and buffers, right after a backward pass and a step.

    `adapter` is what the PEFT method put in, told by its name prefix: trained parameters, and as
    buffers its masks and frozen values. `other` is every further trained weight: the head, or all
    of full fine-tuning. `base` is the frozen rest.
    """
    prefix = getattr(getattr(network, "base_model", None), "prefix", None)
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
    return {
        "base": storage_bytes(tensor for tensor in other if not tensor.requires_grad),
        "adapter": trained(adapter) | {"buffers": frozen},
        "other": trained(other),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, quartiles and maximum."""
    points = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    return dict(zip(("min", "q1", "median", "q3", "max"), map(float, points), strict=True))


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's as the provenance has it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return provenance()["machine"]["cpu"] or platform.machine()
