"""Every way to a verdict, on small papers whose right answer is known."""

import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from small import (
    Scores,
    around,
    config,
    profiles,
    relation,
    resource,
    score,
    verdicts,
    write_paper,
)

from lorasp.claims.verdicts import judged_as
from lorasp.results import schema

LEFT, RIGHT = "roberta-base sst2 lora-sp stated", "roberta-base sst2 lora stated"
BASE = "roberta-base sst2 base none"
MINI_LEFT, MINI_RIGHT = "mini-base reviews lora-sp stated", "mini-base reviews lora stated"
MINI_BASE = "mini-base reviews base none"


def results(left: float = 90.0, sd: float = 0.2, seeds: int = 5, base: float = 50.0) -> Scores:
    """LoRA at 90 on every seed, LoRA-SP around `left`, the untouched model around `base`."""
    return {
        LEFT: around(left, sd, seeds),
        RIGHT: around(90, 0.01, seeds),
        BASE: around(base, 2.0, seeds),
    }


def one(claim: dict[str, Any], tmp_path: Path, scores: Scores | None = None, **more: Any) -> Any:
    """The only record of a paper with one claim; it is valid."""
    record = verdicts(write_paper(tmp_path, claim), more.pop("config", config()), scores, **more)
    (found,) = record.values()
    document = schema("verdicts")
    jsonschema.validate(found, document["$defs"]["verdict"] | {"$defs": document["$defs"]})
    return found


@pytest.mark.parametrize(
    ("left", "verdict"),
    [(90.0, "reproduced"), (89.0, "inconclusive"), (87.0, "not reproduced")],
)
def test_a_relation(tmp_path: Path, left: float, verdict: str) -> None:
    found = one(relation(), tmp_path, results(left))
    assert found["verdict"] == verdict
    assert found["test"]["estimate"] == pytest.approx(left - 90)
    assert (found["test"]["n"], found["test"]["planned"]) == (5, 5)
    assert found["stand_in"] is False and found["recipe"] == "stated"
    assert {group["method"] for group in found["groups"]} == {"lora-sp", "lora", "base"}


def test_the_sentence_says_what_a_reviewer_asks(tmp_path: Path) -> None:
    found = one(relation(), tmp_path, results(87.1, sd=1.3))
    # 2.1318 is Student's 0.95 quantile for 4 degrees of freedom; the spreads of both sides add up
    half = 2.1318 * (1.3 - 0.01) / math.sqrt(5)
    assert found["because"] == (
        f"LoRA-SP is 2.9 points below LoRA (90 % interval −{2.9 + half:.1f} to −{2.9 - half:.1f}, "
        "5 pairs of seeds); the margin is 1.0."
    )


def test_inconclusive_says_how_many_seeds_would_settle_it(tmp_path: Path) -> None:
    found = one(relation(), tmp_path, results(89.5, sd=1.0))
    needed = found["test"]["seeds_needed"]
    assert found["verdict"] == "inconclusive" and needed > 5
    assert f"About {needed} seeds would settle it" in found["because"]
    found = one(relation(), tmp_path, results(89.01, sd=3.0))
    assert found["test"]["seeds_needed"] is None
    assert "More than 1,000 seeds" in found["because"]


@pytest.mark.parametrize("margin", ["point", "wide"])
def test_equivalent_is_outside_on_either_side(tmp_path: Path, margin: str) -> None:
    claim = relation(test="equivalent", margin=margin)
    found = [one(claim, tmp_path, results(left))["verdict"] for left in (88.0, 90.0, 92.0)]
    beyond = "not reproduced" if margin == "point" else "reproduced"
    assert found == [beyond, "reproduced", beyond]


def test_superior_needs_a_difference_and_no_margin(tmp_path: Path) -> None:
    claim = relation(test="superior")
    found = [one(claim, tmp_path, results(left)) for left in (90.5, 90.0, 89.5)]
    assert [f["verdict"] for f in found] == ["reproduced", "inconclusive", "not reproduced"]
    assert {f["test"]["margin"] for f in found} == {0.0}


