"""`lorasp bench pipeline`: its arithmetic, on runs that are written down, and its refusals."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lorasp.bench import pipeline
from lorasp.errors import UsageError
from lorasp.results import first_error


def planted(folder: Path, slower: float = 1.0) -> Path:
    """The plan, two trainings and a simulation; snakemake has recorded all but the plan."""
    jobs = [("plan", 4.0), ("train", 10.0), ("train", 14.0), ("simulate", 20.0)]
    lines = [
        {"command": command, "wall": 99.0, "user": user * slower, "system": 7.0}
        for command, user in jobs
    ]
    for name in ("smoke/m/seed-0/train.tsv", "smoke/m/seed-1/train.tsv", "simulated/m/lora.tsv"):
        (folder / "results" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "results" / name).write_text("s\n1.0\n")
    (folder / "times.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def values(found: dict[str, Any], case: str, name: str) -> float:
    (chosen,) = (entry for entry in found["cases"] if entry["case"] == case)
    return float(chosen["values"][name]["median"])


def test_overhead_is_what_the_cores_did_besides_the_work(tmp_path: Path) -> None:
    run = pipeline.read_run(planted(tmp_path), seconds=30.0)
    found = pipeline.judged([run], cores=2)
    goals = {goal["goal"]: (goal["median"], goal["met"]) for goal in found["goals"]}
    # 48 s of work on two cores take 24 of the 30 seconds
    assert goals["pipeline.overhead"] == (pytest.approx(0.2), True)
    assert goals["pipeline.minutes"] == (0.5, True)
    assert values(found, "the whole run", "make smoke") == 30
    assert values(found, "the whole run", pipeline.PEER) == 24
    assert values(found, "work by stage", "train") == 24
    assert {
        name: values(found, "jobs by stage", name) for name in ("plan", "train", "simulate")
    } == {
        "plan": 1,
        "train": 2,
        "simulate": 1,
    }
    assert all(check["met"] for check in found["checks"])
    moments = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00"}
    document = {"schema": 1, "kind": "bench", **found, **moments, "load": 0.0}
    assert first_error(document, "bench") is None


def test_the_share_is_that_of_each_run(tmp_path: Path) -> None:
    runs = [
        pipeline.read_run(planted(tmp_path / str(slower), slower), seconds)
        for slower, seconds in ((1.0, 30.0), (1.5, 90.0), (1.0, 96.0))
    ]
    found = pipeline.judged(runs, cores=2)
    # 0.2, 0.6 and 0.75 of them
    (overhead,) = (goal for goal in found["goals"] if goal["goal"] == "pipeline.overhead")
    assert (overhead["median"], overhead["met"]) == (pytest.approx(0.6), False)


def test_a_job_that_told_nothing_breaks_the_check(tmp_path: Path) -> None:
    folder = planted(tmp_path)
    lines = (folder / "times.jsonl").read_text().splitlines(keepends=True)
    (folder / "times.jsonl").write_text("".join(lines[:-1]))
    (check,) = pipeline.judged([pipeline.read_run(folder, 30.0)], cores=2)["checks"]
    assert not check["met"] and check["found"].startswith("3 of 4")


def test_it_runs_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="in a checkout of lorasp; here is no Makefile"):
        pipeline.bench(1, 2)


def test_it_needs_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no make"):
        pipeline.run_smoke(tmp_path, 2)


def test_make_smoke_is_what_runs(tmp_path: Path) -> None:
    """Of this interpreter's environment, on the cores asked for, without making a new one."""
    (tmp_path / "Makefile").write_text((Path(__file__).parents[2] / "Makefile").read_text())
    # no requirements.lock here, from which an environment would be made
    done = pipeline.run_smoke(tmp_path, 3, "--dry-run")
    bin = Path(sys.executable).parent
    assert f"{bin}/lorasp serve -- {bin}/snakemake --cores 3 " in done.stdout
    assert " --config scale=smoke\n" in done.stdout
    assert done.returncode == 0 and "-m venv" not in done.stdout
