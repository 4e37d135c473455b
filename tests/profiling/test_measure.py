"""A profile of real steps on a tiny generated model: sizes against the model's own arithmetic."""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lorasp.config import Config, data_folder, load_config
from lorasp.data.prepare import prepare_model
from lorasp.errors import UsageError, WorkError
from lorasp.models import load_model
from lorasp.profiling import measure
from lorasp.profiling.measure import allocated, profile_cell, random_batch, resolve_profile, spread
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


def test_a_method_that_cannot_be_simulated_is_measured(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = copy.deepcopy(config)
    for cell in planned["profile"]["cells"]:
        cell["methods"].append("shira")
    profile = read_json(profile_cell(planned, "llama-tiny", "shira"), "profile")
    simulated = profile["simulated"]
    assert (simulated["peak_bytes"], simulated["difference"]) == (None, None)
    assert simulated["because"].startswith("method shira looks at the values of weights")
    assert profile["peak_memory_bytes"] > 0 and "not simulated" in capsys.readouterr().err


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
    assert profile["peak_reserved_bytes"] is None
    phases = profile["phases"]
    assert max(phase["peak_bytes"] for phase in phases.values()) == profile["peak_memory_bytes"]
    for phase in phases.values():
        assert sum(phase["kinds"].values()) == phase["peak_bytes"]
    assert phases["optimizer"]["kinds"]["gradients"] == trained_states(states, "gradients")
    assert phases["optimizer"]["kinds"]["optimizer"] == trained_states(states, "moments")
    simulated = profile["simulated"]
    assert simulated["peak_bytes"] == pytest.approx(profile["peak_memory_bytes"], rel=0.02)
    assert simulated["difference"] == simulated["peak_bytes"] / profile["peak_memory_bytes"] - 1


def trained_states(states: dict[str, dict[str, int]], kind: str) -> int:
    """Bytes of one kind of state, of the adapter and of what else is trained."""
    return states["adapter"][kind] + states["other"][kind]


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


def test_the_line_sets_simulated_beside_measured_and_names_a_busy_machine(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (98.7, 0.0, 0.0))
    real = measure.simulation
    monkeypatch.setattr(
        measure,
        "simulation",
        lambda *args: {"peak_bytes": real(*args)["peak_bytes"] * 3 // 2},
    )
    profile = read_json(profile_cell(config, "roberta-tiny", "lora"), "profile")
    assert profile["load"] == 98.7 and profile["simulated"]["difference"] == pytest.approx(0.5)
    told = capsys.readouterr().err
    assert "the load average is 98.7 on" in told
    assert f"peak {profile['peak_memory_bytes'] / 2**20:.1f} MiB (live tensor storages)" in told
    assert "(+50.00%)" in told


@pytest.mark.parametrize("look", [0, 1])
def test_a_device_that_is_or_became_busy_leaves_no_profile(
    config: Config, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    measure.profile_path(config, "roberta-tiny", "lora-half").unlink(missing_ok=True)

    def busy(device: torch.device, own: int = 0) -> None:
        if own == look:
            raise WorkError("busy")

    monkeypatch.setattr(measure, "refuse_busy", busy)
    with pytest.raises(WorkError, match="busy"):
        profile_cell(config, "roberta-tiny", "lora-half")
    assert not measure.profile_path(config, "roberta-tiny", "lora-half").exists()


def test_on_cuda_each_phase_has_a_peak_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocator that is replaced: its peaks fall back to what is live when they are reset."""
    live, peak = 0, 0

    def take(count: int) -> None:
        nonlocal live, peak
        live += count
        peak = max(peak, live)

    def reset(device: torch.device) -> None:
        nonlocal peak
        peak = live

    def step(after: Callable[[str], None]) -> None:
        for phase, changes in PHASES.items():
            for change in changes:
                take(change)
            after(phase)

    PHASES = {"forward": [100, 50, -20], "backward": [60, -160], "optimizer": [40, -40]}
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2 * peak)
    take(1000)
    take(5000)
    take(-5000)  # what loading took
    memory = allocated(step, torch.device("cuda"))
    assert memory == {
        "peak_memory_bytes": 1190,
        "peak_memory_counter": "torch.cuda.max_memory_allocated",
        "peak_reserved_bytes": 2380,
        "phases": {
            "forward": {"peak_bytes": 1150},
            "backward": {"peak_bytes": 1190},
            "optimizer": {"peak_bytes": 1070},
        },
    }


@pytest.mark.parametrize("model", ["roberta-tiny", "t5-tiny", "llama-tiny"])
def test_the_batch_is_the_same_in_every_run_and_has_no_padding(config: Config, model: str) -> None:
    resolved = resolve_profile(config, model, "lora")
    network = load_model(resolved, data_folder(config, "models", model))
    batch, again = (random_batch(network, resolved, torch.device("cpu")) for _ in range(2))
    assert set(batch) == {"input_ids", "labels"}
    assert all(batch[name].equal(again[name]) for name in batch)
    shape = (resolved["profile"]["batch"], resolved["profile"]["length"])
    assert batch["input_ids"].shape == shape
    assert batch["labels"].shape == (shape[:1] if model == "roberta-tiny" else shape)
    assert not (batch["input_ids"] == network.config.pad_token_id).any()
    assert batch["input_ids"].unique().numel() > network.config.vocab_size // 4


def test_spread_is_the_five_number_summary() -> None:
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {
        "min": 1.0,
        "q1": 2.0,
        "median": 3.0,
        "q3": 4.0,
        "max": 5.0,
        "relative_iqr": 2 / 3,
    }
