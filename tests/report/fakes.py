"""Result files as the stages write them, with made-up numbers that can be written down again."""

import dataclasses
from pathlib import Path
from typing import Any

from lorasp.bench import measure
from lorasp.claims import PAPER, claims_file
from lorasp.config import Cell, Config, cells, load_config, resolve
from lorasp.results import read_yaml, sha256_of, write_json

ROOT = Path(__file__).parents[2]
PROVENANCE = {
    "lorasp": "0.1.0",
    "git": {"commit": "c0ffee" * 6 + "c0ff", "dirty": False},
    "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    "python": "3.11.7",
    "machine": {
        "system": "Linux",
        "architecture": "x86_64",
        "cpu": "A CPU",
        "cores": 2,
        "gpus": [],
    },
}
TIMES = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00"}
PAPERS = ("base", "ft", "lora", "lora-half", "lora-sp", "lora-sp-init")
TRAINABLE = {"base": 0, "ft": 120_000, "lora": 2_400, "lora-half": 1_200, "lora-sp": 1_200}


def smoke() -> Config:
    """The shipped smoke configuration with the paper's methods alone, and without its sweeps."""
    path = ROOT / "config" / "smoke.yaml"
    config = load_config(path)
    config["sweeps"] = []
    config["experiments"] = config["experiments"][: len(read_yaml(path)["experiments"])]
    for group in (*config["experiments"], *config["profile"]["cells"]):
        group["methods"] = [name for name in group["methods"] if name in PAPERS]
    config["experiments"] = [group for group in config["experiments"] if group["methods"]]
    return config


def rename(config: Config, kind: str, old: str, new: str, **entry: Any) -> None:
    """Give a model or task of a configuration another name, and its entry more keys."""
    config[f"{kind}s"][new] = config[f"{kind}s"].pop(old) | entry
    for group in config["experiments"]:
        group[f"{kind}s"] = [new if name == old else name for name in group[f"{kind}s"]]
    for cell in config["profile"]["cells"] if kind == "model" else []:
        cell["model"] = new if cell["model"] == old else cell["model"]


def score(cell: Cell) -> float:
    """A made-up score, different for every method, recipe and seed."""
    return 20 + len(cell.task) + 3 * len(cell.method) + len(cell.recipe) + 2.0 * cell.seed


def write_run(
    config: Config,
    cell: Cell,
    value: float | None,
    trained_only: bool = False,
    diverged_at: int | None = None,
) -> None:
    """The train.json and metrics.json of one run whose headline is `value`."""
    resolved = resolve(config, cell, fitted=False)
    common = {
        "cell": dataclasses.asdict(cell),
        "config": resolved,
        "data": {cell.task: "ab" * 32},
        "provenance": PROVENANCE,
        **TIMES,
    }
    trainable = TRAINABLE.get(cell.method, 1_200)
    losses = [
        {"step": step, "epoch": step / 4, "loss": 1 / (step + cell.seed), "learning_rate": 1e-3}
        for step in (1, 2, 3, 4)
    ]
    trained = cell.method != "base"
    train = common | {
        "wall_seconds": 20.0,
        "peak_memory_bytes": 300 * 2**20,
        "parameters": {"trainable": trainable, "total": 120_000},
        "adapter_bytes": trainable * 4,
        "steps": 4 if trained else 0,
        "examples": 64,
        "tokens": 640,
        "loss": losses if trained else [],
        "final_loss": losses[-1]["loss"] if trained else None,
        "best": None,
        "status": "diverged" if diverged_at else "finished",
        "diverged_at": diverged_at,
        "processes": 1,
        "attention": "sdpa",
        "micro_batch": {"asked": 16, "used": 16, "halved": []},
        "resumed": [],
    }
    write_json(cell.folder / "train.json", train, "train")
    if trained_only:
        return
    task = resolved["task"]
    headline = task["headline"]
    other = {"value": None, "stderr": None} if diverged_at else {"value": 40.0, "stderr": 1.0}
    others = {name: other for name in task["metrics"] if name != headline}
    metrics = {headline: {"value": value, "stderr": None if value is None else 1.5}, **others}
    count = 0 if diverged_at else 32
    document = common | {
        "data": {"benchmark": "cd" * 32},
        "wall_seconds": 10.0,
        "splits": {split: {"n": count, "metrics": metrics} for split in task["evaluate"]},
        "headline": {"metric": headline, **metrics[headline], "n": count},
    }
    write_json(cell.folder / "metrics.json", document, "metrics")


