"""What the page says of verdicts, on verdicts made up here: picks, counts, words, escapes."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fakes import smoke, write_all, write_audit

from lorasp.claims import PAPER, load_claims
from lorasp.report import claims_view
from lorasp.report.badges import SIGNS, badge, by_place, targets, words
from lorasp.report.charts import library, log_ticks
from lorasp.report.formats import latex, markdown
from lorasp.report.judged import AUDIT, audited
from lorasp.report.page import write_report
from lorasp.report.pareto import front
from lorasp.results import read_json

CHECKED = [claim["id"] for claim in load_claims()["claims"] if "check" in claim]


def a_test(**values: Any) -> dict[str, Any]:
    keys = ("estimate", "interval", "margin", "p", "p_adjusted", "bootstrap", "seeds_needed")
    known = {"name": "noninferior", "n": 5, "planned": 5, "level": 0.9, "p_against_adjusted": None}
    return known | dict.fromkeys(keys) | values


def entry(name: str, kind: str, verdict: str, **test: Any) -> dict[str, Any]:
    made = {"paper": PAPER, "id": name, "kind": kind, "verdict": verdict, "audited": not test}
    return made | ({"test": a_test(**test)} if test else {})


def test_findings_are_picked_by_the_rule() -> None:
    entries = [
        entry("weak", "relation", "not reproduced", p_against_adjusted=0.04),
        entry("strong", "relation", "not reproduced", p_against_adjusted=0.001),
        entry("dear", "resource", "reproduced", estimate=0.8),
        entry("cheap", "resource", "reproduced", estimate=0.5),
        entry("sign", "equation", "inconsistent"),
        entry("sum", "arithmetic", "inconsistent"),
        entry("far", "score", "inconclusive", seeds_needed=40),
        entry("near", "score", "inconclusive", seeds_needed=7),
        entry("other", "relation", "reproduced", p_adjusted=0.01) | {"paper": "another"},
    ]
    picked = [found["id"] for found in claims_view.findings(entries)]
    assert picked == ["strong", "cheap", "sum", "near"]
    failing = entry("costs-more", "resource", "not reproduced", estimate=1.4)
    assert claims_view.findings([*entries, failing])[1]["id"] == "costs-more"
    assert claims_view.findings([]) == []


def test_the_tally_counts_the_papers_claims_alone() -> None:
    entries = [entry("a", "label", "reproduced"), entry("b", "label", "reproduced")]
    tally = claims_view.tally([*entries, entry("c", "label", "reproduced") | {"paper": "another"}])
    assert {row["verdict"]: row["n"] for row in tally} == dict.fromkeys(SIGNS, 0) | {
        "reproduced": 2
    }


@pytest.mark.parametrize(
    ("test", "shown"),
    [
        (a_test(estimate=-2.94, interval=[-4.06, -1.75]), "−2.9 [−4.1, −1.8]"),
        (a_test(estimate=0.5), "+0.5"),
        (a_test(name="less", estimate=0.7249), "×0.72"),
        (a_test(name="at_most", estimate=1.0012), "×1.001"),
        (a_test(), ""),
        (None, ""),
    ],
)
def test_estimates_in_words(test: dict[str, Any] | None, shown: str) -> None:
    assert claims_view.estimate(test) == shown
    assert claims_view.seeds(a_test(n=4)) == "4 of 5" and claims_view.seeds(a_test()) == "5"


def test_ids_that_two_papers_share_are_told_apart() -> None:
    one, two = entry("a", "label", "reproduced"), entry("b", "label", "reproduced")
    places = targets([one, two, one | {"paper": "the other"}])
    assert places == {
        (PAPER, "a"): "claim-lora-sp-2024-a",
        (PAPER, "b"): "claim-b",
        ("the other", "a"): "claim-the-other-a",
    }


def test_badges_stand_where_their_claims_are() -> None:
    config = smoke()
    claims = load_claims()["claims"]
    relation = next(c for c in claims if c["kind"] == "relation" and len(c.get("tasks", [])) == 1)
    score = next(claim for claim in claims if claim["kind"] == "score")
    groups = [
        {"model": "roberta-tiny", "task": "rte", "method": name, "recipe": "stated"}
        for name in (relation["left"], relation["right"])
    ]
    verdicts = [
        entry(relation["id"], "relation", "inconclusive") | {"groups": groups},
        entry(score["id"], "score", "reproduced"),
        entry(CHECKED[0], "count", "not run"),
    ]
    badges = by_place(config, verdicts)
    place = ("roberta-tiny", "rte", relation.get("metric", "accuracy"), relation["left"])
    assert [found["verdict"] for found in badges.relations[place]] == ["inconclusive"]
    assert set(badges.own) == {score["id"]}  # what was not run has none
    assert words([badge(verdicts[1], "x", "as printed")]) == "reproduced (as printed)"


def test_the_front_is_what_nothing_beats() -> None:
    points = [(1, 5), (1, 6), (2, 6), (3, 9), (4, 8), (5, 10)]
    rows = [{"cost": cost, "score": score} for cost, score in points]
    assert [(row["cost"], row["score"]) for row in front(rows, "cost")] == [(1, 6), (3, 9), (5, 10)]


def test_ticks_of_a_logarithmic_axis() -> None:
    assert log_ticks(60, 900) == [100, 200, 500]
    assert log_ticks(320, 520) == [350, 400, 450, 500]
    assert log_ticks(61, 99) == [65, 75, 85, 95]
    assert log_ticks(501, 509) == []
    assert log_ticks(1, 1e6) == [1, 10, 100, 1e3, 1e4, 1e5, 1e6]


def test_latex_is_escaped_and_balanced() -> None:
    text = r"5 % of $x_1$ & #2 {a} \ ~ ^ − ≥ ± “q” …"
    table = latex(pd.DataFrame([[text] * 3], columns=["Claim", "Verdict", "Because"]), prose=True)
    assert table.isascii() and r"5 \% of \$x\_1\$ \& \#2 \{a\} \textbackslash" in table
    assert r"\toprule" in table and r"\begin{longtable}{p{3.4cm}lp{6.0cm}}" in table
    bare = re.sub(r"\\[{}]", "", table)
    assert bare.count("{") == bare.count("}")
    row = next(line for line in table.splitlines() if line.startswith("5"))
    assert len(re.findall(r"(?<!\\)&", row)) == 2 and row.endswith(r"\\")


def test_markdown_has_one_line_a_row() -> None:
    frame = pd.DataFrame([["a|b\nc", "<b>"]], columns=["x", "y"])
    assert markdown(frame) == "| x | y |\n| --- | --- |\n| a\\|b c | &lt;b&gt; |"


def test_the_library_can_stand_inside_a_page() -> None:
    script = library()
    assert "</script" not in script and "<!--" not in script and "vegaEmbed" in script


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = smoke()
    config["experiments"] = config["experiments"][2:3]
    config["profile"]["cells"] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("claims"))
        write_audit({CHECKED[0]: "inconsistent", CHECKED[1]: "reproduced"})
        write_all(config)
        return write_report(config).parent.resolve()


def test_verdicts_and_their_tables_agree(report: Path) -> None:
    document = read_json(report / "verdicts.json", "verdicts")
    with (report / "tables" / "claims.csv").open() as file:
        rows = list(csv.DictReader(file))
    listed = {(row["Paper"], row["Claim"]): row["Verdict"] for row in rows}
    assert listed == {(v["paper"], v["id"]): v["verdict"] for v in document["verdicts"]}
    (paper, *_) = document["papers"]
    assert paper["name"] == PAPER and sum(paper["counts"].values()) == len(load_claims()["claims"])
    assert paper["first_run"] == "2026-01-01T00:00:00+00:00"
    with (report / "tables" / "audit.csv").open() as file:
        audit = list(csv.DictReader(file))
    assert [row["Claim"] for row in audit] == CHECKED[:2]  # contradictions first
    assert f"first {CHECKED[0]} then the rest" == audit[0]["Evidence"]
    text = (report / "report.md").read_text()
    assert "## Audit" in text and f"first {CHECKED[0]}" in text
    assert "| rank | share |" not in text


def test_the_shipped_claims_are_plain_text_in_latex(report: Path) -> None:
    for file in (report / "tables").glob("*.tex"):
        strange = {sign for sign in file.read_text() if not sign.isascii()}
        assert strange <= set("éèöüäßăîșțâ"), (file.name, strange)


def test_charts_are_data_and_end_no_script(report: Path) -> None:
    page = (report / "report.html").read_text()
    charts = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert len(charts) == 8  # without profiles, memory and time have none
    for chart in charts:
        assert "<" not in chart and json.loads(chart)["$schema"].endswith(".json")
    assert "unsafe-eval" not in page and page.count("'sha256-") == 2


def test_an_audit_of_another_claims_file_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert audited() is None
    write_audit({"sum.llama-7b.lora": "inconsistent"})
    *anew, kept = audited() or []
    assert kept["id"] == "sum.llama-7b.lora"
    # found when they are asked for: nothing is simulated here
    assert anew and {finding["verdict"] for finding in anew} == {"not run"}
    text = AUDIT.read_text()
    digest = json.loads(text)["papers"]["lora_sp_2024"]
    AUDIT.write_text(text.replace(digest, "0" * 64))
    assert audited() == []
