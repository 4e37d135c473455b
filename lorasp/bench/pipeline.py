"""A whole smoke run against the compute in it, in a checkout: `lorasp bench pipeline --json`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lorasp.bench import measure
from lorasp.errors import UsageError, WorkError
from lorasp.serve import TIMES

ROUNDS = 1
CHECKOUT = ("Makefile", "Snakefile", "config", "envs", "lorasp", "profiles", "workflow")
PEER = "its pure compute"


class Run(NamedTuple):
    """One smoke run: seconds of wall time, what its jobs told, and snakemake's record of them."""

    seconds: float
    jobs: list[dict[str, Any]]
    recorded: int


def bench(rounds: int, cores: int) -> dict[str, Any]:
    """Time `make smoke` in a copy of the checkout without data, results or caches.

    The peer is the run's own pure compute: the time in which the same jobs would be done if all
    `cores` did nothing but their work. The work of a job is the user CPU time of its command, from
    its arguments to its exit code, as its process tells it. Starting interpreters, imports, the
    forks of the server, snakemake, the start and end of the run with fewer jobs than cores, waiting
    for files and the kernel's time for them are not in it; parsing and writing what the files hold
    is. A profile, which is timed with the machine to itself, leaves the other cores idle: overhead.

    Raises UsageError outside a checkout or without make, WorkError where a run fails.
    """
    if missing := [name for name in CHECKOUT if not Path(name).exists()]:
        raise UsageError(f"bench pipeline runs in a checkout of lorasp; here is no {missing[0]}")
    return judged([_smoke(cores) for _ in range(rounds)], cores)


def judged(runs: Sequence[Run], cores: int) -> dict[str, Any]:
    """The answer of the bench from its runs."""
    counts = [Counter(job["command"] for job in run.jobs) for run in runs]
    work = [_work(run) for run in runs]
    walls = [run.seconds for run in runs]
    pure = [sum(by.values()) / cores for by in work]
    share = [1 - part / whole for part, whole in zip(pure, walls, strict=True)]
    stages = sorted(counts[0])
    told, recorded = len(runs[0].jobs), runs[0].recorded
    cases = [
        {
            "case": "the whole run",
            "unit": "s",
            "peer": PEER,
            "values": {"make smoke": measure.quartiles(walls), PEER: measure.quartiles(pure)},
        },
        {
            "case": "work by stage",
            "unit": "s of a core",
            "values": {name: measure.quartiles([by[name] for by in work]) for name in stages},
        },
        {
            "case": "jobs by stage",
            "unit": "jobs",
            "values": {name: measure.quartiles([by[name] for by in counts]) for name in stages},
        },
    ]
    figures = {
        "pipeline.overhead": measure.quartiles(share),
        "pipeline.minutes": measure.quartiles([seconds / 60 for seconds in walls]),
    }
    # the plan is made before the first job, and snakemake has no record of it
    check = {
        "what": "jobs that told what they took, the plan besides",
        "found": f"{told} of {recorded + 1}; the same in every run: {_same(counts)}",
        "allowed": "all, the same in every run",
        "met": told == recorded + 1 and _same(counts) == "yes",
    }
    what = (
        f"the smoke scale on {cores} cores, nothing prepared, {len(runs)} runs of {told} jobs; "
        "pure compute is the user CPU time of its jobs, divided by the cores"
    )
    return measure.result("pipeline", what, cases, figures, [check])


def _work(run: Run) -> Counter[str]:
    """User CPU seconds by stage."""
    spent: Counter[str] = Counter()
    for job in run.jobs:
        spent[job["command"]] += job["user"]
    return spent


def _same(counts: Sequence[Counter[str]]) -> str:
    return "yes" if all(one == counts[0] for one in counts) else "no"


def _smoke(cores: int) -> Run:
    with tempfile.TemporaryDirectory(prefix="lorasp-bench-") as name:
        folder = Path(name)
        copy_checkout(Path(), folder)
        began = time.perf_counter()
        done = run_smoke(folder, cores)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise WorkError(f"the smoke run failed: {done.stderr[-2000:]}")
        return read_run(folder, seconds)


def read_run(folder: Path, seconds: float) -> Run:
    """What a run of `run_smoke` has left: a line of each job, and snakemake's files beside them."""
    lines = (folder / "times.jsonl").read_text().splitlines()
    recorded = sum(1 for _ in folder.glob("results/**/*.tsv"))
    return Run(seconds, [json.loads(line) for line in lines], recorded)


def copy_checkout(source: Path, target: Path) -> None:
    """What a run needs of a checkout, and nothing that another run has left."""
    for name in CHECKOUT:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, symlinks=True)
        else:
            shutil.copy(source / name, target / name)


def run_smoke(
    folder: Path, cores: int, *flags: str, within: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """`make smoke` in a folder, with this interpreter's environment in place of a new one.

    `flags` are more of make's; `within` is a command that starts it in its turn. Its output is kept
    for the caller, what its jobs took is in times.jsonl. Raises UsageError where there is no make.
    """
    if shutil.which("make") is None:
        raise UsageError("there is no make here, which starts the smoke run; install it")
    command = [*within, "make", "smoke", f"CORES={cores}", f"BIN={Path(sys.executable).parent}"]
    command += ["--old-file=.venv/.complete", *flags]
    # the copy's own code, whatever package is installed
    own = {"PYTHONPATH": str(folder.resolve()), TIMES: str(folder.resolve() / "times.jsonl")}
    environment = {**os.environ, **own}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
