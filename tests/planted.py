"""Files of simulated steps with planted numbers, as `lorasp simulate --planned` writes them."""

from pathlib import Path
from typing import Any

from lorasp.results import write_json

GIB, MIB = 2**30, 2**20
FAMILIES = {"ft": "full", "lora": "LORA", "lora-half": "LORA"}
LABELS = {"ft": "FT", "lora": "LoRA", "lora-half": "LoRA, r/2", "lora-sp": "LoRA-SP"}


def step(
    peak: int = 15 * GIB,
    states: int = 128 * MIB,
    activations: int = 2 * GIB,
    backward: int = 7 * 10**12,
    total: int = 7 * 10**9,
    **axes: Any,
) -> dict[str, Any]:
    """A step whose states are a quarter gradients, and half moments; it peaks going backward."""
    gradients = {"gradients": states // 4}
    weights = peak - activations - states // 2
    rest = {"weights": weights, "optimizer": states // 2}
    at_peak = rest | {"activations": activations}
    return {
        "batch": 1, "length": 512, "quantize": "none", "recompute": "none", "weights": "bf16",
        "precision": "bf16", "peak_bytes": peak,
        "phases": {
            "forward": {"peak_bytes": sum(rest.values()), "kinds": rest},
            "backward": {"peak_bytes": peak, "kinds": at_peak},
            "optimizer": {"peak_bytes": peak - activations, "kinds": rest | gradients},
        },
        "rest": rest, "kept": {"activations": activations}, "flops": backward * 2,
        "flops_by_phase": {"forward": backward, "backward": backward, "optimizer": 0},
        "parameters": {"trainable": states // 16, "total": total},
    } | axes  # fmt: skip


def plant(model: str, method: str, *cells: dict[str, Any], **settings: Any) -> None:
    """results/simulated/<model>/<method>.json under the working directory."""
    content = {
        "model": model, "method": method, "label": LABELS.get(method, method),
        "family": FAMILIES.get(method, "LORA_SP"), "settings": settings, "provenance": {},
        "cells": list(cells or [step()]),
    }  # fmt: skip
    write_json(Path("results/simulated", model, f"{method}.json"), content, "simulation")


def plant_all() -> None:
    """Two models with a step for every table and figure of the report."""
    for model in ("roberta-base", "llama-7b"):
        for method in ("ft", "lora", "lora-half"):
            plant(model, method, step(), step(recompute="full", peak=9 * GIB))
        plant(model, "lora-sp-rank", selection="rank")
        depth = step(activations=GIB, backward=35 * 10**11)
        plant(model, "lora-sp-depth", depth, step(batch=4), step(length=2048), selection="depth")
        longer = [step(batch=n, peak=(14 + n) * GIB) for n in (2, 4)]
        plant(model, "lora-sp", step(), step(quantize="nf4", peak=6 * GIB), *longer)