def test_seeds_are_paired(tmp_path: Path) -> None:
    left = [80.0, 84.1, 88.0, 92.1, 96.0]  # widely spread, and always close to LoRA's
    right = [80.1, 84.0, 88.1, 92.0, 96.1]
    found = one(relation(), tmp_path, {LEFT: left, RIGHT: right, BASE: around(50)})
    assert found["verdict"] == "reproduced"
    found = one(relation(), tmp_path, {LEFT: left, RIGHT: right[::-1], BASE: around(50)})
    assert found["verdict"] == "inconclusive"


def test_a_missing_seed_is_left_out_and_told(tmp_path: Path) -> None:
    scores = results()
    scores[RIGHT][3] = None
    found = one(relation(), tmp_path, scores)
    assert found["verdict"] == "reproduced" and "4 of 5 pairs of seeds" in found["because"]
    assert (found["test"]["n"], found["test"]["planned"]) == (4, 5)
    assert "left out, because a score is missing: seed 3" in found["evidence"]


def test_an_undefined_score_is_not_left_out(tmp_path: Path) -> None:
    scores = results()
    scores[LEFT][1] = math.nan
    found = one(relation(), tmp_path, scores)
    assert found["verdict"] == "inconclusive" and found["test"]["estimate"] is None
    assert found["because"].startswith("The score of roberta-base sst2 lora-sp stated seed 1 is")


def test_seeds_that_do_not_differ_prove_nothing(tmp_path: Path) -> None:
    scores: Scores = {LEFT: [90.1] * 5, RIGHT: [90.0] * 5, BASE: around(50)}
    found = one(relation(), tmp_path, scores)
    assert found["verdict"] == "inconclusive" and found["test"]["p"] is None
    assert "The seeds do not differ, so there is no spread" in found["because"]


def test_one_seed_proves_nothing(tmp_path: Path) -> None:
    found = one(relation(), tmp_path, {LEFT: [90.0], RIGHT: [90.0], BASE: [50.0]})
    assert found["verdict"] == "inconclusive"
    assert found["because"].endswith("One seed shows no spread to test against.")


def test_equal_and_untrained_is_not_reproduced(tmp_path: Path) -> None:
    found = one(relation(), tmp_path, results(base=89.5))
    assert found["verdict"] == "inconclusive" and found["test"]["p_adjusted"] < 0.05
    assert "methods that learned nothing would look the same" in found["because"]
    assert found["test"]["seeds_needed"] is None  # the gain is within the margin
    # a difference is one, whether or not anybody learned
    assert one(relation(), tmp_path, results(87, base=89.5))["verdict"] == "not reproduced"
    # and to be better needs no such proof
    better = one(relation(test="superior"), tmp_path, results(91, base=89.5))
    assert better["verdict"] == "reproduced"


def test_a_noisy_gain_asks_for_more_seeds(tmp_path: Path) -> None:
    scores = results() | {BASE: around(85.0, sd=8.0)}
    found = one(relation(), tmp_path, scores)
    assert found["verdict"] == "inconclusive" and found["test"]["seeds_needed"] > 5


def test_without_the_untouched_model_nothing_is_reproduced(tmp_path: Path) -> None:
    scores = results()
    del scores[BASE]
    found = one(relation(), tmp_path, scores)
    assert found["verdict"] == "inconclusive"
    assert "Without scores of the untouched model" in found["because"]


def test_an_untouched_model_without_seeds_stands_for_all(tmp_path: Path) -> None:
    scores = results() | {BASE: [50.0]}
    assert one(relation(), tmp_path, scores)["verdict"] == "reproduced"
    claim = relation(left="lora", right="base", test="superior")
    found = one(claim, tmp_path, scores)
    assert (found["verdict"], found["test"]["n"]) == ("reproduced", 5)


def test_tasks_are_averaged_seed_by_seed(tmp_path: Path) -> None:
    mrpc = {key.replace("sst2", "mrpc"): value for key, value in results(86.0).items()}
    claim = relation(tasks=["sst2", "mrpc"], margin="wide")
    found = one(claim, tmp_path, results() | mrpc)
    assert found["test"]["estimate"] == pytest.approx(-2.0) and found["verdict"] == "reproduced"
    assert "over 2 pairs of model and task" in found["because"]
    assert "roberta-base on mrpc: −4.00 points" in found["evidence"]
    del mrpc[LEFT.replace("sst2", "mrpc")]
    mrpc[LEFT.replace("sst2", "mrpc")] = [None, *around(86.0, seeds=4)]
    found = one(claim, tmp_path, results() | mrpc)
    assert found["test"]["n"] == 4  # a seed counts where all of its tasks do
    assert found["verdict"] == "reproduced"


