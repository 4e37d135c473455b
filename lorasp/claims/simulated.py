"""A check of claims about memory and compute on simulated training steps, at the paper's scale.

The steps are files that `snakemake --cores all simulated` writes; this reads them and runs nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorasp.claims import Claim, Document
from lorasp.claims.limits import TESTS, bounds_of, digits
from lorasp.claims.printed import Outcome, listed
from lorasp.config import load_config
from lorasp.errors import WorkError
from lorasp.profiling.cells import planned
from lorasp.results import read_json

ROOT = Path("results/simulated")
PLAN = Path("config/simulated.yaml")
COMMAND = "snakemake --cores all simulated"
BASE = {"quantize": "none", "recompute": "none"}

Cell = dict[str, Any]
Side = str | dict[str, str]


def trained_states(cell: Cell) -> int:
    """Bytes of what training adds: trained weights, their gradients, AdamW's moments, masks.

    Gradients have the number format of their weights, and are all there when the optimizer works.
    """
    gradients = cell["phases"]["optimizer"]["kinds"].get("gradients", 0)
    rest: dict[str, int] = cell["rest"]
    return int(2 * gradients + rest.get("optimizer", 0) + rest.get("masks", 0))


# What can be compared of two steps: how it is called, its unit with the size of it, and its value.
MEASURES: dict[str, tuple[str, str, float, Callable[[Cell], int]]] = {
    "peak": ("peak memory", "GiB", 2.0**30, lambda cell: cell["peak_bytes"]),
    "activations": (
        "memory of the activations that are kept for the backward pass", "GiB", 2.0**30,
        lambda cell: cell["kept"].get("activations", 0),
    ),
    "states": ("memory of the trained states", "MiB", 2.0**20, trained_states),
    "weights": (
        "memory of the weights", "GiB", 2.0**30, lambda cell: cell["rest"].get("weights", 0)
    ),
    "flops": ("number of operations", "TFLOP", 1e12, lambda cell: cell["flops"]),
    "backward_flops": (
        "number of operations of the backward pass", "TFLOP", 1e12,
        lambda cell: cell["flops_by_phase"].get("backward", 0),
    ),
}  # fmt: skip


def read_simulations(root: Path = ROOT, plan: Path = PLAN) -> list[dict[str, Any]]:
    """The files under `root` that `plan` plans, or all where there is no plan; model by model.

    The first step of a file is the one of the paper's tables: it has the batch and length of the
    model's profile, and is neither quantized nor recomputing. Raises WorkError where a file is
    damaged, UsageError where the plan is.
    """
    files = {path for path in root.glob("*/*.json") if path.parent.name != "cache"}
    if plan.exists():
        pairs = planned(load_config(plan))
        files &= {root / model / f"{method}.json" for model, method in pairs}
    return [read_json(path, "simulation") for path in sorted(files)]


def simulated(
    document: Document,
    claim: Claim,
    *,
    left: Side,
    right: Side,
    measure: str,
    models: list[str],
    margin: str,
    test: str = "less",
) -> Outcome:
    """`left` needs less of a measure than `right`, by a margin of the file, on each of the models.

    With `test: at_most` it may need more by that margin, with `equal` more or less. A side is a
    method, or {method, quantize, recompute}. The worst model decides. Both steps have the batch and
    length of the first step in right's file, which is that of the paper's tables. The files are
    those of the methods named, planned or not. Without a file or a step the verdict is 'not run',
    and says what to run.
    """
    if measure not in MEASURES:
        raise WorkError(f"measure is {measure!r}; allowed are {', '.join(MEASURES)}")
    if margin not in document["margins"]:
        raise WorkError(f"margin is {margin!r}; allowed are {listed(document['margins'])}")
    if test not in TESTS:
        raise WorkError(f"test is {test!r}; allowed are {listed(TESTS)}")
    bounds = bounds_of(test, document["margins"][margin]["value"])
    sides = [_side(left), _side(right)]
    name, unit, size, value = MEASURES[measure]
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    for model in models:
        shape, cells = _cells(model, sides)
        missing += [
            f"{told(side)} on {model}" for side, cell in zip(sides, cells, strict=True) if not cell
        ]
        if None not in cells:
            ours, theirs = (value(cell) / size for cell in cells if cell)
            if not theirs:
                raise WorkError(f"{told(sides[1])} on {model} has no {name} to compare with")
            numbers = {f"left_{unit}": ours, f"right_{unit}": theirs, "ratio": ours / theirs}
            rows.append({"model": model, "batch": shape[0], "length": shape[1], **numbers})
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        found = f"not simulated: {missing[0]}{more}; run {COMMAND}"
        return Outcome("not run", found, rows=rows)
    worst = max(rows, key=lambda row: bounds.beyond(row["ratio"]))
    bound = bounds.nearest(worst["ratio"])
    near = min(abs(worst["ratio"] - bound), abs(worst["ratio"] - 1)) < 0.01
    places = max(4 if near else 2, digits(worst["ratio"], bound))
    where = f"on {worst['model']}" + (f", the worst of {len(rows)} models" if rows[1:] else "")
    found = (
        f"the {name} of {told(sides[0])} is {worst['ratio']:.{places}f} of that of "
        f"{told(sides[1])} {where}; what counts is {bounds.words()}"
    )
    evidence = [
        f"{row['model']}, batch {row['batch']} \N{MULTIPLICATION SIGN} {row['length']}: "
        f"{row[f'left_{unit}']:.4g} against {row[f'right_{unit}']:.4g} {unit}, "
        f"\N{MULTIPLICATION SIGN}{row['ratio']:.4f}."
        for row in rows
    ]
    evidence.append("Simulated: one warm training step on fake tensors.")
    return Outcome(bounds.verdict(worst["ratio"], worst["ratio"]), found, evidence, rows)


def _side(given: Side) -> dict[str, str]:
    side = {"method": given} if isinstance(given, str) else given
    if "method" not in side or set(side) - {"method", *BASE}:
        raise WorkError(f"a side is {given!r}; allowed are a method, or method with {listed(BASE)}")
    return BASE | side


def told(side: dict[str, str]) -> str:
    """A side in words: 'lora-sp', or 'lora-sp (nf4, recompute full)'."""
    settings = [side["quantize"]] if side["quantize"] != "none" else []
    settings += [f"recompute {side['recompute']}"] if side["recompute"] != "none" else []
    return side["method"] + (f" ({', '.join(settings)})" if settings else "")


def _cells(model: str, sides: list[dict[str, str]]) -> tuple[tuple[int, int], list[Cell | None]]:
    """Batch and length to compare at, and the step of each side there; None where it is missing."""
    found: list[list[Cell]] = []
    for side in sides:
        path = ROOT / model / f"{side['method']}.json"
        found.append(read_json(path, "simulation")["cells"] if path.exists() else [])
    shape = next(
        ((cells[0]["batch"], cells[0]["length"]) for cells in found[::-1] if cells), (0, 0)
    )
    wanted = [{"batch": shape[0], "length": shape[1]} | side for side in sides]
    return shape, [
        next((cell for cell in cells if _is(cell, want)), None)
        for cells, want in zip(found, wanted, strict=True)
    ]


def _is(cell: Cell, wanted: dict[str, Any]) -> bool:
    return all(cell[key] == wanted[key] for key in ("batch", "length", *BASE))
