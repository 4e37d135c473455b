"""A check of how many parameters a method trains, by applying it to the public models.

The models are on the meta device, at their full size; the method is the one that `train` applies.
"""

import functools
import json
from typing import Any

from lorasp.claims import Claim, Document
from lorasp.claims.limits import TESTS, Bounds, bounds_of
from lorasp.claims.printed import Outcome, listed
from lorasp.config import resolve_method
from lorasp.errors import UsageError, WorkError
from lorasp.methods import table
from lorasp.public_models import meta_model, public_models

Side = str | dict[str, Any]
Settings = dict[str, Any]


@functools.cache
def _applied(model: str, method: str, settings: str) -> int:
    import torch

    from lorasp.adapters.registry import apply_method  # seconds of imports

    resolved = {
        "model": {**public_models()[model], "name": model},
        "method": resolve_method({"methods": table()}, method, json.loads(settings)),
        "runtime": {"device": "cpu", "precision": "fp32"},
    }
    with torch.device("meta"):
        adapted = apply_method(meta_model(model), resolved)
    return sum(
        weight.numel()
        for name, weight in adapted.named_parameters()
        if weight.requires_grad and "classifier." not in name
    )


def trained_count(model: str, side: Side) -> int:
    """The parameters that a method trains on a public model, without a classification head.

    The head is trained whole with every method. A side is a method, or {method, settings}. Raises
    WorkError for a model or a method that there is not, or settings that do not fit.
    """
    if model not in public_models():
        known = ", ".join(public_models())
        raise WorkError(f"{model!r} is not in public_models.yaml; known are {known}")
    try:
        return _applied(model, _method(side), json.dumps(_settings(side)))
    except UsageError as error:
        raise WorkError(f"{_method(side)} on {model}: {error}") from error


def _method(side: Side) -> str:
    given = {"method": side} if isinstance(side, str) else side
    if "method" not in given or set(given) - {"method", "settings"}:
        raise WorkError(f"a side is {side!r}; allowed are a method, or method with settings")
    return str(given["method"])


def _settings(side: Side) -> Settings:
    return {} if isinstance(side, str) else side.get("settings", {})


def trained(
    document: Document,
    claim: Claim,
    *,
    left: Side,
    right: Side,
    models: list[str],
    margin: str,
    test: str = "less",
    up_to: bool = False,
    beside: list[Side] | None = None,
    tried: list[Settings] | None = None,
) -> Outcome:
    """`left` trains fewer parameters than `right` by a margin of the file, on each of the models.

    With `test: at_most` it may train more by that margin, with `equal` more or less. With `up_to`
    one model is enough, as in 'up to 20 times fewer'. A side is a method, or {method, settings}.
    `beside`: sides whose counts are told too. `tried`: other settings of `left`, of each of which
    it is told where it would hold; they decide nothing. A method that there is not makes it 'not
    run'.
    """
    if margin not in document["margins"]:
        raise WorkError(f"margin is {margin!r}; allowed are {listed(document['margins'])}")
    if test not in TESTS:
        raise WorkError(f"test is {test!r}; allowed are {listed(TESTS)}")
    sides = [left, right, *(beside or [])]
    if missing := [name for name in map(_method, sides) if name not in table()]:
        return Outcome("not run", f"there is no method {missing[0]}; `lorasp methods` lists them")
    bounds = bounds_of(test, document["margins"][margin]["value"])
    rows = [_row(model, left, right, beside or [], bounds) for model in models]
    decisive = (min if up_to else max)(rows, key=lambda row: bounds.beyond(row["ratio"]))
    which = f", the {'best' if up_to else 'worst'} of {len(rows)} models" if rows[1:] else ""
    found = (
        f"{told(left)} trains {_of(decisive['ratio'])} of what {told(right)} trains on "
        f"{decisive['model']}{which}; what counts is {bounds.words()}"
    )
    evidence = [_line(row, list(map(told, beside or []))) for row in rows]
    if up_to and not all(row["holds"] for row in rows):
        evidence.append(f"It holds on {_names(rows, True)}, not on {_names(rows, False)}.")
    for settings in tried or []:
        side = _with(left, settings)
        others = [_row(model, side, right, [], bounds) for model in models]
        evidence.append(
            f"With {_pairs(settings)}: {', '.join(_short(row) for row in others)}; "
            f"it would hold on {_names(others, True)}."
        )
        rows += others
    evidence.append(
        "Counted on the public models with the method applied; a classification head, which every "
        "method trains whole, is left out."
    )
    verdict = "reproduced" if decisive["holds"] else "not reproduced"
    return Outcome(verdict, found, evidence, rows)


def told(side: Side) -> str:
    """A side in words: 'lora', or 'lora (rank 8)'."""
    settings = _pairs(_settings(side))
    return f"{_method(side)} ({settings})" if settings else _method(side)


def _row(model: str, left: Side, right: Side, beside: list[Side], bounds: Bounds) -> dict[str, Any]:
    ours, theirs = trained_count(model, left), trained_count(model, right)
    if not theirs:
        raise WorkError(f"{told(right)} trains nothing on {model} to compare with")
    row: dict[str, Any] = {"model": model, "left": told(left), "trained": ours}
    ratio = ours / theirs
    row |= {"than": theirs, "ratio": ratio}
    row |= {"holds": bounds.verdict(ratio, ratio) == "reproduced"}
    return row | {told(side): trained_count(model, side) for side in beside}


def _with(side: Side, settings: Settings) -> Side:
    return {"method": _method(side), "settings": _settings(side) | settings}


def _of(ratio: float) -> str:
    """'0.0312 (1 in 32.0)', or '1.2500'."""
    return f"{ratio:.4f}" + (f" (1 in {1 / ratio:.1f})" if 0 < ratio < 1 else "")


def _line(row: dict[str, Any], beside: list[str]) -> str:
    counts = f"{row['model']}: {row['trained']:,} against {row['than']:,}, {_of(row['ratio'])}"
    return "; ".join([counts, *(f"{name} trains {row[name]:,}" for name in beside)]) + "."


def _short(row: dict[str, Any]) -> str:
    return f"{row['model']} 1 in {1 / row['ratio']:.1f}"


def _names(rows: list[dict[str, Any]], holds: bool) -> str:
    names = [row["model"] for row in rows if row["holds"] == holds]
    return listed(names) if names else "none"


def _pairs(settings: Settings) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())
