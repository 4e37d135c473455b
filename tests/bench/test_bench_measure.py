"""What all benches share, on a clock that the test turns: order, counts, ratios, goals, schema."""

import importlib
import inspect
import json
import re
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lorasp.bench import BENCHES, measure
from lorasp.results import first_error, read_json, read_yaml, write_json

GOALS = read_yaml(measure.GOALS)
TIMES = {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00"}


class Race:
    """Contestants on a clock of their own: the n-th run takes a contestant's seconds and n - 1."""

    def __init__(self, **seconds: float) -> None:
        self.seconds, self.order, self.now = seconds, list[str](), 0.0

    def contestants(self) -> dict[str, Any]:
        return {name: partial(self.run, name) for name in self.seconds}

    def run(self, name: str) -> None:
        self.order.append(name)
        self.now += self.seconds[name] + self.order.count(name) - 1

    def timed(self, monkeypatch: pytest.MonkeyPatch, **counts: int) -> measure.Seconds:
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)
        return measure.in_turn(self.contestants(), **counts)


def test_all_run_once_a_round_and_each_begins_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    race = Race(a=1, b=2, c=3)
    race.timed(monkeypatch, rounds=4, warmup=2)
    rounds = [race.order[k : k + 3] for k in range(0, 18, 3)]
    assert len(race.order) == 18 and all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert [one[0] for one in rounds] == ["a", "b", "c", "a", "b", "c"]
    # none runs on the caches that itself has just warmed
    assert all(before != after for before, after in pairwise(race.order))


def test_a_warm_up_is_run_and_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # the first run of each takes 1 and 2 seconds
    assert Race(a=1, b=2).timed(monkeypatch, rounds=3) == {"a": [2, 3, 4], "b": [3, 4, 5]}


def test_without_a_warm_up_every_run_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Race(a=5).timed(monkeypatch, rounds=2, warmup=0) == {"a": [5, 6]}


def test_quartiles_are_numpy_s_linear_ones() -> None:
    assert measure.quartiles([4, 1, 3, 2]) == {"q1": 1.75, "median": 2.5, "q3": 3.25}
    assert measure.quartiles([7]) == measure.exactly(7) == {"q1": 7, "median": 7, "q3": 7}


def test_ratios_are_of_one_round_each() -> None:
    """A machine that is three times as slow in a round is so for both."""
    assert measure.ratios([1, 3, 1], [2, 6, 2]) == measure.exactly(0.5)
    assert measure.ratios([1, 6, 3], [1, 2, 2]) == {"q1": 1.25, "median": 1.5, "q3": 2.25}
    with pytest.raises(ValueError, match="shorter"):
        measure.ratios([1, 2], [1])


@pytest.mark.parametrize(
    ("goal", "median", "met"),
    [
        ("step.all-linear.peft", 0.85, True),  # at most 0.85
        ("step.all-linear.peft", 0.8501, False),
        ("mmlu.speed", 4.0, True),  # at least 4
        ("mmlu.speed", 3.9999, False),
        ("mmlu.speed", 9.0, True),
    ],
)
def test_a_goal_is_met_on_its_side_of_the_bound(goal: str, median: float, met: bool) -> None:
    (told,) = measure.judged({goal: measure.exactly(median)})
    assert told["met"] is met and told["goal"] == goal and told["median"] == median
    assert told.items() >= GOALS[goal].items()


def test_the_median_decides_and_not_the_quartiles() -> None:
    (told,) = measure.judged({"mmlu.speed": {"median": 4.1, "q1": 1.0, "q3": 9.0}})
    assert told["met"] and (told["q1"], told["q3"]) == (1.0, 9.0)


def test_a_figure_needs_a_goal() -> None:
    with pytest.raises(KeyError, match=r"step\.fast"):
        measure.judged({"step.fast": measure.exactly(1)})


@pytest.mark.parametrize("name", GOALS)
def test_every_goal_has_one_bound_and_a_bench(name: str) -> None:
    goal = GOALS[name]
    assert len({"at_most", "at_least"} & set(goal)) == 1
    assert set(goal) <= {"what", "bench", "at_most", "at_least"} and goal["what"]
    assert goal["bench"] in BENCHES and name.startswith(f"{goal['bench']}.")


def test_every_bench_has_a_goal_and_is_in_the_schema() -> None:
    assert {goal["bench"] for goal in GOALS.values()} == set(BENCHES)
    schema = json.loads((measure.GOALS.parents[1] / "schemas/bench.schema.json").read_text())
    assert schema["properties"]["bench"]["enum"] == list(BENCHES)


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_can_be_called_by_its_name(name: str) -> None:
    module = importlib.import_module(f"lorasp.bench.{name}")
    assert module.ROUNDS >= 1
    inspect.signature(module.bench).bind(rounds=module.ROUNDS, cores=2)


def found(met: bool = True) -> dict[str, Any]:
    case = {"case": "a step", "unit": "ms", "values": {"ours": measure.quartiles([1.0, 2.0])}}
    check = {"what": "the losses", "found": "2", "allowed": "1", "met": met}
    figures = {
        "step.depth.limit": measure.exactly(0.7),
        "step.query-value.limit": measure.exactly(2),
    }
    return measure.result("step", "a toy.", [case], figures, [check])


def test_a_result_is_valid_once_it_says_when(tmp_path: Path) -> None:
    path = tmp_path / "step.json"
    assert "'load' is a required property" in str(
        first_error({"schema": 1, "kind": "bench", **found(), **TIMES}, "bench")
    )
    write_json(path, {**found(), **TIMES, "load": 0.5}, "bench")
    kept = read_json(path, "bench")
    assert kept["goals"][0]["what"] == GOALS["step.depth.limit"]["what"]
    assert kept["provenance"]["machine"]["cores"] >= 1


@pytest.mark.parametrize(
    "change", [{"bench": "speed"}, {"cases": [{"case": "x"}]}, {"goals": [{}]}, {"more": 1}]
)
def test_the_schema_refuses(change: dict[str, Any]) -> None:
    document = {"schema": 1, "kind": "bench", **found(), **TIMES, "load": 0.5, **change}
    assert first_error(document, "bench")


def test_the_text_says_what_is_met_and_what_is_not() -> None:
    text = measure.as_text(found(met=False))
    assert text.startswith("a toy.\n") and re.search(r"ours +1\.5 +quartiles 1\.25 to 1\.75", text)
    assert "met       0.700, goal at most 0.78: adapters in the upper half" in text
    assert "NOT MET   2.000, goal at most 1.03: " in text
    assert "BROKEN  the losses: 2 (allowed: 1)" in text
    assert "holds   the losses" in measure.as_text(found())
