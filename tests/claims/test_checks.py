"""Each check against answers worked out by hand, and against its own opposite."""

from fractions import Fraction
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorasp.claims import arithmetic, budgets, counts, equations, labels
from lorasp.claims.printed import rounding
from lorasp.errors import WorkError

Numbers = dict[str, str]


def paper(numbers: Numbers, **fields: dict[str, Any]) -> dict[str, Any]:
    """A document with claims of some printed percentages; `fields` adds to claims by id."""
    claims = [
        {
            "id": name,
            "kind": "score",
            "printed": printed,
            "value": float(printed),
            "unit": "percent",
        }
        | fields.get(name, {})
        for name, printed in numbers.items()
    ]
    return {"paper": {"title": "T"}, "claims": claims, "margins": {}, "references": {}}


def count(name: str, printed: str, model: str, method: str, quantity: str = "trainable") -> Any:
    value = float(printed.rstrip("M")) * 1e6
    return {"id": name, "kind": "count", "printed": printed, "value": value, "unit": "parameters",
            "model": model, "method": method, "quantity": quantity}  # fmt: skip


def of(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(claim for claim in document["claims"] if claim["id"] == name)


@pytest.mark.parametrize(
    ("text", "value", "low", "high"),
    [
        ("84.5", 84.5, "84.45", "84.55"),
        ("0.45M", 450000, "445000", "455000"),
        ("348.M", 348000000, "347500000", "348500000"),
        ("around 125 million", 125000000, "124500000", "125500000"),
        ("+0.1 %", 0.1, "0.05", "0.15"),
        ("1,838,082", 1838082, "1838081.5", "1838082.5"),
        ("5-shot: 39.0", 39, "38.95", "39.05"),
    ],
)
def test_a_printed_number_is_all_that_rounds_to_it(
    text: str, value: float, low: str, high: str
) -> None:
    found = rounding(text, value)
    assert (found.low, found.high) == (Fraction(low), Fraction(high))


def test_a_value_that_is_not_printed_is_refused() -> None:
    with pytest.raises(WorkError, match="no number that is value, 85"):
        rounding("84.5", 85)


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=9))
def test_the_rounded_mean_of_rounded_numbers_always_passes(thousandths: list[int]) -> None:
    mean = Fraction(sum(thousandths), 1000 * len(thousandths))
    document = paper(
        {f"x{i}": f"{x / 1000:.1f}" for i, x in enumerate(thousandths)}
        | {"m": f"{float(mean):.1f}"}
    )
    assert arithmetic.mean(document, of(document, "m"), of="x*").verdict == "reproduced"


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ({"a": "10.0", "b": "20.0", "r": "15.0"}, "reproduced"),
        ({"a": "10.0", "b": "20.1", "r": "15.1"}, "reproduced"),  # 15.05
        ({"a": "10.0", "b": "20.0", "r": "15.1"}, "reproduced"),  # 10.05 and 20.05 make 15.05
        ({"a": "10.0", "b": "20.0", "r": "15.2"}, "inconsistent"),
    ],
)
def test_mean(numbers: Numbers, verdict: str) -> None:
    document = paper(numbers)
    assert arithmetic.mean(document, of(document, "r"), of=["a", "b"]).verdict == verdict


@pytest.mark.parametrize(("result", "verdict"), [("29.9", "reproduced"), ("29.6", "inconsistent")])
def test_sum_and_difference(result: str, verdict: str) -> None:
    document = paper({"a": "10.0", "b": "20.0", "c": "0.1", "r": result})
    outcome = arithmetic.total(document, of(document, "r"), of=["a", "b"], minus="c")
    assert outcome.verdict == verdict and "29.90" in outcome.found


def test_equal_and_share() -> None:
    document = paper({"a": "84", "b": "84.4", "c": "84.6", "d": "42.2"})
    assert arithmetic.equal(document, {}, of=["a", "b"]).verdict == "reproduced"
    assert arithmetic.equal(document, {}, of=["a", "c"]).verdict == "inconsistent"
    halves = [arithmetic.share(document, of(document, "d"), of=x, share=0.5) for x in ("b", "c")]
    assert [half.verdict for half in halves] == ["reproduced", "inconsistent"]


def test_quotes() -> None:
    document = paper({"a": "39.8", "b": "45.4"})
    assert arithmetic.quotes(document, {}, numbers={"a": "39.8", "b": 45.4}).verdict == "reproduced"
    wrong = arithmetic.quotes(document, {}, numbers={"a": "39.8", "b": "45.3"})
    assert wrong.verdict == "inconsistent" and "45.3 in the text is 45.4" in wrong.found


