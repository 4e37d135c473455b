"""Runs that cannot go on: one sentence, and nothing half-written is left."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Run

from lorasp.errors import UsageError, WorkError
from lorasp.training import train


@pytest.fixture
def copied(project: Path, prepared: Path) -> Path:
    """Prepared files of the test's own, to be damaged."""
    (project / "data").unlink()
    shutil.copytree(prepared / "data/smoke/tokens", project / "data/smoke/tokens")
    shutil.copytree(prepared / "data/smoke/models", project / "data/smoke/models")
    return project / "data/smoke"


def left(folder: Path) -> list[str]:
    """The files below a folder, prepared data aside."""
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return [str(file) for file in files if file.parts[0] != "data"]


def assert_diverged(folder: Path, record: dict[str, Any], step: int) -> None:
    assert (record["status"], record["diverged_at"], record["steps"]) == ("diverged", step, step)
    assert record["final_loss"] is record["best"] is None and record["adapter_bytes"] == 0
    assert all(math.isfinite(entry["loss"]) for entry in record["loss"])
    assert {file.name for file in folder.iterdir()} == {"adapter", "train.json"}
    assert list((folder / "adapter").iterdir()) == []


@pytest.mark.parametrize("select", ["last", "best"])
@pytest.mark.parametrize("method", ["lora", "ft"])
def test_a_diverging_run_stops_and_says_so(
    run: Run, capsys: pytest.CaptureFixture, method: str, select: str
) -> None:
    """Its weights, and what is left of a better epoch, are no result."""
    folder, record = run(method, learning_rate=1e30, epochs=4, warmup_ratio=0.0, select=select)
    told = re.search(
        r"the loss became (nan|inf) at step (\d+): .* learning_rate", capsys.readouterr().err
    )
    assert told
    assert_diverged(folder, record, int(told[2]))


def test_damaged_weights_are_noticed_at_the_first_step(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = train.load_model

    def spoiled(*args: Any) -> torch.nn.Module:
        model = load(*args)
        next(model.parameters()).data.fill_(math.nan)
        return model

    monkeypatch.setattr(train, "load_model", spoiled)
    assert_diverged(*run("lora-sp"), step=1)


def test_divergence_after_the_last_logged_step_is_noticed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 101 steps every second is logged, and the last is not."""

    class Late(train.CellTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            return loss * math.nan if self.state.global_step == 100 else loss

    monkeypatch.setattr(train, "CellTrainer", Late)
    assert_diverged(*run("lora", batch_size=1, max_steps=101), step=101)


@pytest.mark.parametrize(("method", "select"), [("lora-sp", "last"), ("ft", "best")])
def test_an_update_that_no_loss_follows(
    run: Run, monkeypatch: pytest.MonkeyPatch, method: str, select: str
) -> None:
    """The last of three gradients is infinite; the best epoch's weights are no result then."""

    class Burst(train.CellTrainer):
        def training_step(self, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(model, *args, **kwargs)
            if self.state.global_step == 2:
                weight = next(one for one in model.parameters() if one.requires_grad)
                weight.grad.view(-1)[0] = math.inf
            return loss

    monkeypatch.setattr(train, "CellTrainer", Burst)
    assert_diverged(*run(method, batch_size=32, epochs=2, max_steps=3, select=select), step=3)


def test_a_full_disk_leaves_no_adapter(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: torch.nn.Module, folder: Path, state: object) -> int:
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train, "save_adapter", refuse)
    with pytest.raises(WorkError, match=r"cannot write .*/adapter: No space left on device"):
        run("lora", max_steps=1)
    assert left(project) == []


@pytest.mark.parametrize(
    ("file", "mend"),
    [
        ("tokens/roberta-tiny/mrpc/train/*.arrow", "--model roberta-tiny --task mrpc"),
        ("models/roberta-tiny/model.safetensors", "--model roberta-tiny"),
        ("models/roberta-tiny/tokenizer.json", "--model roberta-tiny"),
    ],
)
@pytest.mark.parametrize("harm", ["shorter", "changed", "missing"])
def test_damaged_inputs(run: Run, copied: Path, file: str, mend: str, harm: str) -> None:
    (path,) = copied.glob(file)
    content = bytearray(path.read_bytes())
    if harm == "missing":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes(content if harm == "changed" else content[:-1])
    with pytest.raises(WorkError) as raised:
        run("lora")
    sentence = str(raised.value)
    assert str(path.relative_to(Path.cwd())) in sentence
    assert sentence.endswith(f"run `lorasp prepare --config config/smoke.yaml {mend}`")
    assert "\n" not in sentence and left(Path.cwd()) == []


def test_a_folder_that_is_not_prepared(run: Run, copied: Path) -> None:
    shutil.rmtree(copied / "tokens/roberta-tiny/mrpc")
    with pytest.raises(WorkError, match=r"tokens/roberta-tiny/mrpc is not prepared: run `lorasp p"):
        run("lora")


def test_a_model_of_another_architecture(config: Any, run: Run, copied: Path) -> None:
    """Whole by its sha256, but no weights that torch can read."""
    folder = copied / "models/roberta-tiny"
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "unheard-of"}))
    manifest = json.loads((folder / "manifest.json").read_text())
    from lorasp.results import sha256_of

    manifest["files"]["config.json"] = {
        "sha256": sha256_of(folder / "config.json"),
        "bytes": (folder / "config.json").stat().st_size,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WorkError, match=r"cannot load .* from data/smoke/models/roberta-tiny: "):
        run("lora")


