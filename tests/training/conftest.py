"""A project folder with tiny models without dropout, and a Trainer that keeps what it was given."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import TASKS, Recorder, Run

from lorasp.config import Cell, Config, load_config
from lorasp.data.prepare import prepare_dataset, prepare_model, prepare_tokens
from lorasp.results import read_json
from lorasp.training import train

ROOT = Path(__file__).parents[2]
DATASETS = ("mrpc", "wmt16", "alpaca")
STILL: dict[str, dict[str, float]] = {
    "roberta-tiny": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "t5-tiny": {"dropout_rate": 0.0},
    "llama-tiny": {},
}


@pytest.fixture
def config() -> Config:
    """The smoke configuration without dropout, with a recipe that moves the weights."""
    config = load_config(ROOT / "config" / "smoke.yaml")
    for name, sizes in STILL.items():
        config["models"][name]["source"]["config"] = sizes
    config["recipes"]["quick"] = {
        "learning_rate": 1e-2,
        "epochs": 1,
        "batch_size": 16,
        "weight_decay": 0.1,
        "warmup_ratio": 0.25,
        "schedule": "linear",
        "select": "last",
    }
    return config


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds data/smoke."""
    folder, here = tmp_path_factory.mktemp("project"), Path.cwd()
    config = load_config(ROOT / "config" / "smoke.yaml")
    os.chdir(folder)
    try:
        for name in DATASETS:
            prepare_dataset(config, name)
        for name, task in TASKS.items():
            config["models"][name]["source"]["config"] = STILL[name]
            prepare_model(config, name)
            prepare_tokens(config, name, task)
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
def run(config: Config, project: Path) -> Run:
    """Train a tiny model by a method: the folder of the run and its train.json.

    `out` is a folder's name, `recipe` changes values of the recipe, `settings` of the method.
    """

    def fit(
        method: str,
        model: str = "roberta-tiny",
        seed: int = 0,
        out: str | None = None,
        settings: dict[str, Any] | None = None,
        **recipe: Any,
    ) -> tuple[Path, dict[str, Any]]:
        config["recipes"]["quick"] |= recipe
        name = "none" if method == "base" else "quick"
        cell = Cell("smoke", model, TASKS[model], method, name, seed)
        path = train.train_cell(config, cell, settings, project / out if out else None)
        return path.parent, read_json(path, "train")

    return fit


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    kept = Recorder()

    class Recording(train.CellTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(kept)

        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            kept.batches.append({name: value.clone() for name, value in inputs.items()})
            return super().training_step(model, inputs, *args, **kwargs)

    monkeypatch.setattr(train, "CellTrainer", Recording)
    return kept
