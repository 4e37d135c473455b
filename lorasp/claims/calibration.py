"""Check the verdicts on simulated seeds: how often they are wrong, and how often they decide.

    python -m lorasp.claims.calibration --trials 20000

The draws go through the functions that judge a paper: p_values, adjust (Holm) and decide.
"""

import argparse
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from lorasp.claims import statistics

MARGIN = 1.0
SEEDS = (2, 3, 5, 10)
TESTS = ("equivalent", "noninferior", "superior")
STEP = 0.25  # of a score on a grid, in points: one of 400 examples
FAMILY = 10
Draw = Callable[[np.random.Generator, float, int, int], np.ndarray]


class Condition(NamedTuple):
    """How seeds spread. draw: (generator, true mean, seeds, samples) → (seeds, samples) in points.

    family: how many claims are corrected together. keeps: the error rates are meant to hold.
    """

    name: str
    draw: Draw
    family: int = 1
    keeps: bool = True


class Rates(NamedTuple):
    """Shares of trials. Of a family: with any false verdict; power is the share of its claims.

    reproduced: falsely, the truth on the margin. beyond: falsely, the truth a tenth of the margin
    beyond it. not_reproduced: falsely, the truth on the margin, which still satisfies the claim.
    power: rightly reproduced, the truth one margin inside.
    """

    reproduced: float
    beyond: float
    not_reproduced: float
    power: float


def _normal(sd: float) -> Draw:
    return lambda rng, mean, seeds, samples: rng.normal(mean, sd, (seeds, samples))


def _heavy(rng: np.random.Generator, mean: float, seeds: int, samples: int) -> np.ndarray:
    """Student's t with 3 degrees of freedom, scaled to a standard deviation of 1."""
    return mean + rng.standard_t(3, (seeds, samples)) / np.sqrt(3)


def _on_grid(sd: float) -> Draw:
    """A difference of two scores that count examples, rounded at random so that the mean stays."""

    def draw(rng: np.random.Generator, mean: float, seeds: int, samples: int) -> np.ndarray:
        sides = rng.normal([[[mean]], [[0.0]]], sd / np.sqrt(2), (2, seeds, samples))
        left, right = STEP * np.floor(sides / STEP + rng.random(sides.shape))
        return np.asarray(left - right)

    return draw


def _ties(rng: np.random.Generator, mean: float, seeds: int, samples: int) -> np.ndarray:
    """A spread of less than half a step, rounded: most seeds agree."""
    return mean + STEP * np.round(rng.normal(0, 0.1, (seeds, samples)) / STEP)


def _constant(rng: np.random.Generator, mean: float, seeds: int, samples: int) -> np.ndarray:
    return np.full((seeds, samples), mean)


def _missing(rng: np.random.Generator, mean: float, seeds: int, samples: int) -> np.ndarray:
    return rng.normal(mean, 1, (seeds - 1, samples))


def _collapse(rng: np.random.Generator, mean: float, seeds: int, samples: int) -> np.ndarray:
    """One run in ten loses ten points; the true mean includes it."""
    lost = 10 * (rng.random((seeds, samples)) < 0.1)
    return rng.normal(mean + 1, 0.5, (seeds, samples)) - lost


CONDITIONS = (
    *(Condition(f"normal, sd {sd}", _normal(sd)) for sd in (0.1, 0.3, 1, 3)),
    Condition("heavy tails (t, 3 df), sd 1", _heavy),
    Condition("on a grid of 0.25, sd 0.3", _on_grid(0.3)),
    Condition("on a grid of 0.25, sd 0.1: ties", _ties),
    Condition("no spread at all", _constant),
    Condition("one seed missing, sd 1", _missing),
    Condition(f"a family of {FAMILY}, sd 0.3", _normal(0.3), FAMILY),
    Condition("one run in ten collapses", _collapse, keeps=False),
)


def rates(test: str, condition: Condition, seeds: int, trials: int) -> Rates:
    """The rates of one test on `trials` simulated claims, or families; the same at every call."""
    rng = np.random.default_rng(list(f"{test}, {condition.name}, {seeds}".encode()))
    # the truths: on the margin, beyond it and inside; 'superior' has its margin at 0
    edge, out = {"equivalent": (1, 1), "noninferior": (-1, -1), "superior": (0, -1)}[test]
    truths = np.array([edge, edge + 0.1 * out, edge - out]) * MARGIN
    margin, n = 0.0 if test == "superior" else MARGIN, condition.family
    on, beyond, inside = (
        verdicts(test, condition.draw(rng, truth, seeds, trials * n), margin, n) for truth in truths
    )
    families = (trials, n)
    return Rates(
        reproduced=float((on == "reproduced").reshape(families).any(axis=1).mean()),
        beyond=float((beyond == "reproduced").reshape(families).any(axis=1).mean()),
        not_reproduced=float((on == "not reproduced").reshape(families).any(axis=1).mean()),
        power=float((inside == "reproduced").mean()),
    )


def verdicts(test: str, values: np.ndarray, margin: float, family: int = 1) -> np.ndarray:
    """The verdicts (samples,) on (seeds, samples), corrected in runs of `family` samples."""
    both = (np.atleast_1d(p) for p in statistics.p_values(test, values, margin))
    tests = [
        {"p": None if np.isnan(p) else p, "p_against": None if np.isnan(p) else against}
        for p, against in zip(*both, strict=True)
    ]
    with _frozen_garbage():
        for start in range(0, len(tests), family):
            statistics.adjust(tests[start : start + family])
    return np.array([statistics.decide(one) for one in tests])


@contextmanager
def _frozen_garbage() -> Iterator[None]:
    """statsmodels collects all garbage at every correction: leave it less to look at."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def standard_error(rate: float, trials: int) -> float:
    """Monte Carlo standard error of a simulated rate."""
    return float(np.sqrt(rate * (1 - rate) / trials))


def table_row(test: str, condition: Condition, trials: int) -> str:
    """A row of the table in docs/verdicts.md, in per cent: both errors and the power."""
    cells = []
    for seeds in SEEDS:
        found = rates(test, condition, seeds, trials)
        shown = (found.reproduced, found.not_reproduced, found.power)
        cells.append(" / ".join(f"{100 * rate:.1f}" for rate in shown))
    return f"| {test} | {condition.name} | {' | '.join(cells)} |"


def table(trials: int, tests: tuple[str, ...] = TESTS[:2]) -> str:
    """All rows as a Markdown table."""
    head = ["test", "the seeds", *(f"n = {seeds}" for seeds in SEEDS)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [table_row(test, condition, trials) for test in tests for condition in CONDITIONS]
    return "\n".join(lines)


def as_records(trials: int) -> list[dict[str, Any]]:
    """Every rate with its Monte Carlo standard error, one record a test, condition and n."""
    records = []
    for test in TESTS:
        for condition in CONDITIONS:
            for seeds in SEEDS:
                found = rates(test, condition, seeds, trials)._asdict()
                errors = {f"{k}_se": standard_error(v, trials) for k, v in found.items()}
                names = {"test": test, "condition": condition.name, "seeds": seeds}
                records.append(
                    names | {"trials": trials, "keeps": condition.keeps} | found | errors
                )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lorasp.claims.calibration")
    parser.add_argument("--trials", type=int, default=20_000, help="simulated claims per rate")
    parser.add_argument("--json", action="store_true", help="print all rates as JSON")
    options = parser.parse_args()
    print(
        json.dumps(as_records(options.trials), indent=1) if options.json else table(options.trials)
    )


if __name__ == "__main__":
    main()
