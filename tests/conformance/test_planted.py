"""Each check finds the defect that it is there for: methods with one defect, and none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lorasp.adapters import delta
from lorasp.adapters.delta import DeltaLayer
from lorasp.config import resolve_method
from lorasp.conformance import CHECKS, check, learning, start
from lorasp.conformance.subject import Failed, NotApplicable, Subject
from lorasp.methods import table

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def resolved(name: str, **keys: Any) -> dict[str, Any]:
    entry = {"code": f"tests/conformance/broken_methods.py:{name}", **keys}
    return resolve_method({"methods": table({name: entry})}, name)


def outcomes(name: str, architecture: str = "causal", **keys: Any) -> dict[str, str]:
    return {one["check"]: one["outcome"] for one in check(resolved(name, **keys), architecture)}


def failed(name: str, architecture: str = "causal", **keys: Any) -> set[str]:
    found = outcomes(name, architecture, **keys)
    assert set(found) == set(CHECKS)
    return {one for one, outcome in found.items() if outcome == "failed"}


@pytest.mark.parametrize("architecture", ["encoder", "seq2seq", "causal"])
def test_a_sound_method_passes_every_check(architecture: str) -> None:
    assert set(outcomes("Sound", architecture).values()) == {"passed"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TrainsNothing", {"builds"}),
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
        ("CountsItsCalls", {"recomputes", "resumes"}),
    ],
)
def test_a_defect_is_found_by_its_check(name: str, expected: set[str]) -> None:
    assert failed(name) == expected


def test_a_base_that_moves_is_found() -> None:
    found = failed("MovesTheBase")
    assert "leaves the base" in found and "is compact" not in found


def test_what_the_entry_says_excuses_a_check_and_no_more() -> None:
    said = outcomes("StartsElsewhere", starts_at_base=False)
    assert said["starts at base"] == "not applicable" and "failed" not in said.values()
    assert failed("IgnoresTheSeed", seeded=False) == set()
    assert failed("Sound", seeded=False) == {"is seeded"}
    assert outcomes("Sound", merges=False)["merges"] == "not applicable"
    limits = {"is compact": "it saves what it drew", "merges": "never met"}
    said = outcomes("SavesTheFrozen", limits=limits)
    assert said["is compact"] == "not applicable" and said["merges"] == "passed"


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


def test_each_failure_says_what_was_expected_found_and_to_be_done() -> None:
    for name in ("StartsElsewhere", "IgnoresTheSeed", "GoesUphill", "SavesTheFrozen"):
        (sentence,) = (
            one["because"] for one in check(resolved(name), "causal") if one["outcome"] == "failed"
        )
        assert sentence.startswith("expected ") and ", found " in sentence and "; " in sentence


def test_a_model_without_anything_trained_is_nothing_to_look_at() -> None:
    subject = Subject(resolve_method({"methods": table()}, "base"), "causal")
    with pytest.raises(NotApplicable, match="nothing is trained"):
        learning.trains_all(subject)
    assert not issubclass(NotApplicable, Failed) and isinstance(subject.fresh, nn.Module)
