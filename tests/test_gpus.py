"""Which GPUs a job may use, and which it gets while others hold some; the driver is invented."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lorasp import gpus
from lorasp.errors import UsageError, WorkError

FOUR = {f"GPU-{letter}": [f"GPU-{letter}"] for letter in "abcd"}


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four GPUs, a folder of locks of this test's own, no scheduler, and short waits."""
    monkeypatch.setattr(gpus, "_found", lambda: FOUR)
    monkeypatch.setattr(gpus, "FOLDER", tmp_path / "locks")
    monkeypatch.setattr(gpus, "SECONDS", 0.02)
    for name in (gpus.VISIBLE, *gpus.SCHEDULERS):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, ["GPU-a", "GPU-b", "GPU-c", "GPU-d"]),
        ("", []),
        ("2,0", ["GPU-c", "GPU-a"]),
        ("GPU-d", ["GPU-d"]),
        ("1,-1,2", ["GPU-b"]),
        ("0,GPU-a,1", ["GPU-a", "GPU-b"]),
    ],
)
def test_devices_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, expected: list[str]
) -> None:
    if chosen is not None:
        monkeypatch.setenv(gpus.VISIBLE, chosen)
    assert gpus.devices() == expected and gpus.count() == len(expected)


@pytest.mark.parametrize("wrong", ["4", "GPU-e", "GPU-", "first"])
def test_a_name_that_no_gpu_has(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv(gpus.VISIBLE, wrong)
    with pytest.raises(UsageError, match=f"CUDA_VISIBLE_DEVICES names '{wrong}'; .* 0 to 3, by U"):
        gpus.devices()


def test_slices_count_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = {"GPU-a": ["MIG-1", "MIG-2"], "GPU-b": ["GPU-b"]}
    monkeypatch.setattr(gpus, "_found", lambda: cut)
    assert gpus.devices() == ["MIG-1", "MIG-2", "GPU-b"]
    monkeypatch.setenv(gpus.VISIBLE, "0,1,MIG-2")
    assert gpus.devices() == ["MIG-1", "GPU-b", "MIG-2"]


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_found", dict)
    assert gpus.count() == 0
    monkeypatch.setenv(gpus.VISIBLE, "0,1")  # as a test of a scheduler sets them
    assert gpus.devices() == ["0", "1"]


def test_a_claim_names_its_devices_to_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpus.claim(2) as names:
        assert os.environ[gpus.VISIBLE] == "GPU-a,GPU-b" == ",".join(names)
    assert gpus.VISIBLE not in os.environ
    monkeypatch.setenv(gpus.VISIBLE, "3,1")
    with gpus.claim(1):
        assert os.environ[gpus.VISIBLE] == "GPU-d"
    assert os.environ[gpus.VISIBLE] == "3,1"


def test_more_than_there_are() -> None:
    with pytest.raises(
        UsageError,
        match="5 whole GPUs are asked for and 4 may be used here; there are GPU-a, GPU-b",
    ):
        gpus.claim(5).__enter__()


def test_a_scheduler_that_assigned_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv(gpus.VISIBLE, "0,1")
    with pytest.raises(UsageError, match="3 whole GPUs are asked for and 2 may be used here"):
        gpus.claim(3).__enter__()


def test_slices_make_no_job_on_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA shows a process one slice."""
    cut = {"GPU-a": ["MIG-1", "MIG-2"], "GPU-b": ["GPU-b"]}
    monkeypatch.setattr(gpus, "_found", lambda: cut)
    with gpus.claim(1) as names:
        assert names == ["MIG-1"]
    with pytest.raises(UsageError, match="2 whole GPUs are asked for and 1 may be used here"):
        gpus.claim(2).__enter__()


HOLD = """
import sys, time
from pathlib import Path
from lorasp import gpus
folder, wanted, ready = sys.argv[1:]
gpus.FOLDER, gpus.SECONDS = Path(folder), 0.02
gpus._found = lambda: {f"GPU-{letter}": [f"GPU-{letter}"] for letter in "abcd"}
with gpus.claim(int(wanted)) as names:
    Path(ready).write_text(",".join(names))
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen, Path]]]:
    """Start a process that claims devices and keeps them; the file that tells which it got."""
    begun = []

    def start(wanted: int, name: str = "ready") -> tuple[subprocess.Popen, Path]:
        ready = tmp_path / name
        arguments = [sys.executable, "-c", HOLD, str(tmp_path / "locks"), str(wanted), str(ready)]
        all_of_them = {key: value for key, value in os.environ.items() if key != gpus.VISIBLE}
        begun.append(
            subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=all_of_them)
        )
        return begun[-1], ready

    yield start
    for process in begun:
        process.kill()
        process.wait()
        process.stderr.close()


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, "waited for a minute"
        time.sleep(0.02)


def test_what_another_process_holds_is_not_taken(holder: Callable) -> None:
    _, ready = holder(3)
    until(ready.exists)
    with gpus.claim(1) as names:
        assert names == ["GPU-d"] and ready.read_text() == "GPU-a,GPU-b,GPU-c"


def test_a_job_that_needs_several_is_not_passed_over(holder: Callable) -> None:
    """It waits with a line that says for whom; what the kernel frees is its, not a later one's."""
    with gpus.claim(3):
        several, got_several = holder(3, "several")
        line = several.stderr.readline()
        assert line.startswith("waiting for 3 free GPUs: GPU-a (process ")
        assert f"process {os.getpid()} on " in line and line.count("GPU-") == 3  # the fourth it has
        one, got_one = holder(1, "one")
        assert one.stderr.readline().startswith("waiting for 1 free GPUs: ")
        time.sleep(0.3)
        assert not got_several.exists() and not got_one.exists()
    until(got_several.exists)
    assert len(got_several.read_text().split(",")) == 3
    until(got_one.exists)
    several.kill()
    several.wait()
    with gpus.claim(3) as names:  # those of the killed one
        assert sorted(names) == sorted(got_several.read_text().split(","))


def test_a_scheduler_has_assigned_already(
    monkeypatch: pytest.MonkeyPatch, holder: Callable
) -> None:
    _, ready = holder(4)
    until(ready.exists)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv(gpus.VISIBLE, "0")
    with gpus.claim(1):
        assert os.environ[gpus.VISIBLE] == "0"


def test_a_workflow_inside_an_allocation_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv(gpus.VISIBLE, "1,2")
    with gpus.claim(1) as names:
        assert names == ["GPU-b"]


def test_the_locks_are_this_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gpus.claim(1):
        assert gpus.FOLDER.stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setattr(gpus, "FOLDER", tmp_path / "link")
    with pytest.raises(WorkError, match="belongs to somebody else"):
        gpus.claim(1).__enter__()


def test_nothing_is_imported_to_count() -> None:
    program = "import sys; from lorasp import gpus; gpus.count(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
