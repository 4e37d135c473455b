"""Measure the suite itself: `lorasp bench pipeline --json` times whole smoke runs."""

import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from lorasp.errors import UsageError, WorkError
from lorasp.results import provenance

CHECKOUT = ("Snakefile", "config", "envs", "lorasp", "workflow")


def pipeline(repeats: int, cores: int) -> dict[str, Any]:
    """Time `make smoke` from a checkout without data or results, `repeats` times.

    Returns seconds: of each whole run, their median, and in the median run the sum of what its
    jobs took by rule, which includes what each job spends on starting up. Raises UsageError
    outside a checkout, WorkError where a run fails.
    """
    if missing := [name for name in CHECKOUT if not Path(name).exists()]:
        raise UsageError(f"bench pipeline runs in a checkout of lorasp; here is no {missing[0]}")
    runs = sorted((_smoke(cores) for _ in range(repeats)), key=lambda run: run["seconds"])
    median = runs[len(runs) // 2]
    return {
        "bench": "pipeline",
        "what": f"the smoke scale on {cores} cores, nothing prepared, {repeats} runs",
        "seconds": [run["seconds"] for run in runs],
        "median_seconds": statistics.median(run["seconds"] for run in runs),
        "jobs": median["jobs"],
        "seconds_in_jobs": median["by_rule"],
        "provenance": provenance(),
    }


def _smoke(cores: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="lorasp-bench-") as name:
        folder = Path(name)
        copy_checkout(Path(), folder)
        began = time.perf_counter()
        done = run_smoke(folder, cores)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise WorkError(f"the smoke run failed: {done.stderr[-2000:]}")
        by_rule: dict[str, float] = defaultdict(float)
        logs = list(folder.glob("results/**/*.tsv"))
        for log in logs:
            rule = log.stem if log.stem in ("train", "evaluate") else log.parts[-3]
            rule = {"smoke": "prepare and report", "simulated": "simulate"}.get(rule, rule)
            with log.open() as file:
                by_rule[rule] += sum(
                    float(row["s"]) for row in csv.DictReader(file, delimiter="\t")
                )
    rounded = {rule: round(total, 1) for rule, total in sorted(by_rule.items())}
    return {"seconds": round(seconds, 1), "jobs": len(logs), "by_rule": rounded}


def copy_checkout(source: Path, target: Path) -> None:
    """What a run needs of a checkout, and nothing that another run has left."""
    for name in CHECKOUT:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, symlinks=True)
        else:
            shutil.copy(source / name, target / name)


def run_smoke(folder: Path, cores: int) -> subprocess.CompletedProcess[str]:
    """What `make smoke` runs, in a folder; its output is kept for the caller."""
    snakemake = [sys.executable, "-m", "snakemake", "--cores", str(cores)]
    command = [sys.executable, "-m", "lorasp", "serve", "--", *snakemake, "--config", "scale=smoke"]
    # the copy's own code, whatever package is installed
    environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
