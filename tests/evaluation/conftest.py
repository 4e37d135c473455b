"""A project folder with the smoke scale's tiny models and data, made once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from lorasp.adapters import registry
from lorasp.config import Cell, Config, data_folder, load_config, resolve
from lorasp.data.load import check_folder
from lorasp.data.prepare import prepare_dataset, prepare_model, prepare_tokens
from lorasp.models import load_model
from lorasp.results import provenance, write_json

ROOT = Path(__file__).parents[2]
TOKENS = [
    ("roberta-tiny", "mrpc"),
    ("roberta-tiny", "stsb"),
    ("roberta-tiny", "mnli"),
    ("t5-tiny", "wmt16-en-ro"),
]


@pytest.fixture(scope="session")
def config() -> Config:
    return load_config(ROOT / "config" / "smoke.yaml")


@pytest.fixture(scope="session")
def prepared(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds data/smoke."""
    folder, here = tmp_path_factory.mktemp("project"), Path.cwd()
    os.chdir(folder)
    try:
        for name in ("mrpc", "stsb", "mnli", "wmt16", "mmlu", "alpaca"):
            prepare_dataset(config, name)
        for name in config["models"]:
            prepare_model(config, name)
        for model, task in TOKENS:
            prepare_tokens(config, model, task)
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def project(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh current folder with results of its own; `data` is a link to the prepared one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(prepared / "data")
    return tmp_path


@pytest.fixture
def trained(config: Config, project: Path) -> Callable[[str, str, str], tuple[Cell, Any]]:
    """Leaves behind what training leaves: weights (here shaken at random) and train.json."""

    def train(model_name: str, task: str, method: str) -> tuple[Cell, Any]:
        recipe = "none" if method == "base" else "stated"
        cell = Cell("smoke", model_name, task, method, recipe, 0)
        resolved: dict[str, Any] = resolve(config, cell)
        place = data_folder(config, "models", cell.model)
        model = registry.apply_method(load_model(resolved, place), resolved)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        size = registry.save_adapter(model, cell.folder / "adapter")
        record = {
            "cell": resolved["cell"],
            "config": resolved,
            "data": {"model": check_folder(place)["fingerprint"]},
            "provenance": provenance(),
            "started": "2024-01-01T00:00:00+00:00",
            "finished": "2024-01-01T00:00:01+00:00",
            "wall_seconds": 1.0,
            "peak_memory_bytes": 0,
            "parameters": registry.count_parameters(model),
            "adapter_bytes": size,
            "steps": 0,
            "examples": 0,
            "tokens": 0,
            "loss": [],
            "final_loss": None,
            "best": None,
            "status": "finished",
            "diverged_at": None,
            "processes": 1,
            "attention": "sdpa",
            "micro_batch": {"asked": 16, "used": 16, "halved": []},
            "resumed": [],
        }
        write_json(cell.folder / "train.json", record, "train")
        return cell, model.eval()

    return train


@pytest.fixture(scope="session")
def alone() -> Callable[[torch.nn.Module, Dataset], np.ndarray]:
    """The outputs of a classifier for each row by itself, without padding."""

    def predict(model: torch.nn.Module, rows: Dataset) -> np.ndarray:
        outputs = []
        with torch.no_grad():
            for row in rows:
                inputs = {key: torch.tensor([row[key]]) for key in ("input_ids", "attention_mask")}
                outputs.append(model(**inputs).logits[0].numpy())
        return np.stack(outputs)

    return predict
