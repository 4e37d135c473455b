"""Some runs of the rehearsal through the workflow: fetched beside the stand-in, run without it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from standins import ROOT

from lorasp.bench.pipeline import copy_checkout
from lorasp.config import Cell
from lorasp.results import read_json

pytestmark = pytest.mark.slow
RUN = Cell("rehearse", "llama-7b", "alpaca-mmlu", "lora-sp", "stated", 0)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout to which the data were carried over from another, and which has run without a hub.

    They were fetched beside the stand-in; the commands are those of `make rehearse`.
    """
    only = f"only={RUN.model},{RUN.task},{RUN.method},{RUN.recipe},seed-{RUN.seed}"
    line = [sys.executable, "-m", "snakemake", "--cores", "2", "--scheduler", "greedy"]
    config = ["--config", "scale=rehearse", only]

    def run(folder: Path, *command: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]

    online, offline = (tmp_path_factory.mktemp(name) for name in ("online", "offline"))
    for folder in (online, offline):
        copy_checkout(ROOT, folder)
    run(online, sys.executable, "-m", "lorasp", "rehearse", "--", *line, "prepared", *config)
    shutil.copytree(online / "data", offline / "data")
    run(offline, *line, str(RUN.folder / "metrics.json"), *config)
    return offline


def test_nothing_was_prepared_again(offline: Path) -> None:
    logs = {log.stem for log in (offline / "results/rehearse/logs").iterdir()}
    assert not {log for log in logs if log.startswith(("prepare", "tokens"))}


def test_the_run_is_the_papers_but_for_device_and_steps(offline: Path) -> None:
    train = read_json(offline / RUN.folder / "train.json", "train")
    metrics = read_json(offline / RUN.folder / "metrics.json", "metrics")
    assert train["steps"] == 2
    assert train["config"]["runtime"] | {"weights": "bf16"} == train["config"]["runtime"]
    assert train["config"]["runtime"]["device"] == "cpu"
    assert train["config"]["recipe"]["batch_size"] == 64
    assert train["config"]["method"]["settings"]["rank"] == 16
    assert metrics["splits"]["mmlu"]["n"] == 57


def test_the_plan_knows_the_size_of_what_was_fetched(offline: Path) -> None:
    plan = read_json(offline / "results/rehearse/plan.json", "plan")
    assert {job["model"] for job in plan["jobs"]} >= {"llama-7b"}
    (job,) = (
        job
        for job in plan["jobs"]
        if (job["stage"], job["model"], job["method"], job["recipe"])
        == ("train", "llama-7b", "lora-sp", "stated")
    )
    assert job["fits"] and job["gpus"] == 0
