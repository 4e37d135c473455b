"""One step by two processes, with DDP and with FSDP2, has the gradients of one process."""

import subprocess
import sys
from pathlib import Path

import parallel
import pytest
import torch


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_have_the_gradients_of_one(kind: str, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, str(Path(parallel.__file__)), kind, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / f"{kind}.pt")
    alone = parallel.gradients_of_a_step(parallel.small_llama(), parallel.tokens())
    assert found.keys() == alone.keys() and len(alone) == 1 + 2 * 14
    for name, expected in alone.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)
        assert expected.abs().max() > 0
