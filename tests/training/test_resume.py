"""A run that is killed, at whatever moment, ends as one that was never disturbed, bit by bit."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parts import assert_same, resumed, start, wait
from runs import Run

from lorasp.config import Config
from lorasp.errors import UsageError
from lorasp.training import best_epoch, checkpoints, history, train, trainer

KILLED = -signal.SIGKILL
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "best": ("lora-sp", "roberta-tiny", {"select": "best", "epochs": 3}),
    "epoch": (
        "lora-sp",
        "roberta-tiny",
        {"epochs": 2, "settings": {"resample": "epoch", "dropout": 0.1}},
    ),
    "step": (
        "lora-sp",
        "roberta-tiny",
        {"select": "best", "epochs": 2, "settings": {"resample": "step"}, "micro_batch_size": 4},
    ),
    "ends inside an epoch": ("ft", "roberta-tiny", {"select": "best", "epochs": 2, "max_steps": 6}),
    "least loss": ("ft", "t5-tiny", {"select": "best", "epochs": 2, "batch_size": 24}),
    "dropout": ("lora", "llama-tiny", {"max_steps": 5, "settings": {"dropout": 0.1}}),
}
SMALL: dict[str, Any] = {"select": "best", "epochs": 2, "batch_size": 32}  # two steps an epoch


@pytest.fixture
def often(config: Config) -> None:
    """A checkpoint after every step."""
    config["runtime"]["checkpoint_minutes"] = 1e-9


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "whole"


@pytest.fixture
def whole(run: Run, often: None, kept: Path) -> Path:
    """The folder of a small run that was never disturbed; it is trained once."""
    if not kept.exists():
        shutil.copytree(run("lora-sp", out="whole", **SMALL)[0], kept)
    return kept


def dies_in(module: Any, name: str, turn: int = 1, before: bool = False) -> Callable[..., Any]:
    """Make a function of a module kill its process when its `turn`-th call ends, or begins."""
    whole, calls = getattr(module, name), []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if before and len(calls) == turn:
            os.kill(os.getpid(), signal.SIGKILL)
        found = whole(*args, **kwargs)
        if len(calls) == turn:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(module, name, dying)
    return dying


@pytest.mark.parametrize("case", CASES)
def test_killed_after_every_step(run: Run, often: None, project: Path, case: str) -> None:
    method, model, recipe = CASES[case]

    def part() -> None:
        dies_in(train.CellTrainer, "_save_checkpoint")
        run(method, model, out="parts", **recipe)

    whole, record = run(method, model, out="whole", **recipe)
    codes = [wait(start(part))]
    while codes[-1] == KILLED:
        codes.append(wait(start(part)))
    # the last step needs a checkpoint where the best epoch is chosen after it
    chosen = recipe.get("select") == "best"
    assert codes == [KILLED] * (record["steps"] - (not chosen)) + [0]
    assert_same(whole, project / "parts")
    assert resumed(project / "parts") == [*range(1, len(codes))]


def test_a_loss_over_two_steps_is_logged_whole(run: Run, often: None, project: Path) -> None:
    """Of 101 steps every second is logged; the run is killed between the two."""
    recipe: dict[str, Any] = {"batch_size": 1, "epochs": 2, "max_steps": 101}

    def part() -> None:
        dies_in(checkpoints, "rotate", 51)
        run("lora", out="parts", **recipe)

    whole, _ = run("lora", out="whole", **recipe)
    assert wait(start(part)) == KILLED
    run("lora", out="parts", **recipe)
    assert_same(whole, project / "parts")


def test_twenty_random_kills(run: Run, often: None, project: Path, whole: Path) -> None:
    """At any moment of a part: while it loads, takes steps, writes a checkpoint or the adapter."""
    draw, kills, rounds = random.Random(0), 0, 0
    began = time.monotonic()
    assert wait(start(lambda: run("lora-sp", out="once", **SMALL))) == 0
    usual = time.monotonic() - began
    while kills < 20:
        folder, code = project / f"round-{rounds}", KILLED
        while code == KILLED:
            process = start(lambda folder=folder: run("lora-sp", out=folder.name, **SMALL))
            time.sleep(draw.uniform(0.1, 1.1) * usual)
            os.kill(process, signal.SIGKILL)
            code = wait(process)
            kills += code == KILLED
        assert code == 0
        assert_same(whole, folder)
        rounds += 1


@pytest.mark.parametrize(
    ("module", "name", "turn", "before"),
    [
        (trainer, "save_file", 3, True),
        (trainer, "save_file", 3, False),
        (train.CellTrainer, "_save_rng_state", 3, False),
        (checkpoints, "seal", 3, True),
        (checkpoints, "seal", 3, False),
        (checkpoints.shutil, "rmtree", 1, True),  # of a checkpoint that is one too many
        (best_epoch, "chosen", 1, False),
        (train, "save_adapter", 1, False),
        (train, "write_json", 1, True),
        (train, "write_json", 1, False),
    ],
)
def test_killed_between_two_files(
    run: Run,
    often: None,
    project: Path,
    whole: Path,
    module: Any,
    name: str,
    turn: int,
    before: bool,
) -> None:
    def part() -> None:
        dies_in(module, name, turn, before)
        run("lora-sp", out="parts", **SMALL)

    assert wait(start(part)) == KILLED
    assert wait(start(lambda: run("lora-sp", out="parts", **SMALL))) == 0
    assert_same(whole, project / "parts")


def interrupted(run: Run, project: Path, step: int = 3) -> list[Path]:
    """The checkpoints of a run of four steps that was killed after some, in `parts`."""

    def part() -> None:
        dies_in(checkpoints, "rotate", step)
        run("lora-sp", out="parts", **SMALL)

    assert wait(start(part)) == KILLED
    return checkpoints.checkpoints_of(project / "parts" / ".checkpoints")


def test_two_checkpoints_are_kept_and_the_best_one(
    run: Run, often: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps, an epoch each, of which the second scores best."""
    scores = iter([10.0, 30.0, 20.0, 20.0, 20.0, 20.0])
    scored = lambda found: {"headline": next(scores)}  # noqa: E731
    monkeypatch.setattr(best_epoch, "headline", lambda task: scored)

    def part() -> None:
        dies_in(checkpoints, "rotate", 6)
        run("lora-sp", out="parts", select="best", epochs=6, batch_size=64)

    assert wait(start(part)) == KILLED
    found = checkpoints.checkpoints_of(project / "parts" / ".checkpoints")
    assert [checkpoints.steps_of(folder) for folder in found] == [2, 5, 6]
    # the second names the first as the best so far, which it was before its own evaluation
    assert checkpoints.newest_sound(found[0].parent) == found[-1]


