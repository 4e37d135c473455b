"""The generated data: the same everywhere, in the real layouts, with every label about as often."""

import collections
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from lorasp.config import data_folder
from lorasp.data import generated
from lorasp.data.load import check_folder, load_split, splits
from lorasp.data.mmlu import SUBJECTS
from lorasp.data.prepare import prepare_dataset, prepare_model
from lorasp.errors import UsageError
from lorasp.results import fingerprint
from lorasp.tasks import load_task

ROWS = "fe01d88f545cc39dd1bbc0e469191bbfb6a62faebc141d7dfe0db5cc8369f0f1"


def test_rows_are_pinned() -> None:
    tasks = (*generated.GLUE, "wmt16-en-ro", "alpaca-mmlu", "mmlu")
    rows = {
        task: {split: table.to_list() for split, table in generated.tables(task).items()}
        for task in tasks
    }
    assert fingerprint(rows) == ROWS


@pytest.mark.parametrize("task", sorted(generated.GLUE))
def test_columns_and_labels_are_those_of_glue(task: str) -> None:
    definition = load_task(task)
    tables = generated.tables(task)
    assert set(tables) == {definition["train"], *definition["evaluate"]}
    for table in tables.values():
        assert set(table.column_names) == {*definition["text"], definition["label"], "idx"}
        counts = collections.Counter(table["label"])
        if definition["family"] == "classification":
            assert set(counts) == set(range(len(definition["labels"])))
        assert max(counts.values()) - min(counts.values()) <= 1
        assert (
            len({len(text.split()) for text in table[definition["text"][0]]}) > 1 or task == "stsb"
        )


def test_the_two_mnli_dev_sets_differ() -> None:
    tables = generated.tables("mnli")
    assert tables["validation_matched"].to_list() != tables["validation_mismatched"].to_list()


def test_translation_is_word_for_word_with_diacritics() -> None:
    rows = [row for table in generated.tables("wmt16-en-ro").values() for row in table]
    assert {len(table) for table in generated.tables("wmt16-en-ro").values()} == {64, 16}
    lexicon: dict[str, str] = {}
    for row in rows:
        for english, romanian in zip(row["en"].split(), row["ro"].split(), strict=True):
            assert lexicon.setdefault(english, romanian) == romanian
    assert set("ăâîșț") <= set("".join(lexicon.values()))


def test_some_instructions_have_no_input() -> None:
    inputs = [bool(text) for text in generated.tables("alpaca-mmlu")["train"]["input"]]
    assert len(inputs) == 48 and set(inputs) == {True, False}


def test_mmlu_opens_as_the_hub_version_does(config: dict[str, Any], tmp_path: Path) -> None:
    folder = prepare_dataset(config, "mmlu").parent
    assert len(SUBJECTS) == 57
    manifest = check_folder(folder)
    assert {Path(name).parts[0] for name in manifest["files"]} == {*SUBJECTS, "README.md"}
    for subject in ("anatomy", "world_religions"):
        loaded = datasets.load_dataset(str(folder), subject, cache_dir=str(tmp_path / "cache"))
        assert {split: len(rows) for split, rows in loaded.items()} == {"dev": 5, "test": 1}
        row = loaded["test"][0]
        assert row["subject"] == subject and len(row["choices"]) == 4 and row["answer"] in range(4)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'sst3'; they can for .*sst2"):
        generated.tables("sst3")


@pytest.mark.parametrize("shape", ["roberta", "t5", "llama"])
def test_tokenizers_give_every_text_back(config: dict[str, Any], shape: str) -> None:
    folder = prepare_model(config, f"{shape}-tiny").parent
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in ("the clever cat", "Știință în română, ăâîșț", "A. (B)\nAnswer: 漢字 🙂"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.unk_token_id not in ids
    first, last = tokenizer.convert_ids_to_tokens([tokenizer("a")["input_ids"][i] for i in (0, -1)])
    assert (first == "<s>", last == "</s>") == {
        "roberta": (True, True),
        "t5": (False, True),
        "llama": (True, False),
    }[shape]
    assert tokenizer.pad_token == "<pad>"


def test_models_load_and_have_room_for_five_examples(config: dict[str, Any]) -> None:
    folder = prepare_model(config, "llama-tiny").parent
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    assert model.config.vocab_size == len(tokenizer)
    rows = [*generated.tables("mmlu")["anatomy/dev"], *generated.tables("mmlu")["anatomy/test"]]
    prompt = "The following are multiple choice questions (with answers) about anatomy.\n\n".join(
        f"{row['question']}\n"
        + "\n".join(
            f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True)
        )
        for row in rows
    )
    assert len(tokenizer(prompt)["input_ids"]) < model.config.max_position_embeddings // 2
    seq2seq = AutoModelForSeq2SeqLM.from_pretrained(prepare_model(config, "t5-tiny").parent)
    assert seq2seq.config.decoder_start_token_id == seq2seq.config.pad_token_id == 0


def test_sizes_and_vocabulary_can_be_chosen(config: dict[str, Any]) -> None:
    prepare_dataset(config, "wmt16-en-ro")
    vocabulary = {"dataset": "wmt16-en-ro", "columns": ["en", "ro"], "size": 300}
    source = {
        "kind": "generated",
        "shape": "t5",
        "config": {"d_model": 48},
        "vocabulary": vocabulary,
    }
    config["models"]["t5-other"] = {"source": source}
    folder = prepare_model(config, "t5-other").parent
    assert AutoModelForSeq2SeqLM.from_pretrained(folder).get_input_embeddings().weight.shape == (
        300,
        48,
    )
    entries = AutoTokenizer.from_pretrained(folder).get_vocab()
    assert "Ġthe" in entries and "Ġanswers" not in entries
    source["config"] = {"d_modell": 48}
    with pytest.raises(UsageError, match=r"d_modell.*d_model"):
        prepare_model(config, "t5-other")
    assert splits(data_folder(config, "wmt16-en-ro")) == ["test", "train", "validation"]
    assert len(load_split(data_folder(config, "wmt16-en-ro"), "test")) == 16