def test_at_paper_scale_a_relation_needs_all_of_its_tasks(tmp_path: Path) -> None:
    claim = relation(tasks=["sst2", "mrpc", "rte"])
    mrpc: Scores = {key.replace("sst2", "mrpc"): [None] * 5 for key in results()}
    found = one(claim, tmp_path, results() | mrpc)
    assert found["verdict"] == "not run"
    assert found["because"] == "Only sst2 of 3 tasks has runs."
    claim = relation(models=["roberta-base", "roberta-large"])
    assert one(claim, tmp_path, results())["because"] == "Only roberta-base of 2 models has runs."


def test_nothing_run_is_not_run(tmp_path: Path) -> None:
    scores: Scores = {LEFT: [None] * 3, RIGHT: around(90, seeds=3), BASE: around(50, seeds=3)}
    found = one(relation(), tmp_path, scores)
    assert found["verdict"] == "not run" and "none of the planned runs" in found["because"].lower()
    scores = {LEFT: [90.0, None], RIGHT: [None, 90.0], BASE: [50.0, 51.0]}
    assert "methods" in one(relation(), tmp_path, scores)["because"]


def test_methods_models_and_recipes_that_nobody_plans(tmp_path: Path) -> None:
    found = one(relation(left="lora-mini"), tmp_path, results())
    assert found["verdict"] == "not run"
    assert found["because"] == "No run of lora-mini is planned at this scale."
    found = one(relation(models=["t5-base"]), tmp_path, results())
    assert found["because"] == (
        "No run of lora-sp and lora on any t5-base and sst2 is planned with recipe stated."
    )
    other = config(verdicts={"recipe": "tuned"})
    found = one(relation(), tmp_path, results(), config=other)
    assert found["verdict"] == "not run" and "recipe tuned" in found["because"]
    assert found["others"][0]["recipe"] == "stated"  # shown, and decides nothing
    assert found["others"][0]["verdict"] == "reproduced"


def test_a_stand_in_is_told(tmp_path: Path) -> None:
    scores: Scores = {
        MINI_LEFT: around(90, 0.2),
        MINI_RIGHT: around(90, 0.01),
        MINI_BASE: around(50),
    }
    claim = relation(tasks=["sst2", "rte"])  # at mini what is there suffices
    found = one(claim, tmp_path, scores, config=config("mini"))
    assert found["verdict"] == "reproduced" and found["stand_in"] is True
    assert "nothing here is, or stands for, rte" in found["evidence"]


def test_fewer_seeds_on_one_task_are_told(tmp_path: Path) -> None:
    scores: Scores = {
        MINI_LEFT: around(90, 0.2),
        MINI_RIGHT: around(90, 0.01),
        "mini-base pairs lora-sp stated": around(90, 0.2, 2),
        "mini-base pairs lora stated": around(90, 0.01, 2),
    }
    found = one(relation(tasks=["sst2", "mrpc"]), tmp_path, scores, config=config("mini"))
    assert found["test"]["planned"] == 2
    assert any("mini-base on reviews: 5, mini-base on pairs: 2" in e for e in found["evidence"])


def test_part_of_a_data_set_is_a_stand_in(tmp_path: Path) -> None:
    part = config()
    part["datasets"]["sst2"]["rows"] = {"train": 100}
    assert one(relation(), tmp_path, results(), config=part)["stand_in"] is True
    found = one(score(), tmp_path, results(), config=part)
    assert found["verdict"] == "not run" and "own" in found["because"]


def test_a_score(tmp_path: Path) -> None:
    scores: Scores = {RIGHT: around(88.6, 0.3)}
    found = one(score(), tmp_path, scores)
    assert found["verdict"] == "not reproduced"
    assert found["because"].startswith("Our mean is 1.4 points below the printed 90.0 (90 % inter")
    assert one(score(value=88.5), tmp_path, scores)["verdict"] == "reproduced"
    assert one(score(metric="f1"), tmp_path, scores)["verdict"] == "not run"
    assert one(score(method="ft"), tmp_path, scores)["because"].startswith("No run of ft is")
    assert one(score(model="llama-7b"), tmp_path, scores)["verdict"] == "not run"


