"""Estimate beside actual: what a plan said of each run, and what the runs took."""

from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from lorasp.config import Cell, Config, cells
from lorasp.results import read_json

Row = dict[str, Any]


def estimates(config: Config, root: Path | None = None) -> list[Row]:
    """A row for each planned (model, task, method, recipe) that has trained runs.

    `root` is the folder that holds `results/` (default: here). Keys: model, task, method, recipe;
    seeds, the finished runs; planned_seconds and actual_seconds of training a run, their mean;
    ratio, actual over planned; planned_memory and actual_memory in bytes, None on a CPU, where a
    run knows the resident set of its process alone and not its tensors. No plan: no rows.
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
        if (root / run.folder / "train.json").is_file():
            finished[_names(run)].append(read_json(root / run.folder / "train.json", "train"))
    return [
        dict(zip(keys, names, strict=True)) | _compared(jobs[names], runs)
        for names, runs in sorted(finished.items())
        if names in jobs
    ]


def _names(run: Cell) -> tuple[str, ...]:
    return run.model, run.task, run.method, run.recipe


def _compared(job: Row, runs: list[Row]) -> Row:
    actual = mean(run["wall_seconds"] for run in runs)
    on_gpu = all(run["config"]["runtime"]["device"] == "cuda" for run in runs)
    return {
        "seeds": len(runs),
        "planned_seconds": job["seconds"],
        "actual_seconds": actual,
        "ratio": actual / job["seconds"],
        "planned_memory": job["memory_bytes"] if on_gpu else None,
        "actual_memory": max(run["peak_memory_bytes"] for run in runs) if on_gpu else None,
    }