def test_order_pairs_numbers_and_says_what_one_of_them_makes() -> None:
    document = paper({"a1": "2.0", "a2": "5.0", "a3": "3.0", "b1": "1.0", "b2": "1.0", "b3": "3.0"})
    outcome = arithmetic.order(document, {}, of="a*", than="b*")
    assert outcome.verdict == "inconsistent" and outcome.found == "2 of 3 greater, 0 less"
    assert "a2 alone (+4.0) is 80% of it" in outcome.evidence[-1]
    assert arithmetic.order(document, {}, of="a*", than="b*", at_least=2).verdict == "reproduced"
    assert arithmetic.order(document, {}, of="a*", than=2.5).verdict == "not reproduced"


@pytest.mark.parametrize(
    ("printed", "examples", "single", "runs"),
    [
        (["50.0", "25.0"], 4, 0, None),
        (["69.8"], 277, 1, 3),  # 193/277 = 69.68, 194/277 = 70.04; 580/831 = 69.80
        (["33.3", "50.0"], 4, 1, 3),  # 4/12 and 6/12
    ],
)
def test_attainable_accuracies(
    printed: list[str], examples: int, single: int, runs: int | None
) -> None:
    document = paper(
        {f"s{i}": p for i, p in enumerate(printed)},
        **{f"s{i}": {"task": "rte"} for i in range(len(printed))},
    )
    outcome = arithmetic.attainable(document, {}, of="s*", examples={"rte": examples})
    expected = [
        n
        for n in range(1, 21)
        if all(
            any(round(100 * k / (examples * n), 1) == float(p) for k in range(examples * n + 1))
            for p in printed
        )
    ]
    assert sum(not row["single_run"] for row in outcome.rows) == single
    if runs:
        assert outcome.verdict == "not comparable"
        assert expected[0] == runs and f"Means of {runs} runs" in " ".join(outcome.evidence)
    else:
        assert outcome.verdict == "reproduced"


def test_settings_are_all_that_fit() -> None:
    """Against plain loops over rank and every subset of the layers of T5-base."""
    shapes = counts.shapes_of("t5-base")
    printed = rounding("0.45M", 450000)
    fitting = set()
    for size in range(1, len(shapes.linear) + 1):
        for names in combinations(shapes.linear, size):
            width = sum(i + o for name in names for i, o in shapes.linear[name])
            fitting |= {
                (rank * width / 2, million)
                for rank in range(1, 129)
                for million, scale in (("10^6", 1), ("2^20", 2**20 / 1e6))
                if 445000 * scale <= rank * width / 2 <= 455000 * scale
            }
    found = counts.settings(shapes, printed, Fraction(1, 2))
    assert fitting == {(float(one.count), one.million) for one in found} and len(found) == 5


@pytest.mark.parametrize(
    ("printed", "arguments", "verdict"),
    [
        ("0.29M", {"rank": 8, "targets": ["query", "value"]}, "reproduced"),
        ("0.29M", {"rank": 16, "targets": ["query", "value"]}, "inconsistent"),
        ("0.29M", {"rank": 8, "targets": ["query", "key", "value"]}, "inconsistent"),
        ("0.29M", {"rank": 8}, "not comparable"),
        ("0.29M", {}, "not comparable"),
        ("0.001M", {}, "not reproduced"),
    ],
)
def test_parameters_of_an_adapter(printed: str, arguments: Any, verdict: str) -> None:
    claim = count("a", printed, "roberta-base", "lora")
    assert counts.parameters({"claims": [claim]}, claim, **arguments).verdict == verdict


def test_parameters_of_a_model_and_of_a_total() -> None:
    right, wrong = (count("a", p, "llama-7b", "ft") for p in ("6738.4M", "6624.4M"))
    assert counts.parameters({"claims": []}, right).verdict == "reproduced"
    assert counts.parameters({"claims": []}, wrong).verdict == "not reproduced"
    adapter = count("b", "159.9M", "llama-7b", "lora")
    for printed, verdict in (("6898.3M", "reproduced"), ("6738.4M", "not reproduced")):
        total = count("c", printed, "llama-7b", "lora", "total")
        assert counts.parameters({"claims": [adapter, total]}, total).verdict == verdict