def test_no_score_is_judged_below_paper_scale(tmp_path: Path) -> None:
    for claim in (score(), score(scales=["mini", "paper"])):
        found = one(claim, tmp_path, results(), config=config("mini"))
        assert found["verdict"] == "not run" and "scale alone" in found["because"]


def test_smoke_judges_nothing_that_needs_runs(tmp_path: Path) -> None:
    names = [score("s"), relation("r"), resource()]
    found = verdicts(write_paper(tmp_path, *names), config("smoke"), results())
    assert {record["verdict"] for record in found.values()} == {"not run"}
    assert {record["because"] for record in found.values()} == {"Random models on invented data."}
    assert not any("test" in record for record in found.values())


def test_a_scale_of_another_name_is_judged_as_what_it_resembles() -> None:
    claims = [{"claims": [relation(), score()]}]
    assert judged_as(config("smoke"), claims) == "smoke"
    own = config() | {"scale": "ours"}
    own["experiments"] = [{"models": ["roberta-base"]}]
    assert judged_as(own, claims) == "paper"
    own["experiments"] = [{"models": ["roberta-base", "roberta-large"]}]
    assert judged_as(own, claims) == "mini"  # roberta-large is in none of these claims
    assert judged_as(config("mini") | {"scale": "ours"}, claims) == "mini"
    assert judged_as(config("paper") | {"no_result": "A rehearsal."}, claims) == "smoke"
    random = config()
    for model in random["models"].values():
        model["source"]["kind"] = "generated"
    assert judged_as(random | {"scale": "ours"}, claims) == "smoke"
    assert judged_as(random, claims) == "paper"  # its own word for it


def test_a_family_is_corrected_and_another_is_not(tmp_path: Path) -> None:
    scores = results(89.5, sd=0.4)  # p = 0.02
    alone = one(relation(), tmp_path, scores)
    assert alone["verdict"] == "reproduced"
    claims = [relation(name) for name in "abc"]
    found = verdicts(write_paper(tmp_path, *claims), config(), scores)
    assert {record["verdict"] for record in found.values()} == {"inconclusive"}
    for record in found.values():
        assert record["test"]["p"] == pytest.approx(alone["test"]["p"])
        assert record["test"]["p_adjusted"] == pytest.approx(3 * alone["test"]["p"])
        assert "in its family it does not" in record["because"]
    apart = verdicts(
        write_paper(tmp_path, relation("a"), relation("b", family="other")), config(), scores
    )
    assert {record["verdict"] for record in apart.values()} == {"reproduced"}


def test_claims_without_runs_are_in_no_family(tmp_path: Path) -> None:
    claims = [relation("a"), relation("b", left="lora-mini"), relation("c", tasks=["rte"])]
    found = verdicts(write_paper(tmp_path, *claims), config(), results())
    assert found["a"]["test"]["p_adjusted"] == found["a"]["test"]["p"]
    assert found["b"]["verdict"] == found["c"]["verdict"] == "not run"


def test_a_check_is_the_audits(tmp_path: Path) -> None:
    claim = {
        "id": "claim", "kind": "arithmetic", "where": "text", "printed": "84.5",
        "check": {"name": "mean", "of": "x"},
    }  # fmt: skip
    path = write_paper(tmp_path, claim)
    assert verdicts(path, config())["claim"]["because"] == "`lorasp audit` has not been run."
    finding = {
        "paper": Path(path).stem, "id": "claim", "verdict": "inconsistent", "found": "It is 84.",
        "evidence": ["a step"], "rows": [{"x": 1}],
    }  # fmt: skip
    found = verdicts(path, config("smoke"), audit=[finding])["claim"]
    assert (found["verdict"], found["because"]) == ("inconsistent", "It is 84.")
    assert (found["evidence"], found["rows"]) == (["a step"], [{"x": 1}])
    other = verdicts(path, config(), audit=[finding | {"paper": "another"}])["claim"]
    assert other["verdict"] == "not run"


