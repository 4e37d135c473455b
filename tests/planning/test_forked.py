"""The processes of a plan end, though the one before them has used OpenMP's threads."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, types
import torch
from lorasp.planning import memory

torch.set_num_threads(2)
torch.ones(1024, 1024) @ torch.ones(1024, 1024)  # as a plan measures a CPU
os.cpu_count = lambda: 2
memory.answer = lambda config, question, shape, device: float(torch.ones(2048, 2048).exp().sum())
asked = [types.SimpleNamespace(model="m", method=name, length=1) for name in ("a", "b")]
print(len(memory.answers({}, asked, {"m": None}, {})))
"""


def test_a_product_before_the_fork_does_not_stop_the_plan() -> None:
    """Without one thread in each process it never ends."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "2\n", done.stderr
