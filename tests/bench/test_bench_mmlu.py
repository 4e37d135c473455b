"""The bench of MMLU at a tiny size: its result, its lengths, and that a difference breaks it."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from lorasp.bench import mmlu
from lorasp.data import tiny_models

SCHEMA = Path(mmlu.__file__).parents[1] / "schemas" / "bench.schema.json"
TINY = mmlu.SIZES | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def test_the_result_is_complete_and_both_models_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    class Peer(HFLM):
        def _model_call(self, inps: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
            rows.add(len(inps))
            return super()._model_call(inps, *given, **named)

    rows: set[int] = set()
    monkeypatch.setattr(mmlu, "HFLM", Peer)
    found = mmlu.bench(rounds=1, cores=1, questions=6, sizes=TINY)
    assert rows >= set(mmlu.BATCH_SIZES)  # the peer has had batches of each size
    times = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:00:00+00:00"}
    whole = {"schema": 1, "kind": "bench", **found, **times, "load": 0.0}
    jsonschema.validate(whole, json.loads(SCHEMA.read_text()))
    assert [check["met"] for check in found["checks"]] == [True] * 3
    (goal,) = found["goals"]
    (case,) = found["cases"]
    theirs, ours = (value["median"] for value in case["values"].values())
    assert goal["goal"] == "mmlu.speed"
    assert goal["median"] == pytest.approx(theirs / ours)


def test_questions_have_the_lengths_of_mmlu(tmp_path: Path) -> None:
    texts = tiny_models.generated_texts()
    tokenizer = tiny_models.train_tokenizer("llama", texts, tiny_models.VOCABULARY)
    tasks = mmlu.generated_tasks(tmp_path, tokenizer, 300)
    tasks[mmlu.SUBJECT].build_all_requests()
    prefix, rest = mmlu.lengths(tasks, tokenizer)
    assert prefix == pytest.approx(mmlu.PREFIX, rel=0.02)
    assert len(rest) == 300
    assert np.mean(rest) == pytest.approx(mmlu.QUESTION, rel=0.1)
    assert np.std(rest) / np.mean(rest) == pytest.approx(mmlu.SPREAD, rel=0.2)


def test_a_difference_breaks_its_check() -> None:
    theirs = [(-1.0, True), (-2.0, False), (-3.0, False), (-4.0, False)]
    assert [check["met"] for check in mmlu.checks(theirs, theirs)] == [True] * 3
    near = [(score - 0.002, greedy) for score, greedy in theirs]
    assert [check["met"] for check in mmlu.checks(theirs, near)] == [False, True, True]
    other = [theirs[0], (-0.9995, False), *theirs[2:]]
    assert [check["met"] for check in mmlu.checks(theirs, other)] == [False, False, True]
    greedy = [(score, False) for score, _ in theirs]
    assert [check["met"] for check in mmlu.checks(theirs, greedy)] == [True, True, False]
