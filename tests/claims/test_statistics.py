"""The tests behind a verdict, against closed forms, enumeration and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from statsmodels.stats.power import TTestPower

from lorasp.claims import statistics as tests

SAMPLES = arrays(float, st.integers(2, 6), elements=st.floats(-5, 5).map(lambda x: round(x, 3)))


def upper_tail(t: float, seeds: int) -> float:
    """P(T > t) of Student's t in closed form, for 1 and 2 degrees of freedom."""
    if seeds == 2:
        return 0.5 - math.atan(t) / math.pi
    assert seeds == 3
    return 0.5 - t / (2 * math.sqrt(2 + t * t))


@pytest.mark.parametrize("values", [[0.2, 0.5], [-0.7, 0.4, 0.9], [2.0, 2.5, 3.5], [-1.2, -1.0]])
def test_p_values_are_those_of_the_closed_form(values: list[float]) -> None:
    n = len(values)
    mean = sum(values) / n
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    above, below = (mean + 1) / error, (1 - mean) / error
    test = tests.equivalent(np.array(values), 1.0)
    assert test["p"] == pytest.approx(max(upper_tail(above, n), upper_tail(below, n)))
    outside = min(upper_tail(-above, n), upper_tail(-below, n))
    assert test["p_against"] == pytest.approx(min(1, 2 * outside))
    test = tests.noninferior(np.array(values), 1.0)
    assert test["p"] == pytest.approx(upper_tail(above, n))
    assert test["p_against"] == pytest.approx(1 - upper_tail(above, n))
    test = tests.superior(np.array(values))
    assert test["p"] == pytest.approx(upper_tail(mean / error, n))
    assert test["estimate"] == pytest.approx(mean) and test["n"] == n


def test_the_interval_is_mean_and_quantile_of_the_closed_form() -> None:
    low, high = tests.interval(np.array([1.0, 3.0])) or [0, 0]
    quantile = math.tan(math.pi * 0.45)  # of Cauchy's distribution at 0.95; the error is 1
    assert (low, high) == (pytest.approx(2 - quantile), pytest.approx(2 + quantile))


def test_holm_on_an_example_worked_by_hand() -> None:
    # sorted 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1 which may not be below the one before
    assert tests.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert tests.holm([0.02, None]) == pytest.approx([0.04, 1])  # an untested claim counts
    assert tests.holm([0.02]) == [0.02]


@pytest.mark.parametrize(
    "values",
    [[], [0.0], [0.5, 0.5, 0.5], [0.1 + 0.2, 0.3], [0.1, math.nan, 0.2], [0.1, math.inf, 0.2]],
)
@pytest.mark.parametrize("name", ["equivalent", "noninferior", "superior"])
def test_what_cannot_be_tested_decides_nothing(values: list[float], name: str) -> None:
    test = getattr(tests, name)(np.array(values), 1.0)
    assert test["p"] is test["p_against"] is test["interval"] is test["bootstrap"] is None
    tests.adjust([test])
    assert tests.decide(test) == "inconclusive"
    assert tests.seeds_needed(test, np.array(values), 0.05) is None


def test_ties_are_given_the_variance_of_rounding() -> None:
    # (0, 0, 1): variance 1/3, and two rounding errors of a step of 1 add 1/6
    error = math.sqrt((1 / 3 + 1 / 6) / 3)
    test = tests.noninferior(np.array([0.0, 0.0, 1.0]), 1.0)
    assert test["p"] == pytest.approx(upper_tail((1 / 3 + 1) / error, 3))
    without = tests.noninferior(np.array([0.0, 1e-6, 1.0]), 1.0)
    assert without["p"] < test["p"]


def test_the_bootstrap_draws_seeds_within_each_task() -> None:
    values = np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.3]])  # the seeds' own means hardly differ
    low, high = tests.bootstrap(values) or [0, 0]
    rng = np.random.default_rng(1)
    means = [
        np.mean([np.mean(rng.choice(task, 3)) for task in values.T]) for _ in range(tests.RESAMPLES)
    ]
    assert (low, high) == pytest.approx(np.quantile(means, [0.05, 0.95]), abs=0.07)
    assert high - low > 0.8
    assert tests.bootstrap(values) == [low, high]


@pytest.mark.parametrize(("mean", "sd", "alpha"), [(0.5, 1, 0.05), (-2.0, 1.5, 0.01)])
def test_seeds_needed_are_what_the_power_asks_for(mean: float, sd: float, alpha: float) -> None:
    values = mean + sd * np.array([-1.0, 0.0, 1.0])
    test = tests.noninferior(values, 1.0)
    needed = tests.seeds_needed(test, values, alpha)
    exact = TTestPower().solve_power(
        abs(mean + 1) / sd, alpha=alpha, power=0.8, alternative="larger"
    )
    assert needed == math.ceil(exact)


@pytest.mark.parametrize("mean", [0.0, 0.4, 1.6])
def test_so_many_seeds_settle_it_in_four_of_five_simulated_cases(mean: float) -> None:
    values = mean + np.array([-1.0, 0.0, 1.0])
    needed = tests.seeds_needed(tests.equivalent(values, 1.0), values, 0.05)
    assert needed is not None

    def power(seeds: int) -> float:
        drawn = np.random.default_rng(seeds).normal(mean, 1, (seeds, 20_000))
        p = tests.p_values("equivalent", drawn, 1.0)[0 if mean < 1 else 1]
        return float((p < 0.05).mean())

    assert power(needed) > 0.79 and power(needed - 2) < 0.81


def test_a_hopeless_question_needs_no_number_of_seeds() -> None:
    values = np.array([-9.0, 0.0, 10.999])
    assert tests.seeds_needed(tests.superior(values, 0.66), values, 0.05) is None


def test_the_level_for_the_seeds_is_that_of_holms_next_step() -> None:
    family = [{"p_adjusted": p} for p in (0.01, 0.2, None, 0.04)]
    assert tests.still_open(family, "p") == 2


def decided(name: str, values: np.ndarray, margin: float) -> str:
    test = getattr(tests, name)(values, margin)
    tests.adjust([test])
    return tests.decide(test)


@given(SAMPLES)
def test_neither_is_better_than_the_other_both_ways(values: np.ndarray) -> None:
    both = {decided("superior", values, 0.0), decided("superior", -values, 0.0)}
    assert both in ({"inconclusive"}, {"reproduced", "not reproduced"})


@given(SAMPLES, st.floats(0.1, 3), st.floats(0, 3), st.sampled_from(["equivalent", "noninferior"]))
def test_a_wider_margin_never_takes_a_reproduction_away(
    values: np.ndarray, margin: float, more: float, name: str
) -> None:
    order = ["not reproduced", "inconclusive", "reproduced"]
    before, after = decided(name, values, margin), decided(name, values, margin + more)
    assert order.index(after) >= order.index(before)


@given(SAMPLES, st.floats(0.1, 3))
def test_tost_passes_where_the_interval_is_within_the_margin(
    values: np.ndarray, margin: float
) -> None:
    test = tests.equivalent(values, margin)
    if test["p"] is not None and abs(test["p"] - tests.ALPHA) > 1e-9:
        low, high = test["interval"]
        assert (test["p"] < tests.ALPHA) == (-margin < low and high < margin)


@given(SAMPLES, st.floats(0.1, 3))
def test_equivalent_is_not_inferior_either_way(values: np.ndarray, margin: float) -> None:
    if decided("equivalent", values, margin) == "reproduced":
        assert decided("noninferior", values, margin) == "reproduced"
        assert decided("noninferior", -values, margin) == "reproduced"
