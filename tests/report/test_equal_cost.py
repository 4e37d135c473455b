"""Methods at equal cost: what was matched, how nearly, with which settings, and the difference."""

from pathlib import Path
from typing import Any

import pytest
from advice_plan import PLAN, planted

from lorasp.budget_words import MEASURED
from lorasp.config import Config
from lorasp.report.collect import collect
from lorasp.report.equal_cost import equal_cost_frame, units
from lorasp.report.scopes import samples
from lorasp.results import read_json, write_json


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def budget(config: Config, method: str, off: float, note: str | None) -> None:
    write_json(
        Path(f"results/mini/budget/roberta-tiny/{method}.json"),
        {
            "scale": "mini", "model": "roberta-tiny", "method": method, "budget": "trainable",
            "reference": "lora", "unit": "trained parameters", "settings": {"rank": 7},
            "steps": 1.0, "asked": 2000, "achieved": 2000 * (1 + off), "off": off, "note": note,
            "made_from": "0" * 64,
        },
        "budget",
    )  # fmt: skip


def trained_with(method: str, seed: int, taken: int, **changes: Any) -> None:
    """A run's train.json as it is where the budget, changed so, was what it was trained with."""
    folder = Path("results/mini/roberta-tiny/sst2", method, "stated", f"seed-{seed}")
    found = read_json(folder / "train.json", "train") | {"steps": taken}
    fitted = read_json(Path(f"results/mini/budget/roberta-tiny/{method}.json"), "budget")
    found["config"]["method"]["budget"] = fitted | changes
    write_json(folder / "train.json", found, "train")


def test_at_equal_cost_the_match_and_the_difference_are_told() -> None:
    config = planted({name: PLAN[name] for name in ("base", "ft", "lora", "lora-half")})
    results = collect(config)
    config["methods"]["lora-half"] |= {"match": {"trainable": "lora"}, "size": "rank"}
    config["methods"]["ft"] |= {"match": {"time": "lora-sp"}}

    def rows() -> list[dict[str, Any]]:
        frame = equal_cost_frame(config, results, samples(config, results))
        return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]

    budget(config, "lora-half", -0.125, "nothing comes nearer")
    ft, half = rows()
    assert (half["Equal to"], half["In"]) == ("LoRA", "trained parameters")
    assert (half["Asked"], half["Achieved"], half["Off"]) == ("2,000", "1,750", "−12.50 %")
    assert half["With"] == "rank 7 (no run of it yet)"
    assert half["Score difference"] == "−4.6 [−4.6, −4.5], 4 pairs"
    assert (ft["Asked"], ft["Score difference"]) == ("not fitted", "no pair of runs")
    for seed in range(4):
        trained_with("lora-half", seed, 4)
    budget(config, "lora-half", 0.0, None)  # fitted again, after the runs
    _, half = rows()
    assert (half["Achieved"], half["Off"]) == ("1,750", "−12.50 %")
    assert half["With"] == "rank 7 (nothing comes nearer)"
    trained_with("lora-half", 3, 4)
    _, half = rows()
    assert (half["Achieved"], half["Off"]) == ("1,750; 2,000", "−12.50 %; equal")


def test_of_equal_time_the_steps_that_were_taken_are_told() -> None:
    config = planted({name: PLAN[name] for name in ("base", "lora", "lora-half")})
    results = collect(config)
    config["methods"]["lora-half"] |= {"match": {"time": "lora"}}
    budget(config, "lora-half", 0.0, None)
    for seed in range(4):
        trained_with("lora-half", seed, 9 if seed else 10, budget="time", settings={}, steps=2.5)
    (row,) = equal_cost_frame(config, results, samples(config, results)).to_dict("records")
    assert row["With"] == "2.5 times the steps; 9 to 10 steps taken, 4 by the other"


PAPER_SCALE: dict[str, dict[str, Any]] = {
    "trainable": {
        "asked": 12_345_678,
        "achieved": 12_345_670,
        "told": ("12,345,678", "12,345,670"),
    },
    "memory": {
        "asked": 74_321.25 * 2**20,
        "achieved": 74_328.5 * 2**20,
        "told": ("74,321.25 MiB", "74,328.50 MiB"),
    },
    "time": {"asked": 1.23456, "achieved": 1.23501, "told": ("1,234.56 ms", "1,235.01 ms")},
}


@pytest.mark.parametrize("kind", PAPER_SCALE)
def test_numbers_of_the_papers_scale_are_whole_and_show_what_they_are_off(kind: str) -> None:
    config = planted({name: PLAN[name] for name in ("base", "lora", "lora-half")})
    config["methods"]["lora-half"] |= {"match": {kind: "lora"}}
    budget(config, "lora-half", 0.0, None)
    told = PAPER_SCALE[kind]
    off = told["achieved"] / told["asked"] - 1
    for seed in range(4):
        changes = {"budget": kind, "asked": told["asked"], "achieved": told["achieved"], "off": off}
        trained_with("lora-half", seed, 4, **changes, settings={"rank": 1048576, "density": 0.0125})
    results = collect(config)
    frame = equal_cost_frame(config, results, samples(config, results))
    (row,) = frame.to_dict("records")
    assert (row["Asked"], row["Achieved"]) == told["told"]
    if kind != "time":
        assert row["With"] == "density 0.0125, rank 1048576"
    assert units(frame).startswith(f"What is matched: {MEASURED[kind]}.")
    assert ("seed 0" in units(frame)) == (kind == "trainable")
