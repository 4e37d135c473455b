"""Measure real training steps of one model and method: time, tokens a second, memory, bytes.

lorasp profile --config config/smoke.yaml --model roberta-tiny --method lora-sp
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from lorasp import budgets
from lorasp.adapters.registry import apply_method, count_parameters, save_adapter
from lorasp.config import Config, data_folder, resolve_method, resolve_model
from lorasp.data.load import check_folder
from lorasp.errors import UsageError
from lorasp.models import device_of, load_model
from lorasp.profiling import schedule
from lorasp.profiling.device import device_name, energy, refuse_busy, synchronize
from lorasp.profiling.simulations import simulation
from lorasp.profiling.step import (
    Batch,
    batch_shapes,
    counted_step,
    optimizer_of,
    ready,
    state_bytes,
    training_step,
)
from lorasp.profiling.storage import PHASES
from lorasp.results import provenance, write_json


def profile_path(config: Config, model: str, method: str) -> Path:
    """Where the profile of a model and method lies."""
    return Path("results", config["scale"], "profile", model, f"{method}.json")


def resolve_profile(config: Config, model: str, method: str) -> Config:
    """What decides a profile: model, method, runtime, and the shape of the step.

    A method of fitted size is profiled with what `lorasp budget` has fitted; other steps than the
    recipe's are no matter of a profile. Raises UsageError where the configuration plans no such
    profile, or the method trains nothing, WorkError where a size is not fitted yet.
    """
    plan = config["profile"]
    planned = [entry for entry in plan["cells"] if entry["model"] == model]
    entry = next((entry for entry in planned if method in entry["methods"]), None)
    if entry is None:
        pairs = [f"{cell['model']} {name}" for cell in plan["cells"] for name in cell["methods"]]
        raise UsageError(
            f"profile.cells plans no {model} {method}; planned are {', '.join(pairs) or 'none'}"
        )
    described = resolve_method(config, method)
    if described.get("match", {}).keys() - {"time"}:
        settings = budgets.read(config, model, method)["settings"]
        described = resolve_method(config, method, settings)
    resolved = {"model": resolve_model(config, model), "method": described}
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


def simulated_beside(resolved: dict[str, Any], folder: Path, measured: int) -> dict[str, Any]:
    """The peak of the same step simulated, and its difference; else why it cannot be."""
    try:
        peak = simulation(resolved, folder)["peak_bytes"]
    except UsageError as error:
        return {"peak_bytes": None, "difference": None, "because": str(error)}
    return {"peak_bytes": peak, "difference": peak / measured - 1}


def profile_cell(config: Config, model: str, method: str) -> Path:
    """Run the training steps of a model and method that the configuration plans; write the profile.

    The simulated peak of the same step is set beside the measured one. Raises UsageError for a
    profile that is not planned, WorkError where the model is not prepared or somebody else uses
    the GPU.
    """
    resolved = resolve_profile(config, model, method)
    plan, folder = resolved["profile"], data_folder(config, "models", model)
    started, clock, load = datetime.now(UTC), time.perf_counter(), os.getloadavg()[0]
    manifest = check_folder(folder)
    device = device_of(resolved)
    refuse_busy(device)
    _tell_load(load, device)
    torch.set_num_threads(resolved["runtime"]["threads"])
    network = ready(apply_method(load_model(resolved, folder), resolved), resolved)
    optimizer = optimizer_of(network, resolved, fused=device.type == "cuda")
    batch = random_batch(network, resolved, device)
    measured = measured_steps(network, optimizer, batch, resolved, device)
    with tempfile.TemporaryDirectory() as scratch:
        adapter_bytes = save_adapter(network, Path(scratch))
    simulated = simulated_beside(resolved, folder, measured["peak_memory_bytes"])
    tokens = plan["batch"] * plan["length"]
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
        "load": load,
        **measured,
        "tokens_per_second": tokens / measured["seconds"]["step"]["median"],
        "simulated": simulated,
        "parameters": count_parameters(network),
        "adapter_bytes": adapter_bytes,
    }
    path = profile_path(config, model, method)
    write_json(path, result, "profile")
    print(as_line(result), file=sys.stderr)
    return path


def measured_steps(
    network: Any, optimizer: Optimizer, batch: Batch, resolved: Config, device: torch.device
) -> dict[str, Any]:
    """Seconds, memory, energy and states of warm training steps, each as `train` takes it.

    The timed steps run without any counter; memory and energy are measured in steps of their own.
    Where a method does something between the steps of a run, each kind of them is measured: times
    are the mean over the run that `schedule` lays down, the peak is that of the kind that takes
    most, energy and states are those of the most frequent kind, and `run` tells the kinds apart.
    """
    plan = resolved["profile"]
    schedule.begin(network, optimizer)
    kinds = schedule.by_kind(network)
    step = partial(training_step, network, optimizer, batch, resolved)

    def take(number: int | None) -> None:
        step(number=number)
        optimizer.zero_grad()

    def prepare(number: int | None) -> None:
        if number is not None and (before := schedule.leading_to(network, number)) is not None:
            take(before)

    # the first step allocates the optimizer's moments
    for number in range(1, max(1, plan["warmup"]) + 1):
        take(None if kinds == schedule.PLAIN else number)
    seconds: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in ("step", *PHASES)} for kind in kinds
    }
    for kind, number in schedule.chosen(kinds, plan["repeats"]):
        prepare(number)
        timed = timed_steps(partial(step, number=number), optimizer, 1, device)
        for name, values in timed.items():
            seconds[kind][name] += values
    common = kinds[max(kinds, key=lambda kind: len(kinds[kind]))]
    prepare(common[0])
    numbers = cycle(common[: plan["repeats"]])
    joules = energy(lambda: take(next(numbers)), device, plan["repeats"])
    refuse_busy(device, own=1)
    memory = {}
    for kind, steps in kinds.items():
        number = steps[len(steps) // 2]
        prepare(number)
        if device.type == "cuda":
            memory[kind] = allocated(partial(step, number=number), device)
            optimizer.zero_grad()
        else:
            memory[kind] = counted(counted_step(network, optimizer, batch, resolved, number))
    middle = common[len(common) // 2]
    prepare(middle)
    step(number=middle)
    states = state_bytes(network, optimizer)
    optimizer.zero_grad()
    if "allocating" in kinds:  # an adapter is saved as the last allocation leaves it
        prepare(kinds["allocating"][-1])
        take(kinds["allocating"][-1])
    spreads = {
        kind: {name: spread(values) for name, values in found.items()}
        for kind, found in seconds.items()
    }
    return {
        "seconds": {
            name: schedule.mean_over_run(
                kinds, {kind: found[name] for kind, found in spreads.items()}
            )
            for name in ("step", *PHASES)
        },
        **max(memory.values(), key=lambda found: found["peak_memory_bytes"]),
        "energy": joules,
        "states": states,
        **run_of(kinds, spreads, memory),
    }


def run_of(kinds: schedule.Kinds, spreads: Any, memory: Any) -> dict[str, Any]:
    """How many steps of each kind the run has, and what one takes; {} where all are alike."""
    if kinds == schedule.PLAIN:
        return {}
    found = {
        kind: {
            "steps": len(steps),
            "seconds": spreads[kind]["step"],
            "peak_memory_bytes": memory[kind]["peak_memory_bytes"],
        }
        for kind, steps in kinds.items()
    }
    return {"run": {"steps": sum(map(len, kinds.values())), "kinds": found}}


def _simulated(found: dict[str, Any]) -> str:
    if found["peak_bytes"] is None:
        return "not simulated"
    return f"simulated {found['peak_bytes'] / 2**20:.1f} MiB ({found['difference']:+.2%})"


def _run(profile: dict[str, Any]) -> str:
    if "run" not in profile:
        return ""
    kinds = ", ".join(f"{found['steps']} {kind}" for kind, found in profile["run"]["kinds"].items())
    return f"the mean of {profile['run']['steps']} steps ({kinds}), "


def as_line(profile: dict[str, Any]) -> str:
    """The profile in a line: time, throughput, peak memory beside the simulated one, energy."""
    step, joules = profile["seconds"]["step"], profile["energy"]["joules_per_step"]
    return (
        f"{profile['model']} {profile['method']}: {step['median'] * 1e3:.1f} ms a step "
        f"(quartiles {step['q1'] * 1e3:.1f} to {step['q3'] * 1e3:.1f}), "
        f"{profile['tokens_per_second']:,.0f} tokens/s, "
        + _run(profile)
        + f"peak {profile['peak_memory_bytes'] / 2**20:.1f} MiB "
        + f"({profile['peak_memory_counter']}), "
        + _simulated(profile["simulated"])
        + ("" if joules is None else f", {joules:.3g} J a step ({profile['energy']['counter']})")
    )


def _tell_load(load: float, device: torch.device) -> None:
    cores = os.cpu_count() or 1
    if device.type == "cpu" and load > cores / 2:
        print(
            f"the load average is {load:.1f} on {cores} cores: other work may slow these steps",
            file=sys.stderr,
        )


def random_batch(network: Any, resolved: Config, device: torch.device) -> Batch:
    """Seeded random tokens and labels of `batch_shapes`, int64, without a padding token."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        name: torch.randint(classes, shape, generator=generator)
        for name, (shape, classes) in batch_shapes(network, resolved).items()
    }
    tokens, pad = batch["input_ids"], network.config.pad_token_id
    if pad is not None:
        # RoBERTa takes positions from the padding token, so a random one would be a hole
        tokens[tokens == pad] = (pad + 1) % network.config.vocab_size
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


