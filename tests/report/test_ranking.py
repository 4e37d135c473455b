"""The ranking of methods: measures against slow references and closed forms, and planted runs."""

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import smoke, write_run

from lorasp.config import Config, cells
from lorasp.report import ranking_figures
from lorasp.report.collect import collect
from lorasp.report.measures import (
    WORST,
    improvement,
    interquartile_mean,
    normalised,
    standing,
)
from lorasp.report.methods_section import methods_section
from lorasp.report.pareto import NO_FRONT
from lorasp.report.ranking import NOTES, pairs, ranking_frame, rankings, scale
from lorasp.report.ranking_figures import RANKING_CAPTIONS, draw_ranking
from lorasp.report.scopes import Place, samples, shared
from lorasp.report.tables import paper_tables

Scores = dict[str, list[float | None]]  # None: that seed diverged; a shorter list: not run


def slow_improvement(left: list[float], right: list[float]) -> float:
    won = sum(1.0 if x > y else 0.5 if x == y else 0.0 for x in left for y in right)
    return won / (len(left) * len(right))


def slow_middle(runs: list[float]) -> float:
    cut = int(len(runs) / 4)
    kept = sorted(runs)[cut : len(runs) - cut]
    return sum(kept) / len(kept)


def arrays(*lists: list[float]) -> list[np.ndarray]:
    return [np.array(values, dtype=float) for values in lists]


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([3, 4], [1, 2], 1.0),
        ([1, 2], [3, 4], 0.0),
        ([1, 2], [1, 2], 0.5),
        ([5, 5, 5], [5, 5], 0.5),
        ([1, 2, 3], [2], 0.5),
        ([2, 3], [2, 2, 1], (2 * 0.5 + 1 + 3) / 6),
        ([WORST, 1], [0, 0], 0.5),
        ([WORST], [WORST], 0.5),
    ],
)
def test_closed_forms_of_the_probability_of_improvement(
    left: list[float], right: list[float], expected: float
) -> None:
    assert improvement(arrays(left), arrays(right))["estimate"] == pytest.approx(expected)
    turned = improvement(arrays(right), arrays(left))["estimate"]
    assert turned == pytest.approx(1 - expected)


def test_it_is_the_mean_over_the_tasks_of_a_slow_count() -> None:
    drawn = random.Random(1)
    for _ in range(20):
        sizes = [(drawn.randint(1, 6), drawn.randint(1, 6)) for _ in range(3)]
        left = [[float(drawn.randint(0, 4)) for _ in range(n)] for n, _ in sizes]
        right = [[float(drawn.randint(0, 4)) for _ in range(m)] for _, m in sizes]
        expected = np.mean([slow_improvement(x, y) for x, y in zip(left, right, strict=True)])
        found = improvement(arrays(*left), arrays(*right))
        assert found["estimate"] == pytest.approx(expected) and found["tasks"] == 3


def test_the_interquartile_mean_is_a_slow_one() -> None:
    drawn = random.Random(2)
    for sizes in ((4,), (3, 5), (2, 2, 2), (5, 5, 3, 3)):
        tasks = [[drawn.random() for _ in range(n)] for n in sizes]
        found = interquartile_mean(arrays(*tasks))
        assert found["estimate"] == pytest.approx(slow_middle(list(itertools.chain(*tasks))))
    assert interquartile_mean(arrays([0, 1, 2, 100]))["estimate"] == 1.5


