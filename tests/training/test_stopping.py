"""Runs that are told to end, or are stopped by memory, the disk or their own loss, and go on."""

import os
import resource
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import assert_same, resumed, start, wait
from runs import Run, adapter_of

from lorasp.cli import main
from lorasp.config import Cell, Config, resolve
from lorasp.errors import WorkError
from lorasp.training import checkpoints, history, train

ROOT = Path(__file__).parents[2]
RECIPE: dict[str, Any] = {"select": "best", "epochs": 2, "batch_size": 32}  # two steps an epoch
STEPS = 4


@pytest.fixture
def often(config: Config) -> None:
    """A checkpoint after every step."""
    config["runtime"]["checkpoint_minutes"] = 1e-9


def calls_first(owner: Any, name: str, turn: int, action: Callable[[], Any]) -> None:
    """Do `action` when the `turn`-th call of a function begins."""
    whole, calls = getattr(owner, name), []

    def watched(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == turn:
            action()
        return whole(*args, **kwargs)

    setattr(owner, name, watched)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def steps_in(folder: Path) -> list[int]:
    """After how many steps the checkpoints of a run were taken; all of them are whole."""
    found = checkpoints.checkpoints_of(folder / ".checkpoints")
    assert all(checkpoints.is_sealed(one) for one in found)
    return [checkpoints.steps_of(one) for one in found]


@pytest.mark.parametrize(
    ("name", "turn", "micro", "kept"),
    [
        ("training_step", 1, 32, [1]),
        ("training_step", 3, 32, [2, 3]),
        ("training_step", 9, 8, [2]),  # the first of four parts of the third step, which is dropped
        ("training_step", 12, 8, [2, 3]),  # the last one
        ("training_step", 2, 8, []),
        ("prediction_step", 1, 32, [2]),
        ("prediction_step", 2, 32, [2, 4]),
        ("_load_best_model", 1, 32, [2, 4]),
    ],
)
def test_sigterm_ends_a_run_with_a_checkpoint(
    run: Run, project: Path, name: str, turn: int, micro: int, kept: list[int]
) -> None:
    """By the clock there would be none but those at the ends of the epochs, after steps 2 and 4."""
    recipe = RECIPE | {"micro_batch_size": micro}

    def part() -> None:
        calls_first(train.CellTrainer, name, turn, terminate)
        # a second one, as an impatient scheduler sends it
        calls_first(checkpoints, "seal", kept[-1] if kept else 1, terminate)
        run("lora-sp", out="parts", **recipe)

    whole, _ = run("lora-sp", out="whole", **recipe)
    assert wait(start(part)) == 143
    assert steps_in(project / "parts") == kept
    assert not (project / "parts" / "train.json").exists()
    run("lora-sp", out="parts", **recipe)
    assert_same(whole, project / "parts")
    assert resumed(project / "parts") == kept[-1:]


@pytest.mark.parametrize(("presses", "kept"), [(1, [1]), (2, [])])
def test_ctrl_c_ends_a_run_with_a_checkpoint_and_twice_at_once(
    run: Run, project: Path, presses: int, kept: list[int]
) -> None:
    def part() -> None:
        press = partial(os.kill, os.getpid(), signal.SIGINT)
        calls_first(
            train.CellTrainer, "training_step", 1, lambda: [press() for _ in range(presses)]
        )
        try:
            run("lora-sp", out="parts", **RECIPE)
        except KeyboardInterrupt:
            sys.exit(2)

    assert wait(start(part)) == (130 if presses == 1 else 2)
    assert steps_in(project / "parts") == kept
    run("lora-sp", out="parts", **RECIPE)
    assert resumed(project / "parts") == kept


def test_sigterm_before_the_first_step(project: Path, capfd: pytest.CaptureFixture) -> None:
    config = str(ROOT / "config" / "smoke.yaml")
    names = {"model": "roberta-tiny", "task": "mrpc", "method": "lora-sp", "recipe": "stated"}
    given = [f"--{kind}={name}" for kind, name in names.items()]

    def part() -> None:
        calls_first(train, "load_model", 1, terminate)
        sys.exit(main(["train", f"--config={config}", *given, "--seed=0"]))

    assert wait(start(part)) == 143
    assert list(project.rglob("train.json")) == list(project.rglob(".checkpoints")) == []
    assert capfd.readouterr().err == ""


class Narrow(train.CellTrainer):
    """A device whose memory holds four sequences at a time, from the third step on `later`."""

    later = False

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        wide = len(inputs["input_ids"]) > 4
        if wide and (self.state.global_step >= 2 or not self.later):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().training_step(model, inputs, *args, **kwargs)


def test_without_memory_the_micro_batch_is_halved(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """And the batch stays: the steps are those of a run that was given the smaller one."""
    asked, expected = run("lora-sp", out="asked", **RECIPE, micro_batch_size=4)
    monkeypatch.setattr(train, "CellTrainer", Narrow)
    folder, record = run("lora-sp", out="halved", **RECIPE, micro_batch_size=16)
    assert record["micro_batch"] == {"asked": 16, "used": 4, "halved": [1, 1]}
    assert record["config"]["recipe"]["micro_batch_size"] == 16
    assert expected["micro_batch"] == {"asked": 4, "used": 4, "halved": []}
    for key in ("loss", "examples", "tokens", "steps", "best"):
        assert record[key] == expected[key]
    one, two = adapter_of(asked), adapter_of(folder)
    assert all(torch.equal(one[name], two[name]) for name in one)
    told = capfd.readouterr().err
    assert "out of GPU memory in step 1: going on with 8 sequences at a time in place of 16" in told


def test_memory_that_runs_out_later_goes_on_from_the_checkpoint(
    run: Run, often: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected = run("lora-sp", out="whole", **RECIPE)
    monkeypatch.setattr(train, "CellTrainer", Narrow)
    monkeypatch.setattr(Narrow, "later", True)
    folder, record = run("lora-sp", out="halved", **RECIPE)
    assert record["micro_batch"] == {"asked": 32, "used": 4, "halved": [3, 3, 3]}
    assert record["resumed"] == [] and record["steps"] == STEPS
    losses, others = ([x["loss"] for x in r["loss"]] for r in (expected, record))
    assert losses[:2] == others[:2] and losses == pytest.approx(others, abs=2e-6)
    one, two = adapter_of(whole), adapter_of(folder)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=2e-5, rtol=1e-4)


def test_a_run_that_goes_on_starts_with_the_halved_size(
    run: Run, often: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "CellTrainer", Narrow)
    whole, _ = run("lora-sp", out="whole", **RECIPE)

    def part() -> None:
        calls_first(Narrow, "_save_checkpoint", 3, lambda: os.kill(os.getpid(), signal.SIGKILL))
        run("lora-sp", out="parts", **RECIPE)

    assert wait(start(part)) == -signal.SIGKILL
    _, record = run("lora-sp", out="parts", **RECIPE)
    assert record["micro_batch"] == {"asked": 32, "used": 4, "halved": [1, 1, 1]}
    assert_same(whole, project / "parts")


def test_less_at_a_time_than_what_was_halved_is_heeded(
    run: Run, often: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "CellTrainer", Narrow)

    def part() -> None:
        calls_first(Narrow, "_save_checkpoint", 3, lambda: os.kill(os.getpid(), signal.SIGKILL))
        run("lora-sp", out="parts", **RECIPE)

    assert wait(start(part)) == -signal.SIGKILL
    _, record = run("lora-sp", out="parts", **RECIPE, micro_batch_size=2)
    assert record["micro_batch"] == {"asked": 2, "used": 2, "halved": [1, 1, 1]}
    assert record["resumed"] == [2]


@pytest.mark.parametrize(
    ("error", "halves"),
    [
        (RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_libraries_that_find_no_memory(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, halves: bool
) -> None:
    class Library(train.CellTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **others: Any) -> torch.Tensor:
            if len(inputs["input_ids"]) > 16:
                raise error
            return super().training_step(model, inputs, *args, **others)

    monkeypatch.setattr(train, "CellTrainer", Library)
    if halves:
        _, record = run("lora", batch_size=32, max_steps=1)
        assert record["micro_batch"] == {"asked": 32, "used": 16, "halved": [1]}
    else:
        with pytest.raises(RuntimeError, match="device-side assert"):
            run("lora", batch_size=32, max_steps=1)


def test_the_peak_is_that_of_the_size_in_use(
    config: Config, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = history.History({}, "", 16, peak_memory_bytes=1 << 60)
    past.halve(3, 32)
    assert past.peak_memory("cpu") < 1 << 60
    calls: list[str] = []
    for owner, name in (
        (torch.cuda, "reset_peak_memory_stats"),
        (train, "load_model"),
        (train, "apply_method"),
        (train, "recompute_activations"),
    ):
        monkeypatch.setattr(owner, name, lambda *_, name=name: calls.append(name))
    resolved = resolve(config, Cell("smoke", "roberta-tiny", "mrpc", "lora", "quick", 0))
    resolved["runtime"]["device"] = "cuda"
    train._model(resolved, project)
    assert calls[:2] == ["reset_peak_memory_stats", "load_model"]  # which is part of the peak


def test_the_memory_of_the_failed_try_is_free_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "CellTrainer", Narrow)
    load, made = train.load_model, []

    def watched(*args: Any, **kwargs: Any) -> torch.nn.Module:
        assert not any(model() for model in made)
        model = load(*args, **kwargs)
        made.append(weakref.ref(model))
        return model

    monkeypatch.setattr(train, "load_model", watched)
    run("ft", out="here", **RECIPE)
    assert len(made) == 4


def test_no_memory_for_a_single_sequence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing(train.CellTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(train, "CellTrainer", Nothing)
    with pytest.raises(WorkError, match="out of GPU memory with one sequence at a time: set the"):
        run("lora", **RECIPE)


def test_no_memory_for_an_evaluation(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing(train.CellTrainer):
        def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(train, "CellTrainer", Nothing)
    with pytest.raises(WorkError, match=r"a batch of 64 does not fit .* runtime\.eval_batch_size"):
        run("lora", **RECIPE)


@pytest.fixture
def small_disk(project: Path) -> Iterator[Path]:
    """A file system of two MiB, mounted as `disk`."""
    place = project / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no right to mount a small file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path, free: int) -> None:
    """Leave no more than `free` bytes of a file system."""
    with (place / "filler").open("wb") as file:
        state = os.statvfs(place)
        file.write(bytes(max(0, state.f_bavail * state.f_frsize - free)))


@pytest.mark.parametrize("free", [0, 16 * 1024, 64 * 1024])
def test_a_full_disk_stops_a_run_cleanly(
    run: Run, often: None, small_disk: Path, free: int, capfd: pytest.CaptureFixture
) -> None:
    def part() -> None:
        calls_first(checkpoints, "rotate", 1, lambda: fill(small_disk, free))
        run("lora-sp", out="disk/parts", **RECIPE)

    whole, _ = run("lora-sp", out="whole", **RECIPE)
    capfd.readouterr()
    assert wait(start(part)) == 1
    (line,) = (text for text in capfd.readouterr().err.splitlines() if text.startswith("error"))
    assert ".checkpoints/checkpoint-2 (" in line and "MiB are free there): make room" in line
    assert steps_in(small_disk / "parts") == [1]
    (small_disk / "filler").unlink()
    run("lora-sp", out="disk/parts", **RECIPE)
    assert_same(whole, small_disk / "parts")
    assert resumed(small_disk / "parts") == [1]


def test_what_is_no_fault_of_the_disk_is_raised(
    run: Run, often: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(train.CellTrainer, "save_model", fail)
    with pytest.raises(RuntimeError, match=r"^CUDA error: device-side assert"):
        run("lora", out="parts", **RECIPE)
    assert steps_in(project / "parts") == []


def test_a_file_that_the_disk_refuses(
    run: Run, often: None, project: Path, capfd: pytest.CaptureFixture
) -> None:
    """The same without a right to mount: no file may be as large as the optimizer's states."""

    def part() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails, as on a full disk
        adapter = (project / "whole/adapter/adapter_model.safetensors").stat().st_size
        limits = adapter * 3 // 2, adapter * 3 // 2
        shrink = partial(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        calls_first(checkpoints, "rotate", 1, shrink)
        run("lora-sp", out="parts", **RECIPE)

    whole, _ = run("lora-sp", out="whole", **RECIPE)
    capfd.readouterr()
    assert wait(start(part)) == 1
    errors = [text for text in capfd.readouterr().err.splitlines() if text.startswith("error")]
    assert len(errors) == 1 and ".checkpoints/checkpoint-2 (" in errors[0]
    assert steps_in(project / "parts") == [1]
    run("lora-sp", out="parts", **RECIPE)
    assert_same(whole, project / "parts")
