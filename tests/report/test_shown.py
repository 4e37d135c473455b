"""What may be called shown: error rates under the null, and the same numbers by another way."""

import gc
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from lorasp.report.scopes import Place, Sample, Samples, Scope
from lorasp.report.shown import above, learned, within

PLACE, TRIALS = Place("model", "task", "recipe"), 300
NAMES = [f"method-{number}" for number in range(6)]
SCOPE = Scope("model", "recipe", ("task",), ("base", *NAMES))
Places = dict[Place, Samples]


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """statsmodels collects all garbage at every correction, a tenth of a second here."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


def places(scores: dict[str, np.ndarray]) -> Places:
    """A place with a sample of each method's scores (seeds,)."""
    return {
        PLACE: {
            name: Sample(dict(enumerate(map(float, values))), diverged=0, undefined=0, absent=0)
            for name, values in scores.items()
        }
    }


def drawn(trials: int, means: list[float], base: float, seeds: int = 3) -> list[Places]:
    """Methods with these true means, and the untouched model, with the same spread of 1."""
    generator = np.random.default_rng(7)
    found = []
    for _ in range(trials):
        scores = dict(zip(NAMES, generator.normal(means, size=(seeds, len(means))).T, strict=False))
        found.append(places(scores | {"base": generator.normal(base, size=seeds)}))
    return found


def best_of(here: Places, names: list[str]) -> str:
    return max(names, key=lambda name: here[PLACE][name].values.mean())


def rate(errs: Callable[[Places], bool], cases: list[Places]) -> float:
    return float(np.mean([errs(case) for case in cases]))


def uncorrected(here: Places, names: list[str]) -> bool:
    """Whether a 90 % interval puts any method below the one with the highest mean."""
    samples = here[PLACE]
    top = best_of(here, names)
    others = [name for name in names if name != top]
    gaps = np.stack([samples[top].values - samples[name].values for name in others])
    return bool((stats.ttest_1samp(gaps, 0, axis=1, alternative="greater").pvalue < 0.05).any())


@pytest.mark.parametrize(("count", "naive"), [(2, 0.1), (6, 0.51)])
def test_of_equal_methods_any_is_called_below_in_no_more_than_a_twentieth(
    count: int, naive: float
) -> None:
    names = NAMES[:count]
    cases = drawn(TRIALS, [80.0] * count, 50.0)
    assert rate(lambda here: uncorrected(here, names), cases) == pytest.approx(naive, abs=0.08)
    assert rate(lambda here: bool(above(here, SCOPE, names)), cases) <= 0.075


def test_methods_on_the_margin_are_called_within_it_in_no_more_than_a_twentieth() -> None:
    """All but one are a margin of 10 below that one, which nothing here can hide."""
    cases = drawn(TRIALS, [80.0, *[70.0] * 5], 50.0, seeds=4)

    def errs(here: Places) -> bool:
        assert best_of(here, NAMES) == NAMES[0]
        return bool(within(here, SCOPE, NAMES[0], NAMES[1:], 10.0))

    assert rate(errs, cases) == pytest.approx(0.05, abs=0.03)


def test_methods_that_gain_the_margin_have_learned_in_no_more_than_a_twentieth() -> None:
    cases = drawn(TRIALS, [51.0] * 6, 50.0)
    # all share the base model's scores, so that the tests agree more than Holm has to assume
    assert rate(lambda here: bool(learned(here, SCOPE, NAMES, "base", 1.0)), cases) <= 0.075


def test_what_is_clear_is_shown_and_in_the_right_direction() -> None:
    step = np.array([0.0, 0.1, 0.25, -0.1, 0.05])
    here = places(
        {"base": 50 + step, "a": 80 + step[::-1], "b": 85 + 2 * step, "c": 50.2 + step**2}
    )
    names = ["a", "b", "c"]
    assert above(here, SCOPE, names) == {("b", "a"), ("b", "c"), ("a", "c")}
    assert learned(here, SCOPE, names, "base", 1.0) == {"a", "b"}
    assert learned(here, SCOPE, names, None, 1.0) == set()
    assert within(here, SCOPE, "b", ["a", "c"], 6.0) == {"a"}
    assert above(here, SCOPE, ["a"]) == set() and within(here, SCOPE, "a", [], 1.0) == set()


def test_the_least_of_holms_p_values_decides_as_by_hand() -> None:
    """Three pairs: a p-value of one that is above a third of 0.05 shows nothing."""
    scores = {"a": [80.0, 81.0, 82.0], "b": [78.2, 78.6, 81.2], "c": [80.5, 80.0, 82.6]}
    here = places({name: np.array(values) for name, values in scores.items()})
    gaps = np.array(scores["a"]) - np.array(scores["b"])
    p = stats.ttest_1samp(gaps, 0).pvalue
    assert 0.05 / 3 < p < 0.1 and above(here, SCOPE, ["a", "b", "c"]) == set()


def test_a_base_model_that_is_run_once_counts_for_every_seed() -> None:
    here = places({"base": np.array([50.0]), "a": np.array([80.0, 80.4, 79.9])})
    assert learned(here, SCOPE, ["a"], "base", 1.0) == {"a"}
    gone = {PLACE: here[PLACE] | {"base": Sample({}, diverged=0, undefined=0, absent=1)}}
    assert learned(gone, SCOPE, ["a"], "base", 1.0) == set()
    two = {PLACE: here[PLACE] | {"base": Sample({0: 50.0}, diverged=0, undefined=0, absent=1)}}
    assert learned(two, SCOPE, ["a"], "base", 1.0) == set()  # planned twice: one pair of seeds
