"""A small paper, configuration and results for the verdict engine, all of them plain values."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lorasp.claims.verdicts import judge
from lorasp.config import Config

RUN = ("model", "task", "method", "recipe")
Scores = dict[str, list[float | None]]


def config(scale: str = "paper", **changes: Any) -> Config:
    """Two of the paper's models and three of its tasks; at any other scale two stand-ins."""
    own = scale == "paper"
    names = ["roberta-base", "roberta-large"] if own else ["mini-base"]
    tasks = ["sst2", "mrpc", "rte"] if own else ["reviews", "pairs"]
    kind = "hub" if own else "pypi"
    models: dict[str, Any] = {name: {"source": {"kind": kind}} for name in names}
    if not own:
        models["mini-base"]["stands_for"] = "roberta-base"
    definitions = {"reviews": "sst2", "pairs": "mrpc"}
    labels = {"base": "Base", "ft": "FT", "lora": "LoRA", "lora-sp": "LoRA-SP"}
    return {
        "scale": scale,
        "models": models,
        "tasks": {t: {"definition": definitions.get(t, t), "dataset": t} for t in tasks},
        "datasets": {task: {"source": {"kind": kind}} for task in tasks},
        "methods": {name: {"label": label} for name, label in labels.items()},
        "recipes": {"stated": {}, "tuned": {}},
        "experiments": [{"models": names}],
        "verdicts": {"recipe": "stated"},
    } | changes


def relation(name: str = "claim", **changes: Any) -> dict[str, Any]:
    """LoRA-SP is not worse than LoRA on SST-2 by more than one point."""
    return {
        "id": name, "kind": "relation", "where": "section 4", "printed": "as good as LoRA",
        "left": "lora-sp", "right": "lora", "test": "noninferior", "margin": "point",
        "models": ["roberta-base"], "tasks": ["sst2"], "family": "all", "scales": ["mini", "paper"],
    } | changes  # fmt: skip


def score(name: str = "claim", value: float = 90.0, **changes: Any) -> dict[str, Any]:
    """LoRA has 90.0 % accuracy on SST-2."""
    return {
        "id": name, "kind": "score", "table": 1, "row": "LoRA", "column": "SST-2",
        "model": "roberta-base", "method": "lora", "task": "sst2", "metric": "accuracy",
        "printed": str(value), "value": value, "unit": "percent", "margin": "point",
        "family": "all", "scales": ["paper"],
    } | changes  # fmt: skip


def resource(measure: str = "peak_memory", **changes: Any) -> dict[str, Any]:
    """LoRA-SP needs a tenth less than LoRA."""
    return {
        "id": "claim", "kind": "resource", "where": "abstract", "printed": "less memory",
        "left": "lora-sp", "right": "lora", "test": "less", "measure": measure,
        "models": ["roberta-base"], "margin": "tenth", "scales": ["mini", "paper"],
    } | changes  # fmt: skip


def write_paper(folder: Path, *claims: dict[str, Any]) -> str:
    """The path of a claims file with these claims."""
    margins = {
        "point": {"value": 1.0, "unit": "points", "because": "a test"},
        "wide": {"value": 3.0, "unit": "points", "because": "a test"},
        "tenth": {"value": 0.1, "unit": "share", "because": "a test"},
        "none": {"value": 0.0, "unit": "share", "because": "a test"},
    }
    paper = {"title": "T", "authors": ["A"], "arxiv": "2401.00001", "year": 2024, "read": "none"}
    document = {
        "paper": paper,
        "margins": margins,
        "families": {"all": "all of them", "other": "others"},
        "tables": {1: {"title": "GLUE", "where": "Table 1"}},
        "claims": list(claims),
    }
    file = folder / f"paper-{len(list(folder.glob('*.yaml')))}.yaml"
    file.write_text(yaml.safe_dump(document))
    return str(file)


def frames(
    scores: Scores, planned: int | None = None, metric: str = "accuracy"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`scores` and `planned` of judge; a key is 'model task method recipe', None a missing run."""
    found, plan = [], []
    for key, values in scores.items():
        run = dict(zip(RUN, key.split(), strict=True))
        for seed in range(planned or len(values)):
            plan.append(run | {"seed": seed})
        for seed, value in enumerate(values):
            if value is not None:
                found.append(
                    run | {"seed": seed, "metric": metric, "value": value, "headline": True}
                )
    columns = [*RUN, "seed", "metric", "value", "headline"]
    return (
        pd.DataFrame(found, columns=columns).astype({"headline": bool, "value": float}),
        pd.DataFrame(plan, columns=[*RUN, "seed"]),
    )


def profiles(*rows: dict[str, Any]) -> pd.DataFrame:
    """`profiles` of judge."""
    common = {
        "model": "roberta-base", "status": "done", "batch": 8, "length": 32, "device": "A CPU",
        "threads": 1, "counter": "live tensor storages",
    }  # fmt: skip
    columns = ["model", "method", "status", "batch", "length", "device", "threads", "counter"]
    columns += ["step", "q1", "q3", "peak_memory", "adapter_states"]
    return pd.DataFrame([common | row for row in rows], columns=columns)


def verdicts(
    claims_file: str,
    config: Config,
    scores: Scores | None = None,
    audit: list[dict[str, Any]] | None = None,
    measured: pd.DataFrame | None = None,
    planned: int | None = None,
) -> dict[str, dict[str, Any]]:
    """The records of judge by the id of their claim."""
    profiled = profiles() if measured is None else measured
    records = judge(config, [claims_file], *frames(scores or {}, planned), profiled, audit)
    return {record["id"]: record for record in records}


def around(mean: float, sd: float = 0.1, seeds: int = 5) -> list[float | None]:
    """Scores with exactly that mean and standard deviation, no two of them the same."""
    steps = [seed - (seeds - 1) / 2 for seed in range(seeds)]
    size = math.sqrt(sum(step**2 for step in steps) / (seeds - 1))
    return [mean + sd * step / size for step in steps]
