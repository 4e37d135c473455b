"""A user's own tables and models: what is read, and what is said of each thing that cannot be."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForMaskedLM

from lorasp.config import Cell
from lorasp.data.load import check_folder, load_split, splits
from lorasp.data.prepare import prepare_dataset, prepare_model
from lorasp.errors import UsageError, WorkError

ROWS = [{"sentence": 'a "kind" cat,\nreally', "label": 1}, {"sentence": "", "label": 0}]


@pytest.fixture
def mine(config: dict[str, Any]) -> dict[str, Any]:
    config["datasets"]["mine"] = {"source": {"kind": "local", "path": "mine"}}
    Path("mine").mkdir()
    return config


def test_parquet_csv_jsonl_and_shards(mine: dict[str, Any]) -> None:
    rows = Dataset.from_list(ROWS)
    rows.to_parquet("mine/train-00000-of-00002.parquet")
    rows.to_parquet("mine/train-00001-of-00002.parquet")
    rows.to_csv("mine/validation.csv", index=False)
    rows.to_json("mine/test.jsonl")
    folder = prepare_dataset(mine, "mine").parent
    assert splits(folder) == ["test", "train", "validation"]
    assert load_split(folder, "train").to_list() == ROWS * 2
    assert load_split(folder, "validation").to_list() == ROWS
    assert load_split(folder, "test").to_list() == ROWS


def test_one_file_is_the_training_split(mine: dict[str, Any]) -> None:
    Dataset.from_list(ROWS).to_csv("mine/film.csv", index=False)
    mine["datasets"]["mine"]["source"]["path"] = "mine/film.csv"
    assert splits(prepare_dataset(mine, "mine").parent) == ["train"]


def test_a_benchmark_keeps_its_subjects(mine: dict[str, Any]) -> None:
    Path("mine/birds").mkdir()
    Dataset.from_list(ROWS).to_parquet("mine/birds/dev-00000-of-00001.parquet")
    manifest = check_folder(prepare_dataset(mine, "mine").parent)
    assert set(manifest["files"]) == {"README.md", "birds/dev-00000-of-00001.parquet"}


def test_a_changed_file_is_read_again(mine: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    Dataset.from_list(ROWS).to_parquet("mine/train.parquet")
    folder = prepare_dataset(mine, "mine").parent
    Dataset.from_list(ROWS[:1]).to_parquet("mine/train.parquet")
    prepare_dataset(mine, "mine")
    assert "source has changed" in capsys.readouterr().err
    assert len(load_split(folder, "train")) == 1


def test_nothing_to_read(mine: dict[str, Any]) -> None:
    Path("mine/notes.txt").write_text("none")
    with pytest.raises(WorkError, match=r"mine holds no data; .*\{split\}.parquet, \{split\}.csv"):
        prepare_dataset(mine, "mine")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_an_unreadable_file_is_named(mine: dict[str, Any], suffix: str) -> None:
    Path(f"mine/train.{suffix}").write_bytes(b'{"sentence": \xff\n"a,b\nc,d,e\n')
    with pytest.raises(WorkError, match=rf"cannot read mine/train.{suffix} as {suffix}: ."):
        prepare_dataset(mine, "mine")
    assert not Path("data/smoke/mine").exists()


def test_tables_of_one_split_must_agree(mine: dict[str, Any]) -> None:
    Dataset.from_list([{"a": 1}]).to_parquet("mine/train-00000-of-00002.parquet")
    Dataset.from_list([{"a": ["x"]}]).to_parquet("mine/train-00001-of-00002.parquet")
    with pytest.raises(WorkError, match=r"mine/train-00000-of-00002.parquet.* do not fit"):
        prepare_dataset(mine, "mine")


def test_a_model_is_taken_without_pickles(config: dict[str, Any]) -> None:
    made = prepare_model(config, "roberta-tiny").parent
    (made / "training_args.bin").write_bytes(b"pickle")
    config["models"]["mine"] = {"source": {"kind": "local", "path": str(made)}}
    folder = prepare_model(config, "mine").parent
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(check_folder(folder)["files"]) == names
    AutoModelForMaskedLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("config.json", "configuration"),
        ("model.safetensors", "weights"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_an_incomplete_model_is_refused(config: dict[str, Any], file: str, part: str) -> None:
    made = prepare_model(config, "roberta-tiny").parent
    config["models"]["mine"] = {"source": {"kind": "local", "path": str(made)}}
    (made / file).unlink()
    with pytest.raises(WorkError, match=rf"roberta-tiny is no model: it has no {part} \(.*{file}"):
        prepare_model(config, "mine")


def test_a_finished_run_is_a_model(config: dict[str, Any]) -> None:
    names = {"model": "roberta-tiny", "task": "sst2", "method": "ft", "recipe": "stated", "seed": 3}
    config["models"]["adapted"] = {"source": {"kind": "run", "cell": names}}
    with pytest.raises(WorkError) as error:
        prepare_model(config, "adapted")
    assert (
        "`lorasp train --config config/smoke.yaml --model roberta-tiny --task sst2 --method ft "
        "--recipe stated --seed 3`"
    ) in str(error.value)
    run = Cell("smoke", **names).folder
    run.mkdir(parents=True)
    prepare_model(config, "roberta-tiny").parent.rename(run / "adapter")
    (run / "train.json").write_text("{}")
    folder = prepare_model(config, "adapted").parent
    assert (folder / "model.safetensors").samefile(run / "adapter" / "model.safetensors")
    assert check_folder(folder)["inputs"]["files"].keys() >= {f"{run}/adapter/model.safetensors"}


def test_a_kind_that_does_not_fit_is_refused(config: dict[str, Any]) -> None:
    config["datasets"]["x"] = {"source": {"kind": "run"}}
    with pytest.raises(UsageError, match=r"datasets.x.source.kind is 'run'; allowed are generated"):
        prepare_dataset(config, "x")
