"""Each check finds the defect that it is there for: methods with one defect, and none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lorasp import conformance
from lorasp.adapters import delta
from lorasp.adapters.delta import DeltaLayer
from lorasp.config import resolve_method
from lorasp.conformance import CHECKS, check, keeping, learning, start
from lorasp.conformance.subject import Failed, NotApplicable, Subject
from lorasp.methods import table
from lorasp.results import first_error

ROOT = Path(__file__).parents[2]
ENTRY = {"family": "DELTA", "label": "Mine", "group": "own", "source": "", "trainable_rule": ""}


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def resolved(name: str, **keys: Any) -> dict[str, Any]:
    entry = {"code": f"tests/conformance/broken_methods.py:{name}", **keys}
    return resolve_method({"methods": table({name: entry})}, name)


def outcomes(name: str, architecture: str = "causal", **keys: Any) -> dict[str, str]:
    return {one["check"]: one["outcome"] for one in check(resolved(name, **keys), architecture)}


def failed(name: str, architecture: str = "causal", **keys: Any) -> set[str]:
    """The checks that failed, each of which says what was expected, what was found, what to do."""
    found = check(resolved(name, **keys), architecture)
    assert [one["check"] for one in found] == list(CHECKS)
    failures = [one for one in found if one["outcome"] == "failed"]
    for said in (one["because"] for one in failures):
        assert said.startswith(("raised ", "refused: ")) or (
            said.startswith("expected ") and ", found " in said and "; " in said
        ), said
    return {one["check"] for one in failures}


@pytest.mark.parametrize("architecture", ["encoder", "seq2seq", "causal"])
def test_a_sound_method_passes_every_check(architecture: str) -> None:
    assert set(outcomes("Sound", architecture, size="rank").values()) == {"passed"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TrainsNothing", {"builds"}),
        ("HasNoForward", {"builds"}),
        ("CountsItsCalls", {"runs"}),
        ("DrawsInForward", {"runs"}),
        ("MissesItsOwn", {"runs"}),
        ("GivesNothing", {"runs"}),
        ("GivesTwo", {"runs"}),
        ("GivesARow", {"runs"}),
        ("Swapped", {"runs"}),
        ("TakesAnything", {"refuses unknown"}),
        ("StartsElsewhere", {"starts at base"}),
        ("DrawsByChance", {"is seeded"}),
        ("IgnoresTheSeed", {"is seeded"}),
        ("DrawsFromTorch", {"saves and loads"}),
        ("GoesUphill", {"lowers the loss"}),
        ("SavesTheFrozen", {"is compact"}),
        # what these do cannot be hidden from other checks
        ("HasASpare", {"trains all", "counts"}),
        ("NeverLearns", {"trains all", "lowers the loss"}),
        ("IsNotSized", {"grows"}),
        ("Shrinks", {"grows"}),
        ("CannotBeSimulated", {"has costs"}),
    ],
)
def test_a_defect_is_found_by_its_check(name: str, expected: set[str]) -> None:
    assert failed(name) == expected


def test_a_base_that_moves_is_found() -> None:
    assert failed("MovesItOnce") >= {"leaves the base", "disables"}
    found = failed("MovesTheBase")
    assert "leaves the base" in found and "is compact" not in found


def test_what_the_entry_says_excuses_a_check_and_no_more() -> None:
    said = outcomes("StartsElsewhere", starts_at_base=False)
    assert said["starts at base"] == "not applicable" and "failed" not in said.values()
    assert "nothing is drawn" in start.is_seeded(
        Subject(resolved("IgnoresTheSeed", seeded=False), "causal")
    )
    with pytest.raises(Failed, match="seeded: false"):
        start.is_seeded(Subject(resolved("Sound", seeded=False), "causal"))
    with pytest.raises(NotApplicable, match="merges: false"):
        keeping.merges(Subject(resolved("Sound", merges=False), "causal"))


def test_what_limits_name_is_excused_with_the_failure_s_words() -> None:
    limits = {"is compact": "it saves what it drew", "merges": "never met"}
    found = {
        one["check"]: one for one in check(resolved("SavesTheFrozen", limits=limits), "causal")
    }
    assert found["merges"]["outcome"] == "passed" and found["is compact"]["outcome"] == "excused"
    assert found["is compact"]["because"].startswith("it saves what it drew: expected at most")


@pytest.mark.parametrize(
    ("limit", "outcome"),
    [
        ("it overflows", "failed"),
        ({"because": "it overflows", "raises": "another error"}, "failed"),
        ({"because": "it is not for use", "raises": "no evaluation here"}, "excused"),
    ],
)
def test_an_error_is_excused_only_where_it_is_the_declared_one(limit: Any, outcome: str) -> None:
    subject = Subject(resolved("FailsOnceTrained", limits={"merges": limit}), "causal")
    found, because = conformance._run(keeping.merges, subject, limit)
    assert found == outcome and "no evaluation here" in because


# Without these a method is none, and the schema lets no `limits` name them.
NEEDED = {"builds", "runs", "starts at base", "lowers the loss", "saves and loads"}


@pytest.mark.parametrize("name", [*sorted(NEEDED), "learns"])
def test_limits_name_no_check_that_is_needed_or_unknown(name: str) -> None:
    refused = first_error({"mine": {**ENTRY, "limits": {name: "why"}}}, "config", "methods")
    assert refused is not None and name in refused
    for known in set(CHECKS) - NEEDED:
        mine = {**ENTRY, "limits": {known: "why"}}
        assert first_error({"mine": mine}, "config", "methods") is None


def test_inputs_and_outputs_cannot_be_taken_for_each_other() -> None:
    for architecture in ("encoder", "seq2seq", "causal"):
        assert failed("Swapped", architecture) == {"runs"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MissesItsOwn", "broken_methods.py, line "),
        ("DrawsInForward", "found others, and the backward pass calls it again"),
        ("GivesNothing", "expected a tensor from forward, found None; return the adapted weight"),
        ("GivesTwo", "expected a tensor from forward, found a tuple; return the adapted weight"),
        ("GivesARow", "expected an adapted weight of the shape 64 x 64, as the base"),
    ],
)
def test_what_does_not_run_is_told_once(name: str, words: str) -> None:
    found = check(resolved(name), "causal")
    assert [one["outcome"] for one in found] == ["passed", "failed"] + ["not applicable"] * 17
    assert words in found[1]["because"]
    assert {one["because"] for one in found[2:]} == {"it does not run"}


def test_a_forward_pass_that_counts_fails_where_it_comes_to_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(CHECKS, "runs", start.builds)  # which finds it first
    assert failed("CountsItsCalls") == {"recomputes", "resumes"}


def test_nan_does_not_start_at_the_base() -> None:
    subject = Subject(resolved("IsNotANumber"), "causal")
    with pytest.raises(Failed, match="logits nan away"):
        start.starts_at_base(subject)


def test_a_size_scales_what_is_trained() -> None:
    for name, keys in (("Sound", {"size": "rank"}), ("sparta", {}), ("lokr", {})):
        entry = resolved(name, **keys) if keys else resolve_method({"methods": table()}, name)
        assert "trained parameters, " in start.grows(Subject(entry, "causal"))
    with pytest.raises(Failed, match="found rnk, which is None"):
        start.grows(Subject(resolved("Sound", size="rnk"), "causal"))


def test_a_method_that_looks_at_weights_has_no_simulated_costs() -> None:
    with pytest.raises(NotApplicable, match="looks at values of weights"):
        start.has_costs(Subject(resolved("LooksAtValues"), "causal"))


def test_a_quantised_merge_that_is_far_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = resolved("Sound", settings={"quantize": "nf4"})
    assert "the same to" in keeping.merges(Subject(entry, "causal"))
    plain = DeltaLayer.adapted

    def off(self: Any, name: str) -> Any:
        weight, bias = plain(self, name)
        return -weight, bias

    monkeypatch.setattr(DeltaLayer, "adapted", off)
    with pytest.raises(Failed, match="allowed 0"):
        keeping.merges(Subject(entry, "causal"))


def test_what_a_base_loses_by_design_is_declared() -> None:
    said = outcomes("MovesItOnce", keeps_base=False)
    assert said["disables"] == "not applicable" and said["leaves the base"] == "passed"


def test_an_architecture_that_does_not_apply_says_why() -> None:
    method = resolved("Sound", applies_to=["causal"], because="it needs a decoder")
    found = check(method, "encoder")
    assert {one["outcome"] for one in found} == {"not applicable"}
    assert {one["because"] for one in found} == {"it needs a decoder"}


def test_a_merge_that_is_off_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = DeltaLayer.adapted

    def off(self: Any, name: str) -> Any:
        weight, bias = plain(self, name)
        return weight * 1.01, bias

    monkeypatch.setattr(DeltaLayer, "adapted", off)
    assert failed("Sound") == {"merges"}


def test_an_adapter_that_cannot_be_disabled_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeltaLayer, "disable_adapters", False)
    assert failed("Sound") == {"disables"}


def test_nan_in_bfloat16_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = delta.adapted_linear

    def overflow(x: torch.Tensor, *others: Any) -> torch.Tensor:
        out = plain(x, *others)
        return out / 0 if torch.is_autocast_enabled("cpu") else out

    monkeypatch.setattr(delta, "adapted_linear", overflow)
    assert failed("Sound") == {"works in bf16"}


def test_nan_for_one_row_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = delta.adapted_linear

    def lonely(x: torch.Tensor, *others: Any) -> torch.Tensor:
        out = plain(x, *others)
        return out / 0 if len(x) == 1 else out

    monkeypatch.setattr(delta, "adapted_linear", lonely)
    assert failed("Sound") == {"takes any batch"}


def test_a_simulated_step_of_another_size_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = start.simulate

    def other(*arguments: Any) -> dict[str, Any]:
        return {**plain(*arguments), "parameters": {"trainable": 1, "total": 2}}

    monkeypatch.setattr(start, "simulate", other)
    assert failed("Sound") == {"has costs"}


def test_what_a_method_raises_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(subject: Subject) -> str:
        raise ZeroDivisionError("of its own making")

    monkeypatch.setitem(CHECKS, "merges", broken)
    monkeypatch.setitem(CHECKS, "disables", learning.trains_all)
    found = {one["check"]: one["because"] for one in check(resolved("Sound"), "causal")}
    assert "test_planted.py, line" in found["merges"]
    assert "ZeroDivisionError: of its own making" in found["merges"]


def test_a_model_without_anything_trained_is_nothing_to_look_at() -> None:
    subject = Subject(resolve_method({"methods": table()}, "base"), "causal")
    with pytest.raises(NotApplicable, match="nothing is trained"):
        learning.trains_all(subject)
    assert not issubclass(NotApplicable, Failed) and isinstance(subject.fresh, nn.Module)
