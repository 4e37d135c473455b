"""Sweeps as heat maps: every cell by hand, what is missing, and what is said of the whole."""

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import smoke, write_run

from lorasp.config import Config, cells
from lorasp.report import write_report
from lorasp.report.collect import collect
from lorasp.report.heatmap import draw_sweeps, maps, sentences, sweeps_frame, without_sweeps
from lorasp.sweeps import expand, points


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def swept(*methods: str, over: dict[str, list[Any]] | None = None) -> Config:
    """Stand-ins on one task, two methods, and a sweep of each of `methods`."""
    config = smoke()
    config["scale"] = "mini"
    del config["no_result"]
    config["profile"]["cells"] = []
    common = {"models": ["roberta-tiny"], "tasks": ["mrpc"], "seeds": [0, 1]}
    group = common | {"methods": ["base", "lora", "lora-sp"], "recipes": ["stated"]}
    config["experiments"] = [group]
    over = over or {"rank": [4, 16], "learning_rate": [2e-5, 1e-3]}
    config["sweeps"] = [
        common | {"name": f"{name}-sweep", "method": name, "recipe": "stated", "over": over}
        for name in methods
    ]
    for name in methods:
        config["methods"][name]["settings"] |= {"rank": 16, "lora_alpha": 16}
    config["recipes"]["stated"]["learning_rate"] = 1e-3
    return expand(config)


# seeds 0 and 1 at every (rank, learning rate)
SP = {(4, 2e-5): (70.0, 72.0), (4, 1e-3): (75.0, 77.0), (16, 2e-5): (71.0, 71.0)}
SP |= {(16, 1e-3): (80.0, 81.0)}
LORA = {key: (first + 10 * (key[0] == 16), second) for key, (first, second) in SP.items()}


def fill(config: Config, scores: dict[str, dict[Any, Any]], skip: tuple[Any, ...] = ()) -> None:
    """The runs of the sweeps (None: diverged), and 60 for every other run."""
    for cell in cells(config):
        write_run(config, cell, 60.0)
    for point in points(config):
        values = tuple(point["values"].values())
        name = point["sweep"].removesuffix("-sweep")
        value = scores[name][values][point["cell"].seed]
        if values in skip:
            (point["cell"].folder / "train.json").unlink()
            (point["cell"].folder / "metrics.json").unlink()
        else:
            write_run(config, point["cell"], value, diverged_at=None if value else 3)


