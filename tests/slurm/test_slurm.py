"""The slurm profile on a real SLURM: `tests/slurm/cluster pytest tests/slurm`."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lorasp.bench.pipeline import copy_checkout
from lorasp.config import Cell
from lorasp.results import read_json, write_json

pytestmark = pytest.mark.skipif(
    "LORASP_CLUSTER" not in os.environ, reason="needs the SLURM that `make test-slurm` starts"
)
ROOT = Path(__file__).parents[2]
Job = dict[str, str]

# Tiny runs; those of LoRA-SP are long enough to be cancelled on their way, and to overlap.
STEPS = 800
SHORT = """\
extends: smoke.yaml
scale: cluster
recipes:
  stated: {learning_rate: 2.0e-5, epochs: 200, batch_size: 16, weight_decay: 0.0,
    warmup_ratio: 0.0, schedule: linear, select: last}
experiments:
  - {models: [roberta-tiny], tasks: [mrpc], methods: [lora-sp], recipes: [stated], seeds: [0, 1, 2]}
  - {models: [roberta-tiny], tasks: [mrpc], methods: [lora], recipes: [tuned], seeds: [0]}
"""

# The shipped profile as it is, on a cluster without accounting, and without long waits.
SNAKEMAKE = [
    *(sys.executable, "-m", "snakemake", "--workflow-profile", "slurm"),
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2"),
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    copy_checkout(ROOT, folder)
    (folder / "config/cluster.yaml").write_text(SHORT)
    return folder


def run(
    checkout: Path, *arguments: str, meanwhile: Callable[[], None] = lambda: None
) -> tuple[int, str]:
    """Exit code and words of snakemake on the login node, which has no GPU and no hub."""
    told = checkout / "told.txt"
    with told.open("w") as file:
        process = subprocess.Popen(
            [*SNAKEMAKE, *arguments],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            meanwhile()
            time.sleep(0.1)
    return process.returncode, told.read_text()


def jobs(told: str) -> list[Job]:
    """What SLURM knows of the jobs whose submission snakemake told, in order."""
    shown = subprocess.check_output(
        ["scontrol", "--oneliner", "--details", "show", "job"], text=True
    )
    known = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in shown.splitlines()]
    submitted = re.findall(r"with SLURM jobid (\d+)", told)
    return [job for job in known if job["JobId"] in submitted]


def of(rule: str, found: list[Job], *names: str) -> list[Job]:
    wanted = [job for job in found if job["Comment"].startswith(f"rule_{rule}_")]
    return [job for job in wanted if all(name in job["Comment"] for name in names)]


def minutes(job: Job) -> int:
    days, _, clock = job["TimeLimit"].rpartition("-")
    hours, minute, _ = clock.split(":")
    return int(days or 0) * 24 * 60 + int(hours) * 60 + int(minute)


def folder(method: str, recipe: str, seed: int) -> Path:
    return Cell("cluster", "roberta-tiny", "mrpc", method, recipe, seed).folder


def in_plan(checkout: Path, scale: str, **names: str) -> dict[str, Any]:
    plan = read_json(checkout / f"results/{scale}/plan.json", "plan")
    (job,) = [job for job in plan["jobs"] if names.items() <= job.items()]
    return job


TRAIN = {"stage": "train", "method": "lora-sp", "recipe": "stated"}


@pytest.fixture(scope="module")
def cancelled(checkout: Path) -> list[Job]:
    """The jobs of one run, whose training has been cancelled two seconds after its begin."""
    log = checkout / folder("lora-sp", "stated", 0) / "log.txt"
    stopped: list[str] = []

    def cancel() -> None:
        begun = log.exists() and f" 0/{STEPS} " in log.read_text()
        if begun and not stopped and time.time() - log.stat().st_mtime > 2:
            shown = subprocess.check_output(
                ["squeue", "--noheader", "--format", "%A %k"], text=True
            )
            stopped.extend(re.findall(r"(\d+) rule_train_", shown))
            subprocess.run(["scancel", *stopped], check=True)

    target = str(folder("lora-sp", "stated", 0) / "metrics.json")
    code, told = run(checkout, "--config", "scale=cluster", "--", target, meanwhile=cancel)
    assert code == 0 and len(stopped) == 1, told[-3000:]
    read_json(checkout / target, "metrics")
    return jobs(told)


def test_what_was_cancelled_goes_on_from_its_checkpoint(
    checkout: Path, cancelled: list[Job]
) -> None:
    result = read_json(checkout / folder("lora-sp", "stated", 0) / "train.json", "train")
    (step,) = result["resumed"]
    assert 0 < step < STEPS


def test_a_cancelled_job_is_retried_with_more(checkout: Path, cancelled: list[Job]) -> None:
    first, second = of("train", cancelled)
    assert (first["JobState"], second["JobState"]) == ("CANCELLED", "COMPLETED")
    asked = in_plan(checkout, "cluster", **TRAIN)
    memory = -(-asked["host_memory_bytes"] // 10**6)
    assert first["MinMemoryNode"] == f"{memory}M"
    assert minutes(first) == asked["runtime_minutes"]
    assert second["MinMemoryNode"] == f"{memory * 3 // 2}M"
    assert minutes(second) == asked["runtime_minutes"] * 3 // 2


def test_other_jobs_ask_for_their_own(checkout: Path, cancelled: list[Job]) -> None:
    asked = in_plan(checkout, "cluster", **{**TRAIN, "stage": "evaluate"})
    (evaluate,) = of("evaluate", cancelled)
    assert minutes(evaluate) == asked["runtime_minutes"]
    prepared = of("prepare", cancelled)
    assert len(prepared) == 3  # the data, the model, the tokens
    assert {(job["MinMemoryNode"], minutes(job)) for job in prepared} == {("8000M", 120)}


def test_jobs_without_a_gpu_stay_off_the_partition_of_gpus(cancelled: list[Job]) -> None:
    assert {job["Partition"] for job in cancelled} == {"main"}
    assert not any("gpu" in job.get("TresPerJob", "") for job in cancelled)


def devices() -> Iterator[tuple[str, str]]:
    """Job and CUDA_VISIBLE_DEVICES of each `lorasp train` that runs on the node."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text().split("\0")
            variables = (process / "environ").read_text().split("\0")
        except OSError:  # it has just ended
            continue
        if command[1:4] == ["-m", "lorasp", "train"]:
            found = dict(variable.partition("=")[::2] for variable in variables)
            yield found["SLURM_JOB_ID"], found.get("CUDA_VISIBLE_DEVICES", "none")


