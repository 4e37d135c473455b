"""A written plan as the workflow reads it: whether it still holds, and one job's resources."""

import functools
import math
import os
from pathlib import Path
from typing import Any

from lorasp.config import Config, stage_code
from lorasp.errors import WorkError
from lorasp.profiling.cells import CODE
from lorasp.results import fingerprint, read_json

KEYS = ("stage", "model", "task", "method", "recipe")


def made_from(config: Config) -> str:
    """A fingerprint of the configuration and the code that a plan comes from."""
    return fingerprint({"config": config, "code": stage_code("planning", *CODE)})


def is_current(path: str, config: Config, gpu: str | None) -> bool:
    """Whether there is a plan of the whole configuration, by this code, for a GPU that is named."""
    try:
        plan = read_json(Path(path), "plan")
    except WorkError:
        return False
    named = gpu in (None, plan["gpu"]["name"])
    return named and not plan["only"] and plan["made_from"] == made_from(config)


def resources(path: str, default: dict[str, int], **names: Any) -> dict[str, int]:
    """What a job asks of a scheduler: gpu, mem_mb, runtime in minutes, micro_batch.

    `names` are the job's stage, model, task, method and recipe. A job that the plan does not have,
    and one without any plan, gets the `default`. micro_batch is 0 where nothing is trained.
    """
    if not os.path.exists(path):
        return default
    found = _jobs(path, os.stat(path).st_mtime_ns).get(tuple(names.get(key) for key in KEYS))
    if found is None:
        return default
    return {
        "gpu": found["gpus"],
        "mem_mb": math.ceil(found["host_memory_bytes"] / 10**6),
        "runtime": found["runtime_minutes"],
        "micro_batch": found["micro_batch"] or 0,
    }


@functools.cache
def _jobs(path: str, changed: int) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The jobs of the file by `KEYS`, as of its time of change."""
    return {tuple(job[key] for key in KEYS): job for job in read_json(Path(path), "plan")["jobs"]}
