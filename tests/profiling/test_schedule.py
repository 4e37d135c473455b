"""The kinds of steps of a run: as often as methods do their work in one, and done as in `train`."""

import copy
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.tuners.adalora.layer import RankAllocator

from lorasp.adapters import DynamicLoraModel, LoraSpModel, hooks
from lorasp.adapters.registry import apply_method
from lorasp.config import Config, data_folder, load_config
from lorasp.data.prepare import prepare_model
from lorasp.models import load_model
from lorasp.profiling import measure, schedule
from lorasp.profiling.measure import profile_cell, random_batch, resolve_profile
from lorasp.profiling.simulate import simulate
from lorasp.profiling.step import counted_step, optimizer_of, ready, training_step
from lorasp.results import read_json
from lorasp.training.callbacks import Allocation, Selection

ROOT = Path(__file__).parents[2]
MODEL = "llama-tiny"
METHODS = ("dynamic-lora", "adalora", "lora-sp-step", "lora-sp-epoch")
# By hand, of a run of 1000 steps and three epochs. Dynamic LoRA allocates at 8 of them and measures
# in 4 each, the last of which allocates too; AdaLoRA starts after a tenth and ends at seven.
KINDS = {
    "dynamic-lora": {"plain": 1000 - 8 * 4, "measuring": 8 * 3, "allocating": 8},
    "adalora": {"measuring": 100, "allocating": 600, "masking": 300},
    "lora-sp-step": {"drawing": 1000},
    "lora-sp-epoch": {"drawing": 3, "plain": 997},
}
SHORT = 40


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """The smoke configuration with these methods planned, in a folder of its own."""
    config = load_config(ROOT / "config" / "smoke.yaml")
    for cell in config["profile"]["cells"]:
        cell["methods"] = ["lora", *METHODS]
    config["methods"]["adalora"]["settings"] |= {"tinit": 100, "tfinal": 300, "deltaT": 1}
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(tmp_path_factory.mktemp("project"))
    prepare_model(config, MODEL)
    yield config
    os.chdir(before)
    torch.set_num_threads(threads)


def parts(config: Config, method: str) -> tuple[Any, Any, Any, Any]:
    """A model, its optimizer, a batch, and what they were resolved from."""
    resolved = resolve_profile(config, MODEL, method)
    base = load_model(resolved, data_folder(config, "models", MODEL))
    network = ready(apply_method(base, resolved), resolved)
    optimizer = optimizer_of(network, resolved, fused=False)
    return network, optimizer, random_batch(network, resolved, torch.device("cpu")), resolved


