"""A run that diverged is no score, is counted, and decides no claim."""

from pathlib import Path

import pytest
from fakes import smoke, write_all, write_run

from lorasp.config import Cell, Config, cells
from lorasp.report import write_report
from lorasp.report.collect import collect, per_seed
from lorasp.report.judged import judged
from lorasp.report.tables import cell_of
from lorasp.results import read_json

GONE = "roberta-tiny qqp lora-sp stated seed-0"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Every run of a small grid of stand-ins is done, but one of LoRA-SP has diverged."""
    monkeypatch.chdir(tmp_path)
    config = smoke()
    config["scale"] = "mini"
    del config["no_result"]
    config["experiments"] = config["experiments"][:2]
    config["experiments"][0]["tasks"] = config["experiments"][1]["tasks"] = ["qqp"]
    config["profile"]["cells"] = []
    write_all(config)
    write_run(config, diverged(config), None, diverged_at=7)
    return config


def diverged(config: Config) -> Cell:
    (cell,) = (cell for cell in cells(config) if str(cell) == GONE)
    return cell


def test_it_is_no_score(config: Config) -> None:
    results = collect(config)
    runs = results.runs.set_index(["method", "recipe", "seed"])
    assert runs.loc[("lora-sp", "stated", 0), "status"] == "diverged"
    assert set(runs["status"]) == {"diverged", "done"}
    scores = per_seed(results)
    gone = (scores["method"] == "lora-sp") & (scores["recipe"] == "stated") & (scores["seed"] == 0)
    assert sorted(scores[gone]["metric"]) == ["accuracy", "f1"]
    assert scores[gone]["value"].isna().all() and scores[~gone]["value"].notna().all()
    cell = cell_of(results, ("roberta-tiny", "qqp", "lora-sp", "stated"), "accuracy")
    assert cell["text"].endswith("(1 of 2, 1 undefined)") and cell["status"] == "partial"


def test_it_has_diverged_before_it_is_evaluated(config: Config) -> None:
    (diverged(config).folder / "metrics.json").unlink()
    runs = collect(config).runs
    assert list(runs[runs["status"] == "diverged"]["seed"]) == [0]


def test_one_of_another_configuration_is_outdated(config: Config) -> None:
    (diverged(config).folder / "metrics.json").unlink()
    config["recipes"]["stated"]["learning_rate"] *= 2
    runs = collect(config).runs
    assert set(runs[runs["recipe"] == "stated"]["status"]) == {"outdated"}


def test_the_report_counts_and_names_it(config: Config) -> None:
    folder = write_report(config).parent
    document = read_json(folder / "results.json", "report")
    assert document["summary"]["diverged"] == [GONE]
    assert document["summary"]["done"] == document["summary"]["planned"] - 1
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text()
        answer = text.index("The answer")
        told = text.index("1 run diverged", answer)
        assert GONE in text[told : told + 300] and told < text.index("Table 1:", answer)


def test_a_claim_that_rests_on_it_is_open(config: Config) -> None:
    """The others are as they would be; nothing counts the seed that is left for two."""
    verdicts = {(v["paper"], v["id"]): v for v in judged(config, collect(config))}
    write_run(config, diverged(config), 60.0)
    whole = {(v["paper"], v["id"]): v for v in judged(config, collect(config))}
    tested = [key for key, verdict in whole.items() if "test" in verdict]
    on_it = [k for k in tested if f"undefined: {GONE[:-7]} seed 0" in verdicts[k]["evidence"]]
    assert on_it and len(on_it) < len(tested)
    for key in tested:
        verdict = verdicts[key]
        if key in on_it:
            assert verdict["verdict"] == "inconclusive"
            assert f"The score of {GONE[:-7]} seed 0 is undefined" in verdict["because"]