@pytest.mark.parametrize(
    ("half", "rank", "verdict"),
    [("0.147M", None, "reproduced"), ("0.147M", 8, "reproduced"), ("0.15M", 64, "inconsistent")],
)
def test_halved(half: str, rank: int | None, verdict: str) -> None:
    whole = count("w", "0.295M", "roberta-base", "lora")
    document = {"claims": [whole, count("h", half, "roberta-base", "lora-sp")],
                "paper": {"title": "T"}}  # fmt: skip
    assert budgets.halved(document, {}, of="h", whole="w", rank=rank).verdict == verdict


def test_halved_with_a_head_that_is_not_halved() -> None:
    """0.887M is r = 8 with the head; with half of the adapter and all of the head it is 0.740M."""
    whole = count("w", "0.887M", "roberta-base", "lora")
    verdicts = {}
    for printed in ("0.740M", "0.444M"):
        half = count("h", printed, "roberta-base", "lora-sp")
        document = {"claims": [whole, half], "paper": {"title": "T"}}
        outcome = budgets.halved(document, {}, of="h", whole="w", rank=8)
        verdicts[printed] = (outcome.verdict, "unless the head" in outcome.found)
    assert verdicts == {"0.740M": ("reproduced", False), "0.444M": ("inconsistent", True)}


def test_one_setting_for_two_models() -> None:
    right = [count("a", "0.295M", "roberta-base", "lora"), count("b", "0.885M", "t5-base", "lora")]
    document = {"claims": right, "paper": {"title": "T"}}
    outcome = budgets.one_setting(document, {}, of=["a", "b"], rank=8)
    assert outcome.verdict == "reproduced" and outcome.found.startswith("r = 8 on query + value")
    document["claims"][1] = count("b", "0.950M", "t5-base", "lora")
    assert budgets.one_setting(document, {}, of=["a", "b"]).verdict == "inconsistent"


def test_states_in_bytes() -> None:
    """LLaMA-7B in float16, 100M against 200M trained: 13.48 + 1.6 and 13.48 + 3.2 GB."""
    document = {"claims": [count("s", "100M", "llama-7b", "lora-sp"),
                           count("w", "200M", "llama-7b", "lora")],
                "paper": {"title": "T"}, "margins": {"m": {"value": 0.05}}}  # fmt: skip
    outcome = budgets.states(document, {"margin": "m"}, of="s", than="w")
    half = next(row for row in outcome.rows if row["weights"] == "float16")
    assert half["bytes"] == 2 * 6_738_415_616 + 16e8 and half["saved"] == pytest.approx(
        0.0959, abs=1e-4
    )
    assert outcome.verdict == "reproduced"
    document["margins"]["m"]["value"] = 0.5
    assert budgets.states(document, {"margin": "m"}, of="s", than="w").verdict == "not reproduced"


def test_expressions_are_evaluated_as_torch_does() -> None:
    a, b, s = (torch.randn(4, 3, dtype=torch.float64) for _ in range(3))
    found = equations.evaluate("-(A * S) @ (B * S).T + A @ B.T", {"A": a, "B": b, "S": s})
    torch.testing.assert_close(found, -(a * s) @ (b * s).T + a @ b.T)


@pytest.mark.parametrize(
    "bad", ["__import__('os')", "A.shape", "A ** A", "A[0]", "A if A else A", "q(A, A)", "1 + A"]
)
def test_anything_else_is_refused(bad: str) -> None:
    with pytest.raises(WorkError, match="allowed"):
        equations.evaluate(bad, {"A": torch.ones(2, 2)})


def test_nothing_is_broadcast() -> None:
    with pytest.raises(equations.ShapeError, match="elementwise on 2 × 2 and 1 × 2"):
        equations.evaluate("A + B", {"A": torch.ones(2, 2), "B": torch.ones(1, 2)})


@pytest.mark.parametrize(
    ("expression", "verdict", "valid"),
    [
        ("(A * S) @ (B * S).T", "inconsistent", {True: True, False: False}),
        ("B @ A", "reproduced", {True: True, False: True}),
        ("A @ A", "inconsistent", {True: False, False: False}),
    ],
)
def test_shapes(expression: str, verdict: str, valid: dict[bool, bool]) -> None:
    matrices = {"A": ["r", "in"], "B": ["out", "r"], "S": "any"}
    outcome = equations.shapes(
        {}, {}, expression=expression, matrices=matrices, models=["roberta-base"]
    )
    assert outcome.verdict == verdict and len(outcome.rows) == 3
    for row in outcome.rows:
        assert (row["valid"] > 0) == valid[row["in"] == row["out"]]