@pytest.mark.parametrize("harm", ["changed", "shorter", "missing"])
def test_any_damage_is_noticed(
    run: Run, often: None, project: Path, capsys: pytest.CaptureFixture, harm: str
) -> None:
    older, newest = interrupted(run, project)
    names = {file.name for file in newest.iterdir()}
    needed = {"trained.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "loop.pt"}
    assert names == needed | {"trainer_state.json", "history.json", "manifest.json"}
    for name in sorted(names):
        content = (newest / name).read_bytes()
        middle = len(content) // 2
        other = bytes([content[middle] ^ 1])
        (newest / name).write_bytes(
            content[:middle] + (other + content[middle + 1 :] if harm == "changed" else b"")
        )
        if harm == "missing":
            (newest / name).unlink()
        assert checkpoints.newest_sound(older.parent) == older
        assert f"warning: {newest} is passed over: " in capsys.readouterr().err
        (newest / name).write_bytes(content)
        assert checkpoints.newest_sound(older.parent) == newest


def test_a_run_goes_on_from_the_sound_checkpoint(
    run: Run, often: None, project: Path, whole: Path, capfd: pytest.CaptureFixture
) -> None:
    *_, newest = interrupted(run, project)
    (newest / "optimizer.pt").write_bytes(b"damaged")
    assert wait(start(lambda: run("lora-sp", out="parts", **SMALL))) == 0
    assert_same(whole, project / "parts")
    assert resumed(project / "parts") == [2]
    told = capfd.readouterr().err
    assert f"{newest} is passed over: its optimizer.pt is damaged" in told
    assert "going on from step 2" in told


def test_a_checkpoint_without_its_best_one_is_passed_over(
    run: Run, often: None, project: Path, whole: Path, capfd: pytest.CaptureFixture
) -> None:
    folders = interrupted(run, project, step=4)
    assert [checkpoints.steps_of(folder) for folder in folders] == [2, 3, 4]
    (folders[0] / "trained.safetensors").write_bytes(b"")
    assert wait(start(lambda: run("lora-sp", out="parts", **SMALL))) == 0
    assert_same(whole, project / "parts")
    assert resumed(project / "parts") == []
    assert "checkpoint-2, the best one so far, cannot be read" in capfd.readouterr().err


@pytest.mark.parametrize("other", ["configuration", "data", "code"])
def test_a_checkpoint_of_another_run_is_not_used(
    config: Config,
    run: Run,
    often: None,
    project: Path,
    prepared: Path,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    other: str,
) -> None:
    interrupted(run, project)
    changed = dict(SMALL)
    match other:
        case "configuration":
            changed["learning_rate"] = 2e-3
        case "code":
            monkeypatch.setattr(history, "stage_code", lambda *names: "other")
        case "data":
            (project / "data").unlink()
            shutil.copytree(prepared / "data", project / "data")
            (tokens,) = (project / "data").rglob("tokens/roberta-tiny/mrpc/manifest.json")
            text = tokens.read_text()
            before = train.check_folder(tokens.parent)["fingerprint"]
            tokens.write_text(text.replace(before, "ab" * 32))
    whole, _ = run("lora-sp", out="whole", **changed)
    run("lora-sp", out="parts", **changed)
    assert_same(whole, project / "parts")
    assert resumed(project / "parts") == []
    assert f"was made with other {other}: starting again" in capfd.readouterr().err


def test_other_packages_throw_no_work_away(
    run: Run, often: None, project: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workflow would not train anew for them: a person says what is meant."""
    interrupted(run, project)
    usual = history.provenance()["versions"]
    with monkeypatch.context() as patch:
        patch.setattr(history, "provenance", lambda: {"versions": usual | {"torch": "3.0"}})
        with pytest.raises(UsageError) as raised:
            run("lora-sp", out="parts", **SMALL)
    sentence = str(raised.value)
    assert f"torch {usual['torch']}, " in sentence and "torch 3.0, " in sentence
    assert f"environment as it was, or remove {project}/parts/.checkpoints to start" in sentence
    run("lora-sp", out="parts", **SMALL)
    assert_same(whole, project / "parts")
    assert resumed(project / "parts") == [3]


def test_time_is_summed_over_the_parts(
    run: Run, often: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = history.History.save

    def slow(self: history.History, *args: Any) -> None:
        self.wall_seconds += 1000
        whole(self, *args)

    def part() -> None:
        monkeypatch.setattr(history.History, "save", slow)
        dies_in(checkpoints, "rotate", 2)
        run("lora-sp", out="parts", **SMALL)

    assert wait(start(part)) == KILLED
    began = time.time()
    _, record = run("lora-sp", out="parts", **SMALL)
    assert 2000 < record["wall_seconds"] < 2000 + 600
    assert record["started"] < time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(began + 1))
