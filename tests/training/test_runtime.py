"""What `runtime` says of attention and TF32, as it reaches the model."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lorasp import models
from lorasp.config import Cell, Config, resolve
from lorasp.errors import UsageError


def loaded(config: Config, name: str, **runtime: Any) -> torch.nn.Module:
    config["runtime"] |= runtime
    task = {"roberta-tiny": "mrpc", "t5-tiny": "wmt16-en-ro"}[name]
    resolved = resolve(config, Cell("smoke", name, task, "lora", "quick", 0))
    return models.load_model(resolved, Path("data/smoke/models", name))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_the_one_that_is_asked_for(
    config: Config, project: Path, attention: str
) -> None:
    model = loaded(config, "roberta-tiny", attention=attention)
    assert models.attention_of(model) == attention


def test_attention_that_a_model_or_the_environment_lacks(
    config: Config, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"runtime\.attention is flash_attention_2, for which the"):
        loaded(config, "roberta-tiny", attention="flash_attention_2")
    monkeypatch.setattr(
        models.AutoModelForSequenceClassification._model_mapping[
            models.AutoConfig.for_model("roberta").__class__
        ],
        "_supports_flash_attn",
        False,
    )
    with pytest.raises(
        UsageError, match=r"which RobertaForSeq\w+ does not have; allowed are eager"
    ):
        loaded(config, "roberta-tiny", attention="flash_attention_2")


@pytest.mark.parametrize(("tf32", "precision"), [(True, "high"), (False, "highest")])
def test_tf32_is_for_cuda(monkeypatch: pytest.MonkeyPatch, tf32: bool, precision: str) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    models.set_tf32({"runtime": {"device": "cuda", "tf32": tf32}})
    assert asked == [precision] and torch.backends.cudnn.allow_tf32 == tf32
    models.set_tf32({"runtime": {"device": "cpu", "tf32": True}})
    assert asked == [precision]
