"""A profile of real steps on a tiny generated model: sizes against the model's own arithmetic."""

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lorasp.config import Config, load_config
from lorasp.data.prepare import prepare_model
from lorasp.errors import UsageError, WorkError
from lorasp.profiling.measure import profile_cell, resolve_profile, spread
from lorasp.results import read_json

ROOT = Path(__file__).parents[2]
FLOAT = 4
HIDDEN, LAYERS, RANK = 32, 2, 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """The smoke configuration, its models prepared, in a folder of its own."""
    config = load_config(ROOT / "config" / "smoke.yaml")
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(tmp_path_factory.mktemp("project"))
    for model in config["models"]:
        prepare_model(config, model)
    yield config
    os.chdir(before)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("model", "method"),
    [
        ("roberta-tiny", "ft"),
        ("roberta-tiny", "lora"),
        ("roberta-tiny", "lora-sp"),
        ("t5-tiny", "lora-sp"),
        ("llama-tiny", "lora"),
    ],
)
def test_a_profile_adds_up(config: Config, model: str, method: str) -> None:
    profile = read_json(profile_cell(config, model, method), "profile")
    seconds, states = profile["seconds"], profile["states"]
    for phase in seconds.values():
        assert 0 < phase["min"] <= phase["q1"] <= phase["median"] <= phase["q3"] <= phase["max"]
    tokens = profile["batch"] * profile["length"]
    assert profile["tokens_per_second"] == pytest.approx(tokens / seconds["step"]["median"])
    trained = states["adapter"]["parameters"] + states["other"]["parameters"]
    assert trained == FLOAT * profile["parameters"]["trainable"]
    everything = states["base"] + sum(states["adapter"].values()) + sum(states["other"].values())
    assert profile["peak_memory_bytes"] >= everything  # all are live while the optimizer works
    assert profile["adapter_bytes"] >= trained
    assert profile["peak_memory_counter"] == "live tensor storages"


def test_adapter_states_of_lora_are_the_closed_form_and_lora_sp_has_half(config: Config) -> None:
    lora, half = (
        read_json(profile_cell(config, "roberta-tiny", method), "profile")["states"]["adapter"]
        for method in ("lora", "lora-sp")
    )
    weights = LAYERS * 2 * RANK * (HIDDEN + HIDDEN)  # query and value, A and B
    steps = LAYERS * 2 * 2  # AdamW's step counter, a float for each matrix
    assert lora == {
        "parameters": FLOAT * weights,
        "gradients": FLOAT * weights,
        "moments": FLOAT * (2 * weights + steps),
        "buffers": 0,
    }
    assert half["parameters"] == half["gradients"] == lora["parameters"] // 2
    assert half["moments"] == FLOAT * (weights + steps)
    assert half["buffers"] == weights // 8  # the mask, one bit an entry


def test_the_memory_of_a_step_repeats_exactly(config: Config) -> None:
    first, second = (
        read_json(profile_cell(config, "roberta-tiny", "lora"), "profile")["peak_memory_bytes"]
        for _ in range(2)
    )
    assert first == second


def test_recomputation_takes_less_memory_and_leaves_the_states(config: Config) -> None:
    long = copy.deepcopy(config)
    long["profile"]["cells"][0] |= {"batch": 32, "length": 48}
    plain = read_json(profile_cell(long, "roberta-tiny", "lora"), "profile")
    long["methods"]["lora"]["settings"]["recompute"] = "full"
    full = read_json(profile_cell(long, "roberta-tiny", "lora"), "profile")
    assert full["peak_memory_bytes"] < plain["peak_memory_bytes"]
    assert full["states"] == plain["states"]
    long["methods"]["lora"]["settings"]["recompute"] = "some"
    with pytest.raises(UsageError, match="recompute is 'some'; allowed are none, full, selective"):
        profile_cell(long, "roberta-tiny", "lora")


def test_what_is_not_planned_is_refused(config: Config) -> None:
    with pytest.raises(UsageError, match="plans no roberta-tiny base; planned are roberta-tiny ft"):
        resolve_profile(config, "roberta-tiny", "base")
    planned = copy.deepcopy(config)
    planned["profile"]["cells"][0]["methods"].append("base")
    with pytest.raises(UsageError, match="trains nothing"):
        resolve_profile(planned, "roberta-tiny", "base")


def test_a_model_that_is_not_prepared_is_named(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkError, match=r"lorasp prepare .* --model roberta-tiny"):
        profile_cell(config, "roberta-tiny", "lora")
    assert not list(tmp_path.iterdir())


def test_spread_is_the_five_number_summary() -> None:
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {
        "min": 1.0,
        "q1": 2.0,
        "median": 3.0,
        "q3": 4.0,
        "max": 5.0,
    }
