"""Several processes at work in one folder: whoever reads finds a whole, whoever writes waits."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import pytest

from lorasp.data import folders
from lorasp.data.folders import alone, building, forget_damaged
from lorasp.data.load import check_folder
from lorasp.locks import exclusively, holder, take
from lorasp.report.collect import _read_files
from lorasp.results import forget_results, write_json

PROCESSES = multiprocessing.get_context("fork")
SECONDS = 1.0
# The least that the schemas take, where the content does not matter.
SOURCE = {"kind": "generated", "task": "demo"}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def at_once(*works: Callable[[], Any]) -> list[int]:
    """Run every work again and again in a process of its own, for SECONDS; their exit codes."""
    start, stop = PROCESSES.Barrier(len(works) + 1), PROCESSES.Event()
    running = [PROCESSES.Process(target=_work, args=(work, start, stop)) for work in works]
    for process in running:
        process.start()
    start.wait()
    time.sleep(SECONDS)
    stop.set()
    for process in running:
        process.join()
    return [process.exitcode or 0 for process in running]


def _work(work: Callable[[], Any], start: Barrier, stop: Event) -> None:
    start.wait()
    done = 0
    while not stop.is_set() or not done:
        work()
        done += 1


def make(letter: str) -> None:
    """A prepared folder of 20 files that all hold the same letter."""
    folder = Path("data/smoke/demo")
    with alone(folder), building(folder, SOURCE, {"letter": letter}) as place:
        for number in range(20):
            (place / f"{number}.txt").write_text(letter * (100 if letter == "a" else 200))


def read() -> None:
    """The folder is always there, and of one piece."""
    manifest = check_folder(Path("data/smoke/demo"))
    assert len(manifest["files"]) == 20
    assert {entry["bytes"] for entry in manifest["files"].values()} in ({100}, {200})


def parse() -> None:
    """What every start of the workflow does: nothing here is damaged."""
    assert forget_damaged(Path("data")) == []


def test_a_prepared_folder_is_replaced_at_one_stroke() -> None:
    make("a")
    works = [lambda: make("a"), lambda: make("b"), read, read, parse]
    assert at_once(*works) == [0] * len(works)
    left = sorted(path.name for path in Path("data/smoke").iterdir())
    assert left == [".demo.lock", "demo"]
    read()


def test_a_file_system_that_cannot_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    make("a")
    make("b")
    read()
    assert sorted(path.name for path in Path("data/smoke").iterdir()) == [".demo.lock", "demo"]
    assert not list(Path("data").rglob(".replaced"))


def test_what_a_killed_process_left_is_removed() -> None:
    make("a")
    with alone(Path("data/smoke/demo")), building(Path("data/smoke/demo"), SOURCE, {}) as place:
        (place / "a.txt").write_text("a")
        shutil.copytree(place, place.with_name(".demo.killed00"))
        shutil.copytree(place, place.with_name(".demo.b.another0"))  # of the data set demo.b
    make("b")
    left = sorted(path.name for path in Path("data/smoke").iterdir())
    assert left == [".demo.b.another0", ".demo.lock", "demo"]


def test_a_folder_in_the_making_is_left_alone() -> None:
    """It looks damaged to whoever starts a workflow, and its manifest stays all the same."""
    make("a")
    Path("data/smoke/demo/3.txt").write_text("damaged")
    with alone(Path("data/smoke/demo")):
        assert forget_damaged(Path("data")) == []
        assert Path("data/smoke/demo/manifest.json").exists()
    (line,) = forget_damaged(Path("data"))
    assert "data/smoke/demo/3.txt is damaged" in line
    assert not Path("data/smoke/demo/manifest.json").exists()


def test_one_at_a_time() -> None:
    """Four processes add one to a number 50 times each, which fails unless they take turns."""
    Path("number").write_text("0")

    def add() -> None:
        for _ in range(50):
            with exclusively(Path(".lock")):
                Path("number").write_text(str(int(Path("number").read_text()) + 1))

    running = [PROCESSES.Process(target=add) for _ in range(4)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert Path("number").read_text() == "200"


def test_who_waits_says_for_whom_and_a_killed_holder_leaves_nothing() -> None:
    script = "import sys, time; from lorasp.locks import *; from pathlib import Path\n"
    hold = script + "with exclusively(Path('x')): print('held', flush=True); time.sleep(60)"
    wait = script + "with exclusively(Path('x')): print('mine')"
    command = [sys.executable, "-c"]
    with subprocess.Popen([*command, hold], stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        assert take(Path("x")) is None
        assert holder(Path("x")).startswith(f"process {first.pid} on ")
        with subprocess.Popen(
            [*command, wait], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as second:
            assert second.stderr is not None and second.stdout is not None
            told = second.stderr.readline()
            assert told.startswith(f"waiting for process {first.pid} on ") and "holds x" in told
            assert second.poll() is None
            first.kill()
            assert second.stdout.read() == "mine\n"
            assert second.wait() == 0


def result(kind: str, run: int) -> dict[str, Any]:
    """A result of a training that can be told from every other by its number."""
    return {"run": run, "filler": ["x"] * 2000}


def test_a_report_finds_both_files_of_one_training(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train, evaluate, train again … beside readers: never the metrics of another training."""
    monkeypatch.setattr("lorasp.results.first_error", lambda *_: None)
    run = Path("results/smoke/m/t/x/r/seed-0")
    count = iter(range(10**9))

    def train() -> None:
        number = next(count)
        forget_results(run)
        write_json(run / "train.json", result("train", number), "train")
        write_json(run / "metrics.json", result("metrics", number), "metrics")

    def report() -> None:
        train, metrics = _read_files(run)
        assert metrics is None or train is None or train["run"] == metrics["run"]

    assert at_once(train, report, report, report) == [0] * 4


def test_a_training_that_comes_and_goes_while_it_is_read(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its train.json is not there before and after, and still it was read, with later metrics."""
    monkeypatch.setattr("lorasp.results.first_error", lambda *_: None)
    write_json(Path("metrics.json"), result("metrics", 3), "metrics")
    looks = iter([1, 3])

    def looked_at(path: Path) -> bytes | None:
        number = next(looks, None)
        if number:
            write_json(path, result("train", number), "train")
        return None if number else path.read_bytes()

    monkeypatch.setattr("lorasp.report.collect._bytes", looked_at)
    train, metrics = _read_files(Path())
    assert train and metrics and train["run"] == metrics["run"] == 3


def test_json_is_read_whole_or_not_at_all() -> None:
    path = Path("x.json")
    path.write_text(json.dumps({"all": "a" * 10}))

    def write(letter: str, length: int) -> None:
        from lorasp.results import atomic

        with atomic(path) as temporary:
            temporary.write_text(json.dumps({"all": letter * length}))

    def load() -> None:
        found = json.loads(path.read_text())["all"]
        assert len(set(found)) == 1 and len(found) in (10, 10**5, 10**6)

    works = [lambda: write("a", 10**5), lambda: write("b", 10**6), load, load]
    assert at_once(*works) == [0] * 4
    assert os.listdir() == ["x.json"]


def test_two_at_work_see_each_other_in_a_copied_folder() -> None:
    """A lock that was copied along with a folder holds nobody up."""
    with exclusively(Path("one/.lock")):
        shutil.copytree("one", "two")
        lock = take(Path("two/.lock"))
        assert lock is not None
        lock.close()


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with exclusively(tmp_path / "lock"):
        assert holder(tmp_path / "lock").startswith(f"process {os.getpid()} on ")
    assert "cannot be locked (No locks available)" in capsys.readouterr().err
