"""What a sweep measured, beside a claim that nothing can judge: planted scores, ranges by hand."""

import copy
from pathlib import Path
from typing import Any

import pytest
from small import Scores, config, verdicts, write_paper

from lorasp.config import Config
from lorasp.sweeps import expand

SAID = {"verdict": "not comparable", "because": "The paper names no setting."}
CLAIM = {
    "id": "claim", "kind": "relation", "where": "section 1", "printed": "'robust'",
    "unjudged": SAID, "sweep": {"method": "lora-sp", "over": ["rank", "density"]},
}  # fmt: skip
# rank 8 and the rate 0.01 are what the method and the recipe say, so those points have their names
PLANTED = {
    ("lora-sp", "stated"): [90.0, 92.0],
    ("lora-sp.rank-4", "stated"): [88.0, 88.0],
    ("lora-sp", "stated.learning_rate-0.1"): [60.0, 62.0],
    ("lora-sp.rank-4", "stated.learning_rate-0.1"): [50.0, 50.0],
}


def swept(scale: str = "paper", **changes: Any) -> Config:
    """LoRA-SP on SST-2 over two ranks and two rates, two seeds each."""
    sweep = {
        "name": "grid", "models": ["roberta-base"], "tasks": ["sst2"], "method": "lora-sp",
        "recipe": "stated", "over": {"rank": [4, 8], "learning_rate": [0.01, 0.1]},
        "seeds": [0, 1],
    }  # fmt: skip
    made = config("paper", sweeps=[sweep | changes])
    method = made["methods"]["lora-sp"]
    made["methods"]["lora-sp"] = method | {"family": "LORA_SP", "settings": {"rank": 8}}
    made["methods"]["lora"] |= {"family": "LORA", "settings": {"rank": 8}}
    made["recipes"]["stated"] = {"learning_rate": 0.01}
    return expand(made) | {"scale": scale}


def planted(**changes: list[float | None]) -> Scores:
    scores: Scores = {
        f"roberta-base sst2 {method} {recipe}": list(values)
        for (method, recipe), values in PLANTED.items()
    }
    return scores | {f"roberta-base sst2 {key} stated": value for key, value in changes.items()}


def judged(
    tmp_path: Path, made: Config, scores: Scores | None = None, **changes: Any
) -> dict[str, Any]:
    return verdicts(write_paper(tmp_path, copy.deepcopy(CLAIM) | changes), made, scores)["claim"]


def test_the_ranges_of_a_sweep_stand_beside_what_nothing_can_judge(tmp_path: Path) -> None:
    found = judged(tmp_path, swept(), planted())
    assert {key: found[key] for key in SAID} == SAID
    # means 91, 88, 61, 50: rank moves 3 and 11, the rate 30 and 38
    assert found["evidence"] == [
        "Sweep grid, roberta-base on sst2: over rank 4 to 8 and learning_rate 0.01 to 0.1 the "
        "scores of 4 points, means over their seeds, range from 50.0 to 91.0; with all else "
        "fixed, rank moves them by up to 11.0, learning_rate moves them by up to 38.0 points."
    ]
    assert [(r["rank"], r["learning_rate"], r["mean"], r["seeds"]) for r in found["rows"]] == [
        (4, 0.01, 88.0, 2), (4, 0.1, 50.0, 2), (8, 0.01, 91.0, 2), (8, 0.1, 61.0, 2)
    ]  # fmt: skip


def test_what_is_missing_or_undefined_is_told(tmp_path: Path) -> None:
    scores = planted()
    scores["roberta-base sst2 lora-sp stated"] = [90.0, float("nan")]
    scores["roberta-base sst2 lora-sp.rank-4 stated"] = [None, None]
    (told,) = judged(tmp_path, swept(), scores)["evidence"]
    assert "the scores of 3 of 4 points" in told and "range from 50.0 to 90.0" in told
    assert told.endswith("points; left out, without a defined score: 1 runs.")
    only: Scores = {key: [None] for key in planted()}
    only |= {"roberta-base sst2 lora-sp stated": [90.0, 91.0]}
    (told,) = judged(tmp_path, swept(), only)["evidence"]
    assert told == "Sweep grid, roberta-base on sst2: 1 of 4 points have a score."


@pytest.mark.parametrize(
    ("made", "changes"),
    [
        (swept(method="lora", over={"rank": [4, 8]}), {}),
        (swept(over={"learning_rate": [0.01, 0.1]}), {}),
        (config(), {}),
    ],
    ids=["another method", "another setting", "no sweep"],
)
def test_other_sweeps_are_no_evidence(
    tmp_path: Path, made: Config, changes: dict[str, Any]
) -> None:
    found = judged(tmp_path, made, planted(), **changes)
    assert found["evidence"] == ["No sweep of it is planned at this scale."]
    assert found["rows"] == []


def test_random_models_are_no_evidence(tmp_path: Path) -> None:
    assert "evidence" not in judged(tmp_path, swept("smoke"), planted())
