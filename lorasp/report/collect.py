"""Read every result file of a scale into tables of plain values; a run without one is 'not run'."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pandas as pd

from lorasp.budgets import holds
from lorasp.config import Cell, Config, cells, decisive, parse_cell, resolve
from lorasp.errors import WorkError
from lorasp.results import fingerprint, read_json

RUN = ["model", "task", "method", "recipe"]
DONE, TRAINED, NOT_RUN = "done", "trained, not evaluated", "not run"
OUTDATED = "outdated"  # made with another configuration
DIVERGED = "diverged"  # its loss became no number: it has no weights, and no score


@dataclasses.dataclass(frozen=True)
class Results:
    """All that the result files of a scale say, one table for each kind of fact.

    runs: one row for each planned run, with its status, cost and provenance.
    scores: one row for each run, split and metric; value is NaN where the metric is undefined.
    summary: one row for each (model, task, method, recipe, metric): seeds, mean, sd.
    losses: one row for each logged training loss.  profiles: one row for each planned profile.
    unplanned: result files that the configuration does not name, left out of all else.
    """

    runs: pd.DataFrame
    scores: pd.DataFrame
    summary: pd.DataFrame
    losses: pd.DataFrame
    profiles: pd.DataFrame
    unplanned: list[str]


def collect(config: Config, root: Path | None = None) -> Results:
    """Read results/<scale>, or the folder `root` in its place.

    Raises WorkError where a file is damaged, naming it.
    """
    root = root or Path("results", config["scale"])
    planned = cells(config)
    read = [_read_run(config, cell, root) for cell in planned]
    runs = pd.DataFrame([run for run, _, _ in read])
    score_columns = [*RUN, "seed", "split", "metric", "value", "stderr", "n", "headline"]
    scores = pd.DataFrame([row for _, rows, _ in read for row in rows], columns=score_columns)
    # undefined metrics are null in JSON and NaN here; without a result there is no type to infer
    scores = scores.astype({"headline": bool, "value": float, "stderr": float})
    loss_columns = [*RUN, "seed", "step", "epoch", "loss", "learning_rate"]
    losses = pd.DataFrame([row for _, _, rows in read for row in rows], columns=loss_columns)
    sources = [model["source"] for model in config["models"].values()]
    made = [parse_cell(config, entry["cell"]) for entry in sources if entry["kind"] == "run"]
    folders = {_folder(cell, root) for cell in (*planned, *made)}
    found = root.glob("*/*/*/*/seed-*/metrics.json")
    unplanned = sorted(str(file) for file in found if file.parent not in folders)
    profiles = pd.DataFrame(_read_profiles(config, root), columns=PROFILE)
    return Results(runs, scores, summarise(runs, scores), losses, profiles, unplanned)


def anchor(*names: object) -> str:
    """A name for a place in the page: lower-case letters, digits and hyphens."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-") for name in names)


def _folder(cell: Cell, root: Path) -> Path:
    """The folder of a run when `root` takes the place of results/<scale>."""
    return root / cell.folder.relative_to(Path("results", cell.scale))


def _read_run(
    config: Config, cell: Cell, root: Path
) -> tuple[dict[str, Any], list[Any], list[Any]]:
    names = {key: getattr(cell, key) for key in (*RUN, "seed")}
    fitted = holds(config, cell.model, cell.method, root)
    resolved, folder = resolve(config, cell, fitted=fitted, root=root), _folder(cell, root)
    run: dict[str, Any] = {
        **names,
        "status": NOT_RUN,
        "metric": resolved["task"]["headline"],
        "folder": str(folder),
        "anchor": anchor("runs", *(names[key] for key in RUN)),
        "same_config": True,
    }
    scores: list[dict[str, Any]] = []
    losses: list[dict[str, Any]] = []
    seconds = 0.0
    train, metrics = _read_files(folder)
    if train:
        seconds += train["wall_seconds"]
        status = DIVERGED if train["status"] == "diverged" else TRAINED
        run |= {"train_seconds": train["wall_seconds"], "steps": train["steps"]}
        run |= {"started": train["started"]}
        run |= {key: train[key] for key in ("peak_memory_bytes", "adapter_bytes", "final_loss")}
        run |= train["parameters"] | _origin(train, resolved, "train")
        run["status"] = status if run["same_config"] else OUTDATED
        losses = [names | point for point in train["loss"]]
    if metrics:
        headline = metrics["headline"]
        seconds += metrics["wall_seconds"]
        run |= {key: headline[key] for key in ("metric", "value", "stderr", "n")}
        run |= {"evaluate_seconds": metrics["wall_seconds"]}
        run["status"] = DIVERGED if run["status"] == DIVERGED else DONE
        origin = _origin(metrics, resolved, "evaluate")
        origin["data"] = run.get("data", {}) | origin["data"]
        origin["same_config"] &= run["same_config"]
        origin["started"] = run.get("started", origin["started"])
        run |= origin
        if not run["same_config"]:  # shown with the runs, and in no mean
            return run | {"status": OUTDATED, "wall_seconds": seconds}, [], losses
        for split, entry in metrics["splits"].items():
            for metric, score in entry["metrics"].items():
                row = {"split": split, "metric": metric, "n": entry["n"], "headline": False}
                scores.append(names | row | {key: score.get(key) for key in ("value", "stderr")})
        overall = {key: headline[key] for key in ("metric", "value", "stderr", "n")}
        scores.append(names | overall | {"split": "all", "headline": True})
    return run | {"wall_seconds": seconds}, scores, losses


