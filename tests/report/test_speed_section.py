"""The section on speed: its tables, states and figure, on made-up answers of the benches."""

import csv
import json
from pathlib import Path

import pytest
from fakes import PROVENANCE, case, write_bench, write_benches
from test_page import Page
from test_simulated_section import nothing_run

from lorasp.bench import measure
from lorasp.errors import WorkError
from lorasp.report.page import write_report
from lorasp.report.speed import (
    cases_frame,
    checks_frame,
    goals_frame,
    headline,
    number,
    origin,
    read_benches,
    relative,
    section,
)
from lorasp.report.speed_figure import draw_speed
from lorasp.results import read_yaml

TABLES = {f"speed-{name}" for name in ("goals", "checks", "cases", "benches")}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(name: str, out: Path) -> list[dict[str, str]]:
    with (out / "tables" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_answers_come_in_the_order_of_the_benches() -> None:
    write_benches()
    Path("reports/bench/notes.json").write_text("of somebody else")
    assert [answer["bench"] for answer in read_benches()] == ["step", "states", "glue"]


def test_a_damaged_answer_is_named() -> None:
    write_benches()
    Path("reports/bench/states.json").write_text('{"bench": "states"}')
    with pytest.raises(WorkError, match=r"reports/bench/states\.json is not a valid bench file"):
        read_benches()


def test_a_goal_is_met_missed_or_not_measured() -> None:
    write_benches()
    frame = goals_frame(read_benches())
    states = dict(zip(frame["Goal"], frame["State"], strict=True))
    goals = read_yaml(measure.GOALS)
    told = {name: states.pop(goal["what"]) for name, goal in goals.items()}
    assert not states and told.pop("step.all-linear.peft") == told.pop("glue.speed") == "met"
    assert told.pop("step.all-linear-dropout.peft") == told.pop("states.file.peft") == "not met"
    assert set(told.values()) == {"not measured"} and len(told) == len(goals) - 4
    assert headline(frame) == "2 of 12 goals are met; 2 not met; 8 not measured."
    first, *_ = frame.to_dict("records")
    assert (first["Median"], first["Quartiles"], first["Wanted"]) == (
        "0.8004", "0.77 to 0.83", "≤ 0.85"
    )  # fmt: skip
    (rate,) = frame[frame["Bench"] == "glue"].to_dict("records")
    assert (rate["Median"], rate["Wanted"]) == ("2.5", "≥ 2")


def test_the_bound_is_the_one_of_the_measurement() -> None:
    """A goal that was changed since, or is no goal any more, stays what was then compared."""
    write_bench("glue", [], {"glue.speed": 2.5})
    path = Path("reports/bench/glue.json")
    document = json.loads(path.read_text())
    document["goals"][0] |= {"at_least": 3.0, "met": False}
    document["goals"].append(document["goals"][0] | {"goal": "glue.old", "what": "an old goal"})
    path.write_text(json.dumps(document))
    frame = goals_frame(read_benches())
    assert list(frame["Wanted"])[:2] == ["≥ 3", "≥ 3"]
    assert list(frame["State"])[:2] == ["not met", "not met"] and len(frame) == 13


def test_a_goal_means_nothing_where_other_work_was_timed() -> None:
    write_benches()
    broken = {"what": "the answers", "found": "2 differ", "allowed": "none", "met": False}
    write_bench("glue", [], {"glue.speed": 2.5}, checks=[broken])
    answers = read_benches()
    frame = goals_frame(answers)
    assert list(frame.loc[frame["Bench"] == "glue", "State"]) == ["means nothing"]
    assert headline(frame).startswith("1 of 12 goals are met; 2 not met; 1 means nothing; 8")
    assert list(checks_frame(answers)["State"]) == ["holds", "holds", "broken"]


def test_costs_are_relative_to_the_peer() -> None:
    """A rate costs its inverse: 250 examples a second beside 100 are 0.4 of the time."""
    named = case("a", "ms", "slow", slow=[5, 10, 20], fast=[4, 5, 6], slower=[30, 30, 30])
    assert relative(named) == [
        {"contestant": "slow", "peer": True, "ratio": 1.0, "low": 0.5, "high": 2.0},
        {"contestant": "fast", "peer": False, "ratio": 0.5, "low": 0.4, "high": 0.6},
        {"contestant": "slower", "peer": False, "ratio": 3.0, "low": 3.0, "high": 3.0},
    ]
    rate = case("b", "examples a second", trainer=[80, 100, 125], ours=[200, 250, 400])
    assert relative(rate) == [
        {"contestant": "trainer", "peer": True, "ratio": 1.0, "low": 0.8, "high": 1.25},
        {"contestant": "ours", "peer": False, "ratio": 0.4, "low": 0.25, "high": 0.5},
    ]


def test_without_a_peer_the_dearest_is_at_one_and_of_nothing_there_is_no_share() -> None:
    found = relative(case("a", "bytes", ours=[1, 1, 1], peft=[2, 2, 2]))
    assert [(row["contestant"], row["ratio"]) for row in found] == [("peft", 1.0), ("ours", 0.5)]
    assert relative(case("a", "bytes", ours=[0, 0, 0], peft=[0, 0, 0])) == []
    assert relative(case("a", "bytes", "peft", ours=[1, 1, 1], peft=[0, 0, 0])) == []


def test_every_contestant_is_listed_in_its_own_unit() -> None:
    write_benches()
    none = case("masks", "bytes", ours=[0, 0, 0], peft=[0, 0, 0])
    write_bench("states", [none], {})
    frame = cases_frame(read_benches())
    ours = frame[frame["Contestant"] == "ours"].to_dict("records")
    assert [(row["Case"], row["Median"], row["Unit"]) for row in ours] == [
        ("a step", "8", "ms"),
        ("dropout", "12", "ms"),
        ("masks", "0", "bytes"),
        ("an epoch", "250", "examples a second"),
    ]
    assert [row["Over the peer"] for row in ours] == ["×0.80", "×1.20", "", "×0.40"]
    assert [row["Quartiles"] for row in ours] == ["7.5 to 8.5", "11 to 15", "", "200 to 300"]
    assert [number(value) for value in (1_234_567, 100, 99.96, 0.12345)] == [
        "1,234,567", "100", "100", "0.123"
    ]  # fmt: skip


def test_the_section_says_where_and_when() -> None:
    write_benches()
    assert origin(read_benches()) == (
        "Measured on 2026-01-01 on A CPU (2 cores), at commit c0ffeec0ff."
    )
    other = {**PROVENANCE, "git": {"commit": "beef" * 10, "dirty": True}}
    write_bench("glue", [], {}, provenance=other, finished="2026-02-03T00:00:00+00:00")
    assert origin(read_benches()) == (
        "Measured between 2026-01-01 and 2026-02-03 on A CPU (2 cores), at commit "
        "beefbeefbe with changes, c0ffeec0ff."
    )


def test_every_case_is_drawn() -> None:
    write_benches()
    drawn = draw_speed(read_benches())["speed-cases"].to_dict()
    panels = drawn["concat"]
    assert [panel["title"] for panel in panels] == [
        "step: a step", "step: dropout", "states: the file", "glue: an epoch"
    ]  # fmt: skip
    for panel, cost in zip(panels, ("less", "more", "less", "less"), strict=True):
        line, bars, dots, texts = panel["layer"]
        assert drawn["datasets"][line["data"]["name"]] == [{"ratio": 1}]
        rows = drawn["datasets"][dots["data"]["name"]]
        assert [row["cost"] for row in rows] == ["peer", cost]
        assert (bars["data"], texts["data"]) == (dots["data"], dots["data"])
        low, high = dots["encoding"]["x"]["scale"]["domain"]
        assert low == 0 and high > max(row["high"] for row in rows)  # all of a bar is in sight
    write_bench("states", [case("a", "bytes", ours=[0, 0, 0])], {})
    assert len(draw_speed(read_benches())["speed-cases"].to_dict()["concat"]) == 3
    assert draw_speed([]) == {}


def test_the_page_shows_the_section_in_every_form() -> None:
    write_benches()
    out = write_report(nothing_run()).parent
    page = Page((out / "report.html").read_text())
    words = " ".join(" ".join(page.words).split())
    text = (out / "report.md").read_text()
    assert len(page.ids) == len(set(page.ids)) and page.targets <= set(page.ids)
    assert "speed" in page.targets and {f"{name}-title" for name in TABLES} <= set(page.ids)
    assert "✗ not met" in words and "✓ met" in words and "– not measured" in words  # noqa: RUF001
    for shown in (words, text):
        assert "2 of 12 goals are met; 2 not met; 8 not measured." in shown
        assert "Measured on 2026-01-01 on A CPU (2 cores), at commit c0ffeec0ff." in shown
        assert "1e-7 apart" in shown and "1,234,567" in shown and "what glue ran" in shown
    assert "(figures/speed-cases.png)" in text and "speed-cases" in page.ids
    assert (
        "smoke run" not in (out / "figures" / "speed-cases.svg").read_text()
    )  # it is a measurement
    for name in TABLES:
        assert all((out / "tables" / f"{name}.{kind}").exists() for kind in ("md", "tex"))
        assert rows(name, out)
    goals = rows("speed-goals", out)
    assert len(goals) == 12 and goals[1]["Median"] == "1.2" and goals[1]["State"] == "not met"


def test_the_same_answers_give_the_same_bytes(folder: Path) -> None:
    write_benches()
    first = write_report(nothing_run(), folder / "one").parent
    second = write_report(nothing_run(), folder / "two").parent
    for name in ("report.html", "report.md", "figures/speed-cases.svg", "tables/speed-cases.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_without_an_answer_the_page_says_what_to_run() -> None:
    assert section([])["tables"] == []
    out = write_report(nothing_run()).parent
    words = " ".join(" ".join(Page((out / "report.html").read_text()).words).split())
    command = "lorasp bench all --out reports/bench"
    assert f"has not been measured here. {command} does it" in words
    assert f"`{command}` does it" in (out / "report.md").read_text()
    assert not list(out.glob("*/speed*"))
