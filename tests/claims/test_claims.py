"""The paper's numbers as data: complete, unique, and consistent with the averages in its text."""

from collections import Counter
from pathlib import Path
from statistics import mean

import pytest
import yaml

from lorasp.claims import PAPER, claims_file, load_claims
from lorasp.errors import WorkError
from lorasp.tasks import load_task


def test_every_cell_of_the_three_tables_is_there() -> None:
    found = Counter((claim.get("table"), claim["kind"]) for claim in load_claims()["claims"])
    assert found == {
        (1, "score"): 48, (1, "count"): 6, (None, "arithmetic"): 4,
        (2, "score"): 24, (2, "count"): 6,
        (3, "score"): 6, (3, "count"): 12,
    }  # fmt: skip


def test_values_are_the_printed_strings() -> None:
    for claim in load_claims()["claims"]:
        factor = 1e6 if claim["printed"].endswith("M") else 1
        assert claim["value"] == pytest.approx(float(claim["printed"].rstrip("M")) * factor)
        assert (claim["unit"] == "parameters") == (claim["kind"] == "count")


def test_scores_are_of_the_metric_and_column_of_their_task() -> None:
    for claim in load_claims()["claims"]:
        if claim["kind"] == "score":
            task = load_task(claim["task"])
            assert claim["metric"] in task["metrics"] and claim["table"] == task["table"]
            if claim["metric"] == task["headline"]:
                assert claim["column"] == task["column"]


def test_the_averages_in_the_text_follow_from_table_1() -> None:
    claims = load_claims()["claims"]
    averages = {
        (claim["model"], claim["method"]): claim
        for claim in claims
        if claim["kind"] == "arithmetic"
    }
    assert sorted(claim["printed"] for claim in averages.values()) == [
        "83.8",
        "84.5",
        "87.7",
        "88.1",
    ]
    for run, claim in averages.items():
        scores = [
            other["value"]
            for other in claims
            if (other.get("model"), other.get("method")) == run
            and (other.get("table"), other["kind"]) == (1, "score")
        ]
        assert len(scores) == 8
        assert f"{mean(scores):.1f}" == claim["printed"]


def test_the_mislabelled_row_keeps_its_label() -> None:
    claim = next(c for c in load_claims()["claims"] if c["id"] == "table3.llama-13b.ft.mmlu")
    assert (claim["printed"], claim["row"]) == ("47.8", "LLaMA-7B-Alpaca (FT)")


@pytest.mark.parametrize("damage", ["kind", "twice"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    document = yaml.safe_load(claims_file(PAPER).read_text())
    if damage == "kind":
        document["claims"][3]["kind"] = "guess"
    else:
        document["claims"].append(document["claims"][0])
    file = tmp_path / "claims.yaml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(WorkError, match="guess" if damage == "kind" else "more than once: table1"):
        load_claims(str(file))
