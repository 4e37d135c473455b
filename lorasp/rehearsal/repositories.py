"""The paper's repositories in small: true ids and layouts, random weights, invented text."""

import io
import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import ClassLabel, Dataset, Value
from transformers import AutoModelForCausalLM

from lorasp.config import Config
from lorasp.data import generated, tiny_models
from lorasp.data.mmlu import SPLITS, SUBJECTS, file_name
from lorasp.data.tokens import prompt_text
from lorasp.errors import WorkError
from lorasp.rehearsal.hub import Repository
from lorasp.tasks import load_task

ROWS = {"train": 32, "validation": 8, "test": 4}
SHAPES = {"encoder": "roberta", "seq2seq": "t5", "causal": "llama"}
GATED = ("meta-llama/",)
SHARD = "{}-00000-of-00001.parquet"
Files = dict[str, bytes]
Tables = dict[str, Dataset]


class _Trap:
    """What ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('a pickled file of the stand-in hub was loaded')",)


TRAP = pickle.dumps(_Trap())


def repositories(config: Config) -> dict[tuple[str, str], Repository]:
    """A repository for each hub source of a configuration, by (models or datasets, id)."""
    made: dict[tuple[str, str], Repository] = {}
    texts = tiny_models.generated_texts()
    for model in config["models"].values():
        source = model["source"]
        if source["kind"] == "hub":
            gated = source["id"].startswith(GATED)
            files = model_files(
                SHAPES[model["architecture"]], source["id"].endswith(("large", "13b")), texts
            )
            made["models", source["id"]] = Repository(source["revision"], files, gated)
    for dataset in config["datasets"].values():
        source = dataset["source"]
        if source["kind"] == "hub" and ("datasets", source["id"]) not in made:
            files = dataset_files(source["id"])
            made["datasets", source["id"]] = Repository(source["revision"], files)
    return made


def model_files(shape: str, large: bool, texts: list[str]) -> Files:
    """A tiny model as published: safetensors, tokenizer, and weights of other formats beside them.

    LLaMA's weights are fp16 and in shards with an index. The other formats are traps or rubbish:
    who loads one, fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"num_layers" if shape == "t5" else "num_hidden_layers": 3} if large else {}
        tiny_models.write_model(folder, shape, sizes, texts, tiny_models.VOCABULARY)
        if shape == "llama":
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
            (folder / "model.safetensors").unlink()
            model.save_pretrained(folder, max_shard_size="64KB")
        if shape == "roberta":
            vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]
            (folder / "vocab.json").write_text(json.dumps(vocabulary["vocab"], ensure_ascii=False))
            merges = [" ".join(pair) for pair in vocabulary["merges"]]
            (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
    others = ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"]
    if shape == "llama":
        shards = [name for name in files if name.endswith(".safetensors")]
        others = [f"pytorch_{name.removesuffix('.safetensors')}.bin" for name in shards]
    card = {"license": "other", "tags": ["rehearsal"]}
    return {"README.md": _card(card), **files, **dict.fromkeys(others, TRAP)}


def dataset_files(name: str) -> Files:
    """A data set as published; WorkError for one that the paper does not use."""
    match name:
        case "nyu-mll/glue":
            tables = {f"{task}/{split}": rows for task, split, rows in _glue()}
        case "wmt/wmt16":
            tables = {f"ro-en/{split}": rows for split, rows in _wmt16().items()}
            tables |= {f"cs-en/{split}": tables["ro-en/test"] for split in ROWS}  # not the paper's
        case "tatsu-lab/alpaca":
            rows = generated.tables("alpaca-mmlu")["train"].select(range(ROWS["train"]))
            file = "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"
            # its card names no configuration; `datasets` goes by the names of the files
            return {"README.md": _card({"license": "cc-by-nc-4.0"}), file: _parquet(_alpaca(rows))}
        case "cais/mmlu":
            tables = _mmlu()
        case _:
            raise WorkError(f"the stand-in hub has no data set {name}: add it to {__file__}")
    configs: dict[str, list[dict[str, str]]] = {}
    for table in tables:
        config, split = table.split("/")
        configs.setdefault(config, []).append({"split": split, "path": f"{config}/{split}-*"})
    listed = [{"config_name": config, "data_files": parts} for config, parts in configs.items()]
    files = {file_name(table): _parquet(rows) for table, rows in tables.items()}
    return {"README.md": _card({"license": "other", "configs": listed}), **files}


def _glue() -> list[tuple[str, str, Dataset]]:
    found = []
    for task in generated.GLUE:
        tables = generated.tables(task)
        names = load_task(task).get("labels")
        label = ClassLabel(names=names) if names else Value("float32")
        for split, rows in tables.items():
            part = rows.select(range(ROWS[split.split("_")[0]])).cast_column("label", label)
            found.append((task, split, part))
            if split != "train":  # the labels of the test splits are not published
                hidden = part.select(range(ROWS["test"]))
                unknown = [-1] * len(hidden)
                hidden = hidden.remove_columns("label").add_column("label", unknown)
                hidden = hidden.select_columns(part.column_names).cast_column("label", label)
                found.append((task, split.replace("validation", "test"), hidden))
    return found


def _wmt16() -> Tables:
    return {
        split: Dataset.from_dict({"translation": rows.select(range(ROWS[split])).to_list()})
        for split, rows in generated.tables("wmt16-en-ro").items()
    }


def _alpaca(rows: Dataset) -> Dataset:
    task = load_task("alpaca-mmlu")
    return rows.add_column("text", [f"{prompt_text(task, row)}\n{row['output']}" for row in rows])


def _mmlu() -> Tables:
    answer = ClassLabel(names=list("ABCD"))
    tables = {}
    for table, rows in generated.tables("mmlu").items():
        tables[table] = rows.cast_column("answer", answer)
    for subject in SUBJECTS:
        tables[f"{subject}/validation"] = tables[f"{subject}/dev"].select(range(1))
    first = tables[f"{SUBJECTS[0]}/dev"]
    return tables | {f"all/{split}": first for split in SPLITS} | {"auxiliary_train/train": first}


def _parquet(rows: Dataset) -> bytes:
    buffer = io.BytesIO()
    rows.to_parquet(buffer)
    return buffer.getvalue()


def _card(head: dict[str, Any]) -> bytes:
    text = yaml.safe_dump(head, sort_keys=False)
    return f"---\n{text}---\nMade for a rehearsal: random weights, invented text.\n".encode()
