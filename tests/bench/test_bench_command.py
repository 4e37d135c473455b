"""`lorasp bench`: what it prints, writes and refuses, on benches that measure nothing."""

import json
import subprocess
import sys
import types
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lorasp.bench import BENCHES, measure, run
from lorasp.cli import main
from lorasp.errors import WorkError
from lorasp.results import read_json

FIGURES = {  # by bench, one on the wrong side of its bound
    "step": {"step.depth.limit": 0.99},
    "states": {"states.file.peft": 0.5},
    "mmlu": {"mmlu.speed": 5.0},
    "glue": {"glue.speed": 2.5},
    "pipeline": {"pipeline.minutes": 3.0},
}


class Bench(types.ModuleType):
    """A bench that counts on what it was called, and talks meanwhile."""

    ROUNDS = 7

    def __init__(self, name: str) -> None:
        super().__init__(f"lorasp.bench.{name}")
        self.bench_name, self.calls, self.equal = name, list[tuple[int, int]](), True

    def bench(self, rounds: int, cores: int) -> dict[str, Any]:
        self.calls.append((rounds, cores))
        print("a library says something")
        figures = {goal: measure.exactly(value) for goal, value in FIGURES[self.bench_name].items()}
        check = {"what": "the losses", "found": "0.1 apart", "allowed": "none", "met": self.equal}
        case = {"case": "c", "unit": "ms", "values": {"ours": measure.exactly(1)}}
        return measure.result(self.bench_name, f"{self.bench_name} toy", [case], figures, [check])


@pytest.fixture(autouse=True)
def benches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Bench]:
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    made = {name: Bench(name) for name in BENCHES}
    for bench in made.values():
        monkeypatch.setitem(sys.modules, bench.__name__, bench)
    return made


def told(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    (sentence,) = (line for line in shown.err.splitlines() if line.startswith("error: "))
    return sentence.removeprefix("error: ")


@pytest.mark.parametrize("name", BENCHES)
def test_json_is_all_that_goes_to_stdout(
    name: str, benches: dict[str, Bench], capsys: pytest.CaptureFixture[str]
) -> None:
    """A goal that is not met is told, and no error."""
    assert main(["bench", name, "--json", "--out", f"here/{name}.json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert "a library says something" in shown.err
    assert found["goals"][0]["met"] is (name != "step")
    assert benches[name].calls == [(7, 2)]  # its own number of rounds, and two cores
    kept = read_json(Path("here", f"{name}.json"), "bench")
    assert {key: kept[key] for key in found} == found
    began, ended = (datetime.fromisoformat(found[key]) for key in ("started", "finished"))
    assert began.utcoffset() == timedelta(0) and began <= ended and found["load"] >= 0


def test_the_answer_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "--rounds", "3", "--cores", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("step toy\n") and "NOT MET   0.990, goal at most 0.78" in shown
    assert "holds   the losses: 0.1 apart (allowed: none)" in shown


def test_rounds_and_cores_reach_the_bench(benches: dict[str, Bench]) -> None:
    assert main(["bench", "mmlu", "--rounds", "1", "--cores", "4"]) == 0
    assert benches["mmlu"].calls == [(1, 4)]


def test_other_work_is_no_measurement(
    benches: dict[str, Bench], capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer is shown, for it says what differs; the file of a good one stays."""
    Path("kept.json").write_text("{}")
    benches["glue"].equal = False
    assert main(["bench", "glue", "--out", "kept.json"]) == 1
    shown = capsys.readouterr()
    assert "BROKEN  the losses: 0.1 apart (allowed: none)" in shown.out
    assert shown.err.splitlines()[-1] == (
        "error: the times of bench glue mean nothing, because what it compares is not the same "
        "work: the losses: 0.1 apart (allowed: none); kept.json is left as it was"
    )
    assert Path("kept.json").read_text() == "{}"
    assert main(["bench", "glue", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["checks"][0]["met"] is False


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["step", "--rounds", "0"], "--rounds is 0; allowed is a whole number from 1"),
        (["all", "--rounds", "-2"], "--rounds is -2; allowed is a whole number from 1"),
        (["step", "--cores", "0"], "--cores is 0; allowed is a whole number from 1"),
        (["step", "--out", "folder"], "--out folder is a folder; name a file, such as folder/step"),
        (["all", "--out", "file"], "--out file is a file; name the folder of all answers"),
    ],
)
def test_what_is_refused_before_anything_runs(
    benches: dict[str, Bench],
    capsys: pytest.CaptureFixture[str],
    line: list[str],
    message: str,
) -> None:
    Path("folder").mkdir()
    Path("file").touch()
    assert main(["bench", *line]) == 2
    assert message in told(capsys)
    assert not any(bench.calls for bench in benches.values())


def test_an_unknown_bench(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed"]) == 2
    assert "invalid choice: 'speed' (choose from 'step', 'states'" in capsys.readouterr().err


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """`bench all` starts processes; here each runs in this one, where the benches are toys."""
    started: list[list[str]] = []

    def start(command: list[str], stdout: int | None, text: bool) -> Any:
        assert command[:3] == [sys.executable, "-m", "lorasp"] and text
        started.append(command[3:])
        before = capsys.readouterr().out
        code = main(command[3:])
        answer = capsys.readouterr().out
        if stdout != subprocess.PIPE:
            before += answer
        sys.stdout.write(before)
        return subprocess.CompletedProcess(command, code, answer)

    monkeypatch.setattr(run.subprocess, "run", start)
    return started


def test_all_are_run_one_after_the_other(
    here: list[list[str]], benches: dict[str, Bench], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "all", "--rounds", "3", "--cores", "1", "--out", "found"]) == 0
    assert [line[1] for line in here] == list(BENCHES)
    assert all(bench.calls == [(3, 1)] for bench in benches.values())
    names = {file.name for file in Path("found").iterdir()}
    assert names == {f"{name}.json" for name in BENCHES}
    assert all(read_json(Path("found", f"{n}.json"), "bench")["bench"] == n for n in BENCHES)
    shown = capsys.readouterr().out
    assert [shown.index(f"\n{name}\n{name} toy\n") for name in BENCHES]


def test_all_as_json_is_one_list(
    here: list[list[str]], benches: dict[str, Bench], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "all", "--json"]) == 0
    assert [found["bench"] for found in json.loads(capsys.readouterr().out)] == list(BENCHES)
    assert all(bench.calls == [(7, 2)] for bench in benches.values())
    assert list(Path().iterdir()) == []


def test_one_that_fails_keeps_no_other_from_being_measured(
    here: list[list[str]],
    benches: dict[str, Bench],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(rounds: int, cores: int) -> dict[str, Any]:
        raise WorkError("no room")

    monkeypatch.setattr(benches["mmlu"], "bench", fail)
    benches["step"].equal = False
    assert main(["bench", "all", "--json", "--out", "found"]) == 1
    shown = capsys.readouterr()
    assert [found["bench"] for found in json.loads(shown.out)] == [
        "step", "states", "glue", "pipeline"
    ]  # fmt: skip
    names = {file.stem for file in Path("found").iterdir()}
    assert names == {"states", "glue", "pipeline"}
    last = shown.err.splitlines()[-1]
    assert last == "error: these benches failed, as told above: step, mmlu"