def test_intervals_are_of_runs_drawn_again_within_each_task() -> None:
    """The exact distribution: every way to draw again from two runs of two tasks."""
    left, right = [[1.0, 4.0], [2.0, 3.0]], [[2.0, 3.0], [0.0, 5.0]]
    draws = [
        np.mean(
            [
                slow_improvement(list(x), list(y))
                for x, y in zip(chosen[:2], chosen[2:], strict=True)
            ]
        )
        for chosen in itertools.product(
            *(itertools.product(task, repeat=2) for task in (*left, *right))
        )
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    found = improvement(arrays(*left), arrays(*right))["interval"]
    assert found == pytest.approx([low, high], abs=0.05)
    middles = [
        slow_middle([*a, *b])
        for a, b in itertools.product(
            itertools.product(left[0], repeat=2), itertools.product(left[1], repeat=2)
        )
    ]
    found = interquartile_mean(arrays(*left))["interval"]
    assert found == pytest.approx(np.percentile(middles, [2.5, 97.5]), abs=0.05)


def test_one_run_has_no_interval_and_certainty_is_a_point() -> None:
    assert improvement(arrays([1, 2], [5]), arrays([1, 2], [4, 3]))["interval"] is None
    assert improvement(arrays([1]), arrays([0, 2]))["interval"] is None
    assert interquartile_mean(arrays([1, 2], [3]))["interval"] is None
    assert improvement(arrays([3, 4]), arrays([1, 2]))["interval"] == [1.0, 1.0]
    first, second = (improvement(arrays([1, 3, 5]), arrays([2, 4, 4])) for _ in range(2))
    assert first == second  # drawn from a fixed state


def test_places_are_shared_by_equal_means() -> None:
    assert standing({"a": 1.0, "b": 3.0, "c": 3.0, "d": 2.0}) == {"b": 1, "c": 1, "d": 3, "a": 4}
    assert normalised(np.array([10.0, 20.0, 40.0]), 10, 30).tolist() == [0.0, 0.5, 1.5]


def test_sets_that_methods_share_come_with_the_most_methods_first() -> None:
    found = shared({"a": [1, 2], "b": [1, 2, 3], "c": [1], "d": []})
    assert found == [((1,), ["a", "b", "c"]), ((1, 2), ["a", "b"]), ((1, 2, 3), ["b"])]


def planted(tasks: dict[str, Scores], planned: int = 3) -> Config:
    """Stand-ins of one model on some tasks, one group of runs a task and method."""
    config = smoke()
    config["scale"] = "mini"
    del config["no_result"]
    config["profile"]["cells"] = []
    common = {"models": ["roberta-tiny"], "recipes": ["stated"], "seeds": list(range(planned))}
    config["experiments"] = [
        common | {"tasks": [task], "methods": [method]}
        for task, scores in tasks.items()
        for method in scores
    ]
    for cell in cells(config):
        values = tasks[cell.task][cell.method]
        if cell.seed < len(values):
            value = values[cell.seed]
            write_run(config, cell, value, diverged_at=3 if value is None else None)
    return config


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ranked(config: Config, number: int = 0) -> list[dict[str, Any]]:
    places = samples(config, collect(config))
    frame = ranking_frame(config, rankings(config, places)[number])
    records: list[dict[str, Any]] = frame.to_dict("records")
    return records


SST2: Scores = {
    "base": [50.0, 50.0, 50.0],
    "ft": [82.0, 80.0, 81.0],
    "lora": [81.0, 80.0, 82.0],  # the same mean as ft
    "lora-half": [90.0, None, 92.0],
    "lora-sp": [79.0],
    "lora-sp-init": [],
}


def test_a_tie_a_failure_one_run_and_none_each_say_so() -> None:
    rows = ranked(planted({"sst2": SST2}))
    assert [(row["Place"], row["Method"]) for row in rows] == [
        ("1", "FT"), ("1", "LoRA"), ("3", "LoRA-SP"), ("4", "Base"),
        ("–", "LoRA, r/2"), ("–", "LoRA-SP (init)"),  # noqa: RUF001
    ]  # fmt: skip
    by_name = {row["Method"]: row for row in rows}
    assert by_name["FT"]["P(X > LoRA)"].startswith("0.50 [") and by_name["FT"]["Runs"] == "3"
    # its two scores beat all three of LoRA, its failure loses to all: 6 of 9
    half = by_name["LoRA, r/2"]
    assert half["P(X > LoRA)"].startswith("0.67 [") and half["Score"].startswith("91.0")
    assert (half["Runs"], half["Missing"]) == ("2 of 3", "1 diverged")
    single = by_name["LoRA-SP"]
    assert (single["Score"], single["P(X > FT)"]) == ("79.0", "0.00 (one run)")
    assert (single["Runs"], single["Missing"]) == ("1 of 3", "2 not run")
    never = by_name["LoRA-SP (init)"]
    assert (never["Score"], never["P(X > FT)"], never["Missing"]) == (
        "none",
        "no runs",
        "3 not run",
    )
    assert by_name["Base"]["Score"] == "50.0"  # equal runs have no interval


def test_over_several_tasks_scores_are_normalised() -> None:
    both: Scores = {
        "base": [50.0, 50.0, 50.0],
        "ft": [89.0, 90.0, 91.0],
        "lora": [69.0, 70.0, 71.0],
    }
    other: Scores = {"base": [0.0, 0.0, 0.0], "ft": [9.0, 10.0, 11.0], "lora": [19.0, 20.0, 21.0]}
    config = planted({"sst2": both | {"lora-sp": [1.0, 2.0, 3.0]}, "rte": other})
    places = samples(config, collect(config))
    over_all, *_ = rankings(config, places)
    assert over_all["over_all"] and over_all["left_out"] == [] and not over_all["seeds_differ"]
    found = {row["method"]: row for row in over_all["rows"]}
    assert set(found) == {"base", "ft", "lora"}  # LoRA-SP was not planned on both
    # of 40 and of 20 points that the best gained, LoRA and FT gained 20, 20 and 40, 10
    assert found["lora"]["mean"] == pytest.approx((20 / 40 + 1) / 2)
    assert found["ft"]["mean"] == pytest.approx((1 + 10 / 20) / 2)
    assert [row["place"] for row in over_all["rows"]] == [1, 1, 3]
    runs = [0.475, 0.5, 0.525, 0.95, 1.0, 1.05]
    assert found["lora"]["iqm"]["estimate"] == pytest.approx(slow_middle(runs))
    assert found["lora"]["against"]["ft"]["estimate"] == 0.5  # always below, always above


def test_means_over_other_seeds_are_told() -> None:
    """But not where only the untouched model has fewer runs."""
    scores: Scores = {"base": [50.0], "ft": [89.0, 90.0, 91.0], "lora": [69.0, 70.0, 71.0]}
    for found, differ in ((scores | {"lora": [69.0, 70.0]}, True), (scores, False)):
        config = planted({"sst2": found})
        (ranking,) = rankings(config, samples(config, collect(config)))
        assert ranking["seeds_differ"] == differ


def test_a_task_that_shows_no_gain_over_the_base_has_no_scale() -> None:
    noisy: Scores = {
        "base": [50.0, 50.0, 50.0],
        "ft": [40.0, 50.0, 62.0],
        "lora": [41.0, 40.0, 42.0],
    }
    config = planted({"sst2": SST2 | {"lora-half": [90.0, 91.0, 92.0]}, "rte": noisy})
    places = samples(config, collect(config))
    over_all, *_ = rankings(config, places)
    (why,) = over_all["left_out"]
    assert why == (
        "roberta-tiny, rte: the best method is not shown to be above the untouched base model"
    )
    found = {row["method"]: row for row in over_all["rows"]}
    assert found["ft"]["mean"] == pytest.approx((81 - 50) / (91 - 50))
    place = Place("roberta-tiny", "sst2", "stated")

    def of(*names: str) -> tuple[float, float] | str:
        return scale(config, {place: {name: places[place][name] for name in names}}, place)

    assert scale(config, places, place) == (50.0, 91.0)
    assert of("ft") == "the untouched base model has no score"
    assert "one run" in str(of("base", "lora-sp"))
    assert "no method has" in str(of("base"))


def test_a_scale_needs_a_gain_over_the_base_that_is_tested_by_seed() -> None:
    """Neither a base that varies as much itself nor seeds that do not differ give a scale."""
    drawn: Scores = {"base": [40.0, 50.0, 60.0], "ft": [62.0, 60.0, 61.0]}
    paired: Scores = {"base": [40.0, 50.0, 60.0], "ft": [45.0, 54.9, 65.1]}
    alike: Scores = {"base": [50.0, 50.0, 50.0], "ft": [60.0, 60.0, 60.0]}
    once: Scores = {"base": [50.0], "ft": [62.0, 60.0, 61.0]}
    config = planted({"sst2": drawn, "rte": paired, "mrpc": alike, "qnli": once})
    for group in config["experiments"]:
        if group["tasks"] == ["qnli"] and group["methods"] == ["base"]:
            group["seeds"] = [0]  # nothing in it is drawn, so that one run counts for every seed
    places = samples(config, collect(config))
    found = {place.task: scale(config, places, place) for place in places}
    unshown = "the best method is not shown to be above the untouched base model"
    assert found["sst2"] == unshown and found["mrpc"] == unshown
    assert found["rte"] == (50.0, 55.0) and found["qnli"] == (50.0, 61.0)


def test_of_fewer_than_four_runs_there_is_no_interquartile_mean() -> None:
    single: Scores = {"base": [50.0, 50.0], "ft": [80.0, 81.0]}
    noisy: Scores = {"base": [50.0, 50.0], "ft": [40.0, 61.0]}
    frames = []
    for tasks in ({"sst2": single, "rte": single}, {"sst2": single, "rte": noisy}):
        config = planted(tasks, planned=2)
        frames.append({row["Method"]: row["IQM"] for row in ranked(config)})
    assert frames[0]["FT"].startswith("1.00 [") and frames[1]["FT"] == "none"


def test_the_matrix_marks_no_pair_as_told_apart() -> None:
    """Bootstrap intervals of three runs leave out an even chance in a fifth of all null pairs."""
    config = planted({"sst2": SST2})
    places = samples(config, collect(config))
    chart = draw_ranking(config, rankings(config, places), pairs(places, "stated"), "")
    assert "bold" not in json.dumps(chart["improvement"].to_dict()["concat"][0]["layer"])
    assert "too narrow" in RANKING_CAPTIONS["improvement"] and "too narrow" in " ".join(NOTES)


def test_a_matrix_of_too_many_methods_says_how_many_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = planted({"sst2": SST2})
    places = samples(config, collect(config))
    made = rankings(config, places), pairs(places, "stated")
    titles = {}
    for most in (3, 32):
        monkeypatch.setattr(ranking_figures, "MOST", most)
        matrix = draw_ranking(config, *made, "")["improvement"].to_dict()
        titles[most] = matrix["concat"][0]["title"]
    assert titles[32] == "P(row > column), %"
    assert titles[3] == f"P(row > column), %; the first 3 of {len(SST2)} methods"
    assert "has one run on some task" not in RANKING_CAPTIONS["ranking"]


def test_why_there_is_no_figure_is_told() -> None:
    """Two methods that are planned together have no runs yet; of one alone none will come."""
    waiting = planted({"sst2": {"ft": [], "lora": []}})
    alone = planted({"sst2": {"ft": [80.0, 81.0]}})
    for group in alone["experiments"]:
        group["methods"] = [name for name in group["methods"] if name == "ft"]
    for config, reason in ((waiting, "have runs yet"), (alone, "are planned")):
        results = collect(config)
        tables = paper_tables(config, results)
        shown, figures, _ = methods_section(config, results, results, tables, "")
        assert shown["undrawn"] == (
            f"No figure: with the recipe that decides, no two methods {reason} on the same model "
            "and task."
        )
        assert not {"ranking", "improvement"} & set(figures)


def test_a_front_without_a_mark_is_not_drawn_and_told() -> None:
    """Here are no profiles, so that neither memory nor time is known."""
    config = planted({"sst2": SST2})
    results = collect(config)
    tables = paper_tables(config, results)
    shown, figures, _ = methods_section(config, results, results, tables, "")
    assert {"parameters", "file"} <= set(figures) and not {"memory", "time"} & set(figures)
    assert shown["no_front"] == NO_FRONT.format(
        costs="the peak memory of a step and the time of a step"
    )


def test_every_pair_is_compared_both_ways_on_what_both_have() -> None:
    config = planted({"sst2": SST2, "rte": {"ft": [60.0, 61.0, 62.0], "lora": [70.0, 71.0, 72.0]}})
    found = pairs(samples(config, collect(config)), "stated")
    assert ("lora-sp-init", "ft") not in found and len(found) == 5 * 4
    assert found["lora", "ft"]["estimate"] == pytest.approx((0.5 + 1) / 2)
    assert found["lora", "ft"]["tasks"] == 2 and found["lora", "base"]["tasks"] == 1
    for (x, y), estimate in found.items():
        back = found[y, x]
        assert estimate["estimate"] + back["estimate"] == pytest.approx(1)
        if estimate["interval"] is None:
            assert "lora-sp" in (x, y) and back["interval"] is None
        else:
            low, high = estimate["interval"]
            assert back["interval"] == pytest.approx([1 - high, 1 - low])
            assert low <= estimate["estimate"] <= high or math.isclose(low, high)


def test_without_a_run_nothing_is_ranked() -> None:
    config = planted({"sst2": {name: [] for name in SST2}})
    assert {row["Place"] for row in ranked(config)} == {"–"}  # noqa: RUF001
    assert pairs(samples(config, collect(config)), "stated") == {}
