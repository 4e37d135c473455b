"""Simulated steps: asked for one by one, kept in a cache, planned by config/simulated.yaml.

lorasp simulate --config config/simulated.yaml --model llama-7b --method lora-sp --planned
"""

import functools
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lorasp.config import OF_A_STEP, Config, data_folder, known, resolve_method, stage_code
from lorasp.errors import UsageError, WorkError
from lorasp.methods import table
from lorasp.profiling.cells import CODE, cells_of, libraries, resolve_cell
from lorasp.public_models import public_models
from lorasp.results import fingerprint, provenance, read_json, sha256_of, write_json

CACHE = Path("results/simulated/cache")
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
GIB, TERA = 2**30, 1e12


def simulation(resolved: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """What `simulate` returns: from the cache, where the same code has simulated the same step."""
    _check_length(resolved)
    question = _question(resolved, folder)
    path = CACHE / f"{fingerprint(question)[:32]}.json"
    with suppress(WorkError):  # none there, or not one that this code has written
        kept: dict[str, Any] = read_json(path, "step")["step"]
        return kept
    from lorasp.profiling.simulate import simulate  # seconds of imports

    step = simulate(resolved, folder)
    try:
        write_json(path, {"question": question, "step": step}, "step")
    except WorkError as error:
        print(f"not kept for the next time: {error}", file=sys.stderr)
    return step


def _check_length(resolved: dict[str, Any]) -> None:
    """Refuse what the real model would fail on: more tokens than a public model has positions."""
    public = public_models().get(resolved["model"]["name"], {}).get("arguments", {})
    # RoBERTa's positions begin after the padding token's
    most = public.get("max_position_embeddings", math.inf)
    most -= 2 if resolved["model"]["architecture"] == "encoder" else 0
    if resolved["profile"]["length"] > most:
        raise UsageError(
            f"length is {resolved['profile']['length']}; {resolved['model']['name']} has positions "
            f"for at most {most} tokens"
        )


def _question(resolved: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """All that decides a simulated step; names and labels do not."""
    from lorasp.models import head_labels  # seconds of imports too

    model, method = resolved["model"], resolved["method"]
    return {
        "model": sha256_of(folder / "config.json") if folder else model["name"],
        "architecture": model["architecture"],
        "targets": model["targets"],
        "labels": head_labels(resolved),
        "method": {key: method[key] for key in OF_A_STEP if key in method},
        "runtime": {
            key: resolved["runtime"].get(key) for key in ("device", "precision", "weights")
        },
        "shape": [resolved["profile"]["batch"], resolved["profile"]["length"]],
        "code": {"lorasp": _code(), **libraries()},
    }


@functools.cache
def _code() -> str:
    return stage_code(*CODE)


def ask(
    model: str,
    method: str,
    shape: tuple[int, int],
    dtype: str | None = None,
    settings: dict[str, Any] | None = None,
    config: Config | None = None,
) -> tuple[dict[str, Any], Path | None]:
    """What `simulation` needs for a step that no configuration plans.

    Args:
        model: of the configuration, or a public one; its adapters have the paper's targets.
        shape: batch and length.
        dtype: one format for everything but the adapter, which PEFT keeps in float32. By default
            what the configuration's runtime says; without one that of the paper's scale, bfloat16
            by autocast on CUDA.
        settings: of the method, over its own.

    Raises UsageError for an unknown model or method, or a model neither public nor prepared.
    """
    public = {
        name: {key: entry[key] for key in ("architecture", "targets", "weights") if key in entry}
        for name, entry in public_models().items()
    }
    models = public | (config["models"] if config else {})
    methods = config["methods"] if config else table()
    entry = {**known("model", model, models), "name": model}
    runtime = {"device": "cuda", "precision": "bf16", "weights": entry.pop("weights", "fp32")}
    if config and not dtype:
        runtime = {**config["runtime"], **entry.get("runtime", {})}
    elif dtype:
        runtime |= {"precision": "fp32", "weights": DTYPES[dtype]}
        runtime["device"] = config["runtime"]["device"] if config else "cuda"
    resolved = {
        "model": entry,
        "method": resolve_method({"methods": methods}, method, settings),
        "runtime": runtime,
        "profile": dict(zip(("batch", "length"), shape, strict=True)),
    }
    if resolved["method"]["family"] == "base":
        raise UsageError(f"method {method} trains nothing, so it has no training step")
    return resolved, None if model in public else prepared(config, model)


def prepared(config: Config | None, model: str) -> Path:
    """The folder of a prepared model that is no public one; UsageError where it is not there."""
    if config is None or not (data_folder(config, "models", model) / "config.json").exists():
        raise UsageError(
            f"model {model} is not prepared, and no public model has that name; prepare it first: "
            f"lorasp prepare --config config/<scale>.yaml --model {model}"
        )
    return data_folder(config, "models", model)


def as_text(resolved: dict[str, Any], step: dict[str, Any]) -> str:
    """The answer for a terminal: what is held in each phase, in GiB, and what is computed."""
    from lorasp.profiling.storage import KINDS, PHASES

    kinds = [kind for kind in KINDS if any(p["kinds"].get(kind) for p in step["phases"].values())]
    runtime, shape = resolved["runtime"], resolved["profile"]
    settings = " ".join(f"{k}={v}" for k, v in resolved["method"].get("settings", {}).items())
    plain = runtime["precision"] == "fp32"
    precision = ", no autocast" if plain else f", autocast {runtime['precision']}"
    lines = [
        f"{resolved['model']['name']} {resolved['method']['name']}, batch {shape['batch']} x "
        f"{shape['length']}, weights {runtime.get('weights', 'fp32')}{precision}",
        *([settings] if settings else []),
        "",
        f"{'GiB':10}{'peak':>9}" + "".join(f"{kind:>13}" for kind in kinds),
    ]
    for phase in PHASES:
        peak = step["phases"][phase]
        row = "".join(f"{peak['kinds'].get(kind, 0) / GIB:13.2f}" for kind in kinds)
        lines.append(f"{phase:10}{peak['peak_bytes'] / GIB:9.2f}{row}")
    trained, total = step["parameters"]["trainable"], step["parameters"]["total"]
    flops = step["flops_by_phase"]
    return "\n".join(
        [
            *lines,
            "",
            f"peak {step['peak_bytes'] / GIB:.2f} GiB, of which the activations kept for the "
            f"backward pass are {step['kept']['activations'] / GIB:.2f} GiB",
            f"{step['flops'] / TERA:.2f} TFLOP in matrix products and attention: "
            + ", ".join(f"{flops[phase] / TERA:.2f} {phase}" for phase in PHASES if phase in flops),
            f"{trained:,} of {total:,} parameters are trained",
        ]
    )


def simulate_cells(config: Config, model: str, method: str) -> Path:
    """Simulate the planned steps of a model and method: results/<scale>/<model>/<method>.json."""
    cells = []
    for cell in cells_of(config, model, method):
        resolved = resolve_cell(config, model, method, cell)
        runtime = resolved["runtime"]
        formats = {"weights": runtime.get("weights", "fp32"), "precision": runtime["precision"]}
        cells.append({**cell, **formats, **simulation(resolved)})
    described = resolve_method(config, method)
    path = Path("results", config["scale"], model, f"{method}.json")
    content = {
        "model": model,
        "method": method,
        **{key: described[key] for key in ("label", "family", "settings")},
        "provenance": provenance(),
        "cells": cells,
    }
    write_json(path, content, "simulation")
    return path
