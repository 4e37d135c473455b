"""The stage as a whole: the file that it leaves, and what it says of damaged inputs."""

import json
import math
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score

from lorasp.config import Cell, Config, data_folder
from lorasp.data.load import check_folder, load_split
from lorasp.errors import UsageError, WorkError
from lorasp.evaluation.evaluate import evaluate_cell, headline
from lorasp.results import read_json
from lorasp.tasks import load_task


@pytest.mark.parametrize("method", ["base", "ft", "lora", "lora-half", "lora-sp", "lora-sp-init"])
def test_the_scores_are_those_of_the_model_that_was_trained(
    config: Config, trained: Callable, alone: Callable, method: str
) -> None:
    cell, model = trained("roberta-tiny", "mrpc", method)
    result = read_json(evaluate_cell(config, cell), "metrics")
    tokens = data_folder(config, "tokens", "roberta-tiny", "mrpc")
    rows = load_split(tokens, "validation")
    accuracy = accuracy_score(rows["labels"], alone(model, rows).argmax(1))
    assert result["headline"]["value"] == pytest.approx(100 * accuracy)
    assert result["headline"]["metric"] == "accuracy" and result["headline"]["n"] == len(rows)
    assert result["cell"]["method"] == method
    assert result["data"]["tokens"] == check_folder(tokens)["fingerprint"]


@pytest.mark.parametrize(
    ("model", "task"),
    [("roberta-tiny", "mnli"), ("t5-tiny", "wmt16-en-ro"), ("llama-tiny", "alpaca-mmlu")],
)
@pytest.mark.parametrize("method", ["base", "ft", "lora-sp"])
def test_every_family_without_network_leaves_one_file(
    config: Config,
    trained: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
    task: str,
    method: str,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the evaluation reached for the network")

    cell, _ = trained(model, task, method)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    before = set(Path().rglob("*"))
    path = evaluate_cell(config, cell)
    assert set(Path().rglob("*")) - before == {path}
    result = read_json(path, "metrics")
    expected = {"mnli": set(), "wmt16-en-ro": {"signature", "examples"}}
    extras = {"signature", "examples", "subjects"} & set(result)
    assert extras == expected.get(task, {"subjects"})
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"{cell}: {result['headline']['metric']} ")


def test_the_headline_of_mnli_is_the_mean_of_both_sets() -> None:
    def split(n: int, value: float | None, error: float | None, **note: str) -> dict:
        return {"n": n, "metrics": {"accuracy": {"value": value, "stderr": error, **note}}}

    found = headline("accuracy", {"a": split(10, 80.0, 3.0), "b": split(20, 90.0, 4.0)})
    assert found == {"metric": "accuracy", "value": 85.0, "stderr": 2.5, "n": 30}
    undefined = split(20, None, None, note="constant")
    assert headline("accuracy", {"a": split(10, 80.0, 3.0), "b": undefined}) == {
        "metric": "accuracy",
        "value": None,
        "stderr": None,
        "n": 30,
        "note": "constant",
    }


def test_undefined_scores_are_null_in_the_file(
    config: Config, trained: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorasp.evaluation import glue

    cell, _ = trained("roberta-tiny", "stsb", "lora")
    predict = glue.predict
    monkeypatch.setattr(glue, "predict", lambda *given: predict(*given) * math.nan)
    text = evaluate_cell(config, cell).read_text()
    assert "NaN" not in text
    assert json.loads(text)["headline"]["value"] is None
    assert "not finite" in json.loads(text)["headline"]["note"]


def test_a_run_that_is_not_there(config: Config, project: Path) -> None:
    with pytest.raises(WorkError, match=r"cannot read .*seed-0/train\.json"):
        evaluate_cell(config, Cell("smoke", "roberta-tiny", "mrpc", "lora", "stated", 0))


def test_a_run_of_other_settings(config: Config, trained: Callable) -> None:
    cell, _ = trained("roberta-tiny", "mrpc", "lora")
    with pytest.raises(UsageError, match=r"with method\.settings\.rank 4 .* with 3; give"):
        evaluate_cell(config, cell, {"rank": 3})


def test_data_prepared_anew_after_training(config: Config, trained: Callable) -> None:
    cell, _ = trained("roberta-tiny", "mrpc", "lora")
    record = json.loads((cell.folder / "train.json").read_text())
    record["data"]["tokens"] = "0" * 64
    (cell.folder / "train.json").write_text(json.dumps(record))
    with pytest.raises(WorkError, match="trained before its tokens was prepared anew"):
        evaluate_cell(config, cell)


@pytest.mark.parametrize("method", ["ft", "lora-sp"])
def test_damaged_weights(config: Config, trained: Callable, method: str) -> None:
    cell, _ = trained("roberta-tiny", "mrpc", method)
    (file,) = (cell.folder / "adapter").glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(b"\xff" * len(whole))
    with pytest.raises(WorkError, match=r"seed-0/adapter.*train"):
        evaluate_cell(config, cell)
    file.write_bytes(whole[:-100])
    with pytest.raises(WorkError, match=r"adapter holds \d+ bytes of weights and the run wrote"):
        evaluate_cell(config, cell)
    file.unlink()
    with pytest.raises(WorkError, match="adapter holds 0 bytes"):
        evaluate_cell(config, cell)
    assert not (cell.folder / "metrics.json").exists()


def test_damaged_tokens(config: Config, trained: Callable, prepared: Path) -> None:
    cell, _ = trained("roberta-tiny", "mrpc", "lora")
    (file,) = (prepared / "data/smoke/tokens/roberta-tiny/mrpc/validation").glob("*.arrow")
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-8])
        with pytest.raises(WorkError, match=r"validation/.*\.arrow.*lorasp prepare .* --task mrpc"):
            evaluate_cell(config, cell)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("model", "task"),
    [("roberta-tiny", "mrpc"), ("t5-tiny", "wmt16-en-ro"), ("llama-tiny", "alpaca-mmlu")],
)
def test_a_run_that_diverged_has_no_score(
    config: Config, trained: Callable, capsys: pytest.CaptureFixture[str], model: str, task: str
) -> None:
    cell, _ = trained(model, task, "lora-sp")
    record = read_json(cell.folder / "train.json", "train")
    record |= {"status": "diverged", "diverged_at": 7, "adapter_bytes": 0}
    shutil.rmtree(cell.folder / "adapter")
    (cell.folder / "adapter").mkdir()
    (cell.folder / "train.json").write_text(json.dumps(record))
    result = read_json(evaluate_cell(config, cell), "metrics")
    undefined = {"value": None, "stderr": None, "note": "the training diverged at step 7"}
    definition = load_task(task)
    name = definition["headline"]
    assert result["headline"] == {"metric": name, "n": 0, **undefined}
    assert set(result["splits"]) == set(definition["evaluate"])
    for split in result["splits"].values():
        assert split == {"n": 0, "metrics": dict.fromkeys(definition["metrics"], undefined)}
    assert f"{name}: the training diverged at step 7" in capsys.readouterr().err