@pytest.fixture
def short(config: Config, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A run of few steps, of which AdaLoRA leaves some alone."""
    monkeypatch.setattr(schedule, "STEPS", SHORT)
    few = copy.deepcopy(config)
    few["methods"]["adalora"]["settings"] |= {"tinit": 6, "tfinal": 9, "deltaT": 4}
    few["methods"]["dynamic-lora"]["settings"] |= {"allocations": 3, "measure_steps": 2}
    return few


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often methods do their work."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    for name in ("_measure", "_allocate"):
        count(DynamicLoraModel, name)
    for name in ("update_ipt", "mask_to_budget", "mask_using_rank_pattern"):
        count(RankAllocator, name)
    count(LoraSpModel, "resample_selection")
    return counts


@pytest.mark.parametrize("method", METHODS)
def test_a_profile_tells_the_kinds_and_their_mean(config: Config, method: str) -> None:
    profile = read_json(profile_cell(config, MODEL, method), "profile")
    run = profile["run"]
    assert run["steps"] == 1000
    assert {kind: one["steps"] for kind, one in run["kinds"].items()} == KINDS[method]
    for point in ("q1", "median", "max"):
        mean = sum(one["steps"] * one["seconds"][point] for one in run["kinds"].values()) / 1000
        assert profile["seconds"]["step"][point] == pytest.approx(mean)
    largest = max(one["peak_memory_bytes"] for one in run["kinds"].values())
    assert profile["peak_memory_bytes"] == largest
    assert abs(profile["simulated"]["difference"]) < 0.02
    tokens = profile["batch"] * profile["length"]
    median = profile["seconds"]["step"]["median"]
    assert profile["tokens_per_second"] == pytest.approx(tokens / median)


def test_a_method_without_such_steps_has_no_kinds(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = set()
    inner = measure.training_step

    def step(*args: Any, number: int | None = None, **kwargs: Any) -> None:
        numbers.add(number)
        inner(*args, number=number, **kwargs)

    monkeypatch.setattr(measure, "training_step", step)
    assert "run" not in read_json(profile_cell(config, MODEL, "lora"), "profile")
    assert numbers == {None}


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_run_does_each_as_often_as_counted(
    short: Config, calls: Counter[str], method: str
) -> None:
    network, optimizer, batch, resolved = parts(short, method)
    schedule.begin(network, optimizer)
    kinds = {kind: len(steps) for kind, steps in schedule.by_kind(network).items()}
    assert sum(kinds.values()) == SHORT
    for number in range(1, SHORT + 1):
        training_step(network, optimizer, batch, resolved, number=number)
        optimizer.zero_grad()
    done = {
        "dynamic-lora": {
            "_measure": kinds.get("measuring", 0) + kinds.get("allocating", 0),
            "_allocate": kinds.get("allocating"),
        },
        "adalora": {
            # in the last allocating step nothing is measured any more
            "update_ipt": kinds.get("measuring", 0) + kinds.get("allocating", 0) - 1,
            "mask_to_budget": kinds.get("allocating"),
            "mask_using_rank_pattern": kinds.get("masking"),
        },
    }
    assert calls == done.get(method, {"resample_selection": kinds.get("drawing")})


@pytest.mark.parametrize("method", METHODS)
def test_a_step_does_what_training_does(short: Config, method: str) -> None:
    """Against the callbacks of `train`: the same weights, bit by bit, after a whole run."""
    ends = []
    for callbacks in (False, True):
        network, optimizer, batch, resolved = parts(short, method)
        optimizer.param_groups[0].update(lr=1e-2, weight_decay=0.1)
        state = SimpleNamespace(global_step=0, epoch=0.0, max_steps=SHORT)
        used = [Selection(network), Allocation(network)] if callbacks else []
        for one in used:
            one.on_train_begin(None, state, None, optimizer=optimizer)
        if not used:
            schedule.begin(network, optimizer)
        for taken in range(SHORT):
            state.global_step, state.epoch = taken, taken * schedule.EPOCHS / SHORT
            if not used:
                training_step(network, optimizer, batch, resolved, number=taken + 1)
            else:
                used[0].on_step_begin(None, state, None)
                network(**batch).loss.backward()
                optimizer.step()
                used[1].on_optimizer_step(None, state, None)
            optimizer.zero_grad()
        ends.append(dict(network.named_parameters()))
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


@pytest.mark.parametrize("method", ["lora-sp-step", "lora-sp-epoch"])
def test_what_is_timed_is_drawn_and_held(
    config: Config, calls: Counter[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    held = []
    inner = schedule.protect_unselected

    def protect(optimizer: Any, network: Any) -> Any:
        held.append(inner(optimizer, network))
        return held[-1]

    monkeypatch.setattr(schedule, "protect_unselected", protect)
    timed: list[int] = []
    usual = measure.timed_steps

    def spy(*args: Any) -> Any:
        before = calls["resample_selection"]
        found = usual(*args)
        timed.append(calls["resample_selection"] - before)
        return found

    monkeypatch.setattr(measure, "timed_steps", spy)
    profile_cell(config, MODEL, method)
    repeats = config["profile"]["repeats"]
    assert sum(timed) == repeats  # of each epoch's plain steps none draws
    assert len(timed) == repeats * len(KINDS[method]) and [len(one) for one in held] == [2]


@pytest.mark.parametrize("method", ["dynamic-lora", "adalora"])
def test_what_is_timed_measures_and_allocates(
    config: Config, calls: Counter[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    timed: Counter[str] = Counter()
    usual = measure.timed_steps

    def spy(*args: Any) -> Any:
        before = calls.copy()
        found = usual(*args)
        timed.update(calls - before)
        return found

    monkeypatch.setattr(measure, "timed_steps", spy)
    profile_cell(config, MODEL, method)
    repeats = config["profile"]["repeats"]
    if method == "dynamic-lora":
        assert timed == {"_measure": 2 * repeats, "_allocate": repeats}
    else:
        assert timed == {
            "update_ipt": 2 * repeats,
            "mask_to_budget": repeats,
            "mask_using_rank_pattern": repeats,
        }


@pytest.mark.parametrize("method", METHODS)
def test_operations_of_every_kind_are_those_simulated(config: Config, method: str) -> None:
    network, optimizer, batch, resolved = parts(config, method)
    schedule.begin(network, optimizer)
    training_step(network, optimizer, batch, resolved, number=1)
    optimizer.zero_grad()
    simulated = simulate(resolved, data_folder(config, "models", MODEL))
    for kind, steps in schedule.by_kind(network).items():
        before = schedule.leading_to(network, steps[0])
        if before is not None:
            training_step(network, optimizer, batch, resolved, number=before)
            optimizer.zero_grad()
        if kind == "masking":  # by what was allocated last
            hooks.after_step(network, steps[0] - 1)
        counted = counted_step(network, optimizer, batch, resolved, steps[0])
        assert counted["flops"] == simulated["flops"], kind


def test_adaloras_importances_are_counted(config: Config) -> None:
    """Three running means to an entry of the adapter, which stay between steps."""
    resolved = resolve_profile(config, MODEL, "adalora")
    step = simulate(resolved, data_folder(config, "models", MODEL))
    network = parts(config, "adalora")[0]
    entries = sum(w.numel() for name, w in network.named_parameters() if ".lora_" in name)
    tensors = sum(".lora_" in name for name, _ in network.named_parameters())
    # two moments, a count of steps a tensor, three means
    assert step["rest"]["optimizer"] == 4 * (5 * entries + tensors)


def test_the_run_is_long_enough_for_adaloras_schedule(config: Config) -> None:
    longer = copy.deepcopy(config)
    longer["methods"]["adalora"]["settings"] |= {"tinit": 2000, "tfinal": 500, "total_step": 9000}
    profile = read_json(profile_cell(longer, MODEL, "adalora"), "profile")
    kinds = {kind: one["steps"] for kind, one in profile["run"]["kinds"].items()}
    assert kinds == {"measuring": 2000, "allocating": 2500, "masking": 500}
