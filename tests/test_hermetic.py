"""After `prepare` nothing needs a network: every stage runs where there is none at all.

The whole smoke run of test_workflow.py is made so too.
"""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from offline import require_offline

ROOT = Path(__file__).parents[1]
RUN = ["--model", "roberta-tiny", "--task", "mrpc", "--method", "lora-sp"]
RUN += ["--recipe", "stated", "--seed", "0"]
# The stages in one process, which imports torch once; the first that fails ends it.
STAGES = """
import sys
from lorasp.cli import main
for line in sys.stdin.read().splitlines():
    if code := main(line.split()):
        sys.exit(code)
"""


def run(within: tuple[str, ...], folder: Path, *lines: list[str]) -> None:
    """Run commands of lorasp in a folder, with the hub's clients free to try the network."""
    free = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [*within, sys.executable, "-c", STAGES],
        cwd=folder,
        env={**free, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf")},
        input="\n".join(" ".join([*line, "--config", "config/smoke.yaml"]) for line in lines),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_every_stage_after_prepare_runs_without_a_network(tmp_path: Path) -> None:
    within = require_offline()
    shutil.copytree(ROOT / "config", tmp_path / "config")
    run(
        (),
        tmp_path,
        ["prepare", "--dataset", "mrpc"],
        ["prepare", "--model", "roberta-tiny"],
        ["prepare", "--model", "roberta-tiny", "--task", "mrpc"],
    )
    run(
        within,
        tmp_path,
        ["train", *RUN],
        ["evaluate", *RUN],
        ["profile", "--model", "roberta-tiny", "--method", "lora-sp"],
        ["report"],
    )
    results = tmp_path / "results/smoke"
    assert (results / "roberta-tiny/mrpc/lora-sp/stated/seed-0/metrics.json").is_file()
    assert (results / "profile/roberta-tiny/lora-sp.json").is_file()
    assert (tmp_path / "reports/smoke/report.html").is_file()


@pytest.mark.parametrize("cut", [False, True])
def test_the_network_is_truly_cut_off(cut: bool) -> None:
    """The control: a server that answers outside is out of reach inside."""
    within = require_offline() if cut else ()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reach = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=5)"
        done = subprocess.run([*within, sys.executable, "-c", reach], capture_output=True)
    assert (done.returncode == 0) != cut
    assert (b"Network is unreachable" in done.stderr) == cut
