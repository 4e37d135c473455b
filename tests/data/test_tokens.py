"""Tokens against the tokenizer itself: exact masks, prefixes, truncation, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from lorasp.config import data_folder, resolve_task
from lorasp.data.load import check_folder, load_split, splits
from lorasp.data.prepare import prepare_dataset, prepare_model, prepare_tokens
from lorasp.data.tokens import prompt_text
from lorasp.errors import WorkError


def tokens_of(config: dict[str, Any], model: str, task: str) -> tuple[Path, Any]:
    prepare_model(config, model)
    prepare_dataset(config, config["tasks"][task]["dataset"])
    folder = prepare_tokens(config, model, task).parent
    return folder, AutoTokenizer.from_pretrained(data_folder(config, "models", model))


def local(
    config: dict[str, Any], task: str, rows: list[dict[str, Any]], split: str = "train"
) -> None:
    """Rows of the test's own in place of the generated ones."""
    from datasets import Dataset

    Path("mine").mkdir(exist_ok=True)
    Dataset.from_list(rows).to_parquet(f"mine/{split}.parquet")
    config["datasets"][task] = {"source": {"kind": "local", "path": "mine"}}


def test_pairs_and_both_mnli_dev_sets(config: dict[str, Any]) -> None:
    folder, tokenizer = tokens_of(config, "roberta-tiny", "mnli")
    assert splits(folder) == ["train", "validation_matched", "validation_mismatched"]
    for split in splits(folder):
        rows = load_split(data_folder(config, "mnli"), split)
        tokens = load_split(folder, split)
        assert tokens.column_names == ["input_ids", "attention_mask", "labels", "length"]
        for row, made in zip(rows, tokens, strict=True):
            first, second = (
                tokenizer(row[column], add_special_tokens=False)["input_ids"]
                for column in ("premise", "hypothesis")
            )
            assert made["input_ids"] == [0, *first, 2, 2, *second, 2]
            assert made["labels"] == row["label"] and made["length"] == len(made["input_ids"])
            assert made["attention_mask"] == [1] * made["length"]


def test_scores_stay_numbers(config: dict[str, Any]) -> None:
    folder, _ = tokens_of(config, "roberta-tiny", "stsb")
    labels = load_split(folder, "train")["labels"]
    assert list(labels)[:6] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert load_split(folder, "train").features["labels"].dtype.startswith("float")


def test_truncation_keeps_the_special_tokens(config: dict[str, Any]) -> None:
    config["tasks"]["sst2"]["max_length"] = 6
    folder, tokenizer = tokens_of(config, "roberta-tiny", "sst2")
    rows = load_split(data_folder(config, "sst2"), "train")
    for row, made in zip(rows, load_split(folder, "train"), strict=True):
        whole = tokenizer(row["sentence"])["input_ids"]
        assert made["input_ids"] == (whole if len(whole) <= 6 else [*whole[:5], 2])


def test_translation_has_prefix_and_target(config: dict[str, Any]) -> None:
    folder, tokenizer = tokens_of(config, "t5-tiny", "wmt16-en-ro")
    assert splits(folder) == ["test", "train", "validation"]
    rows = load_split(data_folder(config, "wmt16-en-ro"), "test")
    for row, made in zip(rows, load_split(folder, "test"), strict=True):
        source = tokenizer.decode(made["input_ids"], skip_special_tokens=True)
        assert source == "translate English to Romanian: " + row["en"]
        assert tokenizer.decode(made["labels"], skip_special_tokens=True) == row["ro"]
        assert made["labels"][-1] == made["input_ids"][-1] == tokenizer.eos_token_id