@pytest.mark.parametrize("method", ["lora", "lora-sp"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": -1}, r"settings\.rank is -1; allowed is a whole number from 1"),
        ({"rank": 0}, r"settings\.rank is 0; allowed"),
        ({"rank": 2.5}, r"settings\.rank is 2\.5; allowed"),
        ({"rank": "four"}, r"settings\.rank is 'four'; allowed"),
        ({"rank": 33}, r"rank 33 is larger than the matrix of .*query, which is 32x32"),
        ({"dropout": 1.5}, r"dropout.* 1\.5"),
        ({"rnak": 4}, "has no rnak; LORA.* allows .*rank"),
        ({"targets": ["nothing"]}, "No modules were targeted"),
        ({"quantize": "nf3"}, "quantize is 'nf3'; allowed are none, nf4, int8"),
        ({"recompute": "some"}, "recompute is 'some'; allowed are none, full, selective"),
    ],
)
def test_settings_of_a_low_rank_method(
    run: Run, project: Path, method: str, settings: dict, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        run(method, settings=settings)
    assert "\n" not in str(raised.value) and left(project) == []


@pytest.mark.parametrize("density", [0, -0.5, 1.01, "half"])
def test_density(run: Run, density: object) -> None:
    with pytest.raises(UsageError, match=rf"density is {density!r}; allowed: a number in \(0, 1\]"):
        run("lora-sp", settings={"density": density})


@pytest.mark.parametrize("method", ["ft", "base"])
def test_methods_without_an_adapter_take_no_settings_of_one(run: Run, method: str) -> None:
    with pytest.raises(UsageError, match=rf"methods\.{method}\.settings has no rank; .* quantize"):
        run(method, settings={"rank": 4})


def test_an_unknown_family(config: Any, run: Run) -> None:
    config["methods"]["lora"]["family"] = "LORO"
    with pytest.raises(UsageError, match=r"methods\.lora\.family is 'LORO'; allowed are .*LORA_SP"):
        run("lora")


def test_cuda_where_there_is_none(config: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config["runtime"]["device"] = "cuda"
    monkeypatch.delattr(torch.cuda, "reset_peak_memory_stats")  # a build without CUDA has no such
    with pytest.raises(UsageError, match=r"runtime\.device is cuda, but torch finds no CUDA dev"):
        run("lora")
