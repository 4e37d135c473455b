"""A written plan as the workflow reads it: whether it still holds, and one job's resources."""

import functools
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from lorasp.config import Config, stage_code
from lorasp.errors import UsageError, WorkError
from lorasp.planning import devices
from lorasp.planning.workload import all_cells, unsized
from lorasp.profiling.cells import CODE, libraries
from lorasp.results import fingerprint, read_json

KEYS = ("stage", "model", "task", "method", "recipe")
STAGES = ("train", "evaluate", "profile")
NAMED = 6  # groups of jobs in a sentence; the plan lists them all
Names = dict[str, Any]


def made_from(config: Config) -> str:
    """A fingerprint of the configuration, the code and the packages that a plan comes from."""
    code = stage_code("planning", *CODE)
    return fingerprint({"config": config, "code": code, "libraries": libraries()})


def is_current(path: str, config: Config, gpu: str | None) -> bool:
    """Whether there is a plan of the whole configuration, by this code, for this GPU.

    That is the GPU that is named, else the one here by its name and memory; on a machine without
    one any will do. A plan that left out a model is old once its size is known. Raises UsageError
    for a name that is in no table.
    """
    try:
        plan = read_json(Path(path), "plan")
    except WorkError:
        return False
    whole = not plan["only"] and set(plan["unsized"]) <= set(unsized(config))
    return whole and plan["made_from"] == made_from(config) and _is_for(plan["gpu"], config, gpu)


def _is_for(planned: Names, config: Config, gpu: str | None) -> bool:
    if config["runtime"]["device"] == "cpu":
        return gpu in (None, planned["name"])
    wanted = devices.listed(gpu) if gpu else devices.here()
    return wanted is None or all(planned[key] == wanted[key] for key in ("name", "memory_bytes"))


def prepare(
    config_file: str,
    config: Config,
    gpu: str | None,
    needed: list[Names],
    most: int | None = None,
) -> str | None:
    """Make the plan of a scale if there is none that holds; the sentence that forbids a start.

    `needed` names the jobs about to run, as `resources` does. Without any that a plan speaks of,
    nothing is made; where no model's size is known yet, there is no plan and jobs get the default.
    `most` is how many GPUs there are for a job, None on a cluster.
    """
    wanted = [names for names in needed if names["stage"] in STAGES]
    if not wanted:
        return None
    path = Path("results", config["scale"], "plan.json")
    try:
        current = is_current(str(path), config, gpu)
    except UsageError as error:
        return str(error)
    if not current:
        if {run.model for run in all_cells(config)} <= set(unsized(config)):
            path.unlink(missing_ok=True)  # or jobs would ask for what an old one says
            return None
        if failure := _make(path, config_file, gpu):
            return failure
    return refusal(read_json(path, "plan"), wanted, most)


def _make(path: Path, config_file: str, gpu: str | None) -> str | None:
    """Write the plan in a process of its own; the sentence with which the command failed."""
    log = path.parent / "logs" / "plan.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"making {path}, minutes at most; its progress: {log}", file=sys.stderr)
    command = [sys.executable, "-m", "lorasp", "plan", "--config", config_file, "--out", str(path)]
    with log.open("w") as file:
        chosen = ["--gpu", gpu] if gpu else []
        done = subprocess.run([*command, *chosen], stdout=file, stderr=subprocess.STDOUT)
    if done.returncode == 0:
        return None
    told = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    why = told[-1].removeprefix("error: ") if told else f"exit code {done.returncode}, see {log}"
    return f"the plan of {config_file} cannot be made, and nothing was started: {why}"


def refusal(plan: Names, needed: list[Names], most: int | None = None) -> str | None:
    """Why these jobs cannot start: some fit nowhere or need more GPUs than `most`; None if none.

    The sentence names the jobs and what helps.
    """
    jobs = _by_names(plan)
    planned = [job for names in needed if (job := jobs.get(_key(names))) is not None]
    gpu = plan["gpu"]
    on_cpu = gpu["name"] == "cpu"
    limit = math.inf if most is None or on_cpu else most
    large = [job for job in planned if job["gpus"] > limit or not job["fits"]]
    if not large:
        return None
    groups = Counter(
        # of the others the reason says what their memory holds, and nothing of its size
        (
            job["stage"],
            job["model"],
            job["method"],
            job["because"] if job["stage"] == "train" else "",
        )
        for job in large
    )
    told = [
        f"{stage} {model} {method} ({count} {'job' if count == 1 else 'jobs'}"
        + (f": {why})" if why else ")")
        for (stage, model, method, why), count in groups.most_common(NAMED)
    ]
    if len(groups) > NAMED:
        told.append(f"and {len(groups) - NAMED} more that the plan lists")
    helps = ["more memory" if on_cpu else "a GPU type with more memory (--config gpu=TYPE)"]
    several = max((job["gpus"] for job in large if job["fits"]), default=0)
    if several:
        helps.insert(0, f"a machine, or a cluster's nodes, with {several} of these GPUs")
    if any(job["stage"] != "evaluate" for job in large):
        helps.append("recompute or quantize in the method's settings")
    if any(job["stage"] == "evaluate" for job in large):
        helps.append("a smaller runtime.eval_batch_size")
    if without := _without(planned, large):
        helps.append(f"leaving them out: {without}")
    size = f"{gpu['name']} ({gpu['memory_bytes'] / devices.GIB:.1f} GiB)"
    found = f"{most} x {size} is too little" if several else f"{size} is too small"
    return (
        f"{found} for {len(large)} of the jobs, and nothing was started: {', '.join(told)}; "
        f"what helps: {'; '.join(helps)}"
    )


def _without(planned: list[Names], large: list[Names]) -> str:
    """The filters that keep the other jobs: of models without large ones, and of the methods that
    are small on each of the other models."""
    models = {job["model"] for job in large}
    methods = {job["method"] for job in large}
    kept = sorted({job["model"] for job in planned} - models)
    small = sorted({job["method"] for job in planned if job["model"] in models} - methods)
    filters = [",".join(kept)] if kept else []
    if small:
        filters.append(",".join([*sorted(models), *small]))
    return ", then ".join(f"--config only={names}" for names in filters)


def resources(path: str, default: dict[str, int], **names: Any) -> dict[str, int]:
    """What a job asks of a scheduler: gpu, mem_mb, runtime in minutes, micro_batch.

    `names` are the job's stage, model, task, method and recipe. A job that the plan does not have,
    and one without any plan, gets the `default`. micro_batch is 0 where nothing is trained.
    """
    try:
        found = _jobs(path, os.stat(path).st_mtime_ns).get(_key(names))
    except (OSError, WorkError):  # none, or one of another version, which the next start replaces
        return default
    if found is None:
        return default
    return {
        "gpu": found["gpus"],
        "mem_mb": math.ceil(found["host_memory_bytes"] / 10**6),
        "runtime": found["runtime_minutes"],
        "micro_batch": found["micro_batch"] or 0,
    }


def _key(names: Names) -> tuple[Any, ...]:
    return tuple(names.get(key) for key in KEYS)


def _by_names(plan: Names) -> dict[tuple[Any, ...], Names]:
    return {_key(job): job for job in plan["jobs"]}


@functools.cache
def _jobs(path: str, changed: int) -> dict[tuple[Any, ...], Names]:
    """The jobs of the file by `KEYS`, as of its time of change."""
    return _by_names(read_json(Path(path), "plan"))
