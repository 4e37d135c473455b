"""Every method of the table on RoBERTa's and LLaMA's shapes; T5's are in test_conformance_t5.py."""

import pytest

from lorasp.config import resolve_method
from lorasp.conformance import CHECKS, check
from lorasp.methods import table

TABLE = table()


def failures(name: str, architecture: str) -> list[str]:
    found = check(resolve_method({"methods": TABLE}, name), architecture)
    assert [one["check"] for one in found] == list(CHECKS)
    if architecture in TABLE[name].get("applies_to", [architecture]):
        assert found[0]["outcome"] == "passed", found[0]["because"]
    return [f"{one['check']}: {one['because']}" for one in found if one["outcome"] == "failed"]


@pytest.mark.parametrize("architecture", ["encoder", "causal"])
@pytest.mark.parametrize("name", TABLE)
def test_it_passes(name: str, architecture: str) -> None:
    assert failures(name, architecture) == []


def test_there_are_at_least_25_methods_for_each_architecture() -> None:
    for architecture in ("encoder", "seq2seq", "causal"):
        applied = [e for e in TABLE.values() if architecture in e.get("applies_to", [architecture])]
        assert len(applied) >= 25
