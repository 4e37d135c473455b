"""The bench files under reports/bench: every bench has one, it holds, and it tells its commit."""

import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lorasp.bench import BENCHES
from lorasp.results import read_json, read_yaml

ROOT = Path(__file__).parents[2]


def committed(bench: str) -> dict[str, Any]:
    return read_json(ROOT / f"reports/bench/{bench}.json", "bench")


@pytest.mark.parametrize("bench", BENCHES)
def test_a_bench_has_its_file_and_its_contestants_did_the_same_work(bench: str) -> None:
    found = committed(bench)
    assert found["bench"] == bench
    assert found["cases"] and found["goals"]
    assert [check for check in found["checks"] if not check["met"]] == []
    assert found["checks"] or bench == "states"  # which counts bytes and times nothing


@pytest.mark.parametrize("bench", BENCHES)
def test_the_code_that_was_measured_is_in_the_history(bench: str) -> None:
    commit = committed(bench)["provenance"]["git"]["commit"]
    assert isinstance(commit, str) and len(commit) == 40 and int(commit, 16)
    if not (ROOT / ".git").exists():
        pytest.skip("an unpacked archive has no history to ask")
    asked = ["git", "merge-base", "--is-ancestor", commit, "HEAD"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or f"{commit} is in another history"


def test_every_goal_is_measured_in_one_file_against_the_bound_that_it_has_now() -> None:
    goals = read_yaml(ROOT / "lorasp/bench/goals.yaml")
    files = {bench: committed(bench)["goals"] for bench in BENCHES}
    assert Counter(goal["goal"] for told in files.values() for goal in told) == Counter([*goals])
    for bench, told in files.items():
        for goal in told:
            expected = goals[goal["goal"]]
            assert expected["bench"] == bench
            assert {key: goal.get(key) for key in expected} == expected
            met = expected.get("at_least", -1e9) <= goal["median"] <= expected.get("at_most", 1e9)
            assert goal["met"] is met
