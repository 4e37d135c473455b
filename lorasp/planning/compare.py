"""Estimate beside actual: what a plan said of each run, and what the runs took."""

from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from lorasp.config import Config, cells
from lorasp.planning.devices import match
from lorasp.results import read_json

Row = dict[str, Any]


def estimates(config: Config, root: Path | None = None) -> list[Row]:
    """A row for each planned (model, task, method, recipe) that has trained runs as planned.

    `root` is the folder that holds `results/` (default: here). A run on another device, or with
    another micro-batch, than the plan's is left out. Keys: model, task, method, recipe; seeds, the
    finished runs; planned_seconds and actual_seconds of training a run, their mean; ratio, actual
    over planned; planned_tensors and actual_tensors, bytes at the peak without the allocator's
    reserve, None on a CPU, where a run knows the resident set of its process alone. No plan: no
    rows.
    """
    root = root or Path()
    path = root / "results" / config["scale"] / "plan.json"
    if not path.is_file():
        return []
    plan = read_json(path, "plan")
    keys = ("model", "task", "method", "recipe")
    jobs = {tuple(job[key] for key in keys): job for job in plan["jobs"] if job["stage"] == "train"}
    finished: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for run in cells(config):
        names = run.model, run.task, run.method, run.recipe
        if names in jobs and (root / run.folder / "train.json").is_file():
            record = read_json(root / run.folder / "train.json", "train")
            if _as_planned(jobs[names], plan["gpu"]["name"], record):
                finished[names].append(record)
    return [
        dict(zip(keys, names, strict=True)) | _compared(jobs[names], runs)
        for names, runs in sorted(finished.items())
    ]


def _as_planned(job: Row, device: str, run: Row) -> bool:
    """Whether a run had the device and the micro-batch of its planned job."""
    micro, gpus = run["micro_batch"], run["provenance"]["machine"]["gpus"]
    on_cpu = run["config"]["runtime"]["device"] == "cpu"
    used = "cpu" if on_cpu else match(gpus[0]) or gpus[0]
    same = used == device and micro["used"] == job["micro_batch"] and job["gpus"] <= 1
    # where memory ran out on the way, part of the run was done twice
    return bool(same and not micro["halved"])


def _compared(job: Row, runs: list[Row]) -> Row:
    actual = mean(run["wall_seconds"] for run in runs)
    on_gpu = all(run["config"]["runtime"]["device"] == "cuda" for run in runs)
    return {
        "seeds": len(runs),
        "planned_seconds": job["seconds"],
        "actual_seconds": actual,
        "ratio": actual / job["seconds"],
        "planned_tensors": job["tensor_bytes"] if on_gpu else None,
        "actual_tensors": max(run["peak_memory_bytes"] for run in runs) if on_gpu else None,
    }