def counted(step: dict[str, Any]) -> dict[str, Any]:
    """Peak bytes of the live tensor storages in a `counted_step`, by phase and kind."""
    return {
        "peak_memory_bytes": step["peak_bytes"],
        "peak_memory_counter": "live tensor storages",
        "peak_reserved_bytes": None,
        "phases": step["phases"],
    }


def allocated(
    step: Callable[[Callable[[str], None]], None], device: torch.device
) -> dict[str, Any]:
    """Peak bytes of one warm step on CUDA, by phase, as torch's own allocator counts them.

    `max_memory_allocated` is what it has handed out to this process: every tensor, and the
    workspaces of kernels, in blocks of 512 bytes. `max_memory_reserved` is what it holds from the
    driver for that. The CUDA context is in neither.
    """
    peaks, reserved = {}, []

    def after(phase: str) -> None:
        peaks[phase] = {"peak_bytes": torch.cuda.max_memory_allocated(device)}
        reserved.append(torch.cuda.max_memory_reserved(device))
        torch.cuda.reset_peak_memory_stats(device)

    torch.cuda.empty_cache()  # what loading the model took is no part of a step
    torch.cuda.reset_peak_memory_stats(device)
    step(after)
    return {
        "peak_memory_bytes": max(peak["peak_bytes"] for peak in peaks.values()),
        "peak_memory_counter": "torch.cuda.max_memory_allocated",
        "peak_reserved_bytes": max(reserved),
        "phases": peaks,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, quartiles and maximum; `relative_iqr` is the quartiles' distance over the median."""
    points = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    summary = dict(zip(("min", "q1", "median", "q3", "max"), map(float, points), strict=True))
    return summary | {"relative_iqr": (summary["q3"] - summary["q1"]) / summary["median"]}
