"""A small configuration; its data lie in the test's own folder, where the test runs."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    tasks = ("sst2", "mnli", "stsb", "wmt16-en-ro", "alpaca-mmlu")
    return {
        "scale": "smoke",
        "data_dir": "data",
        "datasets": {
            name: {"source": {"kind": "generated", "task": name}} for name in (*tasks, "mmlu")
        },
        "models": {
            f"{shape}-tiny": {"source": {"kind": "generated", "shape": shape}}
            for shape in ("roberta", "t5", "llama")
        },
        "tasks": {name: {"dataset": name, "max_length": 64} for name in tasks},
        "methods": {"ft": {"family": "full"}},
        "recipes": {"stated": {}},
    }
