"""The paper's configuration, and simulated steps at the price of an addition."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lorasp.config import Config, load_config
from lorasp.planning import memory
from lorasp.planning.memory import Step

ROOT = Path(__file__).parents[2]
PARAMETERS = {"roberta-base": 0.125, "roberta-large": 0.355, "t5-base": 0.223, "t5-large": 0.738}
PARAMETERS |= {"llama-7b": 6.74, "llama-13b": 13.0, "llama-2-7b": 6.74}


@pytest.fixture(scope="session")
def paper() -> Config:
    return load_config(ROOT / "config" / "paper.yaml")


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No simulation and no prepared data: sizes from the counts of parameters alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)

    def steps(config: Config, question: Any, shape: Any, settings: dict[str, str]) -> memory.Steps:
        count = PARAMETERS[question.model] * 1e9
        full = question.method == "ft"
        trained = count if full else count / 100
        packed = settings.get("quantize") == "nf4"
        weights = count * (4 if full or count < 1e9 else 0.6 if packed else 2)
        states = weights + 12 * trained
        activation = count * (0.05 if settings.get("recompute") == "full" else 0.35)
        flops = 6 * count * question.length

        def simulate(batch: int) -> Step:
            peak = states + activation * batch
            kept, forward = activation * batch / 2, flops * batch / 3
            sizes = (peak, peak, states, states, weights, kept, flops * batch, forward)
            return Step(batch, *sizes, trained, count)

        return memory.Steps(simulate)

    monkeypatch.setattr(memory, "_steps", steps)


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Any:
    """The JSON that a command prints."""
    return lambda: json.loads(capsys.readouterr().out)