def test_what_nothing_can_judge_is_as_written(tmp_path: Path) -> None:
    said = {"verdict": "not comparable", "because": "The paper says too little."}
    claim = {"id": "c", "kind": "relation", "where": "text", "printed": "good", "unjudged": said}
    found = one(claim, tmp_path, config=config("smoke"))
    assert {key: found[key] for key in said} == said


@pytest.mark.parametrize(
    ("left", "verdict"), [(89, "reproduced"), (91, "not reproduced"), (90, "reproduced")]
)
def test_memory_is_compared_with_the_margin(tmp_path: Path, left: int, verdict: str) -> None:
    measured = profiles(
        {"method": "lora-sp", "peak_memory": left}, {"method": "lora", "peak_memory": 100}
    )
    found = one(resource(), tmp_path, measured=measured)
    assert found["verdict"] == verdict and found["test"]["estimate"] == pytest.approx(left / 100)
    assert found["test"]["name"] == "less" and found["test"]["interval"] is None


@pytest.mark.parametrize(
    ("quartiles", "verdict"),
    [((0.79, 0.81), "reproduced"), ((0.7, 1.1), "inconclusive"), ((0.95, 1.0), "not reproduced")],
)
def test_time_needs_quartiles_on_one_side(
    tmp_path: Path, quartiles: tuple[float, float], verdict: str
) -> None:
    low, high = quartiles
    measured = profiles(
        {"method": "lora-sp", "step": (low + high) / 2, "q1": low, "q3": high},
        {"method": "lora", "step": 1.0, "q1": 1.0, "q3": 1.0},
    )
    found = one(resource("step"), tmp_path, measured=measured)
    assert found["verdict"] == verdict
    assert found["test"]["interval"] == pytest.approx(list(quartiles))


@pytest.mark.parametrize(
    ("left", "verdict"),
    [(900, "reproduced"), (1100, "reproduced"), (1101, "not reproduced"), (1300, "not reproduced")],
)
def test_at_most_allows_the_margin_above(tmp_path: Path, left: int, verdict: str) -> None:
    measured = profiles(
        {"method": "lora-sp", "peak_memory": left}, {"method": "lora", "peak_memory": 1000}
    )
    found = one(resource(test="at_most"), tmp_path, measured=measured)
    assert found["verdict"] == verdict and found["test"]["name"] == "at_most"
    assert found["because"].endswith(
        "; the claim needs 1.100 or less." if abs(left - 1100) < 10 else "needs 1.10 or less."
    )
    assert f"is {left / 1000:.2f}" in found["because"] and found["test"]["margin"] == 0.1


@pytest.mark.parametrize(
    ("left", "verdict"),
    [(900, "reproduced"), (1100, "reproduced"), (899, "not reproduced"), (1101, "not reproduced")],
)
def test_equal_allows_the_margin_either_way(tmp_path: Path, left: int, verdict: str) -> None:
    measured = profiles(
        {"method": "lora-sp", "peak_memory": left}, {"method": "lora", "peak_memory": 1000}
    )
    found = one(resource(test="equal"), tmp_path, measured=measured)
    assert found["verdict"] == verdict and found["because"].endswith("needs 0.900 to 1.100.")


def test_exactly_on_the_bound_holds_though_it_is_no_binary_fraction(tmp_path: Path) -> None:
    path = Path(write_paper(tmp_path, resource()))
    path.write_text(path.read_text().replace("value: 0.1", "value: 0.9"))
    for memory, verdict in ((100, "reproduced"), (101, "not reproduced")):
        measured = profiles(
            {"method": "lora-sp", "peak_memory": memory}, {"method": "lora", "peak_memory": 1000}
        )
        assert verdicts(str(path), config(), measured=measured)["claim"]["verdict"] == verdict