@pytest.mark.parametrize(
    ("expressions", "zero", "verdict"),
    [
        (["(B @ A).T", "A.T @ B.T"], [], "reproduced"),
        (["W + B @ A", "W - B @ A"], [], "inconsistent"),
        (["W + B @ A", "W - B @ A"], ["B"], "reproduced"),
        (["(B * S) @ A", "B @ A"], [], "inconsistent"),
        (["B * S + B * NS", "B"], [], "reproduced"),
        (["W", "W.T"], [], "inconsistent"),
        (["A @ B", "A @ B"], [], "inconsistent"),  # r × in on out × r does not fit
    ],
)
def test_same(expressions: list[str], zero: list[str], verdict: str) -> None:
    matrices = {"A": ["r", "in"], "B": ["out", "r"], "S": ["out", "r"]}
    found = equations.same({}, {}, expressions=expressions, matrices=matrices, zero=zero)
    assert found.verdict == verdict


def test_agree_and_pairs() -> None:
    assert labels.agree({}, {}, printed=["Half-LoRA", "half lora"]).verdict == "reproduced"
    assert labels.agree({}, {}, printed=["Half-LoRA", "LoRA half"]).verdict == "inconsistent"
    assert labels.pairs({}, {}, printed=[["a", "a"]]).verdict == "reproduced"
    assert labels.pairs({}, {}, printed=[["a", "a"], ["b", "c"]]).found == "1 of 2 differ: b is c"


def test_present_and_swept() -> None:
    places = {"model": "m", "method": "lora", "task": "rte", "metric": "accuracy"}
    document = paper({"a": "1.0", "b": "2.0"}, a=places, b=places | {"task": "mrpc"})
    assert labels.present(document, {}, of={"task": ["x", "r?e"]}).verdict == "reproduced"
    assert labels.present(document, {}, of={"task": "cola"}).verdict == "inconsistent"
    quiet = labels.present(document, {}, of={"unit": "bytes"}, announced=False)
    assert quiet.verdict == "not comparable"
    assert labels.swept(document, {}).verdict == "inconsistent"
    document["claims"][1]["task"] = "rte"
    assert labels.swept(document, {}).verdict == "reproduced"


def test_row_labels() -> None:
    names = {"llama-7b": "*7B*", "llama-13b": "*13B*"}
    cell = count("a", "12986.8M", "llama-13b", "ft")
    for row, verdict in (("LLaMA-13B", "reproduced"), ("LLaMA-7B", "inconsistent")):
        document = {"claims": [cell | {"row": row}], "paper": {"title": "T"}}
        assert labels.row_labels(document, {}, of="a", labels=names).verdict == verdict


def test_nearest_base_model() -> None:
    document = paper({"a": "39.8", "b": "46.0"})
    models = {"v1": 35.1, "v2": 45.3}
    one = labels.nearest(document, {}, of="b", models=models, named="v2", source="s")
    two = labels.nearest(document, {}, of="*", models=models, named="v2", source="s")
    assert (one.verdict, two.verdict) == ("reproduced", "inconsistent")
    assert "1 of 2" in two.found and "Below the untouched v2: 39.8." in two.evidence


def test_one_column_for_two_sets() -> None:
    place = {"model": "m", "method": "ft", "metric": "accuracy"}
    document = paper(
        {"a": "1.0", "b": "2.0"}, a=place | {"task": "mnli"}, b=place | {"task": "rte"}
    )
    assert labels.one_column(document, {}, task="mnli").verdict == "inconsistent"
    assert labels.one_column(document, {}, task="rte").verdict == "reproduced"


@pytest.mark.parametrize(("margin", "verdict"), [(1.5, "reproduced"), (0.9, "not reproduced")])
def test_published(margin: float, verdict: str) -> None:
    known = {
        name: {"independent": {"value": v, "source": "s"}} for name, v in (("a", 11), ("b", 21))
    }
    document = paper({"a": "10.0", "b": "20.0"}, **known)
    document["margins"] = {"m": {"value": margin}}
    document["references"] = {"s": {"title": "S"}}
    outcome = labels.published(document, {"margin": "m"}, of="*")
    assert outcome.verdict == verdict and "1.0 points below" in outcome.found