def write_profile(
    config: Config, model: str, method: str, step: float, states: int, joules: float | None = None
) -> None:
    """The profile of one model and method, with an energy where it has one."""
    spread = {
        "min": step * 0.9,
        "q1": step * 0.95,
        "median": step,
        "q3": step * 1.05,
        "max": step * 2,
        "relative_iqr": 0.1,
    }
    none = {"parameters": 0, "gradients": 0, "moments": 0, "buffers": 0}
    adapter = none if method == "ft" else none | {"parameters": states}
    document = {
        "scale": config["scale"], "model": model, "method": method, "batch": 8, "length": 32,
        "config": {}, "data": {}, "provenance": PROVENANCE, **TIMES, "wall_seconds": 1.0,
        "device": {"type": "cpu", "name": "A CPU", "threads": 1},
        "load": 0.1, "warmup": 1, "repeats": 3,
        "seconds": dict.fromkeys(("step", "forward", "backward", "optimizer"), spread),
        "tokens_per_second": 256 / step, "peak_memory_bytes": 5 * 2**20,
        "peak_memory_counter": "live tensor storages", "peak_reserved_bytes": None,
        "phases": {
            phase: {"peak_bytes": peak * 2**20, "kinds": {"weights": peak * 2**20}}
            for phase, peak in (("forward", 4), ("backward", 5), ("optimizer", 3))
        },
        "simulated": {"peak_bytes": 5 * 2**20 - 2**16, "difference": -0.0125},
        "energy": {
            "joules_per_step": joules, "counter": joules and "a counter", "steps": joules and 3,
            "seconds": joules and 2.0, "because": None if joules else "no counter",
        },
        "parameters": {"trainable": states // 4, "total": 120_000},
        "states": {"base": 480_000, "adapter": adapter, "other": none | {"moments": 64}},
        "adapter_bytes": states,
    }  # fmt: skip
    path = Path("results", config["scale"], "profile", model, f"{method}.json")
    write_json(path, document, "profile")


def write_all(config: Config, skip: tuple[str, ...] = ()) -> None:
    """Every run and profile of a configuration but those whose name is in `skip`."""
    for cell in cells(config):
        if str(cell) not in skip:
            write_run(config, cell, score(cell))
    for plan in config["profile"]["cells"]:
        for method in plan["methods"]:
            states = 16 * TRAINABLE.get(method, 1_300)
            write_profile(
                config, plan["model"], method, 0.01 * (3 if method == "ft" else 1), states
            )


def write_audit(verdicts: dict[str, str], found: str = "it was computed") -> None:
    """results/audit.json with a finding for each of these claims of the paper."""
    findings = [
        {
            "paper": PAPER, "id": name, "kind": "arithmetic", "where": "somewhere", "printed": "1",
            "found": found, "verdict": verdict, "evidence": [f"first {name}", "then the rest"],
            "rows": [{"rank": 8, "share": 0.5, "head": True}, {"rank": 16, "share": None}],
        }
        for name, verdict in verdicts.items()
    ]  # fmt: skip
    document = {
        "provenance": PROVENANCE,
        "papers": {PAPER: sha256_of(claims_file(PAPER))},
        "findings": findings,
    }
    write_json(Path("results", "audit.json"), document, "audit")


def write_bench(bench: str, cases: list[dict[str, Any]], goals: dict[str, Any], **more: Any) -> Any:
    """reports/bench/<bench>.json with one check, which holds; `goals` are medians or quartiles."""
    figures = {
        name: value if isinstance(value, dict) else measure.exactly(value)
        for name, value in goals.items()
    }
    check = {"what": "the losses", "found": "1e-7 apart", "allowed": "1e-5", "met": True}
    found = measure.result(bench, f"what {bench} ran", cases, figures, [check])
    found |= {"provenance": PROVENANCE, **TIMES, "load": 0.25, **more}
    write_json(Path("reports", "bench", f"{bench}.json"), found, "bench")


def case(name: str, unit: str, peer: str | None = None, **values: list[float]) -> dict[str, Any]:
    """A case of a bench: by contestant the first quartile, the median and the third one."""
    held = {
        who: dict(zip(("q1", "median", "q3"), three, strict=True)) for who, three in values.items()
    }
    return {"case": name, "unit": unit, "values": held} | ({"peer": peer} if peer else {})


def write_benches() -> None:
    """Three of the five benches: goals met, missed and not measured, times, bytes and a rate."""
    step = case("a step", "ms", "peft", peft=[9.0, 10.0, 12.0], ours=[7.5, 8.0, 8.5])
    slow = case("dropout", "ms", "peft", peft=[9.0, 10.0, 12.0], ours=[11.0, 12.0, 15.0])
    figure = {"q1": 0.77, "median": 0.8004, "q3": 0.83}
    write_bench(
        "step", [step, slow], {"step.all-linear.peft": figure, "step.all-linear-dropout.peft": 1.2}
    )
    size = case("the file", "bytes", peft=[2e6] * 3, ours=[1_234_567.0] * 3)
    write_bench("states", [size], {"states.file.peft": 0.6173})
    rate = case("an epoch", "examples a second", trainer=[90, 100, 110], ours=[200, 250, 300])
    write_bench("glue", [rate], {"glue.speed": {"q1": 2.4, "median": 2.5, "q3": 2.6}})