def _read_files(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """train.json and metrics.json of one training; a run may be trained anew while it is read."""
    while True:
        before = _bytes(folder / "train.json")
        train, metrics = (_if_there(folder / f"{kind}.json", kind) for kind in ("train", "metrics"))
        # not there before and after, it may have come and gone in between
        if before == _bytes(folder / "train.json") and (before is None) == (train is None):
            return train, metrics


def _if_there(path: Path, kind: str) -> dict[str, Any] | None:
    try:
        return read_json(path, kind)
    except WorkError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _origin(result: dict[str, Any], resolved: Config, stage: str) -> dict[str, Any]:
    """Where a result came from, in words short enough for a table."""
    made = result["provenance"]
    git, machine = made.get("git", {}), made.get("machine", {})
    return {
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "machine": ", ".join(sorted(set(machine.get("gpus", [])))) or machine.get("cpu"),
        "cores": machine.get("cores"),
        "versions": {"python": made.get("python"), **made.get("versions", {})},
        "data": {name: digest[:12] for name, digest in sorted(result["data"].items())},
        "config": fingerprint(result["config"])[:12],
        "same_config": decisive(stage, result["config"]) == decisive(stage, resolved),
        "started": result["started"],
        "finished": result["finished"],
    }


def per_seed(results: Results) -> pd.DataFrame:
    """One row for each run and metric over the whole task: [*RUN, seed, metric, value, headline].

    `value`, on a scale of 0 to 100, is NaN where the metric is undefined.
    """
    return _each(results.scores)[[*RUN, "seed", "metric", "value", "headline"]]


def _each(scores: pd.DataFrame) -> pd.DataFrame:
    """The headline of each run as its evaluation wrote it; its other metrics over their splits."""
    heads = scores[scores["headline"]]
    others = scores[~scores["headline"]]
    averaged = others.groupby([*RUN, "seed", "metric"], sort=False)["value"].mean(skipna=False)
    each = pd.concat([heads, averaged.reset_index().assign(headline=False)], ignore_index=True)
    columns = [*RUN, "seed", "metric", "value", "stderr", "headline"]
    # the headline comes first, so it stays
    return each.drop_duplicates([*RUN, "seed", "metric"])[columns].astype({"headline": bool})


def summarise(runs: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Seeds, mean and standard deviation of every metric of every (model, task, method, recipe).

    A metric with several splits is the mean over them; the headline is the one that the evaluation
    wrote. `sd` divides by the number of seeds less one, and is NaN for a single seed. `planned`
    counts the seeds in the configuration, `done` those with a value, `undefined` those whose metric
    has none. `stderr` is the evaluation's own, averaged over the seeds; only the headline has one.
    """
    planned = runs.groupby(RUN, sort=False).size().rename("planned").reset_index()
    each = _each(scores)
    rows = []
    for key, group in each.groupby([*RUN, "metric"], sort=False):
        values = group["value"].dropna()
        rows.append(
            dict(zip([*RUN, "metric"], key, strict=True))
            | {
                "done": len(values),
                "undefined": len(group) - len(values),
                "mean": values.mean(),
                "sd": values.std(ddof=1),
                "stderr": group["stderr"].mean(),
                "values": values.tolist(),
            }
        )
    columns = [*RUN, "metric", "done", "undefined", "mean", "sd", "stderr", "values"]
    return planned.merge(pd.DataFrame(rows, columns=columns), on=RUN, how="left").fillna(
        {"done": 0, "undefined": 0}
    )


PROFILE = [
    "model", "method", "status", "batch", "length", "device", "threads", "step", "q1", "q3",
    "forward", "backward", "optimizer", "tokens_per_second", "joules", "energy_counter",
    "peak_memory", "counter", "reserved", "forward_peak", "backward_peak", "optimizer_peak",
    "simulated_peak", "difference", "trainable", "total", "base", "adapter_states", "states",
    "adapter_bytes", "started",
]  # fmt: skip


def _read_profiles(config: Config, root: Path) -> list[dict[str, Any]]:
    """One row for each planned profile: seconds, bytes and counts, or the status 'not run'."""
    rows = []
    for plan in config["profile"]["cells"]:
        for method in plan["methods"]:
            row = {"model": plan["model"], "method": method, "status": NOT_RUN}
            row |= {"batch": plan["batch"], "length": plan["length"]}
            profile = _if_there(root / "profile" / plan["model"] / f"{method}.json", "profile")
            rows.append(row | _read_profile(profile) if profile else row)
    return rows


def _read_profile(profile: dict[str, Any]) -> dict[str, Any]:
    seconds, states = profile["seconds"], profile["states"]
    adapter = sum(states["adapter"].values())
    return {
        "status": DONE,
        "batch": profile["batch"],
        "length": profile["length"],
        "device": profile["device"]["name"],
        "threads": profile["device"]["threads"],
        "step": seconds["step"]["median"],
        "q1": seconds["step"]["q1"],
        "q3": seconds["step"]["q3"],
        **{phase: seconds[phase]["median"] for phase in ("forward", "backward", "optimizer")},
        "tokens_per_second": profile["tokens_per_second"],
        "joules": profile["energy"]["joules_per_step"],
        "energy_counter": profile["energy"]["counter"],
        "peak_memory": profile["peak_memory_bytes"],
        "counter": profile["peak_memory_counter"],
        "reserved": profile["peak_reserved_bytes"],
        **{f"{phase}_peak": peak["peak_bytes"] for phase, peak in profile["phases"].items()},
        "simulated_peak": profile["simulated"]["peak_bytes"],
        "difference": profile["simulated"]["difference"],
        **profile["parameters"],
        "base": states["base"],
        "adapter_states": adapter,
        "states": adapter + sum(states["other"].values()),
        "adapter_bytes": profile["adapter_bytes"],
        "started": profile["started"],
    }
