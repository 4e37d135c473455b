"""The bench of an epoch and an evaluation, tiny: its texts, its check, its sums, its answer."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from transformers import AutoTokenizer

from lorasp.bench import glue, measure
from lorasp.config import data_folder
from lorasp.data.generated import BAD, GOOD
from lorasp.data.load import load_split
from lorasp.results import write_json


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setattr(glue, "SIZES", {**sizes, "intermediate_size": 64})
    monkeypatch.setattr(glue, "ROWS", {"train": 16, "validation": 8})


def cut(mean: float, deviation: float) -> tuple[float, float]:
    """Mean and standard deviation of a log-normal that is cut at 128, by quadrature."""
    spread = math.sqrt(math.log(1 + (deviation / mean) ** 2))
    middles = (np.arange(100_000) + 0.5) / 100_000
    whole = stats.lognorm.ppf(middles, spread, scale=mean * math.exp(-(spread**2) / 2))
    values = np.minimum(whole, 128)
    return float(values.mean()), float(values.std())


@pytest.mark.parametrize("task", ["sst2", "mrpc", "rte"])
def test_all_read_the_same_tokens_in_the_lengths_that_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task: str
) -> None:
    monkeypatch.setattr(glue, "SIZES", {"hidden_size": 32, "num_hidden_layers": 1})
    config = glue.prepared(tmp_path, task, 1)
    tokenizer = AutoTokenizer.from_pretrained(data_folder(config, "models", "roberta"))
    for split, lengths in glue.LENGTHS[task].items():
        mean, deviation = cut(*lengths)
        ours = load_split(data_folder(config, "tokens", "roberta", task), split)
        rows = load_split(data_folder(config, task), split)
        # five standard errors of the mean
        assert np.mean(ours["length"]) == pytest.approx(
            mean, abs=5 * deviation / math.sqrt(len(ours))
        )
        assert np.std(ours["length"]) == pytest.approx(deviation, rel=0.25)
        assert max(ours["length"]) <= 128
        ragged = glue._encoded(rows, tokenizer, task, False)
        assert list(ragged["input_ids"]) == list(ours["input_ids"])
        assert list(rows["label"]) == list(ours["labels"])
        padded = glue._encoded(rows, tokenizer, task, "max_length")
        assert {len(ids) for ids in padded["input_ids"]} == {128}
        assert [sum(mask) for mask in padded["attention_mask"]] == list(ours["length"])


def test_nine_labels_of_ten_are_told_by_the_words() -> None:
    rows = glue.texts("mrpc", "train", 53, 13)
    right = []
    for row in rows:
        words = {*row["sentence1"].split(), *row["sentence2"].split()}
        kind, unkind = words & {*GOOD}, words & {*BAD}
        assert bool(kind) != bool(unkind)
        right.append(row["label"] == int(bool(kind)))
    assert np.mean(right) == pytest.approx(0.9, abs=5 * math.sqrt(0.09 / len(right)))


@pytest.mark.parametrize(
    ("ours", "theirs", "met"),
    [
        ([88.0, 90.0], [90.0, 90.0], True),
        ([86.9], [90.0], False),
        ([85.0, 89.2], [90.0], True),  # seeds may differ by more
        ([90.0], [86.0, 87.0], False),  # better by as much is another run as well
        ([60.0], [60.0], False),  # equal, and next to chance: nothing was learned
    ],
)
def test_accuracies_are_the_same_within_three_points(
    ours: list[float], theirs: list[float], met: bool
) -> None:
    check = glue.same_accuracy("sst2", glue.DYNAMIC, ours, theirs)
    assert check["met"] is met
    assert f"{glue.DYNAMIC}, mean of {len(ours)} seeds" in check["what"]


def test_the_answer(tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everyone is run, the clock says what the test says, the goal is that of the smallest gain.

    24 examples in 2 s are 12 a second.
    """
    clocks = iter([(2.0, 7.0, 3.0), (4.0, 10.0, 5.0), (2.0, 6.0, 3.0)])

    def in_turn(contestants: dict[str, Any], rounds: int) -> measure.Seconds:
        for run in contestants.values():
            for _ in range(rounds):
                run()
        return {name: [s] * rounds for name, s in zip(contestants, next(clocks), strict=True)}

    monkeypatch.setattr(measure, "in_turn", in_turn)
    found = glue.bench(rounds=2, cores=1)
    first, second, _ = (case["values"] for case in found["cases"])
    assert first[glue.OURS] == {"median": 12, "q1": 12, "q3": 12}
    assert second[glue.DYNAMIC]["median"] == pytest.approx(24 / 5)
    (goal,) = found["goals"]
    assert (goal["goal"], goal["median"], goal["met"]) == ("glue.speed", 2.5, True)
    told = [check["what"] for check in found["checks"]]
    for task in ("sst2", "mrpc", "rte"):
        for peer in (glue.PEER, glue.DYNAMIC):
            assert told.count(f"{task}: accuracy of ours and of {peer}, mean of 2 seeds") == 1
    times = {name: "2026-01-01T00:00:00+00:00" for name in ("started", "finished")}
    write_json(tmp_path / "glue.json", {**found, **times, "load": 0.1}, "bench")


def test_a_seed_is_a_run_of_its_own_that_can_be_had_again(tiny: None, tmp_path: Path) -> None:
    config = glue.prepared(tmp_path, "sst2", 1)
    scores: dict[str, list[float]] = {glue.OURS: [], glue.PEER: [], glue.DYNAMIC: []}
    runs = glue.contestants(config, "sst2", scores)
    for who in (glue.OURS, glue.DYNAMIC):
        runs[who]()
        assert len(scores[who]) == 1 and 0 <= scores[who][0] <= 100
    assert glue.train_and_evaluate(config, "sst2", 0) == scores[glue.OURS][0]
