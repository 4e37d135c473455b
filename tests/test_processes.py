"""Several processes that do one piece of work: they end together, whatever happens to one."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lorasp import processes
from lorasp.errors import UsageError, WorkError
from lorasp.processes import Again, Failed, Place, run


def sleep_for_ever(place: Place) -> None:
    time.sleep(600)


def only_first(act: Callable[[], None]) -> Callable[[Place], None]:
    """Rank 0 acts, and the others would sleep for ever."""

    def work(place: Place) -> None:
        if place.rank == 0:
            act()
        else:
            sleep_for_ever(place)

    return work


def test_each_has_its_place(tmp_path: Path) -> None:
    def work(place: Place) -> None:
        port = place.listener.getsockname()[1]
        (tmp_path / str(place.rank)).write_text(f"{os.getpid()} {place.size} {port}")

    run(3, work)
    told = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert len({pid for pid, _, _ in told} | {str(os.getpid())}) == 4
    assert {size for _, size, _ in told} == {"3"} and len({port for _, _, port in told}) == 1


@pytest.mark.parametrize("error", [UsageError("too many"), WorkError("no"), Again(3, (1, 2))])
def test_what_one_raises_is_raised(error: Exception) -> None:
    def act() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        run(2, only_first(act))
    assert raised.value.args == error.args


def test_other_exceptions_tell_where(monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> None:
        raise ZeroDivisionError("by accident")

    with pytest.raises(Failed, match=r"in act\n.*\n*ZeroDivisionError: by accident"):
        run(2, only_first(act))


def test_a_full_disk_is_told_with_its_file() -> None:
    def act() -> None:
        raise OSError(28, "No space left on device", "/results/adapter")

    with pytest.raises(WorkError, match=r"^No space left on device: /results/adapter$"):
        run(2, only_first(act))


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: os._exit(3), r"^process 0 of 2 ended with code 3$"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"^process 0 .* by signal 9; is the host's"),
        (lambda: os.kill(os.getpid(), signal.SIGUSR1), r"^process 0 of 2 was killed by signal 10$"),
    ],
)
def test_a_process_that_says_nothing(act: Callable[[], None], sentence: str) -> None:
    with pytest.raises(WorkError, match=sentence):
        run(2, only_first(act))


def test_one_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LOST", 0.3)

    def work(place: Place) -> None:
        if place.rank == 0:
            time.sleep(0.5)  # the other is deaf by then
            raise WorkError("ended")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sleep_for_ever(place)

    with pytest.raises(WorkError, match=r"^ended$"):
        run(2, work)


def assert_it_ends_there(work: Callable[[Place], None], folder: Path) -> None:
    """A process that a signal meets ends, and no copy of this one goes on behind the fork."""
    starter, raised = os.getpid(), None
    try:
        run(1, work)
    except BaseException as error:
        raised = error
    if os.getpid() != starter:
        (folder / "escaped").touch()
        os._exit(0)
    assert isinstance(raised, SystemExit) and not (folder / "escaped").exists()


def test_a_signal_while_a_failure_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It ends the process there: nothing behind the fork may run in it."""

    def told(error: BaseException) -> Exception:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
        return WorkError("late")

    monkeypatch.setattr(processes, "_failure", told)

    def work(place: Place) -> None:
        raise WorkError("ended")

    assert_it_ends_there(work, tmp_path)


def test_a_signal_before_the_work_has_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It comes while a process is still made ready: that process, too, ends and does not go on."""

    def make_ready(parent: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(processes, "_die_with", make_ready)
    begin = threading.Thread.start

    def begin_and_wait(thread: threading.Thread) -> None:
        begin(thread)
        time.sleep(0.5)

    monkeypatch.setattr(threading.Thread, "start", begin_and_wait)
    assert_it_ends_there(sleep_for_ever, tmp_path)


PROGRAM = """
import os, pathlib, signal, sys, time
from lorasp.processes import run
def work(place):
    def end(*_):
        time.sleep(0.5)
        pathlib.Path(f"saved-{place.rank}").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, end)
    pathlib.Path(f"ready-{place.rank}").write_text(str(os.getpid()))
    time.sleep(600)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
run(2, work)
"""


@pytest.fixture
def program(tmp_path: Path) -> subprocess.Popen:
    """A program with two processes, when both are at work."""
    begun = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=tmp_path)
    until(lambda: all((tmp_path / f"ready-{rank}").exists() for rank in range(2)))
    return begun


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, "waited for a minute"
        time.sleep(0.02)


def alive(folder: Path) -> list[int]:
    pids = [int((folder / f"ready-{rank}").read_text()) for rank in range(2)]
    states = [Path(f"/proc/{pid}/stat") for pid in pids]
    return [
        p for p, s in zip(pids, states, strict=True) if s.exists() and " Z " not in s.read_text()
    ]


def test_sigterm_ends_all_when_they_have_saved(program: subprocess.Popen, tmp_path: Path) -> None:
    program.terminate()
    time.sleep(0.2)
    program.terminate()  # some schedulers are impatient
    assert program.wait(60) == 143
    assert sorted(file.name for file in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
    assert alive(tmp_path) == []


def test_ctrl_c_ends_all_when_they_have_saved(program: subprocess.Popen, tmp_path: Path) -> None:
    program.send_signal(signal.SIGINT)
    assert program.wait(60) == 130
    assert sorted(file.name for file in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]


def test_ctrl_c_a_second_time_ends_all_at_once(tmp_path: Path) -> None:
    slow = PROGRAM.replace(
        "time.sleep(0.5)", "pathlib.Path(f'ending-{place.rank}').touch(); time.sleep(600)"
    )
    begun = subprocess.Popen([sys.executable, "-c", slow], cwd=tmp_path)
    try:
        for state in ("ready", "ending"):
            until(lambda state=state: len(list(tmp_path.glob(f"{state}-*"))) == 2)
            begun.send_signal(signal.SIGINT)
        assert begun.wait(60) == 130
    finally:
        begun.kill()
    assert alive(tmp_path) == [] and not list(tmp_path.glob("saved-*"))


def test_they_end_with_the_one_that_started_them(program: subprocess.Popen, tmp_path: Path) -> None:
    assert len(alive(tmp_path)) == 2
    program.kill()
    program.wait(60)
    until(lambda: alive(tmp_path) == [])
