"""Snakemake takes the profiles; the one for Kubernetes runs jobs, here with a stand-in kubectl."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake.cli import parse_args

from lorasp.bench.pipeline import copy_checkout
from lorasp.results import read_json

ROOT = Path(__file__).parents[1]
PROFILES = sorted(folder.parent.name for folder in ROOT.glob("workflow/profiles/*/config.yaml"))

# Keeps each manifest and runs its command in the background; the first pod fails in the end.
KUBECTL = """\
#!{python}
import pathlib, subprocess, sys, yaml
pods = pathlib.Path({pods!r})
verb, name = sys.argv[1], pathlib.PurePath(sys.argv[2]).name
if verb == "create":
    number = len(list(pods.glob("*.yaml")))
    text = sys.stdin.read()
    (pods / f"{{number}}.yaml").write_text(text)
    container = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"][0]
    code = "$?" if number else "1"
    subprocess.Popen(
        ["bash", "-c", f'"$@" > /dev/null 2>&1; echo {{code}} > {{pods}}/{{number}}.code', "pod"]
        + container["command"],
        cwd=container["workingDir"],
        stdout=subprocess.DEVNULL,
    )
    print(f"job.batch/{{number}}")
elif verb == "get":
    code = pods / f"{{name}}.code"
    ended = code.exists() and code.read_text().strip()
    print(name, {{"": "", "0": "Complete"}}.get(ended or "", "Failed"))
"""


def test_a_pod_passes_sigterm_on_and_waits(tmp_path: Path) -> None:
    job = tmp_path / "job"
    job.write_text(
        "trap 'sleep 0.5; echo saved > saved; exit 7' TERM\ntouch begun\n"
        "for _ in $(seq 600); do sleep 0.1; done\n"
    )
    script = ROOT / "workflow/profiles/kubernetes/pod"
    # a group of its own, as a container has
    pod = subprocess.Popen([script, job], cwd=tmp_path, start_new_session=True)
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    pod.terminate()
    assert pod.wait(60) == 7
    assert (tmp_path / "saved").read_text() == "saved\n"
    job.write_text("exit 3")
    assert subprocess.run([script, job], cwd=tmp_path).returncode == 3


@pytest.mark.parametrize("name", PROFILES)
def test_snakemake_takes_the_profile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, asked = parse_args(["--cores", "1", "--workflow-profile", name])
    written = yaml.safe_load((ROOT / "workflow/profiles" / name / "config.yaml").read_text())
    assert asked.executor == written.get("executor")
    assert asked.nolock and asked.rerun_incomplete and asked.keep_going


def test_no_cluster_profile_limits_gpus_to_those_of_one_machine() -> None:
    for name in ("slurm", "kubernetes"):
        text = (ROOT / "workflow/profiles" / name / "config.yaml").read_text()
        assert "resources" not in yaml.safe_load(text)


def test_resources_grow_with_each_attempt(tmp_path: Path) -> None:
    copy_checkout(ROOT, tmp_path)
    folder = "results/smoke/roberta-tiny/mrpc/lora-sp/stated/seed-0"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    only = ["--config", "config/smoke.yaml", "--only", "roberta-tiny,mrpc,lora-sp,stated"]
    subprocess.run(
        [sys.executable, "-m", "lorasp", "plan", *only, "--out", "results/smoke/plan.json"],
        cwd=tmp_path, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    plan = read_json(tmp_path / "results/smoke/plan.json", "plan")
    (job,) = [job for job in plan["jobs"] if job["stage"] == "train"]

    def asked(attempt: int) -> dict[str, str]:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run"),
                *("--attempt", str(attempt), "--config", "scale=smoke", "--"),
                f"{folder}/train.json",
            ],
            cwd=tmp_path, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        train = done.stdout.split("rule train:")[1]
        (line,) = [line for line in train.splitlines() if "resources:" in line][:1]
        return dict(pair.split("=", 1) for pair in line.split("resources: ")[1].split(", "))

    memory = -(-job["host_memory_bytes"] // 10**6)
    for attempt, factor in [(1, 1), (2, 1.5), (3, 2)]:
        found = asked(attempt)
        assert int(found["mem_mb"]) == int(memory * factor)
        assert int(found["runtime"]) == int(job["runtime_minutes"] * factor)
        assert int(found["micro_batch"]) == job["micro_batch"]
        assert int(found["gpu"]) == 0


def test_kubernetes_retries_a_failed_pod_with_more(tmp_path: Path) -> None:
    checkout, pods, tools = (tmp_path / name for name in ("check out", "pods", "bin"))
    for folder in (checkout, pods, tools):
        folder.mkdir()
    copy_checkout(ROOT, checkout)
    kubectl = tools / "kubectl"
    kubectl.write_text(KUBECTL.format(python=sys.executable, pods=str(pods)))
    kubectl.chmod(0o755)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--workflow-profile", "kubernetes"),
            *("--seconds-between-status-checks", "1", "--latency-wait", "5"),
            *("--config", "scale=smoke", "--", "data/smoke/mrpc/manifest.json"),
        ],
        cwd=checkout,
        env={
            **os.environ,
            "PYTHONPATH": str(checkout),
            "PATH": os.pathsep.join(
                [str(tools), str(Path(sys.executable).parent), os.environ["PATH"]]
            ),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    read_json(checkout / "data/smoke/mrpc/manifest.json", "manifest")

    def spec(number: int) -> dict[str, Any]:
        spec: dict[str, Any] = yaml.safe_load((pods / f"{number}.yaml").read_text())["spec"]
        return spec

    first, second = spec(0), spec(1)
    assert len(list(pods.glob("*.yaml"))) == 2
    assert (first["activeDeadlineSeconds"], second["activeDeadlineSeconds"]) == (7200, 10800)
    limits = [
        spec["template"]["spec"]["containers"][0]["resources"]["limits"] for spec in (first, second)
    ]
    assert limits == [
        {"memory": "8000M", "nvidia.com/gpu": 0},
        {"memory": "12000M", "nvidia.com/gpu": 0},
    ]
