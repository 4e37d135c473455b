"""Since when margins stand: dated by the commits of the file, blind to what decides nothing."""

import os
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorasp.claims import load_claims
from lorasp.claims.margins import history

PAPER: dict[str, Any] = {
    "paper": {
        "title": "A paper", "authors": ["A. Author"], "arxiv": "2401.00001", "year": 2024,
        "read": "abstract",
    },
    "margins": {"small": {"value": 1.0, "unit": "points", "because": "it is small"}},
    "families": {"all": "all of it"},
    "claims": [
        {
            "id": "better", "kind": "relation", "where": "abstract", "printed": "better",
            "left": "lora-sp", "right": "lora", "test": "superior", "models": ["roberta-base"],
            "tasks": ["sst2"], "margin": "small", "family": "all", "scales": ["paper"],
        }
    ],
}  # fmt: skip


def days(number: int) -> str:
    return f"2026-01-{number:02d}T12:00:00+00:00"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path / "paper.yaml"


def commit(file: Path, document: dict[str, Any], date: str) -> None:
    write(file, document)
    person = {f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER")
              for what in ("NAME", "EMAIL")}  # fmt: skip
    dates = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    for command in (["add", "."], ["commit", "-q", "-m", "claims"]):
        environment = os.environ | person | dates
        subprocess.run(["git", "-C", file.parent, *command], check=True, env=environment)


def write(file: Path, document: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(document))
    load_claims.cache_clear()


def with_margin(value: float) -> dict[str, Any]:
    margin = {**PAPER["margins"]["small"], "value": value}
    return {**PAPER, "margins": {"small": margin}}


def test_a_note_does_not_make_the_margins_younger(file: Path) -> None:
    commit(file, with_margin(2.0), days(1))
    commit(file, PAPER, days(2))
    claim = {**PAPER["claims"][0], "note": "a remark", "printed": "much better"}
    commit(file, {**PAPER, "claims": [claim]}, days(5))
    found = history(str(file), first_run=days(3))
    assert datetime.fromisoformat(found["margins_since"]) == datetime.fromisoformat(days(2))
    assert found["margins_younger"] is False
    assert found["name"] == "paper" and found["arxiv"] == "2401.00001"


@pytest.mark.parametrize("change", ["margin", "test", "claim"])
def test_what_decides_a_verdict_makes_them_younger(file: Path, change: str) -> None:
    commit(file, PAPER, days(1))
    before = history(str(file), first_run=days(3))
    assert before["margins_younger"] is False
    claim = PAPER["claims"][0]
    documents = {
        "margin": with_margin(3.0),
        "test": {**PAPER, "claims": [{**claim, "test": "noninferior"}]},
        "claim": {**PAPER, "claims": [claim, {**claim, "id": "another"}]},
    }
    commit(file, documents[change], days(4))
    after = history(str(file), first_run=days(3))
    assert after["margins_younger"] is True
    assert after["margins_sha256"] != before["margins_sha256"]
    assert history(str(file), first_run=days(5))["margins_younger"] is False


def test_going_back_to_old_margins_counts_from_the_return(file: Path) -> None:
    for day, value in ((1, 1.0), (2, 4.0), (4, 1.0)):
        commit(file, with_margin(value), days(day))
    assert history(str(file), first_run=days(3))["margins_younger"] is True


def test_margins_that_are_not_committed_have_no_date(file: Path) -> None:
    commit(file, PAPER, days(1))
    write(file, with_margin(9.0))
    found = history(str(file), first_run=days(3))
    assert (found["margins_since"], found["margins_younger"]) == (None, None)


def test_outside_a_checkout_nothing_is_dated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    write(tmp_path / "paper.yaml", PAPER)
    assert history(str(tmp_path / "paper.yaml"), first_run=None)["margins_since"] is None


def test_without_a_run_nothing_is_younger(file: Path) -> None:
    commit(file, PAPER, days(1))
    found = history(str(file), first_run=None)
    assert found["margins_since"] is not None and found["margins_younger"] is None