def by_values(entry: dict[str, Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(cell["values"].values()): cell for cell in entry["cells"]}


def test_a_cell_is_the_mean_and_spread_of_its_seeds() -> None:
    config = swept("lora-sp")
    fill(config, {"lora-sp": SP})
    (entry,) = maps(config, collect(config))
    assert (entry["label"], entry["task"], entry["keys"]) == (
        "LoRA-SP", "mrpc", ["rank", "learning_rate"],
    )  # fmt: skip
    found = by_values(entry)
    assert {key: cell["mean"] for key, cell in found.items()} == {
        (4, 2e-5): 71.0, (4, 1e-3): 76.0, (16, 2e-5): 71.0, (16, 1e-3): 80.5,
    }  # fmt: skip
    assert found[4, 2e-5]["sd"] == pytest.approx(2**0.5) and found[16, 2e-5]["sd"] == 0
    assert [key for key, cell in found.items() if cell["paper"]] == [(16, 2e-5)]
    assert [key for key, cell in found.items() if cell["own"]] == [(16, 1e-3)]
    (line,) = sentences([entry])
    assert line.startswith(
        "LoRA-SP on mrpc (roberta-tiny, stated): mean scores go from 71.0 (rank 4, learning rate "
        "2e-05) to 80.5 (rank 16, learning rate 0.001), a range of 9.5 points over 4 combinations"
    )
    mean = (2**0.5 + 2**0.5 + 0 + 0.5**0.5) / 4
    assert f"a standard deviation of {mean:.1f} on average (2 runs each)." in line


def test_missing_and_failed_cells_are_shown_and_do_not_count() -> None:
    config = swept("lora-sp")
    fill(config, {"lora-sp": SP | {(4, 1e-3): (None, 99.0)}}, skip=((16, 2e-5),))
    found = maps(config, collect(config))
    frame = sweeps_frame(found).set_index("Values")
    assert frame.loc["rank 16, learning rate 2e-05", "Score"] == "not run"
    failed = frame.loc["rank 4, learning rate 0.001"]
    assert (failed["Score"], failed["Spread (runs)"]) == ("99.0", "(1 of 2), 1 diverged")
    (line,) = sentences(found)
    assert "from 71.0 (rank 4, learning rate 2e-05) to 80.5" in line  # 99 is of a failed cell
    assert "over 2 combinations" in line and "2 more lack runs or have failed ones." in line
    texts = json.dumps(draw_sweeps(found, "")["sweeps"].to_dict())
    assert '"not run"' in texts and "1 diverged" in texts


def test_the_range_is_compared_with_loras_over_what_both_have() -> None:
    config = swept("lora-sp", "lora")
    fill(config, {"lora-sp": SP, "lora": LORA}, skip=())
    first, second = sentences(maps(config, collect(config)))
    # LoRA from 71.0 to (90 + 81) / 2
    assert first.endswith(
        " Over the 4 combinations that both were run with, it moves by 9.5 points and LoRA by "
        "14.5: no more than LoRA."
    )
    assert "LoRA on mrpc" in second and "than LoRA" not in second


def test_a_map_without_two_whole_cells_says_that_nothing_can_be_told() -> None:
    config = swept("lora-sp")
    (line,) = sentences(maps(config, collect(config)))
    assert line.endswith(
        "0 of 4 combinations have all their runs, so how robust it is cannot be told."
    )


def test_the_runs_of_a_sweep_are_no_methods_to_compare() -> None:
    config = swept("lora-sp")
    fill(config, {"lora-sp": SP})
    every = collect(config)
    kept = without_sweeps(config, every)
    assert set(every.runs["method"]) == {"base", "lora", "lora-sp", "lora-sp.rank-4"}
    assert set(kept.runs["method"]) == {"base", "lora", "lora-sp"}
    assert set(kept.runs["recipe"]) == {"stated", "none"}
    # the plain point of the sweep is a run of the experiments too, and stays
    mine = kept.summary.query("method == 'lora-sp' and metric == 'accuracy'")
    assert mine["mean"].tolist() == [80.5] and len(kept.runs) == 6
    plain = swept()
    assert without_sweeps(plain, collect(plain)).runs.equals(collect(plain).runs)


def test_one_and_three_keys_are_drawn_too() -> None:
    values = {"rank": [4, 16], "learning_rate": [2e-5], "density": [0.25, 0.5]}
    three = swept("lora-sp", over=values)
    one = swept("lora-sp", over={"rank": [4, 16, 64]})
    panels = {}
    for name, config in (("three", three), ("one", one)):
        chart = draw_sweeps(maps(config, collect(config)), "")["sweeps"].to_dict()
        panels[name] = chart["concat"]
    assert len(panels["one"]) == 1 and len(panels["three"]) == 2  # one for each density
    assert "density 0.25" in json.dumps(panels["three"][0]["title"])
    assert draw_sweeps([], "") == {}


def test_the_page_has_the_section_where_there_is_a_sweep() -> None:
    config = swept("lora-sp")
    fill(config, {"lora-sp": SP})
    folder = write_report(config).parent
    for kind in ("html", "md"):
        text = (folder / f"report.{kind}").read_text()
        assert "Sensitivity to settings" in text and "a range of 9.5 points" in text
    assert (folder / "figures" / "sweeps.svg").exists()
    assert "rank 4, learning rate 2e-05" in (folder / "tables" / "sweeps.csv").read_text()
    table = (folder / "tables" / "table1.csv").read_text()
    assert "80.5" in table and "rank-4" not in table and "rank 4" not in table
