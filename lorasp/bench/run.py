"""Run a bench by its name, or all in turn: `lorasp bench all --out reports/bench`."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorasp.bench import BENCHES
from lorasp.errors import WorkError


def run(name: str, rounds: int | None, cores: int) -> dict[str, Any]:
    """What a bench has found, and when, under which load; `rounds` None is the bench's own number.

    What it prints goes to stderr: the answer alone is for stdout.
    """
    started, load = datetime.now(UTC), os.getloadavg()[0]
    with contextlib.redirect_stdout(sys.stderr):
        module = importlib.import_module(f"lorasp.bench.{name}")
        found = module.bench(rounds or module.ROUNDS, cores)
    return {
        **found,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": round(load, 2),
    }


def refuse_broken(found: dict[str, Any], out: Path | None = None) -> None:
    """Raise WorkError where a check of equality is broken: the times then mean nothing."""
    broken = [check for check in found["checks"] if not check["met"]]
    if broken:
        told = "; ".join(f"{c['what']}: {c['found']} (allowed: {c['allowed']})" for c in broken)
        kept = f"; {out} is left as it was" if out else ""
        raise WorkError(
            f"the times of bench {found['bench']} mean nothing, because what it compares is not "
            f"the same work: {told}{kept}"
        )


def run_all(rounds: int | None, cores: int, as_json: bool, folder: Path | None) -> None:
    """Every bench, each in a process of its own, and its answer in folder/NAME.json.

    No bench then inherits another's imports, threads or memory, and one that fails keeps no other
    from being measured. Raises WorkError with the names of those that failed.
    """
    answers, failed = [], []
    for name in BENCHES:
        command = [sys.executable, "-m", "lorasp", "bench", name, f"--cores={cores}"]
        command += [f"--rounds={rounds}"] if rounds else []
        command += [f"--out={folder / f'{name}.json'}"] if folder else []
        if not as_json:
            print(f"\n{name}", flush=True)
        done = subprocess.run(
            [*command, *(["--json"] if as_json else [])],
            stdout=subprocess.PIPE if as_json else None,
            text=True,
        )
        if done.returncode:
            failed.append(name)
        if as_json and done.stdout:
            answers.append(json.loads(done.stdout))
    if as_json:
        print(json.dumps(answers, indent=1))
    if failed:
        raise WorkError(f"these benches failed, as told above: {', '.join(failed)}")
