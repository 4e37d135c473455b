"""The command line as a user meets it: exit codes, one line for an error, JSON and nothing else."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorasp import arguments, commands
from lorasp.cli import main
from lorasp.errors import UsageError, WorkError

ROOT = Path(__file__).parents[1]
SMOKE = str(ROOT / "config" / "smoke.yaml")
RUN = {"model": "roberta-tiny", "task": "mrpc", "method": "lora-sp", "recipe": "stated", "seed": 0}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, no server, and afterwards this process as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORASP_SERVER", raising=False)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def line(command: str = "train", config: str = SMOKE, more: tuple = (), **change: Any) -> list[str]:
    options = [f"--{key}={value}" for key, value in {**RUN, **change}.items()]
    return [command, f"--config={config}", *options, *more]


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command said."""
    shown = capsys.readouterr()
    assert shown.out == ""
    (sentence,) = shown.err.splitlines()
    assert sentence.startswith("error: ") and shown.err.count("error: ") == 1
    return sentence.removeprefix("error: ")


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "bert"}, "model 'bert' is unknown; known are llama-tiny, roberta-tiny, t5-tiny"),
        ({"task": "wnli"}, "task 'wnli' is unknown; known are qnli, mnli, "),
        ({"method": "doora"}, "method 'doora' is unknown; known are dora, "),
        ({"recipe": "fast"}, "recipe 'fast' is unknown; known are stated, "),
        ({"seed": -1}, "seed is -1; allowed is 0 to 4294967295"),
        ({"config": "none.yaml"}, "there is no configuration none.yaml"),
        ({"more": ("--set", "rank=8")}, "give --out FOLDER too"),
        ({"more": ("--set", "rank", "--out=x")}, "--set 'rank': write KEY=VALUE"),
        ({"more": ("--set", "=8", "--out=x")}, "--set '=8': write KEY=VALUE"),
        ({"more": ("--set", "rank=[8", "--out=x")}, "--set 'rank=[8': the value is not YAML"),
    ],
)
def test_wrong_arguments(
    place: Path, capsys: pytest.CaptureFixture[str], command: str, change: dict, message: str
) -> None:
    assert main(line(command, **change)) == 2
    assert message in told(capsys)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["train", "--config", SMOKE],
        line(seed="first"),
        [*line(), "--sett", "rank=8"],
    ],
)
def test_what_argparse_refuses(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("error: ") == 1
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "wnli"], "dataset 'wnli' is unknown; known are qnli, mnli, "),
        (["--model", "bert"], "model 'bert' is unknown"),
        (["--model", "roberta-tiny", "--task", "wnli"], "task 'wnli' is unknown"),
        (["--task", "mrpc"], "prepare takes --dataset NAME, or --model NAME, or"),
        (["--dataset", "mrpc", "--model", "roberta-tiny"], "prepare takes --dataset NAME, or"),
        ([], "prepare takes --dataset NAME, or"),
    ],
)
def test_prepare_with_wrong_arguments(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["prepare", "--config", SMOKE, *arguments]) == 2
    assert message in told(capsys)
    assert list(place.iterdir()) == []


def test_what_is_not_prepared(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line()) == 1
    sentence = told(capsys)
    assert sentence.startswith(
        "data/smoke/models/roberta-tiny is not prepared: run `lorasp prepare"
    )
    assert {file.name for file in place.rglob("*") if file.is_file()} <= {".lock"}


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (UsageError("which key"), 2, "which key"),
        (WorkError("which file"), 1, "which file"),
        (OSError(28, "No space left on device", "data/x"), 1, "No space left on device: data/x"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
    ],
)
def test_failures_of_the_work(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: Exception,
    code: int,
    message: str,
) -> None:
    def fail(_: object) -> None:
        raise failure

    monkeypatch.setitem(commands.COMMANDS, "methods", fail)
    assert main(["methods"]) == code
    assert told(capsys) == message


def test_a_defect_shows_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(commands.COMMANDS, "methods", lambda options: options.no_such_option)
    assert main(["methods"]) == 1
    shown = capsys.readouterr().err
    assert "no_such_option" in shown and shown.count("error: ") == 1
    assert shown.splitlines()[-1].startswith("error: this is a defect of lorasp")


def test_termination_is_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whatever is half-written is removed on the way out."""
    cleaned = []

    def work(_: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleaned.append(True)

    monkeypatch.setitem(commands.COMMANDS, "methods", work)
    assert main(["methods"]) == 128 + signal.SIGTERM and cleaned == [True]


def test_settings() -> None:
    pairs = ["rank=8", "density=0.25", "targets=q_proj,v_proj", "selection=rank", "use_rslora=true"]
    assert commands.settings(pairs) == {
        "rank": 8,
        "density": 0.25,
        "targets": ["q_proj", "v_proj"],
        "selection": "rank",
        "use_rslora": True,
    }
    assert commands.settings(["targets=all"]) == {"targets": ["all"]}
    assert commands.settings(["rank=8", "rank=4"]) == {"rank": 4}
    assert commands.settings(["a=b=c"]) == {"a": "b=c"}


def test_settings_reach_the_run(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    from lorasp.training import train

    calls: list[tuple] = []
    monkeypatch.setattr(train, "train_cell", lambda *given: calls.append(given[1:]))
    more = ("--set", "rank=2", "--out", "here", "--micro-batch", "8")
    assert main(line(more=more)) == 0
    ((cell, settings, out, micro_batch),) = calls
    assert {**vars(cell)} == {"scale": "smoke", **RUN}
    assert settings == {"rank": 2} and out == Path("here") and micro_batch == 8


def test_doctor_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--config", SMOKE]) == 0
    shown = capsys.readouterr()
    (finding,) = json.loads(shown.out)
    assert set(finding) == {"what", "found", "met", "mend"} and shown.err == ""


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    from lorasp import __version__

    assert main(["--version"]) == 0 and capsys.readouterr().out.strip() == __version__
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in ("prepare", "train", "evaluate", "profile", "report", "doctor", "methods"):
        assert f"    {command} " in shown


def test_serve_needs_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--"]) == 2
    assert told(capsys).startswith("serve needs a command: ")


def test_the_parser_imports_nothing_that_takes_time() -> None:
    """A job of a server only parses; simulate's values are written down, for torch knows them."""
    heavy = ("yaml", "jsonschema", "numpy", "torch", "logging", "lorasp.config")
    tell = f"import sys, lorasp.cli; print([name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-c", tell]
    assert subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout == "[]\n"
    from lorasp.adapters.registry import QUANTIZE
    from lorasp.recompute import POLICIES

    assert (arguments.QUANTIZE, arguments.RECOMPUTE) == (QUANTIZE, POLICIES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--model", "gpt-9"], "model 'gpt-9' is unknown"),
        (["--method", "lora-xl"], "method 'lora-xl' is unknown"),
        (["--quantize", "fp4"], "argument --quantize: invalid choice: 'fp4'"),
        (["--length", "0"], "--batch and --length must be at least 1"),
        (["--length", "9999", "--model", "roberta-base"], "has positions for at most 512"),
        (["--planned"], "--planned needs --config"),
    ],
)
def test_simulate_refuses_before_it_imports_torch(change: list[str], message: str) -> None:
    program = "import sys; from lorasp.cli import main; code = main(sys.argv[1:]); "
    program += "sys.exit(9 if 'torch' in sys.modules else code)"
    line = ["simulate", "--model", "t5-small", "--method", "lora", *change]
    command = [sys.executable, "-c", program, *line]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and done.stdout == ""