@pytest.fixture(scope="module")
def planned(checkout: Path, cancelled: list[Job]) -> tuple[list[Job], dict[str, str]]:
    """The jobs and devices of a run by another plan: a GPU for LoRA-SP, too little for LoRA."""
    file = checkout / "results/cluster/plan.json"
    plan = json.loads(file.read_text())
    for job in plan["jobs"]:
        if job["stage"] == "train":
            few = job["method"] == "lora"
            job.update({"host_memory_bytes": 500 * 10**6} if few else {"gpus": 1})
    write_json(file, {key: plan[key] for key in plan if key not in ("schema", "kind")}, "plan")
    runs = [("lora-sp", "stated", 1), ("lora-sp", "stated", 2), ("lora", "tuned", 0)]
    seen: dict[str, str] = {}
    targets = [str(folder(*names) / "train.json") for names in runs]
    asked = ["--config", "scale=cluster", "--", *targets]
    code, told = run(checkout, *asked, meanwhile=lambda: seen.update(devices()))
    assert code == 0, told[-3000:]
    return jobs(told), seen


def test_gpu_jobs_get_a_device_each(planned: tuple[list[Job], dict[str, str]]) -> None:
    found, seen = planned
    gpu = of("train", found, "lora-sp")
    assert [job["TresPerJob"] for job in gpu] == ["gres:gpu:1"] * 2
    assert {job["Partition"] for job in gpu} == {"gpu"}
    assert max(job["StartTime"] for job in gpu) < min(job["EndTime"] for job in gpu)  # at once
    assert sorted(seen[job["JobId"]] for job in gpu) == ["0", "1"]


def test_a_job_over_its_memory_gets_more(planned: tuple[list[Job], dict[str, str]]) -> None:
    *killed, last = of("train", planned[0], "mrpc_lora_tuned")
    assert killed and last["JobState"] == "COMPLETED"
    assert {job["JobState"] for job in killed} <= {"OUT_OF_MEMORY", "CANCELLED", "FAILED"}
    asked = [int(job["MinMemoryNode"].rstrip("M")) for job in [*killed, last]]
    assert asked == [500, 750, 1000, 1250][: len(asked)]


PART = """\
extends: paper.yaml
scale: part
experiments:
  - {models: [roberta-base], tasks: [mrpc], methods: [lora-sp], recipes: [stated], seeds: [0]}
"""
TARGET = "results/part/roberta-base/mrpc/lora-sp/stated/seed-0/metrics.json"


def test_a_login_node_without_a_gpu_plans_the_paper(checkout: Path) -> None:
    (checkout / "config/part.yaml").write_text(PART)
    part = ["--config", "scale=part"]
    code, told = run(checkout, "--dry-run", *part, "--", TARGET)
    assert code == 0, told[-3000:]

    code, told = run(checkout, *part, "--", TARGET)
    assert code == 1 and "--config gpu=" in told and not jobs(told), told[-3000:]

    named = ["--retries", "0", *part, "gpu=h100-80gb", "--", TARGET]
    code, told = run(checkout, *named)
    assert code == 1  # there is no hub; the jobs that would ask it are submitted
    submitted = jobs(told)
    assert len(of("prepare", submitted)) == len(submitted) == 2, told[-3000:]
    assert {job["Partition"] for job in submitted} == {"main"}

    asked = in_plan(checkout, "part", **TRAIN)
    code, told = run(checkout, "--dry-run", *named)
    (resources,) = re.findall(
        r"^rule train:\n(?:    .*\n)*?    resources: (.*)", told, re.MULTILINE
    )
    assert {
        f"gpu={asked['gpus']}",
        f"runtime={asked['runtime_minutes']}",
        f"micro_batch={asked['micro_batch']}",
    } <= set(resources.split(", "))