def test_labels_are_masked_exactly_on_the_prompt(config: dict[str, Any]) -> None:
    folder, tokenizer = tokens_of(config, "llama-tiny", "alpaca-mmlu")
    task = resolve_task(config, "alpaca-mmlu")
    rows = load_split(data_folder(config, "alpaca-mmlu"), "train")
    for row, made in zip(rows, load_split(folder, "train"), strict=True):
        prompt = [
            tokenizer.bos_token_id,
            *tokenizer(prompt_text(task, row), add_special_tokens=False)["input_ids"],
        ]
        masked = [label == -100 for label in made["labels"]]
        assert masked == [True] * len(prompt) + [False] * (made["length"] - len(prompt))
        assert made["input_ids"][: len(prompt)] == prompt
        answer = made["labels"][len(prompt) :]
        assert answer == made["input_ids"][len(prompt) :]
        assert answer[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(answer[:-1]) == row["output"]


def test_the_prompt_is_alpacas(config: dict[str, Any]) -> None:
    task = resolve_task(config, "alpaca-mmlu")
    bare = prompt_text(task, {"instruction": "Say {it}.", "input": ""})
    assert bare.endswith("\n\n### Instruction:\nSay {it}.\n\n### Response:") and "Input" not in bare
    full = prompt_text(task, {"instruction": "Name it.", "input": "cat"})
    assert full.endswith("\n\n### Instruction:\nName it.\n\n### Input:\ncat\n\n### Response:")


def test_an_instruction_without_room_for_an_answer_is_left_out(
    config: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    rows = [
        {"instruction": "word " * count, "input": "", "output": "cat " * 30} for count in (1, 200)
    ]
    local(config, "alpaca-mmlu", rows)
    folder, _ = tokens_of(config, "llama-tiny", "alpaca-mmlu")
    (made,) = load_split(folder, "train")
    assert made["length"] == len(made["labels"]) == 64
    assert "1 of 2 prompts leave no room" in capsys.readouterr().err
    config["tasks"]["alpaca-mmlu"]["max_length"] = 8
    with pytest.raises(
        WorkError, match=r"no prompt is shorter than max_length 8 .*raise max_length"
    ):
        prepare_tokens(config, "llama-tiny", "alpaca-mmlu")


def test_a_changed_length_makes_the_tokens_again_and_a_changed_metric_does_not(
    config: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    folder, _ = tokens_of(config, "roberta-tiny", "sst2")
    capsys.readouterr()
    config["tasks"]["sst2"]["metrics"] = ["f1"]
    prepare_tokens(config, "roberta-tiny", "sst2")
    assert "nothing to do" in capsys.readouterr().err
    config["tasks"]["sst2"]["max_length"] = 8
    prepare_tokens(config, "roberta-tiny", "sst2")
    assert max(load_split(folder, "train")["length"]) == 8
    assert check_folder(folder)["inputs"]["task"]["max_length"] == 8


GOOD = {"sentence": "a kind cat", "label": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": 1}], "train.parquet has no column 'sentence'.*it has text, label"),
        ([{"sentence": "a", "lable": 1}], "has no column 'label'"),
        ([GOOD, GOOD | {"label": 2}], r"row 1: the label is 2; allowed is 0 to 1 \(negative, pos"),
        ([GOOD | {"label": -1}], "row 0: the label is -1"),
        ([GOOD | {"label": "good"}], "row 0: the label is 'good'"),
        ([GOOD, {"sentence": None, "label": 1}], "row 1: sentence is None; it must be a text"),
        ([{"sentence": 7, "label": 1}], "row 0: sentence is 7"),
    ],
)
def test_unfit_rows_are_refused(
    config: dict[str, Any], rows: list[dict[str, Any]], message: str
) -> None:
    local(config, "sst2", rows)
    local(config, "sst2", [GOOD], "validation")
    with pytest.raises(WorkError, match=message):
        tokens_of(config, "roberta-tiny", "sst2")
    assert not data_folder(config, "tokens", "roberta-tiny", "sst2").exists()


def test_empty_and_absent_splits_are_refused(config: dict[str, Any]) -> None:
    local(config, "sst2", [GOOD])
    with pytest.raises(WorkError, match=r"needs the split 'validation' of .*there is train"):
        tokens_of(config, "roberta-tiny", "sst2")
    Path("mine/validation.csv").write_text("sentence,label\n")
    with pytest.raises(WorkError, match=r"validation.parquet is empty"):
        tokens_of(config, "roberta-tiny", "sst2")


def test_a_score_must_be_finite(config: dict[str, Any]) -> None:
    local(config, "stsb", [{"sentence1": "a", "sentence2": "b", "label": float("nan")}])
    local(config, "stsb", [{"sentence1": "a", "sentence2": "b", "label": 1.0}], "validation")
    with pytest.raises(WorkError, match="row 0: the label is nan; allowed is a finite number"):
        tokens_of(config, "roberta-tiny", "stsb")


def test_model_and_data_must_be_prepared_first(config: dict[str, Any]) -> None:
    with pytest.raises(WorkError, match="--model roberta-tiny`"):
        prepare_tokens(config, "roberta-tiny", "sst2")
    prepare_model(config, "roberta-tiny")
    with pytest.raises(WorkError, match="--dataset sst2`"):
        prepare_tokens(config, "roberta-tiny", "sst2")
