"""Two result folders side by side: what changed, and the reason that was put there."""

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import smoke, write_run

from lorasp import cli
from lorasp.config import Cell, Config, cells
from lorasp.errors import UsageError
from lorasp.report.compare import write_comparison
from lorasp.results import read_json

CLAIM = "glue.roberta-base.lora.sst2"
SCORES = {"base": 50.0, "ft": 80.0, "lora": 80.0, "lora-half": 79.0, "lora-sp": 80.2}


def mini() -> Config:
    """Small stand-ins on one task, five seeds: claims about relations can be judged."""
    config = smoke()
    config["scale"] = "mini"
    del config["no_result"]
    group = {"models": ["roberta-tiny"], "tasks": ["sst2"], "seeds": [0, 1, 2, 3, 4]}
    config["experiments"] = [group | {"methods": list(SCORES), "recipes": ["stated"]}]
    config["profile"]["cells"] = []
    return config


def fill(folder: Path, monkeypatch: pytest.MonkeyPatch, seeds: int = 5, **change: float) -> Path:
    """Runs of every method in folder/results/mini, a little noise; `change` adds points."""
    monkeypatch.chdir(folder)
    for cell in cells(mini()):
        if cell.seed < seeds:
            noise = 0.1 * (cell.seed * (2 + list(SCORES).index(cell.method)) % 7)
            value = SCORES[cell.method] + change.get(cell.method.replace("-", "_"), 0.0) + noise
            write_run(mini(), cell, value)
    return folder / "results" / "mini"


def compared(tmp_path: Path, first: Path, second: Path) -> dict[str, Any]:
    page = write_comparison(mini(), (first, second), tmp_path / "out")
    document = read_json(page.parent / "compare.json", "compare")
    return document | {"by_id": {claim["id"]: claim for claim in document["claims"]}}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "one", tmp_path / "two"]
    for folder in made:
        folder.mkdir()
    return made


def test_a_folder_with_itself_changes_nothing(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(folders[0], monkeypatch)
    document = compared(tmp_path, root, root)
    assert document["claims"] and not any(claim["changed"] for claim in document["claims"])
    assert document["origins"] == []
    assert document["by_id"][CLAIM]["first"]["verdict"] == "reproduced"


def test_lower_scores_change_the_verdict_and_are_named(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fill(folders[0], monkeypatch)
    second = fill(folders[1], monkeypatch, lora_sp=-4.0)
    claim = compared(tmp_path, first, second)["by_id"][CLAIM]
    assert (claim["first"]["verdict"], claim["second"]["verdict"]) == (
        "reproduced",
        "not reproduced",
    )
    assert claim["why"] == [
        "5 of 15 runs that both have differ in their score, by up to 4.00 points"
    ]
    text = (tmp_path / "out" / "compare.md").read_text()
    assert f"**{CLAIM}**" in text and "by up to 4.00 points" in text


def test_missing_seeds_are_named(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fill(folders[0], monkeypatch)
    second = fill(folders[1], monkeypatch, seeds=1)
    claim = compared(tmp_path, first, second)["by_id"][CLAIM]
    assert claim["second"]["verdict"] == "inconclusive"
    assert claim["why"] == [f"12 runs are in {first} alone (seeds 1, 2, 3, 4)"]


def test_another_origin_is_told(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = [fill(folder, monkeypatch) for folder in folders]
    for name in ("train", "metrics"):
        for file in roots[1].rglob(f"{name}.json"):
            document = json.loads(file.read_text())
            document["provenance"]["git"]["commit"] = "f" * 40
            document["provenance"]["versions"]["torch"] = "2.14.0"
            document["data"] = dict.fromkeys(document["data"], "12" * 32)
            file.write_text(json.dumps(document))
    origins = compared(tmp_path, *roots)["origins"]
    assert f"commit: {'c0ffee' * 6 + 'c0ff'} and {'f' * 40}" in origins
    assert "version of torch: 2.13.0 and 2.14.0" in origins
    assert "data of sst2: abababababab and 121212121212" in origins
    assert len(origins) == 4  # and the data of the benchmark


def test_a_folder_without_runs_is_refused(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = fill(folders[0], monkeypatch)
    with pytest.raises(UsageError, match="no run of scale mini there"):
        write_comparison(mini(), (root, tmp_path / "nothing"), tmp_path / "out")


def test_html_in_a_folder_name_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "<img src=x>"
    folder.mkdir()
    root = fill(folder, monkeypatch)
    write_comparison(mini(), (root, root), tmp_path / "out")
    for name in ("compare.html", "compare.md"):
        text = (tmp_path / "out" / name).read_text()
        assert "<img" not in text and "&lt;img src=x&gt;" in text


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["report", "--config", "config/smoke.yaml", "--compare", "a"]
    assert cli.main(options) == 2  # two folders are needed
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    missing = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert cli.main([*options[:-1], *missing]) == 2


def test_cells_of_the_comparison_are_those_of_the_configuration() -> None:
    assert Cell("mini", "roberta-tiny", "sst2", "lora-sp", "stated", 4) in cells(mini())