@pytest.mark.parametrize(
    ("quartiles", "verdict"),
    [((0.97, 1.03), "inconclusive"), ((1.11, 1.2), "not reproduced"), ((0.9, 1.09), "reproduced")],
)
def test_a_time_near_the_bound_says_what_it_could_tell(
    tmp_path: Path, quartiles: tuple[float, float], verdict: str
) -> None:
    low, high = quartiles
    margin = 0.0 if verdict == "inconclusive" else 0.1
    measured = profiles(
        {"method": "lora-sp", "step": (low + high) / 2, "q1": low, "q3": high},
        {"method": "lora", "step": 1.0, "q1": 1.0, "q3": 1.0},
    )
    claim = resource("step", test="at_most", margin="tenth" if margin else "none")
    found = one(claim, tmp_path, measured=measured)
    assert found["verdict"] == verdict
    told = "These timings tell a ratio from 1.00 only if it is below 0.97 or above 1.03."
    assert found["because"].endswith(told) == (verdict == "inconclusive")


def test_a_reading_of_ours_is_told_with_every_verdict_that_rests_on_it(tmp_path: Path) -> None:
    ours = config()
    ours["methods"]["lora-sp"]["interpretation"] = "Half of it is ours."
    told = "LoRA-SP is an interpretation: Half of it is ours."
    found = one(relation(), tmp_path, results(), config=ours)
    assert found["because"].endswith(f"the margin is 1.0. {told}")
    swapped = one(relation(left="lora", right="lora-sp"), tmp_path, results(), config=ours)
    assert swapped["because"].endswith(told)
    assert told not in one(relation(left="lora"), tmp_path, results(), config=ours)["because"]
    assert told not in one(relation(), tmp_path, results())["because"]
    tuned = {key.replace("stated", "tuned"): values for key, values in results().items()}
    both = one(relation(), tmp_path, results() | tuned, config=ours)
    (other,) = both["others"]
    assert other["recipe"] == "tuned" and other["because"].endswith(told)
    assert told not in one(relation(tasks=["rte"]), tmp_path, config=ours)["because"]  # not run
    measured = profiles(
        {"method": "lora-sp", "peak_memory": 80}, {"method": "lora", "peak_memory": 100}
    )
    found = one(resource(), tmp_path, measured=measured, config=ours)
    assert found["because"].endswith(told)
    side = {"method": "lora-sp", "quantize": "nf4"}
    claim = {
        "id": "claim", "kind": "resource", "where": "text", "printed": "less",
        "check": {"name": "simulated", "left": side, "right": "lora"},
    }  # fmt: skip
    path = write_paper(tmp_path, claim)
    finding = {
        "paper": Path(path).stem,
        "id": "claim",
        "verdict": "reproduced",
        "found": "So be it",
    }
    assert verdicts(path, ours, audit=[finding])["claim"]["because"] == f"So be it. {told}"


def test_the_worst_model_decides_and_is_named(tmp_path: Path) -> None:
    sides = [
        {"model": model, "method": method, "peak_memory": memory}
        for model, left in (("roberta-base", 80), ("roberta-large", 95))
        for method, memory in (("lora-sp", left), ("lora", 100))
    ]
    claim = resource(models=["roberta-base", "roberta-large"])
    found = one(claim, tmp_path, measured=profiles(*sides))
    assert found["verdict"] == "not reproduced"
    assert "LoRA-SP on roberta-large, the worst of 2 models, is 0.95" in found["because"]
    found = one(claim, tmp_path, measured=profiles(*sides[:2]))
    assert found["verdict"] == "not run"  # at paper scale all of them
    assert one(resource(), tmp_path, measured=profiles(*sides))["verdict"] == "reproduced"


@pytest.mark.parametrize(
    ("left", "right", "reason"),
    [
        ({"status": "not run"}, {}, "lora-sp on roberta-base has not been profiled"),
        ({"batch": 4}, {}, "differ in batch"),
        ({}, {"peak_memory": 0}, "has no peak memory to compare with"),
        ({"method": "ft"}, {}, "no profile of lora-sp is planned"),
        ({"model": "roberta-large"}, {}, "no profile of lora-sp on roberta-base is planned"),
    ],
)
def test_profiles_that_cannot_be_compared(
    tmp_path: Path, left: dict[str, Any], right: dict[str, Any], reason: str
) -> None:
    measured = profiles(
        {"method": "lora-sp", "peak_memory": 1} | left, {"method": "lora", "peak_memory": 1} | right
    )
    found = one(resource(), tmp_path, measured=measured)
    assert found["verdict"] == "not run" and reason.lower() in found["because"].lower()
