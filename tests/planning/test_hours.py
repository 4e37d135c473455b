"""Steps, FLOPs and seconds against sums done by hand."""

import pytest

from lorasp.planning import hours
from lorasp.planning.memory import Fit, Step
from lorasp.planning.workload import Rows

DEVICE = {
    "name": "one",
    "memory_bytes": 1,
    "tflops": {"bf16": 100},
    "bandwidth": 10**12,
    "source": "",
}
RECIPE = {"batch_size": 64, "epochs": 3, "select": "last"}
# four sequences: 4 TFLOP a step, 1 of them forward; 2 GB of weights, 1 million trained
STEP = Step(4, 0, 0, 0, 0, 2e9, 0, 4e12, 1e12, 1e6, 1e9)


def pace(utilisation: float = 0.5) -> hours.Pace:
    return hours.pace(DEVICE, "bf16", utilisation, layers=10)


def test_steps_are_the_trainers() -> None:
    assert hours.steps_of(2490, RECIPE) == 39 * 3  # RTE: 38.9 batches an epoch
    assert hours.steps_of(2490, RECIPE | {"max_steps": 7}) == 7
    assert hours.steps_of(100, RECIPE | {"epochs": 0.5}) == 1


def test_a_run_bound_by_flops() -> None:
    """1,000 rows, 3 epochs, 1 TFLOP each, half as long: 1,500 TFLOP at 50 TFLOP/s take 30 s."""
    fit = Fit(1, 4, 0, True, STEP)
    cost = hours.training(Rows(1000, 0, 0, []), RECIPE, fit, 0.5, pace(), 8)
    assert cost.flops == pytest.approx(1500e12)
    # 30 s to start, 2 s to read the weights, 4 MB to save
    assert cost.seconds == pytest.approx(30 + 30 + 2 + 0.004)


def test_a_run_bound_by_launches() -> None:
    """48 steps of 16 micro-batches, 4 ms and 10 layers of 1.4 ms each: 13.8 s."""
    fit = Fit(1, 4, 0, True, STEP)
    cost = hours.training(Rows(1000, 0, 0, []), RECIPE, fit, 1e-6, pace(), 8)
    assert cost.seconds == pytest.approx(48 * 16 * 0.018 + 30 + 2 + 0.004, rel=1e-3)


def test_the_best_epoch_costs_a_look_at_each() -> None:
    """80 rows, 3 epochs, 0.25 TFLOP each: 60 TFLOP; and three more saves of 4 MB."""
    fit = Fit(1, 4, 0, True, STEP)
    rows = Rows(1000, 80, 0, [])
    last = hours.training(rows, RECIPE, fit, 1.0, pace(), 8)
    best = hours.training(rows, RECIPE | {"select": "best"}, fit, 1.0, pace(), 8)
    assert best.flops - last.flops == pytest.approx(60e12)
    assert best.seconds - last.seconds == pytest.approx(60 / 50 + 3 * 0.004)


def test_more_gpus_share_the_work() -> None:
    rows = Rows(1000, 0, 0, [])
    one, four = (
        hours.training(rows, RECIPE, Fit(gpus, 4, 0, True, STEP), 1.0, pace(), 8) for gpus in (1, 4)
    )
    assert one.flops == four.flops
    assert four.seconds - 32.004 == pytest.approx((one.seconds - 32.004) / 4)


def test_beam_search_reads_the_weights_for_each_token() -> None:
    """100 rows in 2 batches, 2 x 30 tokens each, 2 GB at 1 TB/s: 120 tokens of 6 ms by launches."""
    cost = hours.beam_search(100, 30, STEP, 1e-6, pace(), 50, beams=4)
    assert cost.seconds == pytest.approx(120 * 0.018 / 3)
    heavy = STEP._replace(weights=20e9)
    assert hours.beam_search(100, 30, heavy, 1e-6, pace(), 50, 4).seconds == pytest.approx(
        120 * 0.02
    )


def test_the_meter_of_energy_runs_as_long_as_a_profile_does() -> None:
    from lorasp.profiling.device import SECONDS

    assert hours.METERED == SECONDS


def test_a_scheduler_is_asked_for_more() -> None:
    assert hours.minutes(3600) == 130
    assert hours.shortened(32, 128) == pytest.approx(0.275)
    assert hours.shortened(128, 128) == 1.0
