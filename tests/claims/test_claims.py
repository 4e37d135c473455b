"""The papers as data: complete, unique, and consistent with what the papers print."""

import re
from collections import Counter
from inspect import Parameter, signature
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import yaml

from lorasp.claims import PAPER, claims_file, find, load_claims, shipped
from lorasp.claims.audit import CHECKS, audit
from lorasp.claims.roles import models_for, tasks_for
from lorasp.config import load_config
from lorasp.errors import UsageError, WorkError
from lorasp.results import schema
from lorasp.tasks import load_task

ROOT = Path(__file__).parents[2]
GLUE = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
# Typed from the papers: LoRA's Table 2, T5's Table 14, QLoRA's Table 4.
INDEPENDENT = {
    "table1.roberta-base.ft": "87.6 94.8 90.2 63.6 92.8 91.9 78.7 91.2",
    "table1.roberta-base.lora": "87.5±.3 95.1±.2 89.7±.7 63.4±1.2 93.3±.3 90.8±.1 86.6±.7 91.5±.2",
    "table1.roberta-large.ft": "90.2 96.4 90.9 68.0 94.7 92.2 86.6 92.4",
    "table1.roberta-large.lora": "90.6 96.2 90.2±1.0 68.2±1.9 94.8 91.6 85.2±1.1 92.3",
    "table2.t5-base.ft": {"bleu": "28.0"},
    "table2.t5-large.ft": {"bleu": "28.1"},
    "table3.llama-7b.lora": {"mmlu": "38.4"},
    "table3.llama-13b.lora": {"mmlu": "47.2"},
}
KEYWORD_ONLY = Parameter.KEYWORD_ONLY
UNITS = {"score": "percent", "count": "parameters"}
SOURCES = {"table1": "lora-2021", "table2": "t5-2019", "table3": "qlora-2023"}


def test_every_cell_of_the_three_tables_is_there() -> None:
    claims = [claim for claim in load_claims()["claims"] if "row" in claim]
    assert Counter((claim["table"], claim["kind"]) for claim in claims) == {
        (1, "score"): 48, (1, "count"): 6,
        (2, "score"): 24, (2, "count"): 6,
        (3, "score"): 6, (3, "count"): 12,
    }  # fmt: skip


def test_values_are_the_printed_strings() -> None:
    for name in shipped():
        for claim in load_claims(name)["claims"]:
            if "value" in claim:
                assert claim["value"] == pytest.approx(read(claim["printed"])), claim["id"]
                assert claim["unit"] == UNITS.get(claim["kind"], claim["unit"])


def read(printed: str) -> float:
    """The first number of a phrase: 0.9M, 125 million, 88.1%, 0.1% more."""
    found = re.search(r"(\d[\d,]*\.?\d*) ?(M\b|million)?", printed)
    assert found, printed
    number = float(found[1].replace(",", "")) * (1e6 if found[2] else 1)
    return number / 100 if "% more" in printed else number


def test_scores_are_of_the_metric_and_column_of_their_task() -> None:
    for claim in load_claims()["claims"]:
        if claim["kind"] == "score":
            task = load_task(claim["task"])
            assert claim["metric"] in task["metrics"] and claim["table"] == task["table"]
            if claim["metric"] == task["headline"]:
                assert claim["column"] == task["column"]


def test_the_averages_in_the_text_follow_from_table_1() -> None:
    averages = find(load_claims(), "text.roberta-*.average")
    assert sorted(claim["printed"] for claim in averages) == ["83.8", "84.5", "87.7", "88.1"]
    for claim in averages:
        assert f"{table_1(claim['model'], claim['method']):.1f}" == claim["printed"]


def table_1(model: str, method: str) -> float:
    scores = find(load_claims(), f"table1.{model}.{method}.*", "score")
    assert len(scores) == 8
    return mean(claim["value"] for claim in scores)


def test_a_sentence_quotes_the_numbers_of_the_tables() -> None:
    """Every relation with numbers in it names those of its two methods, read off the tables."""
    tables = find(load_claims(), "table*", "score")
    quoting = [
        claim
        for claim in load_claims()["claims"]
        if claim["kind"] == "relation"
        and "left" in claim
        and re.search(r"\d\.\d", claim["printed"])
    ]
    assert len(quoting) > 50
    for claim in quoting:
        numbers = sorted(float(number) for number in re.findall(r"\d+\.\d+", claim["printed"]))
        metrics = {"wmt16-en-ro": claim.get("metric", "bleu")}
        expected = sorted(
            mean(
                score["value"]
                for score in tables
                if (score["model"], score["method"]) == (claim["models"][0], claim[side])
                and score["task"] in claim["tasks"]
                and score["metric"] == metrics.get(score["task"], score["metric"])
            )
            for side in ("left", "right")
        )
        assert numbers == pytest.approx(expected, abs=0.0501), claim["id"]


def test_the_mislabelled_row_keeps_its_label() -> None:
    [claim] = find(load_claims(), "table3.llama-13b.ft.mmlu")
    assert (claim["printed"], claim["row"]) == ("47.8", "LLaMA-7B-Alpaca (FT)")


def test_independent_numbers_are_those_of_their_sources() -> None:
    expected = {}
    for row, cells in INDEPENDENT.items():
        named = cells if isinstance(cells, dict) else dict(zip(GLUE, cells.split(), strict=True))
        for column, printed in named.items():
            value, _, spread = printed.partition("±")
            expected[f"{row}.{column}"] = (
                float(value), float(spread) if spread else None, SOURCES[row.partition(".")[0]]
            )  # fmt: skip
    found = {
        claim["id"]: (other["value"], other.get("spread"), other["source"])
        for claim in load_claims()["claims"]
        if (other := claim.get("independent"))
    }
    assert found == expected


