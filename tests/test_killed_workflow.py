"""The whole workflow, killed with SIGKILL at twenty random moments, ends as one left in peace."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from lorasp.bench.pipeline import copy_checkout
from lorasp.config import cells, load_config
from lorasp.results import read_json

ROOT = Path(__file__).parents[1]
KILLS = 20
# Of one task every method that trains in a way of its own, by both recipes; long enough that a
# kill often lands in training, with a checkpoint after every step.
OVERLAY = {
    "extends": "smoke.yaml",
    "scale": "killed",
    "runtime": {"checkpoint_minutes": 1e-9},
    "recipes": {"stated": {"epochs": 6}, "tuned": {"epochs": 5}},
    "claims": ["lora_sp_2024"],
    "experiments": [
        {
            "models": ["roberta-tiny"],
            "tasks": ["mrpc"],
            "methods": ["ft", "lora-sp"],
            "recipes": ["stated", "tuned"],
            "seeds": [0],
        }
    ],
    "profile": {"cells": []},
}
OWN = ("started", "finished", "wall_seconds", "peak_memory_bytes", "provenance", "resumed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a small grid of runs, and nothing to simulate."""
    first = tmp_path / "checkout"
    first.mkdir()
    copy_checkout(ROOT, first)
    (first / "config" / "killed.yaml").write_text(yaml.safe_dump(OVERLAY))
    simulated = yaml.safe_load((first / "config" / "simulated.yaml").read_text())
    simulated["simulate"] = []
    (first / "config" / "simulated.yaml").write_text(yaml.safe_dump(simulated))
    return first


def launch(folder: Path) -> subprocess.Popen:
    """The workflow in a process group of its own, with a server for its jobs."""
    snakemake = ["snakemake", "--cores", "2", "--scheduler", "greedy", "--config", "scale=killed"]
    with (folder / "workflow.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "lorasp", "serve", "--", sys.executable, "-m", *snakemake],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def descendants(process: int) -> list[int]:
    """A process and all that it has started, and they in turn."""
    found = [process]
    for listed in Path(f"/proc/{process}/task").glob("*/children"):  # each thread has its own
        with contextlib.suppress(OSError):
            for child in listed.read_text().split():
                found += descendants(int(child))
    return found


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to a workflow with all its processes, which were stopped first: none gets away."""
    found: list[int] = []
    while (now := descendants(process.pid)) != found:
        found = now
        for one in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGSTOP)
    for one in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    process.wait()


def outcome(folder: Path) -> dict[str, object]:
    """What every run of the grid has left, times and machines aside; weights to the bit."""
    found: dict[str, object] = {}
    for cell in cells(load_config(folder / "config" / "killed.yaml")):
        place = folder / cell.folder
        for kind in ("train", "metrics"):
            document = read_json(place / f"{kind}.json", kind)
            kept = {key: value for key, value in document.items() if key not in OWN}
            found[f"{cell} {kind}"] = json.dumps(kept, sort_keys=True)
        (weights,) = (place / "adapter").glob("*.safetensors")
        tensors = load_file(weights)
        found[f"{cell} weights"] = {n: t.numpy().tobytes() for n, t in sorted(tensors.items())}
        assert not (place / ".checkpoints").exists()
    return found


@pytest.mark.slow
def test_twenty_kills_change_nothing(checkout: Path, tmp_path: Path) -> None:
    draw, kills, rounds = random.Random(0), 0, 0
    landed: set[str] = set()
    whole = tmp_path / "whole"
    shutil.copytree(checkout, whole, symlinks=True)
    began = time.monotonic()
    assert launch(whole).wait() == 0, (whole / "workflow.log").read_text()[-3000:]
    usual = time.monotonic() - began
    while kills < KILLS:
        folder, code = tmp_path / f"round-{rounds}", None
        shutil.copytree(checkout, folder, symlinks=True)
        while code is None:
            workflow = launch(folder)
            try:
                code = workflow.wait(draw.uniform(0.15, 0.75) * usual)
            except subprocess.TimeoutExpired:
                landed |= running(workflow.pid)
                kill(workflow)
                kills += 1
        assert code == 0, (folder / "workflow.log").read_text()[-3000:]
        assert outcome(folder) == outcome(whole)
        assert (folder / "reports/killed/report.html").exists()
        rounds += 1
    print(f"{kills} kills in {rounds} rounds, while at work: {', '.join(sorted(landed))}")
    assert landed >= {"prepare", "train", "evaluate"}


def running(process: int) -> set[str]:
    """The stages that jobs of a workflow are at: its shells' `python -m lorasp STAGE …`."""
    stages = set()
    for one in descendants(process):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{one}/cmdline").read_text().split("\0")
            if "lorasp" in words and "serve" not in words:
                stages.add(words[words.index("lorasp") + 1])
    return stages
