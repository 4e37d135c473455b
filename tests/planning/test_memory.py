"""Micro-batches and GPUs, against trying every one of them."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasp.planning.devices import GIB
from lorasp.planning.memory import (
    Step,
    Steps,
    divisors,
    fit,
    held,
    largest_fitting,
    on_device,
    step_of,
)

GPU = {"name": "one", "memory_bytes": 24 * GIB, "tflops": {}, "bandwidth": 1e12, "source": ""}


def steps(states: float, slopes: list[tuple[float, float]], asked: list[int]) -> Steps:
    """Steps whose peak is the largest of affine functions of the batch, as real ones are."""

    def simulate(batch: int) -> Step:
        asked.append(batch)
        peak = max(states + more + slope * batch for more, slope in slopes)
        resting = states + max(more for more, _ in slopes)
        return Step(batch, peak, peak, states, resting, states / 4, 0, batch, batch, 1, 1)

    return Steps(simulate)


@given(
    st.floats(1, 50),
    st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 20)), min_size=1, max_size=4),
    st.integers(1, 96),
    st.floats(1, 200),
)
def test_the_search_finds_what_trying_all_finds(
    states: float, slopes: list[tuple[float, float]], batch: int, budget: float
) -> None:
    asked: list[int] = []
    found = steps(states, slopes, asked)
    peaks = {size: found.simulate(size).peak for size in divisors(batch)}
    asked.clear()
    best = max((size for size, peak in peaks.items() if peak <= budget), default=None)
    assert largest_fitting(found, divisors(batch), lambda step: step.peak <= budget) == best
    assert len(asked) == len(set(asked)) <= len(peaks)


def test_a_straight_line_needs_two_simulations() -> None:
    asked: list[int] = []
    found = steps(10.0, [(0.0, 1.0)], asked)
    assert largest_fitting(found, divisors(64), lambda step: step.peak <= 27) == 16
    assert asked == [64, 16]


@given(st.integers(1, 128), st.floats(0.1, 400), st.floats(0.01, 30))
def test_the_parts_make_the_batch_and_fit(batch: int, states: float, slope: float) -> None:
    found = fit(steps(states * GIB, [(0.0, slope * GIB)], []), batch, GPU, layers=32)
    if not found.fits:
        return
    assert batch % (found.micro * found.gpus) == 0
    assert math.log2(found.gpus).is_integer() and found.gpus <= 8
    assert on_device(found.tensors, GPU) <= GPU["memory_bytes"]


def test_sharing_takes_the_states_and_not_the_activations() -> None:
    """80 GiB of states and 2 GiB a sequence: 10 and 2 on each of 8 GPUs, two layers gathered."""
    found = fit(steps(80 * GIB, [(0.0, 2 * GIB)], []), 8, GPU, layers=20)
    assert (found.gpus, found.micro) == (8, 1)
    step = found.step
    assert held(step, 8, True, 20) / GIB == pytest.approx(80 / 8 + 2 + 2 * 20 / 20)
    assert not fit(steps(400 * GIB, [(0.0, 2 * GIB)], []), 8, GPU, layers=20).fits


def test_accumulation_keeps_the_gradients() -> None:
    """Forward: 10 weights, 4 moments, 6 activations; backward besides 1 of the 2 of gradients."""
    simulated: dict[str, Any] = {
        "peak_bytes": 21,
        "phases": {
            "forward": {"peak_bytes": 20, "kinds": {"activations": 6}},
            "backward": {
                "peak_bytes": 21,
                "kinds": {"gradients": 1, "activations": 6, "copies": 3},
            },
            "optimizer": {"peak_bytes": 16, "kinds": {"gradients": 2}},
        },
        "rest": {"weights": 10, "optimizer": 4},
        "kept": {"activations": 5},
        "flops": 30,
        "flops_by_phase": {"forward": 10, "backward": 20},
        "parameters": {"trainable": 1, "total": 5},
    }
    step = step_of(simulated, 2)
    assert (step.peak, step.accumulated) == (21, 22)
    assert (step.states, step.resting) == (16, 19)


def test_a_given_micro_batch_is_taken_or_refused() -> None:
    roomy = steps(GIB, [(0.0, 0.1 * GIB)], [])
    assert fit(roomy, 64, GPU, 12, micro=4).micro == 4
    tight = steps(GIB, [(0.0, 20 * GIB)], [])
    assert not fit(tight, 4, GPU, 12, micro=4).fits