@pytest.mark.parametrize("name", [PAPER, "controls", "lora_2021"])
def test_what_a_relation_names_is_in_the_configuration_of_the_paper(name: str) -> None:
    config = load_config(ROOT / "config/paper.yaml")
    profiled = {
        (cell["model"], method) for cell in config["profile"]["cells"] for method in cell["methods"]
    }
    for claim in load_claims(name)["claims"]:
        if "left" not in claim:
            continue
        assert {claim["left"], claim["right"]} <= set(config["methods"])
        assert set(claim["models"]) <= set(config["models"])
        assert set(claim.get("tasks", [])) <= set(config["tasks"])
        for task in claim.get("tasks", []) if "metric" in claim else []:
            assert claim["metric"] in load_task(task)["metrics"]
        if claim["kind"] == "resource":
            needed = {
                (model, claim[side]) for model in claim["models"] for side in ("left", "right")
            }
            # no GPU of 80 GB holds that one: the claims that name it are 'not run' without it
            assert needed - profiled <= {("llama-7b", "ft")}


@pytest.mark.parametrize("name", shipped())
def test_margins_and_families_are_used_and_of_the_right_unit(name: str) -> None:
    document = load_claims(name)
    for section, key in (("margins", "margin"), ("families", "family")):
        used = {claim[key] for claim in document["claims"] if key in claim}
        assert used == set(document[section])
    for claim in document["claims"]:
        if "margin" in claim:
            unit = document["margins"][claim["margin"]]["unit"]
            assert unit == ("share" if claim["kind"] == "resource" else "points")
    for key in ("methods", "recipes"):
        config = load_config(ROOT / "config/paper.yaml")
        for entry in document["paper"].get("not_stated", []):
            assert set(entry.get("compare", {}).get(key, [])) <= set(config[key])


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_a_scale_judges_every_shipped_paper(scale: str) -> None:
    assert sorted(load_config(ROOT / f"config/{scale}.yaml")["claims"]) == shipped()


def test_mini_has_stand_ins_for_one_model_and_task_of_each_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    mini = load_config(Path("config/mini.yaml"))
    roles = ("roberta-base", "roberta-large", "t5-base", "llama-7b")
    assert [models_for(mini, role) for role in roles] == [
        ["minilm-l6"], [], ["t5-mini"], ["smollm2-135m"]
    ]  # fmt: skip
    assert [tasks_for(mini, role) for role in ("sst2", "stsb", "mrpc", "alpaca-mmlu")] == [
        ["movie-reviews"], ["movie-valence"], [], ["evals-mmlu"]
    ]  # fmt: skip


DAMAGES: list[tuple[dict[str, Any], str]] = [
    ({"kind": "guess"}, "'guess' is not one of"),
    ({"id": "Table 1"}, "lower-case letters, digits, dots and hyphens"),
    ({"id": "table1.roberta-base.ft.mnli"}, "more than once: table1.roberta-base.ft.mnli"),
    ({"margin": "wide"}, "names 'wide', which is not under margins; there are glue, glue-small"),
    ({"family": "all"}, "names 'all', which is not under families; there are table1"),
    ({"table": 4}, "names '4', which is not under tables; there are 1, 2, 3"),
    (
        {"independent": {"value": 1, "source": "blog"}},
        "names 'blog', which is not under references",
    ),
    ({"colour": "red"}, "'colour' was unexpected.*; allowed are check, column"),
    ({"scales": ["smoke"]}, "'smoke' is not one of"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[next(iter(d)) for d, _ in DAMAGES])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: dict[str, Any], message: str) -> None:
    document = yaml.safe_load(claims_file(PAPER).read_text())
    [index] = [
        number
        for number, claim in enumerate(document["claims"])
        if claim["id"] == "table1.roberta-base.ft.sst2"
    ]
    document["claims"][index] |= damage
    file = tmp_path / "claims.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    with pytest.raises(WorkError, match=message) as caught:
        load_claims(str(file))
    assert str(file) in str(caught.value)


def test_an_unknown_paper_is_answered_with_those_there_are() -> None:
    with pytest.raises(
        UsageError, match=r"no claims file .*lora_2099.yaml; shipped are controls, "
    ):
        load_claims("lora_2099")
    with pytest.raises(WorkError, match="has an id like table9"):
        find(load_claims(), "table9.*")


def test_the_example_of_the_documentation_is_a_claims_file(tmp_path: Path) -> None:
    text = (ROOT / "docs/claims.md").read_text()
    [example] = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    file = tmp_path / "half_lora.yaml"
    file.write_text(example)
    document = load_claims(str(file))
    kinds = Counter(claim["kind"] for claim in document["claims"])
    assert kinds == {"score": 2, "arithmetic": 1, "relation": 2, "resource": 1}
    assert document["claims"][0]["where"] == "Table 1, page 6"
    [finding] = audit([str(file)])
    assert (finding["id"], finding["verdict"]) == ("average", "reproduced")
    wrong = tmp_path / "wrong_average.yaml"
    wrong.write_text(example.replace("87.6", "87.9"))
    assert audit([str(wrong)])[0]["verdict"] == "inconsistent"


def test_the_documentation_names_every_check_and_kind() -> None:
    text = (ROOT / "docs/claims.md").read_text()
    told = {
        name: re.findall(r"\w+", arguments)
        for name, arguments in re.findall(r"`(\w+)\(([^)]*)\)`", text.partition("## Checks")[2])
    }
    assert told == {
        name: [one.name for one in signature(check).parameters.values() if one.kind is KEYWORD_ONLY]
        for name, check in CHECKS.items()
    }
    kinds = schema("claims")["properties"]["claims"]["items"]["properties"]["kind"]["enum"]
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)) == sorted(kinds)
