"""Runs of one task whose scores and costs are given by hand, and the advice that they make."""

from pathlib import Path
from typing import Any

import fakes
from fakes import PROVENANCE, TIMES, smoke, write_run

from lorasp.config import Config, cells
from lorasp.report.advice import advice
from lorasp.report.collect import collect
from lorasp.report.pareto import pareto_points
from lorasp.report.scopes import samples, scopes
from lorasp.report.tables import paper_tables
from lorasp.results import read_json, write_json

Plan = dict[str, dict[str, Any]]


def planted(plan: Plan, task: str = "sst2") -> Config:
    """One task; a method has `scores` by seed (None: diverged), `file`, `memory`, `time`."""
    config = smoke()
    config["scale"] = "mini"
    del config["no_result"]
    seeds = max(len(entry["scores"]) for entry in plan.values())
    group = {"models": ["roberta-tiny"], "tasks": [task], "recipes": ["stated"]}
    config["experiments"] = [group | {"methods": list(plan), "seeds": list(range(seeds))}]
    names = [name for name in plan if name != "base"]
    cell = {"model": "roberta-tiny", "methods": names, "batch": 8, "length": 32}
    config["profile"]["cells"] = [cell]
    for run in cells(config):
        entry = plan[run.method]
        if run.seed < len(entry["scores"]):
            value = entry["scores"][run.seed]
            write_run(config, run, value, diverged_at=3 if value is None else None)
            path = run.folder / "train.json"
            train = read_json(path, "train")
            train["adapter_bytes"] = entry["file"]
            train["parameters"] = {"trainable": entry["file"] // 4, "total": 10**6}
            write_json(path, train, "train")
    for name in names:
        write_profile(config, name, plan[name])
    return config


def write_profile(config: Config, method: str, entry: dict[str, Any]) -> None:
    """A profile as the stage writes it, with a time (q1 and q3 a tenth apart) and a memory."""
    fakes.write_profile(config, "roberta-tiny", method, entry["time"], 4 * entry["file"])
    path = Path("results/mini/profile/roberta-tiny", f"{method}.json")
    profile = read_json(path, "profile") | {"peak_memory_bytes": entry["memory"] * 2**20}
    write_json(path, profile | {"provenance": PROVENANCE, **TIMES}, "profile")


def told(config: Config) -> dict[str, str]:
    """The sentences of the only scope, by what stands before their colon."""
    results = collect(config)
    places = samples(config, results)
    points = pareto_points(
        config, results, places, scopes(config, places, paper_tables(config, results))
    )
    (entry,) = advice(config, results, places, points)
    assert entry["title"].startswith("roberta-tiny on ")
    return dict(sentence.split(": ", 1) for sentence in entry["sentences"])


PLAN: Plan = {
    "base": {"scores": [50.0] * 4, "file": 0},
    "ft": {"scores": [85.0, 85.2, 84.9, 85.1], "file": 4_000_000, "memory": 900, "time": 0.30},
    "lora": {"scores": [84.6, 84.9, 84.4, 84.7], "file": 80_000, "memory": 400, "time": 0.20},
    "lora-half": {"scores": [80.0, 80.3, 79.9, 80.2], "file": 40_000, "memory": 399, "time": 0.10},
    "lora-sp": {"scores": [83.0, 88.0, 81.0, 86.0], "file": 20_000, "memory": 402, "time": 0.104},
    "lora-sp-init": {"scores": [99.0, None, 99.0, 99.0], "file": 400, "memory": 1, "time": 0.01},
}
