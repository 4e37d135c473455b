"""One run of each family and method: what is counted, and that the same seed gives the same run."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TASKS, Run, adapter_of
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from lorasp.config import Cell, Config, resolve
from lorasp.data.load import check_folder, load_split
from lorasp.training.train import train_cell

# Hidden size 32 everywhere, rank 4. Adapted matrices, all 32 by 32: query and value of two RoBERTa
# layers; q and v of two encoder blocks of T5 and, with the cross-attention, of four in its decoder;
# q and v of two LLaMA layers. RoBERTa's head is a dense layer and a projection to two classes.
MATRICES = {"roberta-tiny": 4, "t5-tiny": 12, "llama-tiny": 4}
HEAD = {"roberta-tiny": 32 * 32 + 32 + 32 * 2 + 2, "t5-tiny": 0, "llama-tiny": 0}
LORA = 4 * (32 + 32)
ROWS = {"roberta-tiny": 64, "t5-tiny": 64, "llama-tiny": 48}


@pytest.mark.parametrize("method", ["lora", "lora-half", "lora-sp", "lora-sp-init"])
@pytest.mark.parametrize("model", list(MATRICES))
def test_what_a_run_counts(config: Config, run: Run, model: str, method: str) -> None:
    folder, record = run(method, model, batch_size=24)
    entries = LORA if method == "lora" else LORA // 2
    assert record["parameters"]["trainable"] == MATRICES[model] * entries + HEAD[model]
    (file,) = (folder / "adapter").glob("*.safetensors")
    assert record["adapter_bytes"] == file.stat().st_size
    saved = sum(tensor.numel() for tensor in load_file(file).values())
    assert saved == record["parameters"]["trainable"]
    tokens = load_split(Path("data/smoke/tokens", model, TASKS[model]), "train")
    assert record["steps"] == math.ceil(ROWS[model] / 24)
    assert record["examples"] == ROWS[model] == len(tokens)
    # what T5 reads is its source alone, so tokens are those of input_ids
    assert record["tokens"] == sum(tokens["length"])
    assert [entry["step"] for entry in record["loss"]] == [*range(1, record["steps"] + 1)]
    assert record["final_loss"] == record["loss"][-1]["loss"]
    assert record["config"] == json.loads(json.dumps(resolve(config, Cell(**record["cell"]))))
    assert record["data"] == {
        "model": check_folder(Path("data/smoke/models", model))["fingerprint"],
        "tokens": check_folder(Path("data/smoke/tokens", model, TASKS[model]))["fingerprint"],
    }
    assert {file.name for file in folder.iterdir()} == {"adapter", "train.json"}


def test_steps_that_end_inside_an_epoch(run: Run) -> None:
    """Two epochs of 24 + 24 + 16 rows, of which four steps are taken: 64 + 24."""
    _, record = run("lora", batch_size=24, max_steps=4)
    assert (record["steps"], record["examples"]) == (4, 88)


def test_full_fine_tuning_leaves_a_model_of_its_own(run: Run) -> None:
    folder, record = run("ft")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "adapter")
    count = sum(parameter.numel() for parameter in model.parameters())
    assert record["parameters"] == {"trainable": count, "total": count}
    tokenizer = AutoTokenizer.from_pretrained(folder / "adapter")
    base = AutoTokenizer.from_pretrained("data/smoke/models/roberta-tiny")
    assert tokenizer("the kind cat")["input_ids"] == base("the kind cat")["input_ids"]
    start = AutoModelForSequenceClassification.from_pretrained("data/smoke/models/roberta-tiny")
    before, after = (m.roberta.encoder.state_dict() for m in (start, model))
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_the_base_model_is_left_alone(run: Run) -> None:
    folder, record = run("base", "llama-tiny")
    model = AutoModelForCausalLM.from_pretrained("data/smoke/models/llama-tiny")
    count = sum(parameter.numel() for parameter in model.parameters())
    assert record["parameters"] == {"trainable": 0, "total": count}
    assert (record["steps"], record["loss"], record["adapter_bytes"]) == (0, [], 0)
    assert list((folder / "adapter").iterdir()) == []


@pytest.mark.parametrize("method", ["lora-sp", "ft"])
def test_the_seed_decides_the_run(run: Run, method: str) -> None:
    (first, a), (again, b) = run(method, out="first"), run(method, out="again")
    other, c = run(method, seed=1, out="other")
    assert a["loss"] == b["loss"] and a["loss"] != c["loss"]
    one, two, three = map(adapter_of, (first, again, other))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)


def test_what_came_before_in_the_process_changes_nothing(run: Run) -> None:
    first, _ = run("lora-sp", out="first")
    torch.manual_seed(1234)
    torch.rand(7)
    again, _ = run("lora-sp", out="again")
    one, two = adapter_of(first), adapter_of(again)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_is_replaced_by_the_next(run: Run) -> None:
    folder, _ = run("lora", out="here")
    (folder / "adapter" / "left-over").touch()
    _, record = run("lora", out="here", max_steps=1)
    assert record["steps"] == 1
    assert not (folder / "adapter" / "left-over").exists()


def test_mixed_precision_keeps_the_adapter_in_full(config: Config, run: Run) -> None:
    config["runtime"]["precision"] = "bf16"
    half, record = run("lora-sp", out="bf16")
    config["runtime"]["precision"] = "fp32"
    _, full = run("lora-sp", out="fp32")
    assert {tensor.dtype for tensor in adapter_of(half).values()} == {torch.float32}
    found, expected = ([x["loss"] for x in r["loss"]] for r in (record, full))
    assert found == pytest.approx(expected, rel=0.05) and found != expected


def test_the_default_folder_is_the_cells(config: Config, project: Path) -> None:
    config["recipes"]["quick"]["max_steps"] = 1
    cell = Cell("smoke", "roberta-tiny", "mrpc", "lora", "quick", 3)
    path: Any = train_cell(config, cell)
    assert path == Path("results/smoke/roberta-tiny/mrpc/lora/quick/seed-3/train.json")
