"""Names and a command that the tests of the image share."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMAGE = "localhost/lorasp-test"
BASE = "localhost/lorasp-test-base"


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints; the test fails with its words where it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout.strip()
